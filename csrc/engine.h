/*
 * engine.h - THE BORDER. Everything that Python may call, and nothing else. cffi's cdef reads this very file, so it holds
 * plain declarations only: no #include, no guard, no macro but `#define NAME number`. C includes it once, through nq.h.
 *
 * The engine knows no clock: `now` is nanoseconds since the Unix epoch, handed in by whoever calls, and never goes back by
 * more than the caller's own jitter. It reads no file and no configuration text. One engine belongs to one thread; only
 * nq_engine_install(), nq_engine_install_classes(), nq_engine_counter(), nq_engine_events() and nq_queue_stop() may be called
 * from another.
 */

#define NQ_TEXT_MAX 96
#define NQ_ERROR_MAX 160

/* ---- a packet and what becomes of it ---------------------------------------------------------------------------- */

/* flags of struct nq_packet */
#define NQ_CSUM_NOT_READY 0x01  /* the TCP checksum field holds the pseudo-header sum only (NFQA_SKB_CSUMNOTREADY) */
#define NQ_CSUM_VERIFIED  0x02  /* somebody trustworthy has verified the checksum already */
#define NQ_TRUNCATED      0x04  /* the kernel copied less than the packet (NFQA_CAP_LEN): never judged */

struct nq_block;                /* a reference-counted piece of the packet pool */

struct nq_packet {
    uint32_t id;                /* the caller's name for the packet; comes back in its decision */
    uint32_t in_ifindex;        /* 0: none (locally made) */
    uint32_t out_ifindex;       /* 0: none (locally delivered) */
    uint32_t flags;             /* NQ_CSUM_* | NQ_TRUNCATED */
    uint32_t len;               /* octets from the IP header on */
    uint8_t *data;              /* first octet of the IP header; writable, edits are made in place */
    struct nq_block *block;     /* the pool block `data` lies in, so that keeping costs no copy; NULL: keeping copies */
};

/* Netfilter's own numbers (linux/netfilter.h NF_DROP, NF_ACCEPT). */
enum nq_verdict { NQ_DROP = 0, NQ_ACCEPT = 1 };

enum nq_output_kind { NQ_DECISION = 0, NQ_INJECTION = 1 };

struct nq_output {
    uint32_t kind;              /* enum nq_output_kind: a verdict on a packet of yours, or a packet of our own */
    uint32_t id;                /* NQ_DECISION: the packet's id, of this call or of an earlier one that held it */
    uint32_t verdict;           /* NQ_DECISION: enum nq_verdict */
    uint32_t offload;           /* NQ_DECISION, NQ_ACCEPT: 1 where the kernel may have the packet's connection from now on */
    uint32_t len;               /* octets at data */
    uint8_t *data;              /* NQ_DECISION: NULL leaves as it came, else this leaves instead; checksums are complete */
};

/* In the order in which packets leave. */
struct nq_result {
    uint32_t count;
    struct nq_output *outputs;
};

/* ---- the policy, as flat tables --------------------------------------------------------------------------------- */

enum nq_banner { NQ_BANNER_PASS = 0, NQ_BANNER_ASA = 1, NQ_BANNER_TEXT = 2, NQ_BANNER_MODERN = 3 };

/* What cannot be judged, and what is done then. One table per policy. To pass is to give the flow up: this packet and all
 * that follows of the flow leave as they came; where an edit has changed the flow's length that cannot be, and it is reset. */
enum nq_exception {
    NQ_EXC_MIDSTREAM = 0,       /* a segment of a connection whose opening was not seen */
    NQ_EXC_GAP,                 /* the receiver has octets that never came by here */
    NQ_EXC_MEMORY,              /* a bound was reached */
    NQ_EXC_UNPARSABLE,          /* TCP options that do not parse, or that forbid edits (RFC 2385, RFC 5925) */
    NQ_EXC_TRUNCATED,           /* a packet that came incomplete */
    NQ_EXCEPTIONS
};
enum nq_answer { NQ_ANSWER_DROP = 0, NQ_ANSWER_RESET = 1, NQ_ANSWER_PASS = 2 };

/* What a rule does. Of the rules that match one thing, those that log are all told, and the first other one decides. */
enum nq_do {
    NQ_DO_LOG = 0,
    NQ_DO_ALLOW,                /* nothing, and no later rule is asked */
    NQ_DO_MASK,                 /* the line becomes X */
    NQ_DO_REPLACE,              /* the octets that matched become blanks (a bare LF behind a blank: the blank becomes CR) */
    NQ_DO_REMOVE,               /* EHLO replies: the line is taken out where it is whole, else it becomes X */
    NQ_DO_DROP,                 /* drop-connection: silent; this packet and all that follow are dropped */
    NQ_DO_RESET,                /* both ends are reset */
    NQ_DO_REJECT,               /* the client reads a reply, then the session is closed; the server is reset */
    NQ_DO_RATE_LIMIT,           /* as NQ_DO_REJECT for what goes beyond `rate` matches a second, else as NQ_DO_LOG */
    NQ_DOINGS
};

