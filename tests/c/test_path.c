/*
 * test_path.c - addresses and parameters of MAIL and RCPT: each row is fed whole, cut in two at every place, octet by octet,
 * and each time with its last octet at the end of a page. What is said, and of which octet, must be the same. Values of
 * parameters are held against POSIX regular expressions, addresses against a reader of whole lines.
 */
#include <regex.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "harness.h"
#include "nq.h"

/* ---- how a row is fed ---- */

enum { LEAVE, BLANK, CROSS };   /* what becomes of an octet that no address may hold: nothing, a blank, an X */

struct row {
    char command;               /* M or R */
    const char *text;
    size_t len;
    const char *said;
    uint8_t answer;
    uint32_t limits[3];         /* each but the first is set once the one before was reached; 0: none */
};

struct trace {
    char said[4096];
    size_t said_len;
    uint8_t address[2048];
    size_t address_len;
};

static __attribute__((format(printf, 2, 3))) void note(struct trace *trace, const char *format, ...)
{
    va_list arguments;
    size_t room = sizeof trace->said - trace->said_len;
    va_start(arguments, format);
    int written = vsnprintf(trace->said + trace->said_len, room, format, arguments);
    va_end(arguments);
    CHECK(written > 0 && (size_t)written < room);
    trace->said_len += (size_t)written;
}

static void note_address(struct trace *trace, const struct nq_path *path, size_t offset)
{
    CHECK_EQUAL(trace->address_len, path->length);
    note(trace, "address@%zu=", offset);
    for (size_t i = 0; i < trace->address_len; i++)
        note(trace, trace->address[i] > 31 && trace->address[i] < 127 ? "%c" : "\\%02x", trace->address[i]);
    note(trace, " ");
}

static void note_parameter(struct trace *trace, const struct nq_path *path, size_t offset)
{
    static const char *const names[] = { "?",
#define PARAMETER(symbol, text, keyword) text,
#include "smtp_parameters.def"
#undef PARAMETER
    };
    CHECK(path->parameter < sizeof names / sizeof *names);
    note(trace, "%s%s@%zu ", path->valid ? "" : "bad-", names[path->parameter], offset);
}

struct feeding {
    struct nq_path path;
    const struct row *row;
    struct trace trace;
    unsigned limits_reached;
    bool ended;                 /* a line end or a NUL was met */
};

static void answer_special(const struct row *row, uint8_t *at)
{
    if (row->answer != LEAVE)
        *at = row->answer == BLANK ? ' ' : 'X';
}

static void raise_limit(struct feeding *feeding)
{
    CHECK(feeding->limits_reached < 3);
    uint32_t next = ++feeding->limits_reached < 3 ? feeding->row->limits[feeding->limits_reached] : 0;
    if (next)
        feeding->path.limit = next;
}

/* One call, checked against the contract. False where the piece is at its end, or the line is. */
static bool take_once(struct feeding *feeding, const uint8_t *piece, const uint8_t **at, const uint8_t *end, size_t offset)
{
    struct nq_path *path = &feeding->path;
    struct trace *trace = &feeding->trace;
    const uint8_t *before = *at;
    enum nq_path_said said = path_take(path, at, end);
    CHECK(*at >= before && *at <= end);
    CHECK(path->address_from >= before && path->address_from <= path->address_to && path->address_to <= *at);
    size_t octets = (size_t)(path->address_to - path->address_from);
    CHECK(trace->address_len + octets <= sizeof trace->address);
    memcpy(trace->address + trace->address_len, path->address_from, octets);
    trace->address_len += octets;
    CHECK(said == PATH_NOTHING || *at < end);
    offset += (size_t)(*at - piece);
    switch (said) {
    case PATH_NOTHING: feeding->ended = *at < end; return false;
    case PATH_ADDRESS: note_address(trace, path, offset); break;
    case PATH_LENGTH: note(trace, "length@%zu ", offset); raise_limit(feeding); break;
    case PATH_SPECIAL: note(trace, "special@%zu ", offset); answer_special(feeding->row, (uint8_t *)*at); break;
    case PATH_PARAMETER: note_parameter(trace, path, offset); break;
    }
    return true;
}

static void feed(struct feeding *feeding, size_t from, size_t to)
{
    if (from == to || feeding->ended)
        return;
    const uint8_t *piece = guarded(feeding->row->text + from, to - from), *at = piece, *end = piece + (to - from);
    while (take_once(feeding, piece, &at, end, from))
        ;
    if (feeding->ended) {
        CHECK(*at == '\r' || *at == '\n' || *at == 0);
        note(&feeding->trace, "end@%zu ", from + (size_t)(at - piece));
    }
}

static void begin(struct feeding *feeding, const struct row *row)
{
    *feeding = (struct feeding){ .row = row };
    path_begin(&feeding->path, row->command == 'M');
    CHECK_EQUAL(feeding->path.limit, UINT32_MAX);
    if (row->limits[0])
        feeding->path.limit = row->limits[0];
}

static const char *said(struct feeding *feeding)
{
    struct trace *trace = &feeding->trace;
    trace->said[trace->said_len ? trace->said_len - 1 : 0] = 0;
    return trace->said;
}

