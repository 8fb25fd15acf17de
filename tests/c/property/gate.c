/*
 * gate.c - the engine's place: packets go in, decisions come out, and what must hold of every packet is asserted here:
 *   each packet gets one decision; what leaves has right checksums and fits the receiver's MSS;
 *   I1  an octet that its receiver has not acknowledged leaves with one value, however often it leaves;
 *   at the end of the schedule the pool is whole.
 */
#include "sim.h"

#include <stdlib.h>

static uint64_t engine_time(const struct sim *sim) { return (1700000000ull * SECOND + sim->now) * MICROSECOND; }

void gate_begin(struct sim *sim)
{
    struct gate *gate = &sim->gate;
    char error[NQ_ERROR_MAX];
    *gate = (struct gate){ .tick_at = SECOND };
    gate->wire.family = chance(sim, 300) ? 6 : 4;
    gate->wire.client_port = (uint16_t)between(sim, 1024, 65535);
    gate->wire.server_port = 25;
    gate->engine = nq_engine_new(&sim->plan.settings, sim->plan.policy, error);
    if (!gate->engine)
        FAIL("no engine: %s", error);
}

uint64_t gate_count(const struct sim *sim, enum nq_reason reason)
{
    return nq_engine_counter(sim->gate.engine, COUNT_FIRST_REASON + reason);
}

/* ---- what leaves ---- */

/* I1, at the engine's output. */
static void check_octets(struct sim *sim, unsigned from, const struct seen *seen)
{
    uint32_t begin = seen->seq - sim->end[from].iss - 1;
    for (uint32_t i = 0; i < seen->len; i++) {
        uint32_t at = begin + i;
        if (at >= STREAM_MAX)
            continue;
        uint8_t *left = &sim->gate.way[from].left[at], *known = &sim->gate.way[from].known[at];
        if (*known && *left != seen->payload[i] && at >= sim->gate.way[from].acked)
            FAIL("I1: octet %u from %c left as %02x, and now as %02x", at, "CS"[from], *left, seen->payload[i]);
        if (*known)
            continue;
        *known = 1;
        *left = seen->payload[i];
        if (at >= sim->gate.way[from].high)
            sim->gate.way[from].high = at + 1;
    }
}

/* Where the length stays, an octet leaves as it was offered, or as X or a blank does. */
static void check_offered(struct sim *sim, unsigned from, const struct seen *seen)
{
    uint32_t begin = seen->seq - sim->end[from].iss - 1;
    const struct rules *rules = sim->plan.rules;
    if (rules->remove_keywords || rules->header || from == SERVER)
        return;
    for (uint32_t i = 0; i < seen->len; i++) {
        uint32_t at = begin + i;
        if (at >= STREAM_MAX || at < sim->gate.way[from].acked || seen->payload[i] == 'X' || sim->gate.way[from].offers[at] == 4)
            continue;
        bool found = false;
        for (uint32_t n = 0; n < sim->gate.way[from].offers[at]; n++)
            found |= sim->gate.way[from].offered[at][n] == seen->payload[i];
        found |= rules->defuses && seen->payload[i] == ' ';
        if (!found)
            FAIL("octet %u from %c leaves as %02x, which nobody has sent there", at, "CS"[from], seen->payload[i]);
    }
}

static unsigned sender_of(const struct sim *sim, const uint8_t *octets)
{
    const uint8_t *tcp = octets + (octets[0] >> 4 == 4 ? 20 : 40);
    (void)sim;
    return tcp[0] == 0 && tcp[1] == 25 ? SERVER : CLIENT;
}

/* The packet leaves towards the other end, in the flight that it came in. */
static void leave(struct sim *sim, struct flight *flight, const uint8_t *octets, uint32_t len)
{
    struct seen seen;
    bool was_large = flight->flags & NQ_CSUM_NOT_READY;
    unsigned from = sender_of(sim, octets);
    CHECK(len <= FLIGHT_MAX);
    if (octets != flight->octets)
        memcpy(flight->octets, octets, len);
    flight->len = len;
    trace_packet(sim, octets == flight->octets ? "passes" : "passes, edited", flight->octets, len);
    if (!naive_checksums(flight->octets, len) || !segment_seen(&seen, flight->octets, len))
        FAIL("what leaves is no segment, or its checksum is wrong");
    if (!(seen.flags & (NQ_SYN | NQ_RST))) {
        check_octets(sim, from, &seen);
        check_offered(sim, from, &seen);
        if (seen.len && !was_large && seen.len + seen.options_len > sim->end[!from].own_mss)
            FAIL("%u octets and %u of options leave towards an MSS of %u", seen.len, seen.options_len, sim->end[!from].own_mss);
    }
    air_send(sim, flight, from == CLIENT ? GATE_TO_SERVER : GATE_TO_CLIENT);
}

static void take_decision(struct sim *sim, const struct nq_output *out)
{
    struct gate *gate = &sim->gate;
    uint32_t slot = 0;
    while (slot < FLIGHTS && (!gate->pending[slot] || gate->pending_id[slot] != out->id))
        slot++;
    if (slot == FLIGHTS)
        FAIL("a decision on packet %u, which waits for none", out->id);
    struct flight *flight = gate->pending[slot];
    gate->pending[slot] = NULL;
    gate->decided++;
    if (out->verdict == NQ_ACCEPT) {
        leave(sim, flight, out->data ? out->data : flight->octets, out->data ? out->len : flight->len);
        return;
    }
    CHECK_EQUAL(out->verdict, NQ_DROP);
    trace_packet(sim, "dropped", flight->octets, flight->len);
    air_drop(&sim->air, flight);
}

