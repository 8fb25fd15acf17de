/*
 * test_flow.c - the flow table: states and timers by themselves, then whole segments through the engine.
 */
#include <stdlib.h>

#include "harness.h"
#include "wire.h"

#define SECOND 1000000000ull

/* ---- the table of states ---- */

static const uint8_t paths[FLOW_STATES][5] = {  /* events, each plus one, that lead there from FREE */
    [FLOW_SYN_SENT] = { ON_SYN + 1 },
    [FLOW_SYN_RECEIVED] = { ON_SYN + 1, ON_SYN_ACK + 1 },
    [FLOW_ESTABLISHED] = { ON_SYN + 1, ON_SYN_ACK + 1, ON_ACK + 1 },
    [FLOW_HALF_CLOSED] = { ON_SYN + 1, ON_SYN_ACK + 1, ON_ACK + 1, ON_FIRST_FIN + 1 },
    [FLOW_CLOSING] = { 0xff },
    [FLOW_CLOSED] = { ON_SYN + 1, ON_RST + 1 },
    [FLOW_REFUSED] = { ON_SYN + 1, ON_SYN_ACK + 1, ON_ACK + 1, ON_REPLIED + 1 },
    [FLOW_DEAD] = { ON_SYN + 1, ON_REFUSED + 1 },
    [FLOW_LEFT] = { ON_SYN + 1, ON_SYN_ACK + 1, ON_ACK + 1, ON_LEFT + 1 },
};

/* One letter a state, one column an event: SYN, SYN-ACK, ACK, first FIN, second FIN, all acknowledged, RST, refused,
 * replied, left to itself. A dot: the event does not fit the state, which stays. */
static const char letters[] = "FSREHCXPDL";
static const struct { uint8_t state; const char *next; } transitions[] = {
    { FLOW_FREE,         "S........." },
    { FLOW_SYN_SENT,     "SR....XD.." },
    { FLOW_SYN_RECEIVED, "SRE...XD.." },
    { FLOW_ESTABLISHED,  "S..H..XDPL" },
    { FLOW_HALF_CLOSED,  "S...C.XDPL" },
    { FLOW_CLOSING,      "S....XXD.." },
    { FLOW_CLOSED,       "S....XXD.." },
    { FLOW_REFUSED,      ".......D.." },
    { FLOW_DEAD,         "S......D.." },
    { FLOW_LEFT,         "S.E......." },
};

static struct nq_flow *flow_in(struct nq_flow_table *table, uint8_t state)
{
    struct nq_packet packet = { .in_ifindex = CLIENT_IFINDEX, .out_ifindex = SERVER_IFINDEX };
    static const uint8_t addresses[2][4] = { { 10, 0, 0, 1 }, { 10, 0, 0, 2 } };
    struct nq_view view = { .packet = &packet, .family = 4, .source = addresses[0], .destination = addresses[1],
                            .source_port = 5, .destination_port = 25 };
    uint8_t through = state == FLOW_CLOSING ? FLOW_HALF_CLOSED : state;
    struct nq_flow *flow = flow_open(table, &view, 1);
    for (int i = 0; i < 5 && paths[through][i]; i++)
        CHECK(flow_on(table, flow, paths[through][i] - 1, 1));
    if (state == FLOW_CLOSING)
        CHECK(flow_on(table, flow, ON_SECOND_FIN, 1));
    CHECK_EQUAL(flow->state, state);
    return flow;
}

static int linked(const struct nq_flow_table *table, int timer, const struct nq_flow *flow)
{
    int found = 0;
    for (uint32_t at = table->timers[timer].oldest; at; at = table->slots[at].newer)
        found += &table->slots[at] == flow;
    for (uint32_t at = table->timers[timer].newest; at; at = table->slots[at].older)
        found += &table->slots[at] == flow;
    return found;
}

static void check_event(uint8_t state, uint8_t event, char next)
{
    static const int timers[FLOW_STATES] = { -1, TIMER_SYN, TIMER_SYN, TIMER_IDLE, TIMER_IDLE, TIMER_FIN, TIMER_FIN, TIMER_REFUSED,
                                             TIMER_TOMBSTONE, TIMER_TOMBSTONE };
    struct nq_settings settings = wire_settings();
    struct nq_flow_table table;
    CHECK(flow_table_init(&table, &settings));
    struct nq_flow *flow = flow_in(&table, state);
    harness_row("state %d, event %d", state, event);
    CHECK_EQUAL(flow_on(&table, flow, event, 2), next != '.');
    CHECK_EQUAL(flow->state, next == '.' ? state : strchr(letters, next) - letters);
    for (int timer = 0; timer < TIMERS; timer++)
        CHECK_EQUAL(linked(&table, timer, flow), timer == timers[flow->state] ? 2 : 0);
    flow_free(&table, flow);
    CHECK_EQUAL(table.used, 0);
    flow_table_end(&table);
}

