/*
 * stream.c - one direction of a flow: what is decided, what is stored, what is held. It knows no protocol.
 *
 * Each octet gets one value, for ever: the store keeps the octets that left from the receiver's last ACK to the last decided
 * one, and a retransmission leaves with the store's content whatever it holds and however it is cut. A store of hashes was
 * rejected: it cannot verify the retransmissions that are cut elsewhere. First wins.
 */
#include "nq.h"

void stream_begin(struct nq_stream *stream, uint32_t isn)
{
    stream->begin = isn + 1;
    stream->next = isn + 1;
    stream->acked = isn + 1;
    stream->edge = isn + 1;
    stream->decided = 0;
    stream->shift = 0;
    stream->fin = false;
}

static uint32_t end_of(const struct nq_view *view)
{
    return view->seq + view->payload_len + (view->flags & NQ_FIN ? 1 : 0);
}

enum nq_place stream_place(const struct nq_stream *stream, const struct nq_view *view)
{
    uint32_t end = end_of(view);
    if (end == view->seq)
        return PLACE_EMPTY;
    if (!seq_after(end, stream->next))
        return PLACE_OLD;
    return seq_after(view->seq, stream->next) ? PLACE_AHEAD : PLACE_NEXT;
}

void stream_acknowledge(struct nq_stream *stream, struct nq_pool *pool, uint32_t ack, uint32_t window)
{
    stream->edge = seq_max(stream->edge, ack + window);
    if (!seq_after(ack, stream->acked))
        return;
    stream->acked = ack;
    while (stream->first && !seq_after(stream->first->seq + stream->first->len, ack)) {
        struct nq_extent *gone = stream->first;
        stream->first = gone->next;
        stream->stored -= gone->len;
        extent_drop(pool, gone);
    }
    if (!stream->first) {
        stream->last = NULL;
        return;
    }
    struct nq_extent *extent = stream->first;
    if (seq_after(ack, extent->seq)) {
        uint32_t arrived = ack - extent->seq;
        extent->seq += arrived;
        extent->data += arrived;
        extent->len -= arrived;
        stream->stored -= arrived;
    }
}

/* Octets below the receiver's ACK are in nobody's store any more, and the receiver discards them unread. They become NUL,
 * so that nothing undecided leaves; a keep-alive's single octet (RFC 1122, 4.2.3.6) is left as it is. */
static bool blank_arrived(const struct nq_stream *stream, struct nq_view *view)
{
    if (view->payload_len <= 1 || !seq_before(view->seq, stream->acked))
        return false;
    uint32_t arrived = stream->acked - view->seq;
    memset(view->payload, 0, arrived < view->payload_len ? arrived : view->payload_len);
    return true;
}

/* `seq` is the payload's number in the numbering of the extents. */
static bool overlay(const struct nq_extent *extent, struct nq_view *view, uint32_t seq)
{
    bool differs = false;
    uint32_t end = seq + view->payload_len;
    for (; extent && seq_before(extent->seq, end); extent = extent->next) {
        uint32_t from = seq_max(extent->seq, seq);
        uint32_t to = seq_min(extent->seq + extent->len, end);
        if (!seq_before(from, to))
            continue;
        uint8_t *ours = extent->data + (from - extent->seq), *theirs = view->payload + (from - seq);
        if (memcmp(ours, theirs, to - from) == 0)
            continue;
        memcpy(theirs, ours, to - from);
        differs = true;
    }
    return differs;
}

bool stream_restore(const struct nq_stream *stream, struct nq_view *view)
{
    bool differs = overlay(stream->ahead, view, view->seq);
    if (!stream_renumbers(stream)) { /* else what leaves is put together from the store */
        differs |= blank_arrived(stream, view);
        differs |= overlay(stream->first, view, view->seq);
    }
    view->edited |= differs;
    return differs;
}

/* A small block may be a held packet's as well, with nothing appended to it: then the octets do not lie where it goes on. */
static bool fits_last(const struct nq_stream *stream, uint32_t len)
{
    const struct nq_extent *last = stream->last;
    return last && last->block->size == NQ_SMALL_OCTETS && last->block->refs == 1 &&
           last->data + last->len == last->block->data + last->block->used && last->block->used + len <= NQ_SMALL_OCTETS;
}

