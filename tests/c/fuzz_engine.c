/*
 * fuzz_engine.c - dialogues, mutilated, through the engine's two entries; wire.c asserts after each call.
 *
 *   fuzz_engine SEED PACKETS    the same run each time for one seed
 *
 * Compiled with -DLIBFUZZER and -fsanitize=fuzzer, the same run takes its choices from the fuzzer's input instead of a seed.
 *
 * Each flow is honest or not. The segments of an honest one are cut, lost, doubled, delayed and sent again, cut elsewhere,
 * and what arrives must be what was said, but for what the policy masks, replaces or removes; under a dry run it must be
 * what was said. The segments of the others lie: other octets at the same place, wrong numbers, broken headers with right
 * checksums.
 */
#include <stdio.h>
#include <stdlib.h>

#include "every_match.h"
#include "harness.h"
#include "wire.h"

#define SECOND 1000000000ull

/* ---- where the choices come from ---- */

struct choices {
    struct dice dice;
    const uint8_t *data;        /* the fuzzer's input; NULL: the dice */
    size_t left;
};

static uint32_t choose(struct choices *choices, uint32_t bound)
{
    if (!choices->data)
        return dice_below(&choices->dice, bound);
    uint32_t value = 0;
    for (uint32_t span = bound - 1; span && choices->left; span >>= 8, choices->left--)
        value = value << 8 | *choices->data++;
    return value % bound;
}

static bool exhausted(const struct choices *choices) { return choices->data && !choices->left; }

/* ---- what is said ---- */

struct turn {
    unsigned from;
    const char *text;
};

#define BODY "Subject: x\r\n\r\nline one\r\n..stuffed\r\n\r\n.x\r\nbare\nfeeds\n.\nand\r.\rreturns\r\n" \
             "0123456789012345678901234567890123456789012345678901234567890123456789\r\n"
#define OPENING { SERVER, "220-mail 2026 ready\r\n220 ESMTP\r\n" }, { CLIENT, "EHLO me\r\n" }, \
                { SERVER, "250-mail\r\n250-SIZE 1000\r\n250-XSECRET on\r\n250-CHUNKING\r\n250 8BITMIME\r\n" }

static const struct turn whole_session[] = {
    OPENING,
    { CLIENT, "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n" },
    { SERVER, "250 ok\r\n250-ok\r\n250 ok\r\n550 no\r\n354 go ahead\r\n" },
    { CLIENT, BODY BODY BODY BODY ".\r\n" }, { SERVER, "250 queued\r\n" },
    { CLIENT, "EXPN root\r\n" }, { SERVER, "500 what?\r\n" },
    { CLIENT, "NOOP\nEXPN\nRSET\r\nEXPN everybody in this house\r\nHELP\r\n" },
    { SERVER, "250 ok\r\n500 no\r\n250 ok\r\n500 no\r\n214 none\r\n" },
    { CLIENT, "QUIT\r\n" }, { SERVER, "221 bye\r\n" }, { CLIENT, NULL },
};
static const struct turn authenticated[] = {
    OPENING,
    { CLIENT, "AUTH LOGIN\r\n" }, { SERVER, "334 VXNlcm5hbWU6\r\n" }, { CLIENT, "dXNlcg==\r\n" },
    { SERVER, "334 UGFzc3dvcmQ6\r\n" }, { CLIENT, "c2VjcmV0\r\n" }, { SERVER, "235 welcome\r\n" },
    { CLIENT, "EXPN root\r\nDATA\r\n" }, { SERVER, "500 no\r\n503 no mail\r\n" }, { CLIENT, "EXPN again\r\n" },
    { SERVER, "500 no\r\n" }, { CLIENT, "QUIT\r\n" }, { SERVER, "221 bye\r\n" }, { CLIENT, NULL },
};
static const struct turn encrypted[] = {
    OPENING,
    { CLIENT, "STARTTLS\r\n" }, { SERVER, "220 go ahead\r\n" },
    { CLIENT, "\x16\x03\x01\x02" BODY BODY BODY }, { SERVER, "\x16\x03\x03" BODY }, { CLIENT, BODY },
    { SERVER, "\x17\x03\x03" BODY BODY }, { CLIENT, NULL },
};
#define MIME "From: a@b\r\nTo: c@d, e@f\r\nSubject: x\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"zz\"\r\n\r\n" \
             "--zz\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nstuff=3D\r\n" \
             "--zz\r\nContent-Type: application/octet-stream; name*=utf-8''a%2eexe\r\nContent-Transfer-Encoding: base64\r\n" \
             "Content-Disposition: attachment; filename=\"=?utf-8?B?YS5leGU=?=\"\r\n\r\nTVqQAAMAAAAEAAAA\r\n--zz--\r\n"