TEST(every_state_and_event)
{
    for (size_t i = 0; i < sizeof transitions / sizeof *transitions; i++)
        for (uint8_t event = 0; event < FLOW_EVENTS; event++)
            check_event(transitions[i].state, event, transitions[i].next[event]);
}

/* ---- chains and the free list ---- */

struct end {
    uint8_t address[4];
    uint16_t port;
};

static struct nq_view view_from(const struct end *end, const struct nq_packet *packet)
{
    static const uint8_t server[4] = { 10, 0, 0, 2 };
    return (struct nq_view){ .packet = packet, .family = 4, .source = end->address, .destination = server,
                             .source_port = end->port, .destination_port = 25 };
}

static void check_found(struct nq_flow_table *table, const struct end *ends, struct nq_flow **flows, int count)
{
    struct nq_packet there = { .in_ifindex = 3, .out_ifindex = 4 }, back = { .in_ifindex = 4, .out_ifindex = 3 };
    for (int i = 0; i < count; i++) {
        unsigned direction = 9;
        struct nq_view view = view_from(&ends[i], &there);
        CHECK(flow_find(table, &view, &direction) == flows[i]);
        CHECK(!flows[i] || direction == 0);
        view.packet = &back;
        view.destination = ends[i].address;
        view.source = view_from(&ends[i], &there).destination;
        view.source_port = 25;
        view.destination_port = ends[i].port;
        CHECK(flow_find(table, &view, &direction) == flows[i]);
        CHECK(!flows[i] || direction == 1);
    }
}

TEST(flows_are_found_in_both_directions_whatever_shares_their_bucket)
{
    enum { COUNT = 300 };
    static struct end ends[COUNT];
    static struct nq_flow *flows[COUNT];
    struct nq_packet packet = { .in_ifindex = 3, .out_ifindex = 4 };
    struct nq_settings settings = wire_settings();
    struct nq_flow_table table;
    struct dice dice = { 5 };
    settings.flows = 256;
    CHECK(flow_table_init(&table, &settings));
    table.mask = 7; /* eight buckets: chains of some thirty */
    for (int i = 0; i < COUNT; i++) {
        ends[i] = (struct end){ { 10, 0, (uint8_t)(i % 3), (uint8_t)(1 + i) }, (uint16_t)(1024 + i * 7) };
        struct nq_view view = view_from(&ends[i], &packet);
        flows[i] = flow_open(&table, &view, 1);
        CHECK_EQUAL(flows[i] != NULL, i < 256);
    }
    check_found(&table, ends, flows, COUNT);
    for (int round = 0; round < 2000; round++) {
        int i = (int)dice_below(&dice, COUNT);
        struct nq_view view = view_from(&ends[i], &packet);
        if (flows[i])
            flow_free(&table, flows[i]);
        flows[i] = flows[i] ? NULL : flow_open(&table, &view, 1);
        if (round % 100 == 0)
            check_found(&table, ends, flows, COUNT);
    }
    check_found(&table, ends, flows, COUNT);
    flow_table_end(&table);
}

/* ---- segments ---- */

static struct wire *opened(struct wire *wire)
{
    struct nq_settings settings = wire_settings();
    wire_open(wire, &settings, wire_policy(false));
    return wire;
}

static struct wire *established(struct wire *wire)
{
    opened(wire);
    wire_handshake(wire);
    return wire;
}

static struct segment syn_of(const struct wire *wire)
{
    return (struct segment){ .from = CLIENT, .seq = wire->side[CLIENT].isn, .flags = NQ_SYN, .window = 0xffff };
}

static struct segment syn_ack_of(const struct wire *wire)
{
    return (struct segment){ .from = SERVER, .seq = wire->side[SERVER].isn, .ack = wire->side[CLIENT].isn + 1,
                             .flags = NQ_SYN | NQ_ACK, .window = 0xffff };
}

static struct segment next_of(const struct wire *wire, unsigned from, uint8_t flags)
{
    return (struct segment){ .from = from, .seq = wire->side[from].next, .ack = wire->side[from].got, .flags = flags,
                             .window = 0xffff };
}

