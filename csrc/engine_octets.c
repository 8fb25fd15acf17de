/*
 * engine_octets.c - part of the engine: what becomes of a segment's octets. They are decided, put back, held, sent ahead of a
 * hole, or parted.
 */
#include "nq.h"

static void take_fin(struct nq_engine *engine, struct nq_flow *flow, unsigned direction)
{
    if (direction == 0)
        engine_tell_truncated(engine, flow);
    flow->stream[direction].fin = true;
    flow->stream[direction].next++;
    flow_on(&engine->flows, flow, flow->stream[!direction].fin ? ON_SECOND_FIN : ON_FIRST_FIN, engine->now);
}

/* Only the first `octets` of the payload may go now; the rest goes from a copy once the server has replied. A GSO packet that
 * would shrink to one segment, which the kernel cannot send, is left out, and a packet of our own goes in its place. */
static void accept_part(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                        uint32_t octets)
{
    struct nq_stream *stream = &flow->stream[direction];
    struct nq_packet ours = *view->packet;
    engine_count(engine, COUNT_PARTED);
    stream_hold_rest(stream, &engine->pool, &engine->settings, view, octets, engine->now);
    if (view->payload_len > stream->mss && octets <= stream->mss) {
        engine_drop_packet(engine, view->packet, REASON_BEFORE_REPLY);
        ours.flags |= NQ_OURS;
        view->packet = &ours;
    }
    packet_cut(view, octets);
    engine_accept_segment(engine, flow, direction, view, true);
}

static void hold(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    enum nq_reason reason = stream_hold(&flow->stream[direction], &engine->pool, &engine->settings, view, engine->now);
    if (reason)
        engine_cannot_judge(engine, flow, direction, view, reason);
    else
        engine_count(engine, COUNT_HELD);
}

/* What was forwarded from behind the hole that is filled now must stand as it left. If it does not, the filler never leaves:
 * the application behind us has not read an octet of it. */
static enum nq_reason judge_ahead(struct nq_engine *engine, struct nq_flow *flow, unsigned direction)
{
    struct nq_stream *stream = &flow->stream[direction];
    struct nq_view copy = { .edited = false };
    for (struct nq_extent *extent; (extent = stream_ahead_due(stream, &engine->pool));) {
        struct nq_cursor cursor = { .begin = extent->data, .at = extent->data, .end = extent->data + extent->len };
        enum nq_reason reason = engine_listen(engine, flow, direction, &copy, &cursor);
        if (reason)
            return reason;
        if (copy.edited || engine->patches.count || cursor.at < cursor.end)
            return REASON_AHEAD_WRONG;
        stream_adopt(stream);
    }
    return REASON_NONE;
}

/* Keep `len` octets from `from` as they leave: with what was added, without what was taken out. */
static enum nq_reason store_patched(struct nq_engine *engine, struct nq_stream *stream, const struct nq_view *view,
                                    uint8_t *from, uint32_t len)
{
    enum nq_reason reason = REASON_NONE;
    uint8_t *at = from, *end = from + len;
    for (uint32_t i = 0; i < engine->patches.count && !reason; i++) {
        const struct nq_patch *patch = &engine->patches.patch[i];
        if (patch->at > at)
            reason = stream_store(stream, &engine->pool, &engine->settings, view->packet, at, (uint32_t)(patch->at - at));
        if (!reason)
            reason = stream_replace(stream, &engine->pool, &engine->settings, patch->removed, patch->text, patch->added);
        at = patch->at + patch->removed;
    }
    if (!reason && at < end)
        reason = stream_store(stream, &engine->pool, &engine->settings, view->packet, at, (uint32_t)(end - at));
    return reason;
}

/* Judge the octets that nobody has judged yet, from `fresh` on. Sets how many were taken. */
static enum nq_reason judge_fresh(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                                  uint8_t *fresh, uint32_t *taken)
{
    struct nq_stream *stream = &flow->stream[direction];
    bool was_edited = view->edited;
    struct nq_cursor cursor = { .begin = fresh, .at = fresh, .end = view->payload + view->payload_len };
    view->edited = false;
    enum nq_reason reason = engine_listen(engine, flow, direction, view, &cursor);
    *taken = (uint32_t)(cursor.at - fresh);
    if (reason)
        return reason;
    bool beyond_fin = (view->flags & NQ_FIN) && stream_ahead_beyond(stream, view->seq + view->payload_len);
    bool wrong = view->edited && stream_ahead_differs(stream, view); /* an edit beside them is none of theirs */
    if (stream->ahead && (cursor.at < cursor.end || beyond_fin || wrong || engine->patches.count))
        return REASON_AHEAD_WRONG;
    view->edited |= was_edited;
    reason = store_patched(engine, stream, view, fresh, *taken);
    return reason ? reason : judge_ahead(engine, flow, direction);
}

static void decide(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    struct nq_stream *stream = &flow->stream[direction];
    uint32_t known = stream->next - view->seq, taken = 0;
    enum nq_reason reason = stream_room(stream, &engine->pool, &engine->settings, view->payload_len - known);
    if (!reason && direction == 0 && !flow->session.client && !(flow->session.client = pool_client(&engine->pool)))
        reason = REASON_MEMORY;
    if (reason) {
        engine_cannot_judge(engine, flow, direction, view, reason);
        return;
    }
    stream_restore(stream, view);
    reason = judge_fresh(engine, flow, direction, view, view->payload + known, &taken);
    if (reason) {
        engine_drop_packet(engine, view->packet, reason);
        engine_refuse(engine, flow, direction, view, reason);
        return;
    }
    if (known + taken < view->payload_len) {
        accept_part(engine, flow, direction, view, known + taken);
        return;
    }
    engine_accept_segment(engine, flow, direction, view, true);
    if (view->flags & NQ_FIN)
        take_fin(engine, flow, direction);
}

