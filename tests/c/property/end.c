/*
 * end.c - one end of the connection: opening, segments out and in, timers. What it sends is in sender.c, what it takes is in
 * receiver.c.
 */
#include "sim.h"

#define FIRST_RTO (200 * MILLISECOND)

uint32_t load32(const uint8_t *at) { return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3]; }

static uint32_t load16(const uint8_t *at) { return (uint32_t)at[0] << 8 | at[1]; }

bool segment_seen(struct seen *seen, const uint8_t *octets, uint32_t len)
{
    bool ipv4 = octets[0] >> 4 == 4;
    uint32_t ip = ipv4 ? 20 : 40;
    uint32_t all = ipv4 ? load16(octets + 2) : 40 + load16(octets + 4);
    if (all > len || all < ip + 20 || octets[ipv4 ? 9 : 6] != 6)
        return false;
    const uint8_t *tcp = octets + ip;
    uint32_t header = (tcp[12] >> 4) * 4u;
    if (ip + header > all)
        return false;
    *seen = (struct seen){ .seq = load32(tcp + 4), .ack = load32(tcp + 8), .window = load16(tcp + 14), .flags = tcp[13],
                           .len = all - ip - header, .payload = tcp + header, .options = tcp + 20,
                           .options_len = header - 20 };
    return true;
}

void end_begin(struct sim *sim, unsigned self)
{
    static const uint16_t sizes[] = { 536, 900, 1220, 1460, 1460 };
    struct end *end = &sim->end[self];
    memset(end, 0, offsetof(struct end, say));
    memset(end->have, 0, sizeof end->have);
    memset(end->sacked, 0, sizeof end->sacked);
    end->self = self;
    end->iss = chance(sim, 300) ? 0u - roll(sim, 3000) : chance(sim, 300) ? 0x80000000u - roll(sim, 3000)
                                                                          : roll(sim, 1u << 31) * 2;
    end->own_mss = sizes[roll(sim, sizeof sizes / sizeof *sizes)];
    end->own_scale = chance(sim, 800) ? (uint8_t)roll(sim, 9) : 0xff;
    end->sack = chance(sim, 800);
    end->buffer = chance(sim, 200) ? between(sim, 1200, 4000) : between(sim, 8000, 60000);
    end->lazy = chance(sim, 150);
    end->cwnd = between(sim, 1500, 20000);
    end->fin_at = UINT32_MAX;
    end->rto = FIRST_RTO;
    end->rto_at = end->ack_at = end->read_at = NEVER;
    end->window = 65535;
}

bool end_done(const struct end *end)
{
    return end->state == END_RESET || (end->fin && end->closes && end->una == end->said + 1);
}

uint32_t end_window(const struct end *end)
{
    uint32_t unread = end->got - end->read;
    uint32_t edge = end->got + (unread < end->buffer ? end->buffer - unread : 0);
    return (edge > end->edge ? edge : end->edge) - end->got;
}

/* ---- segments out ---- */

static uint32_t syn_options(const struct end *end, bool scale, bool sack, uint8_t *into)
{
    uint32_t len = 4;
    memcpy(into, (uint8_t[]){ 2, 4, (uint8_t)(end->own_mss >> 8), (uint8_t)end->own_mss }, 4);
    if (scale) {
        memcpy(into + len, (uint8_t[]){ 1, 3, 3, end->own_scale }, 4);
        len += 4;
    }
    if (sack) {
        memcpy(into + len, (uint8_t[]){ 4, 2, 1, 1 }, 4);
        len += 4;
    }
    return len;
}

