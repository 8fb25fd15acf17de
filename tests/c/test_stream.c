/*
 * test_stream.c - one direction by itself: what is stored, what a retransmission becomes, in which order held packets come,
 * and where the bounds are. A plain array says what each octet must be.
 */
#include <stdlib.h>

#include "harness.h"
#include "wire.h"

#define LENGTH 60000u

struct model {
    struct nq_settings settings;
    struct nq_pool pool;
    struct nq_stream stream;
    uint8_t octets[LENGTH];     /* as decided, by offset */
};

static struct model *new_model(uint32_t isn)
{
    struct model *model = calloc(1, sizeof *model);
    struct dice dice = { 99 };
    model->settings = wire_settings();
    CHECK(pool_init(&model->pool, &model->settings));
    stream_begin(&model->stream, isn);
    for (uint32_t i = 0; i < LENGTH; i++)
        model->octets[i] = (uint8_t)(1 + dice_below(&dice, 255));
    return model;
}

static void end_model(struct model *model)
{
    for (struct nq_held *held; (held = stream_expired(&model->stream, UINT64_MAX));)
        held_drop(&model->pool, held);
    stream_end(&model->stream, &model->pool);
    CHECK_EQUAL(model->stream.stored, 0);
    CHECK_EQUAL(model->pool.large_free, model->settings.large_blocks);
    CHECK_EQUAL(model->pool.small_free, model->settings.small_blocks);
    CHECK_EQUAL(model->pool.extents_free, model->settings.extents);
    CHECK_EQUAL(model->pool.held_free, model->settings.held);
    pool_end(&model->pool);
    free(model);
}

static uint32_t decided(const struct model *model) { return model->stream.next - model->stream.begin; }

/* A segment of the stream, in a packet of its own. */
struct piece {
    struct nq_packet packet;
    struct nq_view view;
};

static void make_piece(struct piece *piece, const struct model *model, uint32_t offset, const uint8_t *octets, uint32_t len)
{
    enum { HEADERS = 40 };
    uint8_t *data = guarded(NULL, HEADERS + len);
    memset(data, 0, HEADERS);
    memcpy(data + HEADERS, octets, len);
    piece->packet = (struct nq_packet){ .data = data, .len = HEADERS + len, .id = offset };
    piece->view = (struct nq_view){ .packet = &piece->packet, .ip = data, .tcp = (void *)(data + 20), .payload = data + HEADERS,
                                    .payload_len = len, .ip_header = 20, .family = 4, .flags = NQ_ACK,
                                    .seq = model->stream.begin + offset };
}

static void decide(struct model *model, uint32_t len, bool in_block)
{
    uint32_t offset = decided(model);
    struct nq_packet packet = { .block = in_block ? pool_large(&model->pool) : NULL };
    uint8_t *data = packet.block ? packet.block->data + 40 : model->octets + offset;
    memcpy(data, model->octets + offset, len);
    CHECK_EQUAL(stream_store(&model->stream, &model->pool, &model->settings, &packet, data, len), REASON_NONE);
    if (packet.block)
        block_drop(&model->pool, packet.block);
}

static void acknowledge(struct model *model, uint32_t offset)
{
    stream_acknowledge(&model->stream, &model->pool, model->stream.begin + offset, 0xffff);
}

/* Other octets come again: those in the store become what they were, those that have arrived become NUL. */
static void check_restored(struct model *model, uint32_t offset, uint32_t len)
{
    static uint8_t lies[LENGTH];
    uint32_t arrived = model->stream.acked - model->stream.begin;
    struct piece piece;
    memset(lies, 0xee, len);
    make_piece(&piece, model, offset, lies, len);
    harness_row("octets %u to %u, acknowledged %u, decided %u", offset, offset + len, arrived, decided(model));
    stream_restore(&model->stream, &piece.view);
    for (uint32_t i = 0; i < len; i++) {
        bool kept_alive = len == 1 && offset < arrived;
        uint8_t wanted = offset + i >= decided(model) || kept_alive ? 0xee : offset + i < arrived ? 0 : model->octets[offset + i];
        if (piece.view.payload[i] != wanted)
            harness_fail(__FILE__, __LINE__, "octet %u became %02x, not %02x", offset + i, piece.view.payload[i], wanted);
    }
}

