/*
 * test_command.c - what is told of command lines, and of which octets, in every cut.
 */
#include <stdio.h>

#include "every_match.h"
#include "harness.h"
#include "told.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static void check(const struct nq_rule_spec *rules, uint32_t count, const char *client, uint32_t len, const char *told)
{
    const struct told_turn turn = { CLIENT, client, len };
    told_all_ways(&(struct told_case){ .rules = rules, .rule_count = count, .turns = &turn, .turn_count = 1, .told = told });
}

#define CHECK_TOLD(rule, client, told)                             \
    do {                                                           \
        const struct nq_rule_spec rule_ = rule;                    \
        check(&rule_, 1, client, sizeof(client) - 1, told);        \
    } while (0)
#define RULE(...) ((struct nq_rule_spec){ .name = "r", __VA_ARGS__ })

static const char *mail_word[] = { "MAIL" }, *data_word[] = { "DATA" }, *plain_word[] = { "PLAIN" };

TEST(the_length_of_a_line_counts_its_end)
{
    CHECK_TOLD(RULE(.match = MATCH_OF_CMD_LINE_LENGTH, .bound = 12), "NOOP 12345\r\nNOOP 123456\r\nNOOP\r\nNOOP 1234567890\r\n", "r:13@21 r:13@40");
    CHECK_TOLD(RULE(.match = MATCH_OF_CMD_LINE_LENGTH, .bound = 4), "\r\nRSET\n", "r:5@0 r:5@11");
}

TEST(the_length_of_some_verbs_lines)
{
    CHECK_TOLD(RULE(.match = MATCH_OF_CMD_LINE_LENGTH, .bound = 10, .words = mail_word, .word_count = 1),
               "NOOP 123456789\r\nMAIL FROM:<a@b>\r\n", "r:11@25");
    CHECK_TOLD(RULE(.match = MATCH_OF_CMD_LINE_LENGTH, .bound = 10, .words = mail_word, .word_count = 1, .except_words = 1),
               "NOOP 123456789\r\nMAIL FROM:<a@b>\r\n", "r:11@9");
}

TEST(several_bounds_are_told_in_their_order)
{
    static const struct nq_rule_spec rules[] = {
        { .name = "ten", .match = MATCH_OF_CMD_LINE_LENGTH, .bound = 10 }, { .name = "seven", .match = MATCH_OF_CMD_LINE_LENGTH, .bound = 7 },
        { .name = "also-ten", .match = MATCH_OF_CMD_LINE_LENGTH, .bound = 10 },
    };
    check(rules, COUNT(rules), "NOOP 123456789\r\nNOOP 12\r\n", 0, "seven:8@0 seven:8@9 ten:11@9 also-ten:11@9 seven:8@25");
}

TEST(pipelined_commands)
{
    static const char rows[] = "NOOP\r\nRSET\r\nNOOP\r\n";
    CHECK_TOLD(RULE(.match = MATCH_OF_PIPELINED), rows, "r:0@15 r:0@21");
    CHECK_TOLD(RULE(.match = MATCH_OF_PIPELINED, .words = data_word, .word_count = 1), rows, "");
}

TEST(a_reply_in_between_is_no_pipelining)
{
    static const struct told_turn turns[] = { { CLIENT, "NOOP\r\n", 0 }, { SERVER, "250 ok\r\n", 0 }, { CLIENT, "RSET\r\nNOOP\r\n", 0 } };
    const struct nq_rule_spec rule = RULE(.match = MATCH_OF_PIPELINED);
    told_all_ways(&(struct told_case){ .rules = &rule, .rule_count = 1, .turns = turns, .turn_count = 3, .told = "r:0@21" });
}

TEST(a_line_that_ends_in_a_bare_lf)
{
    CHECK_TOLD(RULE(.match = MATCH_OF_WRONG_TERMINATION), "NOOP\r\nNOOP\nRSET x\n\r\n", "r:0@15 r:0@20");
}

