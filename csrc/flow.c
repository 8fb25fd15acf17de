/*
 * flow.c - the flow table, handshake, teardown and expiry. It reads no payload.
 *
 * Who may speak for whom: a client knows both sequence numbers and can forge the server from outside, and conntrack lets it
 * through. So a flow's key holds the pair of interfaces, and each direction is bound to the (in, out) of its SYN. What comes
 * from elsewhere belongs to no flow and is dropped.
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "nq.h"

/* ---- SipHash-1-3 over a key of fixed size: nobody outside can choose flows that share a bucket ---- */

static uint64_t rotate(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

static void sip_round(uint64_t v[4])
{
    v[0] += v[1]; v[1] = rotate(v[1], 13); v[1] ^= v[0]; v[0] = rotate(v[0], 32);
    v[2] += v[3]; v[3] = rotate(v[3], 16); v[3] ^= v[2];
    v[0] += v[3]; v[3] = rotate(v[3], 21); v[3] ^= v[0];
    v[2] += v[1]; v[1] = rotate(v[1], 17); v[1] ^= v[2]; v[2] = rotate(v[2], 32);
}

static uint32_t hash(const struct nq_flow_table *table, const struct nq_key *key)
{
    uint64_t v[4] = { table->hash_key[0] ^ 0x736f6d6570736575u, table->hash_key[1] ^ 0x646f72616e646f6du,
                      table->hash_key[0] ^ 0x6c7967656e657261u, table->hash_key[1] ^ 0x7465646279746573u };
    uint64_t words[6] = { 0 };
    _Static_assert(sizeof *key <= sizeof words, "the key must fit");
    memcpy(words, key, sizeof *key);
    for (int i = 0; i < 6; i++) {
        v[3] ^= words[i];
        sip_round(v);
        v[0] ^= words[i];
    }
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++)
        sip_round(v);
    return (uint32_t)(v[0] ^ v[1] ^ v[2] ^ v[3]);
}

/* ---- the states: the table, and the one function that changes a state ---- */

#define NO FLOW_FREE

static const uint8_t next_state[FLOW_STATES][FLOW_EVENTS] = {
    /*                      SYN            SYN-ACK            ACK               first FIN         second FIN    all acked    RST          refused    replied       left */
    [FLOW_FREE]         = { FLOW_SYN_SENT, NO,                NO,               NO,               NO,           NO,          NO,          NO,        NO,           NO        },
    [FLOW_SYN_SENT]     = { FLOW_SYN_SENT, FLOW_SYN_RECEIVED, NO,               NO,               NO,           NO,          FLOW_CLOSED, FLOW_DEAD, NO,           NO        },
    [FLOW_SYN_RECEIVED] = { FLOW_SYN_SENT, FLOW_SYN_RECEIVED, FLOW_ESTABLISHED, NO,               NO,           NO,          FLOW_CLOSED, FLOW_DEAD, NO,           NO        },
    [FLOW_ESTABLISHED]  = { FLOW_SYN_SENT, NO,                NO,               FLOW_HALF_CLOSED, NO,           NO,          FLOW_CLOSED, FLOW_DEAD, FLOW_REFUSED, FLOW_LEFT },
    [FLOW_HALF_CLOSED]  = { FLOW_SYN_SENT, NO,                NO,               NO,               FLOW_CLOSING, NO,          FLOW_CLOSED, FLOW_DEAD, FLOW_REFUSED, FLOW_LEFT },
    [FLOW_CLOSING]      = { FLOW_SYN_SENT, NO,                NO,               NO,               NO,           FLOW_CLOSED, FLOW_CLOSED, FLOW_DEAD, NO,           NO        },
    [FLOW_CLOSED]       = { FLOW_SYN_SENT, NO,                NO,               NO,               NO,           FLOW_CLOSED, FLOW_CLOSED, FLOW_DEAD, NO,           NO        },
    [FLOW_REFUSED]      = { NO,            NO,                NO,               NO,               NO,           NO,          NO,          FLOW_DEAD, NO,           NO        },
    [FLOW_DEAD]         = { FLOW_SYN_SENT, NO,                NO,               NO,               NO,           NO,          NO,          FLOW_DEAD, NO,           NO        },
    [FLOW_LEFT]         = { FLOW_SYN_SENT, NO,                FLOW_ESTABLISHED, NO,               NO,           NO,          NO,          NO,        NO,           NO        },
};

