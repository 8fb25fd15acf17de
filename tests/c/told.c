/*
 * told.c - see told.h.
 */
#include "told.h"

#include <stdio.h>
#include <stdlib.h>

#include "feed.h"
#include "harness.h"

static const char *const verbs[] = { "AUTH", "BDAT", "DATA", "EHLO", "HELO", "MAIL", "NOOP", "QUIT", "RCPT", "RSET" };

static struct nq_policy *policy_of(const struct told_case *all)
{
    char error[NQ_ERROR_MAX];
    struct nq_policy_spec spec = { .name = "told", .verbs = (const char **)verbs, .verb_count = sizeof verbs / sizeof *verbs,
                                   .mask_verbs = 1, .alert = 1, .rules = all->rules, .rule_count = all->rule_count };
    struct nq_policy *policy = nq_policy_new(&spec, error);
    if (!policy)
        harness_fail(__FILE__, __LINE__, "no policy: %s", error);
    return policy;
}

static void take_events(struct wire *wire, struct trace *trace)
{
    struct nq_event event;
    while (nq_engine_events(wire->engine, &event, 1)) {
        char name[64];
        if (event.type != NQ_EVENT_MATCH)
            continue;
        snprintf(name, sizeof name, "%s:%llu@%llu", event.rule_name, (unsigned long long)event.value,
                 (unsigned long long)event.offset);
        note(trace, name, -1);
    }
}

/* cut 0: octet by octet. */
static void say(struct wire *wire, const struct told_turn *turn, uint32_t cut, struct trace *trace)
{
    uint32_t len = turn->len ? turn->len : (uint32_t)strlen(turn->text);
    for (uint32_t at = 0; at < len;) {
        uint32_t piece = turn->from == SERVER ? len : cut == 0 ? 1 : at == 0 && cut < len ? cut : len - at;
        wire_say_octets(wire, turn->from, turn->text + at, piece);
        take_events(wire, trace);
        at += piece;
    }
}

static void run(const struct told_case *all, uint32_t cut)
{
    static const struct told_turn opening[] = {
        { SERVER, "220 x\r\n", 0 }, { CLIENT, "EHLO me\r\n", 0 },
        { SERVER, "250-x\r\n250-PIPELINING\r\n250-SIZE\r\n250-8BITMIME\r\n250-CHUNKING\r\n250 AUTH PLAIN\r\n", 0 },
    };
    struct nq_settings settings = wire_settings();
    struct trace trace = { .len = 0 };
    struct wire wire;
    char *said = calloc(1, WIRE_STREAM_MAX);
    uint32_t len = TOLD_OPENING;
    wire_open(&wire, &settings, policy_of(all));
    wire_handshake(&wire);
    for (uint32_t i = 0; i < 3; i++)
        say(&wire, &opening[i], 1000, &trace);
    memcpy(said, opening[1].text, len);
    for (uint32_t i = 0; i < all->turn_count; i++) {
        const struct told_turn *turn = &all->turns[i];
        uint32_t octets = turn->len ? turn->len : (uint32_t)strlen(turn->text);
        say(&wire, turn, cut, &trace);
        if (turn->from == CLIENT)
            memcpy(said + len, turn->text, octets), len += octets;
    }
    harness_row("cut at %u: %.200s", cut, all->turns[0].text);
    CHECK_TEXT(trace.text, all->told);
    if (all->arrives)
        CHECK_OCTETS(wire_arrived(&wire, SERVER) + TOLD_OPENING, wire_arrived_len(&wire, SERVER) - TOLD_OPENING, all->arrives,
                     strlen(all->arrives));
    else
        CHECK_OCTETS(wire_arrived(&wire, SERVER), wire_arrived_len(&wire, SERVER), said, len);
    wire_close(&wire);
    free(said);
}

void told_all_ways(const struct told_case *all)
{
    uint32_t longest = 0;
    for (uint32_t i = 0; i < all->turn_count; i++) {
        uint32_t len = all->turns[i].len ? all->turns[i].len : (uint32_t)strlen(all->turns[i].text);
        longest = all->turns[i].from == CLIENT && len > longest ? len : longest;
    }
    for (uint32_t cut = longest; cut < UINT32_MAX; cut--) /* whole first: its failures are the plainest to read */
        run(all, cut);
}