static void emit(struct sim *sim, struct end *end, struct segment segment)
{
    struct flight *flight = air_packet(&sim->air);
    if (!flight)
        return;
    segment.from = end->self;
    if (segment.flags & NQ_ACK)
        segment.ack = end->irs + 1 + end->got + end->fin;
    flight->len = wire_write(&sim->gate.wire, &segment, flight->octets);
    flight->in_ifindex = end->self == CLIENT ? CLIENT_IFINDEX : SERVER_IFINDEX;
    flight->out_ifindex = end->self == CLIENT ? SERVER_IFINDEX : CLIENT_IFINDEX;
    flight->flags = segment.len + 36 > end->mss ? NQ_CSUM_NOT_READY : 0; /* 36: the most that options take here */
    trace_packet(sim, end->self == CLIENT ? "C sends" : "S sends", flight->octets, flight->len);
    air_send(sim, flight, end->self == CLIENT ? CLIENT_TO_GATE : SERVER_TO_GATE);
}

static void emit_syn(struct sim *sim, struct end *end)
{
    uint8_t options[12];
    bool answers = end->self == SERVER;
    bool scale = end->own_scale != 0xff && (!answers || end->peer_scale != 0xff);
    struct segment segment = { .seq = end->iss, .flags = answers ? NQ_SYN | NQ_ACK : NQ_SYN, .options = options,
                               .window = end->buffer < 65535 ? end->buffer : 65535 };
    segment.options_len = syn_options(end, scale, end->sack, options);
    end->edge = segment.window;
    emit(sim, end, segment);
    end->rto_at = sim->now + end->rto;
}

void end_emit(struct sim *sim, struct end *end, uint32_t offset, uint32_t len, uint8_t flags)
{
    uint8_t options[40];
    uint32_t window = end_window(end), scale = end->own_scale == 0xff ? 0 : end->own_scale;
    struct segment segment = { .seq = end->iss + 1 + offset, .flags = flags, .payload = end->say + offset, .len = len,
                               .options = options, .options_len = receiver_blocks(end, options), .window = window >> scale };
    if (segment.window > 65535)
        segment.window = 65535;
    if (end->got + (segment.window << scale) > end->edge)
        end->edge = end->got + (segment.window << scale);
    end->ack_at = NEVER;
    emit(sim, end, segment);
}

void end_answer(struct sim *sim, struct end *end) { end_emit(sim, end, end->next, 0, NQ_ACK); }

/* ---- opening ---- */

void end_connect(struct sim *sim, struct end *end)
{
    end->state = END_SYN_SENT;
    emit_syn(sim, end);
}

static void take_options(struct end *end, const struct seen *seen)
{
    bool sack = false;
    end->mss = 536;
    end->peer_scale = 0xff;
    for (uint32_t at = 0; at < seen->options_len && seen->options[at];) {
        const uint8_t *option = seen->options + at;
        if (option[0] == 2)
            end->mss = (uint16_t)load16(option + 2);
        if (option[0] == 3)
            end->peer_scale = option[2];
        sack |= option[0] == 4;
        at += option[0] == 1 ? 1 : option[1];
    }
    end->sack = end->sack && sack;
    if (end->peer_scale == 0xff || end->own_scale == 0xff)
        end->own_scale = end->peer_scale = 0xff;
}

static void established(struct sim *sim, struct end *end, const struct seen *seen)
{
    end->state = END_ESTABLISHED;
    end->window = seen->window << (seen->flags & NQ_SYN || end->peer_scale == 0xff ? 0 : end->peer_scale);
    end->window_seq = seen->seq;
    end->rto = FIRST_RTO;
    end->rto_at = NEVER;
    trace(sim, "%c is connected, mss %u", "CS"[end->self], end->mss);
}

/* Returns whether the segment is to be looked at further. */
static bool opening(struct sim *sim, struct end *end, const struct seen *seen)
{
    uint8_t kind = seen->flags & (NQ_SYN | NQ_ACK | NQ_RST);
    if (end->self == SERVER && kind == NQ_SYN && (end->state == END_CLOSED || end->state == END_SYN_RECEIVED)) {
        if (end->state == END_CLOSED) {
            end->irs = seen->seq;
            take_options(end, seen);
        }
        if (seen->seq == end->irs) {
            end->state = END_SYN_RECEIVED;
            emit_syn(sim, end);
        }
        return false;
    }
    if (end->state == END_SYN_SENT && kind == (NQ_SYN | NQ_ACK) && seen->ack == end->iss + 1) {
        end->irs = seen->seq;
        take_options(end, seen);
        established(sim, end, seen);
        end_answer(sim, end);
        return true;
    }
    if (end->state == END_SYN_RECEIVED && kind == NQ_ACK && seen->ack == end->iss + 1)
        established(sim, end, seen);
    return end->state == END_ESTABLISHED;
}