static void feed_all_ways(const struct row *row)
{
    static struct feeding feeding;
    for (size_t cut = 0; cut <= row->len; cut++) {
        harness_row("%c %s, cut at %zu of %zu", row->command, row->text, cut, row->len);
        begin(&feeding, row);
        feed(&feeding, 0, cut);
        feed(&feeding, cut, row->len);
        CHECK_TEXT(said(&feeding), row->said);
    }
    harness_row("%c %s, octet by octet", row->command, row->text);
    begin(&feeding, row);
    for (size_t i = 0; i < row->len; i++)
        feed(&feeding, i, i + 1);
    CHECK_TEXT(said(&feeding), row->said);
}

#define TEXT(octets) .text = octets, .len = sizeof(octets) - 1
#define MAIL(octets, wanted, ...) { .command = 'M', TEXT(octets), .said = wanted, __VA_ARGS__ }
#define RCPT(octets, wanted, ...) { .command = 'R', TEXT(octets), .said = wanted, __VA_ARGS__ }
#define CHECK_ROWS(...)                                            \
    do {                                                           \
        static const struct row rows[] = { __VA_ARGS__ };          \
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)    \
            feed_all_ways(&rows[i]);                               \
    } while (0)

/* ---- addresses ---- */

TEST(address_in_brackets)
{
    CHECK_ROWS(MAIL(" FROM:<a@b>\r\n", "address@10=a@b end@11"),
               MAIL(" from:<a@b>\n", "address@10=a@b end@11"),
               RCPT(" TO:<Postmaster>\r\n", "address@15=Postmaster end@16"),
               MAIL(" FROM:<>\r\n", "address@7= end@8"),
               RCPT(" tO:<a@[192.0.2.1]>\r\n", "address@18=a@[192.0.2.1] end@19"),
               RCPT(" To:<a@[IPv6:2001:db8::1]>\r\n", "address@25=a@[IPv6:2001:db8::1] end@26"),
               RCPT(" TO:<@a,@b:c@d>\r\n", "address@14=@a,@b:c@d end@15"),
               RCPT(" TO:<\xc3\xa4@\xe4\xbe\x8b>\r\n", "address@11=\\c3\\a4@\\e4\\be\\8b end@12"),
               RCPT(" TO:<a b@c>\r\n", "address@10=a b@c end@11"),
               RCPT(" TO:<TO:a>\r\n", "address@9=TO:a end@10"));
}

TEST(blanks_around_the_colon)
{
    CHECK_ROWS(MAIL("\tFROM \t: \t<a@b>\r\n", "address@14=a@b end@15"),
               MAIL("   FROM:a@b\r\n", "address@11=a@b end@11"),
               MAIL("FROM:<a@b>\r\n", "address@9=a@b end@10"),
               MAIL(" FROM:<a@b>  \t\r\n", "address@10=a@b end@14"));
}

TEST(address_without_brackets)
{
    CHECK_ROWS(MAIL(" FROM:a@b\r\n", "address@9=a@b end@9"),
               MAIL(" FROM: a@b\tSIZE=1\r\n", "address@10=a@b SIZE@17 end@17"),
               RCPT(" TO:\"a b\"@c X\n", "address@11=\"a b\"@c ?@13 end@13"),
               RCPT(" TO:a\\ b@c d\n", "address@10=a\\ b@c ?@12 end@12"),
               RCPT(" TO:a\"b c\"@d\n", "address@12=a\"b c\"@d end@12"));
}

TEST(quoted_local_parts)
{
    CHECK_ROWS(RCPT(" TO:<\"a>b\"@c>\r\n", "address@12=\"a>b\"@c end@13"),
               RCPT(" TO:<\"a<b\"@c>\r\n", "address@12=\"a<b\"@c end@13"),
               RCPT(" TO:<\"a\\\"c>\"@d>\r\n", "address@14=\"a\\\"c>\"@d end@15"),
               RCPT(" TO:<\"a\\\\\">\r\n", "address@10=\"a\\\\\" end@11"),
               RCPT(" TO:<\"a \\ b\"@c>\r\n", "address@14=\"a \\ b\"@c end@15"),
               RCPT(" TO:<\\\"a@b>\r\n", "address@10=\\\"a@b end@11"),
               RCPT(" TO:<\"\">\r\n", "address@7=\"\" end@8"));
}

TEST(special_octets)
{
    CHECK_ROWS(RCPT(" TO:<|x>\r\n", "special@5 address@7=|x end@8"),
               RCPT(" TO:<a`x`@b>\r\n", "special@6 special@8 address@11=a`x`@b end@12"),
               RCPT(" TO:<\"a|b\"@c>\r\n", "special@7 address@12=\"a|b\"@c end@13"),
               RCPT(" TO:<\\|@c>\r\n", "special@6 address@9=\\|@c end@10"),
               RCPT(" TO:<a\0b>\r\n", "special@6 address@8=a\\00b end@9"),
               RCPT(" TO:\0a b\r\n", "special@4 address@6=\\00a ?@8 end@8"),
               RCPT(" TO:<\"\\\0\"@b>\r\n", "special@7 address@11=\"\\\\00\"@b end@12"),
               RCPT(" TO:|x\r\n", "special@4 address@6=|x end@6"),
               RCPT(" TO:a|\r\n", "special@5 address@6=a| end@6"),
               MAIL(" FROM:<||>\r\n", "special@7 special@8 address@9=|| end@10"));
}