/* Is less than `eighths` of the pool left? What waits behind a hole stops at a quarter, so that nobody can starve the decided
 * octets by sending out of order; the last eighth is for streams that store nothing yet, so that a session that speaks line
 * by line goes on beside a flood. */
static bool scarce(const struct nq_pool *pool, const struct nq_settings *settings, uint64_t eighths)
{
    return 8 * (uint64_t)pool->small_free < eighths * settings->small_blocks ||
           8 * (uint64_t)pool->large_free < eighths * settings->large_blocks ||
           8 * (uint64_t)pool->extents_free < eighths * settings->extents;
}

enum nq_reason stream_room(const struct nq_stream *stream, const struct nq_pool *pool, const struct nq_settings *settings,
                           uint32_t len)
{
    if (stream->stored + len > settings->store_per_stream)
        return REASON_STORE_LIMIT;
    if (!pool->extents_free || !pool->small_free || !pool->large_free)
        return REASON_MEMORY;
    return stream->stored && scarce(pool, settings, 1) ? REASON_MEMORY : REASON_NONE;
}

static void append_copy(struct nq_extent *extent, const uint8_t *data, uint32_t len)
{
    memcpy(extent->block->data + extent->block->used, data, len);
    extent->block->used += len;
    extent->len += len;
}

/* stream_room() has said that there is an extent and a block. */
static struct nq_extent *new_extent(struct nq_pool *pool, const struct nq_packet *packet, uint32_t seq, uint8_t *data,
                                    uint32_t len)
{
    struct nq_extent *extent = pool_extent(pool);
    extent->seq = seq;
    if (packet->block && len > NQ_COPY_MAX) {
        packet->block->refs++;
        extent->block = packet->block;
        extent->data = data;
        extent->len = len;
        return extent;
    }
    extent->block = len > NQ_COPY_MAX ? pool_large(pool) : pool_small(pool);
    extent->data = extent->block->data;
    append_copy(extent, data, len);
    return extent;
}

static void link_last(struct nq_extent **first, struct nq_extent **last, struct nq_extent *extent)
{
    *(*last ? &(*last)->next : first) = extent;
    *last = extent;
}

enum nq_reason stream_store(struct nq_stream *stream, struct nq_pool *pool, const struct nq_settings *settings,
                            const struct nq_packet *packet, uint8_t *data, uint32_t len)
{
    enum nq_reason reason = stream_room(stream, pool, settings, len);
    if (reason)
        return reason;
    if (len <= NQ_COPY_MAX && fits_last(stream, len))
        append_copy(stream->last, data, len);
    else
        link_last(&stream->first, &stream->last, new_extent(pool, packet, stream_next_out(stream), data, len));
    stream->stored += len;
    stream->decided += len;
    stream->next += len;
    return REASON_NONE;
}

/* ---- changes of length ---- */

uint32_t stream_out(const struct nq_stream *stream, uint32_t seq)
{
    return edit_log_out(stream->log, stream->shift, seq);
}

uint32_t stream_acknowledged(const struct nq_stream *stream, uint32_t ack)
{
    return edit_log_acknowledged(stream->log, stream->shift, ack);
}

uint32_t stream_recorded_ack(const struct nq_stream *stream, uint32_t ack)
{
    if (!seq_after(ack, stream->next))
        return stream_out(stream, ack);
    for (const struct nq_held *held = stream->held; held; held = held->next)
        if (!seq_after(ack, held->end))
            return stream_next_out(stream);
    return ack + (uint32_t)stream->shift;
}

bool stream_under_way(const struct nq_stream *stream, uint32_t out)
{
    return !seq_before(out, stream->acked) && seq_before(out, stream_next_out(stream));
}

bool stream_may_edit(struct nq_stream *stream, struct nq_pool *pool, uint32_t edits)
{
    if (!stream->log)
        stream->log = pool_edit_log(pool);
    return stream->log && edit_log_room(stream->log, stream->acked, edits);
}

