/*
 * test_data.c - message data: where it ends, what is told of its newlines, how long its lines are. Octets are fed in every way of
 * feed.h; what is told, and of which octet, must be the same. What must be told is defined here once more, over whole texts and by
 * looking back, without states.
 */
#define _GNU_SOURCE /* memmem */
#include <stdio.h>

#include "feed.h"
#include "harness.h"
#include "nq.h"

#define NO_LIMIT UINT32_MAX

struct listener {
    struct nq_data data;
    size_t taken;               /* octets before the present piece */
};

/* Each token with the offset of the octet at the cursor; of an end, of the octet behind it. */
static void listen(void *scanner, struct nq_cursor *cursor, struct trace *trace)
{
    static const char *const names[] = { [TOKEN_END_OF_DATA] = "end", [TOKEN_LONG_LINE] = "long", [TOKEN_BARE_NEWLINE] = "bare",
                                         [TOKEN_FALSE_END] = "false" };
    struct listener *self = scanner;
    while (cursor->at < cursor->end) {
        enum nq_token token = data_scan(&self->data, cursor);
        if (token)
            note(trace, names[token], (long)(self->taken + (size_t)(cursor->at - cursor->begin)));
    }
    self->taken += (size_t)(cursor->end - cursor->begin);
}

static struct listener fresh(bool counted, bool watched, uint32_t body_limit, uint32_t header_limit)
{
    struct listener listener = { .taken = 0 };
    data_begin(&listener.data, counted, watched, body_limit, header_limit);
    return listener;
}

static void check(const struct listener *begins, const struct row *rows, size_t count)
{
    for (size_t i = 0; i < count; i++)
        feed_all_ways(listen, begins, sizeof *begins, rows[i].octets, rows[i].len, rows[i].met);
}

#define CHECK_DATA(begins, ...)                               \
    do {                                                      \
        const struct listener begins_ = begins;               \
        static const struct row rows[] = { __VA_ARGS__ };     \
        check(&begins_, rows, sizeof rows / sizeof *rows);    \
    } while (0)

/* ---- the end of data ---- */

TEST(data_ends_at_a_lone_dot)
{
    CHECK_DATA(fresh(false, false, NO_LIMIT, NO_LIMIT), ROW(".\r\n", "end:3"), ROW("a\r\n.\r\n", "end:6"), ROW("\r\n.\r\n", "end:5"),
               ROW("a\r\n..\r\n.a\r\n.\r\n", "end:14"), ROW("a\r\r\n.\r\n", "end:7"), ROW("a\n\r\n.\r\n", "end:7"),
               ROW(".\r\r\n.\r\n", "end:7"));
}

/* CVE-2023-51764, 51765, 51766: what some servers take for the end of data. */
TEST(smuggled_ends_of_data_are_none)
{
    CHECK_DATA(fresh(false, false, NO_LIMIT, NO_LIMIT), ROW("text\n.\nMAIL FROM:<a@b>\r\n", ""),
               ROW("text\n.\r\nMAIL FROM:<a@b>\r\n", ""), ROW("text\r\n.\nMAIL FROM:<a@b>\r\n", ""),
               ROW("text\r.\rMAIL FROM:<a@b>\r\n", ""), ROW("text\n.\rMAIL FROM:<a@b>\r\n", ""),
               ROW("text\r.\r\nMAIL FROM:<a@b>\r\n", ""), ROW("text\r\n\0.\r\nMAIL FROM:<a@b>\r\n", ""),
               ROW("text\r\n.\0\r\nMAIL FROM:<a@b>\r\n", ""), ROW("text\r\n.\r\r\nMAIL FROM:<a@b>\r\n", ""),
               ROW("text\r\n. \r\nMAIL FROM:<a@b>\r\n", ""));
}

TEST(a_smuggled_end_does_not_hide_the_true_one)
{
    CHECK_DATA(fresh(false, false, NO_LIMIT, NO_LIMIT),
               ROW("a\n.\nb\n.\r\nc\r\n.\nd\r.\re\n.\rf\r.\r\ng\r\n\0.\r\n.\r\n", "end:37"), ROW("\r\n.\n.\r\n\r\n.\r\n", "end:12"));
}

/* ---- what is told, row by row: LF.LF  LF.CRLF  CRLF.LF  CR.CR  LF.CR  CR.CRLF  CRLF.CR, and NUL beside the dot ---- */

TEST(the_seven_false_ends)
{
    CHECK_DATA(fresh(false, true, NO_LIMIT, NO_LIMIT), ROW("a\n.\nb", "bare:1 false:3"), ROW("a\n.\r\nb", "bare:1 false:3"),
               ROW("a\r\n.\nb", "false:4"), ROW("a\r.\rb", "bare:2 false:3 bare:4"), ROW("a\n.\rb", "bare:1 false:3 bare:4"),
               ROW("a\r.\r\nb", "bare:2 false:3"), ROW("a\r\n.\rb", "false:5"));
}