#undef NO

static const uint8_t timer_of[FLOW_STATES] = {
    [FLOW_SYN_SENT] = TIMER_SYN, [FLOW_SYN_RECEIVED] = TIMER_SYN,
    [FLOW_ESTABLISHED] = TIMER_IDLE, [FLOW_HALF_CLOSED] = TIMER_IDLE,
    [FLOW_CLOSING] = TIMER_FIN, [FLOW_CLOSED] = TIMER_FIN,
    [FLOW_REFUSED] = TIMER_REFUSED, [FLOW_DEAD] = TIMER_TOMBSTONE,
    [FLOW_LEFT] = TIMER_TOMBSTONE,
};

static uint32_t index_of(const struct nq_flow_table *table, const struct nq_flow *flow)
{
    return (uint32_t)(flow - table->slots);
}

static uint8_t timer_at(const struct nq_flow *flow)
{
    uint8_t timer = timer_of[flow->state];
    return timer == TIMER_IDLE ? (uint8_t)(timer + flow->idle) : timer;
}

static void timer_unlink(struct nq_flow_table *table, struct nq_flow *flow)
{
    uint8_t timer = timer_at(flow);
    uint32_t *older = flow->older ? &table->slots[flow->older].newer : &table->timers[timer].oldest;
    uint32_t *newer = flow->newer ? &table->slots[flow->newer].older : &table->timers[timer].newest;
    *older = flow->newer;
    *newer = flow->older;
}

static void timer_link(struct nq_flow_table *table, struct nq_flow *flow, uint64_t now)
{
    uint8_t timer = timer_at(flow);
    uint32_t newest = table->timers[timer].newest, self = index_of(table, flow);
    flow->older = newest;
    flow->newer = 0;
    flow->seen = now;
    *(newest ? &table->slots[newest].newer : &table->timers[timer].oldest) = self;
    table->timers[timer].newest = self;
}

bool flow_on(struct nq_flow_table *table, struct nq_flow *flow, enum nq_flow_event event, uint64_t now)
{
    uint8_t state = next_state[flow->state][event];
    if (state == FLOW_FREE)
        return false;
    if (flow->state != FLOW_FREE)
        timer_unlink(table, flow);
    flow->state = state;
    timer_link(table, flow, now);
    return true;
}

/* Once a second is often enough for timers that count seconds, and spares the neighbours' cache lines. */
void flow_touch(struct nq_flow_table *table, struct nq_flow *flow, uint64_t now)
{
    if (now - flow->seen < 1000000000u)
        return;
    timer_unlink(table, flow);
    timer_link(table, flow, now);
}

void flow_silence(struct nq_flow_table *table, struct nq_flow *flow, uint32_t seconds)
{
    uint64_t asked = seconds ? seconds * 1000000000ull : table->timeout[TIMER_IDLE];
    int best = TIMER_IDLE;
    for (int timer = TIMER_IDLE; timer < TIMERS; timer++) {
        if (!table->timeout[timer])
            table->timeout[timer] = asked;
        if (table->timeout[timer] >= asked && (table->timeout[timer] < table->timeout[best] || table->timeout[best] < asked))
            best = timer;
        if (table->timeout[timer] == asked)
            break;
    }
    flow->idle = (uint8_t)(best - TIMER_IDLE);
}