static const struct turn chunked[] = {
    OPENING,
    { CLIENT, "MAIL FROM:<a@b> SIZE=100 BODY=8BITMIME\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f> NOTIFY=NEVER\r\n" },
    { SERVER, "250 ok\r\n250 ok\r\n250 ok\r\n" },
    { CLIENT, "BDAT 50\r\n012345678901234567890123456789012345678901234\r\n.\r\nNO" }, /* the chunk ends before NO: 50 octets */
    { SERVER, "250 50 octets\r\n" },
    { CLIENT, "OP\r\nBDAT 9 LAST\r\n.\r\nEXP.\r\nRSET\r\n" },
    { SERVER, "250 ok\r\n250 queued\r\n250 ok\r\n" },
    { CLIENT, "BDAT\r\nBDAT 1O\r\nBDAT 99999999999999999999\r\nBDAT 0 LAST\r\n" },
    { SERVER, "501 what?\r\n501 what?\r\n501 what?\r\n250 nothing queued\r\n" }, { CLIENT, "QUIT\r\n" },
    { SERVER, "221 bye\r\n" }, { CLIENT, NULL },
};
static const struct turn mime_mail[] = {
    OPENING,
    { CLIENT, "MAIL FROM:<|a`@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f> NOPE=1\r\nDATA\r\n" },
    { SERVER, "250 ok\r\n550 no\r\n550 no\r\n354 go ahead\r\n" },
    { CLIENT, MIME BODY MIME ".\r\n" }, { SERVER, "250 queued\r\n" },
    { CLIENT, "AUTH PLAIN AHUAcA==\r\n" }, { SERVER, "334 \r\n" }, { CLIENT, "c2VjcmV0\r\n" }, { SERVER, "535 no\r\n" },
    { CLIENT, "NOOP \nRSET\r\nHELP x\nMAIL FROM:<a@b\r\nQUIT" }, { SERVER, "250 ok\r\n250 ok\r\n214 none\r\n501 what?\r\n" },
    { CLIENT, NULL },
};
static const struct turn *const scripts[] = { whole_session, authenticated, encrypted, chunked, mime_mail };

/* ---- one run ---- */

struct run {
    struct wire wire;
    bool rewrites;              /* lines of the EHLO reply may be gone, or a refusal may follow what the server said */
    bool edits, dry;            /* the policy replaces single octets; it changes nothing but what nobody could read on from */
    struct choices *choices;
    const struct turn *turn;    /* whose text may be said by now */
    char *script[2];            /* what each side has been given to say, by offset */
    uint32_t limit[2];          /* octets of it */
    bool honest, chunked;
    uint32_t flows;
};

static void give_turn(struct run *run)
{
    const struct turn *turn = run->turn;
    if (!turn->text)
        return;
    size_t len = strlen(turn->text);
    CHECK(run->limit[turn->from] + len < WIRE_STREAM_MAX);
    memcpy(run->script[turn->from] + run->limit[turn->from], turn->text, len);
    run->limit[turn->from] += (uint32_t)len;
}

static uint32_t said(const struct run *run, unsigned from) { return run->wire.side[from].next - run->wire.side[from].isn - 1; }

/* The next turn begins when the present one has arrived. */
static void take_turns(struct run *run)
{
    while (run->turn->text && wire_arrived_len(&run->wire, !run->turn->from) >= run->limit[run->turn->from]) {
        run->turn++;
        give_turn(run);
    }
}

static void check_arrived(struct run *run, unsigned from)
{
    uint32_t len = wire_arrived_len(&run->wire, !from);
    const char *arrived = wire_arrived(&run->wire, !from);
    if (len > run->limit[from])
        harness_fail(__FILE__, __LINE__, "%u octets from %u arrived, %u were said: %.40s", len, from, run->limit[from], arrived + run->limit[from]);
    for (uint32_t i = 0; i < len; i++) {
        bool strict = run->dry && !run->chunked;
        bool masked = !strict && (arrived[i] == 'X' || (from == SERVER && arrived[i] == '*'));
        bool replaced = run->edits && from == CLIENT && (arrived[i] == ' ' || (arrived[i] == '\r' && run->script[from][i] == ' '));
        if (arrived[i] != run->script[from][i] && !masked && !replaced)
            harness_fail(__FILE__, __LINE__, "octet %u from %u arrived as %02x, said as %02x", i, from, (uint8_t)arrived[i],
                         (uint8_t)run->script[from][i]);
    }
    CHECK(run->dry || strstr(arrived, "EXPN") == NULL);
}