TEST(nul_beside_the_dot)
{
    CHECK_DATA(fresh(false, true, NO_LIMIT, NO_LIMIT), ROW("a\r\n\0.\r\nb", "bare:3 false:5"), ROW("a\r\n.\0\r\nb", "bare:4 false:5"),
               ROW("a\r\n\0\0.\r\nb", "bare:3 false:6"), ROW("a\r\n.\0\0\r\nb", "bare:4 bare:5 false:6"),
               ROW("a\r\n\0a\r\nb", "bare:3"), ROW("a\0.\r\nb", ""), ROW("a\n\0.\nb", "bare:1 false:4"));
}

TEST(neighbours_of_false_ends)
{
    CHECK_DATA(fresh(false, true, NO_LIMIT, NO_LIMIT), ROW("a\n..\nb", "bare:1 bare:4"), ROW("a\r\n..\r\nb", ""),
               ROW("a\r\n. \r\nb", ""), ROW("a\n. \r\nb", "bare:1"), ROW("a\n.a\nb", "bare:1 bare:4"), ROW("a.\nb", "bare:2"),
               ROW("a.\r\nb", ""), ROW("a\r\n.\r\r\nb", "false:5"), ROW("a\r\n.\r.\r\nb", "false:5 false:6"),
               ROW("\n.\n", "bare:0 false:2"), ROW(".\n", "false:1"), ROW(".\rb", "false:2"), ROW("a\r\rb", "bare:2 bare:3"),
               ROW("a\r\n\n\nb", "bare:3 bare:4"), ROW("a\n\r\nb", "bare:1"), ROW("a\r\n\r\nb", ""));
}

/* ---- every short text ---- */

/* Does a line begin at `at` in anybody's eyes; in everybody's? */
static bool begins_for_some(const uint8_t *octets, int at)
{
    if (at == 0 || octets[at - 1] == '\n' || octets[at - 1] == '\r')
        return true;
    return octets[at - 1] == 0 && begins_for_some(octets, at - 1);
}

static bool begins_for_all(const uint8_t *octets, int at)
{
    return at == 0 || (at >= 2 && octets[at - 2] == '\r' && octets[at - 1] == '\n');
}

/* Where a dot stands that begins somebody's line and has nothing but NULs between itself and `at`; -1: nowhere. */
static int dot_before(const uint8_t *octets, int at)
{
    int dot = at - 1;
    while (dot >= 0 && octets[dot] == 0)
        dot--;
    return dot >= 0 && octets[dot] == '.' && begins_for_some(octets, dot) ? dot : -1;
}

static enum nq_token told_of(const uint8_t *octets, int at)
{
    uint8_t octet = octets[at];
    bool behind_cr = at > 0 && octets[at - 1] == '\r', newline = octet == '\r' || octet == '\n';
    if (behind_cr && octet == '\n')
        return TOKEN_NONE;
    if (behind_cr)
        return at >= 2 && octets[at - 2] == '.' && begins_for_all(octets, at - 2) ? TOKEN_FALSE_END : TOKEN_BARE_NEWLINE;
    int dot = dot_before(octets, at);
    bool true_dot = dot == at - 1 && dot >= 0 && begins_for_all(octets, dot);
    if (dot >= 0 && newline)
        return true_dot && octet == '\r' ? TOKEN_NONE : TOKEN_FALSE_END; /* a true dot's CR: the next octet tells */
    if (octet == '\n')
        return TOKEN_BARE_NEWLINE;
    return octet == 0 && (dot >= 0 || begins_for_all(octets, at)) ? TOKEN_BARE_NEWLINE : TOKEN_NONE;
}

/* RFC 5321, 4.1.1.4, by definition: CRLF.CRLF, where the CRLF of the DATA line counts. */
static bool ends_behind(const uint8_t *octets, int at)
{
    return at >= 2 && octets[at] == '\n' && octets[at - 1] == '\r' && octets[at - 2] == '.' && begins_for_all(octets, at - 2);
}

/* Octet by octet what is told, an octet a place; what is behind the end stays TOKEN_NONE. */
static void define(const uint8_t *octets, int len, bool watched, uint8_t *told)
{
    memset(told, TOKEN_NONE, (size_t)len);
    for (int at = 0; at < len; at++) {
        if (watched)
            told[at] = (uint8_t)told_of(octets, at);
        if (ends_behind(octets, at)) {
            told[at] = TOKEN_END_OF_DATA;
            return;
        }
    }
}

