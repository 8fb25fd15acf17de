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
#define NQ_REPLY_OCTETS      255     /* a refusal's text, with its line end */
#define NQ_OURS_OCTETS       (60 + 12 + NQ_REPLY_OCTETS) /* a packet of our own: IPv6 and TCP header, timestamps, text */
#define NQ_REFUSED           60      /* seconds that a client has to read why it was refused */
#define NQ_REPEAT            1000000000u /* ns after which a refusal that was not acknowledged is sent again */
#define NQ_DISCARD           (64u << 20) /* octets of a refused client that are acknowledged and thrown away */
#define NQ_TOMBSTONE         120     /* two maximum segment lifetimes as Linux counts them */

#define NQ_LARGE_OCTETS      67584   /* a netlink message with a packet of 65,531 octets and its attributes */
#define NQ_SMALL_OCTETS      2048
#define NQ_COPY_MAX          1800    /* longer payload keeps its block; shorter is copied into a small one */

#define NQ_INJECTIONS        64      /* packets of our own made in one call */
#define NQ_HOLD              10      /* seconds that a packet is held at most: its sender has sent it again by then */
#define NQ_EXTENSION_HEADERS 8       /* IPv6 extension headers walked before giving up */
#define NQ_COMMAND_LINE_MAX  16384   /* octets of a command line that ever pass (RFC 4954 asks 12288 for AUTH) */
#define NQ_AWAITED           16      /* runs of like commands that await their replies */
#define NQ_WORD_MAX          31      /* octets of a verb or keyword */
#define NQ_NODES             1024    /* nodes of a prefix automaton */
#define NQ_EDITS             16      /* changes of length between the receiver's ACK and the last decided octet */
#define NQ_EDIT_LOGS         4096    /* streams whose length was changed */
#define NQ_PATCHES           32      /* changes of length in one packet */
#define NQ_HEADROOM          255     /* octets that one edit may add; the MSS is lowered by as much */
#define NQ_NEWLINES_TOLD     64      /* bare newlines, and false ends of data, of one message that are told one by one */
#define NQ_LINE_KEPT         40      /* octets of a masked line kept for its event */

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
    bool edited;                /* its header was, before it waited: it must not leave as it came */
};

