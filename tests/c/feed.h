/*
 * feed.h - octets fed to a scanner: whole, cut in two at every place, octet by octet, and each time with the last octet at the end
 * of a page. What was met, written down as words, must be the same.
 */
#ifndef FEED_H
#define FEED_H

#include "nq.h"

struct trace {
    char text[4096];
    size_t len;
};

/* Add a word, and behind a colon a number; below 0: none. */
void note(struct trace *trace, const char *what, long number);

/* Takes all octets of the cursor. */
typedef void feeder(void *scanner, struct nq_cursor *cursor, struct trace *trace);

/* Feed octets[from..to), which lie at the end of a page. */
void feed(feeder *eat, void *scanner, const uint8_t *octets, size_t from, size_t to, struct trace *trace);
/* In every way, each time to a copy of the `size` octets at fresh. */
void feed_all_ways(feeder *eat, const void *fresh, size_t size, const void *octets, size_t len, const char *wanted);

struct row {
    const char *octets;
    size_t len;
    const char *met;
};
#define ROW(octets, met) { octets, sizeof(octets) - 1, met }

#endif