struct nq_flow *flow_due(struct nq_flow_table *table, uint64_t now)
{
    for (int timer = 0; timer < TIMERS; timer++) {
        uint32_t oldest = table->timers[timer].oldest;
        if (oldest && now > table->slots[oldest].seen && now - table->slots[oldest].seen >= table->timeout[timer])
            return &table->slots[oldest];
    }
    return NULL;
}

/* ---- the table ---- */

static uint32_t power_of_two(uint32_t at_least)
{
    uint32_t size = 1;
    while (size < at_least)
        size <<= 1;
    return size;
}

bool flow_table_init(struct nq_flow_table *table, const struct nq_settings *settings)
{
    uint32_t buckets = power_of_two(settings->flows);
    size_t slots_octets = ((size_t)settings->flows + 1) * sizeof(struct nq_flow);
    *table = (struct nq_flow_table){ .mask = buckets - 1, .binding = settings->binding != NQ_BIND_OFF,
                                      .recorded = settings->recorded };
    table->memory_octets = slots_octets + (size_t)buckets * sizeof(uint32_t);
    table->memory = mmap(NULL, table->memory_octets, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (table->memory == MAP_FAILED)
        return false;
    table->slots = table->memory;
    table->buckets = (void *)((uint8_t *)table->memory + slots_octets);
    for (uint32_t i = settings->flows; i > 0; i--) {
        table->slots[i].chain = table->free;
        table->free = i;
    }
    memcpy(table->hash_key, settings->hash_key, sizeof table->hash_key);
    const uint32_t seconds[TIMERS] = {
        [TIMER_SYN] = settings->synwait, [TIMER_FIN] = settings->finwait, [TIMER_REFUSED] = NQ_REFUSED,
        [TIMER_TOMBSTONE] = settings->tombstone, [TIMER_IDLE] = settings->idle,
    };
    for (int timer = 0; timer < TIMERS; timer++)
        table->timeout[timer] = seconds[timer] * 1000000000ull;
    return true;
}

void flow_table_end(struct nq_flow_table *table)
{
    if (table->memory && table->memory != MAP_FAILED)
        munmap(table->memory, table->memory_octets);
    table->memory = NULL;
}

/* Returns whether the packet's source is end 0 of the key. */
static bool make_key(const struct nq_flow_table *table, const struct nq_view *view, struct nq_key *key)
{
    uint8_t source[16], destination[16];
    packet_address(source, view->source, view->family);
    packet_address(destination, view->destination, view->family);
    int order = memcmp(source, destination, 16);
    bool source_first = order < 0 || (order == 0 && view->source_port <= view->destination_port);
    memcpy(key->address[!source_first], source, 16);
    memcpy(key->address[source_first], destination, 16);
    key->port[!source_first] = view->source_port;
    key->port[source_first] = view->destination_port;
    uint32_t in = table->binding ? view->packet->in_ifindex : 0, out = table->binding ? view->packet->out_ifindex : 0;
    key->interfaces[0] = in < out ? in : out;
    key->interfaces[1] = in < out ? out : in;
    return source_first;
}

struct nq_flow *flow_find(struct nq_flow_table *table, const struct nq_view *view, unsigned *direction)
{
    struct nq_key key;
    bool source_first = make_key(table, view, &key);
    uint32_t index = table->buckets[hash(table, &key) & table->mask];
    while (index && memcmp(&table->slots[index].key, &key, sizeof key) != 0)
        index = table->slots[index].chain;
    if (!index)
        return NULL;
    *direction = table->slots[index].originator_first == source_first ? 0 : 1;
    return &table->slots[index];
}

struct nq_flow *flow_open(struct nq_flow_table *table, const struct nq_view *view, uint64_t now)
{
    uint32_t index = table->free;
    if (!index)
        return NULL;
    struct nq_flow *flow = &table->slots[index];
    table->free = flow->chain;
    table->used++;
    memset(flow, 0, sizeof *flow);
    flow->originator_first = make_key(table, view, &flow->key);
    uint32_t *bucket = &table->buckets[hash(table, &flow->key) & table->mask];
    flow->chain = *bucket;
    *bucket = index;
    flow->family = view->family;
    flow->id = ++table->next_id;
    flow->started = now;
    const struct nq_packet *packet = view->packet;
    flow->stream[0].in_ifindex = flow->stream[1].out_ifindex = packet->in_ifindex;
    flow->stream[0].out_ifindex = flow->stream[1].in_ifindex = packet->out_ifindex;
    return flow;
}

struct nq_flow *flow_dispensable(struct nq_flow_table *table)
{
    static const uint8_t order[] = { TIMER_FIN, TIMER_TOMBSTONE, TIMER_SYN };
    for (size_t i = 0; i < sizeof order; i++)
        if (table->timers[order[i]].oldest)
            return &table->slots[table->timers[order[i]].oldest];
    return NULL;
}

void flow_free(struct nq_flow_table *table, struct nq_flow *flow)
{
    uint32_t self = index_of(table, flow);
    uint32_t *at = &table->buckets[hash(table, &flow->key) & table->mask];
    while (*at != self)
        at = &table->slots[*at].chain;
    *at = flow->chain;
    if (flow->state != FLOW_FREE)
        timer_unlink(table, flow);
    flow->state = FLOW_FREE;
    flow->chain = table->free;
    table->free = self;
    table->used--;
}

/* ---- segments ---- */

static uint16_t default_mss(const struct nq_flow *flow) { return flow->family == 4 ? 536 : 1220; } /* RFC 9293, 3.7.1 */

static void take_options(struct nq_flow *flow, unsigned direction, const struct nq_tcp_options *options)
{
    flow->stream[direction].window_scale = options->window_scale;
    flow->stream[!direction].mss = options->mss ? options->mss : default_mss(flow);
}

static bool alive(const struct nq_flow *flow)
{
    return flow->state >= FLOW_SYN_RECEIVED && flow->state <= FLOW_CLOSING;
}

bool flow_replaced(const struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    bool syn = (view->flags & (NQ_SYN | NQ_ACK | NQ_RST | NQ_FIN)) == NQ_SYN;
    bool over = flow->state == FLOW_CLOSED || flow->state == FLOW_DEAD || flow->state == FLOW_LEFT;
    bool again = direction == 0 && view->seq + 1 == flow->stream[0].begin;
    return syn && over && !again;
}

/* Where both ends live on this host, both directions leave by OUTPUT: what this host sends cannot be forged from outside. */
static bool bound(const struct nq_flow_table *table, const struct nq_stream *own, const struct nq_packet *packet)
{
    bool between_us = own->out_ifindex == 0 && packet->in_ifindex == 0 && packet->out_ifindex == own->in_ifindex;
    return !table->binding || between_us ||
           (packet->in_ifindex == own->in_ifindex && packet->out_ifindex == own->out_ifindex);
}

bool flow_reopened(const struct nq_flow_table *table, const struct nq_flow *flow, unsigned direction,
                   const struct nq_view *view)
{
    bool syn_ack = (view->flags & (NQ_SYN | NQ_ACK | NQ_RST | NQ_FIN)) == (NQ_SYN | NQ_ACK);
    return flow->reopening && direction == 1 && syn_ack && view->ack == flow->reopening_syn.isn + 1 &&
           bound(table, &flow->stream[1], view->packet);
}

void flow_reopen(struct nq_flow_table *table, struct nq_flow *flow, uint64_t now)
{
    const struct nq_syn *syn = &flow->reopening_syn;
    stream_begin(&flow->stream[0], syn->isn);
    flow->syn_window = syn->window;
    take_options(flow, 0, &(struct nq_tcp_options){ .mss = syn->mss, .window_scale = syn->window_scale });
    flow->reopening = false;
    flow->given_up = false;
    flow->opaque = false;
    flow->recorded = false;
    flow->ended_by = 0;
    flow->started = now;
    flow->id = ++table->next_id;
    for (int i = 0; i < 2; i++)
        flow->stream[i].packets = flow->stream[i].octets = 0;
    flow_on(table, flow, ON_SYN, now);
}

static enum nq_reason on_syn(struct nq_flow_table *table, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                             const struct nq_tcp_options *options, uint64_t now)
{
    if (direction == 1)
        return flow->state == FLOW_SYN_SENT ? REASON_SIMULTANEOUS : REASON_HANDSHAKE;
    packet_normalise_syn(view, options);
    if (flow->state == FLOW_CLOSED)
        return REASON_HANDSHAKE; /* the SYN of a flow that is over, come late */
    if (alive(flow)) {
        /* Never believed on its own: a SYN can be forged. It goes on, and counts once the other end has agreed. */
        if (view->seq + 1 == flow->stream[0].begin)
            return REASON_NONE;
        flow->reopening = true;
        flow->reopening_syn = (struct nq_syn){ view->seq, view->window, options->mss, options->window_scale };
        return REASON_NONE;
    }
    stream_begin(&flow->stream[0], view->seq);
    flow_on(table, flow, ON_SYN, now);
    flow->syn_window = view->window;
    take_options(flow, 0, options);
    return REASON_NONE;
}

static enum nq_reason on_syn_ack(struct nq_flow_table *table, struct nq_pool *pool, struct nq_flow *flow,
                                 unsigned direction, struct nq_view *view, const struct nq_tcp_options *options, uint64_t now)
{
    struct nq_stream *originator = &flow->stream[0], *responder = &flow->stream[1];
    if (direction == 0 || view->ack != originator->begin)
        return REASON_HANDSHAKE;
    packet_normalise_syn(view, options);
    if (flow->state != FLOW_SYN_SENT && flow->state != FLOW_SYN_RECEIVED)
        return alive(flow) && view->seq + 1 == responder->begin ? REASON_NONE : REASON_HANDSHAKE;
    stream_begin(responder, view->seq);
    responder->edge += flow->syn_window;
    take_options(flow, 1, options);
    if (originator->window_scale == 0xff || responder->window_scale == 0xff) /* RFC 7323, 2.2: both or none */
        originator->window_scale = responder->window_scale = 0;
    stream_acknowledge(originator, pool, view->ack, view->window);
    flow_on(table, flow, ON_SYN_ACK, now);
    return REASON_NONE;
}

static enum nq_reason on_handshake(struct nq_flow_table *table, struct nq_pool *pool, struct nq_flow *flow,
                                   unsigned direction, struct nq_view *view, uint64_t now)
{
    struct nq_tcp_options options;
    enum nq_reason reason = !packet_options(view, &options) ? REASON_OPTIONS
                            : options.authenticated         ? REASON_AUTHENTICATED
                                                            : REASON_NONE;
    if (reason) /* as anybody can forge a SYN, it is no word on what to do with a living flow */
        return alive(flow) && !flow->given_up ? REASON_HANDSHAKE : reason;
    if (flow->policy->headroom)
        packet_lower_mss(view, &options, flow->policy->headroom);
    switch (view->flags & (NQ_SYN | NQ_ACK | NQ_RST | NQ_FIN)) {
    case NQ_SYN: return on_syn(table, flow, direction, view, &options, now);
    case NQ_SYN | NQ_ACK: return on_syn_ack(table, pool, flow, direction, view, &options, now);
    default: return REASON_FLAGS;
    }
}

/* RFC 5961, 3.2: at the receiver's next octet exactly. What that is, we know as the last ACK seen, or as the end of what was
 * forwarded. In SYN-SENT it must acknowledge the SYN (RFC 9293, 3.10.7.3). */
static enum nq_reason on_rst(struct nq_flow_table *table, struct nq_flow *flow, unsigned direction,
                             const struct nq_view *view, uint64_t now)
{
    const struct nq_stream *own = &flow->stream[direction], *peer = &flow->stream[!direction];
    bool valid = stream_out(own, view->seq) == own->acked || view->seq == own->next;
    if (flow->state == FLOW_SYN_SENT && direction == 1)
        valid = (view->flags & NQ_ACK) && view->ack == peer->begin;
    if (!valid)
        return REASON_RST_SEQUENCE;
    flow_on(table, flow, ON_RST, now);
    return REASON_NONE;
}

static enum nq_reason acceptable(const struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    const struct nq_stream *own = &flow->stream[direction], *peer = &flow->stream[!direction];
    uint32_t fin = view->flags & NQ_FIN ? 1 : 0;
    uint32_t end = view->seq + view->payload_len + fin;
    enum { OLDEST = 1 << 30 };
    if (flow->state == FLOW_SYN_SENT || (flow->state == FLOW_SYN_RECEIVED && direction == 1))
        return REASON_HANDSHAKE;
    /* One octet beyond the window is a window probe, and FIN takes no window. */
    uint32_t slack = own->log ? 1 + NQ_HEADROOM : 1;
    if (seq_before(stream_out(own, view->seq), own->acked - OLDEST) ||
        seq_after(stream_out(own, end), own->edge + slack + fin))
        return REASON_WINDOW;
    if (seq_after(view->ack, stream_next_out(peer)))
        return REASON_ACK_BEYOND;
    if (flow->state == FLOW_SYN_RECEIVED && view->ack != peer->next)
        return REASON_HANDSHAKE;
    if (own->fin && seq_after(end, view->payload_len ? own->next - 1 + fin : own->next)) /* FIN's place holds no octet */
        return REASON_AFTER_FIN;
    /* The store is gone, and a receiver that lost octets may have refused the RST. */
    if (flow->state == FLOW_CLOSED && end != view->seq && (!own->fin || seq_after(stream_out(own, end), own->acked)))
        return REASON_DEAD;
    return REASON_NONE;
}

static enum nq_reason on_segment(struct nq_flow_table *table, struct nq_pool *pool, struct nq_flow *flow,
                                 unsigned direction, struct nq_view *view, uint64_t now)
{
    struct nq_stream *own = &flow->stream[direction], *peer = &flow->stream[!direction];
    if (table->recorded)
        view->ack = stream_recorded_ack(peer, view->ack);
    enum nq_reason reason = acceptable(flow, direction, view);
    if (reason)
        return reason;
    if (flow->state == FLOW_SYN_RECEIVED)
        flow_on(table, flow, ON_ACK, now);
    if (flow->state != FLOW_CLOSED && !seq_before(view->ack, peer->acked)) /* closed before the answer: there is no scale */
        stream_acknowledge(peer, pool, view->ack, view->window << own->window_scale);
    if (flow->state == FLOW_CLOSING && own->acked == stream_next_out(own) && peer->acked == stream_next_out(peer))
        flow_on(table, flow, ON_ALL_ACKED, now);
    if (view->flags & NQ_URG)
        packet_clear_urgent(view);
    return REASON_NONE;
}

bool flow_bound(const struct nq_flow_table *table, const struct nq_flow *flow, unsigned direction,
                const struct nq_packet *packet)
{
    return bound(table, &flow->stream[direction], packet);
}

enum nq_reason flow_segment(struct nq_flow_table *table, struct nq_pool *pool, struct nq_flow *flow, unsigned direction,
                            struct nq_view *view, uint64_t now)
{
    if (!flow_bound(table, flow, direction, view->packet))
        return REASON_DIRECTION;
    if (view->flags & NQ_SYN)
        return on_handshake(table, pool, flow, direction, view, now);
    if (view->flags & NQ_RST)
        return on_rst(table, flow, direction, view, now);
    if (!(view->flags & NQ_ACK))
        return REASON_FLAGS;
    return on_segment(table, pool, flow, direction, view, now);
}
