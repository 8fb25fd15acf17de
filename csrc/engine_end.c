/*
 * engine_end.c - part of the engine: how a flow ends: its record, resets, the refusal that a client reads, what comes after.
 */
#include "nq.h"

void engine_retire(struct nq_engine *engine, struct nq_held *held)
{
    held->next = engine->retired;
    engine->retired = held;
}

void engine_drop_held(struct nq_engine *engine, struct nq_flow *flow, uint64_t before, enum nq_reason reason)
{
    for (int i = 0; i < 2; i++)
        for (struct nq_held *held; (held = stream_expired(&flow->stream[i], before));) {
            engine_drop_packet(engine, &held->packet, reason);
            engine_retire(engine, held);
        }
}

void engine_forget_client(struct nq_engine *engine, struct nq_flow *flow)
{
    if (flow->session.client)
        client_drop(&engine->pool, flow->session.client);
    flow->session.client = NULL;
}

/* What can only be told once the flow is over. */
static void tell_last(struct nq_engine *engine, const struct nq_flow *flow, uint8_t match, unsigned direction)
{
    const struct nq_said said = { .what = SAID_FACT, .match = match, .why = REASON_RULE, .final = true };
    const struct nq_cursor nowhere = { .begin = NULL };
    uint64_t asked = 0;
    struct nq_judgement judgement = direction == 0 ? inspect_client(flow->policy, &flow->session, &said, &asked)
                                                   : inspect_server(flow->policy, &flow->session, &said, &asked);
    if (judgement.rule)
        engine_report_rule(engine, flow, direction, judgement, &said, &nowhere, NULL);
}

void engine_tell_truncated(struct nq_engine *engine, struct nq_flow *flow)
{
    if (!session_inside_command(&flow->session))
        return;
    tell_last(engine, flow, MATCH_OF_TRUNCATED_COMMAND, 0);
    flow->session.client->command.ended = true;
}

static void tell_silence(struct nq_engine *engine, const struct nq_flow *flow)
{
    bool opened = flow->stream[0].packets > 1 && flow->stream[1].packets > 0;
    if (opened && !flow->recorded && !flow->session.replies && !flow->session.reply.len && !flow->given_up)
        tell_last(engine, flow, MATCH_OF_SILENT_SERVER, 1);
}

/* The flow is over: its memory goes back, its record is written. Its slot stays until its timer ends. */
void engine_finish(struct nq_engine *engine, struct nq_flow *flow, enum nq_reason reason)
{
    if (!flow->recorded && flow->state != FLOW_DEAD && flow->state != FLOW_REFUSED)
        engine_tell_truncated(engine, flow);
    tell_silence(engine, flow);
    engine_forget_client(engine, flow);
    engine_drop_held(engine, flow, UINT64_MAX, reason);
    for (int i = 0; i < 2; i++)
        stream_end(&flow->stream[i], &engine->pool);
    engine_report_flow(engine, flow, (uint8_t)reason);
}

void engine_remove_flow(struct nq_engine *engine, struct nq_flow *flow, enum nq_reason reason)
{
    engine_finish(engine, flow, reason);
    flow_free(&engine->flows, flow);
    __atomic_store_n(&engine->counters[COUNT_FLOWS], engine->flows.used, __ATOMIC_RELAXED);
}

/* What a refused client reads: the rule's own reply, else the policy's. */
static const uint8_t *refusal_of(const struct nq_flow *flow, uint32_t *len)
{
    const struct nq_rule *rule = flow->ended_by_rule;
    bool own = rule && rule->reply_len;
    *len = own ? rule->reply_len : flow->policy->refusal_len;
    return own ? rule->reply : flow->policy->refusal;
}

/* The reply and the end of the server's stream, again where the client has not acknowledged them. */
static void say_refusal(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    uint32_t len;
    const uint8_t *text = refusal_of(flow, &len);
    struct nq_speaker server = speaker_answering(flow, direction, view, 0);
    flow->replied = engine->now;
    engine_inject(engine, &server, NQ_PSH | NQ_FIN, text, len);
}

/* Take a refused client's octets: in order, they are acknowledged and thrown away. False where it has had enough of that. */
static bool discard(struct nq_flow *flow, const struct nq_view *view)
{
    struct nq_stream *stream = &flow->stream[0];
    uint32_t end = view->seq + view->payload_len;
    if (!seq_after(view->seq, stream->next) && seq_after(end, stream->next)) {
        flow->discarded += end - stream->next;
        stream->next = end;
    }
    if ((view->flags & NQ_FIN) && end == stream->next && !stream->fin) {
        stream->fin = true;
        stream->next++;
    }
    return flow->discarded <= NQ_DISCARD;
}

/* The client is told why and the server is reset; then the client's octets are taken off its hands until it has read that:
 * one that is still writing a message reads nothing before it is done. */