TEST(the_blank_before_a_bare_lf_becomes_cr)
{
    static const struct nq_rule_spec rule = { .name = "r", .match = MATCH_OF_WRONG_TERMINATION, .action = NQ_DO_REPLACE, .log = 1 };
    const char *said = "NOOP \nRSET\n";
    struct nq_settings settings = wire_settings();
    struct wire wire;
    char error[NQ_ERROR_MAX];
    static const char *verbs[] = { "NOOP", "RSET" };
    struct nq_policy_spec spec = { .name = "lf", .verbs = verbs, .verb_count = 2, .mask_verbs = 1, .alert = 1, .rules = &rule, .rule_count = 1 };
    wire_open(&wire, &settings, nq_policy_new(&spec, error));
    wire_handshake(&wire);
    wire_say(&wire, SERVER, "220 x\r\n");
    CHECK_EQUAL(wire_say(&wire, CLIENT, said), EDITED);
    CHECK_TEXT(wire_arrived(&wire, SERVER), "NOOP\r\nRSET\n");
    wire_close(&wire);
}

TEST(extensions_that_were_not_offered)
{
    static const char *dsn[] = { "DSN" };
    CHECK_TOLD(RULE(.match = MATCH_OF_NOT_OFFERED, .words = dsn, .word_count = 1),
               "MAIL FROM:<a@b> SIZE=5 BODY=8BITMIME\r\nRCPT TO:<c@d> NOTIFY=NEVER\r\n", "r:0@47");
}

TEST(mechanisms)
{
    CHECK_TOLD(RULE(.match = MATCH_OF_AUTH_MECHANISM, .words = plain_word, .word_count = 1), "AUTH plain AHUAcA==\r\n", "r:0@9");
    CHECK_TOLD(RULE(.match = MATCH_OF_AUTH_MECHANISM, .words = plain_word, .word_count = 1), "AUTH PLAINX AHUAcA==\r\n", "");
    CHECK_TOLD(RULE(.match = MATCH_OF_AUTH_MECHANISM, .words = plain_word, .word_count = 1, .except_words = 1), "AUTH  LOGIN\r\n", "r:0@9");
    CHECK_TOLD(RULE(.match = MATCH_OF_AUTH_MECHANISM, .words = plain_word, .word_count = 1, .except_words = 1), "AUTH\tPLAIN\r\n", "");
}

TEST(names_behind_helo)
{
    CHECK_TOLD(RULE(.match = MATCH_OF_HELO_REGEX, .regex = literal(0, "evil")), "HELO is.evil.example\r\nEHLO good evil\r\nEHLO evil\r\n",
               "r:0@9 r:0@47");
    CHECK_TOLD(RULE(.match = MATCH_OF_HELO_REGEX, .regex = literal(0, "evil"), .negate = 1), "HELO is.evil.example\r\nEHLO good evil\r\n",
               "r:0@0 r:0@31");
}

TEST(addresses)
{
    CHECK_TOLD(RULE(.match = MATCH_OF_SENDER_LENGTH, .bound = 3), "MAIL FROM:<a@b>\r\nMAIL FROM:<a@bc>\r\n", "r:4@26");
    CHECK_TOLD(RULE(.match = MATCH_OF_RECIPIENT_REGEX, .regex = literal(0, "@x")), "RCPT TO:<c@x>\r\nRCPT TO:<x@c> x@x\r\nMAIL FROM:<a@x>\r\n",
               "r:0@9");
    CHECK_TOLD(RULE(.match = MATCH_OF_DECLARED_SIZE, .bound = 100), "MAIL FROM:<a@b> SIZE=100\r\nMAIL FROM:<a@b> SIZE=101\r\n", "r:101@35");
}

/* RFC 3030, 2: a size that nobody can count with is no chunk. The line is masked, and what follows is commands. */
static void check_chunk(const char *line, const char *arrives)
{
    char text[128];
    const struct nq_rule_spec rule = RULE(.match = MATCH_OF_EARLY_TALKER);
    struct nq_settings settings = wire_settings();
    struct wire wire;
    static const char *verbs[] = { "BDAT", "EHLO", "NOOP" };
    char error[NQ_ERROR_MAX];
    struct nq_policy_spec spec = { .name = "bdat", .verbs = verbs, .verb_count = 3, .mask_verbs = 1, .alert = 1, .rules = &rule, .rule_count = 1 };
    wire_open(&wire, &settings, nq_policy_new(&spec, error));
    wire_handshake(&wire);
    wire_say(&wire, SERVER, "220 x\r\n");
    wire_say(&wire, CLIENT, "EHLO me\r\n");
    wire_say(&wire, SERVER, "250-x\r\n250 CHUNKING\r\n");
    snprintf(text, sizeof text, "%sEXPN\r\nNOOP\r\n", line);
    harness_row("%s", line);
    wire_say(&wire, CLIENT, text);
    CHECK_TEXT(wire_arrived(&wire, SERVER) + 9, arrives);
    wire_close(&wire);
}

