/*
 * engine.c - composition: calls the stages in a packet's order, and owns the memory. What a stage decides comes back as a
 * value; the consequences are drawn here, and in the engine's parts:
 *   engine_octets.c     what becomes of a segment's octets
 *   engine_hear.c       the session hears them, the policy judges, the action is carried out
 *   engine_exception.c  what cannot be judged
 *   engine_offload.c    what nobody judges (any more), and how the kernel gets it
 *   engine_end.c        how a flow ends
 *   engine_output.c     what leaves
 *   engine_report.c     counters and events
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "nq.h"

/* ---- a packet ---- */

/* The policy of now for a flow's ends and interfaces. */
static const struct nq_policy *policy_for(const struct nq_engine *engine, const struct nq_flow *flow)
{
    const struct nq_classes *classes = atomic_load_explicit(&engine->classes, memory_order_acquire);
    struct nq_speaker client = speaker_of(flow, 0);
    const struct nq_stream *own = &flow->stream[0];
    return classes ? classes_choose(classes, &client, own->in_ifindex, own->out_ifindex)
                   : atomic_load_explicit(&engine->policy, memory_order_acquire);
}

static void begin_session(struct nq_engine *engine, struct nq_flow *flow)
{
    flow->policy = policy_for(engine, flow);
    session_begin(&flow->session);
    flow_silence(&engine->flows, flow, flow->policy->timeout);
    engine_count(engine, COUNT_FLOWS_OPENED);
    if (!flow->policy->exempt)
        return;
    engine_count(engine, COUNT_EXEMPT);
    engine_give_up(engine, flow);
}

static struct nq_flow *admit(struct nq_engine *engine, const struct nq_view *view)
{
    struct nq_flow *flow = flow_open(&engine->flows, view, engine->now);
    if (!flow) {
        struct nq_flow *old = flow_dispensable(&engine->flows);
        if (!old)
            return NULL;
        engine_remove_flow(engine, old, REASON_EVICTED);
        flow = flow_open(&engine->flows, view, engine->now);
    }
    begin_session(engine, flow);
    __atomic_store_n(&engine->counters[COUNT_FLOWS], engine->flows.used, __ATOMIC_RELAXED);
    return flow;
}

static void reopen(struct nq_engine *engine, struct nq_flow *flow)
{
    engine_finish(engine, flow, REASON_REOPENED);
    flow_reopen(&engine->flows, flow, engine->now);
    begin_session(engine, flow);
}

/* The flow that this packet belongs to or begins; NULL and the reason where there is none. */
static struct nq_flow *flow_for(struct nq_engine *engine, const struct nq_view *view, unsigned *direction,
                                enum nq_reason *reason)
{
    struct nq_flow *flow = flow_find(&engine->flows, view, direction);
    bool begins = (view->flags & (NQ_SYN | NQ_ACK | NQ_RST | NQ_FIN)) == NQ_SYN;
    if (flow && flow_replaced(flow, *direction, view)) {
        engine_remove_flow(engine, flow, REASON_REOPENED);
        flow = NULL;
    }
    if (flow && flow_reopened(&engine->flows, flow, *direction, view))
        reopen(engine, flow);
    if (flow)
        return flow;
    *direction = 0;
    flow = begins ? admit(engine, view) : NULL;
    *reason = flow ? REASON_NONE : begins ? REASON_FLOWS_FULL : REASON_MIDSTREAM;
    return flow;
}

/* A packet that shows no segment. Only its policy's answer to truncated packets can let it pass. */
static void unreadable(struct nq_engine *engine, const struct nq_packet *packet, enum nq_reason reason)
{
    const struct nq_policy *policy = atomic_load_explicit(&engine->policy, memory_order_acquire);
    if (reason == REASON_TRUNCATED && policy->exceptions[NQ_EXC_TRUNCATED] == NQ_ANSWER_PASS) {
        engine_count(engine, COUNT_ACCEPTED);
        *engine_output(engine) = (struct nq_output){ .kind = NQ_DECISION, .id = packet->id, .verdict = NQ_ACCEPT };
        return;
    }
    engine_drop_packet(engine, packet, reason);
    engine_report_drop(engine, NULL, 0, NULL, reason);
}

/* A window wider than the store could let more pass than can be kept: it is offered as wide as the store (RFC 7323, 2.3). */
static void clamp_window(const struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    uint8_t scale = flow->stream[direction].window_scale;
    uint32_t widest = engine->settings.store_per_stream;
    bool agreed = flow->state >= FLOW_ESTABLISHED && flow->state <= FLOW_CLOSING; /* both have named their scale */
    if (!agreed || (view->flags & NQ_SYN) || (uint64_t)view->window << scale <= widest)
        return;
    view->window = widest >> scale;
    packet_write_acks(view);
    view->edited = true;
}