TEST(stray_brackets)
{
    CHECK_ROWS(RCPT(" TO:<a<b>\r\n", "special@6 address@8=a<b end@9"),
               RCPT(" TO:<<a>>\r\n", "special@5 address@7=<a special@8 bad-?@9 end@9"),
               RCPT(" TO:a>b\r\n", "special@5 address@7=a>b end@7"),
               RCPT(" TO:>\r\n", "special@4 address@5=> end@5"),
               RCPT(" TO:a<b@c>\r\n", "special@5 special@9 address@10=a<b@c> end@10"),
               RCPT(" TO:<a\\>b>\r\n", "special@7 address@9=a\\>b end@10"),
               RCPT(" TO:<a\\<b>\r\n", "special@7 address@9=a\\<b end@10"),
               RCPT(" TO:a\\>b\r\n", "special@6 address@8=a\\>b end@8"),
               RCPT(" TO:<a> <b>\r\n", "address@6=a special@8 special@10 bad-?@11 end@11"),
               RCPT(" TO:<a><b>\r\n", "address@6=a special@7 special@9 bad-?@10 end@10"),
               RCPT(" TO:A <b>\r\n", "address@5=A special@6 special@8 bad-?@9 end@9"),
               RCPT(" TO:<a> X<=b\r\n", "address@6=a special@9 bad-?@12 end@12"),
               RCPT(" TO:<a> X=<b>\r\n", "address@6=a ?@13 end@13"));
}

TEST(octets_that_the_caller_has_changed)
{
    CHECK_ROWS(RCPT(" TO:<a|b>\r\n", "special@6 address@8=a b end@9", BLANK),
               RCPT(" TO:a|b@c\r\n", "special@5 address@5=a bad-?@9 end@9", BLANK),
               RCPT(" TO:|a\r\n", "special@4 address@6=a end@6", BLANK),
               RCPT(" TO:\"a|b\"@c\r\n", "special@6 address@11=\"a b\"@c end@11", BLANK),
               RCPT(" TO:||\r\n", "special@4 special@5 address@6= end@6", BLANK),
               RCPT(" TO:<a<b>\r\n", "special@6 address@8=a b end@9", BLANK),
               RCPT(" TO:<\\>>\r\n", "special@6 address@7=\\  end@8", BLANK),
               RCPT(" TO:<a\0>\r\n", "special@6 address@7=a  end@8", BLANK),
               RCPT(" TO:<a> <b>\r\n", "address@6=a special@8 special@10 ?@10 end@11", BLANK),
               RCPT(" TO:<a>>\r\n", "address@6=a special@7 end@8", BLANK),
               RCPT(" |TO:<a>\r\n", "special@1 address@7=a end@8", BLANK),
               RCPT(" TO:a>b\r\n", "special@5 address@7=aXb end@7", CROSS),
               RCPT(" TO:<a<b|>\r\n", "special@6 special@8 address@9=aXbX end@10", CROSS),
               RCPT(" TO:>a\r\n", "special@4 address@6=Xa end@6", CROSS),
               RCPT(" TO:<a> >=1\r\n", "address@6=a special@8 ?@11 end@11", CROSS));
}

TEST(lines_that_end_too_soon)
{
    CHECK_ROWS(MAIL("\r\n", "address@0= end@0"),
               MAIL("\n", "address@0= end@0"),
               MAIL(" FROM\r\n", "address@5= end@5"),
               MAIL(" FRO\n", "address@4= end@4"),
               MAIL(" FROM:\r\n", "address@6= end@6"),
               MAIL(" FROM: \n", "address@7= end@7"),
               MAIL(" FROM:<\r\n", "address@7= end@7"),
               MAIL(" FROM:<a@b\r\n", "address@10=a@b end@10"),
               MAIL(" FROM:<\"a@b>\n", "address@12=\"a@b> end@12"),
               MAIL(" FROM:<a\\\r\n", "address@9=a\\ end@9"),
               MAIL(" FROM:<a SIZE=1\n", "address@15=a SIZE=1 end@15"),
               MAIL(" FROM:<a|\r\n", "special@8 address@9=a| end@9"),
               MAIL(" FROM:<a@b", ""),
               MAIL(" FROM:<a>", "address@8=a"),
               MAIL(" FROM:a", ""),
               MAIL(" FROM:<a> SIZE=1", "address@8=a"),
               MAIL(" FROM:a\rb\n", "address@7=a end@7"));
}

