/*
 * test_scan.c - the scanner: each row is fed whole, cut in two at every place, octet by octet, and each time with its last
 * octet at the end of a page. What was met must be the same.
 */
#include <stdio.h>

#include "harness.h"
#include "nq.h"

/* ---- how a row is fed ---- */

struct trace {
    char text[512];
    size_t len;
};

static void note(struct trace *trace, const char *what, int number)
{
    char *at = trace->text + trace->len;
    size_t room = sizeof trace->text - trace->len;
    const char *blank = trace->len ? " " : "";
    int written = number < 0 ? snprintf(at, room, "%s%s", blank, what) : snprintf(at, room, "%s%s:%d", blank, what, number);
    CHECK((size_t)written < room);
    trace->len += (size_t)written;
}

typedef void feeder(void *scanner, struct nq_cursor *cursor, struct trace *trace);

static void feed(feeder *eat, void *scanner, const uint8_t *octets, size_t from, size_t to, struct trace *trace)
{
    if (from == to)
        return;
    uint8_t *copy = guarded(octets + from, to - from);
    struct nq_cursor cursor = { .begin = copy, .at = copy, .end = copy + (to - from) };
    eat(scanner, &cursor, trace);
}

static void feed_all_ways(feeder *eat, const void *fresh, size_t size, const char *octets, size_t len, const char *wanted)
{
    const uint8_t *row = (const uint8_t *)octets;
    union { max_align_t aligned; uint8_t octets[1024]; } scanner;
    CHECK(size <= sizeof scanner.octets);
    for (size_t cut = 0; cut <= len; cut++) {
        struct trace trace = { .len = 0 };
        harness_row("%s, cut at %zu of %zu", wanted, cut, len);
        memcpy(scanner.octets, fresh, size);
        feed(eat, scanner.octets, row, 0, cut, &trace);
        feed(eat, scanner.octets, row, cut, len, &trace);
        CHECK_TEXT(trace.text, wanted);
    }
    struct trace trace = { .len = 0 };
    harness_row("%s, octet by octet", wanted);
    memcpy(scanner.octets, fresh, size);
    for (size_t i = 0; i < len; i++)
        feed(eat, scanner.octets, row, i, i + 1, &trace);
    CHECK_TEXT(trace.text, wanted);
}

struct row {
    const char *octets;
    size_t len;
    const char *met;
};
#define ROW(octets, met) { octets, sizeof(octets) - 1, met }

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