static void check_drop(struct wire *wire, struct segment segment, enum nq_reason reason)
{
    uint64_t before = wire_drops(wire, reason);
    CHECK_EQUAL(wire_send(wire, segment), DROPPED);
    if (wire_drops(wire, reason) != before + 1)
        harness_fail(__FILE__, __LINE__, "dropped, but not as %s", nq_reason_name(reason));
}

TEST(nothing_passes_before_the_syn)
{
    struct wire wire;
    opened(&wire);
    check_drop(&wire, syn_ack_of(&wire), REASON_MIDSTREAM);
    check_drop(&wire, next_of(&wire, CLIENT, NQ_ACK), REASON_MIDSTREAM);
    check_drop(&wire, next_of(&wire, SERVER, NQ_RST), REASON_MIDSTREAM);
    check_drop(&wire, next_of(&wire, CLIENT, NQ_SYN | NQ_FIN), REASON_MIDSTREAM);
    check_drop(&wire, next_of(&wire, CLIENT, 0), REASON_MIDSTREAM);
    wire_close(&wire);
}

TEST(nothing_but_a_syn_ack_answers_a_syn)
{
    struct wire wire;
    opened(&wire);
    CHECK_EQUAL(wire_send(&wire, syn_of(&wire)), ACCEPTED);
    CHECK_EQUAL(wire_send(&wire, syn_of(&wire)), ACCEPTED); /* retransmitted */
    check_drop(&wire, next_of(&wire, CLIENT, NQ_ACK), REASON_HANDSHAKE);
    check_drop(&wire, next_of(&wire, SERVER, NQ_ACK), REASON_HANDSHAKE);
    check_drop(&wire, next_of(&wire, SERVER, NQ_SYN), REASON_SIMULTANEOUS);
    struct segment wrong = syn_ack_of(&wire);
    wrong.ack++;
    check_drop(&wire, wrong, REASON_HANDSHAKE);
    wrong.from = CLIENT;
    check_drop(&wire, wrong, REASON_HANDSHAKE);
    CHECK_EQUAL(wire_send(&wire, syn_ack_of(&wire)), ACCEPTED);
    CHECK_EQUAL(wire_send(&wire, syn_ack_of(&wire)), ACCEPTED);
    check_drop(&wire, next_of(&wire, SERVER, NQ_ACK), REASON_HANDSHAKE); /* a server that does not wait for the ACK */
    struct segment early = next_of(&wire, CLIENT, NQ_ACK);
    early.ack--;
    check_drop(&wire, early, REASON_HANDSHAKE);
    CHECK_EQUAL(wire_ack(&wire, CLIENT), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, SERVER, "220 x\r\n"), ACCEPTED);
    wire_close(&wire);
}

TEST(the_ack_of_the_opening_may_carry_data)
{
    struct wire wire;
    opened(&wire);
    CHECK_EQUAL(wire_send(&wire, syn_of(&wire)), ACCEPTED);
    CHECK_EQUAL(wire_send(&wire, syn_ack_of(&wire)), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "EHLO x\r\n"), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "EHLO x\r\n");
    wire_close(&wire);
}

TEST(flags_that_make_no_segment)
{
    static const uint8_t flags[] = { 0, NQ_FIN, NQ_PSH, NQ_SYN | NQ_FIN, NQ_SYN | NQ_RST, NQ_SYN | NQ_RST | NQ_ACK,
                                     NQ_SYN | NQ_FIN | NQ_ACK, 0x3f };
    struct wire wire;
    established(&wire);
    for (size_t i = 0; i < sizeof flags; i++) {
        harness_row("flags %02x", flags[i]);
        check_drop(&wire, next_of(&wire, CLIENT, flags[i]), REASON_FLAGS);
    }
    wire_close(&wire);
}

TEST(bad_or_authenticated_options_open_nothing)
{
    struct wire wire;
    opened(&wire);
    struct segment syn = syn_of(&wire);
    syn.options = "\x02\x00\x00\x00";
    syn.options_len = 4;
    check_drop(&wire, syn, REASON_OPTIONS);
    syn.options = "\x13\x12" "0123456789abcdef\x01\x01";
    syn.options_len = 20;
    check_drop(&wire, syn, REASON_AUTHENTICATED);
    CHECK_EQUAL(wire_count(&wire, "flows"), 0);
    syn = syn_of(&wire);
    syn.bad_checksum = true;
    check_drop(&wire, syn, REASON_CHECKSUM);
    wire_close(&wire);
}

