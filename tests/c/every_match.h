/*
 * every_match.h - policies with a rule for every line of matches.def.
 */
#ifndef EVERY_MATCH_H
#define EVERY_MATCH_H

#include "nq.h"

enum manner {
    LOGS = 0,                   /* all are told, nothing is changed by a rule */
    EDITS,                      /* told, then masked, replaced or removed wherever the match allows it */
    ENDS,                       /* told, then some are rejected, reset, dropped or limited */
    DRY,                        /* as EDITS, and the policy is a dry run: what leaves is what came */
    MANNERS
};

/* Verbs of ESMTP, BDAT among them. Those matches alone act whose number leaves the remainder `part`, and where octets are edited
 * those that replace single ones: else nobody would come far. The caller frees it. */
enum { PARTS = 8 };
struct nq_policy *every_match(enum manner manner, uint32_t part);

/* An automaton that has matched once `text` (at most 30 octets) has come, anywhere. Valid until the next call for that slot. */
enum { LITERALS = 8 };
const struct nq_regex_spec *literal(unsigned slot, const char *text);

#endif
