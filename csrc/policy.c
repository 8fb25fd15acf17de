/*
 * policy.c - the compiled policy: words as prefix automata, rules as a table, the rest as numbers. Read-only once installed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "nq.h"

static const struct {
    const char *text;
    uint8_t verb;
} known[] = {
#define VERB(symbol, text, flags) { text, VERB_##symbol },
#include "smtp_verbs.def"
#undef VERB
};

static const struct {
    const char *text;
    uint8_t keyword;
} known_keywords[] = {
#define KEYWORD(symbol, text) { text, KEYWORD_##symbol },
#include "smtp_keywords.def"
#undef KEYWORD
};

static const char *const parameters[] = {
    [PARAMETER_UNKNOWN] = "OTHERS",
#define PARAMETER(symbol, text, keyword) [PARAMETER_##symbol] = text,
#include "smtp_parameters.def"
#undef PARAMETER
};

static const char *const encodings[] = {
    [ENCODING_7BIT] = "7BIT", [ENCODING_8BIT] = "8BIT", [ENCODING_BASE64] = "BASE64", [ENCODING_BINARY] = "BINARY",
    [ENCODING_OTHERS] = "OTHERS", [ENCODING_QUOTED_PRINTABLE] = "QUOTED-PRINTABLE",
};

static const char *const enhanced_faults[] = {
    [ENHANCED_MISSING] = "MISSING", [ENHANCED_WRONG] = "WRONG", [ENHANCED_NOT_OFFERED] = "NOT-OFFERED",
};

static const struct {
    const char *name;
    uint8_t flags;
} matches[] = {
#define MATCH(symbol, name, flags) { name, flags },
#include "matches.def"
#undef MATCH
};

const char *nq_match_name(uint32_t match) { return match < MATCHES ? matches[match].name : NULL; }

uint8_t keyword_named(const uint8_t *text, uint32_t len)
{
    for (size_t i = 0; i < sizeof known_keywords / sizeof *known_keywords; i++)
        if (strlen(known_keywords[i].text) == len && strncasecmp(known_keywords[i].text, (const char *)text, len) == 0)
            return known_keywords[i].keyword;
    return KEYWORD_NONE;
}

uint8_t match_flags(uint8_t match) { return matches[match].flags; }

uint8_t verb_flags(uint8_t verb)
{
    static const uint8_t flags_of[UINT8_MAX + 1] = {
#define VERB(symbol, text, flags) [VERB_##symbol] = flags,
#include "smtp_verbs.def"
#undef VERB
    };
    return flags_of[verb];
}

/* 0: a word that we know nothing of. */
static uint8_t verb_of(const char *text)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcasecmp(known[i].text, text) == 0)
            return known[i].verb;
    return 0;
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

/* 0: a word that we know nothing of. */
static uint8_t keyword_of(const char *text)
{
    for (size_t i = 0; i < sizeof known_keywords / sizeof *known_keywords; i++)
        if (strcasecmp(known_keywords[i].text, text) == 0)
            return known_keywords[i].keyword;
    return 0;
}

static bool word_fits(const char *text, char *error)
{
    size_t len = strlen(text);
    if (len == 0 || len > NQ_WORD_MAX) {
        snprintf(error, NQ_ERROR_MAX, "a word must have 1 to %d octets, not %zu", NQ_WORD_MAX, len);
        return false;
    }
    for (const char *at = text; *at; at++)
        if (!automaton_class((uint8_t)*at)) {
            snprintf(error, NQ_ERROR_MAX, "\"%s\" holds an octet that is no letter, digit or hyphen", text);
            return false;
        }
    return true;
}

/* The id of the word, which may be there already; `known` is that of a word with a meaning, else it gets the next free one. 0
 * where there is no room, with a sentence in error. */
static uint8_t add_word(struct nq_automaton *automaton, const char *text, uint8_t known, char *error)
{
    uint16_t node = 0;
    if (!word_fits(text, error))
        return 0;
    for (const char *at = text; *at; at++) {
        uint16_t *next = &automaton->next[node][automaton_class((uint8_t)*at)];
        if (!*next && automaton->nodes == NQ_NODES) {
            snprintf(error, NQ_ERROR_MAX, "\"%s\" is one word too many: the automaton holds %d nodes", text, NQ_NODES);
            return 0;
        }
        if (!*next)
            *next = automaton->nodes++;
        node = *next;
    }
    if (!automaton->word[node] && !known && automaton->free_id == UINT8_MAX) {
        snprintf(error, NQ_ERROR_MAX, "\"%s\" is one word too many: a policy names 255 at most", text);
        return 0;
    }
    if (!automaton->word[node])
        automaton->word[node] = known ? known : automaton->free_id++;
    return automaton->word[node];
}

