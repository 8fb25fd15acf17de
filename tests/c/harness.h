/*
 * harness.h - the least that a C test needs: tests that announce themselves, checks that say what they saw, and memory that
 * ends where the octets end.
 *
 *   c_tests --list          one "file.test" a line
 *   c_tests file.test       runs that one; exit status 0, or the failed check on standard error and SIGABRT
 *
 * Each test runs in a process of its own, so a check that fails ends the process: nothing is unwound.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <stddef.h>
#include <stdint.h>

struct test {
    const char *file, *name;
    void (*run)(void);
    struct test *next;
};

void harness_add(struct test *test);

#define TEST(name)                                                                       \
    static void name(void);                                                              \
    static struct test name##_test = { __FILE__, #name, name, NULL };                    \
    __attribute__((constructor)) static void name##_add(void) { harness_add(&name##_test); } \
    static void name(void)

/* What the checks below are about at the moment, told when one fails. printf's format. */
void harness_row(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void harness_fail(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));

#define CHECK(condition)                                            \
    do {                                                            \
        if (!(condition))                                           \
            harness_fail(__FILE__, __LINE__, "not so: %s", #condition); \
    } while (0)

#define CHECK_EQUAL(found, wanted)                                                                              \
    do {                                                                                                        \
        long long found_ = (long long)(found), wanted_ = (long long)(wanted);                                   \
        if (found_ != wanted_)                                                                                  \
            harness_fail(__FILE__, __LINE__, "%s is %lld (0x%llx), wanted %lld (0x%llx), that is %s", #found,   \
                         found_, (unsigned long long)found_, wanted_, (unsigned long long)wanted_, #wanted);    \
    } while (0)

#define CHECK_OCTETS(found, found_len, wanted, wanted_len) \
    harness_octets(__FILE__, __LINE__, #found, found, found_len, wanted, wanted_len)

#define CHECK_TEXT(found, wanted) harness_octets(__FILE__, __LINE__, #found, found, strlen(found), wanted, strlen(wanted))

void harness_octets(const char *file, int line, const char *what, const void *found, size_t found_len, const void *wanted,
                    size_t wanted_len);

/* `len` octets whose last is the last of a page, with an inaccessible page behind it. `octets` may be NULL. One at a time:
 * the next call, of whatever size, takes the memory back. */
uint8_t *guarded(const void *octets, size_t len);

/* xorshift64*: the same numbers everywhere for one seed. Vigna, "An experimental exploration of Marsaglia's xorshift
 * generators, scrambled". */
struct dice {
    uint64_t state;
};
uint32_t dice_below(struct dice *dice, uint32_t bound);

#endif