TEST(chunk_sizes_are_read_strictly)
{
    check_chunk("BDAT 4\r\n", "BDAT 4\r\nEXPN\r\nNOOP\r\n");
    check_chunk("BDAT 6 LAST\r\n", "BDAT 6 LAST\r\nEXPN\r\nNOOP\r\n");
    check_chunk("bdat  006  last \r\n", "bdat  006  last \r\nEXPN\r\nNOOP\r\n");
    check_chunk("BDAT 0 LAST\r\n", "BDAT 0 LAST\r\nXXXX\r\nNOOP\r\n");
    static const char *bad[] = { "BDAT\r\n", "BDAT \r\n", "BDAT x\r\n", "BDAT -1\r\n", "BDAT +1\r\n", "BDAT 0x4\r\n", "BDAT 4x\r\n", "BDAT 4 LAS\r\n",
                                 "BDAT 4 LASTX\r\n", "BDAT 4 5\r\n", "BDAT 4\tLAST\r\n", "BDAT 18446744073709551620\r\n",
                                 "BDAT 9223372036854775807\r\n", "BDAT 4 LAST LAST\r\n", "BDAT 4\vLAST\r\n" };
    for (size_t i = 0; i < COUNT(bad); i++) {
        char arrives[128];
        size_t len = strlen(bad[i]) - 2;
        memset(arrives, 'X', len);
        strcpy(arrives + len, "\r\nXXXX\r\nNOOP\r\n");
        check_chunk(bad[i], arrives);
    }
}

TEST(a_nul_in_an_address_masks_the_line_where_no_rule_removes_it)
{
    static const struct nq_rule_spec rules[] = {
        { .name = "log", .match = MATCH_OF_SPECIAL_CHARACTER }, { .name = "blank", .match = MATCH_OF_SPECIAL_CHARACTER, .action = NQ_DO_REPLACE },
    };
    static const char said[] = "MAIL FROM:<a\0\0b@c>\r\nNOOP\r\n", *const arrives[] = { "XXXXXXXXXXXXXXXXXX\r\nNOOP\r\n", "MAIL FROM:<a  b@c>\r\nNOOP\r\n" };
    for (int i = 0; i < 2; i++) {
        const char *verbs[] = { "MAIL", "NOOP" };
        char error[NQ_ERROR_MAX];
        struct nq_policy_spec spec = { .name = "nul", .verbs = verbs, .verb_count = 2, .mask_verbs = 1, .rules = &rules[i], .rule_count = 1 };
        struct nq_settings settings = wire_settings();
        struct wire wire;
        wire_open(&wire, &settings, nq_policy_new(&spec, error));
        wire_handshake(&wire);
        wire_say(&wire, SERVER, "220 x\r\n");
        CHECK_EQUAL(wire_say_octets(&wire, CLIENT, said, sizeof said - 1), EDITED);
        harness_row("rule %s", rules[i].name);
        CHECK_TEXT(wire_arrived(&wire, SERVER), arrives[i]);
        wire_close(&wire);
    }
}

TEST(an_early_talker_is_told_once_a_line)
{
    const struct nq_rule_spec rule = RULE(.match = MATCH_OF_EARLY_TALKER);
    static const char *verbs[] = { "NOOP" };
    for (uint32_t cut = 1; cut < 12; cut++) {
        struct nq_policy_spec spec = { .name = "early", .verbs = verbs, .verb_count = 1, .mask_verbs = 1, .alert = 1, .rules = &rule, .rule_count = 1 };
        struct nq_settings settings = wire_settings();
        struct nq_event events[8];
        char error[NQ_ERROR_MAX];
        struct wire wire;
        wire_open(&wire, &settings, nq_policy_new(&spec, error));
        wire_handshake(&wire);
        wire_say_octets(&wire, CLIENT, "NOOP\r\nNOOP\r\n", cut);
        wire_say_octets(&wire, CLIENT, &"NOOP\r\nNOOP\r\n"[cut], 12 - cut);
        harness_row("cut at %u", cut);
        CHECK_EQUAL(nq_engine_events(wire.engine, events, 8), 1);
        CHECK_EQUAL(events[0].offset, 0);
        wire_close(&wire);
    }
}
