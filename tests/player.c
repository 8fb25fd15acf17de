/*
 * player.c - a dialogue through the engine: two TCP ends that acknowledge at once and never lie, as in wire.py, but fast
 * enough to play every story in every cut. The ends check lengths, checksums and sequence of all that reaches them, and keep
 * what their applications read. It shares no code with the engine; it calls the two entries by pointers.
 */
#include <arpa/inet.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "player.h"

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16, IP_OCTETS = 20, TCP_OCTETS = 20, SEGMENT_MAX = 65000, ROUNDS = 200000 };

static const uint8_t address[2][4] = { { 192, 0, 2, 10 }, { 198, 51, 100, 25 } };
static const uint16_t port[2] = { 40000, 25 };
static const uint32_t link_of[2] = { 11, 22 };

struct sent_packet {
    size_t at;                  /* in player->octets */
    uint32_t len;
    bool decided;
};

struct end {
    uint8_t *heard;
    uint32_t heard_len, room, withheld;
    uint32_t isn, peer_isn, sent;
    bool reset, finished, closed, greeted;
    uint32_t owes;              /* acknowledgements */
};

struct player {
    struct player_calls calls;
    uint64_t now;
    bool deaf;                  /* what leaves is lost */
    struct end end[2];
    uint8_t *octets;            /* every packet as it was sent, for those that are held and leave later as they came */
    size_t octets_len, octets_room;
    struct sent_packet *packets;
    uint32_t packet_count, packet_room;
    uint8_t scratch[65536];
    char fault[160];
};

static void fault(struct player *player, const char *text)
{
    if (!player->fault[0])
        snprintf(player->fault, sizeof player->fault, "%s", text);
}

static void *grown(void *at, size_t octets)
{
    void *larger = realloc(at, octets);
    if (!larger)
        abort();
    return larger;
}

/* ---- packets ---- */

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

static uint32_t get16(const uint8_t *at) { return (uint32_t)at[0] << 8 | at[1]; }

static uint32_t get32(const uint8_t *at) { return get16(at) << 16 | get16(at + 2); }

/* RFC 1071; an odd octet at the end counts as the high one. Words are added as they lie in memory: the sum of swapped octets is
 * the swapped sum (RFC 1071, 2 (B)). `sum` holds numbers as they are written. */