TEST(a_syn_with_data_leaves_without_it)
{
    struct wire wire;
    opened(&wire);
    struct segment syn = syn_of(&wire);
    syn.payload = "EXPN root\r\n";
    syn.len = 11;
    CHECK_EQUAL(wire_send(&wire, syn), EDITED);
    CHECK_EQUAL(wire.result->outputs[0].len, 40);
    CHECK_EQUAL(wire_send(&wire, syn_ack_of(&wire)), ACCEPTED);
    CHECK_EQUAL(wire_ack(&wire, CLIENT), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "NOOP\r\n"), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "NOOP\r\n");
    wire_close(&wire);
}

/* ---- who may speak for whom ---- */

static struct segment from_interfaces(struct segment segment, uint32_t in, uint32_t out)
{
    segment.in_ifindex = in;
    segment.out_ifindex = out;
    return segment;
}

TEST(each_end_speaks_from_its_own_interface)
{
    struct wire wire;
    established(&wire);
    wire_say(&wire, SERVER, "220 x\r\n");
    wire_say(&wire, CLIENT, "DATA\r\n");
    struct segment forged = next_of(&wire, SERVER, NQ_ACK);
    forged.payload = "354 go\r\n";
    forged.len = 8;
    check_drop(&wire, from_interfaces(forged, CLIENT_IFINDEX, SERVER_IFINDEX), REASON_DIRECTION);
    check_drop(&wire, from_interfaces(forged, CLIENT_IFINDEX, CLIENT_IFINDEX), REASON_MIDSTREAM);
    check_drop(&wire, from_interfaces(forged, SERVER_IFINDEX, 9), REASON_MIDSTREAM);
    check_drop(&wire, from_interfaces(next_of(&wire, CLIENT, NQ_RST), SERVER_IFINDEX, CLIENT_IFINDEX), REASON_DIRECTION);
    check_drop(&wire, from_interfaces(next_of(&wire, SERVER, NQ_RST), CLIENT_IFINDEX, SERVER_IFINDEX), REASON_DIRECTION);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "EXPN root\r\n"), PENDING); /* still waits for the server's word */
    CHECK_EQUAL(wire_arrived_len(&wire, CLIENT), 7);
    wire_close(&wire);
}

TEST(without_binding_any_interface_will_do)
{
    struct nq_settings settings = wire_settings();
    struct wire wire;
    settings.binding = NQ_BIND_OFF;
    wire_open(&wire, &settings, wire_policy(false));
    wire_handshake(&wire);
    struct segment said = next_of(&wire, SERVER, NQ_ACK);
    said.payload = "220 x\r\n";
    said.len = 7;
    CHECK_EQUAL(wire_send(&wire, from_interfaces(said, 7, 8)), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, CLIENT), "220 x\r\n");
    wire_close(&wire);
}

TEST(an_ack_beyond_what_was_forwarded_frees_nothing)
{
    struct wire wire;
    established(&wire);
    wire_say(&wire, SERVER, "220 x\r\n");
    struct segment beyond = next_of(&wire, CLIENT, NQ_ACK);
    beyond.ack++;
    check_drop(&wire, beyond, REASON_ACK_BEYOND);
    beyond.ack += 0x7fffffff - 1;
    check_drop(&wire, beyond, REASON_ACK_BEYOND);
    CHECK_EQUAL(engine_pool(wire.engine)->extents_free, wire.settings.extents - 1);
    CHECK_EQUAL(wire_ack(&wire, CLIENT), ACCEPTED);
    CHECK_EQUAL(engine_pool(wire.engine)->extents_free, wire.settings.extents);
    wire_close(&wire);
}

TEST(data_beyond_the_window_is_dropped)
{
    struct wire wire;
    established(&wire);
    struct segment ack = next_of(&wire, CLIENT, NQ_ACK); /* the window is scaled by 2^7 */
    ack.window = 2;
    wire_send(&wire, ack);
    struct segment far = next_of(&wire, SERVER, NQ_ACK);
    uint32_t edge = wire.side[SERVER].isn + 1 + (0xffffu << 7); /* the widest ever offered */
    far.payload = "ab";
    far.len = 2;
    far.seq = edge;
    check_drop(&wire, far, REASON_WINDOW);
    far.seq = edge - 1;
    CHECK_EQUAL(wire_send(&wire, far), PENDING); /* one octet beyond is a window probe */
    far.seq = wire.side[SERVER].isn - (1u << 30);
    check_drop(&wire, far, REASON_WINDOW);
    wire_close(&wire);
}

