/*
 * engine_output.c - part of the engine: what leaves: decisions on packets, packets put together anew, packets of our own.
 */
#include "nq.h"

struct nq_output *engine_output(struct nq_engine *engine)
{
    return &engine->result.outputs[engine->result.count++];
}

void engine_drop_packet(struct nq_engine *engine, const struct nq_packet *packet, enum nq_reason reason)
{
    engine_count(engine, COUNT_FIRST_REASON + reason);
    if (packet->flags & NQ_OURS)
        return;
    engine_count(engine, COUNT_DROPPED);
    *engine_output(engine) = (struct nq_output){ .kind = NQ_DECISION, .id = packet->id, .verdict = NQ_DROP };
}

void engine_drop(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, const struct nq_view *view,
                 enum nq_reason reason)
{
    engine_drop_packet(engine, view->packet, reason);
    engine_report_drop(engine, flow, direction, view, reason);
}

void engine_accept(struct nq_engine *engine, struct nq_view *view)
{
    bool ours = view->packet->flags & NQ_OURS;
    struct nq_output *out = engine_output(engine);
    engine_count(engine, ours ? COUNT_INJECTED : COUNT_ACCEPTED);
    *out = (struct nq_output){ .kind = ours ? NQ_INJECTION : NQ_DECISION, .id = view->packet->id, .verdict = NQ_ACCEPT };
    if (!view->edited && !ours)
        return;
    if (!ours)
        engine_count(engine, COUNT_EDITED);
    packet_checksum_write(view);
    out->data = view->ip;
    out->len = (uint32_t)(view->payload - view->ip) + view->payload_len;
}

/* Put the segment together anew from the store, as the receiver is to see it: its octets may be more or fewer than the
 * sender's. Where all of them have arrived or none is left, an empty segment at the receiver's last octet makes it say so
 * (RFC 9293, 3.8.4, as for a keep-alive). The kernel's segmenter throws a GSO packet away that has shrunk to one segment, so
 * that one leaves as a packet of our own: to wait for a smaller one cost the sender a timeout where an ACK to it was lost.
 * Returns REASON_NONE, or why it cannot be. */
static enum nq_reason compose(struct nq_engine *engine, const struct nq_stream *own, struct nq_view *view,
                              struct nq_packet *packet)
{
    uint32_t headers = (uint32_t)(view->payload - view->ip), mss = own->mss;
    uint32_t to = stream_out(own, view->seq + view->payload_len);
    uint32_t from = seq_min(seq_max(stream_out(own, view->seq), own->acked), to);
    uint32_t len = to - from;
    struct nq_block *block = headers + len <= NQ_SMALL_OCTETS ? pool_small(&engine->pool) : pool_large(&engine->pool);
    if (!block)
        return REASON_MEMORY;
    block->next = engine->composed;
    engine->composed = block;
    if (headers + len > UINT16_MAX || !stream_copy(own, from, to, block->data + headers))
        return REASON_STORE_LIMIT;
    memcpy(block->data, view->ip, headers);
    *packet = (struct nq_packet){ .id = view->packet->id, .flags = view->packet->flags, .data = block->data,
                                  .len = UINT16_MAX, .block = block };
    if (view->payload_len > mss && len <= mss && !(packet->flags & NQ_OURS)) {
        engine_drop_packet(engine, view->packet, REASON_SHRUNK);
        packet->flags |= NQ_OURS;
    }
    view->packet = packet;
    view->tcp = (void *)(block->data + ((uint8_t *)view->tcp - view->ip));
    view->source = block->data + (view->source - view->ip);
    view->destination = block->data + (view->destination - view->ip);
    view->ip = block->data;
    view->payload = block->data + headers;
    packet_resize(view, len);
    packet_write_seq(view, len || (view->flags & NQ_FIN) ? from : to - 1);
    return REASON_NONE;
}

/* Accept a segment of a flow, with its numbers made the receiver's. `stored`: its octets lie in the store. */
void engine_accept_segment(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, struct nq_view *view,
                           bool stored)
{
    const struct nq_stream *own = &flow->stream[direction], *peer = &flow->stream[!direction];
    struct nq_packet packet;
    if (stream_renumbers(peer))
        stream_translate_acks(peer, view, own->window_scale);
    if (stream_renumbers(own) && stored && view->payload_len) {
        enum nq_reason reason = compose(engine, own, view, &packet);
        if (reason) {
            engine_drop(engine, flow, direction, view, reason);
            return;
        }
    } else if (stream_renumbers(own))
        packet_write_seq(view, stream_out(own, view->seq));
    engine_accept(engine, view);
}

void engine_inject(struct nq_engine *engine, const struct nq_speaker *speaker, uint8_t flags, const uint8_t *text,
                   uint32_t text_len)
{
    if (engine->injections == NQ_INJECTIONS)
        return;
    uint8_t *into = engine->scratch[engine->injections++];
    uint32_t len = refuse_say(speaker, flags, text, text_len, into);
    engine_count(engine, COUNT_INJECTED);
    *engine_output(engine) = (struct nq_output){ .kind = NQ_INJECTION, .len = len, .data = into };
}

void engine_inject_rst(struct nq_engine *engine, const struct nq_speaker *speaker)
{
    engine_inject(engine, speaker, NQ_RST, NULL, 0);
}
