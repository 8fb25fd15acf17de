/*
 * inspect.c - what was said x policy -> match -> action. The only file where the two meet; it changes nothing but the note of which
 * rules have had their say.
 *
 * First come the rules, in their order: those that only tell are all asked, the first other one decides. Then comes what the policy
 * is made of: its words, its banner, its bounds.
 */
#include "nq.h"

static struct nq_judgement judgement(enum nq_action action, uint8_t reason)
{
    return (struct nq_judgement){ .action = (uint8_t)action, .reason = reason };
}

/* ---- does a rule match? ---- */

static uint64_t bit(unsigned place) { return (uint64_t)1 << place; }

static bool code_matches(const struct nq_rule *rule, uint64_t code)
{
    for (unsigned i = 0; i < rule->code_pairs; i++)
        if (code >= rule->codes[2 * i] && code <= rule->codes[2 * i + 1])
            return true;
    return rule->code_pairs == 0;
}

static bool regex_says(const struct nq_policy *policy, unsigned place, const struct nq_said *said)
{
    for (unsigned subject = 0; subject < SUBJECTS; subject++) {
        const struct nq_expressions *all = &policy->expressions[subject];
        for (uint32_t i = 0; i < all->count; i++) {
            if (all->rule[i] != place)
                continue;
            if (!said->text)
                return said->value >> i & 1;
            return regex_matched(&all->regex[i], said->text[i]) ||
                   (said->final && regex_matches_at_end(&all->regex[i], said->text[i]));
        }
    }
    return false;
}

static bool matches(const struct nq_policy *policy, unsigned place, const struct nq_said *said)
{
    const struct nq_rule *rule = &policy->rules[place];
    uint8_t flags = match_flags(rule->match);
    bool of_word = rule->any_word || words_have(&rule->words, said->word) != rule->except_words;
    bool hit = true;
    if (flags & MATCH_ABOVE) /* the server's counts only grow: each bound is passed once */
        hit = flags & MATCH_SERVER ? said->value == rule->bound + 1 : said->value > rule->bound;
    else if (flags & MATCH_BELOW)
        hit = said->value < rule->bound;
    else if (flags & MATCH_CODES)
        hit = code_matches(rule, said->value);
    else if (flags & MATCH_REGEX)
        hit = regex_says(policy, place, said);
    else
        return rule->negate ? !of_word && said->final : of_word;
    if (rule->negate)
        return !hit && said->final && of_word;
    return hit && of_word;
}

/* ---- what the session may ask ---- */

uint64_t rules_next_bound(const struct nq_policy *policy, uint8_t match, uint64_t fired, uint64_t value)
{
    uint64_t lowest = UINT64_MAX;
    for (uint64_t rules = policy->rules_of[match] & ~fired; rules; rules &= rules - 1) {
        const struct nq_rule *rule = &policy->rules[__builtin_ctzll(rules)];
        if (!rule->negate && rule->bound >= value && rule->bound < lowest)
            lowest = rule->bound;
    }
    return lowest;
}

bool rules_exceeded(const struct nq_policy *policy, uint8_t match, uint64_t fired, uint64_t value)
{
    for (uint64_t rules = policy->rules_of[match] & ~fired; rules; rules &= rules - 1)
        if (value > policy->rules[__builtin_ctzll(rules)].bound)
            return true;
    return false;
}

/* ---- the rules' say ---- */

static enum nq_action action_of(const struct nq_rule *rule)
{
    switch (rule->action) {
    case NQ_DO_ALLOW: return ACTION_PASS;
    case NQ_DO_MASK: return ACTION_MASK_LINE;
    case NQ_DO_REPLACE: return ACTION_REPLACE_OCTET;
    case NQ_DO_REMOVE: return ACTION_REMOVE_LINE;
    case NQ_DO_LOG: return ACTION_TELL;
    default: return ACTION_END;
    }
}

/* A rule that changes nothing decides nothing either: what the policy is made of has its say as if the rule were not there.
 * Where the whole policy changes nothing, an edit is told as such, and what would have ended the flow leaves no rule to ask. */
static struct nq_judgement told_only(const struct nq_policy *policy, const struct nq_said *said, struct nq_judgement judged,
                                     uint64_t *fired)
{
    bool edits = judged.action == ACTION_PASS || judged.action == ACTION_MASK_LINE || judged.action == ACTION_REMOVE_LINE;
    judged.more |= judged.action == ACTION_REPLACE_OCTET;
    if ((policy->dry_run && edits) || judged.action == ACTION_REPLACE_OCTET)
        return judged;
    if (policy->dry_run && !judged.more)
        *fired |= policy->rules_of[said->match];
    judged.action = ACTION_TELL;
    judged.more = said->what != SAID_INJECTION; /* else the flow would be reset though the rule only tries that */
    return judged;
}

/* The first rule that matches and has not had its say; rule NULL: there is none. */
static struct nq_judgement ask_rules(const struct nq_policy *policy, const struct nq_said *said, uint64_t *fired)
{
    for (uint64_t rules = policy->rules_of[said->match] & ~*fired; rules; rules &= rules - 1) {
        unsigned place = (unsigned)__builtin_ctzll(rules);
        const struct nq_rule *rule = &policy->rules[place];
        if (!matches(policy, place, said))
            continue;
        *fired |= bit(place);
        struct nq_judgement judged = judgement(action_of(rule), REASON_RULE);
        judged.rule = rule;
        judged.dry_run = rule->dry_run && judged.action != ACTION_TELL;
        judged.more = rule->action == NQ_DO_LOG || rule->action == NQ_DO_RATE_LIMIT;
        return judged.dry_run ? told_only(policy, said, judged, fired) : judged;
    }
    return (struct nq_judgement){ .action = ACTION_PASS };
}