enum nq_reason stream_replace(struct nq_stream *stream, struct nq_pool *pool, const struct nq_settings *settings,
                              uint32_t removed, const uint8_t *text, uint32_t added)
{
    const struct nq_packet ours = { .block = NULL };
    enum nq_reason reason = stream_room(stream, pool, settings, added);
    if (reason)
        return reason;
    edit_log_add(stream->log, (struct nq_edit){ stream->next, stream_next_out(stream), removed, added });
    if (added) {
        if (fits_last(stream, added))
            append_copy(stream->last, text, added);
        else
            link_last(&stream->first, &stream->last, new_extent(pool, &ours, stream_next_out(stream), (uint8_t *)text, added));
        stream->stored += added;
    }
    stream->next += removed;
    stream->decided += removed;
    stream->shift += (int32_t)added - (int32_t)removed;
    return REASON_NONE;
}

bool stream_copy(const struct nq_stream *stream, uint32_t from, uint32_t to, uint8_t *into)
{
    const struct nq_extent *extent = stream->first;
    while (extent && seq_before(from, to)) {
        uint32_t end = extent->seq + extent->len;
        if (seq_before(from, extent->seq))
            return false;
        if (seq_before(from, end)) {
            uint32_t len = seq_min(end, to) - from;
            memcpy(into, extent->data + (from - extent->seq), len);
            into += len;
            from += len;
        }
        extent = extent->next;
    }
    return from == to;
}

/* Left edges go up and right edges down, so that the sender never takes for received what was not (RFC 2018). */
static void translate_sack(const struct nq_stream *stream, uint8_t *option)
{
    for (uint8_t *block = option + 2; block + 8 <= option + option[1]; block += 8) {
        uint32_t left = edit_log_received(stream->log, stream->shift, packet_load32(block));
        uint32_t right = stream_acknowledged(stream, packet_load32(block + 4));
        packet_store32(block, left);
        packet_store32(block + 4, seq_before(left, right) ? right : left); /* an empty block says nothing */
    }
}

void stream_translate_acks(const struct nq_stream *stream, struct nq_view *view, uint8_t window_scale)
{
    uint32_t growth = stream->log ? edit_log_growth(stream->log, stream->acked) : 0;
    uint32_t units = (growth + (1u << window_scale) - 1) >> window_scale;
    uint8_t *sack = packet_sack(view);
    if (sack)
        translate_sack(stream, sack);
    view->ack = stream_acknowledged(stream, view->ack);
    view->window = view->window > units ? view->window - units : 0; /* room for what we add */
    packet_write_acks(view);
    view->edited = true;
}

/* ---- octets that go ahead of a hole ---- */

/* Most of what arrives behind a hole arrives in order, behind all that went ahead: no walk for that. Extents ahead never
 * overlap, so the last one ends last. */
static bool behind_all_ahead(const struct nq_stream *stream, const struct nq_view *view)
{
    const struct nq_extent *last = stream->ahead_last;
    return !last || !seq_before(view->seq, last->seq + last->len);
}

bool stream_ahead_covers(const struct nq_stream *stream, const struct nq_view *view)
{
    if (behind_all_ahead(stream, view))
        return false;
    uint32_t at = view->seq, end = view->seq + view->payload_len;
    for (const struct nq_extent *extent = stream->ahead; extent && seq_before(at, end); extent = extent->next)
        if (!seq_after(extent->seq, at) && seq_after(extent->seq + extent->len, at))
            at = extent->seq + extent->len;
    return !seq_before(at, end) && !(view->flags & NQ_FIN);
}

bool stream_ahead_touches(const struct nq_stream *stream, const struct nq_view *view)
{
    if (behind_all_ahead(stream, view))
        return false;
    uint32_t end = view->seq + view->payload_len;
    for (const struct nq_extent *extent = stream->ahead; extent && seq_before(extent->seq, end); extent = extent->next)
        if (seq_after(extent->seq + extent->len, view->seq))
            return true;
    return false;
}

bool stream_ahead_differs(const struct nq_stream *stream, const struct nq_view *view)
{
    uint32_t end = view->seq + view->payload_len;
    for (const struct nq_extent *extent = stream->ahead; extent && seq_before(extent->seq, end); extent = extent->next) {
        uint32_t from = seq_max(extent->seq, view->seq), to = seq_min(extent->seq + extent->len, end);
        if (seq_before(from, to) && memcmp(extent->data + (from - extent->seq), view->payload + (from - view->seq), to - from))
            return true;
    }
    return false;
}