TEST(each_octet_keeps_its_value_however_it_comes_again)
{
    struct dice dice = { 3 };
    for (int round = 0; round < 40; round++) {
        struct model *model = new_model(round % 2 ? 0u - dice_below(&dice, 3000) : dice_below(&dice, 1u << 31));
        while (decided(model) < 30000) {
            uint32_t len = dice_below(&dice, 3) ? 1 + dice_below(&dice, 60) : 1 + dice_below(&dice, 6000);
            if (model->pool.extents_free > 4 && model->pool.large_free > 2)
                decide(model, len, dice_below(&dice, 2));
            uint32_t arrived = model->stream.acked - model->stream.begin;
            if (!dice_below(&dice, 3))
                acknowledge(model, arrived + dice_below(&dice, decided(model) - arrived + 1));
            uint32_t offset = dice_below(&dice, decided(model));
            check_restored(model, offset, 1 + dice_below(&dice, 4000));
            CHECK_EQUAL(model->stream.stored, model->stream.next - model->stream.acked);
        }
        end_model(model);
    }
}

TEST(the_same_octets_again_are_no_edit)
{
    struct model *model = new_model(7);
    struct piece piece;
    decide(model, 5000, false);
    decide(model, 10, false);
    for (uint32_t offset = 0; offset < 5000; offset += 700) {
        make_piece(&piece, model, offset, model->octets + offset, 10);
        CHECK(!stream_restore(&model->stream, &piece.view));
        CHECK(!piece.view.edited);
    }
    end_model(model);
}

TEST(a_keep_alive_is_left_as_it_is)
{
    struct model *model = new_model(7);
    decide(model, 10, false);
    acknowledge(model, 10);
    check_restored(model, 9, 1);
    check_restored(model, 9, 2);
    end_model(model);
}

TEST(partial_acknowledgements_free_what_arrived)
{
    struct model *model = new_model(0u - 50);
    for (int i = 0; i < 8; i++)
        decide(model, 1900, false); /* more than is copied together: an extent each */
    uint32_t used = model->settings.extents - model->pool.extents_free;
    CHECK_EQUAL(used, 8);
    for (uint32_t offset = 0; offset <= 8 * 1900; offset++) {
        acknowledge(model, offset);
        CHECK_EQUAL(model->stream.stored, 8 * 1900 - offset);
        CHECK_EQUAL(model->settings.extents - model->pool.extents_free, 8 - offset / 1900);
    }
    acknowledge(model, 100); /* an old one, come late */
    CHECK_EQUAL(model->stream.acked - model->stream.begin, 8 * 1900);
    CHECK(model->stream.first == NULL && model->stream.last == NULL);
    decide(model, 10, false);
    check_restored(model, 8 * 1900 - 5, 20);
    end_model(model);
}

TEST(short_octets_share_a_block)
{
    struct model *model = new_model(1);
    for (int i = 0; i < 1000; i++)
        decide(model, 1, false);
    CHECK_EQUAL(model->settings.small_blocks - model->pool.small_free, 1);
    CHECK_EQUAL(model->settings.extents - model->pool.extents_free, 1);
    for (int i = 0; i < 2000; i++)
        decide(model, 1, false);
    CHECK_EQUAL(model->settings.small_blocks - model->pool.small_free, 2);
    end_model(model);
}

TEST(the_window_moves_to_the_right_only)
{
    struct model *model = new_model(10);
    decide(model, 100, false);
    stream_acknowledge(&model->stream, &model->pool, model->stream.begin + 50, 1000);
    CHECK_EQUAL(model->stream.edge - model->stream.begin, 1050);
    stream_acknowledge(&model->stream, &model->pool, model->stream.begin + 60, 10);
    CHECK_EQUAL(model->stream.edge - model->stream.begin, 1050);
    stream_acknowledge(&model->stream, &model->pool, model->stream.begin + 50, 5000);
    CHECK_EQUAL(model->stream.edge - model->stream.begin, 5050);
    end_model(model);
}

/* ---- places ---- */

