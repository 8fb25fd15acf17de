/*
 * sim.h - a client and a server with TCPs of their own, the engine between them, and a network that loses, delays, reorders
 * and doubles. One schedule is one connection; all that happens in it follows from its seed.
 *
 *   client - end[CLIENT] - air - gate (the engine) - air - end[SERVER] - server
 *
 * Read in this order: plan (what is rolled), air (packets under way), end (TCP), client and server (the applications),
 * adversary (who lies), gate (the engine and what must hold of everything that leaves it), oracle (what the applications must
 * have read). The oracle is a parser of whole streams, written for clarity; it shares no line with the engine.
 */
#ifndef SIM_H
#define SIM_H

#include "harness.h"
#include "wire.h"

#define STREAM_MAX    24576     /* octets of one direction, with what is added */
#define STREAM_FULL   16384     /* where an application stops talking */
#define FLIGHT_MAX    6144      /* octets of a packet */
#define FLIGHTS       1024      /* packets under way or in the engine's hands */
#define REPLIES       1024
#define MICROSECOND   1000ull   /* ns; the simulation counts microseconds */
#define MILLISECOND   1000ull   /* us */
#define SECOND        1000000ull
#define NEVER         UINT64_MAX

struct sim;

/* ---- plan.c: what is rolled once a schedule ---- */

struct rules {                  /* a policy, in the oracle's words */
    const char *name;
    const char *const *verbs, *const *keywords;
    bool mask_keywords, remove_keywords;
    uint8_t banner;             /* enum nq_banner */
    const char *banner_text, *header;
    bool defuses;               /* bare newlines in message data become blanks */
};

enum { CLIENT_TO_GATE = 0, SERVER_TO_GATE, GATE_TO_CLIENT, GATE_TO_SERVER, HOPS };

struct link {
    uint32_t loss, twice;       /* of 1000 packets */
    uint32_t delay, jitter;     /* us */
};

struct plan {
    const struct rules *rules;
    struct nq_policy *policy;
    struct nq_settings settings;
    struct link link[HOPS];
    bool small;                 /* bounds that will be reached */
    bool adversary;
    bool talks_ahead;           /* the client waits for no reply */
    bool behind_body;           /* the client says more behind the final dot before it is answered */
    bool blocks;                /* packets lie in blocks of the pool */
    uint32_t groups;            /* of commands */
    uint32_t cut;               /* how segments are cut */
    uint32_t gso;               /* of 1000 segments */
};

uint32_t roll(struct sim *sim, uint32_t bound);
uint32_t between(struct sim *sim, uint32_t low, uint32_t high); /* both included */
bool chance(struct sim *sim, uint32_t of_1000);
void plan_make(struct sim *sim);
void plan_end(void);

/* ---- air.c: packets under way ---- */

struct flight {
    uint64_t at;                /* us */
    uint32_t order;
    uint32_t in_ifindex, out_ifindex, flags;
    uint32_t len;
    uint8_t hop;
    uint8_t octets[FLIGHT_MAX];
};

struct air {
    struct flight flights[FLIGHTS];
    uint16_t free[FLIGHTS], free_count;
    uint16_t heap[FLIGHTS], count;
    uint32_t order;
};

void air_begin(struct air *air);
struct flight *air_packet(struct air *air);     /* to be filled and sent; NULL: none is free, the packet is lost */
void air_send(struct sim *sim, struct flight *flight, unsigned hop);
uint64_t air_next(const struct air *air);
struct flight *air_arrives(struct air *air);
void air_drop(struct air *air, struct flight *flight);

/* ---- end.c, sender.c, receiver.c: a TCP of the size that matters here (RFC 9293, 5681, 2018, 2883) ---- */

enum { END_CLOSED = 0, END_SYN_SENT, END_SYN_RECEIVED, END_ESTABLISHED, END_RESET };

struct seen {                   /* a segment as it came */
    uint32_t seq, ack, window, len;
    uint8_t flags;
    const uint8_t *payload, *options;
    uint32_t options_len;
};