/* ---- RST: RFC 5961 ---- */

TEST(a_rst_counts_at_the_receivers_next_octet_only)
{
    static const int32_t wrong[] = { -8, -1, 1, 1000, 0x40000000, (int32_t)0x80000000 };
    for (unsigned from = 0; from < 2; from++) {
        struct wire wire;
        established(&wire);
        wire_say(&wire, SERVER, "220 x\r\n");
        wire_say(&wire, CLIENT, "NOOP\r\n");
        wire_ack(&wire, SERVER);
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            struct segment rst = next_of(&wire, from, NQ_RST | NQ_ACK);
            rst.seq += (uint32_t)wrong[i];
            harness_row("from %u, %d away", from, wrong[i]);
            check_drop(&wire, rst, REASON_RST_SEQUENCE);
        }
        CHECK_EQUAL(wire_say(&wire, CLIENT, "NOOP\r\n"), ACCEPTED);
        wire_ack(&wire, SERVER);
        CHECK_EQUAL(wire_send(&wire, next_of(&wire, from, NQ_RST)), ACCEPTED);
        check_drop(&wire, (struct segment){ .from = CLIENT, .seq = wire.side[CLIENT].next, .ack = wire.side[CLIENT].got,
                                            .flags = NQ_ACK, .window = 9, .payload = "NOOP\r\n", .len = 6 }, REASON_DEAD);
        wire_close(&wire);
    }
}

TEST(a_rst_may_stand_at_the_last_ack_while_octets_are_under_way)
{
    struct wire wire;
    established(&wire);
    wire_say(&wire, CLIENT, "NOOP\r\n");
    struct segment rst = next_of(&wire, CLIENT, NQ_RST);
    rst.seq = wire.side[CLIENT].isn + 1; /* the server has acknowledged nothing */
    CHECK_EQUAL(wire_send(&wire, rst), ACCEPTED);
    wire_close(&wire);
}

TEST(a_rst_that_answers_a_syn_must_acknowledge_it)
{
    struct wire wire;
    opened(&wire);
    wire_send(&wire, syn_of(&wire));
    struct segment rst = { .from = SERVER, .seq = 0, .ack = wire.side[CLIENT].isn + 1, .flags = NQ_RST };
    check_drop(&wire, rst, REASON_RST_SEQUENCE);
    rst.flags = NQ_RST | NQ_ACK;
    rst.ack--;
    check_drop(&wire, rst, REASON_RST_SEQUENCE);
    rst.ack++;
    CHECK_EQUAL(wire_send(&wire, rst), ACCEPTED);
    wire_close(&wire);
}

/* The end of what was forwarded need not have arrived: a server that lost it ignores this RST and goes on. */
TEST(after_a_rst_nothing_undecided_leaves)
{
    struct wire wire;
    established(&wire);
    wire_say(&wire, CLIENT, "NOOP xxx\r\n");
    CHECK_EQUAL(wire_send(&wire, next_of(&wire, CLIENT, NQ_RST)), ACCEPTED);
    CHECK_EQUAL(wire_say_at(&wire, CLIENT, 0, "EXPN joe\r\n", 10), DROPPED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "NOOP xxx\r\n");
    wire_close(&wire);
}

/* ---- a SYN on a flow that lives ---- */

static struct segment new_syn(const struct wire *wire)
{
    struct segment syn = syn_of(wire);
    syn.seq += 5000000;
    return syn;
}

TEST(a_syn_on_a_live_flow_changes_nothing)
{
    struct wire wire;
    established(&wire);
    wire_say(&wire, SERVER, "220 x\r\n");
    CHECK_EQUAL(wire_send(&wire, new_syn(&wire)), ACCEPTED); /* without options: no window scale, no MSS */
    CHECK_EQUAL(wire_say(&wire, CLIENT, "NOOP\r\n"), ACCEPTED);
    CHECK_EQUAL(wire_ack(&wire, SERVER), ACCEPTED);
    struct segment far = next_of(&wire, SERVER, NQ_ACK);
    far.seq = wire.side[SERVER].isn + 1 + (0xffffu << 7); /* the client's window is scaled as its own SYN said */
    far.payload = "a";
    far.len = 1;
    CHECK_EQUAL(wire_send(&wire, far), PENDING);
    far.seq += 100;
    check_drop(&wire, far, REASON_WINDOW);
    check_drop(&wire, (struct segment){ .from = SERVER, .seq = 9, .flags = NQ_SYN }, REASON_HANDSHAKE);
    wire_close(&wire);
}

