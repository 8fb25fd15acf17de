/*
 * test_engine.c - whole dialogues through the engine's entry for packets: what arrives, what waits, what is told.
 */
#include <stdio.h>
#include <stdlib.h>

#include "harness.h"
#include "wire.h"

#define SECOND 1000000000ull

static struct wire *opened(struct wire *wire, bool masks)
{
    struct nq_settings settings = wire_settings();
    wire_open(wire, &settings, wire_policy(masks));
    wire_handshake(wire);
    return wire;
}

static struct wire *greeted(struct wire *wire)
{
    opened(wire, false);
    CHECK_EQUAL(wire_say(wire, SERVER, "220 x\r\n"), ACCEPTED);
    return wire;
}

/* ---- a dialogue of fifteen commands, cut at every place ---- */

struct line {
    const char *said, *arrives; /* NULL: as it was said */
    const char *reply;
};

static const struct line dialogue[] = {
    { "EHLO client.example\r\n", NULL, "250-mail\r\n250-SIZE 9\r\n250-XSECRET\r\n250 8BITMIME\r\n" },
    { "NOOP\r\n", NULL, "250 ok\r\n" },
    { "EXPN root\r\n", "XXXXXXXXX\r\n", "500 what?\r\n" },
    { "vrfy root\r\n", NULL, "252 perhaps\r\n" },
    { "VERB\r\n", "XXXX\r\n", "500 what?\r\n" },
    { "HELP\n", NULL, "214 none\r\n" },
    { "RSET\r\n", NULL, "250 ok\r\n" },
    { "XEXCH50 3 2\r\n", "XXXXXXXXXXX\r\n", "500 what?\r\n" },
    { "MAIL FROM:<a@b>\r\n", NULL, "250 ok\r\n" },
    { "ONEX\n", "XXXX\n", "500 what?\r\n" },
    { "RCPT TO:<c@d>\r\n", NULL, "250 ok\r\n" },
    { "DATA\r\n", NULL, "354 go\r\n" },
    { "Subject: EXPN\r\n\r\nEXPN\r\n..\r\n.\r\n", NULL, "250 queued\r\n" },
    { "helo again\r\n", NULL, "250 mail\r\n" },
    { "NO\0OP\r\n", "XXXXX\r\n", "500 what?\r\n" },
    { "QUIT\r\n", NULL, "221 bye\r\n" },
};
enum { LINES = sizeof dialogue / sizeof *dialogue };

static uint32_t length_of(const struct line *line)
{
    return line->arrives ? (uint32_t)strlen(line->arrives) : (uint32_t)strlen(line->said);
}

struct heard {
    uint64_t commands_masked, keywords_masked, commands, replies, messages, resets;
};

/* Letters that left in an earlier packet may remain, where the line is masked. */
static void check_line(const char *arrived, const struct line *line)
{
    uint32_t len = length_of(line);
    for (uint32_t i = 0; i < len; i++) {
        bool masked = line->arrives && arrived[i] == line->said[i] && line->said[i] != 0;
        char wanted = line->arrives ? line->arrives[i] : line->said[i];
        if (arrived[i] != wanted && !masked)
            harness_fail(__FILE__, __LINE__, "octet %u of the line arrived as %02x, not %02x", i, (uint8_t)arrived[i],
                         (uint8_t)wanted);
    }
    CHECK(!line->arrives || memcmp(arrived, line->said, len) != 0);
}

static void check_dialogue(struct wire *wire, struct heard *heard)
{
    const char *arrived = wire_arrived(wire, SERVER);
    for (int i = 0; i < LINES; i++) {
        harness_row("line %d", i);
        check_line(arrived, &dialogue[i]);
        arrived += length_of(&dialogue[i]);
    }
    CHECK_EQUAL(*arrived, 0);
    *heard = (struct heard){ wire_count(wire, "commands-masked"), wire_count(wire, "keywords-masked"),
                             wire_count(wire, "commands"), wire_count(wire, "replies"), wire_count(wire, "messages"),
                             wire_count(wire, "resets") };
}

/* Each side says its lines in pieces; `cut` is the place of the one cut within each line, 0 for octet by octet. */
static void say_cut(struct wire *wire, unsigned from, const char *text, uint32_t len, uint32_t cut)
{
    for (uint32_t at = 0; at < len;) {
        uint32_t piece = cut == 0 ? 1 : at == 0 && cut < len ? cut : len - at;
        CHECK(wire_say_octets(wire, from, text + at, piece) != DROPPED);
        at += piece;
    }
}