static void next_flow(struct run *run)
{
    if (run->honest)
        for (unsigned from = 0; from < 2 && !(from == SERVER && run->rewrites); from++)
            check_arrived(run, from);
    struct wire *wire = &run->wire;
    run->flows++;
    run->honest = choose(run->choices, 2);
    run->turn = scripts[choose(run->choices, sizeof scripts / sizeof *scripts)];
    run->chunked = run->turn == chunked;    /* a BDAT whose octets cannot be counted is masked even then */
    run->limit[CLIENT] = run->limit[SERVER] = 0;
    wire->family = choose(run->choices, 2) ? 4 : 6;
    wire->side[CLIENT].isn = choose(run->choices, 2) ? 0u - choose(run->choices, 2000) : choose(run->choices, 1u << 31);
    wire->side[SERVER].isn = choose(run->choices, 2) ? 0u - choose(run->choices, 500) : 0x7fffff00u;
    if (choose(run->choices, 4))    /* else the table stays full, and the new flow finds no place, perhaps */
        wire_tick(wire, wire->now + (wire->settings.idle + 1) * SECOND);
    wire_next_flow(wire, (uint16_t)(20000 + run->flows % 40000));
    give_turn(run);
}

/* ---- segments ---- */

static struct segment segment_at(struct run *run, unsigned from, uint32_t offset, uint32_t len)
{
    struct side *side = &run->wire.side[from];
    return (struct segment){ .from = from, .seq = side->isn + 1 + offset, .ack = side->got, .flags = NQ_ACK, .window = 0xffff,
                             .payload = run->script[from] + offset, .len = len };
}

static bool open_flow(struct run *run)
{
    static const uint8_t options[8] = { 2, 4, WIRE_MSS >> 8, WIRE_MSS & 0xff, 3, 3, 4, 1 };
    struct side *side = run->wire.side;
    struct segment syn = { .from = CLIENT, .seq = side[CLIENT].isn, .flags = NQ_SYN, .window = 0x2000, .options = options,
                           .options_len = choose(run->choices, 2) ? 8 : 4 };
    struct segment syn_ack = { .from = SERVER, .seq = side[SERVER].isn, .ack = side[CLIENT].isn + 1, .flags = NQ_SYN | NQ_ACK,
                               .window = 0x2000, .options = options, .options_len = choose(run->choices, 2) ? 8 : 4 };
    wire_send(&run->wire, syn);
    wire_send(&run->wire, syn_ack);
    return wire_ack(&run->wire, CLIENT) == ACCEPTED;
}

static void say_more(struct run *run, unsigned from, bool lost)
{
    uint32_t offset = said(run, from), left = run->limit[from] - offset;
    if (!left)
        return;
    uint32_t bound = choose(run->choices, 3) ? 40 : 1500;
    uint32_t len = 1 + choose(run->choices, left < bound ? left : bound);
    run->wire.side[from].next += len;
    if (!lost)
        wire_send(&run->wire, segment_at(run, from, offset, len));
}

static void say_again(struct run *run, unsigned from, uint32_t offset)
{
    uint32_t left = said(run, from) - offset;
    if (left)
        wire_send(&run->wire, segment_at(run, from, offset, 1 + choose(run->choices, left < 1500 ? left : 1500)));
}

/* What the other side lacks. */
static void recover(struct run *run, unsigned from)
{
    if (said(run, from) > wire_arrived_len(&run->wire, !from))
        say_again(run, from, wire_arrived_len(&run->wire, !from));
}

static void say_again_anywhere(struct run *run, unsigned from)
{
    uint32_t all = said(run, from);
    if (all)
        say_again(run, from, choose(run->choices, all));
}