/* A packet of the engine's own: a RST, or octets of an end whose packet could not carry them. */
static void take_injection(struct sim *sim, const struct nq_output *out)
{
    struct flight *flight = air_packet(&sim->air);
    struct seen seen;
    trace_packet(sim, "engine sends", out->data, out->len);
    CHECK(segment_seen(&seen, out->data, out->len));
    sim->gate.resets += (seen.flags & NQ_RST) != 0;
    if (flight)
        leave(sim, flight, out->data, out->len);
}

static void take_result(struct sim *sim, const struct nq_result *result)
{
    for (uint32_t i = 0; i < result->count; i++)
        if (result->outputs[i].kind == NQ_DECISION)
            take_decision(sim, &result->outputs[i]);
        else
            take_injection(sim, &result->outputs[i]);
}

/* ---- what goes in ---- */

static void note_offer(struct sim *sim, unsigned from, const struct seen *seen)
{
    uint32_t begin = seen->seq - sim->end[from].iss - 1;
    for (uint32_t i = 0; i < seen->len; i++) {
        uint32_t at = begin + i;
        if (at >= STREAM_MAX)
            continue;
        uint8_t *offers = &sim->gate.way[from].offers[at], *offered = sim->gate.way[from].offered[at];
        if (*offers < 4 && !memchr(offered, seen->payload[i], *offers))
            offered[(*offers)++] = seen->payload[i];
    }
}

/* What a receiver has acknowledged may leave with any value: it has it. */
static void note_ack(struct sim *sim, unsigned from, const struct seen *seen)
{
    uint32_t ack = seen->ack - sim->end[!from].iss - 1;
    if (!(seen->flags & NQ_ACK) || (seen->flags & (NQ_SYN | NQ_RST)))
        return;
    if (ack <= sim->gate.way[!from].high + 1 && ack > sim->gate.way[!from].acked)
        sim->gate.way[!from].acked = ack;
}

static void note(struct sim *sim, const struct flight *flight)
{
    struct seen seen;
    unsigned from = sender_of(sim, flight->octets);
    if (!segment_seen(&seen, flight->octets, flight->len))
        return;
    if (flight->in_ifindex != (from == CLIENT ? CLIENT_IFINDEX : SERVER_IFINDEX))
        return; /* forged: it must have no effect at all */
    note_offer(sim, from, &seen);
    note_ack(sim, from, &seen);
}

static uint32_t pend(struct gate *gate, struct flight *flight)
{
    uint32_t slot = 0;
    while (gate->pending[slot])
        slot++;
    gate->pending[slot] = flight;
    gate->pending_id[slot] = ++gate->id;
    return gate->id;
}

void gate_takes(struct sim *sim, struct flight *flight)
{
    struct gate *gate = &sim->gate;
    struct nq_packet packet = { .in_ifindex = flight->in_ifindex, .out_ifindex = flight->out_ifindex, .flags = flight->flags,
                                .len = flight->len };
    note(sim, flight);
    packet.id = pend(gate, flight);
    packet.block = sim->plan.blocks ? pool_large(engine_pool(gate->engine)) : NULL;
    free(gate->live);
    gate->live = packet.block ? NULL : malloc(packet.len);
    packet.data = packet.block ? packet.block->data : gate->live;
    memcpy(packet.data, flight->octets, packet.len);
    take_result(sim, nq_engine_packet(gate->engine, &packet, engine_time(sim)));
    if (packet.block)
        block_drop(engine_pool(gate->engine), packet.block);
}

void gate_tick(struct sim *sim)
{
    sim->gate.tick_at = sim->now + SECOND;
    take_result(sim, nq_engine_tick(sim->gate.engine, engine_time(sim)));
}

/* ---- the end ---- */

static void check_pool(struct sim *sim)
{
    const struct nq_pool *pool = engine_pool(sim->gate.engine);
    const struct nq_settings *settings = &sim->plan.settings;
    CHECK_EQUAL(pool->large_free, settings->large_blocks);
    CHECK_EQUAL(pool->small_free, settings->small_blocks);
    CHECK_EQUAL(pool->extents_free, settings->extents);
    CHECK_EQUAL(pool->held_free, settings->held);
    CHECK_EQUAL(pool->logs_free, settings->edit_logs);
}

void gate_end(struct sim *sim)
{
    struct gate *gate = &sim->gate;
    struct nq_event events[64];
    for (uint32_t round = 0; nq_engine_counter(gate->engine, COUNT_FLOWS); round++) {
        CHECK(round <= sim->plan.settings.flows);
        while (nq_engine_events(gate->engine, events, 64))
            ;
        take_result(sim, nq_engine_drain(gate->engine, engine_time(sim)));
    }
    gate_tick(sim); /* what was decided in one call is given back at the next */
    CHECK_EQUAL(gate->decided, gate->id);
    check_pool(sim);
    nq_engine_free(gate->engine);
    free(gate->live);
    gate->live = NULL;
}