static void scan_piece(struct nq_data *data, uint8_t *octets, int from, int to, uint8_t *told)
{
    struct nq_cursor cursor = { .begin = octets + from, .at = octets + from, .end = octets + to };
    while (cursor.at < cursor.end) {
        enum nq_token token = data_scan(data, &cursor);
        if (token)
            told[cursor.at - octets - (token == TOKEN_END_OF_DATA)] = (uint8_t)token;
        if (token == TOKEN_END_OF_DATA)
            return;
    }
}

static void check_text(uint8_t *octets, int len, int number)
{
    uint8_t wanted[2][16], told[16];
    define(octets, len, false, wanted[0]);
    define(octets, len, true, wanted[1]);
    for (int cut = 0; cut <= len; cut++)
        for (int watched = 0; watched < 2; watched++) {
            struct nq_data data;
            data_begin(&data, false, watched, NO_LIMIT, NO_LIMIT);
            memset(told, TOKEN_NONE, sizeof told);
            scan_piece(&data, octets, 0, cut, told);
            if (!memchr(told, TOKEN_END_OF_DATA, (size_t)len))
                scan_piece(&data, octets, cut, len, told);
            if (memcmp(told, wanted[watched], (size_t)len) == 0)
                continue;
            harness_row("text %d, cut at %d%s", number, cut, watched ? ", watched" : "");
            CHECK_OCTETS(told, (size_t)len, wanted[watched], (size_t)len);
        }
}