/* A deterministic automaton over octets (nfqguard/policy/regex.py). State 0 is the start. */
struct nq_regex_spec {
    uint32_t states, classes;   /* at most 65535 and 256 */
    const uint8_t *class_of;    /* 256: octet -> class */
    const uint16_t *next;       /* states x classes */
    const uint8_t *accepts;     /* by state; bit 0: has matched, and stays so; bit 1: matches if the text ends here */
};

struct nq_rule_spec {
    const char *name;           /* at most 31 octets; appears in events */
    uint32_t match;             /* number of a line in matches.def: nq_match_name() */
    uint32_t negate;            /* 1: acts on what does not match */
    uint32_t action;            /* enum nq_do */
    uint32_t log;               /* 1: tell it; NQ_DO_LOG always does */
    uint32_t dry_run;           /* 1: tell what would be done, and change nothing */
    uint32_t rate;              /* NQ_DO_RATE_LIMIT */
    uint64_t bound;             /* MATCH_ABOVE: more than this; MATCH_BELOW: fewer than this */
    const char **words;         /* MATCH_WORDS, upper case; none: any */
    uint32_t word_count;
    uint32_t except_words;      /* 1: all but these words */
    const uint16_t *codes;      /* MATCH_CODES: pairs, first and last code */
    uint32_t code_pairs;
    const struct nq_regex_spec *regex;  /* MATCH_REGEX, else NULL */
    const char *reply;          /* NQ_DO_REJECT and NQ_DO_RATE_LIMIT: the reply with its code, at most 253 octets */
};

struct nq_policy_spec {
    const char *name;           /* at most 31 octets; appears in events */
    const char **verbs;         /* upper case; what a client may say */
    uint32_t verb_count;
    const char **keywords;      /* upper case; what a server may offer in its EHLO reply */
    uint32_t keyword_count;
    uint32_t mask_verbs;        /* 1: other verbs become X; 0: every verb passes */
    uint32_t mask_keywords;     /* 1: other keywords become X; 0: every keyword passes */
    uint32_t remove_keywords;   /* 1: other keywords' lines are removed where a whole line is at hand, else masked */
    uint32_t banner;            /* enum nq_banner */
    const char *banner_text;    /* NQ_BANNER_TEXT: what stands in the greeting instead, without code; at most 253 octets */
    const char *insert_header;  /* a header line put before each message, without line end; at most 253 octets; NULL: none */
    const char *refusal;        /* the reply that a refused client reads, with its code; at most 253 octets; NULL: both ends
                                   are reset without a word */
    uint64_t max_data;          /* octets of message data per session; 0: no limit */
    uint32_t timeout;           /* seconds of silence after which a flow is forgotten; 0: as the engine's settings say */
    uint32_t alert;             /* 0: edits and matches are counted, not told; ends of flows are told always */
    uint32_t audit_trail;       /* 1: the beginning of a session is told, too */
    uint32_t dry_run;           /* 1: tell what would be done, and change nothing */
    uint32_t offload;           /* 1: once TLS has begun the kernel may take the flow over */
    const struct nq_rule_spec *rules;   /* in order */
    uint32_t rule_count;        /* at most 64 */
    uint8_t exceptions[5];      /* enum nq_answer, by enum nq_exception */
};

struct nq_policy;

const char *nq_match_name(uint32_t match);              /* NULL above the last */

/* Compile a policy. spec and all it points to may be freed afterwards. Returns NULL and a sentence in error
 * (NQ_ERROR_MAX octets) where the tables do not fit or a word is not made of letters, digits and '-'. */
struct nq_policy *nq_policy_new(const struct nq_policy_spec *spec, char *error);
void nq_policy_free(struct nq_policy *policy);

/* ---- classes: which policy, if any, a connection gets ------------------------------------------------------------ */

struct nq_network {
    uint32_t family;            /* 4 or 6 */
    uint32_t bits;              /* of the prefix: up to 32 or 128 */
    uint8_t prefix[16];         /* network order; IPv4 in the first four octets */
};

enum nq_direction {
    NQ_EITHER_WAY = 0,
    NQ_INBOUND,                 /* the server is inside and the client is not */
    NQ_OUTBOUND                 /* the client is inside and the server is not */
};

