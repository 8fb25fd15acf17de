/*
 * test_scan.c - the scanner of lines: each row is fed in every way of feed.h, and what was met must be the same.
 */
#include <stdio.h>

#include "feed.h"
#include "harness.h"
#include "nq.h"

/* ---- command lines ---- */

static struct nq_policy *policy_of(const char **words, uint32_t count)
{
    char error[NQ_ERROR_MAX];
    struct nq_policy_spec spec = { .name = "scan", .verbs = words, .verb_count = count, .keywords = words,
                                   .keyword_count = count, .mask_verbs = 1, .mask_keywords = 1 };
    struct nq_policy *policy = nq_policy_new(&spec, error);
    CHECK(policy != NULL);
    return policy;
}

struct command_scanner {
    struct nq_line line;
    const struct nq_policy *policy;
};

/* What the session and the policy do with a token, shortest. */
static void condemn(struct nq_line *line)
{
    line->phase = PHASE_OVERWRITE;
    line->cr = false;
}

static const char *word_met(uint8_t word)
{
    switch (word) {
    case VERB_DATA: return "word-DATA";
    case VERB_HELO: return "word-HELO";
    case VERB_MAIL: return "word-MAIL";
    case VERB_NOOP: return "word-NOOP";
    case VERB_SEND: return "word-SEND";
    default: return word >= VERBS ? "word-OTHER" : "word-WRONG"; /* other: one that we know nothing of */
    }
}

static void eat_commands(void *scanner, struct nq_cursor *cursor, struct trace *trace)
{
    struct command_scanner *self = scanner;
    while (cursor->at < cursor->end) {
        switch (scan_command(&self->line, &self->policy->verbs, cursor)) {
        case TOKEN_WORD: note(trace, word_met(self->line.word), -1); break;
        case TOKEN_UNKNOWN: note(trace, "unknown", -1); condemn(&self->line); break;
        case TOKEN_INCOMPLETE: note(trace, "incomplete", -1); condemn(&self->line); break;
        case TOKEN_BARE_CR: note(trace, "bare-cr", -1); condemn(&self->line); break;
        case TOKEN_NUL: note(trace, "nul", -1); condemn(&self->line); break;
        case TOKEN_TOO_LONG: note(trace, "too-long", -1); cursor->at = cursor->end; break;
        case TOKEN_LINE: note(trace, "line", (int)self->line.body_len); break;
        case TOKEN_NONE: case TOKEN_SPAN: break;
        default: CHECK(!"a token of replies or bodies");
        }
    }
}

static void check_commands(const struct nq_policy *policy, const struct row *rows, size_t count)
{
    const struct command_scanner fresh = { .policy = policy };
    for (size_t i = 0; i < count; i++)
        feed_all_ways(eat_commands, &fresh, sizeof fresh, rows[i].octets, rows[i].len, rows[i].met);
}

#define CHECK_COMMANDS(...)                                                                \
    do {                                                                                   \
        static const struct row rows[] = { __VA_ARGS__ };                                  \
        static const char *words[] = { "DATA", "NOOP", "MAIL", "HELO", "SEND", "SENDALL", "X-A1" }; \
        struct nq_policy *policy = policy_of(words, sizeof words / sizeof *words);         \
        check_commands(policy, rows, sizeof rows / sizeof *rows);                          \
        nq_policy_free(policy);                                                            \
    } while (0)

TEST(known_words_in_either_case)
{
    CHECK_COMMANDS(ROW("DATA\r\n", "word-DATA line:4"), ROW("data\r\n", "word-DATA line:4"), ROW("dAtA\r\n", "word-DATA line:4"),
                   ROW("MAIL FROM:<a@b>\r\n", "word-MAIL line:15"), ROW("x-a1 y\r\n", "word-OTHER line:6"),
                   ROW("NOOP DATA\r\n", "word-NOOP line:9"));
}

TEST(a_tab_ends_a_word)
{
    CHECK_COMMANDS(ROW("MAIL\tFROM:<>\r\n", "word-MAIL line:12"), ROW("DATA \r\n", "word-DATA line:5"),
                   ROW("DATA\t\r\n", "word-DATA line:5"));
}

TEST(line_feed_alone_ends_a_line)
{
    CHECK_COMMANDS(ROW("NOOP\n", "word-NOOP line:4"), ROW("NOOP\nDATA\n", "word-NOOP line:4 word-DATA line:4"),
                   ROW("NOOP x\nMAIL\r\n", "word-NOOP line:6 word-MAIL line:4"), ROW("EXPN\nDATA\n", "unknown line:4 word-DATA line:4"));
}