TEST(other_words_than_from_and_to)
{
    CHECK_ROWS(MAIL(" TO:<a@b>\r\n", "address@8=a@b end@9"),
               MAIL(" <a@b>\r\n", "address@5=a@b end@6"),
               MAIL(" FORM:a@b\r\n", "address@9=a@b end@9"),
               MAIL(" FROM<a>\r\n", "address@7=a end@8"),
               RCPT(" TO a@b\r\n", "address@7= end@7"),
               RCPT(" T O:<a>\r\n", "address@7=a end@8"),
               RCPT(" TOO:a\r\n", "address@6=a end@6"),
               RCPT(" a|`>:<b>\r\n", "special@2 special@3 special@4 address@8=b end@9"),
               RCPT(" FROM:a\r\n", "address@7=a end@7"),
               RCPT(" :a\r\n", "address@3=a end@3"),
               RCPT(" TO TO:<a>\r\n", "address@9=a end@10"));
}

TEST(nul_outside_the_address)
{
    CHECK_ROWS(RCPT("\0TO:<a>\r\n", "end@0"),
               RCPT(" TO\0:<a>\r\n", "end@3"),
               RCPT(" TX\0:<a>\r\n", "end@3"),
               RCPT(" TO:<a>\0\r\n", "address@6=a end@7"),
               RCPT(" TO:<a> \0\r\n", "address@6=a end@8"),
               RCPT(" TO:<a> X\0\r\n", "address@6=a end@9"),
               RCPT(" TO:<a> X=\0\r\n", "address@6=a end@10"));
}

TEST(limits_of_length)
{
    CHECK_ROWS(MAIL(" FROM:<abcd>\r\n", "address@11=abcd end@12", LEAVE, { 4 }),
               MAIL(" FROM:<abcde>\r\n", "length@11 address@12=abcde end@13", LEAVE, { 4 }),
               MAIL(" FROM:<abcdefg>\r\n", "length@8 length@11 address@14=abcdefg end@15", LEAVE, { 1, 4 }),
               MAIL(" FROM:<abcdefg>\r\n", "length@11 length@11 length@13 address@14=abcdefg end@15", LEAVE, { 4, 2, 6 }),
               MAIL(" FROM:abcde\r\n", "length@9 address@11=abcde end@11", LEAVE, { 3 }),
               MAIL(" FROM:abc \r\n", "address@9=abc end@10", LEAVE, { 3 }),
               MAIL(" FROM:<a|c>\r\n", "special@8 length@8 address@10=a|c end@11", LEAVE, { 1 }),
               MAIL(" FROM:a|c\r\n", "special@7 address@7=a ?@9 end@9", BLANK, { 1 }),
               MAIL(" FROM:<\"a>\"@b>\r\n", "length@9 address@13=\"a>\"@b end@14", LEAVE, { 2 }));
}

TEST(a_limit_of_nothing)
{
    static const char *const texts[] = { " FROM:<>\r\n", " FROM:<a>\r\n", " FROM:a\r\n" };
    static const enum nq_path_said wanted[] = { PATH_ADDRESS, PATH_LENGTH, PATH_LENGTH };
    for (int i = 0; i < 3; i++) {
        struct nq_path path;
        const uint8_t *at = (const uint8_t *)texts[i];
        path_begin(&path, true);
        path.limit = 0;
        harness_row("%s", texts[i]);
        CHECK_EQUAL(path_take(&path, &at, at + strlen(texts[i])), wanted[i]);
    }
}

/* ---- parameters ---- */

TEST(parameters_in_a_row)
{
    CHECK_ROWS(MAIL(" FROM:<a@b> SIZE=100 BODY=8BITMIME\r\n", "address@10=a@b SIZE@20 BODY@34 end@34"),
               MAIL(" FROM:<> smtputf8  requiretls\t\n", "address@7= SMTPUTF8@17 REQUIRETLS@29 end@30"),
               RCPT(" TO:<a> NOTIFY=NEVER ORCPT=rfc822;a@b X\r\n", "address@6=a NOTIFY@20 ORCPT@37 ?@39 end@39"),
               MAIL(" FROM:<> size=1 Body=7bit Ret=full EnvId=x Auth=<> By=1;n HoldFor=1 Mt-Priority=0\n",
                    "address@7= SIZE@15 BODY@25 RET@34 ENVID@42 AUTH@50 BY@57 HOLDFOR@67 MT-PRIORITY@81 end@81"));
}

TEST(parameters_that_are_unknown)
{
    CHECK_ROWS(MAIL(" FROM:<> X=y Z x-1=2 1=!~\r\n", "address@7= ?@12 ?@14 ?@20 ?@25 end@25"),
               MAIL(" FROM:<> X= -X =x X=a=b X_Y X*=1\r\n",
                    "address@7= bad-?@11 bad-?@14 bad-?@17 bad-?@23 bad-?@27 bad-?@32 end@32"),
               MAIL(" FROM:<> SIZ=1 SIZES=1 MT-=1\r\n", "address@7= ?@14 ?@22 ?@28 end@28"),
               MAIL(" FROM:<> X=\x7f X=\x01 \xc3\xa4=1\r\n", "address@7= bad-?@12 bad-?@16 bad-?@21 end@21"),
               MAIL(" FROM:<a>SIZE=10 X\r\n", "address@8=a bad-SIZE@16 ?@18 end@18"));
}