bool stream_ahead_beyond(const struct nq_stream *stream, uint32_t end)
{
    for (const struct nq_extent *extent = stream->ahead; extent; extent = extent->next)
        if (seq_after(extent->seq + extent->len, end))
            return true;
    return false;
}

enum nq_reason stream_go_ahead(struct nq_stream *stream, struct nq_pool *pool, const struct nq_settings *settings,
                               const struct nq_view *view)
{
    enum nq_reason reason = stream_room(stream, pool, settings, view->payload_len);
    if (!reason && scarce(pool, settings, 2))
        reason = REASON_MEMORY;
    if (reason)
        return reason;
    struct nq_extent *extent = new_extent(pool, view->packet, view->seq, view->payload, view->payload_len);
    stream->stored += extent->len;
    if (!stream->ahead_last || seq_after(extent->seq, stream->ahead_last->seq)) {
        link_last(&stream->ahead, &stream->ahead_last, extent);
        return REASON_NONE;
    }
    struct nq_extent **at = &stream->ahead;
    while (seq_before((*at)->seq, extent->seq))
        at = &(*at)->next;
    extent->next = *at;
    *at = extent;
    return REASON_NONE;
}

static struct nq_extent *unlink_ahead(struct nq_stream *stream)
{
    struct nq_extent *extent = stream->ahead;
    stream->ahead = extent->next;
    if (!stream->ahead)
        stream->ahead_last = NULL;
    extent->next = NULL;
    return extent;
}

struct nq_extent *stream_ahead_due(struct nq_stream *stream, struct nq_pool *pool)
{
    while (stream->ahead && !seq_after(stream->ahead->seq, stream->next)) {
        struct nq_extent *extent = stream->ahead;
        uint32_t known = stream->next - extent->seq;
        if (known < extent->len) {
            extent->seq += known;
            extent->data += known;
            extent->len -= known;
            stream->stored -= known;
            return extent;
        }
        stream->stored -= extent->len;
        extent_drop(pool, unlink_ahead(stream));
    }
    return NULL;
}

void stream_adopt(struct nq_stream *stream)
{
    struct nq_extent *extent = unlink_ahead(stream);
    extent->seq += (uint32_t)stream->shift;
    link_last(&stream->first, &stream->last, extent);
    stream->decided += extent->len;
    stream->next += extent->len;
}

/* ---- packets that wait ---- */

/* The whole packet, headers and all: its verdict may have to carry it. */
static bool keep_packet(struct nq_held *held, struct nq_pool *pool, const struct nq_view *view)
{
    uint32_t octets = (uint32_t)(view->payload - view->ip) + view->payload_len; /* what lies behind has no bound */
    held->packet = *view->packet;
    held->packet.len = octets;
    if (view->packet->block && octets > NQ_SMALL_OCTETS) {
        view->packet->block->refs++;
        return true;
    }
    held->packet.block = octets > NQ_SMALL_OCTETS ? pool_large(pool) : pool_small(pool);
    if (!held->packet.block)
        return false;
    memcpy(held->packet.block->data, view->packet->data, octets);
    held->packet.data = held->packet.block->data;
    return true;
}

static void insert_held(struct nq_stream *stream, struct nq_held *held, uint64_t now)
{
    struct nq_held **at = &stream->held;
    while (*at && !seq_after((*at)->seq, held->seq))
        at = &(*at)->next;
    held->since = now;
    held->next = *at;
    *at = held;
    stream->held_count++;
}

static bool held_already(const struct nq_stream *stream, uint32_t seq, uint32_t end)
{
    for (const struct nq_held *held = stream->held; held && !seq_after(held->seq, seq); held = held->next)
        if (held->seq == seq && !seq_before(held->end, end))
            return true;
    return false;
}