static bool is_fact(const struct nq_said *said)
{
    return said->what == SAID_FACT || said->what == SAID_VERB || said->what == SAID_BAD_VERB || said->what == SAID_KEYWORD ||
           said->what == SAID_BAD_KEYWORD || said->what == SAID_TRANSITION || said->what == SAID_INJECTION;
}

/* ---- what the policy is made of ---- */

static struct nq_judgement masked(const struct nq_policy *policy, enum nq_action action, uint8_t reason)
{
    struct nq_judgement judged = judgement(action, reason);
    judged.dry_run = policy->dry_run;
    return judged;
}

static struct nq_judgement by_words(const struct nq_policy *policy, const struct nq_said *said)
{
    bool known = said->what == SAID_VERB;
    if (!policy->mask_verbs || (known && (said->word == VERB_PRIVATE || words_have(&policy->allowed_verbs, said->word))))
        return judgement(known ? ACTION_PASS : ACTION_ALLOW_WORD, 0);
    return masked(policy, ACTION_MASK_LINE, said->why);
}

static struct nq_judgement by_parameters(const struct nq_policy *policy, const struct nq_session *session,
                                         const struct nq_said *said)
{
    bool too_much = policy->max_data && session->data > policy->max_data;
    bool inserts = policy->header_len && session->client && !session->client->data.counted;
    const struct nq_line *line = session->client ? &session->client->command : NULL;
    switch (said->what) {
    case SAID_VERB:
    case SAID_BAD_VERB: return by_words(policy, said);
    case SAID_BAD_LINE: return masked(policy, ACTION_MASK_LINE, said->why);
    case SAID_BAD_AUTH: return masked(policy, ACTION_RESET, said->why);
    case SAID_TOO_LONG: return judgement(ACTION_RESET, said->why); /* a bound of ours: a dry run, too, has it */
    case SAID_SPAN: return judgement(ACTION_OVERWRITE, 0);
    case SAID_COMMAND_END: return judgement(line->why ? ACTION_REPORT : ACTION_PASS, line->why);
    case SAID_MESSAGE: return masked(policy, inserts ? ACTION_INSERT_HEADER : ACTION_PASS, said->why);
    case SAID_BODY:
    case SAID_END_OF_DATA:
        return too_much ? masked(policy, ACTION_RESET, REASON_MAX_DATA) : judgement(ACTION_PASS, 0);
    default: return judgement(ACTION_PASS, 0);
    }
}

/* A rule that lets a thing pass says so of what the policy is made of, too. */
static struct nq_judgement let_pass(const struct nq_said *said, struct nq_judgement judged)
{
    if (judged.action == ACTION_PASS && (said->what == SAID_VERB || said->what == SAID_BAD_VERB || said->what == SAID_KEYWORD ||
                                         said->what == SAID_BAD_KEYWORD))
        judged.action = ACTION_ALLOW_WORD;
    return judged;
}

struct nq_judgement inspect_client(const struct nq_policy *policy, const struct nq_session *session,
                                   const struct nq_said *said, uint64_t *fired)
{
    struct nq_judgement judged = { .action = ACTION_PASS };
    if (is_fact(said))
        judged = ask_rules(policy, said, fired);
    return judged.rule ? let_pass(said, judged) : by_parameters(policy, session, said);
}

static struct nq_judgement by_phase(const struct nq_policy *policy, uint8_t phase)
{
    static const uint8_t span[] = { ACTION_PASS, ACTION_OVERWRITE_BANNER, ACTION_REPLACE_BANNER, ACTION_OVERWRITE_BANNER };
    return judgement(phase == PHASE_BANNER   ? span[policy->banner]
                     : phase == PHASE_REMOVE ? ACTION_REMOVE
                                             : ACTION_OVERWRITE, 0);
}

static struct nq_judgement by_keyword(const struct nq_policy *policy, const struct nq_said *said)
{
    bool allowed = said->what == SAID_KEYWORD && words_have(&policy->allowed_keywords, said->word);
    if (allowed || !policy->mask_keywords)
        return judgement(ACTION_ALLOW_WORD, 0);
    return masked(policy, policy->remove_keywords ? ACTION_REMOVE_LINE : ACTION_MASK_LINE, said->why);
}

struct nq_judgement inspect_server(const struct nq_policy *policy, const struct nq_session *session,
                                   const struct nq_said *said, uint64_t *fired)
{
    uint8_t phase = session->reply.phase, why = session->reply.why;
    struct nq_judgement judged = { .action = ACTION_PASS };
    if (is_fact(said))
        judged = ask_rules(policy, said, fired);
    if (judged.rule)
        return let_pass(said, judged);
    switch (said->what) {
    case SAID_BANNER: return masked(policy, policy->banner ? ACTION_MASK_BANNER : ACTION_PASS, said->why);
    case SAID_KEYWORD:
    case SAID_BAD_KEYWORD: return by_keyword(policy, said);
    case SAID_SPAN: return by_phase(policy, phase);
    case SAID_REPLY_LINE:
        return judgement(phase == PHASE_REMOVE ? ACTION_REMOVE_AND_REPORT : why ? ACTION_REPORT : ACTION_PASS, why);
    case SAID_TRANSITION: return judgement(policy->rules_of[MATCH_OF_UNEXPECTED_REPLY] ? ACTION_PASS : ACTION_REPORT, said->why);
    case SAID_INJECTION: return masked(policy, ACTION_RESET, said->why);
    case SAID_EARLY_REPLY: return judgement(ACTION_RESET, said->why);
    case SAID_ANSWER: return judgement(ACTION_TELL, 0);
    default: return judgement(ACTION_PASS, 0);
    }
}
