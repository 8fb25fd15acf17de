/*
 * test_packet.c - views of packets: cut at every octet, with the last octet at the end of a page; checksums against the slow
 * way; what the edits of whole packets leave behind.
 */
#include <stdlib.h>

#include "harness.h"
#include "wire.h"

static const struct wire ipv4 = { .family = 4, .client_port = 40000, .server_port = 25 };
static const struct wire ipv6 = { .family = 6, .client_port = 40000, .server_port = 25 };

static const uint8_t tcp_options[12] = { 2, 4, 0x05, 0xb4, 3, 3, 7, 4, 2, 1, 1, 0 };
static const struct segment segment = { .from = CLIENT, .seq = 0x01020304, .ack = 0x05060708, .flags = NQ_ACK | NQ_PSH,
                                        .window = 512, .options = tcp_options, .options_len = 12, .payload = "MAIL FROM:<>\r\n",
                                        .len = 14 };

struct sample {
    uint8_t octets[512];
    uint32_t len;
};

static struct sample plain(const struct wire *wire)
{
    struct sample sample;
    sample.len = wire_write(wire, &segment, sample.octets);
    return sample;
}

/* IPv4 options of `words` words, padded with "end of options". */
static struct sample with_ipv4_options(uint32_t words)
{
    struct sample sample = plain(&ipv4);
    uint32_t octets = words * 4;
    memmove(sample.octets + 20 + octets, sample.octets + 20, sample.len - 20);
    memset(sample.octets + 20, 0, octets);
    memset(sample.octets + 20, 1, octets ? octets - 1 : 0);
    sample.len += octets;
    sample.octets[0] = (uint8_t)(0x45 + words);
    sample.octets[3] = (uint8_t)sample.len;
    return sample;
}

/* Extension headers of 8 * (1 + i % 3) octets each before TCP. */
static struct sample with_extensions(const uint8_t *types, uint32_t count)
{
    struct sample from = plain(&ipv6), sample = { .len = 40 };
    memcpy(sample.octets, from.octets, 40);
    uint8_t *next = &sample.octets[6];
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *header = sample.octets + sample.len;
        uint32_t units = i % 3;
        memset(header, 0, 8 + units * 8);
        *next = types[i];
        next = header;
        header[1] = (uint8_t)units;
        sample.len += 8 + units * 8;
    }
    *next = 6;
    memcpy(sample.octets + sample.len, from.octets + 40, from.len - 40);
    sample.len += from.len - 40;
    sample.octets[4] = (uint8_t)((sample.len - 40) >> 8);
    sample.octets[5] = (uint8_t)(sample.len - 40);
    return sample;
}

static enum nq_reason view_of(struct nq_view *view, struct nq_packet *packet, const struct sample *sample, uint32_t len)
{
    *packet = (struct nq_packet){ .data = guarded(sample->octets, len), .len = len };
    *view = (struct nq_view){ .packet = packet };
    return packet_view(view, packet);
}

static void check_whole(const struct sample *sample, uint32_t header)
{
    struct nq_packet packet;
    struct nq_view view;
    CHECK_EQUAL(view_of(&view, &packet, sample, sample->len), REASON_NONE);
    CHECK_EQUAL(view.ip_header, header);
    CHECK_EQUAL(view.seq, 0x01020304);
    CHECK_EQUAL(view.ack, 0x05060708);
    CHECK_EQUAL(view.window, 512);
    CHECK_EQUAL(view.source_port, 40000);
    CHECK_EQUAL(view.destination_port, 25);
    CHECK_EQUAL(view.flags, NQ_ACK | NQ_PSH);
    CHECK_OCTETS(view.payload, view.payload_len, "MAIL FROM:<>\r\n", 14);
    CHECK(packet_checksum_valid(&view));
}

/* The lengths in the headers claim more than is there. */
static void check_truncated(const struct sample *sample)
{
    struct nq_packet packet;
    struct nq_view view;
    for (uint32_t len = 0; len < sample->len; len++) {
        harness_row("%u of %u octets", len, sample->len);
        enum nq_reason reason = view_of(&view, &packet, sample, len);
        CHECK(reason == REASON_SHORT || reason == REASON_EXTENSION);
    }
}

