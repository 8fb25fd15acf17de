/*
 * every_match.c - see every_match.h.
 */
#include "every_match.h"

#include <stdio.h>

#include "harness.h"

enum { LITERAL_MAX = 30 };

/* The state behind `octet`: the longest beginning of the text that ends here. By trying all, for clarity. */
static uint16_t behind(const char *text, uint16_t state, char octet)
{
    char seen[LITERAL_MAX + 1];
    memcpy(seen, text, state);
    seen[state] = octet;
    for (uint16_t len = (uint16_t)(state + 1); len > 0; len--)
        if (memcmp(seen + state + 1 - len, text, len) == 0)
            return len;
    return 0;
}

const struct nq_regex_spec *literal(unsigned slot, const char *text)
{
    static uint8_t class_of[LITERALS][256], accepts[LITERALS][LITERAL_MAX + 1];
    static uint16_t next[LITERALS][(LITERAL_MAX + 1) * (LITERAL_MAX + 1)];
    static struct nq_regex_spec specs[LITERALS];
    uint16_t len = (uint16_t)strlen(text), classes = 1;
    CHECK(slot < LITERALS && len > 0 && len <= LITERAL_MAX);
    char octet_of[LITERAL_MAX + 1] = { 0 };
    memset(class_of[slot], 0, 256);
    memset(accepts[slot], 0, sizeof *accepts);
    for (const char *at = text; *at; at++)
        if (!class_of[slot][(uint8_t)*at]) {
            octet_of[classes] = *at;
            class_of[slot][(uint8_t)*at] = (uint8_t)classes++;
        }
    for (uint16_t state = 0; state < len; state++)
        for (uint16_t class = 0; class < classes; class++)
            next[slot][state * classes + class] = class ? behind(text, state, octet_of[class]) : 0;
    for (uint16_t class = 0; class < classes; class++)
        next[slot][len * classes + class] = len;
    accepts[slot][len] = 1;
    specs[slot] = (struct nq_regex_spec){ .states = len + 1u, .classes = classes, .class_of = class_of[slot], .next = next[slot],
                                          .accepts = accepts[slot] };
    return &specs[slot];
}

/* ---- rules ---- */

static const char *verbs[] = { "AUTH", "BDAT", "DATA", "EHLO", "HELO", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET", "STARTTLS",
                               "VRFY" };
static const char *keywords[] = { "8BITMIME", "AUTH", "CHUNKING", "SIZE", "STARTTLS" };
static const uint16_t codes[] = { 500, 599, 421, 421 };

/* Small enough to be passed by an ordinary mail. */
static uint64_t bound_of(uint8_t match)
{
    switch (match) {
    case MATCH_OF_CMD_LINE_LENGTH: return 14;
    case MATCH_OF_SHORT_VERB: return 5;
    case MATCH_OF_SENDER_LENGTH:
    case MATCH_OF_RECIPIENT_LENGTH: return 2;
    case MATCH_OF_HEADER_LENGTH: return 40;
    case MATCH_OF_BODY_LENGTH: return 100;
    case MATCH_OF_HEADER_LINE_LENGTH:
    case MATCH_OF_BODY_LINE_LENGTH: return 20;
    case MATCH_OF_DECLARED_SIZE: return 50;
    case MATCH_OF_MIME_FILENAME_LENGTH: return 4;
    default: return 1;
    }
}

static uint32_t edit_of(uint8_t match)
{
    uint8_t flags = match_flags(match);
    if (match == MATCH_OF_EHLO_PARAMETER)
        return NQ_DO_REMOVE;
    return flags & MATCH_OCTET ? NQ_DO_REPLACE : flags & MATCH_MASK ? NQ_DO_MASK : NQ_DO_LOG;
}

static uint32_t end_of(uint8_t match)
{
    static const uint32_t ends[] = { NQ_DO_REJECT, NQ_DO_RESET, NQ_DO_DROP, NQ_DO_RATE_LIMIT };
    return ends[match % 4];
}

