/*
 * nq.h - every limit and every structure of the engine, once; then what each file offers to the ones after it.
 *
 * The files in reading order, which is a packet's life:
 *   queue -> packet -> flow -> stream -> smtp_scan -> smtp_session -> inspect -> edit -> (refuse) -> queue
 * pool, event and policy serve them all; engine.c calls the stages in order and owns the memory. No stage calls an earlier
 * one: what a stage has to say, it returns.
 */
#ifndef NQ_H
#define NQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "engine.h"

/* ---- limits ----------------------------------------------------------------------------------------------------- */

#define NQ_FLOWS             65536   /* slots of the flow table */
#define NQ_LARGE_BLOCKS      1024    /* 66 KiB each */
#define NQ_SMALL_BLOCKS      16384   /* 2 KiB each */
#define NQ_EXTENTS           32768
#define NQ_HELD              4096
#define NQ_HELD_PER_FLOW     256     /* a quarter of the kernel's default queue of 1024 */
#define NQ_STORE_PER_STREAM  (16u << 20) /* above the largest window that Linux offers by default (tcp_rmem: 6 MiB) */
#define NQ_EVENTS            8192
#define NQ_SYNWAIT           30      /* seconds; the seeds' synwait-time, finwait-time and tcp idle-time */
#define NQ_FINWAIT           5
#define NQ_IDLE              3600
#define NQ_TOMBSTONE         120     /* two maximum segment lifetimes as Linux counts them */

#define NQ_LARGE_OCTETS      67584   /* a netlink message with a packet of 65,531 octets and its attributes */
#define NQ_SMALL_OCTETS      2048
#define NQ_COPY_MAX          1800    /* longer payload keeps its block; shorter is copied into a small one */

#define NQ_OUTPUTS           1024    /* outputs of one call; held_per_flow stays below */
#define NQ_SCRATCH_OCTETS    16384   /* packets of our own made in one call */
#define NQ_EXTENSION_HEADERS 8       /* IPv6 extension headers walked before giving up */
#define NQ_COMMAND_LINE_MAX  16384   /* octets of a command line that ever pass (RFC 4954 asks 12288 for AUTH) */
#define NQ_AWAITED           24      /* runs of like commands that await their replies */
#define NQ_WORD_MAX          31      /* octets of a verb or keyword */
#define NQ_NODES             1024    /* nodes of a prefix automaton */
#define NQ_LINE_KEPT         64      /* octets of a masked line kept for its event */

/* ---- wire structures: RFC 791, 8200, 9293; all fields in network order ------------------------------------------ */

struct nq_ipv4 {
    uint8_t version_ihl, tos;
    uint16_t total_length, id, fragment;
    uint8_t ttl, protocol;
    uint16_t checksum;
    uint8_t source[4], destination[4];
} __attribute__((packed));

struct nq_ipv6 {
    uint32_t version_class_flow;
    uint16_t payload_length;
    uint8_t next_header, hop_limit;
    uint8_t source[16], destination[16];
} __attribute__((packed));

struct nq_tcp {
    uint16_t source, destination;
    uint32_t seq, ack;
    uint8_t offset, flags;
    uint16_t window, checksum, urgent;
} __attribute__((packed));

enum { NQ_FIN = 0x01, NQ_SYN = 0x02, NQ_RST = 0x04, NQ_PSH = 0x08, NQ_ACK = 0x10, NQ_URG = 0x20 };

/* Sequence numbers compare modulo 2^32 (RFC 9293, 3.4). */
static inline bool seq_before(uint32_t a, uint32_t b) { return (int32_t)(a - b) < 0; }
static inline bool seq_after(uint32_t a, uint32_t b) { return (int32_t)(a - b) > 0; }
static inline uint32_t seq_min(uint32_t a, uint32_t b) { return seq_before(a, b) ? a : b; }
static inline uint32_t seq_max(uint32_t a, uint32_t b) { return seq_after(a, b) ? a : b; }

/* ---- reasons and counters --------------------------------------------------------------------------------------- */

