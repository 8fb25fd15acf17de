/*
 * test_hello.c - the beginning of TLS, whole and octet by octet, and what only looks like it.
 */
#include "harness.h"
#include "nq.h"

static bool seen(uint8_t type, const void *octets, size_t len, size_t step)
{
    struct nq_hello hello = { 0 };
    for (size_t at = 0; at < len; at += step) {
        size_t piece = len - at < step ? len - at : step;
        const uint8_t *copy = guarded((const uint8_t *)octets + at, piece);
        hello_take(&hello, type, copy, copy + piece);
    }
    return hello_seen(&hello);
}

TEST(hellos_and_what_is_none)
{
    static const struct { uint8_t type, octets[8], len; bool seen; } rows[] = {
        { HELLO_CLIENT, { 22, 3, 1, 2, 0, 1, 0, 1 }, 8, true },
        { HELLO_SERVER, { 22, 3, 3, 0, 122, 2, 0, 0 }, 8, true },
        { HELLO_CLIENT, { 22, 3, 1, 2, 0, 1 }, 6, true },
        { HELLO_CLIENT, { 22, 3, 1, 2, 0 }, 5, false },
        { HELLO_CLIENT, { 22, 3, 3, 0, 122, 2, 0, 0 }, 8, false },  /* the other's */
        { HELLO_SERVER, { 22, 3, 1, 2, 0, 1, 0, 1 }, 8, false },
        { HELLO_SERVER, { 21, 3, 3, 0, 2, 2, 40, 0 }, 8, false },   /* an alert */
        { HELLO_CLIENT, { 22, 2, 1, 2, 0, 1, 0, 1 }, 8, false },
        { HELLO_CLIENT, { 22, 3, 5, 2, 0, 1, 0, 1 }, 8, false },
        { HELLO_CLIENT, { 'E', 'H', 'L', 'O', ' ', 'x', '\r', '\n' }, 8, false },
        { HELLO_CLIENT, { 0 }, 0, false },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t step = 1; step <= 8; step++) {
            harness_row("row %zu in steps of %zu", i, step);
            CHECK_EQUAL(seen(rows[i].type, rows[i].octets, rows[i].len, step), rows[i].seen);
        }
}

TEST(what_was_wrong_once_stays_wrong)
{
    static const uint8_t no[] = { 'x' }, yes[] = { 22, 3, 1, 2, 0, 1 };
    struct nq_hello hello = { 0 };
    hello_take(&hello, HELLO_CLIENT, no, no + sizeof no);
    hello_take(&hello, HELLO_CLIENT, yes, yes + sizeof yes);
    CHECK(!hello_seen(&hello));
}