TEST(unknown_values_in_utf8)
{
    CHECK_ROWS(MAIL(" FROM:<> X=\xc3\xa4z\xe4\xbe\x8b\xf0\x9f\x93\xa7\r\n", "address@7= ?@21 end@21"),
               MAIL(" FROM:<> X=\xc3 X=\xc3z X=\xa4 X=\xc0\xaf X=\xc1\xbf\r\n",
                    "address@7= bad-?@12 bad-?@17 bad-?@21 bad-?@26 bad-?@31 end@31"),
               MAIL(" FROM:<> X=\xe0\x9f\xbf X=\xe0\xa0\x80 X=\xed\xa0\x80 X=\xed\x9f\xbf\r\n",
                    "address@7= bad-?@14 ?@20 bad-?@26 ?@32 end@32"),
               MAIL(" FROM:<> X=\xf0\x8f\xbf\xbf X=\xf4\x90\x80\x80 X=\xf4\x8f\xbf\xbf X=\xf5\x80\x80\x80 X=\xe4\xbe\r\n",
                    "address@7= bad-?@15 bad-?@22 ?@29 bad-?@36 bad-?@41 end@41"));
}

TEST(parameters_of_the_other_command)
{
    CHECK_ROWS(MAIL(" FROM:<> NOTIFY=NEVER ORCPT=rfc822;a\r\n", "address@7= bad-NOTIFY@21 bad-ORCPT@36 end@36"),
               RCPT(" TO:<a> SIZE=1 BODY=7BIT SMTPUTF8 RET=FULL ENVID=x AUTH=<> REQUIRETLS BY=1;N HOLDFOR=1 MT-PRIORITY=1\r\n",
                    "address@6=a bad-SIZE@14 bad-BODY@24 bad-SMTPUTF8@33 bad-RET@42 bad-ENVID@50 bad-AUTH@58 bad-REQUIRETLS@69 "
                    "bad-BY@76 bad-HOLDFOR@86 bad-MT-PRIORITY@100 end@100"),
               RCPT(" TO:<a> HOLDUNTIL=2026-01-02T03:04:05Z\r\n", "address@6=a bad-HOLDUNTIL@38 end@38"));
}

TEST(parameters_given_twice)
{
    CHECK_ROWS(MAIL(" FROM:<> SIZE=1 size=1 SIZE=2\r\n", "address@7= SIZE@15 bad-SIZE@22 bad-SIZE@29 end@29"),
               MAIL(" FROM:<> SIZE=x SIZE=1\r\n", "address@7= bad-SIZE@15 bad-SIZE@22 end@22"),
               MAIL(" FROM:<> X=1 X=1\r\n", "address@7= ?@12 ?@16 end@16"),
               MAIL(" FROM:<> MT-PRIORITY=1 MT-PRIORITY=1\r\n", "address@7= MT-PRIORITY@22 bad-MT-PRIORITY@36 end@36"));
}

TEST(parameters_without_their_value)
{
    CHECK_ROWS(MAIL(" FROM:<> SIZE\r\n", "address@7= bad-SIZE@13 end@13"),
               MAIL(" FROM:<> SIZE=\r\n", "address@7= bad-SIZE@14 end@14"),
               MAIL(" FROM:<> BODY RET ENVID AUTH BY\n",
                    "address@7= bad-BODY@13 bad-RET@17 bad-ENVID@23 bad-AUTH@28 bad-BY@31 end@31"),
               MAIL(" FROM:<> BODY= RET= ENVID= AUTH= BY=\n",
                    "address@7= bad-BODY@14 bad-RET@19 bad-ENVID@26 bad-AUTH@32 bad-BY@36 end@36"),
               MAIL(" FROM:<> HOLDFOR HOLDUNTIL MT-PRIORITY\n",
                    "address@7= bad-HOLDFOR@16 bad-HOLDUNTIL@26 bad-MT-PRIORITY@38 end@38"),
               RCPT(" TO:<> NOTIFY ORCPT\n", "address@5= bad-NOTIFY@13 bad-ORCPT@19 end@19"),
               MAIL(" FROM:<> SMTPUTF8=1 REQUIRETLS=\n", "address@7= bad-SMTPUTF8@19 bad-REQUIRETLS@31 end@31"));
}

static uint64_t size_told(const char *text)
{
    struct row row = { .command = 'M', .text = text, .len = strlen(text) };
    static struct feeding feeding;
    harness_row("%s", text);
    begin(&feeding, &row);
    feed(&feeding, 0, row.len);
    CHECK(feeding.ended);
    return feeding.path.size;
}