enum nq_reason {
    REASON_NONE = 0,
#define REASON(symbol, name) REASON_##symbol,
#include "reasons.def"
#undef REASON
    REASONS
};

enum nq_counter {
#define COUNTER(symbol, name) COUNT_##symbol,
#include "counters.def"
#undef COUNTER
    COUNT_FIRST_REASON,         /* one counter for every reason follows */
    COUNTERS = COUNT_FIRST_REASON + REASONS
};

/* ---- pool.c: blocks, extents, held packets; all taken at the start ---------------------------------------------- */

struct nq_block {
    struct nq_block *next;      /* in the free list */
    uint8_t *data;
    uint32_t size;              /* NQ_LARGE_OCTETS or NQ_SMALL_OCTETS */
    uint32_t used;              /* octets appended; by the stream that owns it */
    uint32_t refs;
};

struct nq_extent {              /* a run of decided octets of one stream */
    struct nq_extent *next;
    struct nq_block *block;
    uint8_t *data;
    uint32_t seq, len;
};

struct nq_held {                /* a whole packet that waits for its decision */
    struct nq_held *next;
    struct nq_packet packet;    /* data lies in packet.block */
    uint32_t seq, end;          /* sequence range of payload and FIN */
    uint64_t since;
};

struct nq_pool {
    struct nq_block *large, *small;
    struct nq_extent *extents;
    struct nq_held *held;
    uint32_t large_free, small_free, extents_free, held_free;
    void *memory;
    size_t memory_octets;
};

/* Take everything from one mapping. Returns false where memory is short. */
bool pool_init(struct nq_pool *pool, const struct nq_settings *settings);
void pool_end(struct nq_pool *pool);
/* Each returns NULL when the pool is empty: a counted exception for the caller. A block comes with one reference. */
struct nq_block *pool_large(struct nq_pool *pool);
struct nq_block *pool_small(struct nq_pool *pool);
void block_drop(struct nq_pool *pool, struct nq_block *block);
struct nq_extent *pool_extent(struct nq_pool *pool);
void extent_drop(struct nq_pool *pool, struct nq_extent *extent);   /* its block, too */
struct nq_held *pool_held(struct nq_pool *pool);
void held_drop(struct nq_pool *pool, struct nq_held *held);         /* its block, too */

/* ---- packet.c: a view of a packet; no state, no allocation ------------------------------------------------------- */

struct nq_view {
    const struct nq_packet *packet;
    uint8_t *ip;
    struct nq_tcp *tcp;
    uint8_t *payload;
    const uint8_t *source, *destination;    /* 4 or 16 octets by family */
    uint32_t ip_header;         /* octets before the TCP header */
    uint32_t payload_len;
    uint32_t seq, ack;          /* host order */
    uint32_t window;            /* host order, unscaled */
    uint16_t source_port, destination_port; /* host order */
    uint8_t family;             /* 4 or 6 */
    uint8_t flags;              /* NQ_FIN ... */
    bool edited;                /* checksums must be made anew before it leaves */
};

struct nq_tcp_options {
    uint16_t mss;               /* 0: not given */
    uint8_t window_scale;       /* 0xff: not given */
    bool authenticated;         /* MD5 (RFC 2385) or AO (RFC 5925): cannot be edited */
    uint8_t *fast_open;         /* the option's first octet, or NULL (RFC 7413) */
};

/* Returns REASON_NONE and fills the view, or the reason why this is no TCP segment that can be judged. */
enum nq_reason packet_view(struct nq_view *view, const struct nq_packet *packet);
/* False where the options do not parse. */
bool packet_options(const struct nq_view *view, struct nq_tcp_options *options);
/* Does the TCP checksum hold, or is it the pseudo-header's only (a local sender's packet)? */
bool packet_checksum_valid(const struct nq_view *view);
/* Write IPv4 header and TCP checksums in full. */
void packet_checksum_write(struct nq_view *view);
/* Cut the payload to `octets` and take FIN and PSH off; lengths are rewritten, checksums are not. */
void packet_cut(struct nq_view *view, uint32_t octets);
/* One's complement sum over data, continuing `sum`; `folded` makes the 16-bit field of it. RFC 1071. */
uint64_t checksum_add(uint64_t sum, const uint8_t *data, size_t len);
uint16_t checksum_fold(uint64_t sum);