/* A segment of a flow that is judged. */
static void judge_segment(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    clamp_window(engine, flow, direction, view);
    enum nq_reason reason = flow_segment(&engine->flows, &engine->pool, flow, direction, view, engine->now);
    if (reason) {
        engine_cannot_judge(engine, flow, direction, view, reason);
        if (flow->state == FLOW_FREE)
            engine_remove_flow(engine, flow, reason);
        return;
    }
    if (view->flags & NQ_SYN)
        engine_accept(engine, view);
    else if (view->flags & NQ_RST)
        engine_accept_segment(engine, flow, direction, view, false);
    else
        engine_carry(engine, flow, direction, view);
    engine_release(engine, flow);
    if (session_rests(&flow->session))
        engine_forget_client(engine, flow);
    if (flow->state == FLOW_CLOSED)
        engine_finish(engine, flow, view->flags & NQ_RST ? REASON_RST : REASON_FIN);
    engine_offload(engine, flow, view->packet);
    flow_touch(&engine->flows, flow, engine->now);
}

/* An ICMP error about a segment of a flow: the number that it quotes becomes its sender's. One that speaks of nothing under way
 * is forged (RFC 5927, 4.1). It comes from where the segment went. */
static void judge_icmp(struct nq_engine *engine, struct nq_view *about)
{
    unsigned direction = 0;
    const struct nq_packet *packet = about->packet;
    struct nq_flow *flow = flow_find(&engine->flows, about, &direction);
    const struct nq_stream *own = flow ? &flow->stream[direction] : NULL;
    bool back = flow && (!engine->settings.binding || packet->in_ifindex == own->out_ifindex);
    if (!flow || !back || (!flow->given_up && !stream_under_way(own, about->seq))) {
        engine_drop_packet(engine, packet, REASON_ICMP);
        return;
    }
    if (own->log || own->shift || flow->policy->headroom)
        icmp_write(about, stream_acknowledged(own, about->seq), flow->policy->headroom);
    engine_count(engine, COUNT_ACCEPTED);
    struct nq_output *out = engine_output(engine);
    *out = (struct nq_output){ .kind = NQ_DECISION, .id = packet->id, .verdict = NQ_ACCEPT };
    if (!about->edited)
        return;
    engine_count(engine, COUNT_EDITED);
    out->data = packet->data;
    out->len = packet->len;
}

static void judge_of_flow(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    bool begins = (view->flags & (NQ_SYN | NQ_ACK)) == NQ_SYN; /* anew, once the other end has agreed; see on_syn() */
    bool over = flow->state == FLOW_DEAD || flow->state == FLOW_LEFT;
    if ((flow->given_up || over || flow->state == FLOW_REFUSED) && !flow_bound(&engine->flows, flow, direction, view->packet))
        engine_drop(engine, flow, direction, view, REASON_DIRECTION);
    else if (flow->given_up && (!begins || (flow->policy->exempt && policy_for(engine, flow)->exempt)))
        engine_pass(engine, flow, direction, view);
    else if (over)
        engine_bury(engine, flow, direction, view);
    else if (flow->state == FLOW_REFUSED)
        engine_hear_refused(engine, flow, direction, view);
    else
        judge_segment(engine, flow, direction, view);
}

static void judge(struct nq_engine *engine, const struct nq_packet *packet)
{
    struct nq_view view = { .packet = packet };
    unsigned direction = 0;
    enum nq_reason reason = packet_view(&view, packet);
    if (reason == REASON_NOT_TCP && icmp_error(&view, packet)) {
        judge_icmp(engine, &view);
        return;
    }
    if (reason) {
        unreadable(engine, packet, reason);
        return;
    }
    if (!packet_checksum_valid(&view)) {
        engine_drop(engine, NULL, 0, &view, REASON_CHECKSUM);
        return;
    }
    struct nq_flow *flow = flow_for(engine, &view, &direction, &reason);
    if (!flow) {
        engine_cannot_judge(engine, NULL, 0, &view, reason);
        return;
    }
    flow->stream[direction].packets++;
    flow->stream[direction].octets += packet->len;
    judge_of_flow(engine, flow, direction, &view);
}

/* ---- the two entries ---- */

static void begin(struct nq_engine *engine, uint64_t now)
{
    while (engine->retired) {
        struct nq_held *held = engine->retired;
        engine->retired = held->next;
        held_drop(&engine->pool, held);
    }
    while (engine->composed) {
        struct nq_block *block = engine->composed;
        engine->composed = block->next;
        block_drop(&engine->pool, block);
    }
    engine->result.count = 0;
    engine->injections = 0;
    engine->now = now;
}

const struct nq_result *nq_engine_packet(struct nq_engine *engine, const struct nq_packet *packet, uint64_t now)
{
    begin(engine, now);
    engine_count(engine, COUNT_PACKETS);
    engine_add(engine, COUNT_OCTETS, packet->len);
    judge(engine, packet);
    return &engine->result;
}

static void expire_held_of(struct nq_engine *engine, uint32_t index, uint64_t last)
{
    const uint64_t second = 1000000000u;
    while (index && engine->flows.slots[index].seen + (NQ_HOLD + 2) * second > last) {
        engine_drop_held(engine, &engine->flows.slots[index], engine->now - NQ_HOLD * second, REASON_HELD_EXPIRED);
        index = engine->flows.slots[index].older;
    }
}