static void words_add(struct nq_words *words, uint8_t id) { words->bits[id >> 6] |= (uint64_t)1 << (id & 63); }

static bool add_words(struct nq_automaton *automaton, struct nq_words *allowed, const char **words, uint32_t count,
                      uint8_t (*known)(const char *), char *error)
{
    for (uint32_t i = 0; i < count; i++) {
        uint8_t id = add_word(automaton, words[i], known(words[i]), error);
        if (!id)
            return false;
        words_add(allowed, id);
    }
    return true;
}

static bool rules_allow_the_unnamed(const struct nq_policy_spec *spec)
{
    for (uint32_t i = 0; i < spec->rule_count; i++) {
        const struct nq_rule_spec *rule = &spec->rules[i];
        if (rule->match == MATCH_OF_CMD_VERB && rule->action == NQ_DO_ALLOW && !rule->dry_run &&
            (!rule->word_count || rule->except_words || rule->negate))
            return true;
    }
    return false;
}

/* Where every verb passes, those that change how the client is read are known all the same: else the first octets of TLS would
 * be read as a command. Likewise where a verb that is not allowed passes because nothing is changed. */
static bool add_verbs(struct nq_policy *policy, const struct nq_policy_spec *spec, char *error)
{
    if (!add_words(&policy->verbs, &policy->allowed_verbs, spec->verbs, spec->verb_count, verb_of, error))
        return false;
    bool passes = !spec->mask_verbs || spec->dry_run || rules_allow_the_unnamed(spec);
    for (size_t i = 0; i < sizeof known / sizeof *known && passes; i++)
        if (!add_word(&policy->verbs, known[i].text, known[i].verb, error))
            return false;
    return true;
}

static bool add_keywords(struct nq_policy *policy, const struct nq_policy_spec *spec, char *error)
{
    return add_words(&policy->keywords, &policy->allowed_keywords, spec->keywords, spec->keyword_count, keyword_of, error);
}

/* May a rule let this verb pass that the policy does not allow? */
static bool rule_may_allow(const struct nq_policy *policy, uint8_t word)
{
    for (uint64_t rules = policy->rules_of[MATCH_OF_CMD_VERB]; rules; rules &= rules - 1) {
        const struct nq_rule *rule = &policy->rules[__builtin_ctzll(rules)];
        bool of_word = rule->any_word || words_have(&rule->words, word) != rule->except_words;
        if (rule->action == NQ_DO_ALLOW && !rule->dry_run && of_word != rule->negate)
            return true;
    }
    return false;
}

static void doom(struct nq_policy *policy)
{
    struct nq_automaton *automaton = &policy->verbs;
    for (uint16_t node = 0; node < automaton->nodes; node++) {
        bool leaf = true;
        for (int class = 0; class < 40; class++)
            leaf &= !automaton->next[node][class];
        uint8_t word = automaton->word[node];
        automaton->doomed[node] = leaf && word && !words_have(&policy->allowed_verbs, word) && !rule_may_allow(policy, word);
    }
}

/* ---- rules ---- */

static uint8_t word_in(const char *const *table, size_t count, const char *text)
{
    for (size_t i = 0; i < count; i++)
        if (table[i] && strcasecmp(table[i], text) == 0)
            return (uint8_t)i;
    return UINT8_MAX;
}

