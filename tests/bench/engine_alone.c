/*
 * engine_alone.c - the engine without the kernel: packets that lie in memory go through nq_engine_packet(), and the same memory
 * through memcpy(), or through nothing but parsing and the TCP checksum.
 *
 * Connections are laid out once, packet behind packet, as both ends would say it. Each run has connections of its own, from
 * other ports. As the engine edits in place, what an edit may touch is restored from a copy before each run, outside the time
 * that counts: the first PRISTINE octets of every packet, so that only what is longer than that (message data) must pass
 * unedited; alone_run() fails where it does not.
 *
 * As in the queue's loop, a packet lies in a block of its own, so that keeping it costs the engine a reference and no copy.
 * These blocks never reach its pool: we keep one reference to each.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include <arpa/inet.h>

#include "nq.h"

enum { PRISTINE = 256, HEADERS = 40, ALIGNED = 64, FIRST_PORT = 10000, PORTS = 50000, TICK_EVERY = 4096, SUBJECT_MAX = 96 };

typedef const struct nq_result *(*packet_entry)(struct nq_engine *, const struct nq_packet *, uint64_t);
typedef const struct nq_result *(*tick_entry)(struct nq_engine *, uint64_t);

struct item {
    struct nq_packet packet;
    struct nq_block block;
    uint8_t *pristine;
    uint32_t payload, kept, connection;
    uint8_t side;               /* 0: the client says it */
};

struct alone {
    packet_entry packet;
    tick_entry tick;
    struct nq_engine *engine;
    struct item *items;
    uint32_t count, room;
    uint8_t *memory, *target;   /* packets and their pristine beginnings; where memcpy() copies to */
    size_t used, size;
    uint32_t next[2];           /* sequence numbers, as each end counts */
    uint32_t ahead[2];          /* by how much the other end's numbers for this end's octets are ahead of its own */
    uint32_t flags;             /* NQ_CSUM_* of all packets */
    uint32_t runs, connections;
    uint64_t now;
    char error[SUBJECT_MAX];
};