/* What a connection's SYN must show to be of this class. A list without entries asks for nothing. */
struct nq_class_spec {
    const char *name;           /* for messages */
    const struct nq_policy *policy;             /* NULL: exempt; its connections pass as they come */
    const struct nq_network *clients;           /* one of these holds the SYN's source */
    uint32_t client_count;
    const struct nq_network *servers;           /* and one of these its destination */
    uint32_t server_count;
    const struct nq_network *inside;            /* what direction is measured by */
    uint32_t inside_count;
    uint32_t direction;         /* enum nq_direction */
    const uint16_t *ports;      /* the SYN's destination port */
    uint32_t port_count;
    const uint32_t *in_ifindexes;               /* where the SYN came from; 0: this host */
    uint32_t in_count;
    const uint32_t *out_ifindexes;              /* where it goes; 0: this host */
    uint32_t out_count;
};

struct nq_classes;

/* Compile classes: the first that a connection is of decides; `otherwise` is for connections of none. The specs and what they
 * point to may be freed afterwards, but not the policies. Returns NULL and a sentence in error (NQ_ERROR_MAX octets) where a
 * network has more bits than its family or bits set behind its prefix, where there are more than 1024 classes or 65536 entries
 * in a list, or memory is short. */
struct nq_classes *nq_classes_new(const struct nq_class_spec *specs, uint32_t count, const struct nq_policy *otherwise,
                                  char *error);
void nq_classes_free(struct nq_classes *classes);

/* ---- the engine ------------------------------------------------------------------------------------------------- */

enum nq_binding { NQ_BIND_OFF = 0, NQ_BIND_STRICT = 1 };

struct nq_settings {
    uint32_t flows;             /* slots of the flow table */
    uint32_t large_blocks;      /* blocks for packets of up to 64 KiB */
    uint32_t small_blocks;      /* blocks of 2 KiB */
    uint32_t extents;           /* runs of stored octets, all flows together */
    uint32_t held;              /* packets held, all flows together */
    uint32_t held_per_flow;     /* packets held, one direction of one flow */
    uint32_t store_per_stream;  /* octets stored, one direction of one flow */
    uint32_t edit_logs;         /* streams whose length an edit has changed, all flows together */
    uint32_t events;            /* slots of the event ring, a power of two */
    uint32_t synwait;           /* seconds */
    uint32_t finwait;           /* seconds */
    uint32_t idle;              /* seconds */
    uint32_t tombstone;         /* seconds that a dead flow is remembered */
    uint32_t binding;           /* enum nq_binding */
    uint32_t offload;           /* 1: whoever carries the decisions out can hand a connection over to the kernel */
    uint32_t recorded;          /* 1: the ends do not hear us; they acknowledge what they were sent when a capture was taken */
    uint8_t hash_key[16];       /* SipHash key; random in production, fixed in tests */
};

struct nq_engine;

/* Fill in the defaults of nq.h. */
void nq_settings_default(struct nq_settings *settings);

/* All memory is taken here, none later. Returns NULL and a sentence in error where settings are out of range or memory
 * is short. The policy stays the caller's and must outlive every engine that it is installed in. */
struct nq_engine *nq_engine_new(const struct nq_settings *settings, const struct nq_policy *policy, char *error);
void nq_engine_free(struct nq_engine *engine);

/* The policy for flows that begin from now on; flows under way keep theirs. */
void nq_engine_install(struct nq_engine *engine, const struct nq_policy *policy);

/* The same with classes before it: connections of none get `otherwise`, which becomes the policy of what has no flow, too. The
 * classes stay the caller's and must outlive every engine that they are installed in, later installations or not. */
void nq_engine_install_classes(struct nq_engine *engine, const struct nq_classes *classes);

/* ENTRY ONE. Judge a packet. The result and what it points to stay valid until the next call; the packet's data must stay
 * in place that long, too. Holding a packet is no decision: its decision comes out of a later call, under its id. */
const struct nq_result *nq_engine_packet(struct nq_engine *engine, const struct nq_packet *packet, uint64_t now);

/* ENTRY TWO. Let time pass: expire what is due. Call it about once a second, and more often where holding matters. */
const struct nq_result *nq_engine_tick(struct nq_engine *engine, uint64_t now);

/* End the flows (their records become events) and drop what is held. For a stop. Ends no more of them than the event ring
 * has room for: take the events and call again until the counter "flows" is 0. */
const struct nq_result *nq_engine_drain(struct nq_engine *engine, uint64_t now);

/* ---- counters --------------------------------------------------------------------------------------------------- */

uint32_t nq_counter_count(void);
const char *nq_counter_name(uint32_t counter);          /* NULL above the last */
uint64_t nq_engine_counter(const struct nq_engine *engine, uint32_t counter);

/* ---- events ----------------------------------------------------------------------------------------------------- */