static void check_place(struct model *model, uint32_t offset, uint32_t len, uint8_t flags, enum nq_place wanted)
{
    struct piece piece;
    make_piece(&piece, model, offset, model->octets, len);
    piece.view.flags = flags;
    harness_row("%u octets at %u, flags %02x", len, offset, flags);
    CHECK_EQUAL(stream_place(&model->stream, &piece.view), wanted);
}

TEST(where_a_segment_lies)
{
    static const uint32_t isns[] = { 100, 0u - 5, 0u - 10, 0u - 11, 0x7ffffff8 };
    for (size_t i = 0; i < sizeof isns / sizeof *isns; i++) {
        struct model *model = new_model(isns[i]);
        decide(model, 10, false);
        check_place(model, 10, 0, NQ_ACK, PLACE_EMPTY);
        check_place(model, 3, 0, NQ_ACK, PLACE_EMPTY);
        check_place(model, 0, 10, NQ_ACK, PLACE_OLD);
        check_place(model, 9, 1, NQ_ACK, PLACE_OLD);
        check_place(model, 9, 2, NQ_ACK, PLACE_NEXT);
        check_place(model, 10, 1, NQ_ACK, PLACE_NEXT);
        check_place(model, 0, 11, NQ_ACK, PLACE_NEXT);
        check_place(model, 11, 1, NQ_ACK, PLACE_AHEAD);
        check_place(model, 0, 10, NQ_ACK | NQ_FIN, PLACE_NEXT);
        check_place(model, 10, 0, NQ_ACK | NQ_FIN, PLACE_NEXT);
        check_place(model, 9, 0, NQ_ACK | NQ_FIN, PLACE_OLD);
        check_place(model, 11, 0, NQ_ACK | NQ_FIN, PLACE_AHEAD);
        end_model(model);
    }
}

/* ---- bounds ---- */

TEST(the_store_has_a_limit)
{
    struct model *model = new_model(1);
    const struct nq_packet packet = { .block = NULL };
    model->settings.store_per_stream = 10000;
    decide(model, 9000, false);
    CHECK_EQUAL(stream_room(&model->stream, &model->pool, &model->settings, 1000), REASON_NONE);
    CHECK_EQUAL(stream_room(&model->stream, &model->pool, &model->settings, 1001), REASON_STORE_LIMIT);
    CHECK_EQUAL(stream_store(&model->stream, &model->pool, &model->settings, &packet, model->octets, 1001), REASON_STORE_LIMIT);
    CHECK_EQUAL(decided(model), 9000);
    acknowledge(model, 1);
    CHECK_EQUAL(stream_room(&model->stream, &model->pool, &model->settings, 1001), REASON_NONE);
    end_model(model);
}

TEST(an_empty_pool_is_said_before_anything_is_decided)
{
    struct model *model = new_model(1);
    struct nq_block *blocks[32];
    struct nq_extent *extents[256];
    for (uint32_t i = 0; i < model->settings.large_blocks; i++)
        blocks[i] = pool_large(&model->pool);
    CHECK_EQUAL(stream_room(&model->stream, &model->pool, &model->settings, 1), REASON_MEMORY);
    block_drop(&model->pool, blocks[0]);
    CHECK_EQUAL(stream_room(&model->stream, &model->pool, &model->settings, 1), REASON_NONE);
    for (uint32_t i = 0; i < model->settings.extents; i++)
        extents[i] = pool_extent(&model->pool);
    CHECK_EQUAL(stream_room(&model->stream, &model->pool, &model->settings, 1), REASON_MEMORY);
    for (uint32_t i = 1; i < model->settings.large_blocks; i++)
        block_drop(&model->pool, blocks[i]);
    for (uint32_t i = 0; i < model->settings.extents; i++)
        extent_drop(&model->pool, extents[i]);
    end_model(model);
}

/* ---- held packets ---- */

static enum nq_reason hold(struct model *model, uint32_t offset, uint32_t len, uint64_t now)
{
    struct piece piece;
    make_piece(&piece, model, offset, model->octets + offset, len);
    return stream_hold(&model->stream, &model->pool, &model->settings, &piece.view, now);
}

