/*
 * wire.c - builds packets, hands them to the engine, and delivers what leaves to the two ends. It shares no code with the
 * engine for building packets or summing them, so that a mistake there does not hide itself here.
 */
#include "wire.h"

#include <stdio.h>
#include <stdlib.h>

#include "harness.h"

static const uint8_t ipv4_address[2][4] = { { 192, 0, 2, 1 }, { 198, 51, 100, 25 } };
static const uint8_t ipv6_address[2][16] = {
    { 0x20, 0x01, 0x0d, 0xb8, [15] = 0x01 },
    { 0x20, 0x01, 0x0d, 0xb8, 0, 1, [15] = 0x25 },
};

/* ---- policy and settings ---- */

static const char *verbs[] = { "AUTH", "DATA", "EHLO", "ETRN", "HELO", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET", "SAML",
                               "SEND", "SOML", "STARTTLS", "VRFY" };
static const char *keywords[] = { "8BITMIME", "AUTH", "BINARYMIME", "CHECKPOINT", "DSN", "ENHANCEDSTATUSCODES", "ETRN", "HELP",
                                  "PIPELINING", "SIZE", "VRFY" };

struct nq_policy *wire_policy(bool masks)
{
    char error[NQ_ERROR_MAX];
    struct nq_policy_spec spec = {
        .name = masks ? "masks" : "plain",
        .verbs = verbs, .verb_count = sizeof verbs / sizeof *verbs,
        .keywords = keywords, .keyword_count = sizeof keywords / sizeof *keywords,
        .mask_verbs = 1, .mask_keywords = masks, .banner = masks ? NQ_BANNER_ASA : NQ_BANNER_PASS, .alert = 1,
    };
    struct nq_policy *policy = nq_policy_new(&spec, error);
    CHECK(policy != NULL);
    return policy;
}

struct nq_settings wire_settings(void)
{
    struct nq_settings settings;
    nq_settings_default(&settings);
    settings.flows = 64;
    settings.large_blocks = 32;
    settings.small_blocks = 128;
    settings.extents = 256;
    settings.held = 64;
    settings.held_per_flow = 32;
    settings.events = 1024;
    memcpy(settings.hash_key, "0123456789abcdef", 16);
    return settings;
}

/* ---- checksums ---- */

