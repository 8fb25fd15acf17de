/*
 * wire.h - a client and a server with the engine between them: segments go in, and what leaves is delivered and checked.
 *
 * Every packet that goes in and every one that comes out passes the same assertions, whatever the test is about:
 *   - each packet gets one decision, at once or later, and nothing else does;
 *   - what leaves is no longer than what came, parses, and has right checksums where the engine has touched it;
 *   - an octet of a stream that its receiver has not acknowledged leaves with one value, however often it leaves;
 *   - after the engine is drained, every block, extent and held packet is back in the pool.
 */
#ifndef WIRE_H
#define WIRE_H

#include "nq.h"

enum { CLIENT = 0, SERVER = 1 };

#define CLIENT_IFINDEX 3
#define SERVER_IFINDEX 4
#define WIRE_STREAM_MAX (1u << 18)  /* octets of one direction that a wire remembers */
#define WIRE_PACKETS    (1u << 20)  /* packets of one wire */
#define WIRE_MSS        1460

struct segment {
    unsigned from;              /* CLIENT or SERVER */
    uint32_t seq, ack;
    uint8_t flags;
    uint32_t window;
    const void *options;        /* a multiple of four octets */
    uint32_t options_len;
    const void *payload;
    uint32_t len;
    uint32_t in_ifindex, out_ifindex;   /* both 0: as `from` says */
    uint32_t packet_flags;      /* NQ_CSUM_NOT_READY ... */
    bool bad_checksum;
};

enum outcome { PENDING = 0, ACCEPTED, EDITED, DROPPED };

struct side {
    uint32_t isn;
    uint32_t next;              /* sequence number of the next octet it says */
    uint32_t got;               /* of the next octet it wants */
    uint32_t acked;             /* the highest ACK of it that the engine has seen */
    uint8_t *arrived;           /* octets from the other side, by offset */
    uint8_t *known;             /* which of them did arrive */
    uint32_t high;              /* offset behind the last of them */
    bool fin;                   /* the other side's FIN has arrived */
    uint32_t resets;            /* RSTs of the engine's own to it */
};

struct kept {                   /* a packet that the engine holds */
    struct kept *next;
    uint32_t id, len;
    uint8_t *data;
};

struct wire {
    struct nq_settings settings;
    struct nq_policy *policy;
    struct nq_engine *engine;
    uint64_t now;
    uint8_t family;
    uint16_t client_port, server_port;
    bool blocks;                /* packets lie in blocks of the engine's pool, as the queue loop's do */
    struct side side[2];
    uint32_t id;                /* of the last packet */
    uint32_t decided;           /* how many packets have their decision */
    uint8_t *outcomes;          /* enum outcome by id */
    struct kept *kept;
    const struct nq_result *result;
    uint8_t *live;              /* the last packet's octets, where they lie in no block */
    struct nq_pool whole;       /* what the pool counted at the beginning */
};

/* A policy of the fifteen verbs of ESMTP and STARTTLS; keywords and banner as `asa` masks them where `masks`. */
struct nq_policy *wire_policy(bool masks);
/* Small enough to reach its bounds, large enough for a dialogue. */
struct nq_settings wire_settings(void);

/* The wire owns the policy and frees it. */
void wire_open(struct wire *wire, const struct nq_settings *settings, struct nq_policy *policy);
/* Drains the engine and checks that nothing is missing. */
void wire_close(struct wire *wire);
/* Forget both sides and take another port: the next opening is another flow's. */
void wire_next_flow(struct wire *wire, uint16_t client_port);
/* The three packets of the opening, with MSS and window scale. */
void wire_handshake(struct wire *wire);

/* Write a packet; returns its octets. `into` must have room for 60 + 60 + len. */
uint32_t wire_write(const struct wire *wire, const struct segment *segment, uint8_t *into);
/* Send it. Returns what became of it: PENDING where it is held. */
enum outcome wire_send(struct wire *wire, struct segment segment);
/* Send octets that are a packet or are not. */
enum outcome wire_send_raw(struct wire *wire, const uint8_t *octets, struct nq_packet packet);
/* The next octets of one side, in one segment, acknowledging all it has got. */
enum outcome wire_say(struct wire *wire, unsigned from, const char *text);
enum outcome wire_say_octets(struct wire *wire, unsigned from, const void *octets, uint32_t len);
/* Octets said before, or that will be said: at `offset` from the stream's first, without moving on. */
enum outcome wire_say_at(struct wire *wire, unsigned from, uint32_t offset, const void *octets, uint32_t len);
enum outcome wire_ack(struct wire *wire, unsigned from);
enum outcome wire_fin(struct wire *wire, unsigned from);
void wire_tick(struct wire *wire, uint64_t now);

/* What has arrived in order at that side, as a string; valid until the next call. */
const char *wire_arrived(struct wire *wire, unsigned side);
uint32_t wire_arrived_len(const struct wire *wire, unsigned side);
/* A counter by its name, "drop.ack-beyond" say. */
uint64_t wire_count(const struct wire *wire, const char *name);
uint64_t wire_drops(const struct wire *wire, enum nq_reason reason);

/* RFC 1071, the slow way: the 16-bit field in host order, over `data` continued from `sum`. */
uint32_t naive_sum(uint32_t sum, const uint8_t *data, size_t len);
uint16_t naive_fold(uint32_t sum);
/* Are the IPv4 header's and the TCP checksum right? */
bool naive_checksums(const uint8_t *packet, uint32_t len);

#endif