static const char *text_of(uint8_t match)
{
    switch (match) {
    case MATCH_OF_SENDER_REGEX: return "a@";
    case MATCH_OF_RECIPIENT_REGEX: return "@f";
    case MATCH_OF_MAIL_RELAY: return "e@";
    case MATCH_OF_HELO_REGEX: return "me";
    case MATCH_OF_HEADER_REGEX: return "ject: x";
    case MATCH_OF_BODY_REGEX: return "stuf";
    default: return ".exe";
    }
}

static unsigned slot_of(uint8_t match)
{
    unsigned slot = 0;
    for (uint8_t before = 0; before < match; before++)
        slot += (match_flags(before) & MATCH_REGEX) != 0;
    return slot;
}

static struct nq_rule_spec rule_of(uint8_t match, const char *name)
{
    static const char *words_of_a_kind[][1] = { { "SIZE" }, { "BASE64" }, { "PLAIN" }, { "RSET" } };
    struct nq_rule_spec rule = { .name = name, .match = match, .rate = 1, .reply = "554 5.7.1 No", .log = 1 };
    uint8_t flags = match_flags(match);
    if (flags & (MATCH_ABOVE | MATCH_BELOW))
        rule.bound = bound_of(match);
    if (flags & MATCH_REGEX)
        rule.regex = literal(slot_of(match), text_of(match));
    if (flags & MATCH_CODES)
        rule.codes = codes, rule.code_pairs = 2;
    const char **words = match == MATCH_OF_PARAMETER || match == MATCH_OF_EHLO_PARAMETER ? words_of_a_kind[0]
                         : match == MATCH_OF_MIME_ENCODING                               ? words_of_a_kind[1]
                         : match == MATCH_OF_AUTH_MECHANISM                              ? words_of_a_kind[2]
                         : match == MATCH_OF_CMD_VERB                                    ? words_of_a_kind[3]
                                                                                         : NULL;
    rule.words = words;
    rule.word_count = words != NULL;
    rule.except_words = match == MATCH_OF_EHLO_PARAMETER;
    rule.negate = match == MATCH_OF_MAIL_RELAY;
    return rule;
}

struct nq_policy *every_match(enum manner manner, uint32_t part)
{
    static char names[NQ_RULES][32];
    static struct nq_rule_spec rules[NQ_RULES];
    char error[NQ_ERROR_MAX];
    uint32_t count = 0;
    for (uint8_t match = 0; match < MATCHES; match++)
        for (int acts = 0; acts < 2 && count < NQ_RULES; acts++) {
            bool chosen = match % PARTS == part || (manner != ENDS && match_flags(match) & MATCH_OCTET);
            uint32_t action = !chosen ? NQ_DO_LOG : manner == ENDS ? end_of(match) : edit_of(match);
            if (acts ? manner == LOGS || action == NQ_DO_LOG : manner != LOGS && match % 3)
                continue;
            snprintf(names[count], sizeof *names, "%u-%s", match, acts ? "acts" : "logs");
            rules[count] = rule_of(match, names[count]);
            rules[count++].action = acts ? action : (uint32_t)NQ_DO_LOG;
        }
    struct nq_policy_spec spec = {
        .name = "every-match", .verbs = verbs, .verb_count = sizeof verbs / sizeof *verbs, .keywords = keywords,
        .keyword_count = sizeof keywords / sizeof *keywords, .mask_verbs = 1, .mask_keywords = manner == EDITS,
        .remove_keywords = manner == EDITS, .banner = NQ_BANNER_MODERN, .alert = 1, .audit_trail = 1, .dry_run = manner == DRY,
        .rules = rules, .rule_count = count, .refusal = manner == ENDS ? "554 5.7.1 Refused" : NULL,
    };
    struct nq_policy *policy = nq_policy_new(&spec, error);
    if (!policy)
        harness_fail(__FILE__, __LINE__, "no policy: %s", error);
    return policy;
}
