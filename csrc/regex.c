/*
 * regex.c - a compiled regular expression, octet by octet, in linear time.
 *
 * nfqguard/policy/regex.py has made a deterministic automaton of the pattern; here it runs. A library that backtracks (PCRE) was
 * rejected: one hostile header line could cost it seconds, and it wants the text whole. RE2 and Hyperscan stream or are linear,
 * but keep memory of their own for each flow or build states while they match. Here a stream keeps its state in two octets, text
 * may come in any pieces, an octet costs one look-up, and nothing is allocated once a policy stands.
 */
#include <stdio.h>
#include <stdlib.h>

#include "nq.h"

enum { MATCHED = 1, MATCHES_AT_END = 2 };

static bool refused(char *error, const char *what, uint32_t number)
{
    snprintf(error, NQ_ERROR_MAX, "a regular expression's table is broken: %s (%u)", what, number);
    return false;
}

static bool sizes_fit(const struct nq_regex_spec *spec, char *error)
{
    if (spec->states < 1 || spec->states > 65535)
        return refused(error, "it must have 1 to 65535 states", spec->states);
    if (spec->classes < 1 || spec->classes > 256)
        return refused(error, "it must have 1 to 256 classes of octets", spec->classes);
    if (!spec->class_of || !spec->next || !spec->accepts)
        return refused(error, "a part of it is missing", 0);
    return true;
}

static bool classes_fit(const struct nq_regex_spec *spec, char *error)
{
    for (uint32_t octet = 0; octet < 256; octet++)
        if (spec->class_of[octet] >= spec->classes)
            return refused(error, "an octet is of a class that does not exist", octet);
    return true;
}

/* That a state which has matched stays is checked here once, so that regex_step() need not look. */
static bool state_fits(const struct nq_regex_spec *spec, uint32_t state, char *error)
{
    const uint16_t *row = spec->next + (size_t)state * spec->classes;
    if (spec->accepts[state] & ~(MATCHED | MATCHES_AT_END))
        return refused(error, "a state accepts in a way that does not exist", state);
    for (uint32_t class = 0; class < spec->classes; class++) {
        if (row[class] >= spec->states)
            return refused(error, "a state leads to one that does not exist", state);
        if ((spec->accepts[state] & MATCHED) && row[class] != state)
            return refused(error, "a state that has matched is left", state);
    }
    return true;
}

bool regex_init(struct nq_regex *regex, const struct nq_regex_spec *spec, char *error)
{
    *regex = (struct nq_regex){ 0 };
    if (!sizes_fit(spec, error) || !classes_fit(spec, error))
        return false;
    for (uint32_t state = 0; state < spec->states; state++)
        if (!state_fits(spec, state, error))
            return false;
    size_t cells = (size_t)spec->states * spec->classes;
    regex->next = malloc(cells * sizeof *regex->next);
    regex->accepts = malloc(spec->states);
    if (!regex->next || !regex->accepts) {
        regex_end(regex);
        return refused(error, "no memory for so many states", spec->states);
    }
    regex->states = (uint16_t)spec->states;
    regex->classes = (uint16_t)spec->classes;
    memcpy(regex->class_of, spec->class_of, sizeof regex->class_of);
    memcpy(regex->next, spec->next, cells * sizeof *regex->next);
    memcpy(regex->accepts, spec->accepts, spec->states);
    return true;
}

void regex_end(struct nq_regex *regex)
{
    free(regex->next);
    free(regex->accepts);
    *regex = (struct nq_regex){ 0 };
}

/* Most octets of most texts leave the state as it is. The inner loop bets on that: its loads then do not wait for each other, as
 * they must where every look-up needs the result of the one before. */
uint16_t regex_step(const struct nq_regex *regex, uint16_t state, const uint8_t *from, const uint8_t *to)
{
    while (from < to) {
        const uint16_t *row = regex->next + (size_t)state * regex->classes;
        uint16_t next = state;
        while (from < to && next == state)
            next = row[regex->class_of[*from++]];
        state = next;
    }
    return state;
}

bool regex_matched(const struct nq_regex *regex, uint16_t state) { return regex->accepts[state] & MATCHED; }

bool regex_matches_at_end(const struct nq_regex *regex, uint16_t state)
{
    return regex->accepts[state] & (MATCHED | MATCHES_AT_END);
}