TEST(a_syn_on_a_live_flow_is_believed_after_the_syn_ack)
{
    struct wire wire;
    established(&wire);
    wire_say(&wire, SERVER, "220 x\r\n");
    wire_say(&wire, CLIENT, "DATA\r\n");
    wire.side[CLIENT].isn += 5000000;
    wire.side[SERVER].isn += 9000000;
    CHECK_EQUAL(wire_send(&wire, syn_of(&wire)), ACCEPTED);
    struct segment wrong = syn_ack_of(&wire);
    wrong.ack++;
    check_drop(&wire, wrong, REASON_HANDSHAKE);
    CHECK_EQUAL(wire_send(&wire, syn_ack_of(&wire)), ACCEPTED);
    wire_next_flow(&wire, wire.client_port);
    CHECK_EQUAL(wire_ack(&wire, CLIENT), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, SERVER, "220 y\r\n"), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "NOOP\r\n"), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "NOOP\r\n");
    CHECK_EQUAL(wire_count(&wire, "flows-opened"), 2);
    wire_close(&wire);
}

TEST(a_syn_ack_from_the_clients_side_reopens_nothing)
{
    struct wire wire;
    established(&wire);
    wire_say(&wire, SERVER, "220 x\r\n");
    CHECK_EQUAL(wire_send(&wire, new_syn(&wire)), ACCEPTED);
    struct segment forged = syn_ack_of(&wire);
    forged.ack += 5000000;
    check_drop(&wire, from_interfaces(forged, CLIENT_IFINDEX, SERVER_IFINDEX), REASON_DIRECTION);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "NOOP\r\n"), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "NOOP\r\n");
    CHECK_EQUAL(wire_count(&wire, "flows-opened"), 1);
    wire_close(&wire);
}

/* ---- the end ---- */

static void close_both(struct wire *wire, unsigned first)
{
    CHECK_EQUAL(wire_fin(wire, first), ACCEPTED);
    CHECK_EQUAL(wire_ack(wire, !first), ACCEPTED);
    CHECK_EQUAL(wire_fin(wire, !first), ACCEPTED);
    CHECK_EQUAL(wire_ack(wire, first), ACCEPTED);
}

TEST(both_fins_acknowledged_end_a_flow)
{
    for (unsigned first = 0; first < 2; first++) {
        struct wire wire;
        struct nq_event event;
        established(&wire);
        wire_say(&wire, SERVER, "220 x\r\n");
        close_both(&wire, first);
        CHECK(wire.side[0].fin && wire.side[1].fin);
        CHECK_EQUAL(wire_count(&wire, "flows-ended"), 1);
        CHECK_EQUAL(nq_engine_events(wire.engine, &event, 1), 1);
        CHECK_EQUAL(event.type, NQ_EVENT_FLOW);
        CHECK_EQUAL(event.reason, REASON_FIN);
        CHECK_EQUAL(wire_ack(&wire, first), ACCEPTED); /* a late ACK harms nobody */
        check_drop(&wire, (struct segment){ .from = first, .seq = wire.side[first].next, .ack = wire.side[first].got,
                                            .flags = NQ_ACK, .window = 9, .payload = "x", .len = 1 }, REASON_AFTER_FIN);
        wire_close(&wire);
    }
}

TEST(data_behind_a_fin_is_dropped)
{
    struct wire wire;
    established(&wire);
    CHECK_EQUAL(wire_fin(&wire, CLIENT), ACCEPTED);
    struct segment more = next_of(&wire, CLIENT, NQ_ACK);
    more.payload = "NOOP\r\n";
    more.len = 6;
    check_drop(&wire, more, REASON_AFTER_FIN);
    more.seq--;
    check_drop(&wire, more, REASON_AFTER_FIN);
    more.len = 1; /* in the FIN's own place */
    check_drop(&wire, more, REASON_AFTER_FIN);
    CHECK_EQUAL(wire_send(&wire, (struct segment){ .from = CLIENT, .seq = more.seq, .ack = more.ack, .flags = NQ_ACK | NQ_FIN,
                                                   .window = 9 }), ACCEPTED); /* the FIN again */
    CHECK_EQUAL(wire_say(&wire, SERVER, "220 x\r\n"), ACCEPTED); /* the other half goes on */
    wire_close(&wire);
}

