/*
 * engine_offload.c - part of the engine: flows that nobody judges (any more), and how the kernel gets them.
 *
 * A decision that offloads carries a packet mark, which the deployment keeps on the connmark; what comes behind that packet does
 * not come here any more. What was queued already still does, so the flow stays, passes what comes, and may give way to another.
 */
#include "nq.h"

enum { PROMPTLY = 1000000000 }; /* ns within which what was queued already has come */

void engine_give_up(struct nq_engine *engine, struct nq_flow *flow)
{
    static const uint8_t opening[] = { ON_SYN, ON_SYN_ACK, ON_ACK };
    for (size_t i = 0; i < sizeof opening && flow->state < FLOW_ESTABLISHED; i++)
        flow_on(&engine->flows, flow, opening[i], engine->now); /* it lives as long as one that is judged */
    flow->given_up = true;
}

/* Mark the packet's decision. False where it passes no POSTROUTING, or does not pass at all. */
static bool ask_kernel(struct nq_engine *engine, const struct nq_packet *packet)
{
    for (uint32_t i = 0; engine->settings.offload && packet->out_ifindex && i < engine->result.count; i++) {
        struct nq_output *output = &engine->result.outputs[i];
        if (output->kind == NQ_DECISION && output->id == packet->id && output->verdict == NQ_ACCEPT) {
            output->offload = 1;
            return true;
        }
    }
    return false;
}

static void hand_over(struct nq_engine *engine, struct nq_flow *flow)
{
    engine_count(engine, COUNT_OFFLOADED);
    flow->given_up = true;
    flow_on(&engine->flows, flow, ON_LEFT, engine->now);
    engine_finish(engine, flow, REASON_OFFLOADED);
}

/* Both FINs, one from each side: nobody can forge that from one side alone. A RST can be forged, and is not believed here. */
static bool said_all(struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    if (view->flags & NQ_FIN)
        flow->stream[direction].fin = true;
    return flow->stream[0].fin && flow->stream[1].fin;
}

void engine_pass(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    bool over = said_all(flow, direction, view);
    bool opens_or_ends = view->flags & (NQ_SYN | NQ_RST); /* the deployment queues every SYN, offloaded or not */
    engine_accept(engine, view);
    if (over && flow->state != FLOW_LEFT) {
        flow_on(&engine->flows, flow, ON_LEFT, engine->now);
        engine_report_flow(engine, flow, REASON_FIN);
    } else if (!over && flow->state == FLOW_LEFT && engine->now - flow->seen >= PROMPTLY)
        flow_on(&engine->flows, flow, ON_ACK, engine->now); /* nobody kept the mark: it is ours for as long as it lives */
    if (flow->policy->exempt && !opens_or_ends && ask_kernel(engine, view->packet) && !flow->recorded)
        hand_over(engine, flow);
    flow_touch(&engine->flows, flow, engine->now);
}

/* Nothing is under way that anybody here knows more of than the ends do. */
static bool settled(const struct nq_stream *stream, uint32_t opaque_from)
{
    return !stream->held && !stream->ahead && !stream_renumbers(stream) && !seq_before(stream->acked, opaque_from);
}

static bool may_leave(const struct nq_flow *flow)
{
    return flow->policy->offload && flow->state == FLOW_ESTABLISHED && !flow->reopening &&
           hello_seen(&flow->session.hello[0]) && hello_seen(&flow->session.hello[1]) &&
           settled(&flow->stream[0], flow->opaque_from[0]) && settled(&flow->stream[1], flow->opaque_from[1]);
}

void engine_offload(struct nq_engine *engine, struct nq_flow *flow, const struct nq_packet *packet)
{
    if (flow->session.mode != MODE_OPAQUE || flow->given_up)
        return;
    for (int i = 0; i < 2 && !flow->opaque; i++) /* this packet held the end of the server's 220 */
        flow->opaque_from[i] = flow->stream[i].next;
    flow->opaque = true;
    if (may_leave(flow) && ask_kernel(engine, packet))
        hand_over(engine, flow);
}