TEST(every_short_text_as_defined)
{
    enum { LEN = 7 };
    static const uint8_t alphabet[] = { '\r', '\n', '.', 'a', 0 };
    uint8_t octets[LEN];
    for (int number = 0, all = 78125 /* 5^7 */; number < all; number++) {
        for (int i = 0, rest = number; i < LEN; i++, rest /= 5)
            octets[i] = alphabet[rest % 5];
        check_text(octets, LEN, number);
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
    struct nq_data data;
    data_begin(&data, false, false, NO_LIMIT, NO_LIMIT);
    data.state = DATA_INSIDE;
    bool ends = strcmp(pattern, "\r\n.\r\n") == 0;
    harness_row("%d octets, a pattern of %d (%s), %d octets", before, len, ends ? "an end" : "none", behind);
    CHECK_EQUAL(data_scan(&data, &cursor), ends ? TOKEN_END_OF_DATA : TOKEN_NONE);
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

/* ---- lines ---- */

TEST(a_long_line_is_told_once_at_the_first_octet_too_many)
{
    CHECK_DATA(fresh(false, false, 5, 3), ROW("abc\r\n\r\nabcde\r\n", ""), ROW("abcd\r\n", "long:4"), ROW("abcdefgh\r\nabcdefgh", "long:4 long:14"),
               ROW("\r\nabcdefgh\r\nabcdefgh\r\n.\r\n", "long:8 long:18 end:25"),
               ROW("a\r\n\r\nabcde\r\nabcdef\r\n", "long:18"), ROW("a\nbcde\r\n", "long:4"), ROW("\r\nab\rcdef", "long:8"));
}

TEST(long_lines_at_every_alignment)
{
    uint8_t octets[200];
    for (uint32_t limit = 1; limit < 70; limit++)
        for (uint32_t len = limit - 1; len <= limit + 2; len++) {
            struct listener listener = fresh(false, true, limit, NO_LIMIT);
            struct trace trace = { .len = 0 };
            char wanted[32] = "";
            memset(octets, 'a', sizeof octets);
            memcpy(octets, "\r\n", 2);
            memcpy(octets + 2 + len, "\r\nb", 3);
            if (len > limit)
                snprintf(wanted, sizeof wanted, "long:%u", 2 + limit + 1);
            harness_row("a line of %u, limit %u", len, limit);
            feed(listen, &listener, octets, 0, 2 + len + 3, &trace);
            CHECK_TEXT(trace.text, wanted);
        }
}

static void count_octets(const char *text, size_t len, bool counted, uint64_t header, uint64_t body)
{
    for (size_t cut = 0; cut <= len; cut++) {
        struct listener listener = fresh(counted, true, NO_LIMIT, NO_LIMIT);
        struct trace trace = { .len = 0 };
        feed(listen, &listener, (const uint8_t *)text, 0, cut, &trace);
        feed(listen, &listener, (const uint8_t *)text, cut, len, &trace);
        harness_row("cut at %zu of %zu", cut, len);
        CHECK_EQUAL(listener.data.octets[1], header);
        CHECK_EQUAL(listener.data.octets[0], body);
    }
}

TEST(octets_of_header_and_body)
{
    static const char mail[] = "Subject: x\r\nTo: y\r\n\r\nbody\r\n..\r\n.\r\n", bare[] = "a\n\nb\r\r\nc\r\n.\r\n";
    count_octets(mail, sizeof mail - 1, false, 21, 10);
    count_octets(bare, sizeof bare - 1, false, 10, 0); /* a bare LF ends no line: all is header */
    count_octets(mail, sizeof mail - 1, true, 21, 13);
}

TEST(counted_octets_mean_nothing_but_lines)
{
    CHECK_DATA(fresh(true, true, 5, NO_LIMIT), ROW("a\r\n.\r\nb\n.\n\r.\r\0", ""), ROW(".\r\n\r\nabcdef\r\n", "long:11"));
}

/* ---- may it matter? ---- */

static bool has(const uint8_t *octets, size_t len, const char *text, size_t text_len)
{
    return len >= text_len && memmem(octets, len, text, text_len) != NULL;
}

static bool matters_by_definition(const uint8_t *octets, size_t len, bool watched)
{
    bool ends = has(octets, len, "\r\n.\r\n", 5) || (len >= 3 && memcmp(octets, ".\r\n", 3) == 0) ||
                (len >= 4 && memcmp(octets, "\n.\r\n", 4) == 0);
    if (!watched || ends)
        return ends;
    if (len && (octets[0] == '.' || octets[0] == 0))
        return true;
    for (size_t at = 0; at < len; at++) {
        bool half = (octets[at] == '\n' && (at == 0 || octets[at - 1] != '\r')) ||
                    (octets[at] == '\r' && (at + 1 == len || octets[at + 1] != '\n'));
        if (half)
            return true;
    }
    return has(octets, len, "\r\n\0", 3) || has(octets, len, "\r\n.\0", 4);
}

static size_t roll_text(struct dice *dice, uint8_t *octets, size_t max)
{
    static const char *const pieces[] = { "\r\n", "\r\n", ".", "a", "aaaaaaaaaaaaaaaaaaa", "\r\n.", "\r", "\n", "" };
    size_t len = 0;
    uint32_t kinds = dice_below(dice, 3) ? 6 : 9; /* most without bare newlines, else hardly one would not matter */
    for (uint32_t parts = dice_below(dice, 12); parts > 0; parts--) {
        const char *piece = pieces[dice_below(dice, kinds)];
        size_t octets_of = *piece ? strlen(piece) : 1; /* the last one is a NUL */
        if (len + octets_of > max)
            break;
        memcpy(octets + len, piece, octets_of);
        len += octets_of;
    }
    return len;
}

TEST(what_may_matter_as_defined)
{
    struct dice dice = { 20261122 };
    uint8_t octets[160];
    uint32_t yes[2] = { 0, 0 };
    for (int i = 0; i < 200000; i++) {
        size_t len = roll_text(&dice, octets, sizeof octets);
        const uint8_t *copy = guarded(octets, len);
        for (int watched = 0; watched < 2; watched++) {
            bool wanted = matters_by_definition(octets, len, watched);
            harness_row("text %d%s", i, watched ? ", watched" : "");
            CHECK_EQUAL(data_may_matter(copy, copy + len, watched), wanted);
            yes[watched] += wanted;
        }
    }
    CHECK(yes[0] > 1000 && yes[0] < 199000 && yes[1] > 1000 && yes[1] < 199000);
}

/* What may not matter needs no edit and ends nothing, whatever came before. What leaves of a false line whose newline has been made
 * a blank needs none; of one whose newline has left the octets behind it do, but those are then no line's beginning any more. */
TEST(what_does_not_matter_is_left_alone)
{
    static const uint8_t states[] = { DATA_LINE_START, DATA_INSIDE, DATA_CR, DATA_FALSE_START };
    struct dice dice = { 51764 };
    uint8_t octets[160];
    uint32_t left_alone = 0;
    for (int i = 0; i < 200000; i++) {
        size_t len = roll_text(&dice, octets, sizeof octets);
        if (data_may_matter(octets, octets + len, true))
            continue;
        left_alone++;
        for (size_t n = 0; n < sizeof states; n++) {
            uint8_t *copy = guarded(octets, len);
            struct nq_cursor cursor = { .begin = copy, .at = copy, .end = copy + len };
            struct nq_view view = { .edited = false };
            struct nq_data data;
            data_begin(&data, false, true, NO_LIMIT, NO_LIMIT);
            data.state = states[n];
            harness_row("text %d from state %u", i, states[n]);
            while (cursor.at < cursor.end) {
                struct nq_change change = { .at = NULL };
                enum nq_token token = data_scan(&data, &cursor);
                CHECK(token != TOKEN_END_OF_DATA && token != TOKEN_FALSE_END);
                if (token == TOKEN_BARE_NEWLINE)
                    edit_defuse_newline(&view, &cursor, &data, false, &change);
            }
            CHECK(!view.edited);
            CHECK_OCTETS(copy, len, octets, len);
        }
    }
    CHECK(left_alone > 10000);
}