/* They claim no more than is there, and that ends within one header or the other. */
static void check_shortened(const struct sample *sample, uint32_t headers)
{
    struct nq_packet packet;
    struct nq_view view;
    struct sample cut = *sample;
    uint32_t fixed = cut.octets[0] >> 4 == 4 ? 20 : 40;
    for (uint32_t len = fixed; len < sample->len; len++) {
        uint32_t claimed = fixed == 20 ? len : len - 40;
        uint8_t *at = cut.octets + (fixed == 20 ? 2 : 4);
        at[0] = (uint8_t)(claimed >> 8);
        at[1] = (uint8_t)claimed;
        harness_row("%u of %u octets, and they say so", len, sample->len);
        enum nq_reason reason = view_of(&view, &packet, &cut, len);
        CHECK_EQUAL(reason == REASON_NONE, len >= headers);
        if (reason == REASON_NONE)
            CHECK_EQUAL(view.payload_len, len - headers);
    }
}

TEST(ipv4_with_options_cut_everywhere)
{
    for (uint32_t words = 0; words <= 10; words++) {
        struct sample sample = with_ipv4_options(words);
        check_whole(&sample, 20 + words * 4);
        check_truncated(&sample);
        check_shortened(&sample, 20 + words * 4 + 32);
    }
}

TEST(ipv6_with_extensions_cut_everywhere)
{
    static const uint8_t types[] = { 0, 60, 43, 60, 60, 43, 60, 60 };
    static const uint32_t octets[] = { 0, 8, 24, 48, 56, 72, 96, 104, 120 };
    for (uint32_t count = 0; count <= NQ_EXTENSION_HEADERS; count++) {
        struct sample sample = with_extensions(types, count);
        check_whole(&sample, 40 + octets[count]);
        check_truncated(&sample);
        check_shortened(&sample, 40 + octets[count] + 32);
    }
}

static enum nq_reason reason_of(const struct sample *sample)
{
    struct nq_packet packet;
    struct nq_view view;
    return view_of(&view, &packet, sample, sample->len);
}

TEST(chains_of_extensions_that_are_refused)
{
    static const uint8_t nine[] = { 0, 60, 60, 60, 60, 60, 60, 60, 60 }, unknown[] = { 60, 135 }, fragment[] = { 0, 44 };
    struct sample sample = with_extensions(nine, 9);
    CHECK_EQUAL(reason_of(&sample), REASON_EXTENSION);
    sample = with_extensions(unknown, 2);
    CHECK_EQUAL(reason_of(&sample), REASON_EXTENSION);
    sample = with_extensions(unknown + 1, 1);
    CHECK_EQUAL(reason_of(&sample), REASON_NOT_TCP);
    sample = with_extensions(fragment, 2);
    CHECK_EQUAL(reason_of(&sample), REASON_FRAGMENT);
    sample = with_extensions(fragment + 1, 1);
    CHECK_EQUAL(reason_of(&sample), REASON_FRAGMENT);
}

static void patch(enum nq_reason wanted, const struct wire *wire, uint32_t at, uint8_t value)
{
    struct sample sample = plain(wire);
    sample.octets[at] = value;
    harness_row("IPv%u, octet %u is %02x", wire->family, at, value);
    CHECK_EQUAL(reason_of(&sample), wanted);
}

TEST(headers_that_contradict_themselves)
{
    for (uint8_t version = 0; version < 16; version++)
        if (version != 4 && version != 6)
            patch(REASON_SHORT, &ipv4, 0, (uint8_t)(version << 4 | 5));
    for (uint8_t ihl = 0; ihl < 5; ihl++)
        patch(REASON_SHORT, &ipv4, 0, (uint8_t)(0x40 | ihl));
    for (uint8_t offset = 0; offset < 5; offset++) {
        patch(REASON_SHORT, &ipv4, 32, (uint8_t)(offset << 4));
        patch(REASON_SHORT, &ipv6, 52, (uint8_t)(offset << 4));
    }
    patch(REASON_SHORT, &ipv4, 32, 0xc0); /* 48 octets of header; there are 46 */
    patch(REASON_SHORT, &ipv6, 52, 0xc0);
    patch(REASON_FRAGMENT, &ipv4, 6, 0x20);
    patch(REASON_FRAGMENT, &ipv4, 7, 0x01);
    patch(REASON_NONE, &ipv4, 6, 0x40); /* DF */
    patch(REASON_NOT_TCP, &ipv4, 9, 17);
    patch(REASON_NOT_TCP, &ipv6, 6, 17);
    patch(REASON_NOT_TCP, &ipv6, 6, 59); /* no next header */
}