static struct heard run_dialogue(uint8_t family, uint32_t cut)
{
    struct nq_settings settings = wire_settings();
    struct wire wire;
    struct heard heard;
    wire_open(&wire, &settings, wire_policy(true));
    wire.family = family;
    wire_handshake(&wire);
    say_cut(&wire, SERVER, "220 mail\r\n", 10, cut);
    for (int i = 0; i < LINES; i++) {
        say_cut(&wire, CLIENT, dialogue[i].said, length_of(&dialogue[i]), cut);
        say_cut(&wire, SERVER, dialogue[i].reply, (uint32_t)strlen(dialogue[i].reply), cut);
    }
    check_dialogue(&wire, &heard);
    wire_close(&wire);
    return heard;
}

TEST(every_cut_of_a_dialogue_is_the_same_dialogue)
{
    struct heard whole = run_dialogue(4, 1000);
    CHECK_EQUAL(whole.commands_masked, 5);
    CHECK_EQUAL(whole.keywords_masked, 1);
    CHECK_EQUAL(whole.messages, 1);
    CHECK_EQUAL(whole.resets, 0);
    for (uint32_t cut = 0; cut < 60; cut++) {
        struct heard heard = run_dialogue(cut % 2 ? 4 : 6, cut);
        harness_row("cut at %u", cut);
        CHECK(memcmp(&heard, &whole, sizeof heard) == 0);
    }
}

/* ---- masks ---- */

TEST(neighbours_in_one_packet_are_untouched)
{
    struct wire wire;
    greeted(&wire);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "NOOP\r\nEXPN root\r\nRSET\r\nTURN\nHELP\r\n"), EDITED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "NOOP\r\nXXXXXXXXX\r\nRSET\r\nXXXX\nHELP\r\n");
    CHECK_EQUAL(wire_say(&wire, SERVER, "250 ok\r\n500 no\r\n250 ok\r\n500 no\r\n214 x\r\n"), ACCEPTED);
    CHECK_EQUAL(wire_count(&wire, "unexpected-replies"), 0);
    wire_close(&wire);
}

TEST(nothing_is_held_for_one_who_types)
{
    struct wire wire;
    greeted(&wire);
    for (const char *typed = "HELO me\r\n"; *typed; typed++)
        CHECK_EQUAL(wire_say_octets(&wire, CLIENT, typed, 1), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "HELO me\r\n");
    for (const char *typed = "EXPN x\r\n"; *typed; typed++)
        CHECK(wire_say_octets(&wire, CLIENT, typed, 1) != PENDING);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "HELO me\r\nEXXXXX\r\n");
    wire_close(&wire);
}

TEST(a_prefix_that_left_is_made_no_verb)
{
    struct wire wire;
    greeted(&wire);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "NOO"), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, CLIENT, " x\r\n"), EDITED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "NOOXX\r\n");
    CHECK_EQUAL(wire_say(&wire, CLIENT, "NOO"), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "\r\n"), DROPPED); /* nothing left to edit but the line's end */
    CHECK_EQUAL(wire_count(&wire, "resets"), 1);
    CHECK_EQUAL(wire.side[CLIENT].resets + wire.side[SERVER].resets, 2);
    wire_close(&wire);
}

TEST(banner_and_keywords_keep_their_length)
{
    struct wire wire;
    opened(&wire, true);
    CHECK_EQUAL(wire_say(&wire, SERVER, "220-mail 2026 ESMTP\r\n220 (200) ok\r\n"), EDITED);
    CHECK_TEXT(wire_arrived(&wire, CLIENT), "220-*****202*******\r\n220 *200****\r\n");
    wire_say(&wire, CLIENT, "EHLO x\r\n");
    CHECK_EQUAL(wire_say(&wire, SERVER, "250-mail CHUNKING\r\n250-CHUNKING\r\n250-SIZE 5\r\n250 STARTTLS\r\n"), EDITED);
    CHECK_TEXT(wire_arrived(&wire, CLIENT), "220-*****202*******\r\n220 *200****\r\n"
                                            "250-mail CHUNKING\r\n250-XXXXXXXX\r\n250-SIZE 5\r\n250 XXXXXXXX\r\n");
    wire_close(&wire);
}

/* ---- nothing behind DATA before the reply ---- */

