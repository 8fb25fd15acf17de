/*
 * sender.c - what an end sends: new octets within the window, and again what was not acknowledged, cut elsewhere.
 *
 * An honest sender never hears of octets that it has not sent; that is asserted here, and so is every SACK block.
 */
#include "sim.h"

#define FIRST_RTO (200 * MILLISECOND)

static void arm(struct sim *sim, struct end *end) { end->rto_at = sim->now + end->rto; }

/* How long the next segment is. The first few hundred may be tiny; a schedule has its end. */
static uint32_t cut(struct sim *sim, struct end *end, uint32_t most, bool again)
{
    uint32_t mss = end->mss - 36u, len; /* RFC 6691: options count */
    uint32_t style = sim->plan.cut == 3 ? roll(sim, 3) : sim->plan.cut;
    if (end->segments > 120 && style < 2)
        style = 2;
    if (!again && chance(sim, sim->plan.gso) && most > mss)
        len = between(sim, mss + 1, 3 * mss);
    else
        len = style == 0 ? between(sim, 1, 3) : style == 1 ? between(sim, 1, 60) : chance(sim, 500) ? mss : between(sim, 1, mss);
    return len < most ? len : most;
}

static void send_octets(struct sim *sim, struct end *end, uint32_t from, uint32_t len)
{
    bool fin = end->closes && from + len == end->said && (len == 0 || chance(sim, 700));
    end->segments++;
    end_emit(sim, end, from, len, (uint8_t)(NQ_ACK | (len ? NQ_PSH : 0) | (fin ? NQ_FIN : 0)));
    uint32_t behind = from + len + fin;
    if (behind > end->next)
        end->next = behind;
    if (behind > end->high)
        end->high = behind;
}

void end_push(struct sim *sim, struct end *end)
{
    if (end->state != END_ESTABLISHED)
        return;
    uint32_t room = end->window < end->cwnd ? end->window : end->cwnd;
    while (end->next < end->said && end->next < end->una + room) {
        uint32_t most = (end->said < end->una + room ? end->said : end->una + room) - end->next;
        send_octets(sim, end, end->next, cut(sim, end, most, false));
    }
    if (end->closes && end->next == end->said && end->una + room > end->said)
        send_octets(sim, end, end->next, 0);
    bool waits = end->una < end->high || end->next < end->said + end->closes;
    if (waits && end->rto_at == NEVER)
        arm(sim, end);
}

/* The first octets that are missing there, cut anew; perhaps with some behind them that were never sent. */
static void send_again(struct sim *sim, struct end *end)
{
    uint32_t from = end->una, to = from;
    uint32_t most = end->said < end->una + end->window ? end->said : end->una + end->window;
    while (to < most && !end->sacked[to] && (to < end->high || chance(sim, 900)))
        to++;
    send_octets(sim, end, from, to > from ? cut(sim, end, to - from, true) : 0);
}

static void probe(struct sim *sim, struct end *end)
{
    if (chance(sim, 500) && end->una)
        end_emit(sim, end, end->una - 1, chance(sim, 500), NQ_ACK);
    else
        end_emit(sim, end, end->una, end->una < end->said, NQ_ACK);
    if (end->una < end->said && end->next == end->una)
        end->high = end->high > end->una + 1 ? end->high : end->una + 1;
}

void sender_timer(struct sim *sim, struct end *end)
{
    end->rto_at = NEVER;
    end->dups = 0;
    if (end->una == end->said + end->closes)
        return;
    if (end->window == 0)
        probe(sim, end);
    else if (end->una < end->high) {
        end->recover = end->high;
        send_again(sim, end);
    }
    end_push(sim, end);
    arm(sim, end);
}

/* A block of what was acknowledged before says nothing to a sender, and may be as inexact as the engine's memory of it. */
static void take_block(struct sim *sim, struct end *end, uint32_t left, uint32_t right)
{
    if (left == right || (int32_t)right <= (int32_t)end->una)
        return;
    bool sent = right <= end->high && left < right;
    if (!sent && !sim->plan.adversary)
        FAIL("%c hears that its octets %d to %d have arrived, and has sent %u", "CS"[end->self], (int)left, (int)right, end->high);
    if (sent)
        memset(end->sacked + left, 1, right - left);
}

static void take_blocks(struct sim *sim, struct end *end, const struct seen *seen)
{
    for (uint32_t at = 0; at < seen->options_len && seen->options[at];) {
        const uint8_t *option = seen->options + at;
        at += option[0] == 1 ? 1 : option[1];
        for (uint32_t edge = 2; option[0] == 5 && edge + 8 <= option[1]; edge += 8)
            take_block(sim, end, load32(option + edge) - end->iss - 1, load32(option + edge + 4) - end->iss - 1);
    }
}

static void take_window(struct end *end, const struct seen *seen, bool newer)
{
    uint32_t window = seen->window << (end->peer_scale == 0xff ? 0 : end->peer_scale);
    if (!newer && seq_before(seen->seq, end->window_seq))
        return;
    if (newer || seq_after(seen->seq, end->window_seq) || window > end->window)
        end->window = window;
    end->window_seq = seen->seq;
}

void sender_hears(struct sim *sim, struct end *end, const struct seen *seen)
{
    uint32_t ack = seen->ack - end->iss - 1, before = end->window;
    if ((int32_t)ack > (int32_t)end->high) {
        if (!sim->plan.adversary)
            FAIL("%c hears an ACK of octet %d and has sent %u", "CS"[end->self], (int)ack, end->high);
        end_answer(sim, end);
        return;
    }
    if ((int32_t)ack < (int32_t)end->una)
        return;
    bool newer = ack > end->una;
    take_window(end, seen, newer);
    take_blocks(sim, end, seen);
    if (newer) {
        end->una = ack;
        end->next = end->next > ack ? end->next : ack;
        end->dups = 0;
        end->rto = FIRST_RTO;
        end->rto_at = NEVER;
        if (end->una < end->recover && end->una < end->high)
            send_again(sim, end);
    } else if (!seen->len && end->una < end->high && end->window == before && ++end->dups == 3) {
        end->recover = end->high;
        send_again(sim, end);
    }
    end_push(sim, end);
}
