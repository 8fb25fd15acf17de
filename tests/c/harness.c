/*
 * harness.c - checks and guarded memory.
 */
#include "harness.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char row[256];

void harness_row(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(row, sizeof row, format, arguments);
    va_end(arguments);
}

_Noreturn void harness_fail(const char *file, int line, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "%s%s\n", *row ? "\n  in the row: " : "", row);
    fflush(stderr);
    abort(); /* libFuzzer keeps the input of what ends like this */
}

static void print_octets(const char *title, const uint8_t *octets, size_t len, size_t from)
{
    fprintf(stderr, "  %s, %zu octets, from %zu on: \"", title, len, from);
    for (size_t i = from; i < len && i < from + 120; i++)
        fprintf(stderr, octets[i] >= 0x20 && octets[i] < 0x7f ? "%c" : "\\x%02x", octets[i]);
    fprintf(stderr, "\"\n");
}

void harness_octets(const char *file, int line, const char *what, const void *found, size_t found_len, const void *wanted,
                    size_t wanted_len)
{
    const uint8_t *a = found, *b = wanted;
    size_t at = 0, both = found_len < wanted_len ? found_len : wanted_len;
    while (at < both && a[at] == b[at])
        at++;
    if (at == found_len && at == wanted_len)
        return;
    size_t from = at < 40 ? 0 : at - 40;
    print_octets("found", a, found_len, from);
    print_octets("wanted", b, wanted_len, from);
    harness_fail(file, line, "%s differs at octet %zu", what, at);
}

uint8_t *guarded(const void *octets, size_t len)
{
    static uint8_t *memory;
    static size_t size;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t wanted = (len / page + 2) * page;
    if (wanted > size) {
        if (memory)
            munmap(memory, size);
        memory = mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(memory != MAP_FAILED);
        CHECK_EQUAL(mprotect(memory + wanted - page, page, PROT_NONE), 0);
        size = wanted;
    }
    uint8_t *at = memory + size - page - len;
    if (octets && len)
        memcpy(at, octets, len);
    return at;
}

uint32_t dice_below(struct dice *dice, uint32_t bound)
{
    dice->state ^= dice->state >> 12;
    dice->state ^= dice->state << 25;
    dice->state ^= dice->state >> 27;
    return (uint32_t)((dice->state * 0x2545f4914f6cdd1dull) >> 32) % bound;
}