TEST(values_of_size)
{
    CHECK_EQUAL(size_told(" FROM:<> SIZE=0\r\n"), 0);
    CHECK_EQUAL(size_told(" FROM:<> SIZE=1000000 HOLDFOR=7\r\n"), 1000000);
    CHECK_EQUAL(size_told(" FROM:<> HOLDFOR=7 SIZE=1\r\n"), 1);
    CHECK_EQUAL(size_told(" FROM:<> SIZE=5 SIZE=1000000\r\n"), 5);
    CHECK_EQUAL(size_told(" FROM:<> SIZE=12x\r\n"), 0);
    CHECK_EQUAL(size_told(" FROM:<> SIZE=18446744073709551614\r\n"), UINT64_MAX - 1);
    CHECK_EQUAL(size_told(" FROM:<> SIZE=18446744073709551615\r\n"), UINT64_MAX);
    CHECK_EQUAL(size_told(" FROM:<> SIZE=18446744073709551616\r\n"), UINT64_MAX);
    CHECK_EQUAL(size_told(" FROM:<> SIZE=99999999999999999999\r\n"), UINT64_MAX);
    CHECK_EQUAL(size_told(" FROM:<> SIZE=000000000000000000001\r\n"), 0);
}

/* ---- every value against a regular expression ---- */

#define XCHAR "([!-*,-<>-~]|\\+[0-9A-F]{2})"
#define POINT "\\\\x\\{[0-9A-Fa-f]{2,6}}"
#define UTF8 "([\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|" \
             "[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|" \
             "\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})"
#define ATOM "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
#define TWO(a, b) a "|" b "|" a "," b "|" b "," a
#define THREE(a, b, c) a "," b "," c "|" a "," c "," b "|" b "," a "," c "|" b "," c "," a "|" c "," a "," b "|" c "," b "," a

struct oracle {
    char command;
    const char *name;
    const char *pattern;        /* POSIX, whole value; letters in either case where the next is set */
    bool either_case;
    size_t longest;             /* 0: none */
    const char *samples[8];
};

static const struct oracle oracles[] = {
    { 'M', "SIZE", "[0-9]{1,20}", false, 0, { "0", "100", "12345678901234567890", "99999999999999999999" } },
    { 'M', "BODY", "7BIT|8BITMIME|BINARYMIME", true, 0, { "7BIT", "8BITMIME", "BINARYMIME", "8bitMime", "8BITMIME,BINARYMIME" } },
    { 'M', "RET", "FULL|HDRS", true, 0, { "FULL", "HDRS", "hdrs" } },
    { 'M', "ENVID", XCHAR "+", false, 100, { "QQ314159", "a+2Bb", "+00+FF", "<>", "a\\b",
      "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789" } },
    { 'R', "NOTIFY", "NEVER|" TWO("SUCCESS", "FAILURE") "|" TWO("SUCCESS", "DELAY") "|" TWO("FAILURE", "DELAY") "|"
      THREE("SUCCESS", "FAILURE", "DELAY"), true, 0,
      { "NEVER", "SUCCESS", "FAILURE,DELAY", "delay,SUCCESS,failure", "SUCCESS,NEVER", "NEVER,DELAY", "DELAY,DELAY" } },
    { 'R', "ORCPT", "([Uu][Tt][Ff]-8;(" XCHAR "|" UTF8 ")*)|(" ATOM "+;" XCHAR "*)", false, 500,
      { "rfc822;a@b", "rfc822;a+2Bb@c", "utf-8;\xc3\xa4@\xe4\xbe\x8b.x", "x400;/S=a/", "utf;a", "utf-88;a" } },
    { 'M', "AUTH", XCHAR "+", false, 0, { "<>", "e+3Dmc2@example.com", "a@b" } },
    { 'M', "BY", "(\\+?0*[1-9][0-9]*;[NRnr]|[+-]?[0-9]+;[Nn])[Tt]?", false, 0,
      { "120;R", "-10;NT", "+123456789;rt", "0;N", "-0;n", "+00;R", "-7;R" } },
    { 'M', "HOLDFOR", "[0-9]{1,9}", false, 0, { "0", "999999999", "1234567890" } },
    { 'M', "HOLDUNTIL", "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})", true, 0,
      { "2026-11-22T16:26:22Z", "2026-11-22t16:26:22.123456z", "2026-11-22T16:26:22+01:00", "2026-11-22T16:26:22.5-01:30" } },
    { 'M', "MT-PRIORITY", "0|-?[1-9]", false, 0, { "0", "9", "-9", "-0", "5" } },
    { 'M', "X-OTHER", "([!-<>-~]|" UTF8 ")+", false, 0, { "abc", "a+b;c", "\xc3\xa4", "\xf0\x9f\x93\xa7!", "<>" } },
};

/* What a regular expression cannot say well: how long, and nine digits at most in BY. */
static bool wanted_valid(const struct oracle *oracle, const regex_t *compiled, const char *value)
{
    if (oracle->longest && strlen(value) > oracle->longest)
        return false;
    if (strcmp(oracle->name, "BY") == 0 && strspn(value + strspn(value, "+-"), "0123456789") > 9)
        return false;
    return regexec(compiled, value, 0, NULL, 0) == 0;
}

static bool found_valid(const struct oracle *oracle, const char *value, size_t piece)
{
    static char text[1024];
    static struct feeding feeding;
    int len = snprintf(text, sizeof text, " %s<a> %s=%s\r\n", oracle->command == 'M' ? "FROM:" : "TO:", oracle->name, value);
    CHECK(len > 0 && (size_t)len < sizeof text);
    struct row row = { .command = oracle->command, .text = text, .len = (size_t)len };
    begin(&feeding, &row);
    for (size_t at = 0; at < row.len; at += piece)
        feed(&feeding, at, at + piece < row.len ? at + piece : row.len);
    CHECK(feeding.ended);
    if (strcmp(oracle->name, "X-OTHER") != 0)
        CHECK(feeding.path.parameter != PARAMETER_UNKNOWN);
    return feeding.path.valid;
}

