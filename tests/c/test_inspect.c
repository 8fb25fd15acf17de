/*
 * test_inspect.c - which rule decides, and what it decides: inspect.c alone, with what was said made by hand.
 */
#include <stdio.h>

#include "every_match.h"
#include "harness.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static struct nq_policy *policy_of(const struct nq_rule_spec *rules, uint32_t count, bool dry_run)
{
    char error[NQ_ERROR_MAX];
    struct nq_policy_spec spec = { .name = "rules", .rules = rules, .rule_count = count, .dry_run = dry_run };
    struct nq_policy *policy = nq_policy_new(&spec, error);
    if (!policy)
        harness_fail(__FILE__, __LINE__, "no policy: %s", error);
    return policy;
}

/* As the engine asks: until nobody has more to say. "log:tell mask:mask" or the like. */
static const char *asked(const struct nq_policy *policy, const struct nq_said *said, uint64_t *fired)
{
    static const char *const names[] = { [ACTION_PASS] = "pass", [ACTION_ALLOW_WORD] = "allow", [ACTION_MASK_LINE] = "mask",
                                         [ACTION_REPLACE_OCTET] = "replace", [ACTION_REMOVE_LINE] = "remove",
                                         [ACTION_TELL] = "tell", [ACTION_END] = "end" };
    static char text[256];
    const struct nq_session session = { .client = NULL };
    bool server = match_flags(said->match) & MATCH_SERVER;
    struct nq_judgement judged;
    size_t len = 0;
    text[0] = 0;
    do {
        judged = server ? inspect_server(policy, &session, said, fired) : inspect_client(policy, &session, said, fired);
        CHECK(judged.action < COUNT(names) && names[judged.action]);
        if (judged.rule)
            len += (size_t)snprintf(text + len, sizeof text - len, "%s%s:%s%s", len ? " " : "", judged.rule->name,
                                    judged.dry_run ? "dry-" : "", names[judged.action]);
    } while (judged.more);
    return text;
}

static const char *ask(const struct nq_policy *policy, struct nq_said said)
{
    uint64_t fired = 0;
    said.what = SAID_FACT;
    return asked(policy, &said, &fired);
}

static void check(const struct nq_rule_spec *rules, uint32_t count, struct nq_said said, const char *wanted)
{
    struct nq_policy *policy = policy_of(rules, count, false);
    CHECK_TEXT(ask(policy, said), wanted);
    nq_policy_free(policy);
}

#define CHECK_RULES(rules, wanted, ...) check(rules, COUNT(rules), (struct nq_said){ .final = true, __VA_ARGS__ }, wanted)
#define RULE(called, does, ...) { .name = called, .action = NQ_DO_##does, .match = MATCH_OF_TLS_REQUIRED, __VA_ARGS__ }

TEST(all_that_log_up_to_the_first_other_one)
{
    static const struct nq_rule_spec rules[] = { RULE("a", LOG), RULE("b", LOG), RULE("c", MASK), RULE("d", RESET), RULE("e", LOG) };
    CHECK_RULES(rules, "a:tell b:tell c:mask", .match = MATCH_OF_TLS_REQUIRED);
    CHECK_RULES(rules, "", .match = MATCH_OF_EARLY_TALKER);
}

TEST(allow_stops)
{
    static const struct nq_rule_spec rules[] = { RULE("a", LOG), RULE("b", ALLOW), RULE("c", MASK), RULE("d", LOG) };
    CHECK_RULES(rules, "a:tell b:pass", .match = MATCH_OF_TLS_REQUIRED);
}

TEST(a_rate_limit_asks_the_next_one_too)
{
    static const struct nq_rule_spec rules[] = { RULE("a", RATE_LIMIT, .rate = 5), RULE("b", MASK), RULE("c", RESET) };
    CHECK_RULES(rules, "a:end b:mask", .match = MATCH_OF_TLS_REQUIRED);
}

TEST(each_way_to_end_a_flow)
{
    static const struct nq_rule_spec rules[][1] = { { RULE("a", DROP) }, { RULE("a", RESET) }, { RULE("a", REJECT) } };
    for (size_t i = 0; i < COUNT(rules); i++)
        CHECK_RULES(rules[i], "a:end", .match = MATCH_OF_TLS_REQUIRED);
}