uint32_t naive_sum(uint32_t sum, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        sum += i % 2 ? data[i] : (uint32_t)data[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

uint16_t naive_fold(uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* Where the TCP header begins and the packet ends; 0 where it is none. */
static uint32_t tcp_at(const uint8_t *packet, uint32_t len, uint32_t *end)
{
    if (packet[0] >> 4 == 4) {
        *end = (uint32_t)packet[2] << 8 | packet[3];
        return packet[9] == 6 && *end <= len ? (packet[0] & 15u) * 4 : 0;
    }
    uint32_t at = 40;
    uint8_t next = packet[6];
    *end = 40 + ((uint32_t)packet[4] << 8 | packet[5]);
    for (; next != 6 && at + 8 <= len; at += 8u + packet[at + 1] * 8u)
        next = packet[at];
    return next == 6 && *end <= len ? at : 0;
}

bool naive_checksums(const uint8_t *packet, uint32_t len)
{
    uint32_t end, at = tcp_at(packet, len, &end);
    if (!at)
        return false;
    bool ipv4 = packet[0] >> 4 == 4;
    if (ipv4 && naive_fold(naive_sum(0, packet, at)) != 0xffff)
        return false;
    uint32_t sum = naive_sum(6 + (end - at), packet + (ipv4 ? 12 : 8), ipv4 ? 8 : 32);
    return naive_fold(naive_sum(sum, packet + at, end - at)) == 0xffff;
}

/* ---- building ---- */

static void store16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void store32(uint8_t *at, uint32_t value)
{
    store16(at, value >> 16);
    store16(at + 2, value);
}

static uint32_t write_ip(const struct wire *wire, unsigned from, uint32_t tcp_octets, uint8_t *into)
{
    if (wire->family == 6) {
        memset(into, 0, 40);
        into[0] = 0x60;
        store16(into + 4, tcp_octets);
        into[6] = 6;
        into[7] = 62;
        memcpy(into + 8, ipv6_address[from], 16);
        memcpy(into + 24, ipv6_address[!from], 16);
        return 40;
    }
    memset(into, 0, 20);
    into[0] = 0x45;
    store16(into + 2, 20 + tcp_octets);
    into[8] = 62;
    into[9] = 6;
    memcpy(into + 12, ipv4_address[from], 4);
    memcpy(into + 16, ipv4_address[!from], 4);
    store16(into + 10, (uint16_t)~naive_fold(naive_sum(0, into, 20)));
    return 20;
}

uint32_t wire_write(const struct wire *wire, const struct segment *segment, uint8_t *into)
{
    uint32_t header = 20 + segment->options_len, octets = header + segment->len;
    uint32_t at = write_ip(wire, segment->from, octets, into);
    uint8_t *tcp = into + at;
    memset(tcp, 0, 20);
    store16(tcp, segment->from == CLIENT ? wire->client_port : wire->server_port);
    store16(tcp + 2, segment->from == CLIENT ? wire->server_port : wire->client_port);
    store32(tcp + 4, segment->seq);
    store32(tcp + 8, segment->ack);
    tcp[12] = (uint8_t)(header / 4 << 4);
    tcp[13] = segment->flags;
    store16(tcp + 14, segment->window);
    if (segment->options_len)
        memcpy(tcp + 20, segment->options, segment->options_len);
    if (segment->len)
        memcpy(tcp + header, segment->payload, segment->len);
    bool ipv4 = wire->family != 6;
    uint32_t sum = naive_sum(6 + octets, into + (ipv4 ? 12 : 8), ipv4 ? 8 : 32);
    sum = naive_sum(sum, tcp, octets);
    store16(tcp + 16, (uint16_t)~naive_fold(sum));
    if (segment->bad_checksum)
        tcp[16] ^= 0x40;
    return at + octets;
}

/* ---- what leaves ---- */

static void deliver_octet(struct side *side, uint32_t seq, uint32_t offset, uint8_t octet)
{
    if (offset >= WIRE_STREAM_MAX)
        return;
    if (side->known[offset]) {
        if (!seq_before(seq, side->acked) && side->arrived[offset] != octet)
            harness_fail(__FILE__, __LINE__, "octet %u of the stream left as %02x, and now as %02x", offset,
                         side->arrived[offset], octet);
        return;
    }
    side->arrived[offset] = octet;
    side->known[offset] = 1;
    if (offset >= side->high)
        side->high = offset + 1;
}

/* As a receiver with endless patience: any order, first wins. */
static void deliver(struct wire *wire, const uint8_t *octets, uint32_t len)
{
    struct nq_packet packet = { .data = (uint8_t *)octets, .len = len };
    struct nq_view view;
    if (packet_view(&view, &packet) != REASON_NONE || view.flags & (NQ_SYN | NQ_RST))
        return;
    unsigned to = view.destination_port == wire->server_port ? SERVER : CLIENT;
    if (view.destination_port != (to == SERVER ? wire->server_port : wire->client_port))
        return;
    struct side *side = &wire->side[to];
    uint32_t begin = wire->side[!to].isn + 1;
    for (uint32_t i = 0; i < view.payload_len; i++)
        deliver_octet(side, view.seq + i, view.seq + i - begin, view.payload[i]);
    while (!side->fin && side->got - begin < WIRE_STREAM_MAX && side->known[side->got - begin])
        side->got++;
    if (view.flags & NQ_FIN && view.seq + view.payload_len == side->got && !side->fin) {
        side->fin = true;
        side->got++;
    }
}

static struct kept *take_kept(struct wire *wire, uint32_t id)
{
    for (struct kept **at = &wire->kept; *at; at = &(*at)->next)
        if ((*at)->id == id) {
            struct kept *found = *at;
            *at = found->next;
            return found;
        }
    harness_fail(__FILE__, __LINE__, "a decision on packet %u, which waits for none", id);
}

static void take_decision(struct wire *wire, const struct nq_output *out)
{
    struct kept *kept = take_kept(wire, out->id);
    wire->decided++;
    wire->outcomes[out->id] = out->verdict == NQ_DROP ? DROPPED : out->data ? EDITED : ACCEPTED;
    if (out->verdict != NQ_DROP) {
        CHECK_EQUAL(out->verdict, NQ_ACCEPT);
        if (out->data) {
            CHECK(out->len <= kept->len);
            CHECK(naive_checksums(out->data, out->len));
        }
        deliver(wire, out->data ? out->data : kept->data, out->data ? out->len : kept->len);
    }
    free(kept->data);
    free(kept);
}

static void take_injection(struct wire *wire, const struct nq_output *out)
{
    struct nq_packet packet = { .data = out->data, .len = out->len };
    struct nq_view view;
    CHECK_EQUAL(packet_view(&view, &packet), REASON_NONE);
    CHECK(naive_checksums(out->data, out->len));
    if (!(view.flags & NQ_RST)) {
        deliver(wire, out->data, out->len);
        return;
    }
    wire->side[view.destination_port == wire->server_port ? SERVER : CLIENT].resets++;
}

static void take_result(struct wire *wire, const struct nq_result *result)
{
    wire->result = result;
    for (uint32_t i = 0; i < result->count; i++)
        if (result->outputs[i].kind == NQ_DECISION)
            take_decision(wire, &result->outputs[i]);
        else
            take_injection(wire, &result->outputs[i]);
}

/* ---- what goes in ---- */

static void keep(struct wire *wire, const uint8_t *octets, uint32_t len)
{
    struct kept *kept = malloc(sizeof *kept);
    *kept = (struct kept){ .next = wire->kept, .id = wire->id, .len = len, .data = malloc(len ? len : 1) };
    memcpy(kept->data, octets, len);
    wire->kept = kept;
}

/* What a side acknowledges, it has: what is below leaves with any value. Believed as far as anything was delivered to it. */
static void note_ack(struct wire *wire, const uint8_t *octets, uint32_t len)
{
    struct nq_packet packet = { .data = (uint8_t *)octets, .len = len };
    struct nq_view view;
    if (packet_view(&view, &packet) != REASON_NONE || !(view.flags & NQ_ACK))
        return;
    unsigned from = view.source_port == wire->server_port ? SERVER : CLIENT;
    struct side *side = &wire->side[from];
    uint32_t highest = wire->side[!from].isn + 1 + side->high + side->fin;
    if (seq_after(view.ack, side->acked) && !seq_after(view.ack, highest))
        side->acked = view.ack;
}

/* What went in and became of it, one line a packet, where the environment holds WIRE_TRACE. */
static void trace(const struct wire *wire, const uint8_t *octets, const struct nq_packet *packet)
{
    static const char *const became[] = { "held", "accepted", "edited", "dropped" };
    struct nq_view view;
    if (!getenv("WIRE_TRACE"))
        return;
    struct nq_packet copy = { .data = (uint8_t *)octets, .len = packet->len };
    fprintf(stderr, "%6u %s: %u octets, interfaces %u %u", wire->id, became[wire->outcomes[wire->id]], packet->len,
            packet->in_ifindex, packet->out_ifindex);
    if (packet_view(&view, &copy) == REASON_NONE) {
        unsigned from = view.source_port == wire->server_port ? SERVER : CLIENT;
        fprintf(stderr, ", ports %u %u, seq +%d, ack +%d, %u octets, flags %02x, \"%.*s\"", view.source_port,
                view.destination_port, (int)(view.seq - wire->side[from].isn), (int)(view.ack - wire->side[!from].isn),
                view.payload_len, view.flags, (int)view.payload_len, view.payload);
    }
    fprintf(stderr, "\n");
}

enum outcome wire_send_raw(struct wire *wire, const uint8_t *octets, struct nq_packet packet)
{
    CHECK(wire->id + 1 < WIRE_PACKETS);
    packet.id = ++wire->id;
    packet.block = wire->blocks && packet.len <= NQ_LARGE_OCTETS ? pool_large(engine_pool(wire->engine)) : NULL;
    free(wire->live);
    wire->live = packet.block ? NULL : malloc(packet.len ? packet.len : 1);
    packet.data = packet.block ? packet.block->data : wire->live;
    memcpy(packet.data, octets, packet.len);
    keep(wire, octets, packet.len);
    note_ack(wire, octets, packet.len);
    take_result(wire, nq_engine_packet(wire->engine, &packet, wire->now));
    trace(wire, octets, &packet);
    if (packet.block)
        block_drop(engine_pool(wire->engine), packet.block);
    return wire->outcomes[wire->id];
}

enum outcome wire_send(struct wire *wire, struct segment segment)
{
    uint8_t *octets = malloc(120 + segment.len);
    bool usual = !segment.in_ifindex && !segment.out_ifindex;
    struct nq_packet packet = {
        .flags = segment.packet_flags,
        .in_ifindex = !usual ? segment.in_ifindex : segment.from == CLIENT ? CLIENT_IFINDEX : SERVER_IFINDEX,
        .out_ifindex = !usual ? segment.out_ifindex : segment.from == CLIENT ? SERVER_IFINDEX : CLIENT_IFINDEX,
        .len = wire_write(wire, &segment, octets),
    };
    enum outcome outcome = wire_send_raw(wire, octets, packet);
    free(octets);
    return outcome;
}

static enum outcome send_octets(struct wire *wire, unsigned from, uint32_t seq, uint8_t flags, const void *octets, uint32_t len)
{
    return wire_send(wire, (struct segment){ .from = from, .seq = seq, .ack = wire->side[from].got, .flags = flags,
                                             .window = 0xffff, .payload = octets, .len = len });
}

enum outcome wire_say_octets(struct wire *wire, unsigned from, const void *octets, uint32_t len)
{
    uint32_t seq = wire->side[from].next;
    wire->side[from].next += len;
    return send_octets(wire, from, seq, NQ_ACK | NQ_PSH, octets, len);
}

enum outcome wire_say(struct wire *wire, unsigned from, const char *text)
{
    return wire_say_octets(wire, from, text, (uint32_t)strlen(text));
}

enum outcome wire_say_at(struct wire *wire, unsigned from, uint32_t offset, const void *octets, uint32_t len)
{
    return send_octets(wire, from, wire->side[from].isn + 1 + offset, NQ_ACK, octets, len);
}

enum outcome wire_ack(struct wire *wire, unsigned from)
{
    return send_octets(wire, from, wire->side[from].next, NQ_ACK, NULL, 0);
}

enum outcome wire_fin(struct wire *wire, unsigned from)
{
    return send_octets(wire, from, wire->side[from].next++, NQ_ACK | NQ_FIN, NULL, 0);
}

void wire_tick(struct wire *wire, uint64_t now)
{
    wire->now = now;
    take_result(wire, nq_engine_tick(wire->engine, now));
}

/* ---- beginning and end ---- */

static void begin_side(struct side *side, uint32_t isn, uint32_t other_isn)
{
    uint8_t *arrived = side->arrived, *known = side->known;
    memset(known, 0, side->high);
    *side = (struct side){ .isn = isn, .next = isn + 1, .got = other_isn + 1, .acked = other_isn + 1, .arrived = arrived,
                           .known = known };
}

void wire_next_flow(struct wire *wire, uint16_t client_port)
{
    uint32_t client = wire->side[CLIENT].isn, server = wire->side[SERVER].isn;
    wire->client_port = client_port;
    begin_side(&wire->side[CLIENT], client, server);
    begin_side(&wire->side[SERVER], server, client);
}

void wire_open(struct wire *wire, const struct nq_settings *settings, struct nq_policy *policy)
{
    char error[NQ_ERROR_MAX];
    *wire = (struct wire){ .settings = *settings, .policy = policy, .now = 1700000000ull * 1000000000, .family = 4,
                           .client_port = 40000, .server_port = 25 };
    wire->engine = nq_engine_new(settings, policy, error);
    if (!wire->engine)
        harness_fail(__FILE__, __LINE__, "no engine: %s", error);
    wire->whole = *engine_pool(wire->engine);
    wire->outcomes = calloc(WIRE_PACKETS, 1);
    for (int i = 0; i < 2; i++) {
        wire->side[i].arrived = calloc(WIRE_STREAM_MAX + 1, 1);
        wire->side[i].known = calloc(WIRE_STREAM_MAX + 1, 1);
        wire->side[i].isn = i == CLIENT ? 1000 : 777000;
    }
    wire_next_flow(wire, wire->client_port);
}

static void check_pool(struct wire *wire)
{
    const struct nq_pool *pool = engine_pool(wire->engine);
    CHECK_EQUAL(pool->large_free, wire->whole.large_free);
    CHECK_EQUAL(pool->small_free, wire->whole.small_free);
    CHECK_EQUAL(pool->extents_free, wire->whole.extents_free);
    CHECK_EQUAL(pool->held_free, wire->whole.held_free);
    CHECK_EQUAL(pool->logs_free, wire->whole.logs_free);
}

void wire_close(struct wire *wire)
{
    struct nq_event events[64];
    for (uint32_t round = 0; round == 0 || wire_count(wire, "flows"); round++) {
        CHECK(round <= wire->settings.flows);
        while (nq_engine_events(wire->engine, events, 64))
            ;
        take_result(wire, nq_engine_drain(wire->engine, wire->now));
    }
    CHECK_EQUAL(wire->decided, wire->id);
    CHECK(wire->kept == NULL);
    wire_tick(wire, wire->now); /* what was decided in one call is given back at the next */
    check_pool(wire);
    nq_engine_free(wire->engine);
    nq_policy_free(wire->policy);
    for (int i = 0; i < 2; i++) {
        free(wire->side[i].arrived);
        free(wire->side[i].known);
    }
    free(wire->outcomes);
    free(wire->live);
}

void wire_handshake(struct wire *wire)
{
    static const uint8_t options[8] = { 2, 4, WIRE_MSS >> 8, WIRE_MSS & 0xff, 3, 3, 7, 1 };
    struct segment syn = { .from = CLIENT, .seq = wire->side[CLIENT].isn, .flags = NQ_SYN, .window = 0xffff,
                           .options = options, .options_len = sizeof options };
    struct segment syn_ack = syn;
    syn_ack.from = SERVER;
    syn_ack.seq = wire->side[SERVER].isn;
    syn_ack.ack = wire->side[CLIENT].isn + 1;
    syn_ack.flags = NQ_SYN | NQ_ACK;
    CHECK_EQUAL(wire_send(wire, syn), ACCEPTED);
    CHECK_EQUAL(wire_send(wire, syn_ack), ACCEPTED);
    CHECK_EQUAL(wire_ack(wire, CLIENT), ACCEPTED);
}

/* ---- asking ---- */

uint32_t wire_arrived_len(const struct wire *wire, unsigned side)
{
    return wire->side[side].got - wire->side[!side].isn - 1 - wire->side[side].fin;
}

const char *wire_arrived(struct wire *wire, unsigned side)
{
    static char text[WIRE_STREAM_MAX + 1];
    uint32_t len = wire_arrived_len(wire, side);
    memcpy(text, wire->side[side].arrived, len);
    text[len] = 0;
    return text;
}

uint64_t wire_count(const struct wire *wire, const char *name)
{
    for (uint32_t i = 0; i < nq_counter_count(); i++)
        if (strcmp(nq_counter_name(i), name) == 0)
            return nq_engine_counter(wire->engine, i);
    harness_fail(__FILE__, __LINE__, "no counter is called %s", name);
}

uint64_t wire_drops(const struct wire *wire, enum nq_reason reason)
{
    return nq_engine_counter(wire->engine, COUNT_FIRST_REASON + reason);
}