TEST(octets_behind_the_packet_are_no_payload)
{
    for (int family = 4; family <= 6; family += 2) {
        struct sample sample = plain(family == 4 ? &ipv4 : &ipv6);
        memset(sample.octets + sample.len, 'z', 20);
        sample.len += 20; /* Ethernet's padding, say */
        struct nq_packet packet;
        struct nq_view view;
        CHECK_EQUAL(view_of(&view, &packet, &sample, sample.len), REASON_NONE);
        CHECK_EQUAL(view.payload_len, 14);
        CHECK(packet_checksum_valid(&view));
    }
}

TEST(a_truncated_packet_is_never_viewed)
{
    struct sample sample = plain(&ipv4);
    struct nq_packet packet = { .data = sample.octets, .len = sample.len, .flags = NQ_TRUNCATED };
    struct nq_view view;
    CHECK_EQUAL(packet_view(&view, &packet), REASON_TRUNCATED);
}

/* Any octets at all: nothing outside of them is read, and a view lies within them. */
TEST(mutilated_headers_are_read_within_bounds)
{
    static const uint8_t types[] = { 0, 60, 43, 60 };
    struct dice dice = { 20260101 };
    struct sample samples[] = { plain(&ipv4), with_ipv4_options(3), plain(&ipv6), with_extensions(types, 4) };
    for (int round = 0; round < 60000; round++) {
        struct sample sample = samples[round % 4];
        for (uint32_t flips = 1 + dice_below(&dice, 4); flips; flips--)
            sample.octets[dice_below(&dice, sample.len)] = (uint8_t)dice_below(&dice, 256);
        uint32_t len = dice_below(&dice, 4) ? sample.len : dice_below(&dice, sample.len + 1);
        struct nq_packet packet;
        struct nq_view view;
        struct nq_tcp_options options;
        harness_row("round %d", round);
        if (view_of(&view, &packet, &sample, len) != REASON_NONE)
            continue;
        CHECK(view.payload >= packet.data && view.payload + view.payload_len <= packet.data + len);
        packet_options(&view, &options);
        packet_checksum_write(&view);
        CHECK(packet_checksum_valid(&view));
        CHECK(naive_checksums(packet.data, len));
    }
}

/* ---- checksums ---- */

TEST(sums_are_the_slow_sums)
{
    struct dice dice = { 7 };
    uint8_t octets[208];
    for (uint32_t i = 0; i < sizeof octets; i++)
        octets[i] = (uint8_t)(i % 5 ? dice_below(&dice, 256) : 0xff);
    for (uint32_t align = 0; align < 8; align++)
        for (uint32_t len = 0; len <= 200; len++) {
            uint8_t *data = guarded(octets + align, len);
            uint16_t wanted = naive_fold(naive_sum(0, data, len));
            harness_row("%u octets from alignment %u", len, align);
            CHECK_EQUAL(__builtin_bswap16(checksum_fold(checksum_add(0, data, len))), wanted);
            CHECK_EQUAL(__builtin_bswap16(checksum_fold(checksum_add(0, octets + align, len))), wanted);
        }
}

TEST(sums_go_on)
{
    static uint8_t octets[70000];
    memset(octets, 0xff, sizeof octets);
    for (uint32_t i = 0; i < sizeof octets; i += 7)
        octets[i] = (uint8_t)i;
    for (uint32_t split = 0; split <= 256; split += 2) {
        uint64_t sum = checksum_add(checksum_add(0, octets, split), octets + split, sizeof octets - split);
        CHECK_EQUAL(__builtin_bswap16(checksum_fold(sum)), naive_fold(naive_sum(0, octets, sizeof octets)));
    }
}

static void check_payload_checksum(const struct wire *wire, uint32_t len)
{
    struct dice dice = { len + 1 };
    uint8_t payload[200];
    struct sample sample;
    struct segment said = { .from = SERVER, .seq = 1, .ack = 2, .flags = NQ_ACK, .window = 3, .payload = payload, .len = len };
    for (uint32_t i = 0; i < len; i++)
        payload[i] = (uint8_t)dice_below(&dice, 256);
    sample.len = wire_write(wire, &said, sample.octets);
    struct nq_packet packet;
    struct nq_view view;
    CHECK_EQUAL(view_of(&view, &packet, &sample, sample.len), REASON_NONE);
    CHECK(packet_checksum_valid(&view));
    memset(packet.data + (wire->family == 4 ? 36 : 56), 0x5a, 2);
    packet_checksum_write(&view);
    CHECK_OCTETS(packet.data, packet.len, sample.octets, sample.len);
}