/* The id of a rule's word, in the namespace of what the rule looks at; UINT8_MAX where there is none. */
static uint8_t rule_word(struct nq_policy *policy, uint8_t match, const char *text, char *error)
{
    uint8_t id = 0;
    switch (match) {
    case MATCH_OF_CMD_VERB:
    case MATCH_OF_CMD_SYNTAX:
    case MATCH_OF_CMD_LINE_LENGTH:
    case MATCH_OF_PIPELINED: id = add_word(&policy->verbs, text, verb_of(text), error); break;
    case MATCH_OF_NOT_OFFERED:
    case MATCH_OF_EHLO_PARAMETER: id = add_word(&policy->keywords, text, keyword_of(text), error); break;
    case MATCH_OF_AUTH_MECHANISM: id = add_word(&policy->mechanisms, text, 0, error); break;
    case MATCH_OF_MIME_ENCODING: return word_in(encodings, sizeof encodings / sizeof *encodings, text);
    case MATCH_OF_ENHANCED_CODE: return word_in(enhanced_faults, sizeof enhanced_faults / sizeof *enhanced_faults, text);
    default: return word_in(parameters, sizeof parameters / sizeof *parameters, text);
    }
    return id ? id : UINT8_MAX;
}

static int subject_of(uint8_t match)
{
    switch (match) {
    case MATCH_OF_SENDER_REGEX: return SUBJECT_SENDER;
    case MATCH_OF_RECIPIENT_REGEX:
    case MATCH_OF_MAIL_RELAY: return SUBJECT_RECIPIENT;
    case MATCH_OF_HELO_REGEX: return SUBJECT_HELO;
    case MATCH_OF_HEADER_REGEX: return SUBJECT_HEADER;
    case MATCH_OF_BODY_REGEX: return SUBJECT_BODY;
    default: return SUBJECT_FILETYPE;
    }
}

static bool take_regex(struct nq_policy *policy, const struct nq_rule_spec *spec, char *error)
{
    struct nq_expressions *all = &policy->expressions[subject_of((uint8_t)spec->match)];
    if (!spec->regex || all->count == NQ_REGEXES) {
        snprintf(error, NQ_ERROR_MAX, "rule %s: %s", spec->name,
                 spec->regex ? "one regular expression of its kind too many" : "it needs a regular expression");
        return false;
    }
    if (!regex_init(&all->regex[all->count], spec->regex, error))
        return false;
    all->rule[all->count++] = (uint8_t)policy->rule_count;
    return true;
}

static bool take_words(struct nq_policy *policy, struct nq_rule *rule, const struct nq_rule_spec *spec, char *error)
{
    rule->any_word = spec->word_count == 0;
    rule->except_words = spec->except_words;
    for (uint32_t i = 0; i < spec->word_count; i++) {
        *error = 0;
        uint8_t id = rule_word(policy, rule->match, spec->words[i], error);
        if (id == UINT8_MAX) {
            if (!*error)
                snprintf(error, NQ_ERROR_MAX, "rule %.31s: \"%.31s\" is no word of its kind", spec->name, spec->words[i]);
            return false;
        }
        words_add(&rule->words, id);
    }
    return true;
}

static const char *rule_fault(const struct nq_policy *policy, const struct nq_rule_spec *spec)
{
    uint8_t flags = spec->match < MATCHES ? matches[spec->match].flags : 0;
    if (policy->rule_count == NQ_RULES)
        return "one rule too many: a policy has 64";
    if (spec->match >= MATCHES || spec->action >= NQ_DOINGS)
        return "there is no such match or action";
    if (spec->action == NQ_DO_MASK && !(flags & MATCH_MASK))
        return "nothing is in hand there that could be masked";
    if (spec->action == NQ_DO_REPLACE && !(flags & MATCH_OCTET))
        return "nothing is in hand there that could be replaced";
    if (spec->action == NQ_DO_REMOVE && spec->match != MATCH_OF_EHLO_PARAMETER)
        return "only lines of the EHLO reply can be removed";
    if (spec->action == NQ_DO_RATE_LIMIT && !spec->rate)
        return "a rate must be 1 or more";
    return spec->code_pairs > NQ_CODE_PAIRS ? "too many ranges of reply codes: 8 at most" : NULL;
}

static bool take_text(uint8_t into[NQ_HEADROOM], uint8_t *len, const char *text, const char *end, char *error);