enum nq_reason stream_hold(struct nq_stream *stream, struct nq_pool *pool, const struct nq_settings *settings,
                           const struct nq_view *view, uint64_t now)
{
    uint32_t end = end_of(view);
    if (held_already(stream, view->seq, end))
        return REASON_HELD_TWICE;
    if (stream->held_count >= settings->held_per_flow)
        return REASON_HELD_LIMIT;
    struct nq_held *held = scarce(pool, settings, 2) ? NULL : pool_held(pool);
    if (!held)
        return REASON_MEMORY;
    if (!keep_packet(held, pool, view)) {
        held->packet.block = NULL;
        held_drop(pool, held);
        return REASON_MEMORY;
    }
    held->seq = view->seq;
    held->end = end;
    held->edited = view->edited;
    insert_held(stream, held, now);
    return REASON_NONE;
}

/* A packet of our own with the headers of `view` and `len` octets of its payload from `at` on. */
static struct nq_held *make_piece(struct nq_pool *pool, const struct nq_view *view, uint32_t at, uint32_t len)
{
    uint32_t headers = (uint32_t)(view->payload - view->ip), octets = headers + len;
    struct nq_held *held = pool_held(pool);
    struct nq_block *block = held ? octets > NQ_SMALL_OCTETS ? pool_large(pool) : pool_small(pool) : NULL;
    if (!block) {
        if (held)
            held_drop(pool, held);
        return NULL;
    }
    memcpy(block->data, view->ip, headers);
    memcpy(block->data + headers, view->payload + at, len);
    held->packet = (struct nq_packet){ .data = block->data, .block = block, .len = headers + view->payload_len,
                                       .flags = NQ_OURS, .in_ifindex = view->packet->in_ifindex,
                                       .out_ifindex = view->packet->out_ifindex };
    struct nq_view piece;
    packet_view(&piece, &held->packet);
    if (at + len < view->payload_len)
        packet_cut(&piece, len);
    else
        packet_resize(&piece, len);
    packet_write_seq(&piece, view->seq + at);
    held->packet.len = octets;
    held->seq = view->seq + at;
    held->end = held->seq + len + (piece.flags & NQ_FIN ? 1 : 0);
    return held;
}

void stream_hold_rest(struct nq_stream *stream, struct nq_pool *pool, const struct nq_settings *settings,
                      const struct nq_view *view, uint32_t octets, uint64_t now)
{
    uint32_t options = (uint32_t)(view->payload - (uint8_t *)view->tcp) - (uint32_t)sizeof *view->tcp;
    uint32_t most = stream->mss > 2 * options ? stream->mss - options : stream->mss;
    if (held_already(stream, view->seq + octets, view->seq + octets))
        return;
    for (uint32_t at = octets; at < view->payload_len && stream->held_count < settings->held_per_flow &&
                               !scarce(pool, settings, 2);) {
        uint32_t len = view->payload_len - at < most ? view->payload_len - at : most;
        struct nq_held *held = make_piece(pool, view, at, len);
        if (!held)
            return;
        insert_held(stream, held, now);
        at += len;
    }
}

static struct nq_held *take(struct nq_stream *stream, struct nq_held **at)
{
    struct nq_held *held = *at;
    *at = held->next;
    stream->held_count--;
    return held;
}

bool stream_holds_more(const struct nq_stream *stream)
{
    for (const struct nq_held *held = stream->held; held; held = held->next)
        if (seq_after(held->end, stream->next))
            return true;
    return false;
}

struct nq_held *stream_ready(struct nq_stream *stream)
{
    if (!stream->held || seq_after(stream->held->seq, stream->next))
        return NULL;
    return take(stream, &stream->held);
}

struct nq_held *stream_expired(struct nq_stream *stream, uint64_t before)
{
    for (struct nq_held **at = &stream->held; *at; at = &(*at)->next)
        if ((*at)->since < before)
            return take(stream, at);
    return NULL;
}

static void drop_all(struct nq_extent **first, struct nq_extent **last, struct nq_pool *pool)
{
    while (*first) {
        struct nq_extent *gone = *first;
        *first = gone->next;
        extent_drop(pool, gone);
    }
    *last = NULL;
}

void stream_end(struct nq_stream *stream, struct nq_pool *pool)
{
    drop_all(&stream->first, &stream->last, pool);
    drop_all(&stream->ahead, &stream->ahead_last, pool);
    stream->stored = 0;
    if (stream->log)
        edit_log_drop(pool, stream->log);
    stream->log = NULL;
}