/* What waited behind a hole when the FIN came begins at the FIN's own place: that octet was never judged. */
TEST(what_was_held_behind_a_fin_never_leaves)
{
    struct wire wire;
    established(&wire);
    CHECK_EQUAL(wire_say_at(&wire, CLIENT, 6, "?NOOP\r\n", 7), PENDING);
    struct segment last = next_of(&wire, CLIENT, NQ_ACK | NQ_FIN);
    last.payload = "RSET\r\n";
    last.len = 6;
    CHECK_EQUAL(wire_send(&wire, last), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "RSET\r\n");
    CHECK_EQUAL(wire.side[SERVER].high, 6);
    wire_close(&wire);
}

TEST(the_same_ports_begin_again_after_the_end)
{
    struct wire wire;
    established(&wire);
    close_both(&wire, CLIENT);
    check_drop(&wire, syn_of(&wire), REASON_HANDSHAKE); /* the old SYN come late */
    wire.side[CLIENT].isn += 100000;
    wire.side[SERVER].isn += 100000;
    wire_next_flow(&wire, wire.client_port);
    wire_handshake(&wire);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "NOOP\r\n"), ACCEPTED);
    CHECK_EQUAL(wire_count(&wire, "flows-opened"), 2);
    CHECK_EQUAL(wire_count(&wire, "flows"), 1);
    wire_close(&wire);
}

/* ---- time ---- */

static void check_expiry(struct wire *wire, uint32_t seconds)
{
    uint64_t seen = wire->now;
    wire_tick(wire, seen + seconds * SECOND - 1);
    CHECK_EQUAL(wire_count(wire, "flows"), 1);
    wire_tick(wire, seen + seconds * SECOND);
    CHECK_EQUAL(wire_count(wire, "flows"), 0);
    wire_close(wire);
}

TEST(half_open_flows_expire)
{
    struct wire wire;
    opened(&wire);
    wire_send(&wire, syn_of(&wire));
    check_expiry(&wire, NQ_SYNWAIT);
    opened(&wire);
    wire_send(&wire, syn_of(&wire));
    wire_send(&wire, syn_ack_of(&wire));
    check_expiry(&wire, NQ_SYNWAIT);
}

TEST(idle_flows_expire)
{
    struct wire wire;
    established(&wire);
    wire.now += 3000 * SECOND;
    wire_say(&wire, SERVER, "220 x\r\n");
    check_expiry(&wire, NQ_IDLE);
    established(&wire);
    wire_fin(&wire, CLIENT);
    check_expiry(&wire, NQ_IDLE); /* half closed: the other half may still speak */
}

TEST(closed_flows_expire)
{
    struct wire wire;
    established(&wire);
    wire_fin(&wire, CLIENT);
    wire_fin(&wire, SERVER);
    check_expiry(&wire, NQ_FINWAIT);
    established(&wire);
    close_both(&wire, SERVER);
    check_expiry(&wire, NQ_FINWAIT);
}

TEST(tombstones_expire)
{
    static char line[NQ_COMMAND_LINE_MAX + 2];
    struct wire wire;
    memset(line, 'a', sizeof line);
    memcpy(line, "NOOP ", 5);
    established(&wire);
    CHECK_EQUAL(wire_say_octets(&wire, CLIENT, line, sizeof line), DROPPED);
    CHECK_EQUAL(wire.side[CLIENT].resets, 1);
    CHECK_EQUAL(wire.side[SERVER].resets, 1);
    check_drop(&wire, next_of(&wire, CLIENT, NQ_ACK), REASON_DEAD);
    CHECK_EQUAL(wire.side[CLIENT].resets, 2); /* told again: the first may have been lost */
    check_expiry(&wire, NQ_TOMBSTONE);
}

/* ---- a table that is full ---- */

static void open_many(struct wire *wire, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        wire_next_flow(wire, (uint16_t)(30000 + i));
        wire_handshake(wire);
    }
}

TEST(a_full_table_gives_up_the_oldest_half_open_flow)
{
    struct wire wire;
    opened(&wire);
    open_many(&wire, 10);
    wire_next_flow(&wire, 29000);
    wire_send(&wire, syn_of(&wire));
    wire_next_flow(&wire, 29001);
    wire_send(&wire, syn_of(&wire));
    for (uint32_t i = 12; i < wire.settings.flows; i++) {
        wire_next_flow(&wire, (uint16_t)(31000 + i));
        wire_handshake(&wire);
    }
    CHECK_EQUAL(wire_count(&wire, "flows"), wire.settings.flows);
    wire_next_flow(&wire, 40000);
    wire_handshake(&wire);
    CHECK_EQUAL(wire_count(&wire, "flows"), wire.settings.flows);
    wire_next_flow(&wire, 29000);
    check_drop(&wire, syn_ack_of(&wire), REASON_MIDSTREAM);     /* the older of the two is gone */
    wire_next_flow(&wire, 29001);
    CHECK_EQUAL(wire_send(&wire, syn_ack_of(&wire)), ACCEPTED); /* the younger is not */
    wire_close(&wire);
}