TEST(checksums_of_every_payload_length)
{
    for (uint32_t len = 0; len <= 200; len++) {
        harness_row("%u octets of payload", len);
        check_payload_checksum(&ipv4, len);
        check_payload_checksum(&ipv6, len);
    }
}

static void check_flips(const struct wire *wire)
{
    struct sample sample = plain(wire);
    struct nq_packet packet;
    struct nq_view view;
    uint32_t header = wire->family == 4 ? 20 : 40;
    for (uint32_t bit = header * 8; bit < sample.len * 8; bit++) {
        struct sample flipped = sample;
        flipped.octets[bit / 8] ^= (uint8_t)(1 << bit % 8);
        harness_row("IPv%u, bit %u", wire->family, bit);
        if (view_of(&view, &packet, &flipped, flipped.len) != REASON_NONE)
            continue; /* the data offset */
        CHECK(!packet_checksum_valid(&view));
        packet.flags = NQ_CSUM_VERIFIED;
        CHECK(packet_checksum_valid(&view));
        packet.flags = NQ_CSUM_NOT_READY;
        CHECK(packet_checksum_valid(&view));
    }
}

TEST(a_flipped_bit_is_a_wrong_checksum)
{
    check_flips(&ipv4);
    check_flips(&ipv6);
}

/* What a local sender leaves to its network card: the sum of the pseudo-header, not complemented. */
static void check_partial(const struct wire *wire)
{
    struct sample sample = plain(wire);
    bool is_ipv4 = wire->family == 4;
    uint32_t header = is_ipv4 ? 20 : 40;
    uint32_t sum = naive_sum(6 + sample.len - header, sample.octets + (is_ipv4 ? 12 : 8), is_ipv4 ? 8 : 32);
    uint16_t partial = naive_fold(sum);
    struct nq_packet packet;
    struct nq_view view;
    for (int difference = -2; difference <= 2; difference++) {
        uint16_t written = (uint16_t)(partial + difference);
        sample.octets[header + 16] = (uint8_t)(written >> 8);
        sample.octets[header + 17] = (uint8_t)written;
        CHECK_EQUAL(view_of(&view, &packet, &sample, sample.len), REASON_NONE);
        CHECK_EQUAL(packet_checksum_valid(&view), difference == 0);
    }
}

TEST(a_partial_checksum_is_accepted)
{
    check_partial(&ipv4);
    check_partial(&ipv6);
}

/* ---- options ---- */

static bool options_of(const void *octets, uint32_t len, struct nq_tcp_options *options)
{
    struct segment syn = { .from = CLIENT, .flags = NQ_SYN, .options = octets, .options_len = len };
    struct sample sample;
    sample.len = wire_write(&ipv4, &syn, sample.octets);
    struct nq_packet packet;
    struct nq_view view;
    CHECK_EQUAL(view_of(&view, &packet, &sample, sample.len), REASON_NONE);
    return packet_options(&view, options);
}

TEST(options_are_read)
{
    struct nq_tcp_options options;
    CHECK(options_of("\x02\x04\x05\xb4\x03\x03\x07\x01", 8, &options));
    CHECK_EQUAL(options.mss, 1460);
    CHECK_EQUAL(options.window_scale, 7);
    CHECK(!options.authenticated && !options.fast_open);
    CHECK(options_of("\x03\x03\xff\x00", 4, &options));
    CHECK_EQUAL(options.window_scale, 14); /* RFC 7323, 2.3 */
    CHECK(options_of("", 0, &options));
    CHECK_EQUAL(options.mss, 0);
    CHECK_EQUAL(options.window_scale, 0xff);
    CHECK(options_of("\x13\x12" "0123456789abcdef\x01\x01", 20, &options));
    CHECK(options.authenticated);
    CHECK(options_of("\x1d\x04\x00\x00", 4, &options));
    CHECK(options.authenticated);
    CHECK(options_of("\x22\x04\x01\x02", 4, &options));
    CHECK(options.fast_open != NULL && options.fast_open[0] == 34);
    CHECK(options_of("\x01\x01\x01\x00\x13\x12\x00\x00", 8, &options));
    CHECK(!options.authenticated); /* behind the end of the list */
}