/* ---- segments in ---- */

static void take_reset(struct sim *sim, struct end *end, const struct seen *seen)
{
    bool exact = seen->seq == end->irs + 1 + end->got + end->fin;
    if (end->state == END_SYN_SENT)
        exact = (seen->flags & NQ_ACK) && seen->ack == end->iss + 1;
    if (exact) {
        trace(sim, "%c is reset", "CS"[end->self]);
        end->state = END_RESET;
    } else if (end->state == END_ESTABLISHED && receiver_accepts(end, seen))
        end_answer(sim, end); /* RFC 5961, 3.2: a challenge */
}

static void applications_turn(struct sim *sim, struct end *end)
{
    if (end->state != END_ESTABLISHED)
        return;
    if (end->lazy && !end->fin && end->read < end->got) {
        if (end->read_at == NEVER)
            end->read_at = sim->now + between(sim, 1, 300) * MILLISECOND;
    } else if (end->self == CLIENT)
        client_reads(sim);
    else
        server_reads(sim);
    end_push(sim, end);
}

void end_arrives(struct sim *sim, struct end *end, const struct flight *flight)
{
    struct seen seen;
    if (!naive_checksums(flight->octets, flight->len) || !segment_seen(&seen, flight->octets, flight->len))
        FAIL("what arrived is no segment, or its checksum is wrong");
    trace_packet(sim, end->self == CLIENT ? "reaches C" : "reaches S", flight->octets, flight->len);
    if (end->state == END_RESET)
        return;
    if (seen.flags & NQ_RST) {
        take_reset(sim, end, &seen);
        return;
    }
    bool first = end->state == END_SYN_SENT;
    if (!opening(sim, end, &seen))
        return;
    if (seen.flags & NQ_SYN) {
        if (!first)
            end_answer(sim, end);
    } else if (!receiver_accepts(end, &seen)) {
        if (seen.len || sim->now - end->answered_at > 500 * MILLISECOND) { /* as Linux, tcp_invalid_ratelimit */
            end->answered_at = sim->now;
            receiver_hears(sim, end, &seen);
            end_answer(sim, end);
        }
    } else {
        sender_hears(sim, end, &seen);
        receiver_hears(sim, end, &seen);
    }
    applications_turn(sim, end);
}

/* ---- time ---- */

uint64_t end_next(const struct end *end)
{
    uint64_t next = end->rto_at < end->ack_at ? end->rto_at : end->ack_at;
    return end->state == END_RESET ? NEVER : next < end->read_at ? next : end->read_at;
}

static void read_late(struct sim *sim, struct end *end)
{
    uint32_t before = end_window(end);
    end->read_at = NEVER;
    if (end->self == CLIENT)
        client_reads(sim);
    else
        server_reads(sim);
    if (before < end->own_mss && end_window(end) >= end->own_mss)
        end_answer(sim, end);
    end_push(sim, end);
}

void end_timers(struct sim *sim, struct end *end)
{
    if (end->state == END_RESET)
        return;
    if (end->rto_at <= sim->now) {
        end->rto = end->rto * 2 < 2 * SECOND ? end->rto * 2 : 2 * SECOND;
        if (end->state == END_ESTABLISHED)
            sender_timer(sim, end);
        else
            emit_syn(sim, end);
    }
    if (end->ack_at <= sim->now)
        end_answer(sim, end);
    if (end->read_at <= sim->now)
        read_late(sim, end);
}