static uint64_t nanoseconds(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC_RAW, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static uint8_t *reserved(size_t octets)
{
    uint8_t *memory = mmap(NULL, octets, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void alone_free(struct alone *alone)
{
    if (alone->memory)
        munmap(alone->memory, alone->size);
    if (alone->target)
        munmap(alone->target, alone->size);
    free(alone->items);
    free(alone);
}

/* packet, tick: addresses of the engine's entries; `room` packets with `octets` of memory in all. NULL where it is short. */
struct alone *alone_new(uintptr_t packet, uintptr_t tick, uintptr_t engine, uint32_t room, size_t octets, uint32_t flags)
{
    struct alone *alone = calloc(1, sizeof *alone);
    if (!alone)
        return NULL;
    *alone = (struct alone){ .packet = (packet_entry)packet, .tick = (tick_entry)tick, .engine = (struct nq_engine *)engine,
                             .room = room, .size = octets, .flags = flags, .now = 1700000000ull * 1000000000u };
    alone->items = calloc(room, sizeof *alone->items);
    alone->memory = reserved(octets);
    alone->target = reserved(octets);
    if (alone->items && alone->memory && alone->target)
        return alone;
    alone_free(alone);
    return NULL;
}

static uint8_t *take(struct alone *alone, size_t octets)
{
    size_t size = (octets + ALIGNED - 1) & ~(size_t)(ALIGNED - 1);
    if (alone->used + size > alone->size)
        return NULL;
    alone->used += size;
    return alone->memory + alone->used - size;
}

/* ---- laying a connection out ---- */

static void write_headers(const struct alone *alone, const struct item *item, uint8_t flags)
{
    static const uint8_t address[2][4] = { { 192, 0, 2, 10 }, { 198, 51, 100, 25 } };
    unsigned side = item->side;
    struct nq_ipv4 *ip = (void *)item->packet.data;
    struct nq_tcp *tcp = (void *)(ip + 1);
    *ip = (struct nq_ipv4){ .version_ihl = 0x45, .total_length = htons((uint16_t)item->packet.len), .ttl = 64, .protocol = 6 };
    memcpy(ip->source, address[side], 4);
    memcpy(ip->destination, address[!side], 4);
    *tcp = (struct nq_tcp){ .source = htons(side ? 25 : FIRST_PORT), .destination = htons(side ? FIRST_PORT : 25),
                            .seq = htonl(alone->next[side]), .ack = flags & NQ_ACK ? htonl(alone->next[!side]) : 0,
                            .offset = 5 << 4, .flags = flags, .window = 0xffff };
}

/* One packet; `flags` as in TCP, and a SYN alone begins the next connection. False where there is no room left. */
bool alone_packet(struct alone *alone, uint32_t side, uint8_t flags, const uint8_t *payload, uint32_t len)
{
    uint8_t *data = take(alone, HEADERS + len);
    uint32_t kept = HEADERS + len < PRISTINE ? HEADERS + len : PRISTINE;
    uint8_t *pristine = take(alone, kept);
    if (!data || !pristine || alone->count == alone->room)
        return false;
    if (flags == NQ_SYN) {
        alone->connections++;
        alone->next[0] = 1000, alone->next[1] = 900000;
    }
    struct item *item = &alone->items[alone->count++];
    *item = (struct item){ .pristine = pristine, .kept = kept, .payload = len, .connection = alone->connections,
                           .side = (uint8_t)side };
    item->block = (struct nq_block){ .data = data, .size = NQ_LARGE_OCTETS, .refs = 1 };
    item->packet = (struct nq_packet){ .id = alone->count, .in_ifindex = 3 + side, .out_ifindex = 4 - side, .data = data,
                                       .flags = alone->flags, .len = HEADERS + len, .block = &item->block };
    write_headers(alone, item, flags);
    memcpy(data + HEADERS, payload, len);
    struct nq_view view = { .packet = &item->packet };
    if (packet_view(&view, &item->packet))
        return false;
    packet_checksum_write(&view);
    memcpy(pristine, data, kept);
    alone->next[side] += len + !!(flags & (NQ_SYN | NQ_FIN));
    return true;
}

/* Octets in packets of at most `cut`; the other end acknowledges every `every` of them, and the last; 0: never. */
bool alone_say(struct alone *alone, uint32_t side, const uint8_t *octets, uint32_t len, uint32_t cut, uint32_t every)
{
    uint32_t packets = 0;
    for (uint32_t at = 0; at < len; at += cut) {
        uint32_t size = len - at < cut ? len - at : cut;
        if (!alone_packet(alone, side, NQ_ACK | NQ_PSH, octets + at, size))
            return false;
        bool due = every && (++packets % every == 0 || at + size == len);
        if (due && !alone_packet(alone, !side, NQ_ACK, NULL, 0))
            return false;
    }
    return true;
}

uint32_t alone_count(const struct alone *alone) { return alone->count; }

uint64_t alone_octets(const struct alone *alone, uint32_t from, uint32_t to, uint32_t side)
{
    uint64_t octets = 0;
    for (uint32_t i = from; i < to; i++)
        octets += alone->items[i].side == side ? alone->items[i].payload : 0;
    return octets;
}

/* ---- running it ---- */

/* A 16-bit field of the TCP segment changes, and its checksum with it (RFC 1624). */
static void change(struct nq_tcp *tcp, void *field, uint16_t value)
{
    uint16_t old;
    memcpy(&old, field, sizeof old);
    memcpy(field, &value, sizeof value);
    uint32_t sum = (uint16_t)~tcp->checksum + (uint32_t)(uint16_t)~old + value;
    sum = (sum & 0xffff) + (sum >> 16);
    tcp->checksum = (uint16_t)~(sum + (sum >> 16));
}

static void change32(struct nq_tcp *tcp, uint32_t *field, uint32_t value)
{
    uint16_t halves[2];
    memcpy(halves, &value, sizeof value);
    change(tcp, field, halves[0]);
    change(tcp, (uint8_t *)field + 2, halves[1]);
}

/* All packets as they were laid out, but from other ports. */
void alone_restore(struct alone *alone)
{
    uint32_t first = alone->runs++ * alone->connections;
    alone->error[0] = 0;
    for (uint32_t i = 0; i < alone->count; i++) {
        struct item *item = &alone->items[i];
        memcpy(item->packet.data, item->pristine, item->kept);
        struct nq_tcp *tcp = (void *)(item->packet.data + sizeof(struct nq_ipv4));
        uint16_t port = (uint16_t)(FIRST_PORT + (first + item->connection) % PORTS);
        change(tcp, item->side ? &tcp->destination : &tcp->source, htons(port));
    }
}

/* What left is longer or shorter than what came: the other end will acknowledge what it got. */
static void follow(struct alone *alone, const struct item *item, uint32_t next, const struct nq_output *output)
{
    const struct nq_packet left = { .data = output->data, .len = output->len };
    struct nq_view view = { .packet = &left };
    if (packet_view(&view, &left) == REASON_NONE && view.payload_len)
        alone->ahead[item->side] = view.seq + view.payload_len - next;
}

static bool judged(struct alone *alone, const struct item *item, uint32_t next)
{
    const struct nq_result *result = alone->packet(alone->engine, &item->packet, alone->now);
    bool passed = result->count == 1 && result->outputs->kind == NQ_DECISION && result->outputs->verdict == NQ_ACCEPT;
    if (!passed || (result->outputs->data && item->payload > PRISTINE && item->side == 0)) {
        snprintf(alone->error, sizeof alone->error, "packet %u with %u octets was %s", item->packet.id, item->payload,
                 passed ? "edited" : "not simply accepted");
        return false;
    }
    if (result->outputs->data && item->payload)
        follow(alone, item, next, result->outputs);
    return true;
}

/* Let the packets from..to pass. Nanoseconds that it took; 0 and a sentence where one did not pass as it was. */
uint64_t alone_run(struct alone *alone, uint32_t from, uint32_t to)
{
    uint64_t began = nanoseconds();
    for (uint32_t i = from; i < to; i++) {
        struct item *item = &alone->items[i];
        struct nq_tcp *tcp = (void *)(item->packet.data + sizeof(struct nq_ipv4));
        if (tcp->flags == NQ_SYN)
            alone->ahead[0] = alone->ahead[1] = 0;
        uint32_t ahead = alone->ahead[!item->side];
        if (ahead && (tcp->flags & NQ_ACK))
            change32(tcp, &tcp->ack, htonl(ntohl(tcp->ack) + ahead));
        alone->now += 1000;
        if (!judged(alone, item, ntohl(tcp->seq) + item->payload))
            return 0;
        if (i % TICK_EVERY == 0)
            alone->tick(alone->engine, alone->now);
    }
    return nanoseconds() - began;
}

const char *alone_error(const struct alone *alone) { return alone->error; }

/* The yardsticks. memcpy() of what the client says; nanoseconds. */
uint64_t alone_copy(struct alone *alone, uint32_t from, uint32_t to)
{
    uint8_t *into = alone->target;
    uint64_t began = nanoseconds();
    for (uint32_t i = from; i < to; i++)
        if (alone->items[i].side == 0) {
            memcpy(into, alone->items[i].packet.data + HEADERS, alone->items[i].payload);
            into += alone->items[i].payload;
        }
    __asm__ volatile("" : : "r"(alone->target) : "memory"); /* somebody might read it */
    return nanoseconds() - began;
}

/* Parsing and checksumming alone; nanoseconds, or 0 where a packet is not right. */
uint64_t alone_sum(struct alone *alone, uint32_t from, uint32_t to)
{
    uint64_t began = nanoseconds();
    for (uint32_t i = from; i < to; i++) {
        struct nq_view view = { .packet = &alone->items[i].packet };
        if (packet_view(&view, &alone->items[i].packet) || !packet_checksum_valid(&view))
            return 0;
    }
    return nanoseconds() - began;
}