struct end {                    /* offsets count octets from the stream's first; FIN counts one */
    unsigned self;
    uint8_t state;
    bool sack;
    uint32_t iss, irs;
    uint16_t own_mss, mss;
    uint8_t own_scale, peer_scale;
    uint32_t said;              /* octets the application has written */
    bool closes;                /* and no more will come */
    uint32_t una, next, high, recover, window, window_seq, cwnd, dups, segments;
    uint64_t rto_at, rto;
    uint32_t got, heard_high;   /* in order; and behind the last out of order */
    uint32_t read;              /* by the application */
    uint32_t fin_at;            /* UINT32_MAX: not known */
    bool fin;                   /* all was received, the FIN, too */
    uint32_t buffer, edge, late_block, dsack_from, dsack_to;
    bool lazy;                  /* the application reads now and then only */
    uint64_t ack_at, read_at, answered_at;
    uint8_t say[STREAM_MAX], heard[STREAM_MAX], have[STREAM_MAX], sacked[STREAM_MAX];
};

void end_begin(struct sim *sim, unsigned self);
void end_connect(struct sim *sim, struct end *end);
void end_write(struct sim *sim, struct end *end, const void *octets, size_t len);
void end_text(struct sim *sim, struct end *end, const char *text);
void end_arrives(struct sim *sim, struct end *end, const struct flight *flight);
uint64_t end_next(const struct end *end);
void end_timers(struct sim *sim, struct end *end);
void end_push(struct sim *sim, struct end *end);
bool end_done(const struct end *end);
/* `len` octets from `offset` on, with all that this end has to acknowledge. */
void end_emit(struct sim *sim, struct end *end, uint32_t offset, uint32_t len, uint8_t flags);
void end_answer(struct sim *sim, struct end *end);      /* an ACK at once */
uint32_t end_window(const struct end *end);
void sender_hears(struct sim *sim, struct end *end, const struct seen *seen);
void sender_timer(struct sim *sim, struct end *end);
void receiver_hears(struct sim *sim, struct end *end, const struct seen *seen);
/* SACK blocks for the next ACK, as an option of a multiple of four octets. */
uint32_t receiver_blocks(struct end *end, uint8_t *into);
/* False where the segment lies outside the window (RFC 9293, 3.10.7.4). */
bool receiver_accepts(const struct end *end, const struct seen *seen);
/* False where it is no TCP segment over IPv4 or IPv6. */
bool segment_seen(struct seen *seen, const uint8_t *octets, uint32_t len);
uint32_t load32(const uint8_t *at);

/* ---- client.c, server.c, message.c: the applications ---- */

struct client {
    uint8_t doing;
    uint32_t replies, want, groups;
    uint32_t line_at;           /* of the reply line that is being read */
    uint16_t code;              /* of the last reply */
};

struct server {
    uint8_t mode;
    bool over;
    uint32_t line_at, auth_left, judged;
};

/* Called whenever octets can be read, a FIN has come or the connection was made. */
void client_reads(struct sim *sim);
void server_reads(struct sim *sim);
/* The code of a reply line, 0: none; its separator is ' ' where it ends the reply. */
uint16_t reply_code(const uint8_t *line, uint32_t len, char *separator);
/* Message data with its final dot. */
void message_write(struct sim *sim);
void blob_write(struct sim *sim, struct end *end);

/* ---- adversary.c ---- */

void adversary_acts(struct sim *sim);

/* ---- gate.c ---- */

struct gate {
    struct nq_engine *engine;
    struct wire wire;           /* addresses and ports, for wire_write() */
    struct flight *pending[FLIGHTS];
    uint32_t pending_id[FLIGHTS];
    uint32_t id, decided, resets;
    uint64_t tick_at;
    uint8_t *live;
    struct {                    /* by direction: who speaks */
        uint8_t left[STREAM_MAX], known[STREAM_MAX];
        uint32_t high, acked;   /* acked: offset that the receiver has acknowledged before the engine's eyes */
        uint8_t offered[STREAM_MAX][4], offers[STREAM_MAX];
    } way[2];
};

void gate_begin(struct sim *sim);
void gate_takes(struct sim *sim, struct flight *flight);
void gate_tick(struct sim *sim);
void gate_end(struct sim *sim);
uint64_t gate_count(const struct sim *sim, enum nq_reason reason);

/* ---- oracle.c ---- */

/* Fails where an application has read what it must not; `complete`: or has not read all. */
void oracle_judges(struct sim *sim, bool complete);

/* ---- trace.c ---- */

void trace(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
void trace_packet(struct sim *sim, const char *where, const uint8_t *octets, uint32_t len);

struct sim {
    uint64_t seed, now;         /* us */
    struct dice dice;
    bool tracing;
    uint32_t events;
    struct plan plan;
    struct air air;
    struct end end[2];
    struct client client;
    struct server server;
    struct gate gate;
};

#define FAIL(...) harness_fail(__FILE__, __LINE__, __VA_ARGS__)

#endif
