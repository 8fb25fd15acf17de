/* player.h - what Python calls of player.c; plain declarations, for cffi reads this very file. */

enum { TURN_SAY = 0, TURN_TRUNCATED, TURN_FIN, TURN_RST, TURN_SECONDS,
       TURN_LOST,               /* is lost behind the engine */
       TURN_AGAIN };            /* other octets in the place of what was lost */

enum { OPENING_SEEN = 0, OPENING_MISSED, OPENING_SYN_ONLY };

struct player_turn {
    uint32_t what;              /* TURN_* */
    uint32_t side;              /* 0: the client, 1: the server */
    uint32_t len;               /* octets; TURN_SECONDS: how many */
    const uint8_t *octets;
};

struct player_cut {
    uint32_t turn, at;          /* this turn is cut before its octet `at`; 0: no turn is */
    uint32_t step;              /* every turn is cut into pieces of so many octets; 0: none is */
    uint32_t twice;             /* 1: each segment is sent twice */
    uint32_t opening;           /* OPENING_* */
};

struct player_calls {           /* the engine, and its two entries */
    struct nq_engine *engine;
    const struct nq_result *(*packet)(struct nq_engine *engine, const struct nq_packet *packet, uint64_t now);
    const struct nq_result *(*tick)(struct nq_engine *engine, uint64_t now);
};

struct player_outcome {
    uint64_t now;
    const uint8_t *heard[2];    /* what each application has read, first the client's */
    uint32_t heard_len[2];
    uint32_t withheld[2];       /* the most octets of this end that the other had not read when all was acknowledged */
    uint32_t reset[2];
    uint32_t finished[2];       /* has read the other's FIN */
    const char *fault;          /* what no packet may be; empty: nothing */
};

struct player;
struct player *player_new(void);
void player_free(struct player *player);
/* Speak the turns. The outcome's pointers stay valid until the next call. */
void player_play(struct player *player, const struct player_calls *calls, const struct player_turn *turns, uint32_t count,
                 const struct player_cut *cut, uint64_t now, struct player_outcome *outcome);
