/*
 * engine_exception.c - part of the engine: what cannot be judged, and the policy's answer to it.
 */
#include <stdatomic.h>

#include "nq.h"

enum { NO_EXCEPTION = NQ_EXCEPTIONS };

static unsigned exception_of(enum nq_reason reason)
{
    switch (reason) {
    case REASON_MIDSTREAM: return NQ_EXC_MIDSTREAM;
    case REASON_ACK_BEYOND: return NQ_EXC_GAP;
    case REASON_MEMORY:
    case REASON_STORE_LIMIT:
    case REASON_FLOWS_FULL: return NQ_EXC_MEMORY;
    case REASON_OPTIONS:
    case REASON_AUTHENTICATED: return NQ_EXC_UNPARSABLE;
    case REASON_TRUNCATED: return NQ_EXC_TRUNCATED;
    default: return NO_EXCEPTION;
    }
}

static void give_up(struct nq_engine *engine, struct nq_flow *flow, struct nq_view *view)
{
    engine_give_up(engine, flow);
    engine_count(engine, COUNT_GIVEN_UP);
    view->edited = false;
    engine_accept(engine, view);
    engine_drop_held(engine, flow, UINT64_MAX, REASON_HELD_EXPIRED);
    for (int i = 0; i < 2; i++)
        stream_end(&flow->stream[i], &engine->pool);
}

/* A segment without a flow has no state to be right about: both RSTs stand where its own numbers say. */
static void reset_without_flow(struct nq_engine *engine, const struct nq_view *view)
{
    struct nq_speaker forward = packet_speaker(view, false), back = packet_speaker(view, true);
    if (view->flags & NQ_RST)
        return;
    engine_inject_rst(engine, &forward);
    engine_inject_rst(engine, &back);
}

/* The policy's answer to a segment that does not pass; flow may be NULL. */
void engine_cannot_judge(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                         enum nq_reason reason)
{
    const struct nq_policy *policy = flow ? flow->policy : atomic_load_explicit(&engine->policy, memory_order_acquire);
    unsigned exception = exception_of(reason);
    uint8_t answer = exception == NO_EXCEPTION ? NQ_ANSWER_DROP : policy->exceptions[exception];
    bool changed = flow && (flow->stream[0].log || flow->stream[1].log);
    if (answer == NQ_ANSWER_PASS && !changed) {
        if (flow)
            give_up(engine, flow, view);
        else
            engine_accept(engine, view);
        return;
    }
    engine_drop(engine, flow, direction, view, reason);
    if (answer == NQ_ANSWER_DROP)
        return;
    if (flow && flow->state != FLOW_FREE)
        engine_refuse(engine, flow, direction, view, reason);
    else
        reset_without_flow(engine, view);
}
