/*
 * test_pool.c - blocks, extents and held packets come from the pool and go back to it; the pool ends where its settings say.
 * That nothing is missing after an engine has run is asserted at the end of every wire, in all other files, too.
 */
#include <stdlib.h>

#include "harness.h"
#include "wire.h"

static struct nq_settings small_settings(void)
{
    struct nq_settings settings = wire_settings();
    settings.large_blocks = 5;
    settings.small_blocks = 7;
    settings.extents = 9;
    settings.held = 3;
    return settings;
}

static void check_blocks(struct nq_pool *pool, struct nq_block *(*take)(struct nq_pool *), uint32_t count, uint32_t size)
{
    struct nq_block *taken[16];
    for (uint32_t i = 0; i < count; i++) {
        taken[i] = take(pool);
        CHECK(taken[i] != NULL);
        CHECK_EQUAL(taken[i]->size, size);
        CHECK_EQUAL(taken[i]->refs, 1);
        CHECK_EQUAL(taken[i]->used, 0);
        memset(taken[i]->data, (int)i + 1, size);
    }
    CHECK(take(pool) == NULL);
    for (uint32_t i = 0; i < count; i++) /* nobody wrote over a neighbour */
        CHECK(taken[i]->data[0] == i + 1 && taken[i]->data[size - 1] == i + 1);
    for (uint32_t i = 0; i < count; i++)
        block_drop(pool, taken[i]);
}

TEST(the_pool_holds_what_the_settings_say)
{
    struct nq_settings settings = small_settings();
    struct nq_pool pool;
    CHECK(pool_init(&pool, &settings));
    for (int round = 0; round < 2; round++) {
        check_blocks(&pool, pool_large, settings.large_blocks, NQ_LARGE_OCTETS);
        check_blocks(&pool, pool_small, settings.small_blocks, NQ_SMALL_OCTETS);
        CHECK_EQUAL(pool.large_free, settings.large_blocks);
        CHECK_EQUAL(pool.small_free, settings.small_blocks);
    }
    pool_end(&pool);
}

TEST(extents_and_held_packets_drop_their_blocks)
{
    struct nq_settings settings = small_settings();
    struct nq_pool pool;
    CHECK(pool_init(&pool, &settings));
    struct nq_extent *extent = pool_extent(&pool);
    struct nq_held *held = pool_held(&pool);
    extent->block = pool_large(&pool);
    extent->block->refs++;
    held->packet.block = extent->block;
    extent_drop(&pool, extent);
    CHECK_EQUAL(pool.large_free, settings.large_blocks - 1);
    held_drop(&pool, held);
    CHECK_EQUAL(pool.large_free, settings.large_blocks);
    CHECK_EQUAL(pool.extents_free, settings.extents);
    CHECK_EQUAL(pool.held_free, settings.held);
    pool_end(&pool);
}

TEST(what_comes_from_the_pool_is_fresh)
{
    struct nq_settings settings = small_settings();
    struct nq_pool pool;
    CHECK(pool_init(&pool, &settings));
    struct nq_extent *extent = pool_extent(&pool);
    extent->len = 5;
    extent_drop(&pool, extent);
    extent = pool_extent(&pool);
    CHECK(extent->len == 0 && extent->next == NULL && extent->block == NULL);
    struct nq_held *held = pool_held(&pool);
    held->since = 5;
    held_drop(&pool, held);
    held = pool_held(&pool);
    CHECK(held->since == 0 && held->next == NULL && held->packet.block == NULL);
    pool_end(&pool);
}

/* A flow with octets in both stores, some of them in blocks of the queue, and packets held in both directions. */
static void fill(struct wire *wire)
{
    static uint8_t octets[40000];
    memset(octets, 'a', sizeof octets);
    memcpy(octets, "250-", 4);
    wire_say(wire, SERVER, "220 ready\r\n");
    wire_say(wire, CLIENT, "NOOP\r\n");
    wire_say_at(wire, CLIENT, 100, "NOOP\r\n", 6);
    wire_say_at(wire, SERVER, 45000, octets, 1000);
    wire_say_at(wire, SERVER, 50000, octets, 15000);
    wire_say_octets(wire, SERVER, octets, sizeof octets); /* not acknowledged by anything above */
    CHECK_EQUAL(wire_count(wire, "held"), 3);
    CHECK(engine_pool(wire->engine)->extents_free < wire->settings.extents);
}

static void fill_and(bool blocks, void (*end)(struct wire *))
{
    struct nq_settings settings = wire_settings();
    struct wire wire;
    wire_open(&wire, &settings, wire_policy(false));
    wire.blocks = blocks;
    wire_handshake(&wire);
    fill(&wire);
    end(&wire);
    wire_tick(&wire, wire.now);
    const struct nq_pool *pool = engine_pool(wire.engine);
    CHECK_EQUAL(pool->held_free, settings.held);
    CHECK_EQUAL(pool->extents_free, settings.extents);
    CHECK_EQUAL(pool->large_free, settings.large_blocks);
    wire_close(&wire);
}

static void by_rst(struct wire *wire)
{
    struct segment rst = { .from = CLIENT, .seq = wire->side[CLIENT].next, .flags = NQ_RST };
    CHECK_EQUAL(wire_send(wire, rst), ACCEPTED);
}

static void by_reset(struct wire *wire)
{
    char line[NQ_COMMAND_LINE_MAX + 2];
    memset(line, 'a', sizeof line);
    memcpy(line, "NOOP ", 5);
    CHECK_EQUAL(wire_say_octets(wire, CLIENT, line, sizeof line), DROPPED);
    CHECK_EQUAL(wire_count(wire, "resets"), 1);
}

static void by_timeout(struct wire *wire)
{
    wire_tick(wire, wire->now + (wire->settings.idle + 2) * 1000000000ull);
    CHECK_EQUAL(wire_count(wire, "flows"), 0);
}

TEST(a_reset_connection_gives_all_back) { fill_and(false, by_rst); fill_and(true, by_rst); }

TEST(a_refused_connection_gives_all_back) { fill_and(false, by_reset); fill_and(true, by_reset); }

TEST(an_idle_connection_gives_all_back) { fill_and(false, by_timeout); fill_and(true, by_timeout); }

TEST(settings_out_of_range_are_refused)
{
    char error[NQ_ERROR_MAX];
    struct nq_policy *policy = wire_policy(false);
    struct nq_settings good = wire_settings(), bad[7];
    for (int i = 0; i < 7; i++)
        bad[i] = good;
    bad[0].flows = 0;
    bad[1].large_blocks = 3;
    bad[2].events = 1000;
    bad[3].synwait = 0;
    bad[4].store_per_stream = NQ_LARGE_OCTETS - 1;
    bad[5].extents = 0;
    bad[6].events = 0;
    for (int i = 0; i < 7; i++) {
        *error = 0;
        harness_row("settings %d", i);
        CHECK(nq_engine_new(&bad[i], policy, error) == NULL);
        CHECK(*error != 0);
    }
    nq_policy_free(policy);
}
