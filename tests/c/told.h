/*
 * told.h - what rules tell of a dialogue, through the whole engine: each of the client's turns goes whole, cut in two at every
 * place, and octet by octet, and the same must be told, in the same order, of the same octets.
 */
#ifndef TOLD_H
#define TOLD_H

#include "wire.h"

struct told_turn {
    unsigned from;
    const char *text;
    uint32_t len;               /* 0: to the NUL */
};

struct told_case {
    const struct nq_rule_spec *rules;
    uint32_t rule_count;
    const struct told_turn *turns;
    uint32_t turn_count;
    const char *told;           /* "name:value@offset ..." of each match; offset: of the thing's first octet in the stream */
    const char *arrives;        /* at the server; NULL: what was said */
};

/* Rules without an action log. A server that offers PIPELINING, SIZE, 8BITMIME, CHUNKING and AUTH greets and hears "EHLO me" first:
 * 9 octets of the client's. */
void told_all_ways(const struct told_case *all);

#define TOLD_OPENING 9

#endif