TEST(empty_lines)
{
    CHECK_COMMANDS(ROW("\r\n", "line:0"), ROW("\n", "line:0"), ROW("\r\n\r\nNOOP\r\n", "line:0 line:0 word-NOOP line:4"),
                   ROW("\n\nDATA\n", "line:0 line:0 word-DATA line:4"));
}

TEST(leading_blanks_are_no_word)
{
    CHECK_COMMANDS(ROW(" DATA\r\n", "unknown line:5"), ROW("\tDATA\r\n", "unknown line:5"), ROW(" \r\n", "unknown line:1"),
                   ROW("   \nDATA\r\n", "unknown line:3 word-DATA line:4"));
}

TEST(words_that_are_none)
{
    CHECK_COMMANDS(ROW("EXPN root\r\n", "unknown line:9"), ROW("DATAX\r\n", "unknown line:5"), ROW("D\xc1TA\r\n", "unknown line:4"),
                   ROW("DATA:\r\n", "unknown line:5"), ROW("\x7f\r\n", "unknown line:1"), ROW("DA.TA\r\n", "unknown line:5"),
                   ROW("\xef\xbb\xbf" "DATA\r\n", "unknown line:7"), ROW("x-a2\r\n", "unknown line:4"),
                   ROW("[ATA\r\n", "unknown line:4"), ROW("`ATA\r\n", "unknown line:4"), ROW("{ATA\r\n", "unknown line:4"));
}

TEST(prefixes_of_words)
{
    CHECK_COMMANDS(ROW("DAT\r\n", "incomplete line:3"), ROW("DAT A\r\n", "incomplete line:5"), ROW("D\n", "incomplete line:1"),
                   ROW("SEND x\r\n", "word-SEND line:6"), ROW("SENDA\r\n", "incomplete line:5"),
                   ROW("SENDALL\r\n", "word-OTHER line:7"), ROW("SENDALLX\r\n", "unknown line:8"), ROW("X-\r\n", "incomplete line:2"));
}

TEST(bare_cr_in_a_command)
{
    CHECK_COMMANDS(ROW("NOOP\rX\r\n", "word-NOOP bare-cr line:6"), ROW("NOOP\r\r\n", "word-NOOP bare-cr line:5"),
                   ROW("\rDATA\r\n", "bare-cr line:5"), ROW("NOOP a\rDATA\r\nDATA\r\n", "word-NOOP bare-cr line:11 word-DATA line:4"),
                   ROW("NOOP\r DATA\n", "word-NOOP bare-cr line:10"), ROW("EXPN\rX\r\r\n", "unknown line:7"));
}

TEST(nul_in_a_command)
{
    CHECK_COMMANDS(ROW("NOOP \0x\r\n", "word-NOOP nul line:7"), ROW("NO\0OP\r\n", "nul line:5"), ROW("\0\r\n", "nul line:1"),
                   ROW("NOOP\0\r\n", "nul line:5"), ROW("NOOP\r\0\r\n", "word-NOOP bare-cr line:6"));
}

TEST(pipelined_lines)
{
    CHECK_COMMANDS(ROW("NOOP\r\nEXPN x\r\nMAIL FROM:<>\r\nDATA\r\n", "word-NOOP line:4 unknown line:6 word-MAIL line:12 word-DATA line:4"),
                   ROW("NOOP\r\nDATA", "word-NOOP line:4"));
}

/* Returns the trace of a line of `len` octets, its end included, fed in pieces of `piece`. */
static const char *trace_of_length(const struct nq_policy *policy, const char *begin, size_t len, size_t piece)
{
    static struct trace trace;
    static uint8_t octets[NQ_COMMAND_LINE_MAX + 16];
    struct command_scanner scanner = { .policy = policy };
    trace = (struct trace){ .len = 0 };
    memset(octets, 'a', len);
    memcpy(octets, begin, strlen(begin));
    memcpy(octets + len - 2, "\r\n", 2);
    for (size_t at = 0; at < len && !strstr(trace.text, "too-long"); at += piece)
        feed(eat_commands, &scanner, octets, at, at + piece < len ? at + piece : len, &trace);
    return trace.text;
}

static void check_length(const struct nq_policy *policy, const char *begin, const char *met, size_t len)
{
    static const size_t pieces[] = { NQ_COMMAND_LINE_MAX + 16, 1, 16, 1448, NQ_COMMAND_LINE_MAX - 1, NQ_COMMAND_LINE_MAX };
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        char wanted[64];
        if (len <= NQ_COMMAND_LINE_MAX)
            snprintf(wanted, sizeof wanted, "%s line:%zu", met, len - 2);
        else
            snprintf(wanted, sizeof wanted, "%s too-long", met);
        harness_row("\"%s\", %zu octets in pieces of %zu", begin, len, pieces[i]);
        CHECK_TEXT(trace_of_length(policy, begin, len, pieces[i]), wanted);
    }
}

