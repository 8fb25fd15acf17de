/*
 * plan.c - what is rolled once a schedule: policy, bounds, links, manners of both ends.
 */
#include "sim.h"

static const char *const esmtp[] = { "AUTH", "DATA", "EHLO", "ETRN", "HELO", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET",
                                     "SAML", "SEND", "SOML", "VRFY", NULL };
static const char *const with_tls[] = { "AUTH", "DATA", "EHLO", "HELO", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET",
                                        "STARTTLS", "VRFY", NULL };
static const char *const offered[] = { "8BITMIME", "AUTH", "BINARYMIME", "CHECKPOINT", "DSN", "ENHANCEDSTATUSCODES", "ETRN",
                                       "HELP", "PIPELINING", "SIZE", "VRFY", NULL };
static const char *const nothing[] = { NULL };

static const struct rules all_rules[] = {
    { "ios-esmtp", esmtp, nothing, false, false, NQ_BANNER_PASS, NULL, NULL, false },
    { "asa", esmtp, offered, true, false, NQ_BANNER_ASA, NULL, NULL, false },
    { "tls", with_tls, offered, true, false, NQ_BANNER_PASS, NULL, NULL, false },
    { "longer", esmtp, offered, true, true, NQ_BANNER_TEXT, "mail gateway, nothing to see here, ESMTP",
      "X-Gateway: inspected, and found to be in order", false },
    { "shorter", with_tls, offered, true, true, NQ_BANNER_TEXT, "x", NULL, false },
    { "header", esmtp, nothing, false, false, NQ_BANNER_ASA, NULL, "X-G: 1", false },
    { "newlines", with_tls, offered, true, false, NQ_BANNER_PASS, NULL, NULL, true },
};
enum { RULES = sizeof all_rules / sizeof *all_rules };

static struct nq_policy *policies[RULES];

uint32_t roll(struct sim *sim, uint32_t bound) { return dice_below(&sim->dice, bound); }

uint32_t between(struct sim *sim, uint32_t low, uint32_t high) { return low + roll(sim, high - low + 1); }

bool chance(struct sim *sim, uint32_t of_1000) { return of_1000 && roll(sim, 1000) < of_1000; }

static uint32_t count(const char *const *words)
{
    uint32_t n = 0;
    while (words[n])
        n++;
    return n;
}

static const struct nq_rule_spec defusing[] = {
    { .name = "smuggling", .match = MATCH_OF_SMUGGLING, .action = NQ_DO_REPLACE, .log = 1 },
    { .name = "bare-newline", .match = MATCH_OF_BARE_NEWLINE, .action = NQ_DO_REPLACE },
};

static struct nq_policy *compiled(uint32_t index)
{
    const struct rules *rules = &all_rules[index];
    char error[NQ_ERROR_MAX];
    struct nq_policy_spec spec = {
        .name = rules->name, .verbs = (const char **)rules->verbs, .verb_count = count(rules->verbs),
        .keywords = (const char **)rules->keywords, .keyword_count = count(rules->keywords), .mask_verbs = 1,
        .mask_keywords = rules->mask_keywords, .remove_keywords = rules->remove_keywords, .banner = rules->banner,
        .banner_text = rules->banner_text, .insert_header = rules->header,
        .rules = defusing, .rule_count = rules->defuses ? 2 : 0,
    };
    if (!policies[index])
        policies[index] = nq_policy_new(&spec, error);
    CHECK(policies[index] != NULL);
    return policies[index];
}

void plan_end(void)
{
    for (uint32_t i = 0; i < RULES; i++) {
        nq_policy_free(policies[i]);
        policies[i] = NULL;
    }
}

static struct nq_settings settings(struct sim *sim, bool small)
{
    struct nq_settings settings;
    nq_settings_default(&settings);
    settings.flows = small ? 1 + roll(sim, 2) : 4;
    settings.large_blocks = small ? between(sim, 4, 8) : 512;
    settings.small_blocks = small ? between(sim, 4, 12) : 512;
    settings.extents = small ? between(sim, 4, 12) : 1024;
    settings.held = small ? roll(sim, 8) : 256;
    settings.held_per_flow = small ? 1 + roll(sim, 6) : 128;
    settings.edit_logs = small ? roll(sim, 3) : 4;
    settings.events = small ? 2 : 64;
    settings.finwait = 60; /* else a FIN that is lost twice ends a schedule unfinished */
    memcpy(settings.hash_key, "0123456789abcdef", 16);
    return settings;
}

static struct link link_of(struct sim *sim)
{
    static const uint32_t losses[] = { 0, 0, 0, 10, 30, 60, 150 }, jitters[] = { 0, 0, 300, 3000, 30000 };
    return (struct link){ .loss = losses[roll(sim, sizeof losses / sizeof *losses)],
                          .twice = chance(sim, 300) ? between(sim, 1, 150) : 0, .delay = between(sim, 10, 20000),
                          .jitter = jitters[roll(sim, sizeof jitters / sizeof *jitters)] };
}

void plan_make(struct sim *sim)
{
    struct plan *plan = &sim->plan;
    uint32_t rules = roll(sim, RULES);
    *plan = (struct plan){ .rules = &all_rules[rules], .policy = compiled(rules) };
    plan->small = chance(sim, 150);
    plan->adversary = chance(sim, 250);
    plan->talks_ahead = chance(sim, 120);
    plan->behind_body = chance(sim, 120);
    plan->blocks = chance(sim, 500);
    plan->groups = between(sim, 1, 5);
    plan->cut = roll(sim, 4);
    plan->gso = chance(sim, 250) ? between(sim, 50, 500) : 0;
    plan->settings = settings(sim, plan->small);
    for (int hop = 0; hop < HOPS; hop++)
        plan->link[hop] = link_of(sim);
    trace(sim, "policy %s%s%s%s%s%s, cut %u, gso %u", plan->rules->name, plan->small ? ", small" : "",
          plan->adversary ? ", adversary" : "", plan->talks_ahead ? ", talks ahead" : "",
          plan->behind_body ? ", behind body" : "", plan->blocks ? ", blocks" : "", plan->cut, plan->gso);
    for (int hop = 0; hop < HOPS; hop++)
        trace(sim, "link %d: loss %u, twice %u of 1000; delay %u + %u us", hop, plan->link[hop].loss, plan->link[hop].twice,
              plan->link[hop].delay, plan->link[hop].jitter);
}