static void eat_commands(void *scanner, struct nq_cursor *cursor, struct trace *trace)
{
    struct command_scanner *self = scanner;
    while (cursor->at < cursor->end) {
        switch (scan_command(&self->line, &self->policy->verbs, cursor)) {
        case TOKEN_WORD: note(trace, "word", self->line.word); break;
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

_Static_assert(VERB_DATA == 3 && VERB_HELO == 7 && VERB_MAIL == 9 && VERB_NOOP == 10 && VERB_SEND == 15 && VERB_PRIVATE == 19,
               "the rows below name verbs by number");

TEST(known_words_in_either_case)
{
    CHECK_COMMANDS(ROW("DATA\r\n", "word:3 line:4"), ROW("data\r\n", "word:3 line:4"), ROW("dAtA\r\n", "word:3 line:4"),
                   ROW("MAIL FROM:<a@b>\r\n", "word:9 line:15"), ROW("x-a1 y\r\n", "word:19 line:6"),
                   ROW("NOOP DATA\r\n", "word:10 line:9"));
}

TEST(a_tab_ends_a_word)
{
    CHECK_COMMANDS(ROW("MAIL\tFROM:<>\r\n", "word:9 line:12"), ROW("DATA \r\n", "word:3 line:5"),
                   ROW("DATA\t\r\n", "word:3 line:5"));
}

TEST(line_feed_alone_ends_a_line)
{
    CHECK_COMMANDS(ROW("NOOP\n", "word:10 line:4"), ROW("NOOP\nDATA\n", "word:10 line:4 word:3 line:4"),
                   ROW("NOOP x\nMAIL\r\n", "word:10 line:6 word:9 line:4"), ROW("EXPN\nDATA\n", "unknown line:4 word:3 line:4"));
}

TEST(empty_lines)
{
    CHECK_COMMANDS(ROW("\r\n", "line:0"), ROW("\n", "line:0"), ROW("\r\n\r\nNOOP\r\n", "line:0 line:0 word:10 line:4"),
                   ROW("\n\nDATA\n", "line:0 line:0 word:3 line:4"));
}

TEST(leading_blanks_are_no_word)
{
    CHECK_COMMANDS(ROW(" DATA\r\n", "unknown line:5"), ROW("\tDATA\r\n", "unknown line:5"), ROW(" \r\n", "unknown line:1"),
                   ROW("   \nDATA\r\n", "unknown line:3 word:3 line:4"));
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
                   ROW("SEND x\r\n", "word:15 line:6"), ROW("SENDA\r\n", "incomplete line:5"),
                   ROW("SENDALL\r\n", "word:19 line:7"), ROW("SENDALLX\r\n", "unknown line:8"), ROW("X-\r\n", "incomplete line:2"));
}

TEST(bare_cr_in_a_command)
{
    CHECK_COMMANDS(ROW("NOOP\rX\r\n", "word:10 bare-cr line:6"), ROW("NOOP\r\r\n", "word:10 bare-cr line:5"),
                   ROW("\rDATA\r\n", "bare-cr line:5"), ROW("NOOP a\rDATA\r\nDATA\r\n", "word:10 bare-cr line:11 word:3 line:4"),
                   ROW("NOOP\r DATA\n", "word:10 bare-cr line:10"), ROW("EXPN\rX\r\r\n", "unknown line:7"));
}

TEST(nul_in_a_command)
{
    CHECK_COMMANDS(ROW("NOOP \0x\r\n", "word:10 nul line:7"), ROW("NO\0OP\r\n", "nul line:5"), ROW("\0\r\n", "nul line:1"),
                   ROW("NOOP\0\r\n", "nul line:5"), ROW("NOOP\r\0\r\n", "word:10 bare-cr line:6"));
}

TEST(pipelined_lines)
{
    CHECK_COMMANDS(ROW("NOOP\r\nEXPN x\r\nMAIL FROM:<>\r\nDATA\r\n", "word:10 line:4 unknown line:6 word:9 line:12 word:3 line:4"),
                   ROW("NOOP\r\nDATA", "word:10 line:4"));
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
        check_length(policy, "NOOP ", "word:10", len);
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

/* ---- message data ---- */

static void eat_body(void *scanner, struct nq_cursor *cursor, struct trace *trace)
{
    const uint8_t *begin = cursor->at;
    uint8_t *state = scanner;
    while (cursor->at < cursor->end)
        if (scan_body(state, cursor) == TOKEN_END_OF_DATA)
            note(trace, "end", -1);
    CHECK(cursor->at >= begin);
}

#define CHECK_BODY(octets, met)                                                                       \
    do {                                                                                              \
        const uint8_t fresh = BODY_LINE_START;                                                        \
        feed_all_ways(eat_body, &fresh, sizeof fresh, octets, sizeof(octets) - 1, met);               \
    } while (0)

TEST(data_ends_at_a_lone_dot)
{
    CHECK_BODY(".\r\n", "end");
    CHECK_BODY("a\r\n.\r\n", "end");
    CHECK_BODY("\r\n.\r\n", "end");
    CHECK_BODY("a\r\n..\r\n.a\r\n.\r\n", "end");
    CHECK_BODY("a\r\r\n.\r\n", "end");
    CHECK_BODY("a\n\r\n.\r\n", "end");
    CHECK_BODY(".\r\r\n.\r\n", "end");
}

/* CVE-2023-51764, 51765, 51766: what some servers take for the end of data. */
TEST(smuggled_ends_of_data_are_none)
{
    CHECK_BODY("text\n.\nMAIL FROM:<a@b>\r\n", "");
    CHECK_BODY("text\n.\r\nMAIL FROM:<a@b>\r\n", "");
    CHECK_BODY("text\r\n.\nMAIL FROM:<a@b>\r\n", "");
    CHECK_BODY("text\r.\rMAIL FROM:<a@b>\r\n", "");
    CHECK_BODY("text\n.\rMAIL FROM:<a@b>\r\n", "");
    CHECK_BODY("text\r.\r\nMAIL FROM:<a@b>\r\n", "");
    CHECK_BODY("text\r\n\0.\r\nMAIL FROM:<a@b>\r\n", "");
    CHECK_BODY("text\r\n.\0\r\nMAIL FROM:<a@b>\r\n", "");
    CHECK_BODY("text\r\n.\r\r\nMAIL FROM:<a@b>\r\n", "");
    CHECK_BODY("text\r\n. \r\nMAIL FROM:<a@b>\r\n", "");
}

TEST(a_smuggled_end_does_not_hide_the_true_one)
{
    CHECK_BODY("a\n.\nb\n.\r\nc\r\n.\nd\r.\re\n.\rf\r.\r\ng\r\n\0.\r\n.\r\n", "end");
    CHECK_BODY("\r\n.\n.\r\n\r\n.\r\n", "end");
}

/* RFC 5321, 4.1.1.4, by definition: CRLF.CRLF, where the CRLF of the DATA line counts. -1: none. */
static int naive_end(const uint8_t *octets, int len)
{
    for (int at = 2; at < len; at++)
        if (octets[at] == '\n' && octets[at - 1] == '\r' && octets[at - 2] == '.' &&
            (at == 2 || (at >= 4 && octets[at - 3] == '\n' && octets[at - 4] == '\r')))
            return at + 1;
    return -1;
}

static int scanned_end(const uint8_t *octets, int len, int cut)
{
    uint8_t state = BODY_LINE_START, *all = (uint8_t *)octets;
    for (int piece = 0; piece < 2; piece++) {
        struct nq_cursor cursor = { .begin = all, .at = all + (piece ? cut : 0), .end = all + (piece ? len : cut) };
        if (cursor.at < cursor.end && scan_body(&state, &cursor) == TOKEN_END_OF_DATA)
            return (int)(cursor.at - octets);
    }
    return -1;
}

TEST(every_short_body_as_defined)
{
    enum { LEN = 8 };
    static const uint8_t alphabet[] = { '\r', '\n', '.', 'a', 0 };
    uint8_t octets[LEN];
    for (int number = 0, all = 390625 /* 5^8 */; number < all; number++) {
        for (int i = 0, rest = number; i < LEN; i++, rest /= 5)
            octets[i] = alphabet[rest % 5];
        int wanted = naive_end(octets, LEN);
        for (int cut = 0; cut <= LEN; cut++)
            if (scanned_end(octets, LEN, cut) != wanted)
                harness_fail(__FILE__, __LINE__, "body %d cut at %d ends at %d, not %d", number, cut,
                             scanned_end(octets, LEN, cut), wanted);
    }
}

/* Around the vectors of 16 octets: every distance of the end from the data's begin and from the page's end. */
static void check_alignment(const char *pattern, int before, int behind)
{
    uint8_t octets[160];
    int len = (int)strlen(pattern);
    memset(octets, 'a', sizeof octets);
    memcpy(octets + before, pattern, (size_t)len);
    uint8_t *copy = guarded(octets, (size_t)(before + len + behind));
    struct nq_cursor cursor = { .begin = copy, .at = copy, .end = copy + before + len + behind };
    uint8_t state = BODY_INSIDE;
    bool ends = strcmp(pattern, "\r\n.\r\n") == 0;
    harness_row("%d octets, a pattern of %d (%s), %d octets", before, len, ends ? "an end" : "none", behind);
    CHECK_EQUAL(scan_body(&state, &cursor), ends ? TOKEN_END_OF_DATA : TOKEN_NONE);
    CHECK_EQUAL(cursor.at - copy, ends ? before + len : before + len + behind);
}

TEST(ends_of_data_at_every_alignment)
{
    static const char *patterns[] = { "\r\n.\r\n", "\n.\r\n", "\r\n.\n", "\r.\r\n", "\r\n..\r\n", "\r\n\r\n", "\r\n.a\r\n" };
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        for (int before = 0; before < 70; before++)
            for (int behind = 0; behind < 40; behind++)
                check_alignment(patterns[i], before, behind);
}