/* ---- policy.c: the compiled policy; read-only once installed ---------------------------------------------------- */

enum nq_verb {
    VERB_NONE = 0,
#define VERB(symbol, text, flags) VERB_##symbol,
#include "smtp_verbs.def"
#undef VERB
    VERB_PRIVATE,               /* a word that the policy allows and we know nothing of */
    VERB_MASKED,                /* became X: the server will refuse it */
    VERB_GREETING,              /* what the banner replies to */
    VERB_MESSAGE,               /* the end of data */
    VERBS
};

/* flags of smtp_verbs.def */
enum { VERB_WAITS = 1 /* what follows is judged only once the server has replied */ };

struct nq_automaton {           /* prefixes of words; node 0 is the start */
    uint16_t next[NQ_NODES][40];/* by automaton_class(); 0: leaves the automaton */
    uint8_t word[NQ_NODES];     /* id of the word that ends at this node; 0: none */
    uint16_t nodes;
};

struct nq_policy {
    char name[32];
    struct nq_automaton verbs, keywords;
    bool mask_verbs, mask_keywords;
    uint8_t banner;             /* enum nq_banner */
    uint8_t exceptions[NQ_EXCEPTIONS];
    uint64_t max_data;
};

uint8_t verb_flags(uint8_t verb);
/* The node behind `octet`, letters in either case; 0 where no word goes on like this. */
uint16_t automaton_step(const struct nq_automaton *automaton, uint16_t node, uint8_t octet);

/* ---- smtp_scan.c: resumable scanning of lines and bodies; no meaning -------------------------------------------- */

enum nq_phase {                 /* where in a line the scanner stands */
    PHASE_START = 0,            /* before a line's first octet */
    PHASE_WORD,                 /* inside the verb or keyword */
    PHASE_REST,                 /* behind it */
    PHASE_OVERWRITE,            /* inside a line that becomes X */
};

struct nq_line {
    uint32_t len;               /* octets of the line so far, its end included */
    uint16_t node;              /* of the automaton */
    uint8_t phase;              /* enum nq_phase */
    uint8_t word;               /* the word's id once it is complete */
    bool cr;                    /* the last octet was CR */
    uint8_t code_digits;        /* replies: digits seen, 0xff: a line without a code */
    uint8_t separator;          /* replies: octet behind the code */
    uint16_t code;              /* replies */
};

enum nq_token {
    TOKEN_NONE = 0,             /* all octets consumed, nothing more to say */
    TOKEN_WORD,                 /* a word is complete and known; its separator is not consumed */
    TOKEN_UNKNOWN,              /* the octet at the cursor leaves the automaton; not consumed */
    TOKEN_BARE_CR,              /* an octet other than LF follows a CR; it is not consumed */
    TOKEN_NUL,                  /* a NUL stands at the cursor; not consumed */
    TOKEN_LINE,                 /* a line end was consumed */
    TOKEN_CODE,                 /* replies: code and separator are known; consumed */
    TOKEN_TOO_LONG,             /* the line reaches NQ_COMMAND_LINE_MAX; not consumed */
    TOKEN_END_OF_DATA           /* the line with the final dot was consumed */
};

struct nq_cursor {              /* octets under judgement */
    uint8_t *at;
    uint8_t *end;
};

enum nq_token scan_command(struct nq_line *line, const struct nq_automaton *automaton, struct nq_cursor *cursor);
enum nq_token scan_overwrite(struct nq_line *line, struct nq_cursor *cursor, uint8_t *from[1], uint8_t *to[1]);
enum nq_token scan_line(struct nq_line *line, struct nq_cursor *cursor);
enum nq_token scan_reply(struct nq_line *line, struct nq_cursor *cursor);
enum nq_token scan_keyword(struct nq_line *line, const struct nq_automaton *automaton, struct nq_cursor *cursor);
enum nq_token scan_body(uint8_t *state, struct nq_cursor *cursor);

#endif