static void check_ready(struct model *model, uint32_t offset, uint32_t len)
{
    struct nq_held *held = stream_ready(&model->stream);
    CHECK(held != NULL);
    CHECK_EQUAL(held->seq - model->stream.begin, offset);
    CHECK_EQUAL(held->end - held->seq, len);
    CHECK_OCTETS(held->packet.data + 40, held->packet.len - 40, model->octets + offset, len);
    held_drop(&model->pool, held);
}

TEST(held_packets_come_in_the_order_of_their_octets)
{
    struct model *model = new_model(0u - 60);
    CHECK_EQUAL(hold(model, 100, 10, 1), REASON_NONE);
    CHECK_EQUAL(hold(model, 50, 10, 2), REASON_NONE);
    CHECK_EQUAL(hold(model, 80, 3000, 3), REASON_NONE);
    CHECK_EQUAL(hold(model, 50, 20, 4), REASON_NONE);
    CHECK_EQUAL(hold(model, 52, 5, 5), REASON_NONE);
    CHECK(stream_ready(&model->stream) == NULL);
    decide(model, 49, false);
    CHECK(stream_ready(&model->stream) == NULL);
    decide(model, 1, false);
    check_ready(model, 50, 10);
    check_ready(model, 50, 20);
    CHECK(stream_ready(&model->stream) == NULL);
    decide(model, 30, false);
    check_ready(model, 52, 5);
    check_ready(model, 80, 3000);
    decide(model, 20, false);
    check_ready(model, 100, 10);
    CHECK_EQUAL(model->stream.held_count, 0);
    end_model(model);
}

TEST(what_is_held_already_is_not_held_twice)
{
    struct model *model = new_model(1);
    CHECK_EQUAL(hold(model, 50, 20, 1), REASON_NONE);
    CHECK_EQUAL(hold(model, 50, 20, 1), REASON_HELD_TWICE);
    CHECK_EQUAL(hold(model, 50, 10, 1), REASON_HELD_TWICE);
    CHECK_EQUAL(hold(model, 50, 21, 1), REASON_NONE);
    CHECK_EQUAL(hold(model, 50, 21, 1), REASON_HELD_TWICE);
    CHECK_EQUAL(model->stream.held_count, 2);
    end_model(model);
}

TEST(holding_has_limits)
{
    struct model *model = new_model(1);
    model->settings.held_per_flow = 5;
    for (uint32_t i = 0; i < 5; i++)
        CHECK_EQUAL(hold(model, 10 + i * 10, 5, 1), REASON_NONE);
    CHECK_EQUAL(hold(model, 1000, 5, 1), REASON_HELD_LIMIT);
    model->settings.held_per_flow = 1000;
    for (uint32_t i = 5; i < model->settings.held; i++)
        CHECK_EQUAL(hold(model, 10 + i * 10, 5, 1), REASON_NONE);
    CHECK_EQUAL(hold(model, 5000, 5, 1), REASON_MEMORY);
    CHECK_EQUAL(model->stream.held_count, model->settings.held);
    end_model(model);
}

TEST(holding_ends_with_the_blocks_and_loses_none)
{
    struct model *model = new_model(1);
    uint32_t held = 0;
    model->settings.held_per_flow = 1000;
    while (hold(model, 100 + held * 100, 5000, 1) == REASON_NONE)
        CHECK(++held <= model->settings.large_blocks);
    CHECK(held >= model->settings.large_blocks / 2);
    CHECK_EQUAL(hold(model, 20000, 5000, 1), REASON_MEMORY);
    CHECK_EQUAL(model->stream.held_count, held);
    CHECK_EQUAL(model->pool.held_free, model->settings.held - held);
    CHECK_EQUAL(model->pool.large_free, model->settings.large_blocks - held);
    end_model(model);
}

TEST(held_packets_expire)
{
    struct model *model = new_model(1);
    CHECK_EQUAL(hold(model, 50, 10, 100), REASON_NONE);
    CHECK_EQUAL(hold(model, 70, 10, 200), REASON_NONE);
    CHECK(stream_expired(&model->stream, 100) == NULL);
    struct nq_held *held = stream_expired(&model->stream, 101);
    CHECK(held != NULL && held->packet.id == 50);
    held_drop(&model->pool, held);
    CHECK(stream_expired(&model->stream, 101) == NULL);
    end_model(model);
}
