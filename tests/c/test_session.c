/*
 * test_session.c - the two machines and what couples them. Each dialogue goes through whole lines; those where it matters go
 * octet by octet as well. What the policy would do with a bad line is done here in the shortest way.
 */
#include <stdio.h>

#include "harness.h"
#include "wire.h"

struct talk {
    struct nq_session session;
    struct nq_client client;
    struct nq_policy *policy;
    uint32_t bad, transitions, injections, messages;
};

static void begin(struct talk *talk)
{
    *talk = (struct talk){ .policy = wire_policy(true) };
    session_begin(&talk->session);
    talk->session.client = &talk->client;
}

static void end(struct talk *talk) { nq_policy_free(talk->policy); }

static void count(struct talk *talk, const struct nq_said *said, struct nq_line *line)
{
    switch (said->what) {
    case SAID_BAD_VERB: case SAID_BAD_LINE: case SAID_BAD_KEYWORD:
        line->phase = PHASE_OVERWRITE;
        line->why = said->why;
        line->cr = false;
        talk->bad++;
        break;
    case SAID_TRANSITION: talk->transitions++; break;
    case SAID_INJECTION: talk->injections++; break;
    case SAID_END_OF_DATA: talk->messages++; break;
    default: break;
    }
}

/* Returns how many octets were taken. */
static size_t says(struct talk *talk, unsigned from, const char *octets, size_t len)
{
    uint8_t *copy = guarded(octets, len);
    struct nq_cursor cursor = { .begin = copy, .at = copy, .end = copy + len };
    while (cursor.at < cursor.end || session_due(&talk->session, from, &cursor)) {
        struct nq_said said = from == CLIENT ? session_client(&talk->session, talk->policy, &cursor)
                                             : session_server(&talk->session, talk->policy, &cursor);
        if (said.what == SAID_WAIT)
            break;
        count(talk, &said, from == CLIENT ? &talk->client.command : &talk->session.reply);
    }
    return (size_t)(cursor.at - copy);
}

static void client(struct talk *talk, const char *text)
{
    CHECK_EQUAL(says(talk, CLIENT, text, strlen(text)), strlen(text));
}

static void server(struct talk *talk, const char *text)
{
    CHECK_EQUAL(says(talk, SERVER, text, strlen(text)), strlen(text));
}

static void by_octets(struct talk *talk, unsigned from, const char *text)
{
    for (; *text; text++)
        CHECK_EQUAL(says(talk, from, text, 1), 1);
}

static void opened(struct talk *talk)
{
    begin(talk);
    server(talk, "220 ready\r\n");
}

/* ---- DATA ---- */

TEST(data_begins_at_354_and_not_before)
{
    struct talk talk;
    opened(&talk);
    CHECK_EQUAL(says(&talk, CLIENT, "DATA\r\nEXPN\r\n", 12), 6);
    CHECK(session_waits(&talk.session));
    CHECK_EQUAL(says(&talk, CLIENT, "E", 1), 0);
    server(&talk, "354 go\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_DATA);
    client(&talk, "EXPN\r\n.\r\n");
    CHECK_EQUAL(talk.bad, 0);
    CHECK_EQUAL(talk.messages, 1);
    CHECK_EQUAL(talk.session.mode, MODE_COMMAND);
    client(&talk, "EXPN\r\n");
    CHECK_EQUAL(talk.bad, 1);
    server(&talk, "250 queued\r\n500 what?\r\n");
    CHECK_EQUAL(talk.transitions, 0);
    CHECK_EQUAL(talk.session.awaited_runs, 0);
    end(&talk);
}

TEST(only_354_opens_data)
{
    for (int code = 0; code < 1000; code++) {
        struct talk talk;
        char reply[16];
        opened(&talk);
        client(&talk, "DATA\r\n");
        snprintf(reply, sizeof reply, "%03d x\r\n", code);
        server(&talk, reply);
        harness_row("code %d", code);
        CHECK_EQUAL(talk.session.mode, code == 354 ? MODE_DATA : MODE_COMMAND);
        CHECK_EQUAL(talk.transitions, 0);
        end(&talk);
    }
}

TEST(a_354_that_nobody_asked_for_opens_nothing)
{
    static const char *commands[] = { "", "NOOP\r\n", "MAIL FROM:<>\r\n", "RSET\r\nNOOP\r\n", "EXPN\r\n", "\r\n", "data", "DAT\r\n" };
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        struct talk talk;
        opened(&talk);
        harness_row("after \"%s\"", commands[i]);
        client(&talk, commands[i]);
        server(&talk, "354 go\r\n");
        CHECK_EQUAL(talk.transitions, 1);
        CHECK_EQUAL(talk.session.mode, MODE_COMMAND);
        end(&talk);
    }
    struct talk talk;
    begin(&talk);
    server(&talk, "354 go\r\n"); /* in the greeting's place */
    CHECK_EQUAL(talk.session.mode, MODE_COMMAND);
    end(&talk);
}

