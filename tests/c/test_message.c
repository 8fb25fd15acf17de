/*
 * test_message.c - what is told of messages, in which order, and of which octets, in every cut; as DATA and in chunks.
 */
#include <stdio.h>

#include "every_match.h"
#include "harness.h"
#include "told.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define RULE(kind, ...) { .name = #kind, .match = MATCH_OF_##kind, __VA_ARGS__ }

static void check(const struct nq_rule_spec *rules, uint32_t count, const char *message, uint32_t len, const char *told)
{
    const struct told_turn turns[] = { { CLIENT, "DATA\r\n", 0 }, { SERVER, "354 go\r\n", 0 }, { CLIENT, message, len },
                                       { SERVER, "250 ok\r\n", 0 } };
    told_all_ways(&(struct told_case){ .rules = rules, .rule_count = count, .turns = turns, .turn_count = 4, .told = told });
}

#define CHECK_TOLD(rules, message, told) check(rules, COUNT(rules), message, sizeof(message) - 1, told)

/* The lengths themselves are told with the value at which the bound was seen to be passed, which depends on the cut; lines are not. */
TEST(long_lines_of_header_and_body)
{
    const struct nq_rule_spec rules[] = { RULE(HEADER_LINE_LENGTH, .bound = 10), RULE(BODY_LINE_LENGTH, .bound = 4) };
    CHECK_TOLD(rules, "Subject: x\r\nSubject: xy\r\n\r\nabcd\r\nabcde\r\nabcdefghi\r\n.\r\n",
               "HEADER_LINE_LENGTH:11@27 BODY_LINE_LENGTH:5@48 BODY_LINE_LENGTH:5@55");
}

TEST(newlines_and_false_ends)
{
    const struct nq_rule_spec rules[] = { RULE(SMUGGLING), RULE(BARE_NEWLINE) };
    CHECK_TOLD(rules, "a\r\n\r\nb\nc\n.\r\nMAIL\r\n.\nx\r.\ry\r\n.\r\n",
               "BARE_NEWLINE:0@21 BARE_NEWLINE:0@23 SMUGGLING:0@25 SMUGGLING:0@34 BARE_NEWLINE:0@37 SMUGGLING:0@38 BARE_NEWLINE:0@39");
}

/* In the order of the octets: the long line's first octet too many comes before the text, the newline behind it. */
TEST(what_is_told_comes_in_the_order_of_the_octets)
{
    const struct nq_rule_spec rules[] = {
        RULE(BARE_NEWLINE), RULE(BODY_LINE_LENGTH, .bound = 6), RULE(HEADER_TO_FIELDS, .bound = 1), RULE(MIME_FILENAME_LENGTH, .bound = 4),
    };
    CHECK_TOLD(rules,
               "To: a@b, c@d\r\nContent-Disposition: attachment; filename=abcdef\r\n\r\nabcdefghij\nx\r\nabcdefghij\r\n.\r\n",
               "HEADER_TO_FIELDS:2@30 MIME_FILENAME_LENGTH:6@80 BODY_LINE_LENGTH:7@81 BARE_NEWLINE:0@91 BODY_LINE_LENGTH:7@95");
}