TEST(options_that_do_not_parse)
{
    struct nq_tcp_options options;
    CHECK(!options_of("\x02\x00\x05\xb4", 4, &options));
    CHECK(!options_of("\x02\x01\x05\xb4", 4, &options));
    CHECK(!options_of("\x02\x05\x05\xb4", 4, &options));
    CHECK(!options_of("\x01\x01\x01\x02", 4, &options));
    CHECK(!options_of("\x01\x01\x08\x0a", 4, &options));
    CHECK(options_of("\x02\x03\x05\x01", 4, &options)); /* an MSS of a wrong size is none */
    CHECK_EQUAL(options.mss, 0);
}

TEST(a_syn_leaves_without_data_and_fast_open)
{
    static const uint8_t cookie[12] = { 2, 4, 5, 0xb4, 34, 6, 1, 2, 3, 4, 1, 1 };
    for (int family = 4; family <= 6; family += 2) {
        struct segment syn = { .from = CLIENT, .flags = NQ_SYN, .options = cookie, .options_len = 12, .payload = "EHLO x\r\n",
                               .len = 8 };
        struct sample sample;
        sample.len = wire_write(family == 4 ? &ipv4 : &ipv6, &syn, sample.octets);
        struct nq_packet packet;
        struct nq_view view;
        struct nq_tcp_options options;
        CHECK_EQUAL(view_of(&view, &packet, &sample, sample.len), REASON_NONE);
        CHECK(packet_options(&view, &options));
        packet_normalise_syn(&view, &options);
        CHECK(view.edited);
        packet_checksum_write(&view);
        CHECK_EQUAL(view.payload_len, 0);
        CHECK(naive_checksums(packet.data, packet.len - 8));
        CHECK_OCTETS((uint8_t *)view.tcp + 20, 12, "\x02\x04\x05\xb4\x01\x01\x01\x01\x01\x01\x01\x01", 12);
    }
}

/* ---- edits of whole packets ---- */

static void check_cut(const struct wire *wire, uint32_t octets)
{
    struct segment said = segment;
    struct sample sample;
    said.flags = NQ_ACK | NQ_PSH | NQ_FIN;
    sample.len = wire_write(wire, &said, sample.octets);
    struct nq_packet packet;
    struct nq_view view, again;
    CHECK_EQUAL(view_of(&view, &packet, &sample, sample.len), REASON_NONE);
    packet_cut(&view, octets);
    packet_checksum_write(&view);
    CHECK(view.edited);
    packet.len -= segment.len - octets;
    CHECK_EQUAL(packet_view(&again, &packet), REASON_NONE);
    CHECK_EQUAL(again.payload_len, octets);
    CHECK_EQUAL(again.flags, NQ_ACK);
    CHECK_EQUAL(again.seq, segment.seq);
    CHECK(naive_checksums(packet.data, packet.len));
}

TEST(a_packet_cut_at_every_octet)
{
    for (uint32_t octets = 0; octets <= segment.len; octets++) {
        harness_row("%u octets remain", octets);
        check_cut(&ipv4, octets);
        check_cut(&ipv6, octets);
    }
}

TEST(urgent_is_cleared)
{
    struct segment said = segment;
    struct sample sample;
    said.flags |= NQ_URG;
    sample.len = wire_write(&ipv4, &said, sample.octets);
    struct nq_packet packet;
    struct nq_view view;
    CHECK_EQUAL(view_of(&view, &packet, &sample, sample.len), REASON_NONE);
    packet_clear_urgent(&view);
    packet_checksum_write(&view);
    CHECK(naive_checksums(packet.data, packet.len));
    CHECK_EQUAL(view.tcp->flags & NQ_URG, 0);
    CHECK_EQUAL(view.tcp->urgent, 0);
}

TEST(a_reset_of_our_own_is_whole)
{
    uint8_t octets[NQ_OURS_OCTETS];
    struct nq_speaker speaker = { .family = 4, .source_port = 25, .destination_port = 40000, .seq = 7, .ack = 9 };
    packet_address(speaker.source, (const uint8_t *)"\xc0\x00\x02\x01", 4);
    packet_address(speaker.destination, (const uint8_t *)"\xc6\x33\x64\x19", 4);
    CHECK_EQUAL(refuse_rst(&speaker, octets), 40);
    CHECK(naive_checksums(octets, 40));
    speaker.family = 6;
    CHECK_EQUAL(refuse_rst(&speaker, octets), 60);
    CHECK(naive_checksums(octets, 60));
}