TEST(what_is_sent_behind_data_waits_for_354)
{
    struct wire wire;
    greeted(&wire);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "DATA\r\n"), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "EXPN is a word\r\n"), PENDING);
    CHECK_EQUAL(wire_say(&wire, CLIENT, ".\r\nEXPN\r\n"), PENDING);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "DATA\r\n");
    CHECK_EQUAL(wire_say(&wire, SERVER, "354 go\r\n"), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "DATA\r\nEXPN is a word\r\n.\r\nXXXX\r\n");
    wire_close(&wire);
}

TEST(what_was_sent_behind_data_is_commands_after_503)
{
    struct wire wire;
    greeted(&wire);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "DATA\r\n"), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "EXPN root\r\nNOOP\r\n"), PENDING);
    CHECK_EQUAL(wire_say(&wire, SERVER, "503 no\r\n"), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "DATA\r\nXXXXXXXXX\r\nNOOP\r\n");
    wire_close(&wire);
}

TEST(of_a_packet_with_data_and_more_the_command_goes)
{
    struct wire wire;
    greeted(&wire);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "RSET\r\nDATA\r\nEXPN\r\n.\r\n"), EDITED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "RSET\r\nDATA\r\n");
    CHECK_EQUAL(wire_ack(&wire, SERVER), ACCEPTED);
    CHECK_EQUAL(wire_say_at(&wire, CLIENT, 12, "EXPN\r\n.\r\n", 9), DROPPED); /* a copy waits already */
    CHECK_EQUAL(wire_say(&wire, SERVER, "250 ok\r\n354 go\r\n"), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "RSET\r\nDATA\r\nEXPN\r\n.\r\n");
    wire_close(&wire);
}

/* The part that went may be lost behind us, and the client sends the whole again: the command must go again, too. */
TEST(the_part_of_a_packet_that_went_goes_again)
{
    struct wire wire;
    greeted(&wire);
    static const char whole[] = "DATA\r\nEXPN\r\n.\r\n";
    CHECK_EQUAL(wire_say(&wire, CLIENT, whole), EDITED);
    CHECK_EQUAL(wire_say_at(&wire, CLIENT, 0, whole, sizeof whole - 1), EDITED);
    CHECK_EQUAL(wire.result->outputs[0].len, 40 + 6);
    CHECK_EQUAL(wire_ack(&wire, SERVER), ACCEPTED); /* now it has arrived */
    CHECK_EQUAL(wire_say_at(&wire, CLIENT, 0, whole, sizeof whole - 1), PENDING);
    CHECK_EQUAL(wire_say(&wire, SERVER, "354 go\r\n"), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), whole);
    wire_close(&wire);
}

/* A GSO packet cannot shrink to one segment. It is left out, and packets of our own go in its place. */
TEST(a_large_packet_with_data_at_its_beginning_goes_as_packets_of_our_own)
{
    static char whole[6 + 20000];
    struct wire wire;
    greeted(&wire);
    memset(whole, 'a', sizeof whole);
    memcpy(whole, "DATA\r\n", 6);
    wire_say_octets(&wire, CLIENT, whole, sizeof whole);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "DATA\r\n");
    CHECK(wire_say_at(&wire, CLIENT, 0, whole, WIRE_MSS) != PENDING);
    wire_ack(&wire, SERVER);
    CHECK_EQUAL(wire_say(&wire, SERVER, "354 go\r\n"), ACCEPTED);
    CHECK_OCTETS(wire_arrived(&wire, SERVER), wire_arrived_len(&wire, SERVER), whole, sizeof whole);
    wire_close(&wire);
}

TEST(a_reply_that_came_in_the_wrong_order_releases_what_waits)
{
    struct wire wire;
    greeted(&wire);
    wire_say(&wire, CLIENT, "DATA\r\n");
    CHECK_EQUAL(wire_say(&wire, CLIENT, "body\r\n"), PENDING);
    CHECK_EQUAL(wire_say_at(&wire, SERVER, 11, "go\r\n", 4), PENDING);
    CHECK_EQUAL(wire_say_at(&wire, SERVER, 7, "354 ", 4), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, CLIENT), "220 x\r\n354 go\r\n");
    CHECK_TEXT(wire_arrived(&wire, SERVER), "DATA\r\nbody\r\n");
    wire_close(&wire);
}