TEST(a_table_full_of_live_flows_takes_no_more)
{
    struct wire wire;
    opened(&wire);
    open_many(&wire, wire.settings.flows);
    wire_next_flow(&wire, 40000);
    check_drop(&wire, syn_of(&wire), REASON_FLOWS_FULL);
    wire_next_flow(&wire, 30000);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "NOOP\r\n"), ACCEPTED);
    wire_close(&wire);
}

TEST(a_flood_of_syns_leaves_live_flows_alone)
{
    struct wire wire;
    established(&wire);
    for (uint32_t i = 0; i < 1000; i++) {
        wire.client_port = (uint16_t)(10000 + i);
        CHECK_EQUAL(wire_send(&wire, syn_of(&wire)), ACCEPTED);
    }
    wire.client_port = 40000;
    CHECK_EQUAL(wire_say(&wire, CLIENT, "NOOP\r\n"), ACCEPTED);
    CHECK_EQUAL(wire_drops(&wire, REASON_EVICTED), 0); /* nothing was held, so nothing was dropped */
    CHECK_EQUAL(wire_count(&wire, "flows"), wire.settings.flows);
    wire_close(&wire);
}

/* ---- sequence numbers wrap ---- */

/* A dialogue whose octets, holes, retransmissions and FINs lie on both sides of 2^32. */
static void check_wrap(uint32_t client_isn, uint32_t server_isn)
{
    struct nq_settings settings = wire_settings();
    struct wire wire;
    wire_open(&wire, &settings, wire_policy(false));
    wire.side[CLIENT].isn = client_isn;
    wire.side[SERVER].isn = server_isn;
    wire_next_flow(&wire, 40000);
    wire_handshake(&wire);
    CHECK_EQUAL(wire_say(&wire, SERVER, "220 mail ready\r\n"), ACCEPTED);
    CHECK_EQUAL(wire_say_at(&wire, CLIENT, 9, "NOOP\r\n", 6), PENDING);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "EHLO me\r\n"), ACCEPTED);
    wire.side[CLIENT].next += 6;
    CHECK_EQUAL(wire_say_at(&wire, CLIENT, 3, "XXXXXXXX", 8), EDITED);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "EXPN\r\n"), EDITED);
    CHECK_EQUAL(wire_say(&wire, SERVER, "250 mail\r\n250 ok\r\n500 what?\r\n"), ACCEPTED);
    close_both(&wire, CLIENT);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "EHLO me\r\nNOOP\r\nXXXX\r\n");
    CHECK_TEXT(wire_arrived(&wire, CLIENT), "220 mail ready\r\n250 mail\r\n250 ok\r\n500 what?\r\n");
    wire_close(&wire);
}

TEST(sequence_numbers_wrap_at_every_octet)
{
    for (uint32_t before = 0; before < 56; before++) {
        harness_row("%u octets before the wrap", before);
        check_wrap(0u - before, 4711);
        check_wrap(4711, 0u - before);
        check_wrap(0x80000000u - before, 0x7fffffffu - before);
    }
}

TEST(a_rst_before_the_answer_lets_no_octet_of_the_other_end_through)
{
    struct wire wire;
    opened(&wire);
    wire.side[SERVER].isn = 0u - 500; /* below the zero that an unopened stream is filled with */
    wire_next_flow(&wire, 40000);
    wire_send(&wire, syn_of(&wire));
    CHECK_EQUAL(wire_send(&wire, next_of(&wire, CLIENT, NQ_RST)), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, SERVER, "2"), DROPPED);
    CHECK_EQUAL(wire_say(&wire, SERVER, "20 x\r\n"), DROPPED);
    wire_close(&wire);
}

TEST(an_ack_after_a_rst_before_the_answer_scales_no_window)
{
    struct wire wire;
    opened(&wire);
    wire_send(&wire, syn_of(&wire));
    CHECK_EQUAL(wire_send(&wire, next_of(&wire, CLIENT, NQ_RST)), ACCEPTED);
    wire_ack(&wire, CLIENT);
    wire_ack(&wire, SERVER);
    wire_close(&wire);
}