TEST(expressions_on_header_and_body)
{
    const struct nq_rule_spec rules[] = {
        { .name = "header", .match = MATCH_OF_HEADER_REGEX, .regex = literal(0, "viagra"), .log = 1 },
        { .name = "body", .match = MATCH_OF_BODY_REGEX, .regex = literal(1, "lottery"), .log = 1 },
    };
    const char mail[] = "Subject: viagra\r\n\r\nviagra lot\r\nlottery lottery\r\n.\r\n", none[] = "Subject: via\r\n\r\ngra lotte\r\nry\r\n.\r\n";
    const char split[] = "Subject: lot\r\n\r\ntery\r\n.\r\n";
    const struct told_turn turns[][4] = {
        { { CLIENT, "DATA\r\n", 0 }, { SERVER, "354 go\r\n", 0 }, { CLIENT, none, 0 }, { SERVER, "250 ok\r\n", 0 } },
        { { CLIENT, "DATA\r\n", 0 }, { SERVER, "354 go\r\n", 0 }, { CLIENT, split, 0 }, { SERVER, "250 ok\r\n", 0 } },
    };
    for (size_t i = 0; i < COUNT(turns); i++)
        told_all_ways(&(struct told_case){ .rules = rules, .rule_count = 2, .turns = turns[i], .turn_count = 4, .told = "" });
    struct nq_settings settings = wire_settings();
    char error[NQ_ERROR_MAX];
    for (uint32_t cut = 1; cut < sizeof mail; cut++) {
        static const char *verbs[] = { "DATA" };
        struct nq_policy_spec spec = { .name = "texts", .verbs = verbs, .verb_count = 1, .mask_verbs = 1, .alert = 1, .rules = rules,
                                       .rule_count = 2 };
        struct nq_event events[4];
        struct wire wire;
        wire_open(&wire, &settings, nq_policy_new(&spec, error));
        wire_handshake(&wire);
        wire_say(&wire, SERVER, "220 x\r\n");
        wire_say(&wire, CLIENT, "DATA\r\n");
        wire_say(&wire, SERVER, "354 x\r\n");
        wire_say_octets(&wire, CLIENT, mail, cut);
        wire_say_octets(&wire, CLIENT, mail + cut, (uint32_t)sizeof mail - 1 - cut);
        harness_row("cut at %u", cut);
        CHECK_EQUAL(nq_engine_events(wire.engine, events, 4), 2);
        CHECK_TEXT(events[0].rule_name, "header");
        CHECK_TEXT(events[1].rule_name, "body");
        wire_close(&wire);
    }
}

TEST(more_octets_than_declared)
{
    const struct nq_rule_spec rules[] = { RULE(SIZE_EXCEEDED) };
    for (int more = 0; more < 2; more++) {
        const struct told_turn turns[] = {
            { CLIENT, "MAIL FROM:<a@b> SIZE=10\r\n", 0 }, { SERVER, "250 ok\r\n", 0 }, { CLIENT, "RCPT TO:<c@d>\r\n", 0 },
            { SERVER, "250 ok\r\n", 0 }, { CLIENT, "DATA\r\n", 0 }, { SERVER, "354 go\r\n", 0 },
            { CLIENT, more ? "a\r\n\r\nabcd\r\n.\r\n" : "a\r\n\r\nabc\r\n.\r\n", 0 }, { SERVER, "250 ok\r\n", 0 },
        };
        const char *told = more ? "SIZE_EXCEEDED:11@58" : "";
        told_all_ways(&(struct told_case){ .rules = rules, .rule_count = 1, .turns = turns, .turn_count = 8, .told = told });
    }
}

/* RFC 3030: a header that goes on in the next chunk is one header, and a dot alone means nothing. */
TEST(a_message_in_chunks)
{
    const struct nq_rule_spec rules[] = {
        { .name = "header", .match = MATCH_OF_HEADER_REGEX, .regex = literal(0, "viagra"), .log = 1 }, RULE(BODY_LINE_LENGTH, .bound = 4),
        RULE(SMUGGLING), RULE(BARE_NEWLINE),
    };
    const struct told_turn turns[] = {
        { CLIENT, "BDAT 12\r\nSubject: via", 0 }, { SERVER, "250 ok\r\n", 0 }, { CLIENT, "BDAT 14\r\ngra\r\n\r\n\r\n.\r\nab", 0 },
        { SERVER, "250 ok\r\n", 0 }, { CLIENT, "BDAT 5 LAST\r\ncd\ne\n", 0 }, { SERVER, "250 ok\r\n", 0 }, { CLIENT, "NOOP\r\n", 0 },
    };
    told_all_ways(&(struct told_case){ .rules = rules, .rule_count = 4, .turns = turns, .turn_count = 7, .told = "header:0@27 BODY_LINE_LENGTH:5@64" });
}