static void mutate(struct dice *dice, char *value)
{
    static const char octets[] = "0123456789+-;,.:=<>\\{}xXTtZNRrABFaf!~ |\xc3\xa4\xe4\xbe\x8b\xf0\x9f\xed\xa0\x7f\x01";
    for (uint32_t times = dice_below(dice, 4); times; times--) {
        size_t len = strlen(value), at = dice_below(dice, (uint32_t)len + 1);
        char octet = octets[dice_below(dice, sizeof octets - 1)];
        uint32_t how = octet == ' ' ? 0 : dice_below(dice, 4); /* a blank would end the value */
        if (how == 0 && at < len)
            memmove(value + at, value + at + 1, len - at);
        else if (how == 1 && at < len)
            value[at] = octet;
        else if (how > 1) {
            memmove(value + at + 1, value + at, len - at + 1);
            value[at] = how == 2 || !at ? octet : value[at - 1];
        }
    }
}

static void check_oracle(const struct oracle *oracle, struct dice *dice, unsigned counts[2])
{
    char pattern[2048], value[256];
    regex_t compiled;
    unsigned samples = 0;
    while (samples < 8 && oracle->samples[samples])
        samples++;
    snprintf(pattern, sizeof pattern, "^(%s)$", oracle->pattern);
    CHECK_EQUAL(regcomp(&compiled, pattern, REG_EXTENDED | REG_NOSUB | (oracle->either_case ? REG_ICASE : 0)), 0);
    for (unsigned i = 0; i < 3000; i++) {
        snprintf(value, sizeof value, "%s", oracle->samples[i % samples]);
        if (i >= samples)
            mutate(dice, value);
        bool wanted = wanted_valid(oracle, &compiled, value);
        harness_row("%s=%s", oracle->name, value);
        CHECK_EQUAL(found_valid(oracle, value, 1024), wanted);
        CHECK_EQUAL(found_valid(oracle, value, 1 + dice_below(dice, 3)), wanted);
        counts[wanted]++;
    }
    regfree(&compiled);
}

TEST(values_as_regular_expressions_have_them)
{
    struct dice dice = { 4321 };
    for (size_t i = 0; i < sizeof oracles / sizeof *oracles; i++) {
        unsigned counts[2] = { 0 };
        check_oracle(&oracles[i], &dice, counts);
        harness_row("%s: %u invalid, %u valid", oracles[i].name, counts[0], counts[1]);
        CHECK(counts[0] > 200 && counts[1] > 200);
    }
}

TEST(code_points_in_orcpt)
{
    CHECK_ROWS(RCPT(" TO:<a> ORCPT=utf-8;\\x{E4}@b\r\n", "address@6=a ORCPT@28 end@28"),
               RCPT(" TO:<a> ORCPT=UTF-8;a\\x{10ffff}\r\n", "address@6=a ORCPT@31 end@31"),
               RCPT(" TO:<a> ORCPT=utf-8;\\x{1}\r\n", "address@6=a bad-ORCPT@25 end@25"),
               RCPT(" TO:<a> ORCPT=utf-8;\\x{1234567}\r\n", "address@6=a bad-ORCPT@31 end@31"),
               RCPT(" TO:<a> ORCPT=utf-8;\\xE4}\r\n", "address@6=a bad-ORCPT@25 end@25"),
               RCPT(" TO:<a> ORCPT=utf-8;\\x{E4\r\n", "address@6=a bad-ORCPT@25 end@25"),
               RCPT(" TO:<a> ORCPT=utf-8;a\\\r\n", "address@6=a bad-ORCPT@22 end@22"),
               RCPT(" TO:<a> ORCPT=utf-8;\\x{G4}\r\n", "address@6=a bad-ORCPT@26 end@26"),
               RCPT(" TO:<a> ORCPT=utf-8;+\xc3\xa4\r\n", "address@6=a bad-ORCPT@23 end@23"),
               RCPT(" TO:<a> ORCPT=utf-8;+4\\x{E4}\r\n", "address@6=a bad-ORCPT@28 end@28"),
               RCPT(" TO:<a> ORCPT=utf-8;+\xc3\xa4" "41\r\n", "address@6=a bad-ORCPT@25 end@25"),
               RCPT(" TO:<a> ORCPT=rfc822;\\x{1}\r\n", "address@6=a ORCPT@26 end@26"),
               RCPT(" TO:<a> ORCPT=rfc822;\xc3\xa4\r\n", "address@6=a bad-ORCPT@23 end@23"),
               RCPT(" TO:<a> ORCPT=utf-;\xc3\xa4\r\n", "address@6=a bad-ORCPT@21 end@21"),
               RCPT(" TO:<a> ORCPT=rfc822;\r\n", "address@6=a ORCPT@21 end@21"),
               RCPT(" TO:<a> ORCPT=;a\r\n", "address@6=a bad-ORCPT@16 end@16"));
}