TEST(words_and_all_but_these)
{
    static const char *words[] = { "NOOP", "XONE" };
    static const struct nq_rule_spec rules[] = {
        { .name = "these", .match = MATCH_OF_CMD_VERB, .words = words, .word_count = 2 },
        { .name = "others", .match = MATCH_OF_CMD_VERB, .words = words, .word_count = 2, .except_words = 1 },
        { .name = "not-these", .match = MATCH_OF_CMD_VERB, .words = words, .word_count = 2, .negate = 1 },
        { .name = "any", .match = MATCH_OF_CMD_VERB },
    };
    CHECK_RULES(rules, "these:tell any:tell", .match = MATCH_OF_CMD_VERB, .word = VERB_NOOP);
    CHECK_RULES(rules, "these:tell any:tell", .match = MATCH_OF_CMD_VERB, .word = VERBS);
    CHECK_RULES(rules, "others:tell not-these:tell any:tell", .match = MATCH_OF_CMD_VERB, .word = VERB_RSET);
    CHECK_RULES(rules, "others:tell not-these:tell any:tell", .match = MATCH_OF_CMD_VERB, .word = VERB_PRIVATE);
}

TEST(thresholds)
{
    static const struct nq_rule_spec above[] = { { .name = "above", .match = MATCH_OF_DECLARED_SIZE, .bound = 10 },
                                                 { .name = "not-above", .match = MATCH_OF_DECLARED_SIZE, .bound = 10, .negate = 1 } };
    static const struct nq_rule_spec below[] = { { .name = "below", .match = MATCH_OF_SHORT_VERB, .bound = 4 },
                                                 { .name = "not-below", .match = MATCH_OF_SHORT_VERB, .bound = 4, .negate = 1 } };
    CHECK_RULES(above, "not-above:tell", .match = MATCH_OF_DECLARED_SIZE, .value = 10);
    CHECK_RULES(above, "above:tell", .match = MATCH_OF_DECLARED_SIZE, .value = 11);
    CHECK_RULES(above, "above:tell", .match = MATCH_OF_DECLARED_SIZE, .value = UINT64_MAX);
    CHECK_RULES(below, "below:tell", .match = MATCH_OF_SHORT_VERB, .value = 3);
    CHECK_RULES(below, "not-below:tell", .match = MATCH_OF_SHORT_VERB, .value = 4);
}

/* What is not complete may still come to match: not-rules wait. */
TEST(not_waits_for_the_whole_thing)
{
    static const struct nq_rule_spec rules[] = { { .name = "n", .match = MATCH_OF_DECLARED_SIZE, .bound = 10, .negate = 1 } };
    check(rules, 1, (struct nq_said){ .match = MATCH_OF_DECLARED_SIZE, .value = 3 }, "");
    CHECK_RULES(rules, "n:tell", .match = MATCH_OF_DECLARED_SIZE, .value = 3);
}

static void check_asked(const struct nq_policy *policy, const struct nq_said *said, uint64_t *fired, const char *wanted)
{
    const char *found = asked(policy, said, fired);
    CHECK_TEXT(found, wanted);
}

TEST(a_rule_speaks_once_of_a_thing)
{
    static const struct nq_rule_spec rules[] = { { .name = "five", .match = MATCH_OF_BODY_LENGTH, .bound = 5 },
                                                 { .name = "nine", .match = MATCH_OF_BODY_LENGTH, .bound = 9 } };
    struct nq_policy *policy = policy_of(rules, 2, false);
    struct nq_said said = { .what = SAID_FACT, .match = MATCH_OF_BODY_LENGTH, .value = 6 };
    uint64_t fired = 0;
    CHECK_EQUAL(rules_next_bound(policy, MATCH_OF_BODY_LENGTH, fired, 0), 5);
    CHECK(!rules_exceeded(policy, MATCH_OF_BODY_LENGTH, fired, 5) && rules_exceeded(policy, MATCH_OF_BODY_LENGTH, fired, 6));
    check_asked(policy, &said, &fired, "five:tell");
    check_asked(policy, &said, &fired, "");
    CHECK_EQUAL(rules_next_bound(policy, MATCH_OF_BODY_LENGTH, fired, 6), 9);
    CHECK(!rules_exceeded(policy, MATCH_OF_BODY_LENGTH, fired, 9));
    said.value = 10;
    check_asked(policy, &said, &fired, "nine:tell");
    CHECK_EQUAL(rules_next_bound(policy, MATCH_OF_BODY_LENGTH, fired, 10), UINT64_MAX);
    nq_policy_free(policy);
}

/* Refused recipients are counted one by one: the bound is passed once in a session, not with each that follows. */
TEST(counts_of_the_server_pass_a_bound_once)
{
    static const struct nq_rule_spec rules[] = { { .name = "two", .match = MATCH_OF_INVALID_RECIPIENTS, .bound = 2 } };
    CHECK_RULES(rules, "", .match = MATCH_OF_INVALID_RECIPIENTS, .value = 2);
    CHECK_RULES(rules, "two:tell", .match = MATCH_OF_INVALID_RECIPIENTS, .value = 3);
    CHECK_RULES(rules, "", .match = MATCH_OF_INVALID_RECIPIENTS, .value = 4);
}