static void refuse_with_reply(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, const struct nq_view *view,
                              enum nq_reason reason)
{
    struct nq_speaker client = speaker_of(flow, 0);
    engine_count(engine, COUNT_REFUSALS);
    flow->answers_reset = true;
    if (direction == 0)
        discard(flow, view);
    say_refusal(engine, flow, direction, view);
    engine_inject_rst(engine, &client);
    flow_on(&engine->flows, flow, ON_REPLIED, engine->now);
    engine_finish(engine, flow, reason);
}

static bool may_reply(const struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    const struct nq_rule *rule = flow->ended_by_rule;
    bool open = flow->state == FLOW_ESTABLISHED || flow->state == FLOW_HALF_CLOSED;
    bool wanted = rule ? rule->action == NQ_DO_REJECT || rule->action == NQ_DO_RATE_LIMIT : direction == 0;
    uint32_t len;
    return wanted && refusal_of(flow, &len) && len && open && view && !flow->stream[1].fin &&
           (direction == 0 || !(view->flags & NQ_FIN));
}

/* Silently: what follows is dropped, and nobody is told. */
static void drop_connection(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, enum nq_reason reason)
{
    engine_count(engine, COUNT_CONNECTIONS_DROPPED);
    engine_report_end(engine, flow, direction, NQ_EVENT_MATCH, (uint8_t)reason, false);
    flow_on(&engine->flows, flow, ON_REFUSED, engine->now);
    engine_finish(engine, flow, reason);
}

static void reset_both(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, enum nq_reason reason)
{
    engine_report_end(engine, flow, direction, NQ_EVENT_RESET, (uint8_t)reason, false);
    engine_count(engine, COUNT_RESETS);
    for (unsigned i = 0; i < 2; i++) {
        struct nq_speaker speaker = speaker_of(flow, i);
        engine_inject_rst(engine, &speaker);
    }
    flow->answers_reset = true;
    flow_on(&engine->flows, flow, ON_REFUSED, engine->now);
    engine_finish(engine, flow, reason);
}

/* The flow is ended as the rule says that wants it, else as the policy does; the packet goes nowhere, what follows is dropped. */
void engine_refuse(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, const struct nq_view *view,
                   enum nq_reason reason)
{
    flow->ended_by_rule = engine->ending;
    if (engine->ending && engine->ending->action == NQ_DO_DROP)
        drop_connection(engine, flow, direction, reason);
    else if (may_reply(flow, direction, view)) {
        engine_report_end(engine, flow, direction, NQ_EVENT_REJECT, (uint8_t)reason, false);
        refuse_with_reply(engine, flow, direction, view, reason);
    } else
        reset_both(engine, flow, direction, reason);
    engine->ending = NULL;
    engine->ended_at = 0;
}

/* A packet of a flow that the policy has ended. The RST may have been lost: its sender is told again. */
void engine_bury(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    engine_drop(engine, flow, direction, view, REASON_DEAD);
    flow_touch(&engine->flows, flow, engine->now);
    if (!flow->answers_reset || !(view->flags & NQ_ACK) || (view->flags & NQ_RST))
        return;
    struct nq_speaker speaker = speaker_of(flow, !direction);
    speaker.seq = view->ack;
    speaker.ack = view->seq + view->payload_len;
    engine_inject_rst(engine, &speaker);
}

static void end_refused(struct nq_engine *engine, struct nq_flow *flow)
{
    flow->answers_reset = true;
    flow_on(&engine->flows, flow, ON_REFUSED, engine->now);
}

/* A packet of a flow whose client is being told why it was refused. */
void engine_hear_refused(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    uint32_t said;
    refusal_of(flow, &said);
    said++;
    uint32_t end = stream_next_out(&flow->stream[1]) + said;
    if (direction == 1) {
        engine_bury(engine, flow, direction, view);
        return;
    }
    engine_drop(engine, flow, direction, view, REASON_DEAD);
    if (view->flags & (NQ_RST | NQ_SYN)) {
        if ((view->flags & NQ_RST) && (view->seq == flow->stream[0].next || view->seq == flow->stream[0].acked))
            end_refused(engine, flow);
        return;
    }
    if (!discard(flow, view)) {
        struct nq_speaker server = speaker_answering(flow, 0, view, said);
        engine_inject_rst(engine, &server);
        end_refused(engine, flow);
        return;
    }
    if (seq_before(view->ack, end) && engine->now - flow->replied >= NQ_REPEAT)
        say_refusal(engine, flow, 0, view);
    else if (view->payload_len || (view->flags & NQ_FIN)) {
        struct nq_speaker server = speaker_answering(flow, 0, view, said);
        engine_inject(engine, &server, 0, NULL, 0);
    }
    if (flow->stream[0].fin && !seq_before(view->ack, end))
        end_refused(engine, flow);
}