struct nq_pool {
    struct nq_client *clients, *fresh_clients;  /* given back; never handed out yet */
    uint32_t clients_free;
    struct nq_block *large, *small;
    struct nq_extent *extents;
    struct nq_held *held;
    struct nq_edit_log *logs;
    uint32_t large_free, small_free, extents_free, held_free, logs_free;
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
struct nq_edit_log *pool_edit_log(struct nq_pool *pool);
void edit_log_drop(struct nq_pool *pool, struct nq_edit_log *log);
struct nq_client *pool_client(struct nq_pool *pool);                /* zeroed, but its mime */
void client_drop(struct nq_pool *pool, struct nq_client *client);

/* ---- packet.c: a view of a packet; no state, no allocation ------------------------------------------------------- */

#define NQ_OURS 0x80            /* flag of struct nq_packet, ours alone: no verdict is owed, the packet leaves as an injection */

struct nq_view {
    const struct nq_packet *packet;
    uint8_t *ip;
    struct nq_tcp *tcp;
    uint8_t *payload;
    const uint8_t *source, *destination;    /* 4 or 16 octets by family */
    uint8_t *icmp;              /* ICMP errors: the message that quotes the segment */
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
    uint8_t *mss_at;            /* likewise */
};

struct nq_speaker {             /* as whom a packet of our own speaks, and to whom */
    uint8_t family;             /* 4 or 6 */
    uint8_t source[16], destination[16];    /* network order; IPv4 as ::ffff:a.b.c.d */
    uint16_t source_port, destination_port; /* host order */
    uint32_t seq, ack;          /* host order */
    bool stamped;               /* the connection uses timestamps (RFC 7323) */
    uint8_t stamps[8];          /* TSval and TSecr, network order */
};

/* Returns REASON_NONE and fills the view, or the reason why this is no TCP segment that can be judged. */
enum nq_reason packet_view(struct nq_view *view, const struct nq_packet *packet);
/* False where the options do not parse. */
bool packet_options(const struct nq_view *view, struct nq_tcp_options *options);
/* Four or sixteen octets into sixteen; IPv4 as ::ffff:a.b.c.d. */
void packet_address(uint8_t into[16], const uint8_t *address, uint8_t family);
/* As the packet's sender, or as its receiver (back), at the place where the other end expects it. */
struct nq_speaker packet_speaker(const struct nq_view *view, bool back);
/* Addresses and ports into an event of a packet without a flow; the lower port is taken for the server's. */
void packet_endpoints(const struct nq_view *view, struct nq_event *event);
/* Does the TCP checksum hold, or is it the pseudo-header's only (a local sender's packet)? */
bool packet_checksum_valid(const struct nq_view *view);
/* Write IPv4 header and TCP checksums in full. */
void packet_checksum_write(struct nq_view *view);
/* A SYN without data and without TCP Fast Open (RFC 7413): what comes before the handshake is nobody's word yet. */
void packet_normalise_syn(struct nq_view *view, const struct nq_tcp_options *options);
/* URG takes an octet out of the stream that the inspector has read (RFC 6093): cleared. */
void packet_clear_urgent(struct nq_view *view);
/* Cut the payload to `octets` and take FIN and PSH off; lengths are rewritten, checksums are not. */
void packet_cut(struct nq_view *view, uint32_t octets);
/* The payload has `octets` octets now: lengths are rewritten, checksums are not. */
void packet_resize(struct nq_view *view, uint32_t octets);
/* The timestamps option's first octet, or NULL (RFC 7323). */
uint8_t *packet_timestamps(const struct nq_view *view);
/* The SACK option's first octet, or NULL (RFC 2018). */
uint8_t *packet_sack(const struct nq_view *view);
/* A sender of shorter segments leaves room for what we add; options tell the lower size from then on. False where the option
 * is missing. */
bool packet_lower_mss(struct nq_view *view, struct nq_tcp_options *options, uint16_t by);
uint32_t packet_load32(const uint8_t *at);
void packet_store32(uint8_t *at, uint32_t value);
/* view->ack and view->window into the header; another sequence number into the header. */
void packet_write_acks(struct nq_view *view);
void packet_write_seq(struct nq_view *view, uint32_t seq);
/* One's complement sum over data, continuing `sum`; `folded` makes the 16-bit field of it. RFC 1071. */
uint64_t checksum_add(uint64_t sum, const uint8_t *data, size_t len);
uint16_t checksum_fold(uint64_t sum);

/* ---- icmp.c: errors about segments ------------------------------------------------------------------------------- */

/* Is this an ICMP error (RFC 792, RFC 4443 3) about a TCP segment? Fills `about` with the segment that it quotes, as far as the
 * quotation goes: addresses, ports, sequence number. */
bool icmp_error(struct nq_view *about, const struct nq_packet *packet);
/* Another sequence number into the quoted segment, an MTU lowered by what an edit may add, and a new checksum. */
void icmp_write(struct nq_view *about, uint32_t seq, uint16_t headroom);

/* ---- regex.c: a compiled regular expression, octet by octet, in linear time ---------------------------------------- */

struct nq_regex {
    uint16_t states, classes;
    uint8_t class_of[256];
    uint16_t *next;             /* states x classes */
    uint8_t *accepts;           /* by state */
};

/* Take a copy of the tables. False and a sentence in error (NQ_ERROR_MAX octets) where an index lies outside them or memory is
 * short. The start is state 0. */
bool regex_init(struct nq_regex *regex, const struct nq_regex_spec *spec, char *error);
void regex_end(struct nq_regex *regex);
/* The state behind the octets from..to; a state that has matched is never left. */
uint16_t regex_step(const struct nq_regex *regex, uint16_t state, const uint8_t *from, const uint8_t *to);
/* Has it matched, or does it if the text ends here? */
bool regex_matched(const struct nq_regex *regex, uint16_t state);
bool regex_matches_at_end(const struct nq_regex *regex, uint16_t state);

enum { NQ_REGEXES = 8 };        /* of one kind in one policy */

/* ---- policy.c: the compiled policy; read-only once installed ---------------------------------------------------- */

enum nq_verb {
    VERB_NONE = 0,
#define VERB(symbol, text, flags) VERB_##symbol,
#include "smtp_verbs.def"
#undef VERB
    VERB_PRIVATE,               /* a word that no policy names and that passes */
    VERB_MASKED,                /* became X: the server will refuse it */
    VERB_GREETING,              /* what the banner replies to */
    VERB_MESSAGE,               /* the end of data */
    VERBS                       /* from here on: words that a policy names and we know nothing of */
};

/* flags of smtp_verbs.def */
enum {
    VERB_WAITS = 1,             /* what follows is judged only once the server has replied */
    VERB_SENDS = 2,             /* MAIL and its kin: a transaction begins */
    VERB_GREETS = 4             /* EHLO and its kin: the session begins anew */
};

enum nq_keyword {
    KEYWORD_NONE = 0,
#define KEYWORD(symbol, text) KEYWORD_##symbol,
#include "smtp_keywords.def"
#undef KEYWORD
    KEYWORDS                    /* from here on: words that a policy names and we know nothing of */
};

enum nq_match {
#define MATCH(symbol, name, flags) MATCH_OF_##symbol,
#include "matches.def"
#undef MATCH
    MATCHES
};

/* flags of matches.def */
enum {
    MATCH_ABOVE = 0x01, MATCH_BELOW = 0x02, MATCH_WORDS = 0x04, MATCH_REGEX = 0x08, MATCH_CODES = 0x10, MATCH_MASK = 0x20,
    MATCH_OCTET = 0x40, MATCH_SERVER = 0x80
};

enum { NQ_RULES = 64, NQ_CODE_PAIRS = 8 };

struct nq_automaton {           /* prefixes of words; node 0 is the start */
    uint16_t next[NQ_NODES][40];/* by automaton_class(); 0: leaves the automaton */
    uint8_t word[NQ_NODES];     /* id of the word that ends at this node; 0: none */
    bool doomed[NQ_NODES];      /* this word is forbidden, and no other begins with it */
    uint16_t nodes;
    uint8_t free_id;            /* the next for a word that we know nothing of */
};

struct nq_words { uint64_t bits[4]; };      /* a set of the ids of words */

static inline bool words_have(const struct nq_words *words, uint8_t id) { return words->bits[id >> 6] >> (id & 63) & 1; }

struct nq_rule {
    char name[32];
    uint8_t match;              /* enum nq_match */
    uint8_t action;             /* enum nq_do */
    bool negate, log, dry_run;
    bool any_word, except_words;
    struct nq_words words;
    uint64_t bound;
    uint32_t rate;              /* a second */
    uint8_t code_pairs, reply_len;
    uint16_t codes[2 * NQ_CODE_PAIRS];
    uint8_t reply[NQ_REPLY_OCTETS];         /* with its line end */
};

enum nq_subject {               /* the texts that regular expressions are tried on */
    SUBJECT_SENDER = 0, SUBJECT_RECIPIENT, SUBJECT_HELO, SUBJECT_HEADER, SUBJECT_BODY, SUBJECT_FILETYPE, SUBJECTS
};

struct nq_expressions {         /* all of one subject */
    uint32_t count;
    uint8_t rule[NQ_REGEXES];   /* place among the policy's rules */
    struct nq_regex regex[NQ_REGEXES];
};

struct nq_mime_policy {         /* what mime.c has to look for */
    const struct nq_regex *filetypes[NQ_REGEXES];
    uint32_t filetype_count;
};

struct nq_limit { _Atomic uint64_t due; };  /* see limits.c */

struct nq_policy {
    char name[32];
    struct nq_automaton verbs, keywords, mechanisms;
    struct nq_words allowed_verbs, allowed_keywords;
    bool mask_verbs, mask_keywords; /* words that are not allowed become X */
    bool alert, audit_trail, dry_run, offload;
    bool exempt;                /* its flows are given up from their SYN on */
    uint8_t banner;             /* enum nq_banner */
    uint8_t exceptions[NQ_EXCEPTIONS];
    uint64_t max_data;
    uint32_t timeout;           /* seconds; 0: the engine's */
    bool remove_keywords;       /* lines of other keywords are taken out, not overwritten */
    uint8_t headroom;           /* octets that an edit may add; the MSS is lowered by as much */
    uint8_t banner_len, header_len, refusal_len;
    uint8_t refusal[NQ_REPLY_OCTETS];       /* with its line end; empty: both ends are reset */
    uint8_t banner_text[NQ_HEADROOM];       /* without code and line end */
    uint8_t header[NQ_HEADROOM];            /* with its line end */
    uint32_t rule_count;
    struct nq_rule rules[NQ_RULES];
    uint64_t rules_of[MATCHES]; /* bits: places in rules */
    uint64_t rules_that_act;    /* likewise: those that do more than tell */
    struct nq_expressions expressions[SUBJECTS];
    struct nq_mime_policy mime;
    bool reads_mime;            /* a rule looks at header fields, MIME parts or the text of a message */
    bool watches_newlines;      /* a rule looks at bare CR and LF in message data */
    struct nq_limit *limits;    /* one for each rule; the only part that changes */
};

uint8_t verb_flags(uint8_t verb);
uint8_t match_flags(uint8_t match);
/* KEYWORD_NONE where it is none that means something here. */
uint8_t keyword_named(const uint8_t *text, uint32_t len);
/* The node behind `octet`, letters in either case; 0 where no word goes on like this. */
uint16_t automaton_step(const struct nq_automaton *automaton, uint16_t node, uint8_t octet);

/* ---- smtp_scan.c: resumable scanning of lines and bodies; no meaning -------------------------------------------- */

enum nq_phase {                 /* where in a line the scanner stands */
    PHASE_START = 0,            /* before the first octet; replies: inside the code */
    PHASE_WORD,                 /* inside the verb or keyword */
    PHASE_UNKNOWN,              /* inside a verb that passes though nobody knows it */
    PHASE_REST,                 /* behind it */
    PHASE_OVERWRITE,            /* inside what becomes X */
    PHASE_BANNER,               /* inside a greeting's text that changes */
    PHASE_REMOVE                /* inside a line that is taken out, its end included */
};

struct nq_line {
    uint32_t len;               /* octets of the line so far */
    uint32_t body_len;          /* of these, octets before its end */
    uint32_t passed;            /* octets that had left before the overwriting began */
    uint16_t node;              /* of the automaton */
    uint16_t code;              /* replies: RFC 5321, 4.2 */
    uint8_t phase;              /* enum nq_phase */
    uint8_t word;               /* the word's id once it is complete */
    uint8_t digits;             /* replies: digits seen, NQ_NO_CODE where the line has no code */
    uint8_t separator;          /* replies: the octet behind the code; 0 until it came */
    bool cr;                    /* the last octet was CR */
    bool ended;                 /* its LF was consumed; the next call begins a new line */
    uint8_t why;                /* enum nq_reason of the overwriting, or of what would be overwritten */
    uint8_t rule;               /* 1 + place of the rule that wanted it; 0: none */
    bool dry_run;               /* it only would be */
    bool blank;                 /* nothing but blanks so far, and they pass */
    uint8_t kept;               /* octets in text */
    uint8_t text[NQ_LINE_KEPT]; /* the line as it came */
};

#define NQ_NO_CODE 0xff

enum nq_token {
    TOKEN_NONE = 0,             /* nothing to say; call again while octets are left */
    TOKEN_WORD,                 /* a word is complete and known; the octet at the cursor ends it */
    TOKEN_UNKNOWN,              /* the octet at the cursor leaves the automaton */
    TOKEN_FORBIDDEN,            /* the octet at the cursor completes a word that is known and doomed */
    TOKEN_INCOMPLETE,           /* the octet at the cursor ends a word that is none */
    TOKEN_BARE_CR,              /* the octet at the cursor follows a CR and is no LF */
    TOKEN_NUL,                  /* the octet at the cursor is NUL */
    TOKEN_TOO_LONG,             /* the octet at the cursor would be one too many */
    TOKEN_CODE,                 /* replies: code and separator are known and consumed */
    TOKEN_SPAN,                 /* octets were consumed that the phase wants overwritten */
    TOKEN_LINE,                 /* a line's end was consumed */
    TOKEN_END_OF_DATA,          /* the line of the final dot was consumed */
    TOKEN_LONG_LINE,            /* message data: this line is longer than its limit */
    TOKEN_BARE_NEWLINE,         /* the octet at the cursor is a bare LF or a NUL at a line's beginning, or shows that the CR before it is bare */
    TOKEN_FALSE_END             /* the octet at the cursor ends what one side alone takes for the end of data */
};

struct nq_cursor {              /* octets under judgement */
    uint8_t *begin;             /* the first that may still be edited */
    uint8_t *at, *end;
    uint8_t *separator;         /* replies: behind the code of the last line that stays; NULL: it is not among these octets */
    uint8_t *scanned;           /* message data: the scanner has been here already, and said `token` */
    uint8_t token;              /* enum nq_token */
};

/* Each takes octets from a cursor that is not empty, consumes what it can and returns what it met. Where a token speaks of
 * "the octet at the cursor", that octet is not consumed and the caller changes the line's phase before it calls again. */
enum nq_token scan_command(struct nq_line *line, const struct nq_automaton *verbs, struct nq_cursor *cursor);
enum nq_token scan_reply(struct nq_line *line, const struct nq_automaton *keywords, struct nq_cursor *cursor);
enum nq_token scan_line(struct nq_line *line, struct nq_cursor *cursor);
/* Octets up to `to` belong to the line, whatever they are. */
void scan_consume(struct nq_line *line, struct nq_cursor *cursor, const uint8_t *to);

/* ---- smtp_data.c: message data: its end, its lines, and what may be mistaken for either ---------------------------- */

enum nq_data_state {            /* RFC 5321, 4.1.1.4: only CRLF.CRLF ends the data */
    DATA_LINE_START = 0, DATA_INSIDE, DATA_CR, DATA_DOT, DATA_DOT_CR,
    DATA_FALSE_START,           /* behind a bare LF or CR, or a NUL at a line's beginning: some take it for a line's beginning */
    DATA_FALSE_DOT,             /* the same, and a dot */
    DATA_STATES
};

struct nq_data {                /* of one message */
    uint8_t state;              /* enum nq_data_state */
    uint8_t told;               /* 1 + class of the octet at the cursor, once it has been told of; 0: it has not */
    bool counted;               /* BDAT: the octets are counted, and no dot means anything */
    bool watched;               /* tell of bare newlines and false ends */
    bool in_header;
    bool long_line;             /* this line has been told of */
    bool defused;               /* the newline that opened a false line is none any more */
    uint32_t line_len;          /* octets of the present line, without its end */
    uint32_t line_limit[2];     /* of body and header; UINT32_MAX: none */
    uint64_t octets[2];         /* of body and header */
};

void data_begin(struct nq_data *data, bool counted, bool watched, uint32_t body_limit, uint32_t header_limit);
/* As the scanners above. TOKEN_BARE_NEWLINE and TOKEN_FALSE_END are said once of an octet, which the caller may change. */
enum nq_token data_scan(struct nq_data *data, struct nq_cursor *cursor);
/* Octets of what may become the line of the final dot: they are no data yet. */
uint32_t data_pending(const struct nq_data *data);
/* Can octets of a body need an edit, or the data end within them, wherever they stand? ".CRLF" at their very beginning counts; so
 * does, where newlines are watched, a CR or LF whose other half is not among them, or a dot or NUL at their very beginning. */
bool data_may_matter(const uint8_t *at, const uint8_t *end, bool watched);

/* ---- smtp_path.c: what stands behind MAIL and RCPT, streaming (RFC 5321, 4.1.2, 4.1.1.11) -------------------------- */

enum nq_path_said {
    PATH_NOTHING = 0,           /* octets without meaning of their own were consumed, or the octet at `at` is CR, LF or a NUL */
    PATH_ADDRESS,               /* the address is complete, once a line; the octet at `at` ends it: '>', a blank, CR or LF */
    PATH_LENGTH,                /* the octet at `at` would make the address longer than path->limit */
    PATH_SPECIAL,               /* the octet at `at` is one that no address may hold: | ` NUL, or a stray < or > */
    PATH_PARAMETER              /* a parameter is complete; a blank, CR or LF at `at` ends it: path->parameter, path->valid */
};

enum nq_parameter {             /* of MAIL and RCPT; the order of smtp_parameters.def */
    PARAMETER_UNKNOWN = 0,
#define PARAMETER(symbol, text, keyword) PARAMETER_##symbol,
#include "smtp_parameters.def"
#undef PARAMETER
    PARAMETERS
};

struct nq_path {                /* at most 64 octets, and two pointers */
    uint32_t length;            /* octets of the address so far, without the angle brackets */
    uint32_t limit;             /* set by the caller, at any time; UINT32_MAX: none. PATH_LENGTH is said once for each value */
    uint64_t size;              /* the value of SIZE=, once that parameter is complete and valid; saturates */
    uint8_t parameter;          /* enum nq_parameter; with PATH_PARAMETER */
    bool valid;                 /* likewise: its syntax, its command, and that it is the first of its name */
    /* the machine's own, see smtp_path.c */
    bool sender, excused, negative;
    uint8_t phase, quoting;
    uint8_t element, escape;    /* within a parameter's value */
    uint8_t awaited, lowest, highest;   /* octets of a UTF-8 character to come, and the bounds of the next */
    uint16_t given;             /* bits: parameters of this line */
    uint16_t candidates, count, value_length;
    uint32_t limit_told;
    uint64_t number;
    const uint8_t *address_from, *address_to;   /* of the octets consumed by this call, those of the address */
};

/* Behind "MAIL" or "RCPT" (sender: MAIL); path->limit is none. */
void path_begin(struct nq_path *path, bool sender);
/* Consume octets from *at, never a CR or LF, nor a NUL outside the address, and say one thing. Where something is said of "the
 * octet at `at`", it is not consumed, and the next call takes it without saying so again: the caller may have changed it. It is
 * read as what it is then, so a blank ends an address without brackets and is a part of one within them. *at < end and
 * PATH_NOTHING: the line ends here, or a NUL stands here that the caller must answer. */
enum nq_path_said path_take(struct nq_path *path, const uint8_t **at, const uint8_t *end);
/* The keyword of an EHLO reply that the parameter just told of needs; KEYWORD_NONE: none that means something here. */
uint8_t path_keyword(const struct nq_path *path);

/* ---- mime.c: header fields and MIME structure of a message, streaming (RFC 5322, 2045-2047, 2183, 2231) ------------- */

enum nq_mime_said {
    MIME_NOTHING = 0,           /* all octets were consumed */
    MIME_HEADER_ENDS,           /* of the message: the octets consumed end with its empty line */
    MIME_TO_FIELD,              /* one more mailbox in a To field of the message, or the first of one: mime->to_fields */
    MIME_ENCODING,              /* a Content-Transfer-Encoding is complete: mime->encoding */
    MIME_FILETYPE,              /* the media type (type/subtype) or file name has matched: mime->filetypes, a bit for each regex */
    MIME_FILENAME               /* a file name is complete: mime->filename_length */
};

enum nq_encoding { ENCODING_NONE = 0, ENCODING_7BIT, ENCODING_8BIT, ENCODING_BASE64, ENCODING_BINARY, ENCODING_OTHERS,
                   ENCODING_QUOTED_PRINTABLE, ENCODINGS };

enum {
    NQ_BOUNDARY = 70,           /* RFC 2046, 5.1.1 */
    NQ_MULTIPARTS = 12,         /* whose boundaries are watched; of a header with several, two */
    NQ_MIME_WORD = 27,          /* octets of a field's or parameter's name */
    NQ_MIME_TEXTS = 3           /* a media type or a name in one piece; name and filename in pieces (RFC 2231, 3) */
};

struct nq_mime_text {
    uint32_t length;            /* decoded octets */
    uint32_t blanks;            /* that wait: they may stand between encoded words, or at the end */
    uint32_t waiting;           /* octets of what may become an encoded word */
    uint16_t state[2][NQ_REGEXES];  /* of the regular expressions on the text as it stands, and decoded */
    uint16_t bits;              /* of base64, */
    uint8_t bit_count;          /* so many of them not used yet */
    uint8_t coded;              /* where in an encoded word (RFC 2047) */
    uint8_t hex;                /* its escape: 0, 1 behind =, or the first digit */
    uint8_t matched;            /* bits */
    bool base64, behind_coded, begun;
};

struct nq_mime {                /* at most 1200 octets */
    uint32_t to_fields, filename_length;
    uint8_t encoding;           /* enum nq_encoding */
    uint8_t filetypes;          /* bits */
    bool in_header;             /* of the message itself */
    bool counted;               /* set by the caller: it comes in chunks, where a dot means nothing */
    /* the machine's own */
    uint8_t due;                /* bits: what is to be said about the octet at hand */
    uint8_t place;              /* in a line */
    bool header;                /* of the message or of a part */
    uint8_t own_from;           /* boundaries from here on are the present header's */
    bool nested, default_nested, has_type;  /* what follows the header is a message's; is one unless a type is given */
    uint8_t field;              /* the field, */
    uint8_t step;               /* where in its parameters, */
    uint8_t comment;            /* comments that are open, */
    bool quoted, escaped;       /* in a quoted string; behind a backslash */
    uint8_t bracket;            /* To: what is open, */
    bool mailbox;               /* there was an octet of a mailbox */
    uint32_t mailboxes;         /* that have ended */
    uint8_t slash;              /* Content-Type: 1 behind the slash, 2 behind an octet more, */
    bool multipart, digest, has_boundary;   /* what was seen of it, */
    uint8_t sink;               /* the parameter's value: where it goes, */
    bool continued, extended, was_quoted;   /* how it is written (RFC 2231, 3 and 4), */
    uint8_t apostrophes;        /* seen of charset'language', */
    uint8_t percent;            /* its escape: 0, 1 behind %, or the first digit, */
    uint8_t slot, continued_slot;           /* of a boundary */
    uint32_t value_from;        /* the length before this piece */
    uint8_t word_len;           /* NQ_MIME_WORD + 1: too long */
    bool word_blank;            /* a blank came behind it */
    uint8_t word[NQ_MIME_WORD];
    uint8_t compared;           /* a line that begins with two hyphens: octets behind them, */
    uint8_t found, tail;        /* the boundary that it has, and what stands behind that */
    uint16_t alive;             /* bits: boundaries that it may have */
    uint16_t digests, cut;      /* bits: boundaries of multipart/digest; longer than is kept */
    struct nq_mime_text text[NQ_MIME_TEXTS];
    uint8_t boundaries;         /* watched */
    uint8_t boundary_len[NQ_MULTIPARTS];
    uint8_t boundary[NQ_MULTIPARTS][NQ_BOUNDARY];
};

void mime_begin(struct nq_mime *mime);
/* Consume octets of the message from *at and say one thing; call until *at == end. The policy must be the same for a whole
 * message. Passes what cannot be of interest as fast as memory allows. */
enum nq_mime_said mime_take(struct nq_mime *mime, const struct nq_mime_policy *policy, const uint8_t **at, const uint8_t *end);
/* The message is over: say what waited for a line to follow. Call until MIME_NOTHING. */
enum nq_mime_said mime_end(struct nq_mime *mime, const struct nq_mime_policy *policy);

/* ---- tls_hello.c: does a stream go on with a TLS handshake? ------------------------------------------------------- */

enum { HELLO_CLIENT = 1, HELLO_SERVER = 2 };    /* HandshakeType: RFC 8446, 4 */
enum { NQ_HELLO_OCTETS = 6 };   /* up to the handshake's type */

struct nq_hello {
    uint8_t octets;             /* seen of the first record's beginning */
    bool wrong;                 /* it is no such hello */
};

/* Take octets of the stream, from the first one that is no SMTP any more. */
void hello_take(struct nq_hello *hello, uint8_t type, const uint8_t *at, const uint8_t *end);
/* Did the stream begin with a handshake record that holds a hello of the type asked for? */
bool hello_seen(const struct nq_hello *hello);

/* ---- smtp_session.c: two machines, client and server, coupled by the commands that await a reply ------------------ */

enum nq_mode {                  /* how the client's octets are to be read */
    MODE_COMMAND = 0,
    MODE_WAIT,                  /* not at all, until the server has replied */
    MODE_DATA,
    MODE_CHUNK,                 /* BDAT: as many octets as were announced (RFC 3030) */
    MODE_AUTH,                  /* one line of an AUTH exchange */
    MODE_OPAQUE,                /* not any more: TLS */
    MODES
};

struct nq_awaited {             /* a run of like commands whose replies are outstanding */
    uint8_t verb;               /* enum nq_verb */
    bool masked;                /* it became X, or what was left of it */
    uint16_t count;
};

/* What the client is saying: its line, its transaction, its message. From the pool, as long as there is something to remember. */
struct nq_client {
    struct nq_client *next;     /* in the free list */
    struct nq_line command;
    uint64_t due;               /* facts to be told, a bit for each match */
    uint64_t fired;             /* rules that have had their say, a bit for each */
    struct nq_path path;
    uint32_t length_told;       /* 1 + octets of the line when its length was told of */
    uint16_t node;              /* of the automaton of AUTH mechanisms */
    uint8_t mechanism;          /* its word */
    uint8_t chunk_phase;        /* where in the argument of BDAT */
    uint8_t letters;            /* of AUTH's mechanism; 21: too many */
    bool malformed;             /* the argument of AUTH or ETRN */
    uint8_t behind;             /* the verb that this line came behind without waiting for its reply */
    bool behind_bare;           /* and that line ended in a bare LF: perhaps the server has not seen its end */
    bool begun;                 /* the line's first octet was looked at */
    bool argument_told;         /* HELO's name; the NUL at the cursor in an address */
    bool newline_told;          /* this line's end */
    bool verb_told;             /* its verb, whole */
    bool last;                  /* BDAT's LAST */
    bool in_message;            /* a message has begun and has not ended */
    bool message_begins;        /* the next octet is the first of a message */
    uint64_t chunk;             /* octets that are still to come of it */
    uint64_t declared;          /* SIZE= of the transaction; 0: none */
    uint64_t message;           /* octets of the message */
    uint32_t recipients, accepted;  /* RCPTs of the transaction that were answered; with success */
    uint16_t text[NQ_REGEXES];  /* states of the regular expressions tried on this argument */
    uint16_t of_message[2][NQ_REGEXES]; /* of those tried on the message: on its body, on its header */
    uint16_t newlines_told[2];  /* of the message: bare newlines, false ends of data */
    struct nq_data data;
    struct nq_mime mime;
};

enum nq_enhanced {              /* what is wrong with a reply's enhanced status code */
    ENHANCED_MISSING = 1, ENHANCED_WRONG, ENHANCED_NOT_OFFERED, ENHANCED_CODES
};

struct nq_session {
    struct nq_client *client;   /* NULL: the client has nothing to be remembered */
    uint64_t due;               /* facts of the reply to be told, a bit for each match */
    struct nq_line reply;
    struct nq_awaited awaited[NQ_AWAITED];
    uint8_t awaited_first, awaited_runs;
    uint8_t mode;               /* enum nq_mode */
    bool transaction;           /* the server has accepted MAIL */
    bool behind_auth;           /* the line before began an AUTH exchange, or was the answer to one */
    bool max_data_told;         /* a dry run: once is enough */
    bool lmtp;                  /* RFC 2033: as many replies to a message as it has recipients */
    uint8_t enhanced;           /* enum nq_enhanced, of the present reply */
    bool masked_answered;       /* the present reply answers a command that became X */
    uint16_t reply_part;        /* lines of the present reply that have ended */
    uint16_t invalid;           /* recipients that the server has refused */
    uint32_t offered, server_offers;    /* EHLO keywords as the client saw them and as the server said them: bits */
    uint32_t commands;          /* lines from the client */
    uint32_t answered;          /* of these, the ones that have their reply */
    uint32_t replies;           /* lines from the server */
    uint32_t messages;
    uint64_t data;              /* octets of message data */
    struct nq_hello hello[2];   /* by direction; MODE_OPAQUE */
};

enum nq_said_what {
    SAID_NOTHING = 0,           /* octets without meaning of their own */
    SAID_WAIT,                  /* what follows cannot be judged before the server has replied; nothing was consumed */
    SAID_FACT,                  /* something that a rule may look at: match, and what goes with it */
    SAID_VERB,                  /* a verb that the policy names; a fact, too */
    SAID_BAD_VERB,              /* a word that the policy does not name; a fact, too */
    SAID_BAD_LINE,              /* an octet or argument that no command may hold */
    SAID_BAD_AUTH,              /* an octet that no line of an AUTH exchange may hold */
    SAID_TOO_LONG,
    SAID_COMMAND_END,           /* a command line is complete */
    SAID_MESSAGE,               /* a message begins at the cursor; nothing was consumed */
    SAID_BODY,                  /* octets of message data */
    SAID_END_OF_DATA,
    SAID_BANNER,                /* a line of the greeting begins */
    SAID_KEYWORD,               /* a keyword of the EHLO reply that the policy names; a fact, too */
    SAID_BAD_KEYWORD,           /* one that it does not name; a fact, too */
    SAID_SPAN,                  /* octets that an earlier action condemned */
    SAID_REPLY_LINE,            /* a line of the server is complete */
    SAID_TRANSITION,            /* the same, and its code fits no command of the client's; a fact, too */
    SAID_INJECTION,             /* plaintext behind the reply that begins TLS; a fact, too */
    SAID_EARLY_REPLY,           /* to a BDAT whose octets have not all been sent */
    SAID_ANSWER                 /* the reply to a command that became X is complete */
};

struct nq_said {
    uint8_t what;               /* enum nq_said_what */
    uint8_t why;                /* enum nq_reason */
    uint8_t match;              /* enum nq_match, of a fact */
    uint8_t word;               /* MATCH_WORDS: its id */
    bool final;                 /* the thing is complete: what does not match now never will */
    uint64_t value;             /* lengths, counts, codes; bits of regular expressions that have matched */
    uint64_t limit;             /* SIZE_EXCEEDED: what was declared */
    uint64_t back;              /* octets from the thing's beginning to the cursor */
    const uint16_t *text;       /* MATCH_REGEX: states of the regular expressions; NULL: value has them */
    uint8_t *from, *to;         /* the octets that were consumed; equal: the one at `to` is meant */
};

void session_begin(struct nq_session *session);
/* Take octets from one side. Consumes from the cursor and says one thing; call until the cursor is empty and nothing is due, or
 * SAID_WAIT. The client's side needs session->client. */
struct nq_said session_client(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor);
struct nq_said session_server(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor);
/* What to say of octets that came before TLS could begin. */
struct nq_said session_injection(void);
/* Is there more to say, though no octets are left? */
bool session_due(const struct nq_session *session, unsigned direction, const struct nq_cursor *cursor);
/* Must the client's next octets wait for the server? */
bool session_waits(const struct nq_session *session);
/* Is there nothing of the client's to be remembered? Then session->client may go. */
bool session_rests(const struct nq_session *session);
/* Is the client inside a line that has not ended? */
bool session_inside_command(const struct nq_session *session);
/* RCPTs of the transaction, the unanswered ones included. */
uint32_t session_recipients(const struct nq_session *session);
/* The verb of the command that was said last and has no reply yet; VERB_NONE where all have one. */
uint8_t session_awaited_tail(const struct nq_session *session);

/* ---- smtp_command.c: a command line, octet by octet ---------------------------------------------------------------- */

struct nq_said command_hear(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor);
/* A line of an AUTH exchange; true in *ended once it is complete. */
struct nq_said command_hear_auth(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor,
                                 bool *ended);
/* The next fact that is due of the command. */
struct nq_said command_due(struct nq_session *session, const struct nq_policy *policy);

/* ---- smtp_message.c: a message, octet by octet ---------------------------------------------------------------------- */

void message_begin(struct nq_client *client, const struct nq_policy *policy, bool counted);
/* Is what a rule of `match` has found worth an event? Newlines are told up to a bound: else one message of nothing but LF would
 * wash all other events out of the ring. */
bool message_tells(struct nq_client *client, uint8_t match);
/* The next fact that is due of the message. */
struct nq_said message_due(struct nq_client *client, const struct nq_policy *policy, const struct nq_cursor *cursor);
/* SAID_END_OF_DATA: the octets consumed end the message (DATA) or the chunk (BDAT). */
struct nq_said message_hear(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor);

/* ---- inspect.c, the part that sessions ask: is there a rule that could have something to say? */

/* The lowest bound of a rule that has not had its say and that `value` has not passed yet; UINT64_MAX: none. */
uint64_t rules_next_bound(const struct nq_policy *policy, uint8_t match, uint64_t fired, uint64_t value);
/* Has `value` passed the bound of such a rule? */
bool rules_exceeded(const struct nq_policy *policy, uint8_t match, uint64_t fired, uint64_t value);

/* ---- inspect.c: what was said x policy -> action ------------------------------------------------------------------- */

enum nq_action {
    ACTION_PASS = 0,
    ACTION_ALLOW_WORD,          /* a word that the policy does not name and does not mind */
    ACTION_MASK_LINE,
    ACTION_MASK_BANNER,
    ACTION_OVERWRITE,
    ACTION_OVERWRITE_BANNER,
    ACTION_REPLACE_BANNER,
    ACTION_REPLACE_OCTET,       /* by a blank */
    ACTION_REMOVE_LINE,         /* where a whole line is at hand, else as ACTION_MASK_LINE */
    ACTION_REMOVE,
    ACTION_REMOVE_AND_REPORT,
    ACTION_INSERT_HEADER,
    ACTION_REPORT,              /* the line, at its end */
    ACTION_TELL,                /* that a rule has matched, or the reply to a masked command */
    ACTION_RESET,
    ACTION_END                  /* as the rule says: drop-connection, reset or reject */
};

struct nq_judgement {
    uint8_t action;             /* enum nq_action */
    uint8_t reason;             /* enum nq_reason */
    const struct nq_rule *rule; /* NULL: no rule, but what the policy is made of */
    bool dry_run;               /* tell what would be done, and change nothing */
    bool more;                  /* ask again: another rule may have its say */
};

/* fired: bits of the rules that have had their say about the thing; more are set. */
struct nq_judgement inspect_client(const struct nq_policy *policy, const struct nq_session *session,
                                   const struct nq_said *said, uint64_t *fired);
struct nq_judgement inspect_server(const struct nq_policy *policy, const struct nq_session *session,
                                   const struct nq_said *said, uint64_t *fired);

/* ---- limits.c: how often something may happen ---------------------------------------------------------------------- */

/* May it happen now, `rate` times a second at most, with a second's worth at once? Shared by all queues. */
bool limit_take(struct nq_limit *limit, uint32_t rate, uint64_t now);

/* ---- edit_log.c: the sender's sequence numbers and the receiver's -------------------------------------------------- */

struct nq_edit {                /* in_len octets from `in` on left as out_len octets from `out` on */
    uint32_t in, out, in_len, out_len;
};

struct nq_edit_log {            /* by sequence number; from the pool */
    struct nq_edit_log *next;   /* in the free list */
    uint32_t count;
    struct nq_edit edits[NQ_EDITS];
};

/* log may be NULL: then the numberings differ by `shift` alone. All numbers in host order.
 * Where the octet that the sender calls `seq` begins at the receiver; inside an edit: behind it. */
uint32_t edit_log_out(const struct nq_edit_log *log, int32_t shift, uint32_t seq);
/* The most that the sender may take for arrived when the receiver acknowledges `ack`; inside an edit: its beginning. */
uint32_t edit_log_acknowledged(const struct nq_edit_log *log, int32_t shift, uint32_t ack);
/* The same for the left edge of a SACK block (RFC 2018): up, where acknowledged goes down. */
uint32_t edit_log_received(const struct nq_edit_log *log, int32_t shift, uint32_t left);
/* Is there room for as many more edits, once what was acknowledged is forgotten? */
bool edit_log_room(struct nq_edit_log *log, uint32_t acked, uint32_t edits);
void edit_log_add(struct nq_edit_log *log, struct nq_edit edit);
/* By how many octets the edits that have not arrived yet lengthen the stream; 0 where they shorten it. */
uint32_t edit_log_growth(const struct nq_edit_log *log, uint32_t acked);

/* ---- stream.c: one direction: order, store, retransmission; knows no protocol ------------------------------------ */

struct nq_stream {
    uint32_t begin;             /* sequence number of the first octet (ISN + 1) */
    uint32_t next;              /* first sequence number that is not decided yet */
    uint32_t acked;             /* the receiver's highest ACK: all below has arrived there */
    uint32_t edge;              /* right edge of the widest window the receiver has offered */
    uint32_t ack_sent;          /* the highest ACK that the sender of this stream has sent */
    uint32_t stored;            /* octets in the store */
    uint64_t decided;           /* octets decided since begin */
    uint64_t packets, octets;   /* seen from the sender, for the flow's record */
    struct nq_extent *first, *last;             /* the store: acked..next */
    struct nq_extent *ahead, *ahead_last;       /* forwarded from behind a hole, and still to be judged */
    struct nq_held *held;       /* by sequence number */
    struct nq_edit_log *log;    /* NULL: the length was never changed */
    int32_t shift;              /* the receiver's number of `next` less the sender's; acked, edge and the store are in the
                                   receiver's numbers, all else in the sender's */
    uint32_t in_ifindex, out_ifindex;
    uint16_t mss;               /* the largest payload that the sender may send (RFC 9293, 3.7.1), lowered by the headroom */
    uint16_t held_count;
    uint8_t window_scale;       /* of the windows that the sender of this stream offers */
    bool fin;                   /* FIN is decided; next counts it */
};

enum nq_place {                 /* where a segment's octets lie */
    PLACE_EMPTY = 0,            /* no octets and no FIN */
    PLACE_OLD,                  /* all decided before */
    PLACE_NEXT,                 /* reaches beyond what is decided, without a hole */
    PLACE_AHEAD                 /* behind a hole */
};

void stream_begin(struct nq_stream *stream, uint32_t isn);
enum nq_place stream_place(const struct nq_stream *stream, const struct nq_view *view);
/* The receiver acknowledges and offers `window` octets (scaled). Frees what arrived. `ack` must not exceed next. */
void stream_acknowledge(struct nq_stream *stream, struct nq_pool *pool, uint32_t ack, uint32_t window);
/* Make the segment's decided octets what they were when they were decided. Returns true where any differed. */
bool stream_restore(const struct nq_stream *stream, struct nq_view *view);
/* Keep `len` octets from `data` (in the packet's block where it has one) as decided. Returns REASON_NONE, or why not. */
enum nq_reason stream_store(struct nq_stream *stream, struct nq_pool *pool, const struct nq_settings *settings,
                            const struct nq_packet *packet, uint8_t *data, uint32_t len);
/* May `len` octets more be stored? Asked before anything is decided. */
enum nq_reason stream_room(const struct nq_stream *stream, const struct nq_pool *pool, const struct nq_settings *settings,
                           uint32_t len);
/* Change the length: `removed` octets of the sender's at next leave as `added` octets from text. The log must have room:
 * stream_may_edit() takes one where there is none, and says whether. */
bool stream_may_edit(struct nq_stream *stream, struct nq_pool *pool, uint32_t edits);
enum nq_reason stream_replace(struct nq_stream *stream, struct nq_pool *pool, const struct nq_settings *settings,
                              uint32_t removed, const uint8_t *text, uint32_t added);
/* The receiver's number for the sender's, and how the receiver's acknowledgements read to the sender. */
uint32_t stream_out(const struct nq_stream *stream, uint32_t seq);
uint32_t stream_acknowledged(const struct nq_stream *stream, uint32_t ack);
/* A capture's receiver acknowledges what it was sent, in the sender's numbers, whatever we have made of it. What of that is
 * held here it does not have yet; what was never seen stays beyond. */
uint32_t stream_recorded_ack(const struct nq_stream *stream, uint32_t ack);
/* Is the receiver's number that of an octet under way? */
bool stream_under_way(const struct nq_stream *stream, uint32_t out);
static inline uint32_t stream_next_out(const struct nq_stream *stream) { return stream->next + (uint32_t)stream->shift; }
/* Do the two numberings differ? When the flow is over the log is given back, and the shift stays. */
static inline bool stream_renumbers(const struct nq_stream *stream) { return stream->log || stream->shift; }
/* Copy the receiver's octets from..to out of the store. False where some are not there. */
bool stream_copy(const struct nq_stream *stream, uint32_t from, uint32_t to, uint8_t *into);
/* Acknowledgement, SACK blocks and window of a segment that acknowledges this stream, in the sender's numbers. */
void stream_translate_acks(const struct nq_stream *stream, struct nq_view *view, uint8_t window_scale);
/* Keep a copy of a segment's octets behind a hole that are forwarded before they are judged. */
enum nq_reason stream_go_ahead(struct nq_stream *stream, struct nq_pool *pool, const struct nq_settings *settings,
                               const struct nq_view *view);
/* Do octets that went ahead cover the whole segment, or touch it at all? */
bool stream_ahead_covers(const struct nq_stream *stream, const struct nq_view *view);
bool stream_ahead_touches(const struct nq_stream *stream, const struct nq_view *view);
/* Does an octet of the segment differ from the one that went ahead there? */
bool stream_ahead_differs(const struct nq_stream *stream, const struct nq_view *view);
/* Has an octet gone ahead that lies at `end` or behind it? */
bool stream_ahead_beyond(const struct nq_stream *stream, uint32_t end);
/* The octets that went ahead and begin at next, to be judged now; NULL where there are none. What was decided meanwhile is
 * taken off. stream_adopt() puts them into the store. */
struct nq_extent *stream_ahead_due(struct nq_stream *stream, struct nq_pool *pool);
void stream_adopt(struct nq_stream *stream);
/* Keep a whole packet until its octets can be decided. */
enum nq_reason stream_hold(struct nq_stream *stream, struct nq_pool *pool, const struct nq_settings *settings,
                           const struct nq_view *view, uint64_t now);
/* Keep what lies behind `octets` of the payload as packets of our own, of at most the stream's MSS: the packet they came in
 * leaves without them. What does not fit is left to the sender, who keeps it until it is acknowledged. */
void stream_hold_rest(struct nq_stream *stream, struct nq_pool *pool, const struct nq_settings *settings,
                      const struct nq_view *view, uint32_t octets, uint64_t now);
/* Does a held packet bring anything that is not decided? Copies of what is decided may wait, too, until they are looked at. */
bool stream_holds_more(const struct nq_stream *stream);
/* Take the first held packet off the stream where it begins no later than next; NULL where there is none. */
struct nq_held *stream_ready(struct nq_stream *stream);
/* Take a packet off the stream that is held since before `before`, wherever it stands. */
struct nq_held *stream_expired(struct nq_stream *stream, uint64_t before);
void stream_end(struct nq_stream *stream, struct nq_pool *pool);

/* ---- flow.c: flow table, handshake, teardown, expiry; reads no payload ------------------------------------------- */

enum nq_flow_state {            /* as seen from the middle */
    FLOW_FREE = 0,
    FLOW_SYN_SENT,
    FLOW_SYN_RECEIVED,
    FLOW_ESTABLISHED,
    FLOW_HALF_CLOSED,           /* one FIN is decided */
    FLOW_CLOSING,               /* both are */
    FLOW_CLOSED,                /* both are acknowledged, or a valid RST passed */
    FLOW_REFUSED,               /* the server is reset, the client is being told why */
    FLOW_DEAD,                  /* ended by the policy: a tombstone */
    FLOW_LEFT,                  /* given up, and no more is expected: the kernel has it, or both ends have said FIN */
    FLOW_STATES
};

enum nq_flow_event {
    ON_SYN = 0, ON_SYN_ACK, ON_ACK, ON_FIRST_FIN, ON_SECOND_FIN, ON_ALL_ACKED, ON_RST, ON_REFUSED, ON_REPLIED, ON_LEFT,
    FLOW_EVENTS
};

struct nq_key {                 /* the lower end first, so that both directions have one key */
    uint8_t address[2][16];
    uint16_t port[2];
    uint32_t interfaces[2];     /* the unordered pair; 0, 0 where binding is off */
};

struct nq_syn {                 /* what a SYN said that is not believed yet */
    uint32_t isn, window;
    uint16_t mss;
    uint8_t window_scale;
};

struct nq_flow {
    struct nq_key key;
    uint32_t chain;             /* next slot in the bucket */
    uint32_t older, newer;      /* in the list of its timer */
    uint8_t state;              /* enum nq_flow_state */
    uint8_t family;
    bool originator_first;      /* the originator is end 0 of the key */
    bool reopening;             /* a SYN came that begins the flow anew once a SYN-ACK confirms it */
    bool recorded;              /* its record is written */
    uint8_t ended_by;           /* enum nq_reason */
    uint8_t idle;               /* place of its bound on silence, from TIMER_IDLE on */
    bool given_up;              /* nothing is judged any more: an exception let it pass, or it is exempt, or offloaded */
    bool opaque;                /* opaque_from is known */
    bool answers_reset;         /* dead, and its ends are told so with a RST */
    uint32_t opaque_from[2];    /* by direction: the first sequence number that may be TLS's */
    uint32_t discarded;         /* octets of the refused client thrown away */
    uint64_t replied;           /* ns; when the refusal was sent last */
    struct nq_syn reopening_syn;
    uint32_t syn_window;        /* what the originator offered in its SYN */
    uint64_t id;
    uint64_t started, seen;     /* ns */
    const struct nq_policy *policy;
    const struct nq_rule *ended_by_rule;    /* NULL: none; of the flow's policy */
    struct nq_stream stream[2]; /* 0 from the originator, 1 from the responder */
    struct nq_session session;
};

/* From TIMER_IDLE on: the engine's own bound on silence, and those of policies that ask for another. */
enum nq_timer { TIMER_SYN = 0, TIMER_FIN, TIMER_REFUSED, TIMER_TOMBSTONE, TIMER_IDLE, TIMERS = TIMER_IDLE + 8 };

struct nq_flow_table {
    struct nq_flow *slots;      /* slot 0 is never used */
    uint32_t *buckets;
    uint32_t mask;
    uint32_t free;              /* first free slot */
    uint32_t used;
    uint64_t next_id;
    struct { uint32_t oldest, newest; } timers[TIMERS];
    uint64_t timeout[TIMERS];   /* ns */
    uint64_t hash_key[2];
    bool binding;
    bool recorded;
    void *memory;
    size_t memory_octets;
};

bool flow_table_init(struct nq_flow_table *table, const struct nq_settings *settings);
void flow_table_end(struct nq_flow_table *table);
/* NULL where there is none. direction: 0 from the originator. */
struct nq_flow *flow_find(struct nq_flow_table *table, const struct nq_view *view, unsigned *direction);
/* A fresh slot for the sender of a SYN; NULL where the table is full. */
struct nq_flow *flow_open(struct nq_flow_table *table, const struct nq_view *view, uint64_t now);
/* The flow that may give way to a new one: long closed, dead or half-open; NULL where all are alive. */
struct nq_flow *flow_dispensable(struct nq_flow_table *table);
void flow_free(struct nq_flow_table *table, struct nq_flow *flow);
/* The only function that changes a flow's state. False where the event does not fit the state. */
bool flow_on(struct nq_flow_table *table, struct nq_flow *flow, enum nq_flow_event event, uint64_t now);
void flow_touch(struct nq_flow_table *table, struct nq_flow *flow, uint64_t now);
/* How many seconds of silence the flow may keep, before it is established; 0: as many as all. Of the bounds that policies ask for,
 * a table knows 7 different ones; a policy that comes later gets the shortest that is not below its own. */
void flow_silence(struct nq_flow_table *table, struct nq_flow *flow, uint32_t seconds);
/* The oldest flow whose time is up; NULL where there is none. */
struct nq_flow *flow_due(struct nq_flow_table *table, uint64_t now);
/* Does the packet come from the interfaces from which this end speaks? */
bool flow_bound(const struct nq_flow_table *table, const struct nq_flow *flow, unsigned direction,
                const struct nq_packet *packet);
/* Handshake, acknowledgement, window, RST: is this segment one that the other end may see? */
enum nq_reason flow_segment(struct nq_flow_table *table, struct nq_pool *pool, struct nq_flow *flow, unsigned direction,
                            struct nq_view *view, uint64_t now);
/* Does this SYN begin a new connection in the place of one that is over? */
bool flow_replaced(const struct nq_flow *flow, unsigned direction, const struct nq_view *view);
/* Does this SYN-ACK confirm a SYN that came while the flow was alive (an end that forgot it; RFC 9293, 3.5.3)? */
bool flow_reopened(const struct nq_flow_table *table, const struct nq_flow *flow, unsigned direction,
                   const struct nq_view *view);
/* Begin anew as if only the SYN that reopens had been seen; the streams must have been ended. */
void flow_reopen(struct nq_flow_table *table, struct nq_flow *flow, uint64_t now);

/* ---- edit.c: the octets of an action ------------------------------------------------------------------------------ */

/* from..to become X. */
void edit_overwrite(struct nq_view *view, uint8_t *from, uint8_t *to);
/* The line that holds cursor->at becomes X from `skip` octets behind its start on, as far back as this packet holds it, and
 * goes on becoming X up to its end. False where nothing is left to edit but the line's end. */
bool edit_mask_line(struct nq_view *view, struct nq_line *line, const struct nq_cursor *cursor, uint32_t skip, uint8_t why);
/* Changes of length in one packet. They are written down while the octets are heard, and carried out when what leaves is put
 * together from the store. Ascending, and none overlaps another. */
struct nq_patch {
    uint8_t *at;                /* in the payload */
    uint32_t removed, added;
    const uint8_t *text;        /* lives at least as long as the policy */
};

struct nq_patches {
    uint32_t count;
    struct nq_patch patch[NQ_PATCHES];
};

/* False where the packet has had too many. */
bool edit_replace(struct nq_patches *patches, uint8_t *from, uint8_t *to, const uint8_t *text, uint32_t len);
bool edit_remove(struct nq_patches *patches, uint8_t *from, uint8_t *to);
bool edit_insert(struct nq_patches *patches, uint8_t *at, const uint8_t *text, uint32_t len);
/* Take out the line of an EHLO reply that holds cursor->at, from its beginning; the line before it ends the reply where this
 * one did. False where its beginning, or the line to end the reply, is not among these octets. */
bool edit_remove_line(struct nq_view *view, struct nq_patches *patches, struct nq_line *line, const struct nq_cursor *cursor,
                      uint8_t why);
/* The greeting's text becomes another; from..to are the line's last consumed octets. */
bool edit_replace_banner(struct nq_patches *patches, const struct nq_line *line, uint8_t *from, uint8_t *to,
                         const uint8_t *text, uint32_t len);
struct nq_change {              /* of one octet */
    uint8_t *at;                /* NULL: nothing was changed */
    uint8_t was, now;
};

/* The octet at the cursor becomes a blank. */
bool edit_blank(struct nq_view *view, const struct nq_cursor *cursor, struct nq_change *what);
/* A command that ends in a bare LF behind a blank: the blank becomes CR. False where there is none. */
bool edit_repair_newline(struct nq_view *view, const struct nq_cursor *cursor, struct nq_change *what);
/* What shows at the cursor that a newline is bare, or a false end of data (ends), means nothing afterwards: the newline becomes a
 * blank, or where it has left already the dot behind it. False where nothing of it is left to edit. */
bool edit_defuse_newline(struct nq_view *view, const struct nq_cursor *cursor, const struct nq_data *data, bool ends,
                         struct nq_change *what);
/* The `modern` banner mask: code, host name and the word ESMTP stay, the rest becomes *. */
void edit_banner_modern(struct nq_view *view, struct nq_line *line, uint8_t *from, uint8_t *to);
/* The `asa` banner mask: all but 2, 0, CR and LF becomes *; from..to are the line's last consumed octets. */
void edit_banner(struct nq_view *view, const struct nq_line *line, uint8_t *from, uint8_t *to);

/* ---- refuse.c: packets of our own ---------------------------------------------------------------------------------- */

/* As the flow's originator (direction 0) or responder (1), at the end of what was forwarded of its stream. */
struct nq_speaker speaker_of(const struct nq_flow *flow, unsigned direction);
/* A RST with ACK, checksums complete. Returns its length, at most NQ_OURS_OCTETS. RFC 9293, 3.5.2. */
uint32_t refuse_rst(const struct nq_speaker *speaker, uint8_t *into);
/* ACK, with `flags` beside it and `len` octets of text, at most NQ_REPLY_OCTETS. Returns its length, at most NQ_OURS_OCTETS. */
uint32_t refuse_say(const struct nq_speaker *speaker, uint8_t flags, const uint8_t *text, uint32_t len, uint8_t *into);
/* The server, in answer to what the client just sent or instead of what it just said itself; it has said `said` octets of its own since the refusal. */
struct nq_speaker speaker_answering(const struct nq_flow *flow, unsigned direction, const struct nq_view *view, uint32_t said);

/* ---- classes.c: which policy a connection gets ---------------------------------------------------------------------- */

/* client: who sent the SYN, to whom; in and out: the interfaces that it passed. Never NULL. */
const struct nq_policy *classes_choose(const struct nq_classes *classes, const struct nq_speaker *client, uint32_t in,
                                       uint32_t out);
const struct nq_policy *classes_otherwise(const struct nq_classes *classes);

/* ---- event.c: a fixed ring to Python; drops and counts, never blocks ---------------------------------------------- */

struct nq_ring {
    struct nq_event *slots;
    uint32_t mask;
    _Atomic uint32_t head, tail;
    size_t memory_octets;
};

bool ring_init(struct nq_ring *ring, uint32_t slots);
void ring_end(struct nq_ring *ring);
bool ring_full(const struct nq_ring *ring);
/* The next slot to fill, zeroed, or NULL where the reader is behind; ring_publish() hands it over. */
struct nq_event *ring_slot(struct nq_ring *ring);
void ring_publish(struct nq_ring *ring);
uint32_t ring_take(struct nq_ring *ring, struct nq_event *into, uint32_t max);
/* The line as it came, without secrets: what follows AUTH and its mechanism, and what may be a line of an AUTH exchange. */
void event_text(struct nq_event *event, const struct nq_line *line, bool behind_auth);
/* Does the line begin with a verb that brings credentials? What follows it may be more of them. */
bool event_credentials(const struct nq_line *line);

/* ---- conntrack.c: what connection tracking makes of a packet of our own ------------------------------------------- */

struct nq_tuple {               /* network order throughout; address 0 and port 0 are the source's */
    uint8_t family;             /* 4 or 6 */
    uint8_t address[2][16];     /* IPv4 in the first 4 octets, the others 0 */
    uint16_t port[2];
};

enum { NQ_TRANSLATIONS = 256 };

struct nq_translation {         /* an entry of conntrack's that translates both ends */
    struct nq_tuple entry[2];   /* CTA_TUPLE_ORIG, CTA_TUPLE_REPLY */
    uint64_t since;
};

struct nq_conntrack {
    int fd;                     /* below 0: cannot be asked */
    uint32_t sequence;
    uint64_t rested;            /* when the table may be walked again */
    struct nq_translation kept[NQ_TRANSLATIONS];
};

enum nq_tracking {
    TRACKING_KNOWN,             /* the packet is one of a connection's, and the kernel translates it */
    TRACKING_FINAL,             /* it must leave as it is, untracked */
    TRACKING_UNASKED            /* nobody knows */
};

enum nq_telling {               /* what conntrack has to know of a packet that it does not see */
    TELL_NOTHING,
    TELL_LIBERAL,               /* it acknowledges on its own account: window and numbers are for the engine to check */
    TELL_ENDED                  /* the connection is over */
};

/* Returns 0, or -errno where the kernel does not answer: no CAP_NET_ADMIN, or no ctnetlink. */
int conntrack_open(struct nq_conntrack *conntrack);
void conntrack_close(struct nq_conntrack *conntrack);
/* How a packet of ours with the endpoints that FORWARD shows has to leave; for TRACKING_FINAL the tuple's source becomes the
 * one by which the receiver knows the sender. */
enum nq_tracking conntrack_judge(struct nq_conntrack *conntrack, struct nq_tuple *tuple, enum nq_telling telling);

/* ---- inject.c: packets of our own leave by raw socket ------------------------------------------------------------ */

struct nq_injector {
    int fd[2][2];               /* IPv4 and IPv6; tracked and untracked; below 0: cannot send */
    int unasked;                /* 0, or the errno for which conntrack cannot be asked */
    struct nq_conntrack conntrack;
};

void injector_init(struct nq_injector *injector);
/* Open the raw sockets of both families, under the packet mark `mark` for what conntrack translates and `mark` + 1 for what
 * must leave untracked; mark 0 opens none. Returns 0 or -errno. */
int injector_open(struct nq_injector *injector, uint32_t mark);
void injector_close(struct nq_injector *injector);
/* Send one TCP packet, complete from the IP header on, to its own destination; its source is changed where two translations
 * hide it. Returns enum nq_tracking, how it left, or -errno. */
int injector_send(struct nq_injector *injector, uint8_t *data, uint32_t len);

/* ---- engine.c: composition; its parts follow --------------------------------------------------------------------- */

struct nq_engine {
    struct nq_settings settings;
    _Atomic(const struct nq_policy *) policy;
    _Atomic(const struct nq_classes *) classes; /* NULL: none */
    struct nq_pool pool;
    struct nq_flow_table flows;
    struct nq_ring ring;
    struct nq_held *retired;    /* decided in this call; their octets stay until the next */
    struct nq_result result;
    uint32_t injections;
    const struct nq_rule *ending;   /* the rule that ends the flow of the packet that is being heard, and what it was about */
    struct nq_said ending_said;
    uint64_t ended_at;          /* 1 + the octet of the stream at which that was; 0: nothing that was heard ends it */
    struct nq_patches patches;  /* changes of length in the packet that is being heard */
    struct nq_block *composed;  /* packets put together in this call; they stay until the next */
    uint64_t now, ticked;
    uint64_t counters[COUNTERS];
    uint8_t scratch[NQ_INJECTIONS][NQ_OURS_OCTETS];
};

struct nq_pool *engine_pool(struct nq_engine *engine);

/* One thread writes; others may read a value that is a moment old. */
static inline void engine_add(struct nq_engine *engine, enum nq_counter counter, uint64_t amount)
{
    uint64_t value = __atomic_load_n(&engine->counters[counter], __ATOMIC_RELAXED);
    __atomic_store_n(&engine->counters[counter], value + amount, __ATOMIC_RELAXED);
}

static inline void engine_count(struct nq_engine *engine, enum nq_counter counter) { engine_add(engine, counter, 1); }

/* ---- engine_report.c: counters and events -------------------------------------------------------------------------- */

/* flow and view may be NULL. */
void engine_report_drop(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction,
                        const struct nq_view *view, enum nq_reason reason);
/* The policy ends the flow: NQ_EVENT_RESET or NQ_EVENT_REJECT. */
void engine_report_end(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, enum nq_event_type type,
                       uint8_t reason, bool dry_run);
void engine_report_flow(struct nq_engine *engine, struct nq_flow *flow, uint8_t reason);
/* About the line that ended at cursor->at. */
void engine_report_line(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, uint8_t reason,
                        const struct nq_cursor *cursor);
void engine_report_insertion(struct nq_engine *engine, const struct nq_flow *flow, const struct nq_cursor *cursor, bool dry_run);
/* A rule has matched at cursor->at. change: of an octet, or NULL. */
void engine_report_rule(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction,
                        struct nq_judgement judgement, const struct nq_said *said, const struct nq_cursor *cursor,
                        const struct nq_change *change);
/* The server's reply to a command that became X. */
void engine_report_answer(struct nq_engine *engine, const struct nq_flow *flow, uint16_t code);
/* The audit trail's first line. */
void engine_report_start(struct nq_engine *engine, const struct nq_flow *flow);

/* ---- engine_output.c: what leaves ---------------------------------------------------------------------------------- */

/* Drop, and count why; `drop` also tells it. flow may be NULL. */
void engine_drop_packet(struct nq_engine *engine, const struct nq_packet *packet, enum nq_reason reason);
void engine_drop(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, const struct nq_view *view,
                 enum nq_reason reason);
/* A packet of our own: ACK with `flags` beside it and some text. */
void engine_inject(struct nq_engine *engine, const struct nq_speaker *speaker, uint8_t flags, const uint8_t *text,
                   uint32_t text_len);
void engine_inject_rst(struct nq_engine *engine, const struct nq_speaker *speaker);
/* Accept as it stands; `accept_segment` makes the numbers the receiver's first. stored: its octets lie in the store. */
void engine_accept(struct nq_engine *engine, struct nq_view *view);
void engine_accept_segment(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, struct nq_view *view,
                           bool stored);
struct nq_output *engine_output(struct nq_engine *engine);

/* ---- engine_end.c: how a flow ends --------------------------------------------------------------------------------- */

/* Drop what is held since before `before`. */
void engine_drop_held(struct nq_engine *engine, struct nq_flow *flow, uint64_t before, enum nq_reason reason);
/* The policy ends the flow; the packet goes nowhere. */
void engine_refuse(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, const struct nq_view *view,
                   enum nq_reason reason);
/* A held packet is decided: its octets stay until the next call. */
void engine_retire(struct nq_engine *engine, struct nq_held *held);
/* Its line will never end: the client's FIN has come, or the flow is over. */
void engine_tell_truncated(struct nq_engine *engine, struct nq_flow *flow);
/* What the client was saying needs no memory any more. */
void engine_forget_client(struct nq_engine *engine, struct nq_flow *flow);
/* The flow is over: its memory goes back, its record is written. Its slot stays until its timer ends. */
void engine_finish(struct nq_engine *engine, struct nq_flow *flow, enum nq_reason reason);
/* The same, and its slot is free. */
void engine_remove_flow(struct nq_engine *engine, struct nq_flow *flow, enum nq_reason reason);
/* A packet of a flow that the policy has ended. */
void engine_bury(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, const struct nq_view *view);
/* A packet of a flow whose client is being told why it was refused. */
void engine_hear_refused(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, const struct nq_view *view);

/* ---- engine_exception.c: what cannot be judged --------------------------------------------------------------------- */

/* The policy's answer to a segment that does not pass; flow may be NULL. */
void engine_cannot_judge(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                         enum nq_reason reason);

/* ---- engine_offload.c: flows that nobody judges (any more) ---------------------------------------------------------- */

/* From now on what comes of the flow passes as it comes. */
void engine_give_up(struct nq_engine *engine, struct nq_flow *flow);
/* A packet of a flow that was given up. */
void engine_pass(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view);
/* A packet of a judged flow was answered: may the kernel have the flow from this packet on? */
void engine_offload(struct nq_engine *engine, struct nq_flow *flow, const struct nq_packet *packet);

/* ---- engine_hear.c: octets are heard, judged, acted on ------------------------------------------------------------- */

/* Let the session hear octets, and do what the policy says. REASON_NONE, or why the flow must end. */
enum nq_reason engine_listen(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                             struct nq_cursor *cursor);

/* ---- engine_octets.c: what becomes of a segment's octets ----------------------------------------------------------- */

/* A segment that the other end may see: what becomes of its octets. */
void engine_carry(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view);
/* What waited may be ready now. */
void engine_release(struct nq_engine *engine, struct nq_flow *flow);

#endif
