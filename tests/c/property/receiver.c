/*
 * receiver.c - what an end takes: as a kernel would, whatever lies in the window and is not there yet, in any order; what it
 * has twice it answers at once, with D-SACK (RFC 2883).
 */
#include "sim.h"

bool receiver_accepts(const struct end *end, const struct seen *seen)
{
    uint32_t at = seen->seq - end->irs - 1, behind = at + seen->len + (seen->flags & NQ_FIN ? 1 : 0);
    return (int32_t)behind >= (int32_t)(end->got + end->fin) && (int32_t)at <= (int32_t)end->edge;
}

static void store_edges(const struct end *end, uint8_t *into, uint32_t left, uint32_t right)
{
    for (int i = 0; i < 4; i++) {
        into[i] = (uint8_t)((end->irs + 1 + left) >> (24 - 8 * i));
        into[4 + i] = (uint8_t)((end->irs + 1 + right) >> (24 - 8 * i));
    }
}

static uint32_t block_end(const struct end *end, uint32_t at)
{
    while (at < end->heard_high && end->have[at])
        at++;
    return at;
}

uint32_t receiver_blocks(struct end *end, uint8_t *into)
{
    uint32_t blocks = 0, late = end->late_block;
    if (!end->sack)
        return 0;
    if (end->dsack_to > end->dsack_from)
        store_edges(end, into + 4 + 8 * blocks++, end->dsack_from, end->dsack_to);
    end->dsack_from = end->dsack_to = 0;
    if (late > end->got && late < end->heard_high && end->have[late]) {
        while (late > end->got && end->have[late - 1])
            late--;
        store_edges(end, into + 4 + 8 * blocks++, late, block_end(end, late));
    }
    for (uint32_t at = end->got; at < end->heard_high && blocks < 4; at++) {
        if (!end->have[at])
            continue;
        uint32_t to = block_end(end, at);
        if (at != late)
            store_edges(end, into + 4 + 8 * blocks++, at, to);
        at = to;
    }
    if (!blocks)
        return 0;
    memcpy(into, (uint8_t[]){ 1, 1, 5, (uint8_t)(2 + 8 * blocks) }, 4);
    return 4 + 8 * blocks;
}

/* Returns whether anything was new. */
static bool take_octets(const struct sim *sim, struct end *end, const struct seen *seen, uint32_t from, bool *twice)
{
    bool fresh = false;
    bool liar = sim->plan.adversary && end->self == CLIENT; /* it may have acknowledged what it has not */
    for (uint32_t i = 0; i < seen->len; i++) {
        uint32_t at = from + i;
        if (at >= STREAM_MAX || (int32_t)at >= (int32_t)end->edge)
            continue;
        if (end->have[at]) {
            *twice = true;
            if (at >= end->got && end->heard[at] != seen->payload[i] && !liar)
                FAIL("%c has octet %u as %02x, and now it comes as %02x", "CS"[end->self], at, end->heard[at], seen->payload[i]);
            continue;
        }
        end->have[at] = 1;
        end->heard[at] = seen->payload[i];
        fresh = true;
        if (at >= end->heard_high)
            end->heard_high = at + 1;
    }
    return fresh;
}

void receiver_hears(struct sim *sim, struct end *end, const struct seen *seen)
{
    uint32_t from = seen->seq - end->irs - 1, before = end->got;
    if (!seen->len && !(seen->flags & NQ_FIN))
        return;
    bool twice = false, fresh = take_octets(sim, end, seen, from, &twice);
    end->got = block_end(end, end->got);
    if (seen->flags & NQ_FIN && end->fin_at == UINT32_MAX && from + seen->len <= end->edge)
        end->fin_at = from + seen->len;
    bool was = end->fin;
    end->fin |= end->got == end->fin_at;
    if (fresh && from > before)
        end->late_block = from;
    if (twice && !fresh && from + seen->len <= end->heard_high) {
        end->dsack_from = from;
        end->dsack_to = from + seen->len;
    }
    bool gap = end->heard_high > end->got || end->got > before + seen->len;
    if (!fresh || gap || end->fin != was || chance(sim, 400))
        end_answer(sim, end);
    else if (end->ack_at == NEVER)
        end->ack_at = sim->now + between(sim, 1, 200) * MILLISECOND;
}