enum nq_event_type {
    NQ_EVENT_FLOW = 1,          /* the record of a flow that ended */
    NQ_EVENT_MASK_COMMAND,      /* a command line became X */
    NQ_EVENT_MASK_KEYWORD,      /* a line of the EHLO reply became X */
    NQ_EVENT_MASK_BANNER,       /* the greeting was masked */
    NQ_EVENT_RESET,             /* both ends were reset */
    NQ_EVENT_DROP,              /* a packet was dropped that a working network would not have sent */
    NQ_EVENT_TRANSITION,        /* the server said what its state does not allow */
    NQ_EVENT_REMOVE_KEYWORD,    /* a line of the EHLO reply was taken out */
    NQ_EVENT_REPLACE_BANNER,    /* the greeting's text was replaced */
    NQ_EVENT_INSERT_HEADER,     /* a header line was put before a message */
    NQ_EVENT_REJECT,            /* the client was told why by a reply, and the server was reset */
    NQ_EVENT_MATCH,             /* a rule has matched: what it did stands in `action` */
    NQ_EVENT_ANSWER,            /* the server's reply to a command that became X: code, line */
    NQ_EVENT_START              /* a session begins (audit trail) */
};

struct nq_event {
    uint64_t time;              /* ns since the epoch */
    uint64_t flow;              /* number of the flow within this engine, from 1 */
    uint64_t offset;            /* octets into the stream, from 0; of the line's first octet */
    uint64_t started;           /* ns; of the flow */
    uint64_t packets[2];        /* NQ_EVENT_FLOW; by direction: 0 from the client, 1 from the server */
    uint64_t octets[2];
    uint64_t value, bound;      /* of a rule: what was measured, and the bound that it passed */
    uint32_t length;            /* octets of the line without its end */
    uint32_t line;              /* number of the line within its direction, from 0 for the banner and 1 for the first command */
    uint16_t client_port;       /* host order */
    uint16_t server_port;
    uint8_t client[16];         /* network order; IPv4 as ::ffff:a.b.c.d */
    uint8_t server[16];
    uint8_t type;               /* enum nq_event_type */
    uint8_t direction;          /* 0 from the client, 1 from the server */
    uint8_t reason;             /* see nq_reason_name(); 0: none */
    uint8_t text_len, after_len;
    uint8_t rule;               /* 1 + place of the rule in the policy; 0: none */
    uint8_t match;              /* number in matches.def; with a rule */
    uint8_t action;             /* enum nq_do; with a rule */
    uint8_t dry_run;            /* 1: it was told, and not done */
    uint16_t code;              /* of the reply that this is about */
    char policy[32];
    char rule_name[32];
    char text[NQ_TEXT_MAX];     /* the first octets as they came; never those of an AUTH exchange */
    char after[NQ_TEXT_MAX];    /* the same octets as they left, or would have; edits only */
};

const char *nq_reason_name(uint32_t reason);            /* kebab-case; NULL above the last */

/* Take up to `max` events, oldest first. Returns how many. */
uint32_t nq_engine_events(struct nq_engine *engine, struct nq_event *into, uint32_t max);

/* ---- the queue loop --------------------------------------------------------------------------------------------- */

struct nq_queue_settings {
    int32_t fd;                 /* the netlink socket that has bound the queue; stays the caller's */
    uint32_t number;            /* of the queue, 0 to 65535 */
    uint32_t length;            /* packets the kernel may keep waiting (NFQA_CFG_QUEUE_MAXLEN) */
    uint32_t fail_open;         /* 1: what does not fit passes uninspected */
    uint32_t buffer;            /* octets of socket buffer, each way */
    uint32_t own_mark;          /* packet mark of what we inject, and own_mark + 1 of what conntrack must leave alone (the
                                   deployment exempts it from tracking), so below 0xffffffff; 0: no raw sockets, injections
                                   are counted and lost */
    uint32_t offload_mark;      /* bits set in the packet mark of a decision that offloads, for the deployment to keep on the
                                   connmark; 0: none */
};

struct nq_queue;

/* Configure a bound queue: copy range, GSO, length, fail-open; NO_ENOBUFS, CAP_ACK and buffers on the socket. Returns NULL
 * and a sentence in error where the kernel refuses. */
struct nq_queue *nq_queue_new(const struct nq_queue_settings *settings, struct nq_engine *engine, char *error);

/* Receive, judge, answer, until nq_queue_stop(). Releases nothing and closes nothing. Returns 0 or -errno. */
int32_t nq_queue_run(struct nq_queue *queue);

/* Ends nq_queue_run() soon; async-signal-safe, from any thread, also before run began. */
void nq_queue_stop(struct nq_queue *queue);

/* How often the loop came round: grows at least once a second while the loop lives. For a watchdog. */
uint64_t nq_queue_progress(const struct nq_queue *queue);

/* 0, or -errno: why connection tracking cannot be asked what it makes of what we inject. Then all of it leaves under
 * own_mark, and where addresses are translated it reaches one end only. */
int32_t nq_queue_conntrack(const struct nq_queue *queue);

void nq_queue_free(struct nq_queue *queue);