TEST(codes)
{
    static const uint16_t some[] = { 421, 421, 550, 559 };
    static const struct nq_rule_spec rules[] = {
        { .name = "some", .match = MATCH_OF_REPLY_CODE, .codes = some, .code_pairs = 2 },
        { .name = "others", .match = MATCH_OF_REPLY_CODE, .codes = some, .code_pairs = 2, .negate = 1 },
        { .name = "any", .match = MATCH_OF_REPLY_CODE },
    };
    for (uint64_t code = 0; code < 1000; code++) {
        bool in = code == 421 || (code >= 550 && code <= 559);
        harness_row("code %u", (unsigned)code);
        CHECK_RULES(rules, in ? "some:tell any:tell" : "others:tell any:tell", .match = MATCH_OF_REPLY_CODE, .value = code);
    }
}

TEST(expressions_belong_to_their_rules)
{
    const struct nq_rule_spec rules[] = {
        { .name = "x", .match = MATCH_OF_SENDER_REGEX, .regex = literal(0, "x") },
        { .name = "y", .match = MATCH_OF_SENDER_REGEX, .regex = literal(1, "y") },
        { .name = "no-y", .match = MATCH_OF_SENDER_REGEX, .regex = literal(2, "y"), .negate = 1 },
        { .name = "recipient", .match = MATCH_OF_RECIPIENT_REGEX, .regex = literal(3, "y") },
    };
    const uint16_t none[NQ_REGEXES] = { 0, 0, 0 }, y[NQ_REGEXES] = { 0, 1, 1 };
    CHECK_RULES(rules, "no-y:tell", .match = MATCH_OF_SENDER_REGEX, .text = none);
    CHECK_RULES(rules, "y:tell", .match = MATCH_OF_SENDER_REGEX, .text = y);
    CHECK_RULES(rules, "", .match = MATCH_OF_RECIPIENT_REGEX, .text = none);
}

/* And decides nothing: the next one is asked as if it were not there. */
TEST(a_dry_rule_tells_what_it_would_do)
{
    static const struct nq_rule_spec rules[] = { RULE("a", RESET, .dry_run = 1), RULE("b", MASK) };
    static const struct nq_rule_spec mask[] = { RULE("a", MASK, .dry_run = 1), RULE("b", RESET) };
    static const struct nq_rule_spec allow[] = { RULE("a", ALLOW, .dry_run = 1), RULE("b", RESET) };
    CHECK_RULES(rules, "a:dry-tell b:mask", .match = MATCH_OF_TLS_REQUIRED);
    CHECK_RULES(mask, "a:dry-tell b:end", .match = MATCH_OF_TLS_REQUIRED);
    CHECK_RULES(allow, "a:dry-tell b:end", .match = MATCH_OF_TLS_REQUIRED);
}

TEST(all_rules_of_a_dry_policy_are_dry)
{
    static const struct nq_rule_spec rules[] = { RULE("a", LOG), RULE("b", REJECT) };
    struct nq_policy *policy = policy_of(rules, 2, true);
    CHECK_TEXT(ask(policy, (struct nq_said){ .match = MATCH_OF_TLS_REQUIRED, .final = true }), "a:tell b:dry-tell");
    nq_policy_free(policy);
}

/* ---- what the policy is made of comes behind its rules ---- */

TEST(a_rule_overrules_the_policy_s_words)
{
    static const char *verbs[] = { "NOOP" }, *expn[] = { "EXPN" };
    static const struct nq_rule_spec allow[] = { { .name = "a", .action = NQ_DO_ALLOW, .match = MATCH_OF_CMD_VERB, .words = expn, .word_count = 1 } };
    char error[NQ_ERROR_MAX];
    struct nq_policy_spec spec = { .name = "words", .verbs = verbs, .verb_count = 1, .mask_verbs = 1, .rules = allow, .rule_count = 1 };
    struct nq_policy *policy = nq_policy_new(&spec, error);
    CHECK(policy != NULL);
    static const struct { uint8_t what, word, action; } rows[] = {
        { SAID_VERB, VERB_NOOP, ACTION_PASS }, { SAID_VERB, VERB_EXPN, ACTION_ALLOW_WORD }, { SAID_VERB, VERB_VRFY, ACTION_MASK_LINE },
        { SAID_BAD_VERB, VERB_PRIVATE, ACTION_MASK_LINE },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        const struct nq_session session = { .client = NULL };
        const struct nq_said said = { .what = rows[i].what, .match = MATCH_OF_CMD_VERB, .word = rows[i].word, .final = true };
        uint64_t fired = 0;
        harness_row("row %zu", i);
        CHECK_EQUAL(inspect_client(policy, &session, &said, &fired).action, rows[i].action);
    }
    nq_policy_free(policy);
}