/* What the modern preset makes of them: blanks where one side would see a line's end, and nothing else; here in one packet. */
TEST(newlines_become_blanks)
{
    static const struct { const char *said, *arrives; } rows[] = {
        { "a\nb\r\n.\r\n", "a b\r\n.\r\n" },           { "a\rb\r\n.\r\n", "a b\r\n.\r\n" },
        { "a\n.\nb\r\n.\r\n", "a . b\r\n.\r\n" },      { "a\n.\r\nb\r\n.\r\n", "a .\r\nb\r\n.\r\n" },
        { "a\r\n.\nb\r\n.\r\n", "a\r\n. b\r\n.\r\n" }, { "a\r.\rb\r\n.\r\n", "a . b\r\n.\r\n" },
        { "a\r\n.\rb\r\n.\r\n", "a\r\n. b\r\n.\r\n" }, { "a\r\n..\r\n.\r\n", "a\r\n..\r\n.\r\n" },
    };
    const struct nq_rule_spec rules[] = { RULE(SMUGGLING, .action = NQ_DO_REPLACE, .log = 1), RULE(BARE_NEWLINE, .action = NQ_DO_REPLACE, .log = 1) };
    for (size_t i = 0; i < COUNT(rows); i++) {
        static const char *verbs[] = { "DATA" };
        struct nq_policy_spec spec = { .name = "blanks", .verbs = verbs, .verb_count = 1, .mask_verbs = 1, .rules = rules, .rule_count = 2 };
        struct nq_settings settings = wire_settings();
        char error[NQ_ERROR_MAX];
        struct wire wire;
        wire_open(&wire, &settings, nq_policy_new(&spec, error));
        wire_handshake(&wire);
        wire_say(&wire, SERVER, "220 x\r\n");
        wire_say(&wire, CLIENT, "DATA\r\n");
        wire_say(&wire, SERVER, "354 x\r\n");
        wire_say(&wire, CLIENT, rows[i].said);
        harness_row("row %zu", i);
        CHECK_TEXT(wire_arrived(&wire, SERVER) + 6, rows[i].arrives);
        wire_close(&wire);
    }
}

/* However it is cut, what arrives ends where the true end is for every reader: no LF or CR is bare that could have been edited, and
 * none of the seven ends is left. */
TEST(no_false_end_arrives_in_any_cut)
{
    static const char *const ends[] = { "\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\n.\r", "\r.\r\n", "\r\n.\r" };
    const struct nq_rule_spec rules[] = { RULE(SMUGGLING, .action = NQ_DO_REPLACE, .log = 1), RULE(BARE_NEWLINE, .action = NQ_DO_REPLACE, .log = 1) };
    for (size_t i = 0; i < COUNT(ends); i++)
        for (uint32_t cut = 0; cut < 14; cut++) {
            static const char *verbs[] = { "DATA" };
            struct nq_policy_spec spec = { .name = "blanks", .verbs = verbs, .verb_count = 1, .mask_verbs = 1, .rules = rules, .rule_count = 2 };
            struct nq_settings settings = wire_settings();
            char error[NQ_ERROR_MAX], mail[64];
            struct wire wire;
            uint32_t len = (uint32_t)snprintf(mail, sizeof mail, "ab%sEXPN\r\n.\r\n", ends[i]);
            wire_open(&wire, &settings, nq_policy_new(&spec, error));
            wire_handshake(&wire);
            wire_say(&wire, SERVER, "220 x\r\n");
            wire_say(&wire, CLIENT, "DATA\r\n");
            wire_say(&wire, SERVER, "354 x\r\n");
            for (uint32_t at = 0; at < len;) {
                uint32_t piece = cut == 0 ? 1 : at == 0 && cut < len ? cut : len - at;
                wire_say_octets(&wire, CLIENT, mail + at, piece);
                at += piece;
            }
            harness_row("end %zu, cut at %u", i, cut);
            const char *arrived = wire_arrived(&wire, SERVER) + 6;
            bool reset = wire.side[SERVER].resets > 0; /* CRLF.CR has left, and what follows is no LF */
            CHECK(!reset || i == 6);
            for (size_t n = 0; n < COUNT(ends); n++)
                CHECK(strstr("\r\n.\r\n", ends[n]) != NULL || strstr(arrived, ends[n]) == NULL); /* the true end holds some */
            CHECK(reset || strlen(arrived) == len);
            const char *end = strstr(arrived, "\r\n.\r\n");
            CHECK(reset || (end && end[5] == 0));
            wire_close(&wire);
        }
}
