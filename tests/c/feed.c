/*
 * feed.c - see feed.h.
 */
#include "feed.h"

#include <stdio.h>
#include <stdlib.h>

#include "harness.h"

void note(struct trace *trace, const char *what, long number)
{
    char *at = trace->text + trace->len;
    size_t room = sizeof trace->text - trace->len;
    const char *blank = trace->len ? " " : "";
    int written = number < 0 ? snprintf(at, room, "%s%s", blank, what) : snprintf(at, room, "%s%s:%ld", blank, what, number);
    CHECK((size_t)written < room);
    trace->len += (size_t)written;
}

void feed(feeder *eat, void *scanner, const uint8_t *octets, size_t from, size_t to, struct trace *trace)
{
    if (from == to)
        return;
    uint8_t *copy = guarded(octets + from, to - from);
    struct nq_cursor cursor = { .begin = copy, .at = copy, .end = copy + (to - from) };
    eat(scanner, &cursor, trace);
}

void feed_all_ways(feeder *eat, const void *fresh, size_t size, const void *octets, size_t len, const char *wanted)
{
    const uint8_t *row = octets;
    void *scanner = malloc(size);
    for (size_t cut = 0; cut <= len; cut++) {
        struct trace trace = { .len = 0 };
        harness_row("%s, cut at %zu of %zu", wanted, cut, len);
        memcpy(scanner, fresh, size);
        feed(eat, scanner, row, 0, cut, &trace);
        feed(eat, scanner, row, cut, len, &trace);
        CHECK_TEXT(trace.text, wanted);
    }
    struct trace trace = { .len = 0 };
    harness_row("%s, octet by octet", wanted);
    memcpy(scanner, fresh, size);
    for (size_t i = 0; i < len; i++)
        feed(eat, scanner, row, i, i + 1, &trace);
    CHECK_TEXT(trace.text, wanted);
    free(scanner);
}
