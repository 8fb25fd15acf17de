/*
 * property.c - one schedule after the other, each from its own seed.
 *
 *   property --seed N [--count M] [--trace]
 *
 * Schedule k of a run has the seed N + k; to see one again: --seed (N + k) --trace. Ends with a line for everything that was
 * counted, so that who runs it can see what was reached.
 */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>

static struct {
    uint64_t schedules, complete, reset, unfinished, adversaries, small, packets;
    uint64_t engine[COUNTERS];
} tally;

static void begin(struct sim *sim, uint64_t seed, bool tracing)
{
    uint64_t state = seed + 0x9e3779b97f4a7c15ull; /* splitmix64: neighbouring seeds have nothing in common */
    state = (state ^ state >> 30) * 0xbf58476d1ce4e5b9ull;
    state = (state ^ state >> 27) * 0x94d049bb133111ebull;
    sim->seed = seed;
    sim->dice.state = (state ^ state >> 31) | 1;
    sim->now = 0;
    sim->events = 0;
    sim->tracing = tracing;
    harness_row("seed %llu: run again with --seed %llu --trace", (unsigned long long)seed, (unsigned long long)seed);
    plan_make(sim);
    air_begin(&sim->air);
    gate_begin(sim);
    end_begin(sim, CLIENT);
    end_begin(sim, SERVER);
    sim->client = (struct client){ 0 };
    sim->server = (struct server){ 0 };
    end_connect(sim, &sim->end[CLIENT]);
}

static void arrive(struct sim *sim)
{
    struct flight *flight = air_arrives(&sim->air);
    switch (flight->hop) {
    case CLIENT_TO_GATE:
    case SERVER_TO_GATE:
        gate_takes(sim, flight);
        if (sim->plan.adversary && chance(sim, 250))
            adversary_acts(sim);
        break;
    default:
        end_arrives(sim, &sim->end[flight->hop == GATE_TO_CLIENT ? CLIENT : SERVER], flight);
        air_drop(&sim->air, flight);
    }
}

/* Whatever comes next. */
static void happen(struct sim *sim)
{
    uint64_t air = air_next(&sim->air), client = end_next(&sim->end[CLIENT]), server = end_next(&sim->end[SERVER]);
    uint64_t next = sim->gate.tick_at;
    next = air < next ? air : next;
    next = client < next ? client : next;
    next = server < next ? server : next;
    sim->now = next > sim->now ? next : sim->now;
    sim->events++;
    if (air == next)
        arrive(sim);
    else if (client == next)
        end_timers(sim, &sim->end[CLIENT]);
    else if (server == next)
        end_timers(sim, &sim->end[SERVER]);
    else
        gate_tick(sim);
}

static bool over(const struct sim *sim)
{
    const struct end *client = &sim->end[CLIENT], *server = &sim->end[SERVER];
    bool limited = sim->plan.adversary || sim->plan.small;
    uint64_t last = limited ? 90 * SECOND : 900 * SECOND;
    return (end_done(client) && end_done(server)) || sim->now > last || sim->events > (limited ? 4000u : 40000u);
}

static bool bound_reached(const struct sim *sim)
{
    return gate_count(sim, REASON_MEMORY) || gate_count(sim, REASON_STORE_LIMIT) || gate_count(sim, REASON_HELD_LIMIT) ||
           gate_count(sim, REASON_FLOWS_FULL) || nq_engine_counter(sim->gate.engine, COUNT_EDITS_SKIPPED);
}

static void judge(struct sim *sim)
{
    const struct end *client = &sim->end[CLIENT], *server = &sim->end[SERVER];
    bool finished = end_done(client) && end_done(server);
    bool reset = client->state == END_RESET || server->state == END_RESET ||
                 nq_engine_counter(sim->gate.engine, COUNT_RESETS) || sim->gate.resets;
    bool complete = finished && !reset && !sim->plan.adversary;
    trace(sim, "%s%s after %u events", finished ? "finished" : "unfinished", reset ? ", reset" : "", sim->events);
    oracle_judges(sim, complete);
    bool must_finish = !sim->plan.adversary && !reset && !(sim->plan.small && bound_reached(sim));
    if (must_finish && !finished)
        FAIL("nothing forbids it, and the connection did not end: C has read %u of %u, S %u of %u", client->got, server->said,
             server->got, client->said);
    tally.schedules++;
    tally.complete += complete;
    tally.reset += reset;
    tally.unfinished += !finished;
    tally.adversaries += sim->plan.adversary;
    tally.small += sim->plan.small;
    tally.packets += sim->gate.id;
    for (uint32_t i = 0; i < COUNTERS; i++)
        tally.engine[i] += nq_engine_counter(sim->gate.engine, i);
}

static void run(struct sim *sim, uint64_t seed, bool tracing)
{
    begin(sim, seed, tracing);
    while (!over(sim))
        happen(sim);
    judge(sim);
    gate_end(sim);
}

static void print_tally(void)
{
    printf("schedules %llu\ncomplete %llu\nended-by-reset %llu\nunfinished %llu\nadversaries %llu\nsmall %llu\n",
           (unsigned long long)tally.schedules, (unsigned long long)tally.complete, (unsigned long long)tally.reset,
           (unsigned long long)tally.unfinished, (unsigned long long)tally.adversaries, (unsigned long long)tally.small);
    for (uint32_t i = 0; i < COUNTERS; i++)
        printf("%s %llu\n", nq_counter_name(i), (unsigned long long)tally.engine[i]);
}

int main(int argc, char **argv)
{
    static struct sim sim;
    uint64_t seed = 1, count = 1;
    bool tracing = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--trace") == 0)
            tracing = true;
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            seed = strtoull(argv[++i], NULL, 0);
        else if (strcmp(argv[i], "--count") == 0 && i + 1 < argc)
            count = strtoull(argv[++i], NULL, 0);
        else {
            fprintf(stderr, "usage: %s --seed N [--count M] [--trace]\n", argv[0]);
            return 2;
        }
    }
    if (tracing)
        setvbuf(stdout, NULL, _IOLBF, 0); /* a failure aborts */
    printf("seeds %llu to %llu\n", (unsigned long long)seed, (unsigned long long)(seed + count - 1));
    for (uint64_t k = 0; k < count; k++) {
        run(&sim, seed + k, tracing);
        if ((k + 1) % 25000 == 0)
            fprintf(stderr, "%llu of %llu schedules\n", (unsigned long long)(k + 1), (unsigned long long)count);
    }
    print_tally();
    plan_end();
    return 0;
}