static uint32_t folded(uint32_t sum, const uint8_t *at, uint32_t len)
{
    uint64_t words = 0;
    uint8_t last[4] = { 0 };
    for (; len >= 4; at += 4, len -= 4) {
        uint32_t word;
        memcpy(&word, at, 4);
        words += word;
    }
    memcpy(last, at, len);
    uint32_t word;
    memcpy(&word, last, 4);
    words += word;
    while (words >> 16)
        words = (words & 0xffff) + (words >> 16);
    sum += ntohs((uint16_t)words);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

static uint32_t tcp_sum(const uint8_t *packet, uint32_t len)
{
    return folded(folded(6 + len - IP_OCTETS, packet + 12, 8), packet + IP_OCTETS, len - IP_OCTETS);
}

/* A segment of `side` in player->scratch. Returns its length. */
static uint32_t build(struct player *player, unsigned side, uint32_t seq, uint8_t flags, const uint8_t *payload, uint32_t len)
{
    static const uint8_t mss[4] = { 2, 4, 5, 0xb4 };
    struct end *own = &player->end[side];
    uint32_t options = flags & SYN ? sizeof mss : 0, total = IP_OCTETS + TCP_OCTETS + options + len;
    uint8_t *ip = player->scratch, *tcp = ip + IP_OCTETS;
    memset(ip, 0, IP_OCTETS + TCP_OCTETS);
    ip[0] = 0x45;
    put16(ip + 2, total);
    put16(ip + 4, 1);
    put16(ip + 6, 0x4000);
    ip[8] = 64;
    ip[9] = 6;
    memcpy(ip + 12, address[side], 4);
    memcpy(ip + 16, address[1 - side], 4);
    put16(ip + 10, folded(0, ip, IP_OCTETS) ^ 0xffff);
    put16(tcp, port[side]);
    put16(tcp + 2, port[1 - side]);
    put32(tcp + 4, seq);
    put32(tcp + 8, flags & ACK ? own->peer_isn + 1 + own->heard_len + own->finished : 0);
    tcp[12] = (uint8_t)((TCP_OCTETS + options) / 4 << 4);
    tcp[13] = flags;
    put16(tcp + 14, 65000);
    memcpy(tcp + TCP_OCTETS, mss, options);
    if (len)
        memcpy(tcp + TCP_OCTETS + options, payload, len);
    put16(tcp + 16, tcp_sum(ip, total) ^ 0xffff);
    return total;
}

static void keep(struct player *player, uint32_t len)
{
    if (player->octets_len + len > player->octets_room)
        player->octets = grown(player->octets, player->octets_room = 2 * player->octets_room + len + 65536);
    if (player->packet_count == player->packet_room)
        player->packets = grown(player->packets, (player->packet_room = 2 * player->packet_room + 64) * sizeof *player->packets);
    memcpy(player->octets + player->octets_len, player->scratch, len);
    player->packets[player->packet_count++] = (struct sent_packet){ player->octets_len, len, false };
    player->octets_len += len;
}

/* ---- the ends ---- */

static void hear(struct end *own, uint32_t at, const uint8_t *payload, uint32_t len)
{
    if (at > own->heard_len || at + len <= own->heard_len)
        return;
    uint32_t known = own->heard_len - at;
    if (own->heard_len + len > own->room)
        own->heard = grown(own->heard, own->room = 2 * own->room + len);
    memcpy(own->heard + own->heard_len, payload + known, len - known);
    own->heard_len += len - known;
}

static void take(struct player *player, const uint8_t *packet, uint32_t len)
{
    if (player->deaf)
        return;
    if (len < IP_OCTETS + TCP_OCTETS || packet[0] != 0x45 || get16(packet + 2) != len)
        return fault(player, "a packet whose IP header contradicts its length");
    const uint8_t *tcp = packet + IP_OCTETS;
    uint32_t header = (uint32_t)(tcp[12] >> 4) * 4;
    if (folded(0, packet, IP_OCTETS) != 0xffff || tcp_sum(packet, len) != 0xffff)
        return fault(player, "a packet with a wrong checksum");
    if (header < TCP_OCTETS || IP_OCTETS + header > len)
        return fault(player, "a TCP header that is longer than its packet");
    unsigned side = memcmp(packet + 16, address[0], 4) != 0;
    struct end *own = &player->end[side];
    uint32_t payload = len - IP_OCTETS - header, flags = tcp[13], seq = get32(tcp + 4);
    if (flags & RST) {
        if (own->greeted && seq != own->peer_isn + 1 + own->heard_len + own->finished)
            return fault(player, "a RST that its receiver would not believe (RFC 5961)");
        own->reset = true;
        return;
    }
    if (flags & SYN) {
        own->peer_isn = seq;
        own->greeted = true;
        return;
    }
    int32_t at = (int32_t)(seq - own->peer_isn - 1);
    if (at >= 0 && payload)
        hear(own, (uint32_t)at, tcp + header, payload);
    if (flags & FIN && at + (int32_t)payload == (int32_t)own->heard_len)
        own->finished = true;
    own->owes += payload || flags & FIN;
}

static void deliver(struct player *player, const struct nq_result *result)
{
    for (uint32_t i = 0; i < result->count; i++) {
        const struct nq_output *output = &result->outputs[i];
        if (output->kind == NQ_INJECTION) {
            take(player, output->data, output->len);
            continue;
        }
        struct sent_packet *sent = output->id < player->packet_count ? &player->packets[output->id] : NULL;
        if (!sent || sent->decided) {
            fault(player, "two verdicts on one packet, or one on none");
            continue;
        }
        sent->decided = true;
        if (output->verdict == NQ_ACCEPT)
            take(player, output->data ? output->data : player->octets + sent->at, output->data ? output->len : sent->len);
    }
}

static void transmit(struct player *player, unsigned side, uint32_t seq, uint8_t flags, const uint8_t *payload, uint32_t len,
                     uint32_t known)
{
    uint32_t total = build(player, side, seq, flags, payload, len);
    struct nq_packet packet = {
        .id = player->packet_count, .in_ifindex = link_of[side], .out_ifindex = link_of[1 - side], .flags = known,
        .len = total, .data = player->scratch,
    };
    keep(player, total);
    player->now += 1000;
    deliver(player, player->calls.packet(player->calls.engine, &packet, player->now));
}

/* Every end acknowledges what it has got, until nobody owes anything. */
static void settle(struct player *player)
{
    for (unsigned round = 0; player->end[0].owes || player->end[1].owes; round++) {
        unsigned side = player->end[0].owes ? 0 : 1;
        struct end *own = &player->end[side];
        own->owes--;
        if (round > ROUNDS)
            return fault(player, "the ends acknowledge each other without end");
        if (!own->reset)
            transmit(player, side, own->isn + 1 + own->sent, ACK, NULL, 0, 0);
    }
}

/* An end speaks until it was reset, or the other end closed though the dialogue does not say so. */
static bool speaks(const struct player *player, unsigned side)
{
    const struct end *own = &player->end[side];
    return !own->reset && !own->closed && (!own->finished || player->end[1 - side].closed);
}

static void segment(struct player *player, unsigned side, const uint8_t *payload, uint32_t len, uint32_t known, bool twice)
{
    struct end *own = &player->end[side], *peer = &player->end[1 - side];
    uint32_t seq = own->isn + 1 + own->sent;
    if (!speaks(player, side))
        return;
    transmit(player, side, seq, ACK | PSH, payload, len, known);
    own->sent += known & NQ_TRUNCATED ? 0 : len; /* as if it were lost */
    settle(player);
    if (twice && !own->reset) {
        transmit(player, side, seq, ACK | PSH, payload, len, known);
        settle(player);
    }
    if (own->sent > peer->heard_len && own->sent - peer->heard_len > own->withheld)
        own->withheld = own->sent - peer->heard_len;
}

static void say(struct player *player, const struct player_turn *turn, uint32_t index, const struct player_cut *cut)
{
    uint32_t step = cut->step ? cut->step : SEGMENT_MAX;
    player->deaf = turn->what == TURN_LOST;
    if (turn->what == TURN_AGAIN)
        player->end[turn->side].sent -= turn->len;
    for (uint32_t from = 0, to; from < turn->len; from = to) {
        to = turn->len - from > step ? from + step : turn->len;
        if (cut->turn == index && from < cut->at && cut->at < to)
            to = cut->at;
        segment(player, turn->side, turn->octets + from, to - from, turn->what == TURN_TRUNCATED ? NQ_TRUNCATED : 0,
                cut->twice);
    }
    player->deaf = false;
}

static void finish(struct player *player, unsigned side, uint8_t flags, bool twice)
{
    struct end *own = &player->end[side];
    uint32_t seq = own->isn + 1 + own->sent;
    if (!speaks(player, side))
        return;
    transmit(player, side, seq, flags, NULL, 0, 0);
    own->sent += flags & FIN;
    own->closed = true;
    settle(player);
    if (twice && !own->reset) {
        transmit(player, side, seq, flags, NULL, 0, 0);
        settle(player);
    }
}

static void pass_time(struct player *player, uint32_t seconds)
{
    for (; seconds; seconds--) {
        player->now += 1000000000;
        deliver(player, player->calls.tick(player->calls.engine, player->now));
        settle(player);
    }
}

static void open_connection(struct player *player, uint32_t opening)
{
    struct end *client = &player->end[0], *server = &player->end[1];
    if (opening == OPENING_MISSED) {
        client->peer_isn = server->isn;
        server->peer_isn = client->isn;
        client->greeted = server->greeted = true;
        return;
    }
    transmit(player, 0, client->isn, SYN, NULL, 0, 0);
    if (server->greeted && opening == OPENING_SEEN)
        transmit(player, 1, server->isn, SYN | ACK, NULL, 0, 0);
    if (client->greeted)
        transmit(player, 0, client->isn + 1, ACK, NULL, 0, 0);
}

/* ---- the border to Python ---- */

struct player *player_new(void)
{
    struct player *player = calloc(1, sizeof *player);
    if (!player)
        abort();
    return player;
}

void player_free(struct player *player)
{
    for (unsigned side = 0; side < 2; side++)
        free(player->end[side].heard);
    free(player->octets);
    free(player->packets);
    free(player);
}

static void begin(struct player *player, const struct player_calls *calls, uint64_t now)
{
    for (unsigned side = 0; side < 2; side++) {
        struct end *end = &player->end[side];
        *end = (struct end){ .heard = end->heard, .room = end->room, .isn = side ? 9000 : 1000 };
    }
    player->calls = *calls;
    player->now = now;
    player->octets_len = 0;
    player->packet_count = 0;
    player->deaf = false;
    player->fault[0] = 0;
}

void player_play(struct player *player, const struct player_calls *calls, const struct player_turn *turns, uint32_t count,
                 const struct player_cut *cut, uint64_t now, struct player_outcome *outcome)
{
    begin(player, calls, now);
    open_connection(player, cut->opening);
    for (uint32_t i = 0; i < count; i++)
        switch (turns[i].what) {
        case TURN_SAY:
        case TURN_LOST:
        case TURN_AGAIN:
        case TURN_TRUNCATED: say(player, &turns[i], i, cut); break;
        case TURN_FIN: finish(player, turns[i].side, FIN | ACK, cut->twice); break;
        case TURN_RST: finish(player, turns[i].side, RST, cut->twice); break;
        case TURN_SECONDS: pass_time(player, turns[i].len); break;
        }
    for (unsigned side = 0; side < 2; side++) {
        const struct end *end = &player->end[side];
        outcome->heard[side] = end->heard;
        outcome->heard_len[side] = end->heard_len;
        outcome->withheld[side] = end->withheld;
        outcome->reset[side] = end->reset;
        outcome->finished[side] = end->finished;
    }
    outcome->now = player->now;
    outcome->fault = player->fault;
}