TEST(pipelined_commands_are_answered_in_order)
{
    struct talk talk;
    opened(&talk);
    client(&talk, "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\nEXPN\r\nDATA\r\n");
    server(&talk, "250 ok\r\n250 ok\r\n550 no\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_WAIT);
    server(&talk, "500 what?\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_WAIT);
    server(&talk, "354 go\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_DATA);
    CHECK_EQUAL(talk.transitions, 0);
    end(&talk);
}

TEST(a_354_answers_data_though_an_earlier_line_had_no_reply)
{
    struct talk talk;
    opened(&talk);
    client(&talk, "\r\nNOOP\r\nDATA\r\n");
    server(&talk, "250 ok\r\n354 go\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_DATA);
    end(&talk);
}

TEST(replies_of_many_lines_answer_once)
{
    struct talk talk;
    opened(&talk);
    client(&talk, "DATA\r\n");
    by_octets(&talk, SERVER, "354-one\r\n354-two\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_WAIT);
    by_octets(&talk, SERVER, "354 three\r");
    CHECK_EQUAL(talk.session.mode, MODE_WAIT);
    by_octets(&talk, SERVER, "\n");
    CHECK_EQUAL(talk.session.mode, MODE_DATA);
    end(&talk);
}

TEST(lines_without_a_code_answer_nothing)
{
    struct talk talk;
    opened(&talk);
    client(&talk, "DATA\r\n");
    server(&talk, "hello\r\n\r\n354\tgo\r\n3540 go\r\n?\n");
    CHECK_EQUAL(talk.session.mode, MODE_WAIT);
    server(&talk, "354\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_DATA);
    CHECK_EQUAL(talk.transitions, 0);
    end(&talk);
}

TEST(message_data_is_counted_without_its_end)
{
    static const char data[] = "a\r\n..b\r\n.c\r\n.\r.\r\n\r\n.\r\n";
    for (size_t cut = 0; cut < sizeof data; cut++) {
        struct talk talk;
        opened(&talk);
        client(&talk, "DATA\r\n");
        server(&talk, "354 go\r\n");
        harness_row("cut at %zu", cut);
        says(&talk, CLIENT, data, cut);
        says(&talk, CLIENT, data + cut, sizeof data - 1 - cut);
        CHECK_EQUAL(talk.messages, 1);
        CHECK_EQUAL(talk.session.data, sizeof data - 1 - 3);
        end(&talk);
    }
}

/* ---- the others that wait ---- */

TEST(auth_is_an_exchange_of_lines)
{
    struct talk talk;
    opened(&talk);
    CHECK_EQUAL(says(&talk, CLIENT, "AUTH LOGIN\r\nZGF0YQ==\r\n", 22), 12);
    server(&talk, "334 VXNlcm5hbWU6\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_AUTH);
    CHECK_EQUAL(says(&talk, CLIENT, "ZGF0YQ==\r\nc2VjcmV0\r\n", 20), 10);
    CHECK_EQUAL(talk.client.command.kept, 0); /* a secret */
    server(&talk, "334 UGFzc3dvcmQ6\r\n");
    by_octets(&talk, CLIENT, "EXPN\r");
    CHECK_EQUAL(talk.client.command.kept, 0);
    by_octets(&talk, CLIENT, "\n");
    CHECK_EQUAL(talk.bad, 0);
    server(&talk, "235 welcome\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_COMMAND);
    CHECK_EQUAL(talk.session.awaited_runs, 0);
    client(&talk, "EXPN\r\n");
    CHECK_EQUAL(talk.bad, 1);
    CHECK_EQUAL(talk.transitions, 0);
    end(&talk);
}

TEST(auth_that_is_refused_leaves_commands)
{
    static const char *replies[] = { "535 no\r\n", "235 welcome\r\n", "501 no\r\n", "354 go\r\n" };
    for (size_t i = 0; i < sizeof replies / sizeof *replies; i++) {
        struct talk talk;
        opened(&talk);
        client(&talk, "AUTH PLAIN AHUAcA==\r\n");
        server(&talk, replies[i]);
        CHECK_EQUAL(talk.session.mode, MODE_COMMAND);
        client(&talk, "EXPN\r\n");
        CHECK_EQUAL(talk.bad, 1);
        end(&talk);
    }
}

TEST(after_starttls_and_220_nothing_is_read)
{
    struct talk talk;
    opened(&talk);
    CHECK_EQUAL(says(&talk, CLIENT, "STARTTLS\r\n\x16\x03", 12), 10);
    server(&talk, "220 go\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_OPAQUE);
    client(&talk, "\x16\x03\x01 EXPN\r\nDATA\r\n");
    server(&talk, "\x16\x03\x03 354 go\r\n");
    CHECK_EQUAL(talk.bad + talk.transitions + talk.injections, 0);
    CHECK_EQUAL(talk.session.mode, MODE_OPAQUE);
    end(&talk);
}

TEST(starttls_that_is_refused_leaves_commands)
{
    struct talk talk;
    opened(&talk);
    client(&talk, "STARTTLS\r\n");
    server(&talk, "454 no\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_COMMAND);
    client(&talk, "EXPN\r\n");
    CHECK_EQUAL(talk.bad, 1);
    end(&talk);
}

TEST(a_220_that_answers_another_command_encrypts_nothing)
{
    struct talk talk;
    opened(&talk);
    client(&talk, "NOOP\r\nSTARTTLS\r\n");
    server(&talk, "220 ok\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_WAIT);
    server(&talk, "220 go\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_OPAQUE);
    end(&talk);
}

TEST(plaintext_behind_the_reply_to_starttls_is_an_injection)
{
    struct talk talk;
    opened(&talk);
    client(&talk, "STARTTLS\r\n");
    says(&talk, SERVER, "220 go\r\n250 x\r\n", 15);
    CHECK_EQUAL(talk.injections, 1);
    end(&talk);
}

/* ---- the queue of commands that await a reply ---- */

static uint32_t say_alternating(struct talk *talk, uint32_t at_most)
{
    uint32_t lines = 0;
    while (lines < at_most && says(talk, CLIENT, lines % 2 ? "NOOP\r\n" : "RSET\r\n", 6) == 6)
        lines++;
    return lines;
}

TEST(a_full_queue_lets_the_client_wait)
{
    struct talk talk;
    opened(&talk);
    CHECK_EQUAL(say_alternating(&talk, 100), NQ_AWAITED);
    CHECK(session_waits(&talk.session));
    server(&talk, "250 ok\r\n");
    CHECK(!session_waits(&talk.session));
    CHECK_EQUAL(say_alternating(&talk, 100), 1);
    for (int i = 0; i < NQ_AWAITED; i++)
        server(&talk, "250 ok\r\n");
    CHECK_EQUAL(talk.transitions, 0);
    CHECK_EQUAL(talk.session.awaited_runs, 0);
    server(&talk, "250 ok\r\n");
    CHECK_EQUAL(talk.transitions, 1); /* one too many */
    end(&talk);
}

TEST(a_line_that_has_begun_may_end)
{
    struct talk talk;
    begin(&talk); /* the greeting is awaited, too */
    CHECK_EQUAL(say_alternating(&talk, NQ_AWAITED - 2), NQ_AWAITED - 2);
    client(&talk, "HE");
    client(&talk, "LP\r\n");
    CHECK_EQUAL(talk.session.awaited_runs, NQ_AWAITED);
    CHECK_EQUAL(says(&talk, CLIENT, "N", 1), 0);
    end(&talk);
}

TEST(like_commands_take_one_place)
{
    struct talk talk;
    opened(&talk);
    for (int i = 0; i < 70000; i++) /* more than a run can count */
        CHECK_EQUAL(says(&talk, CLIENT, "NOOP\r\n", 6), 6);
    client(&talk, "DATA\r\n");
    for (int i = 0; i < 70000; i++)
        server(&talk, "250 ok\r\n");
    CHECK_EQUAL(talk.transitions, 0);
    server(&talk, "354 go\r\n");
    CHECK_EQUAL(talk.session.mode, MODE_DATA);
    end(&talk);
}

TEST(a_421_may_come_at_any_time)
{
    static const char *before[] = { "", "NOOP\r\n", "DATA\r\n", "AUTH LOGIN\r\n", "STARTTLS\r\n" };
    for (size_t i = 0; i < sizeof before / sizeof *before; i++) {
        struct talk talk;
        opened(&talk);
        client(&talk, before[i]);
        server(&talk, "421 closing\r\n");
        CHECK_EQUAL(talk.transitions, 0);
        CHECK_EQUAL(talk.session.mode, MODE_COMMAND); /* the server closes: nobody waits for another reply */
        end(&talk);
    }
}

TEST(any_code_may_answer_a_command)
{
    for (int code = 0; code < 1000; code++) {
        struct talk talk;
        char reply[16];
        opened(&talk);
        client(&talk, "NOOP\r\n");
        snprintf(reply, sizeof reply, "%03d x\r\n", code);
        server(&talk, reply);
        harness_row("code %d", code);
        CHECK_EQUAL(talk.transitions, code == 354 || code == 334);
        end(&talk);
    }
}

/* ---- keywords belong to the EHLO reply, from its second line on ---- */

TEST(keywords_are_read_in_the_ehlo_reply_only)
{
    struct talk talk;
    opened(&talk);
    client(&talk, "HELP\r\nEHLO me\r\nHELP\r\n");
    server(&talk, "250-x\r\n250 XSECRET\r\n");
    CHECK_EQUAL(talk.bad, 0);
    server(&talk, "250-XSECRET\r\n250-XSECRET\r\n250-SIZE\r\n250 CHUNKING\r\n");
    CHECK_EQUAL(talk.bad, 2);
    server(&talk, "250-XSECRET\r\n250 XSECRET\r\n");
    CHECK_EQUAL(talk.bad, 2);
    end(&talk);
}

TEST(a_refused_ehlo_offers_nothing)
{
    struct talk talk;
    opened(&talk);
    client(&talk, "EHLO me\r\n");
    server(&talk, "502-no\r\n502 XSECRET\r\n");
    CHECK_EQUAL(talk.bad, 0);
    end(&talk);
}
