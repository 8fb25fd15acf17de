/*
 * policy.c - the compiled policy: words as prefix automata, the rest as numbers. Read-only once installed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "nq.h"

static const struct {
    const char *text;
    uint8_t verb, flags;
} known[] = {
#define VERB(symbol, text, flags) { text, VERB_##symbol, flags },
#include "smtp_verbs.def"
#undef VERB
};

uint8_t verb_flags(uint8_t verb)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].verb == verb)
            return known[i].flags;
    return 0;
}

static uint8_t verb_of(const char *text)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcasecmp(known[i].text, text) == 0)
            return known[i].verb;
    return VERB_PRIVATE;
}

/* Letters 1..26 in either case, digits 27..36, hyphen 37 (RFC 5321 4.1.1.1 ehlo-keyword); 0: ends or breaks a word. */
static uint8_t automaton_class(uint8_t octet)
{
    if (octet >= 'a' && octet <= 'z')
        return (uint8_t)(octet - 'a' + 1);
    if (octet >= 'A' && octet <= 'Z')
        return (uint8_t)(octet - 'A' + 1);
    if (octet >= '0' && octet <= '9')
        return (uint8_t)(octet - '0' + 27);
    return octet == '-' ? 37 : 0;
}

uint16_t automaton_step(const struct nq_automaton *automaton, uint16_t node, uint8_t octet)
{
    uint8_t class = automaton_class(octet);
    return class ? automaton->next[node][class] : 0;
}

static bool add_word(struct nq_automaton *automaton, const char *text, uint8_t id, char *error)
{
    size_t len = strlen(text);
    uint16_t node = 0;
    if (len == 0 || len > NQ_WORD_MAX) {
        snprintf(error, NQ_ERROR_MAX, "a word must have 1 to %d octets, not %zu", NQ_WORD_MAX, len);
        return false;
    }
    for (const char *at = text; *at; at++) {
        uint8_t class = automaton_class((uint8_t)*at);
        if (!class) {
            snprintf(error, NQ_ERROR_MAX, "\"%s\" holds an octet that is no letter, digit or hyphen", text);
            return false;
        }
        if (!automaton->next[node][class]) {
            if (automaton->nodes == NQ_NODES) {
                snprintf(error, NQ_ERROR_MAX, "\"%s\" is one word too many: the automaton holds %d nodes", text, NQ_NODES);
                return false;
            }
            automaton->next[node][class] = automaton->nodes++;
        }
        node = automaton->next[node][class];
    }
    automaton->word[node] = id;
    return true;
}

static bool add_words(struct nq_automaton *automaton, const char **words, uint32_t count, bool verbs, char *error)
{
    automaton->nodes = 1;
    for (uint32_t i = 0; i < count; i++)
        if (!add_word(automaton, words[i], verbs ? verb_of(words[i]) : 1, error))
            return false;
    return true;
}

/* Where every verb passes, those that change how the client is read are known all the same: else the first octets of TLS would
 * be read as a command. */
static bool add_verbs(struct nq_automaton *automaton, const struct nq_policy_spec *spec, char *error)
{
    if (!add_words(automaton, spec->verbs, spec->verb_count, true, error))
        return false;
    for (size_t i = 0; i < sizeof known / sizeof *known && !spec->mask_verbs; i++)
        if (!add_word(automaton, known[i].text, known[i].verb, error))
            return false;
    return true;
}

/* One line of text, and what is to follow it. */
static bool take_text(uint8_t into[NQ_HEADROOM], uint8_t *len, const char *text, const char *end, char *error)
{
    size_t octets = text ? strlen(text) : 0;
    if (!octets)
        return true;
    if (octets + 2 > NQ_HEADROOM || strpbrk(text, "\r\n")) {
        snprintf(error, NQ_ERROR_MAX, "a text to insert must be one line of at most %d octets", NQ_HEADROOM - 2);
        return false;
    }
    *len = (uint8_t)snprintf((char *)into, NQ_HEADROOM, "%s%s", text, end);
    return true;
}

static bool take_texts(struct nq_policy *policy, const struct nq_policy_spec *spec, char *error)
{
    bool fits = take_text(policy->banner_text, &policy->banner_len, spec->banner_text, "", error) &&
                take_text(policy->header, &policy->header_len, spec->insert_header, "\r\n", error) &&
                take_text(policy->refusal, &policy->refusal_len, spec->refusal, "\r\n", error);
    policy->headroom = policy->banner_len > policy->header_len ? policy->banner_len : policy->header_len;
    return fits;
}

struct nq_policy *nq_policy_new(const struct nq_policy_spec *spec, char *error)
{
    struct nq_policy *policy = calloc(1, sizeof *policy);
    if (!policy) {
        snprintf(error, NQ_ERROR_MAX, "no memory for a policy (%zu octets)", sizeof *policy);
        return NULL;
    }
    snprintf(policy->name, sizeof policy->name, "%s", spec->name);
    policy->mask_verbs = spec->mask_verbs;
    policy->mask_keywords = spec->mask_keywords;
    policy->remove_keywords = spec->remove_keywords;
    policy->banner = (uint8_t)spec->banner;
    policy->max_data = spec->max_data;
    memcpy(policy->exceptions, spec->exceptions, NQ_EXCEPTIONS);
    if (!take_texts(policy, spec, error) || !add_verbs(&policy->verbs, spec, error) ||
        !add_words(&policy->keywords, spec->keywords, spec->keyword_count, false, error)) {
        free(policy);
        return NULL;
    }
    return policy;
}

void nq_policy_free(struct nq_policy *policy) { free(policy); }