/* A flow that was seen too long before the last tick was looked at then; so the newest are looked at until one such comes. */
static void expire_held(struct nq_engine *engine)
{
    const uint64_t second = 1000000000u;
    uint64_t last = engine->ticked;
    engine->ticked = engine->now;
    if (engine->pool.held_free == engine->settings.held || engine->now < NQ_HOLD * second)
        return;
    for (int timer = TIMER_IDLE; timer < TIMERS; timer++)
        expire_held_of(engine, engine->flows.timers[timer].newest, last);
}

const struct nq_result *nq_engine_tick(struct nq_engine *engine, uint64_t now)
{
    enum { FLOWS_A_TICK = 4096 };
    begin(engine, now);
    expire_held(engine);
    for (int i = 0; i < FLOWS_A_TICK; i++) {
        struct nq_flow *flow = flow_due(&engine->flows, now);
        if (!flow)
            break;
        engine_remove_flow(engine, flow, REASON_TIMEOUT);
    }
    return &engine->result;
}

const struct nq_result *nq_engine_drain(struct nq_engine *engine, uint64_t now)
{
    begin(engine, now);
    for (uint32_t i = 1; i <= engine->settings.flows && !ring_full(&engine->ring); i++)
        if (engine->flows.slots[i].state != FLOW_FREE)
            engine_remove_flow(engine, &engine->flows.slots[i], REASON_STOPPED);
    return &engine->result;
}

/* ---- making and ending ---- */

void nq_settings_default(struct nq_settings *settings)
{
    *settings = (struct nq_settings){
        .flows = NQ_FLOWS, .large_blocks = NQ_LARGE_BLOCKS, .small_blocks = NQ_SMALL_BLOCKS, .extents = NQ_EXTENTS,
        .held = NQ_HELD, .held_per_flow = NQ_HELD_PER_FLOW, .store_per_stream = NQ_STORE_PER_STREAM,
        .edit_logs = NQ_EDIT_LOGS, .events = NQ_EVENTS,
        .synwait = NQ_SYNWAIT, .finwait = NQ_FINWAIT, .idle = NQ_IDLE, .tombstone = NQ_TOMBSTONE,
        .binding = NQ_BIND_STRICT,
    };
}

static const char *settings_fault(const struct nq_settings *settings)
{
    if (settings->flows < 1 || settings->flows > 1u << 24)
        return "flows must be 1 to 16777216";
    if (settings->large_blocks < 4 || settings->small_blocks < 4 || settings->extents < 4)
        return "large_blocks, small_blocks and extents must be 4 or more";
    if (settings->events < 2 || settings->events > 1u << 24 || (settings->events & (settings->events - 1)))
        return "events must be a power of two, 2 to 16777216";
    if (!settings->synwait || !settings->finwait || !settings->idle || !settings->tombstone)
        return "synwait, finwait, idle and tombstone must be 1 second or more";
    if (settings->store_per_stream < NQ_LARGE_OCTETS)
        return "store_per_stream must hold one packet of 64 KiB at least (67584)";
    return NULL;
}

static bool take_memory(struct nq_engine *engine)
{
    size_t outputs = 2 * (size_t)engine->settings.held + NQ_INJECTIONS + 8; /* a packet may be dropped and leave as ours */
    engine->result.outputs = calloc(outputs, sizeof *engine->result.outputs);
    return engine->result.outputs && pool_init(&engine->pool, &engine->settings) &&
           flow_table_init(&engine->flows, &engine->settings) && ring_init(&engine->ring, engine->settings.events);
}

struct nq_engine *nq_engine_new(const struct nq_settings *settings, const struct nq_policy *policy, char *error)
{
    const char *fault = settings_fault(settings);
    struct nq_engine *engine = fault ? NULL : calloc(1, sizeof *engine);
    if (!engine) {
        snprintf(error, NQ_ERROR_MAX, "%s", fault ? fault : "no memory for an engine");
        return NULL;
    }
    engine->settings = *settings;
    atomic_init(&engine->policy, policy);
    if (!take_memory(engine)) {
        snprintf(error, NQ_ERROR_MAX, "no memory for the pool, the flow table or the event ring");
        nq_engine_free(engine);
        return NULL;
    }
    return engine;
}

void nq_engine_free(struct nq_engine *engine)
{
    if (!engine)
        return;
    ring_end(&engine->ring);
    flow_table_end(&engine->flows);
    pool_end(&engine->pool);
    free(engine->result.outputs);
    free(engine);
}

void nq_engine_install(struct nq_engine *engine, const struct nq_policy *policy)
{
    atomic_store_explicit(&engine->policy, policy, memory_order_release);
    atomic_store_explicit(&engine->classes, NULL, memory_order_release);
}

void nq_engine_install_classes(struct nq_engine *engine, const struct nq_classes *classes)
{
    atomic_store_explicit(&engine->policy, classes_otherwise(classes), memory_order_release);
    atomic_store_explicit(&engine->classes, classes, memory_order_release);
}

uint32_t nq_engine_events(struct nq_engine *engine, struct nq_event *into, uint32_t max)
{
    return ring_take(&engine->ring, into, max);
}