TEST(what_waits_too_long_is_dropped_and_comes_again)
{
    struct wire wire;
    greeted(&wire);
    wire_say(&wire, CLIENT, "DATA\r\n");
    CHECK_EQUAL(wire_say(&wire, CLIENT, "body\r\n"), PENDING);
    wire_tick(&wire, wire.now + (NQ_HOLD - 1) * SECOND);
    CHECK_EQUAL(wire_drops(&wire, REASON_HELD_EXPIRED), 0);
    wire_tick(&wire, wire.now + 2 * SECOND);
    CHECK_EQUAL(wire_drops(&wire, REASON_HELD_EXPIRED), 1);
    wire_say(&wire, SERVER, "354 go\r\n");
    CHECK_EQUAL(wire_say_at(&wire, CLIENT, 6, "body\r\n", 6), ACCEPTED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "DATA\r\nbody\r\n");
    wire_close(&wire);
}

/* ---- one value for each octet ---- */

TEST(a_retransmission_leaves_as_the_first_did)
{
    struct wire wire;
    greeted(&wire);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "NOOP a\r\nEXPN b\r\n"), EDITED);
    static const char other[] = "EXPN c\r\nNOOP d\r\n";
    CHECK_EQUAL(wire_say_at(&wire, CLIENT, 0, other, 16), EDITED);
    for (uint32_t from = 0; from < 16; from++)
        for (uint32_t to = from + 1; to <= 16; to++)
            CHECK(wire_say_at(&wire, CLIENT, from, &other[from], to - from) != DROPPED);
    CHECK_EQUAL(wire_say_at(&wire, CLIENT, 5, "z\r\nEXPN z\r\nRSET\r\n", 17), EDITED); /* old and new in one */
    CHECK_TEXT(wire_arrived(&wire, SERVER), "NOOP a\r\nXXXXXX\r\nRSET\r\n");
    wire_close(&wire);
}

/* A capture's record, say. Of three large packets held, the first expires, and the long one takes its block. */
TEST(a_packet_longer_than_it_says_spoils_no_neighbours_block)
{
    enum { OCTETS = 100000, LARGE = 3000 };
    static uint8_t octets[OCTETS];
    static char lines[LARGE];
    struct wire wire;
    opened(&wire, false);
    memset(lines, 'a', sizeof lines);
    memcpy(lines, "220 ", 4);
    memcpy(lines + sizeof lines - 2, "\r\n", 2);
    CHECK_EQUAL(wire_say_at(&wire, SERVER, 3000, lines, LARGE), PENDING);
    wire_tick(&wire, wire.now + 6 * SECOND);
    CHECK_EQUAL(wire_say_at(&wire, SERVER, 6000, lines, LARGE), PENDING);
    CHECK_EQUAL(wire_say_at(&wire, SERVER, 9000, lines, LARGE), PENDING);
    wire_tick(&wire, wire.now + 5 * SECOND);
    CHECK_EQUAL(wire_drops(&wire, REASON_HELD_EXPIRED), 1);
    struct segment segment = { .from = SERVER, .seq = wire.side[SERVER].isn + 1 + 12000, .ack = wire.side[SERVER].got,
                               .flags = NQ_ACK, .window = 0xffff, .payload = lines, .len = LARGE };
    struct nq_packet packet = { .len = OCTETS, .in_ifindex = SERVER_IFINDEX, .out_ifindex = CLIENT_IFINDEX };
    memset(octets, 0xee, OCTETS);
    wire_write(&wire, &segment, octets);
    CHECK_EQUAL(wire_send_raw(&wire, octets, packet), PENDING);
    CHECK_EQUAL(wire_say_at(&wire, SERVER, 0, lines, LARGE), ACCEPTED);
    CHECK_EQUAL(wire_say_at(&wire, SERVER, 3000, lines, LARGE), ACCEPTED);
    CHECK_EQUAL(wire_arrived_len(&wire, CLIENT), 15000);
    for (uint32_t i = 0; i < 15000; i++)
        CHECK_EQUAL(wire.side[CLIENT].arrived[i], lines[i % LARGE]);
    for (uint32_t at = 0; at < 15000; at += LARGE)
        CHECK_EQUAL(wire_say_at(&wire, SERVER, at, lines, LARGE), ACCEPTED); /* the store is what left */
    wire_close(&wire);
}

/* ---- STARTTLS ---- */

TEST(plaintext_before_the_reply_to_starttls_resets)
{
    struct wire wire;
    greeted(&wire);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "STARTTLS\r\n"), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "RSET\r\n"), PENDING);
    CHECK_EQUAL(wire_say(&wire, SERVER, "220 go\r\n"), DROPPED);
    CHECK_EQUAL(wire_count(&wire, "resets"), 1);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "STARTTLS\r\n");
    wire_close(&wire);
}

