/*
 * test_offload.c - flows that the kernel takes over, and exempt ones: what they held goes back, and what still comes passes.
 */
#include "harness.h"
#include "wire.h"

static const uint8_t client_hello[] = { 22, 3, 1, 0, 5, 1, 0, 0, 1, 0 }, server_hello[] = { 22, 3, 3, 0, 5, 2, 0, 0, 1, 0 };

static void open_wire(struct wire *wire)
{
    struct nq_settings settings = wire_settings();
    struct nq_policy *policy = wire_policy(false);
    settings.offload = 1;
    policy->offload = true;
    wire_open(wire, &settings, policy);
}

static void begin_tls(struct wire *wire)
{
    wire_handshake(wire);
    wire_say(wire, SERVER, "220 mail ESMTP\r\n");
    wire_say(wire, CLIENT, "STARTTLS\r\n");
    wire_say(wire, SERVER, "220 go\r\n");
    wire_say_octets(wire, CLIENT, client_hello, sizeof client_hello);
    CHECK_EQUAL(wire_count(wire, "flows-offloaded"), 0);
    CHECK_EQUAL(wire_say_octets(wire, SERVER, server_hello, sizeof server_hello), ACCEPTED);
    CHECK_EQUAL(wire_count(wire, "flows-offloaded"), 1);
}

static uint32_t offloading(const struct nq_result *result)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < result->count; i++)
        found += result->outputs[i].offload;
    return found;
}

TEST(one_decision_carries_it_and_what_comes_behind_passes)
{
    struct wire wire;
    open_wire(&wire);
    begin_tls(&wire);
    CHECK_EQUAL(offloading(wire.result), 1);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "EXPN staff\r\n"), ACCEPTED);
    CHECK_EQUAL(offloading(wire.result), 0);
    CHECK_EQUAL(wire_say_at(&wire, CLIENT, 5000, "far ahead", 9), ACCEPTED);
    CHECK_EQUAL(wire_count(&wire, "held"), 0);
    wire_tick(&wire, wire.now + (wire.settings.tombstone + 1) * 1000000000ull);
    CHECK_EQUAL(wire_count(&wire, "flows"), 0);
    wire_close(&wire);
}

TEST(many_offloaded_flows_make_room_for_new_ones)
{
    struct wire wire;
    open_wire(&wire);
    begin_tls(&wire);
    for (uint32_t i = 0; i < 2 * wire.settings.flows; i++) {
        wire_next_flow(&wire, (uint16_t)(20000 + i));
        wire_handshake(&wire);
        wire_say(&wire, SERVER, "220 mail ESMTP\r\n");
        wire_say(&wire, CLIENT, "STARTTLS\r\n");
        wire_say(&wire, SERVER, "220 go\r\n");
        wire_say_octets(&wire, CLIENT, client_hello, sizeof client_hello);
        wire_say_octets(&wire, SERVER, server_hello, sizeof server_hello);
    }
    CHECK_EQUAL(wire_count(&wire, "flows-offloaded"), 1 + 2 * wire.settings.flows);
    CHECK_EQUAL(wire_drops(&wire, REASON_FLOWS_FULL), 0);
    wire_close(&wire);
}

TEST(the_exempt_go_after_their_opening)
{
    struct wire wire;
    char error[NQ_ERROR_MAX];
    struct nq_class_spec spec = { .name = "all" };
    open_wire(&wire);
    struct nq_classes *classes = nq_classes_new(&spec, 1, wire.policy, error);
    CHECK(classes != NULL);
    nq_engine_install_classes(wire.engine, classes);
    wire_handshake(&wire);
    CHECK_EQUAL(offloading(wire.result), 1);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "EXPN staff\r\n"), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "EXPN staff\r\n");
    CHECK_EQUAL(wire_count(&wire, "flows-exempt"), 1);
    wire_close(&wire);
    nq_classes_free(classes);
}