static void lie(struct run *run, unsigned from)
{
    static const char favourites[] = "\r\n.\0 XDEA-250354";
    uint8_t octets[600];
    uint32_t all = run->limit[from] + 50, offset = choose(run->choices, all), len = 1 + choose(run->choices, sizeof octets);
    for (uint32_t i = 0; i < len; i++)
        octets[i] = (uint8_t)favourites[choose(run->choices, sizeof favourites - 1)];
    struct segment segment = segment_at(run, from, offset, len);
    segment.payload = octets;
    segment.flags |= choose(run->choices, 8) ? 0 : (uint8_t)choose(run->choices, 64);
    wire_send(&run->wire, segment);
}

static void wrong_numbers(struct run *run, unsigned from)
{
    struct segment segment = segment_at(run, from, 0, choose(run->choices, run->limit[from] + 1));
    segment.seq += choose(run->choices, 2) ? choose(run->choices, 9000) - 3000 : choose(run->choices, 1u << 31) * 2;
    segment.ack += choose(run->choices, 2) ? choose(run->choices, 9000) - 8000 : 0;
    segment.flags = (uint8_t)choose(run->choices, 64);
    segment.window = choose(run->choices, 65536);
    segment.packet_flags = choose(run->choices, 8);
    segment.in_ifindex = choose(run->choices, 8) ? 0 : 1 + choose(run->choices, 5);
    segment.out_ifindex = segment.in_ifindex ? 1 + choose(run->choices, 5) : 0;
    wire_send(&run->wire, segment);
}

static uint32_t break_octets(struct run *run, uint8_t *octets, uint32_t len)
{
    uint32_t headers = len < 60 ? len : 60;
    for (uint32_t flips = choose(run->choices, 4); flips && headers; flips--)
        octets[choose(run->choices, headers)] = (uint8_t)choose(run->choices, 256);
    if (!choose(run->choices, 3))
        len = choose(run->choices, len + 1);
    struct nq_packet packet = { .data = octets, .len = len };
    struct nq_view view;
    if (choose(run->choices, 4) && packet_view(&view, &packet) == REASON_NONE)
        packet_checksum_write(&view);
    return len;
}

static void break_headers(struct run *run, unsigned from)
{
    uint8_t octets[2000];
    static const uint8_t options[12] = { 2, 4, 5, 0xb4, 3, 3, 200, 34, 4, 1, 2, 1 };
    uint32_t all = said(run, from), offset = all ? choose(run->choices, all) : 0;
    struct segment segment = segment_at(run, from, offset, all - offset < 1000 ? all - offset : 1000);
    segment.options = options;
    segment.options_len = choose(run->choices, 4) * 4;
    struct nq_packet packet = { .in_ifindex = from == CLIENT ? CLIENT_IFINDEX : SERVER_IFINDEX,
                                .out_ifindex = from == CLIENT ? SERVER_IFINDEX : CLIENT_IFINDEX };
    packet.len = break_octets(run, octets, wire_write(&run->wire, &segment, octets));
    wire_send_raw(&run->wire, octets, packet);
}

static void syn_again(struct run *run, unsigned from)
{
    struct segment syn = segment_at(run, from, 0, choose(run->choices, 2) ? 0 : run->limit[from]);
    syn.seq = run->wire.side[from].isn + (choose(run->choices, 2) ? 0 : choose(run->choices, 1000));
    syn.flags = from == SERVER ? NQ_SYN | NQ_ACK : NQ_SYN;
    syn.ack = from == SERVER ? run->wire.side[CLIENT].isn + choose(run->choices, 1000) : 0;
    wire_send(&run->wire, syn);
}

static void end_half(struct run *run, unsigned from)
{
    struct segment segment = segment_at(run, from, said(run, from), 0);
    segment.flags = choose(run->choices, 3) ? NQ_ACK | NQ_FIN : NQ_RST;
    wire_send(&run->wire, segment);
}

static void let_time_pass(struct run *run)
{
    uint64_t seconds = choose(run->choices, 50) ? choose(run->choices, 4) : choose(run->choices, 5000);
    wire_tick(&run->wire, run->wire.now + seconds * SECOND + choose(run->choices, 1000) * 1000000ull);
}

static void dishonest_step(struct run *run, unsigned from)
{
    switch (choose(run->choices, 6)) {
    case 0: lie(run, from); break;
    case 1: wrong_numbers(run, from); break;
    case 2: break_headers(run, from); break;
    case 3: syn_again(run, from); break;
    case 4: if (!choose(run->choices, 8)) end_half(run, from); break;
    case 5: lie(run, CLIENT); break;
    }
}