TEST(plaintext_behind_220_resets)
{
    struct wire wire;
    greeted(&wire);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "STARTTLS\r\n"), ACCEPTED);
    CHECK_EQUAL(wire_say(&wire, SERVER, "220 go\r\n250 evil\r\n"), DROPPED);
    CHECK_EQUAL(wire_drops(&wire, REASON_TLS_INJECTION), 1);
    wire_close(&wire);
}

/* ---- what is told ---- */

static uint32_t take_events(struct wire *wire, struct nq_event *into, uint32_t max)
{
    return nq_engine_events(wire->engine, into, max);
}

TEST(an_event_tells_the_line_as_it_came)
{
    struct wire wire;
    struct nq_event event[4];
    greeted(&wire);
    wire_say(&wire, CLIENT, "NOOP\r\nEXPN root\r\n");
    CHECK_EQUAL(take_events(&wire, event, 4), 1);
    CHECK_EQUAL(event->type, NQ_EVENT_MASK_COMMAND);
    CHECK_EQUAL(event->reason, REASON_COMMAND);
    CHECK_OCTETS(event->text, event->text_len, "EXPN root", 9);
    CHECK_EQUAL(event->length, 9);
    CHECK_EQUAL(event->offset, 6);
    CHECK_EQUAL(event->line, 2);
    CHECK_EQUAL(event->client_port, 40000);
    CHECK_EQUAL(event->server_port, 25);
    CHECK_TEXT(event->policy, "plain");
    wire_close(&wire);
}

static bool holds(const struct nq_event *event, const char *text)
{
    char copy[NQ_TEXT_MAX + 1] = { 0 };
    memcpy(copy, event->text, event->text_len);
    return strstr(copy, text) != NULL;
}

TEST(secrets_are_never_told)
{
    static const char *lines[] = { "AUTH PLAIN\tSECRETSECRET\rx\r\n", "AUTH LOGIN SECRETSECRET\r\x01\r\n",
                                   " AUTH PLAIN SECRETSECRET\r\n", "SECRETSECRETSECRET\r\n", "auth plain SECRETSECRET\0\r\n" };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct wire wire;
        struct nq_event event[4];
        uint32_t len = i == 4 ? 27 : (uint32_t)strlen(lines[i]);
        greeted(&wire);
        wire_say_octets(&wire, CLIENT, lines[i], len);
        uint32_t count = take_events(&wire, event, 4);
        harness_row("%s", lines[i]);
        CHECK_EQUAL(count, 1);
        for (uint32_t at = 0; at < count; at++)
            CHECK(!holds(&event[at], "SECRET"));
        wire_close(&wire);
    }
}

TEST(events_that_find_no_place_are_counted)
{
    struct nq_settings settings = wire_settings();
    struct nq_event event[8];
    struct wire wire;
    settings.events = 4;
    wire_open(&wire, &settings, wire_policy(false));
    wire_handshake(&wire);
    for (int i = 0; i < 10; i++)
        wire_say(&wire, CLIENT, "EXPN\r\n");
    CHECK_EQUAL(wire_count(&wire, "events"), 4);
    CHECK_EQUAL(wire_count(&wire, "events-lost"), 6);
    CHECK_EQUAL(take_events(&wire, event, 8), 4);
    CHECK_EQUAL(wire_count(&wire, "commands-masked"), 10);
    wire_close(&wire);
}

/* ---- what cannot be judged ---- */

static struct nq_policy *policy_with(uint8_t midstream)
{
    static const char *verbs[] = { "NOOP" };
    char error[NQ_ERROR_MAX];
    struct nq_policy_spec spec = { .name = "exceptions", .verbs = verbs, .verb_count = 1, .mask_verbs = 1 };
    spec.exceptions[NQ_EXC_MIDSTREAM] = midstream;
    struct nq_policy *policy = nq_policy_new(&spec, error);
    CHECK(policy != NULL);
    return policy;
}