static bool add_rule(struct nq_policy *policy, const struct nq_rule_spec *spec, char *error)
{
    const char *fault = rule_fault(policy, spec);
    if (fault) {
        snprintf(error, NQ_ERROR_MAX, "rule %.31s: %s", spec->name, fault);
        return false;
    }
    struct nq_rule *rule = &policy->rules[policy->rule_count];
    snprintf(rule->name, sizeof rule->name, "%s", spec->name);
    rule->match = (uint8_t)spec->match;
    rule->action = (uint8_t)spec->action;
    rule->negate = spec->negate;
    rule->log = spec->log || spec->action == NQ_DO_LOG || spec->action == NQ_DO_RATE_LIMIT;
    rule->dry_run = spec->dry_run || policy->dry_run;
    rule->bound = spec->bound;
    rule->rate = spec->rate;
    rule->code_pairs = (uint8_t)spec->code_pairs;
    for (uint32_t i = 0; i < 2 * spec->code_pairs; i++)
        rule->codes[i] = spec->codes[i];
    if ((matches[rule->match].flags & MATCH_REGEX) && !take_regex(policy, spec, error))
        return false;
    if (!take_words(policy, rule, spec, error) || !take_text(rule->reply, &rule->reply_len, spec->reply, "\r\n", error))
        return false;
    policy->rules_that_act |= (uint64_t)(rule->action != NQ_DO_LOG) << policy->rule_count;
    policy->rules_of[rule->match] |= (uint64_t)1 << policy->rule_count++;
    return true;
}

static uint64_t rules_between(const struct nq_policy *policy, enum nq_match first, enum nq_match last)
{
    uint64_t rules = 0;
    for (unsigned match = first; match <= last; match++)
        rules |= policy->rules_of[match];
    return rules;
}

static bool add_rules(struct nq_policy *policy, const struct nq_policy_spec *spec, char *error)
{
    for (uint32_t i = 0; i < spec->rule_count; i++)
        if (!add_rule(policy, &spec->rules[i], error))
            return false;
    const struct nq_expressions *filetypes = &policy->expressions[SUBJECT_FILETYPE];
    for (uint32_t i = 0; i < filetypes->count; i++)
        policy->mime.filetypes[policy->mime.filetype_count++] = &filetypes->regex[i];
    policy->reads_mime = rules_between(policy, MATCH_OF_HEADER_TO_FIELDS, MATCH_OF_HEADER_REGEX) ||
                         rules_between(policy, MATCH_OF_BODY_REGEX, MATCH_OF_MIME_FILENAME_LENGTH);
    policy->watches_newlines = rules_between(policy, MATCH_OF_SMUGGLING, MATCH_OF_BARE_NEWLINE);
    policy->limits = spec->rule_count ? calloc(spec->rule_count, sizeof *policy->limits) : NULL;
    return !spec->rule_count || policy->limits;
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

static void take_parameters(struct nq_policy *policy, const struct nq_policy_spec *spec)
{
    snprintf(policy->name, sizeof policy->name, "%s", spec->name);
    policy->mask_verbs = spec->mask_verbs;
    policy->mask_keywords = spec->mask_keywords;
    policy->remove_keywords = spec->remove_keywords;
    policy->banner = (uint8_t)spec->banner;
    policy->max_data = spec->max_data;
    policy->timeout = spec->timeout;
    policy->alert = spec->alert;
    policy->audit_trail = spec->audit_trail;
    policy->dry_run = spec->dry_run;
    policy->offload = spec->offload;
    policy->verbs.nodes = policy->keywords.nodes = policy->mechanisms.nodes = 1;
    policy->verbs.free_id = VERBS;
    policy->keywords.free_id = KEYWORDS;
    policy->mechanisms.free_id = 1;
    memcpy(policy->exceptions, spec->exceptions, NQ_EXCEPTIONS);
}

struct nq_policy *nq_policy_new(const struct nq_policy_spec *spec, char *error)
{
    struct nq_policy *policy = calloc(1, sizeof *policy);
    if (!policy) {
        snprintf(error, NQ_ERROR_MAX, "no memory for a policy (%zu octets)", sizeof *policy);
        return NULL;
    }
    take_parameters(policy, spec);
    if (!take_texts(policy, spec, error) || !add_verbs(policy, spec, error) || !add_keywords(policy, spec, error) ||
        !add_rules(policy, spec, error)) {
        nq_policy_free(policy);
        return NULL;
    }
    if (policy->mask_verbs && !policy->dry_run)
        doom(policy);
    return policy;
}

void nq_policy_free(struct nq_policy *policy)
{
    if (!policy)
        return;
    for (unsigned subject = 0; subject < SUBJECTS; subject++)
        for (uint32_t i = 0; i < policy->expressions[subject].count; i++)
            regex_end(&policy->expressions[subject].regex[i]);
    free(policy->limits);
    free(policy);
}