/* Behind a hole in message data, octets that need no edit wherever the data stood before them may go at once: the ends'
 * own loss recovery then works, where holding would cost most of the goodput. */
static bool may_go_ahead(const struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    const struct nq_session *session = &flow->session;
    const uint8_t *end = view->payload + view->payload_len;
    if ((view->flags & NQ_FIN) || stream_ahead_touches(&flow->stream[direction], view))
        return false;
    if (session->mode == MODE_OPAQUE)
        return true;
    if (direction == 1 || !session->client)
        return false;
    if (session->client->message_begins && flow->policy->header_len)
        return false; /* the hole will grow */
    if (session->mode == MODE_CHUNK)
        return (uint64_t)(view->seq + view->payload_len - flow->stream[0].next) <= session->client->chunk;
    return session->mode == MODE_DATA && !data_may_matter(view->payload, end, session->client->data.watched);
}

static void behind_hole(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    struct nq_stream *stream = &flow->stream[direction];
    if (stream_ahead_covers(stream, view)) {
        stream_restore(stream, view);
        engine_accept_segment(engine, flow, direction, view, false);
        return;
    }
    if (!may_go_ahead(flow, direction, view)) {
        hold(engine, flow, direction, view);
        return;
    }
    enum nq_reason reason = stream_go_ahead(stream, &engine->pool, &engine->settings, view);
    if (reason) {
        engine_cannot_judge(engine, flow, direction, view, reason);
        return;
    }
    engine_count(engine, COUNT_AHEAD);
    engine_accept_segment(engine, flow, direction, view, false);
}

/* What the server must reply to first. Where a part of the packet went before and has not arrived, that part goes again. */
static bool must_wait(const struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    const struct nq_stream *stream = &flow->stream[direction];
    bool again = seq_before(view->seq, stream->next) && stream->acked != stream_next_out(stream);
    return direction == 0 && view->payload_len && !again && session_waits(&flow->session);
}

/* A FIN among octets that were decided long ago is a lie, unless it is the one that was decided. */
static void strip_undecided_fin(const struct nq_stream *stream, struct nq_view *view)
{
    if (!stream->fin || view->seq + view->payload_len + 1 != stream->next)
        packet_cut(view, view->payload_len);
}

/* Held since before the FIN came, and one of its octets lies in the FIN's place: nobody has decided that octet. */
static bool takes_fins_place(const struct nq_stream *stream, const struct nq_view *view)
{
    return stream->fin && view->payload_len && seq_after(view->seq + view->payload_len, stream->next - 1);
}

void engine_carry(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    struct nq_stream *stream = &flow->stream[direction];
    if (takes_fins_place(stream, view)) {
        engine_drop(engine, flow, direction, view, REASON_AFTER_FIN);
        return;
    }
    switch (stream_place(stream, view)) {
    case PLACE_EMPTY:
        engine_accept_segment(engine, flow, direction, view, false);
        break;
    case PLACE_OLD:
        if (view->packet->flags & NQ_OURS) { /* its sender was quicker */
            engine_drop_packet(engine, view->packet, REASON_HELD_TWICE);
            break;
        }
        if (stream_restore(stream, view))
            engine_count(engine, COUNT_RESTORED);
        if (view->flags & NQ_FIN)
            strip_undecided_fin(stream, view);
        engine_accept_segment(engine, flow, direction, view, true);
        break;
    case PLACE_AHEAD:
        behind_hole(engine, flow, direction, view);
        break;
    case PLACE_NEXT:
        if (stream->fin)
            engine_drop(engine, flow, direction, view, REASON_AFTER_FIN);
        else if (must_wait(flow, direction, view))
            hold(engine, flow, direction, view);
        else
            decide(engine, flow, direction, view);
        break;
    }
}

/* The server's FIN has arrived, so no reply will come that the client's octets could wait for. Both ends are reset: the client
 * has read all that the server had to say, and would send again for a quarter of an hour. */
static bool waits_in_vain(const struct nq_flow *flow)
{
    const struct nq_stream *server = &flow->stream[1];
    bool said_all = server->fin && server->acked == stream_next_out(server);
    bool alive = flow->state == FLOW_HALF_CLOSED || flow->state == FLOW_CLOSING;
    return alive && said_all && session_waits(&flow->session) && stream_holds_more(&flow->stream[0]);
}

/* What waited may be ready now: a hole was filled, or the server has replied. Its side first: its reply may be among it. */
void engine_release(struct nq_engine *engine, struct nq_flow *flow)
{
    if (waits_in_vain(flow)) {
        engine_refuse(engine, flow, 0, NULL, REASON_UNANSWERED);
        return;
    }
    for (unsigned direction = 2; direction-- > 0;) {
        while (flow->state != FLOW_DEAD && !(direction == 0 && session_waits(&flow->session))) {
            struct nq_held *held = stream_ready(&flow->stream[direction]);
            if (!held)
                break;
            struct nq_view view;
            packet_view(&view, &held->packet);
            view.edited = held->edited;
            engine_carry(engine, flow, direction, &view);
            engine_retire(engine, held);
        }
    }
}