TEST(a_connection_whose_opening_was_not_seen)
{
    static const enum outcome wanted[] = { [NQ_ANSWER_DROP] = DROPPED, [NQ_ANSWER_RESET] = DROPPED, [NQ_ANSWER_PASS] = ACCEPTED };
    for (uint8_t answer = 0; answer < 3; answer++) {
        struct nq_settings settings = wire_settings();
        struct wire wire;
        wire_open(&wire, &settings, policy_with(answer));
        CHECK_EQUAL(wire_say(&wire, CLIENT, "EXPN\r\n"), wanted[answer]);
        CHECK_EQUAL(wire.side[CLIENT].resets, answer == NQ_ANSWER_RESET);
        CHECK_EQUAL(wire.side[SERVER].resets, answer == NQ_ANSWER_RESET);
        wire_close(&wire);
    }
}

TEST(a_flow_keeps_the_policy_that_it_began_with)
{
    struct wire wire;
    greeted(&wire);
    struct nq_policy *other = policy_with(NQ_ANSWER_DROP);
    nq_engine_install(wire.engine, other);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "RSET\r\n"), ACCEPTED);
    wire_next_flow(&wire, 40001);
    wire_handshake(&wire);
    CHECK_EQUAL(wire_say(&wire, CLIENT, "RSET\r\n"), EDITED);
    nq_engine_install(wire.engine, wire.policy);
    wire_close(&wire);
    nq_policy_free(other);
}

TEST(more_message_data_than_allowed_resets)
{
    static const char *verbs[] = { "DATA" };
    char error[NQ_ERROR_MAX];
    for (int32_t more = -1; more <= 1; more++) {
        struct nq_policy_spec spec = { .name = "short", .verbs = verbs, .verb_count = 1, .mask_verbs = 1, .max_data = 100 };
        struct nq_settings settings = wire_settings();
        struct wire wire;
        char body[128];
        wire_open(&wire, &settings, nq_policy_new(&spec, error));
        wire_handshake(&wire);
        wire_say(&wire, SERVER, "220 x\r\n");
        wire_say(&wire, CLIENT, "DATA\r\n");
        wire_say(&wire, SERVER, "354 x\r\n");
        memset(body, 'a', sizeof body);
        memcpy(body + 98 + more, "\r\n.\r\n", 5);
        CHECK_EQUAL(wire_say_octets(&wire, CLIENT, body, (uint32_t)(103 + more)), more > 0 ? DROPPED : ACCEPTED);
        CHECK_EQUAL(wire_drops(&wire, REASON_MAX_DATA), more > 0);
        wire_close(&wire);
    }
}

/* ---- policies that cannot be ---- */

static bool refused(const char *word)
{
    char error[NQ_ERROR_MAX] = { 0 };
    struct nq_policy_spec spec = { .name = "word", .verbs = &word, .verb_count = 1 };
    struct nq_policy *policy = nq_policy_new(&spec, error);
    nq_policy_free(policy);
    CHECK((policy == NULL) == (*error != 0));
    return policy == NULL;
}

TEST(words_that_no_policy_can_hold)
{
    CHECK(refused(""));
    CHECK(refused("NO OP"));
    CHECK(refused("N\xd6\xd6P"));
    CHECK(refused("AUTH="));
    CHECK(refused("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF")); /* 32 */
    CHECK(!refused("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDE"));
    CHECK(!refused("X-2"));
}

TEST(more_words_than_an_automaton_holds)
{
    static char words[100][32];
    static const char *list[100];
    char error[NQ_ERROR_MAX] = { 0 };
    for (int i = 0; i < 100; i++) {
        snprintf(words[i], sizeof *words, "%c%cAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 'A' + i / 10, 'A' + i % 10);
        list[i] = words[i];
    }
    struct nq_policy_spec spec = { .name = "words", .verbs = list, .verb_count = 100 };
    CHECK(nq_policy_new(&spec, error) == NULL);
    CHECK(*error != 0);
}

TEST(a_verb_is_known_in_either_case_of_the_policy)
{
    static const char *verbs[] = { "data" };
    char error[NQ_ERROR_MAX];
    struct nq_policy_spec spec = { .name = "lower", .verbs = verbs, .verb_count = 1, .mask_verbs = 1 };
    struct nq_policy *policy = nq_policy_new(&spec, error);
    if (!policy)
        return; /* the border asks for upper case: refused is as good */
    struct nq_settings settings = wire_settings();
    struct wire wire;
    wire_open(&wire, &settings, policy);
    wire_handshake(&wire);
    wire_say(&wire, SERVER, "220 x\r\n");
    wire_say(&wire, CLIENT, "DATA\r\n");
    CHECK_EQUAL(wire_say(&wire, CLIENT, "body\r\n"), PENDING);
    wire_close(&wire);
}