TEST(command_line_max_holds_for_every_line)
{
    static const char *words[] = { "NOOP" };
    struct nq_policy *policy = policy_of(words, 1);
    for (size_t len = NQ_COMMAND_LINE_MAX - 3; len <= NQ_COMMAND_LINE_MAX + 3; len++) {
        check_length(policy, "NOOP ", "word-NOOP", len);
        check_length(policy, "EXPN ", "unknown", len);
    }
    nq_policy_free(policy);
}

TEST(carriage_returns_one_by_one_reach_the_limit)
{
    static const char *words[] = { "NOOP" };
    struct nq_policy *policy = policy_of(words, 1);
    struct command_scanner scanner = { .policy = policy };
    struct trace trace = { .len = 0 };
    feed(eat_commands, &scanner, (const uint8_t *)"EXPN", 0, 4, &trace);
    for (size_t i = 0; i < NQ_COMMAND_LINE_MAX; i++)
        feed(eat_commands, &scanner, (const uint8_t *)"\r", 0, 1, &trace);
    CHECK(strstr(trace.text, "too-long") != NULL);
    nq_policy_free(policy);
}

/* ---- lines of an AUTH exchange ---- */

static void eat_lines(void *scanner, struct nq_cursor *cursor, struct trace *trace)
{
    struct nq_line *line = scanner;
    while (cursor->at < cursor->end) {
        switch (scan_line(line, cursor)) {
        case TOKEN_LINE: note(trace, "line", (int)line->body_len); break;
        case TOKEN_TOO_LONG: note(trace, "too-long", -1); cursor->at = cursor->end; break;
        case TOKEN_BARE_CR: note(trace, "bare-cr", -1); cursor->at = cursor->end; break;
        case TOKEN_NUL: note(trace, "nul", -1); cursor->at = cursor->end; break;
        default: break;
        }
    }
}

TEST(lines_without_words)
{
    static const struct row rows[] = { ROW("dGVzdA==\r\n", "line:8"), ROW("*\n", "line:1"), ROW("\r\n", "line:0"),
                                       ROW("\n\n", "line:0 line:0"), ROW("a\0", "nul"), ROW("a\n\rb", "line:1 bare-cr") };
    const struct nq_line fresh = { .len = 0 };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        feed_all_ways(eat_lines, &fresh, sizeof fresh, rows[i].octets, rows[i].len, rows[i].met);
}

TEST(command_line_max_holds_for_auth_lines)
{
    static const size_t pieces[] = { NQ_COMMAND_LINE_MAX + 16, 1, 1448 };
    static uint8_t octets[NQ_COMMAND_LINE_MAX + 1];
    for (size_t len = NQ_COMMAND_LINE_MAX - 1; len <= NQ_COMMAND_LINE_MAX + 1; len++)
        for (size_t i = 0; i < 3; i++) {
            struct trace trace = { .len = 0 };
            struct nq_line line = { .len = 0 };
            memset(octets, 'a', len);
            memcpy(octets + len - 2, "\r\n", 2);
            harness_row("%zu octets in pieces of %zu", len, pieces[i]);
            for (size_t at = 0; at < len; at += pieces[i])
                feed(eat_lines, &line, octets, at, at + pieces[i] < len ? at + pieces[i] : len, &trace);
            CHECK_EQUAL(strstr(trace.text, "too-long") != NULL, len > NQ_COMMAND_LINE_MAX);
        }
}

/* ---- replies ---- */

struct reply_scanner {
    struct nq_line line;
    const struct nq_policy *policy;
    bool keywords;              /* a keyword stands behind the code */
};

static void eat_replies(void *scanner, struct nq_cursor *cursor, struct trace *trace)
{
    struct reply_scanner *self = scanner;
    struct nq_line *line = &self->line;
    while (cursor->at < cursor->end) {
        switch (scan_reply(line, &self->policy->keywords, cursor)) {
        case TOKEN_CODE:
            note(trace, line->separator == '-' ? "part" : "code", line->code);
            if (self->keywords)
                line->phase = PHASE_WORD;
            break;
        case TOKEN_WORD: note(trace, "word", -1); break;
        case TOKEN_UNKNOWN: note(trace, "unknown", -1); condemn(line); break;
        case TOKEN_INCOMPLETE: note(trace, "incomplete", -1); condemn(line); break;
        case TOKEN_LINE: note(trace, line->digits == NQ_NO_CODE ? "text" : "line", (int)line->body_len); break;
        case TOKEN_NONE: case TOKEN_SPAN: break;
        default: CHECK(!"a token of commands or bodies");
        }
    }
}