/* Returns whether a value of `len` octets behind NAME= is valid. */
static bool valid_of_length(const struct oracle *oracle, const char *begins, size_t len)
{
    static char value[600];
    CHECK(len < sizeof value);
    memset(value, 'a', len);
    memcpy(value, begins, strlen(begins));
    value[len] = 0;
    harness_row("%s of %zu octets", oracle->name, len);
    return found_valid(oracle, value, 7);
}

TEST(lengths_of_values)
{
    const struct oracle envid = { .command = 'M', .name = "ENVID" }, orcpt = { .command = 'R', .name = "ORCPT" };
    for (size_t len = 1; len < 599; len++) {
        CHECK_EQUAL(valid_of_length(&envid, "", len), len <= 100);
        if (len >= 7)
            CHECK_EQUAL(valid_of_length(&orcpt, "rfc822;", len), len <= 500);
    }
}

TEST(each_value_has_a_length_of_its_own)
{
    CHECK_ROWS(MAIL(" FROM:<> AUTH=0123456789012345678901234567890123456789012345678901234567890123456789 "
                    "ENVID=0123456789012345678901234567890123456789\r\n", "address@7= AUTH@84 ENVID@131 end@131"));
}

/* ---- random lines against a reader of whole lines ---- */

struct reading {                /* of one line */
    size_t at;                  /* where PATH_ADDRESS is said */
    uint32_t length;
    unsigned specials;          /* up to there */
};

/* RFC 5321, 4.1.2 as lenient servers read it, without state: `text` begins behind "FROM:" and ends with a line end. */
static struct reading read_whole(const char *text, size_t len)
{
    size_t from = 0, at;
    bool quoted = false, escaped = false, special;
    struct reading reading = { 0 };
    while (text[from] == ' ')
        from++;
    bool angle = text[from] == '<';
    from += angle;
    for (at = from; at < len && text[at] != '\r'; at++) {
        char octet = text[at];
        if (!quoted && !escaped && (angle ? octet == '>' : octet == ' '))
            break;
        special = octet == '|' || octet == '`' || octet == 0 || (!quoted && (octet == '<' || octet == '>'));
        reading.specials += special;
        quoted ^= octet == '"' && !escaped;
        escaped = octet == '\\' && !escaped;
    }
    reading.at = at;
    reading.length = (uint32_t)(at - from);
    return reading;
}

static void check_reading(const char *said, size_t len, const struct reading *reading)
{
    char wanted[32];
    unsigned specials = 0;
    const char *address = strstr(said, "address@");
    snprintf(wanted, sizeof wanted, "address@%zu=", reading->at);
    CHECK(address != NULL);
    CHECK(strncmp(address, wanted, strlen(wanted)) == 0);
    for (const char *at = said; (at = strstr(at, "special@")) && at < address; at++)
        specials++;
    CHECK_EQUAL(specials, reading->specials);
}

TEST(random_lines)
{
    static const char octets[] = "aab@<>\"\\ |`\0:=,SIZE1;";
    static struct feeding feeding;
    struct dice dice = { 77 };
    for (unsigned number = 0; number < 6000; number++) {
        char text[64] = " FROM:", first[sizeof feeding.trace.said];
        size_t len = 6 + dice_below(&dice, 24);
        for (size_t i = 6; i < len; i++)
            text[i] = octets[dice_below(&dice, sizeof octets - 1)];
        if (len > 6 && dice_below(&dice, 2))
            text[6] = '<';
        memcpy(text + len, "\r\n", 2);
        struct row row = { .command = 'M', .text = text, .len = len + 2, .said = first };
        struct reading reading = read_whole(text + 6, len + 2 - 6);
        reading.at += 6;
        harness_row("line %u: %s", number, text);
        begin(&feeding, &row);
        feed(&feeding, 0, row.len);
        CHECK(feeding.ended);
        CHECK_EQUAL(feeding.path.length, reading.length);
        strcpy(first, said(&feeding));
        check_reading(first, row.len, &reading);
        feed_all_ways(&row);
    }
}

TEST(a_line_as_long_as_any)
{
    static uint8_t text[NQ_COMMAND_LINE_MAX];
    static const size_t pieces[] = { 1, 1448, NQ_COMMAND_LINE_MAX };
    for (size_t i = 0; i < 3; i++) {
        struct nq_path path;
        enum nq_path_said told = PATH_NOTHING;
        path_begin(&path, false);
        memset(text, 'a', sizeof text);
        memcpy(text, " TO:", 4);
        text[sizeof text - 1] = '\n';
        for (size_t from = 0; from < sizeof text; from += pieces[i]) {
            size_t to = from + pieces[i] < sizeof text ? from + pieces[i] : sizeof text;
            const uint8_t *at = text + from;
            CHECK_EQUAL(told, PATH_NOTHING);
            told = path_take(&path, &at, text + to);
        }
        CHECK_EQUAL(told, PATH_ADDRESS);
        CHECK_EQUAL(path.length, sizeof text - 5);
    }
}