static void step(struct run *run)
{
    unsigned from = choose(run->choices, 2);
    switch (choose(run->choices, 12)) {
    case 0: case 1: case 2: say_more(run, run->turn->from, false); break;
    case 3: say_more(run, from, true); break;
    case 4: case 5: recover(run, CLIENT); break;
    case 6: recover(run, SERVER); break;
    case 7: say_again_anywhere(run, from); break;
    case 8: wire_ack(&run->wire, from); break;
    case 9: if (!choose(run->choices, 4)) let_time_pass(run); break;
    default:
        if (!run->honest)
            dishonest_step(run, from);
        else if (!choose(run->choices, 400))
            end_half(run, from);
    }
    take_turns(run);
}

/* Small bounds, each of which is reached now and then. */
static struct nq_settings tight_settings(struct choices *choices)
{
    struct nq_settings settings = wire_settings();
    settings.flows = 1 + choose(choices, 6);
    settings.held = choose(choices, 20);
    settings.held_per_flow = 1 + choose(choices, 12);
    settings.small_blocks = 4 + choose(choices, 30);
    settings.extents = 4 + choose(choices, 60);
    settings.large_blocks = 4 + choose(choices, 8);
    settings.binding = choose(choices, 4) ? NQ_BIND_STRICT : NQ_BIND_OFF;
    settings.events = 64;
    return settings;
}

static uint64_t reached[COUNTERS];

static void tally(const struct wire *wire)
{
    for (uint32_t i = 0; i < COUNTERS; i++)
        reached[i] += nq_engine_counter(wire->engine, i);
}

/* One flow from its opening to where nothing more happens. */
static void run_flow(struct run *run, uint32_t packets)
{
    struct choices *choices = run->choices;
    struct side *side = run->wire.side;
    next_flow(run);
    uint32_t left = open_flow(run) ? 20 + choose(choices, 600) : choose(choices, 10);
    for (; left && run->wire.id < packets && !exhausted(choices); left--) {
        bool over = !run->turn->text || side[CLIENT].resets;
        if (over && !choose(choices, 8))
            break;
        if (!choose(choices, 32))
            run->wire.blocks = !run->wire.blocks;
        step(run);
    }
}

static struct nq_policy *roll_policy(struct run *run)
{
    uint32_t kind = choose(run->choices, 2 + MANNERS);
    if (kind < 2)
        return wire_policy(kind);
    enum manner manner = (enum manner)(kind - 2);
    run->edits = manner == EDITS;
    run->dry = manner == DRY;
    run->rewrites = manner == EDITS || manner == ENDS;
    return every_match(manner, choose(run->choices, PARTS));
}

static uint32_t run_wire(struct choices *choices, uint32_t packets)
{
    struct run run = { .choices = choices };
    struct nq_settings settings = tight_settings(choices);
    wire_open(&run.wire, &settings, roll_policy(&run));
    for (int i = 0; i < 2; i++)
        run.script[i] = malloc(WIRE_STREAM_MAX);
    while (run.wire.id < packets && !exhausted(choices))
        run_flow(&run, packets);
    if (run.honest)
        next_flow(&run);
    uint32_t sent = run.wire.id;
    tally(&run.wire);
    wire_close(&run.wire);
    free(run.script[0]);
    free(run.script[1]);
    return sent;
}

#ifdef LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct choices choices = { .data = data, .left = size };
    if (size)
        run_wire(&choices, 5000);
    return 0;
}
#else
int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s SEED PACKETS\n", argv[0]);
        return 2;
    }
    uint64_t seed = strtoull(argv[1], NULL, 0);
    uint32_t packets = (uint32_t)strtoul(argv[2], NULL, 0), wires = 0;
    printf("seed %llu, %u packets\n", (unsigned long long)seed, packets);
    fflush(stdout);
    for (uint32_t sent = 0; sent < packets; wires++) {
        struct choices choices = { .dice = { seed + wires + 1 } };
        harness_row("seed %llu, wire %u", (unsigned long long)seed, wires);
        sent += run_wire(&choices, 3000);
    }
    printf("wires %u\n", wires);
    for (uint32_t i = 0; i < COUNTERS; i++)
        printf("%s %llu\n", nq_counter_name(i), (unsigned long long)reached[i]);
    return 0;
}
#endif