static void check_replies(bool keywords, const struct row *rows, size_t count)
{
    static const char *words[] = { "SIZE", "AUTH", "8BITMIME" };
    struct nq_policy *policy = policy_of(words, 3);
    const struct reply_scanner fresh = { .policy = policy, .keywords = keywords };
    for (size_t i = 0; i < count; i++)
        feed_all_ways(eat_replies, &fresh, sizeof fresh, rows[i].octets, rows[i].len, rows[i].met);
    nq_policy_free(policy);
}

#define CHECK_REPLIES(keywords, ...)                                  \
    do {                                                              \
        static const struct row rows[] = { __VA_ARGS__ };             \
        check_replies(keywords, rows, sizeof rows / sizeof *rows);    \
    } while (0)

TEST(replies_of_any_three_digits)
{
    for (int code = 0; code < 1000; code++) {
        char octets[16], met[32];
        snprintf(octets, sizeof octets, "%03d x\r\n", code);
        snprintf(met, sizeof met, "code:%d line:5", code);
        const struct row row = { octets, 7, met };
        check_replies(false, &row, 1);
    }
}

TEST(replies_of_many_lines)
{
    CHECK_REPLIES(false, ROW("220-a\r\n220 b\r\n", "part:220 line:5 code:220 line:5"), ROW("250-a\n250 b\n", "part:250 line:5 code:250 line:5"),
                  ROW("220 \r\n", "code:220 line:4"), ROW("220-\r\n220 \n", "part:220 line:4 code:220 line:4"));
}

TEST(a_code_alone_is_a_reply)
{
    CHECK_REPLIES(false, ROW("354\r\n", "line:3"), ROW("354\n", "line:3"), ROW("250\r\n250\r\n", "line:3 line:3"));
}

TEST(lines_without_a_code)
{
    CHECK_REPLIES(false, ROW("hello\r\n", "text:5"), ROW("\r\n", "text:0"), ROW("\n", "text:0"), ROW("22 x\r\n", "text:4"),
                  ROW("2200 x\r\n", "text:6"), ROW("220x\r\n", "text:4"), ROW(" 220 x\r\n", "text:6"), ROW("2\r\n", "text:1"),
                  ROW("220\tx\r\n", "text:5"), ROW("220\0x\r\n", "text:5"), ROW("22\r\n220 x\n", "text:2 code:220 line:5"));
}

TEST(nul_and_bare_cr_in_a_reply_survive)
{
    CHECK_REPLIES(false, ROW("250 a\0b\r\n", "code:250 line:7"), ROW("250 a\rb\r\n", "code:250 line:7"));
}

TEST(keywords)
{
    CHECK_REPLIES(true, ROW("250-SIZE 1000\r\n", "part:250 word line:13"), ROW("250-size\r\n", "part:250 word line:8"),
                  ROW("250 8BITMIME\n", "code:250 word line:12"), ROW("250-AUTH=LOGIN\r\n", "part:250 word line:14"),
                  ROW("250-AUTH LOGIN\r\n", "part:250 word line:14"), ROW("250-CHUNKING\r\n", "part:250 unknown line:12"),
                  ROW("250-SIZ\r\n", "part:250 incomplete line:7"), ROW("250-SIZES\r\n", "part:250 unknown line:9"),
                  ROW("250-SI\0ZE\r\n", "part:250 unknown line:9"));
}

TEST(an_empty_keyword_is_none)
{
    CHECK_REPLIES(true, ROW("250-\r\n", "part:250 line:4"), ROW("250 \r\n", "code:250 line:4"), ROW("250-\n", "part:250 line:4"),
                  ROW("250- SIZE\r\n", "part:250 unknown line:9"));
}

TEST(a_long_reply_line_has_no_bound)
{
    static const char *words[] = { "SIZE" };
    static uint8_t octets[4 * NQ_COMMAND_LINE_MAX];
    struct nq_policy *policy = policy_of(words, 1);
    struct reply_scanner scanner = { .policy = policy, .keywords = true };
    struct trace trace = { .len = 0 };
    memset(octets, 'a', sizeof octets);
    memcpy(octets, "250-", 4);
    memcpy(octets + sizeof octets - 2, "\r\n", 2);
    for (size_t at = 0; at < sizeof octets; at += 1000)
        feed(eat_replies, &scanner, octets, at, at + 1000 < sizeof octets ? at + 1000 : sizeof octets, &trace);
    CHECK_TEXT(trace.text, "part:250 unknown line:65534");
    nq_policy_free(policy);
}
