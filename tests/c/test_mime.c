/*
 * test_mime.c - header fields and parts of messages: each row is fed whole, cut in two at every place, octet by octet, and each
 * time with its last octet at the end of a page. What is said, with which values, and up to which octet, must be the same.
 */
#include <stdarg.h>
#include <stdio.h>

#include "harness.h"
#include "nq.h"

/* ---- regular expressions: 0 ends in .exe, 1 has evil in it, 2 is application/zip ---- */

enum expects { ENDS_IN, HOLDS, IS };

struct table {
    uint8_t class_of[256];
    uint16_t next[32 * 256];
    uint8_t accepts[32];
    struct nq_regex regex;
};

/* How much of `text` ends what is its first `matched` octets and `octet` behind them (Knuth, Morris, Pratt; the slow way). */
static uint16_t overlap(const char *text, size_t matched, uint8_t octet)
{
    if (matched > strlen(text))
        return 0;
    size_t len = matched < strlen(text) ? matched + 1 : matched;
    for (; len; len--) {
        bool fits = (uint8_t)text[len - 1] == octet;
        for (size_t i = 0; fits && i + 1 < len; i++)
            fits = text[i] == text[matched + 1 - len + i];
        if (fits)
            break;
    }
    return (uint16_t)len;
}

static const struct nq_regex *expression(struct table *table, const char *text, enum expects expects)
{
    size_t len = strlen(text), dead = len + 1;
    char error[NQ_ERROR_MAX];
    for (unsigned octet = 0; octet < 256; octet++) {
        table->class_of[octet] = (uint8_t)octet;
        for (size_t state = 0; state <= dead; state++) {
            bool goes_on = state < len && (uint8_t)text[state] == octet;
            uint16_t *next = &table->next[state * 256 + octet];
            if (expects == IS)
                *next = (uint16_t)(goes_on ? state + 1 : dead);
            else
                *next = expects == HOLDS && state == len ? (uint16_t)len : overlap(text, state, (uint8_t)octet);
        }
    }
    table->accepts[len] = expects == HOLDS ? 3 : 2;
    struct nq_regex_spec spec = { (uint32_t)len + 2, 256, table->class_of, table->next, table->accepts };
    CHECK(regex_init(&table->regex, &spec, error));
    return &table->regex;
}

static const struct nq_mime_policy *policy(void)
{
    static struct nq_mime_policy made;
    static struct table tables[3];
    if (made.filetype_count == 0)
        made = (struct nq_mime_policy){ .filetype_count = 3,
                                        .filetypes = { expression(&tables[0], ".exe", ENDS_IN),
                                                       expression(&tables[1], "evil", HOLDS),
                                                       expression(&tables[2], "application/zip", IS) } };
    return &made;
}

/* ---- how a message is fed ---- */

struct trace {
    char said[8192];
    size_t len;
    uint64_t places;            /* a digest of where each thing was said */
};

struct feeding {
    struct nq_mime mime;
    const uint8_t *octets;
    struct trace trace;
};

static __attribute__((format(printf, 2, 3))) void note(struct trace *trace, const char *format, ...)
{
    va_list arguments;
    size_t room = sizeof trace->said - trace->len;
    va_start(arguments, format);
    int written = vsnprintf(trace->said + trace->len, room, format, arguments);
    va_end(arguments);
    CHECK(written > 0 && (size_t)written < room);
    trace->len += (size_t)written;
}

static void note_said(struct feeding *feeding, enum nq_mime_said said)
{
    static const char *const encodings[ENCODINGS] = { "?", "7bit", "8bit", "base64", "binary", "others", "quoted-printable" };
    const struct nq_mime *mime = &feeding->mime;
    switch (said) {
    case MIME_HEADER_ENDS: note(&feeding->trace, "header "); break;
    case MIME_TO_FIELD: note(&feeding->trace, "to=%u ", mime->to_fields); break;
    case MIME_ENCODING: note(&feeding->trace, "encoding=%s ", encodings[mime->encoding]); break;
    case MIME_FILENAME: note(&feeding->trace, "name=%u ", mime->filename_length); break;
    case MIME_FILETYPE:
        CHECK(mime->filetypes);
        note(&feeding->trace, "type=%s%s%s ", mime->filetypes & 1 ? "0" : "", mime->filetypes & 2 ? "1" : "",
             mime->filetypes & 4 ? "2" : "");
        break;
    default: CHECK(!"something that is not said");
    }
}

static void begin(struct feeding *feeding, const void *octets)
{
    memset(feeding, 0xa5, sizeof *feeding);
    feeding->octets = octets;
    feeding->trace.len = 0;
    feeding->trace.places = 0;
    mime_begin(&feeding->mime);
}

static void feed(struct feeding *feeding, size_t from, size_t to)
{
    if (from == to)
        return;
    const uint8_t *piece = guarded(feeding->octets + from, to - from), *at = piece, *end = piece + (to - from);
    for (unsigned quiet = 0; at < end; quiet++) {
        const uint8_t *before = at;
        bool was_in_header = feeding->mime.in_header;
        enum nq_mime_said said = mime_take(&feeding->mime, policy(), &at, end);
        size_t place = from + (size_t)(at - piece);
        CHECK(at >= before && at <= end && quiet < 16);
        if (said == MIME_NOTHING) {
            CHECK(at == end);
            break;
        }
        if (at > before)
            quiet = 0;
        if (said == MIME_HEADER_ENDS) {
            CHECK(was_in_header && !feeding->mime.in_header);
            CHECK(feeding->octets[place - 2] == '\r' && feeding->octets[place - 1] == '\n');
        }
        feeding->trace.places = (feeding->trace.places ^ place) * 0x9e3779b97f4a7c15u;
        note_said(feeding, said);
    }
    CHECK_EQUAL(feeding->mime.due, 0);
}

/* What was said of the whole message, one blank between two things. */
static const char *finish(struct feeding *feeding)
{
    enum nq_mime_said said = mime_end(&feeding->mime, policy());
    if (said)
        note(&feeding->trace, "| ");
    for (; said; said = mime_end(&feeding->mime, policy()))
        note_said(feeding, said);
    feeding->trace.said[feeding->trace.len ? feeding->trace.len - 1 : 0] = 0;
    return feeding->trace.said;
}

struct row {
    const char *octets;
    size_t len;
    const char *said;
};

static void feed_all_ways(const struct row *row)
{
    static struct feeding feeding;
    harness_row("%s", row->octets);
    begin(&feeding, row->octets);
    feed(&feeding, 0, row->len);
    uint64_t places = feeding.trace.places;
    CHECK_TEXT(finish(&feeding), row->said);
    for (size_t cut = 1; cut < row->len; cut++) {
        harness_row("cut at %zu of %zu: %s", cut, row->len, row->octets);
        begin(&feeding, row->octets);
        feed(&feeding, 0, cut);
        feed(&feeding, cut, row->len);
        CHECK_EQUAL(feeding.trace.places, places);
        CHECK_TEXT(finish(&feeding), row->said);
    }
    harness_row("octet by octet: %s", row->octets);
    begin(&feeding, row->octets);
    for (size_t i = 0; i < row->len; i++)
        feed(&feeding, i, i + 1);
    CHECK_EQUAL(feeding.trace.places, places);
    CHECK_TEXT(finish(&feeding), row->said);
}

#define ROW(text, wanted) { text, sizeof(text) - 1, wanted }
#define TYPE(value, wanted) ROW("Content-Type: " value "\r\n\r\n", wanted " header")
#define FILE_NAME(value, wanted) ROW("Content-Disposition: attachment; " value "\r\n\r\n", wanted " header")
#define PART(value) "Content-Type: x/y; name=" value "\r\n"     /* says name= the length of value */
#define CHECK_ROWS(...)                                         \
    do {                                                        \
        static const struct row rows[] = { __VA_ARGS__ };       \
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) \
            feed_all_ways(&rows[i]);                            \
    } while (0)

/* ---- the header ---- */

TEST(headers_end_at_an_empty_line)
{
    CHECK_ROWS(ROW("\r\n", "header"),
               ROW("Subject: a\r\n\r\nTo: b\r\n\r\n", "header"),
               ROW("Subject: a\r\n \r\nTo: b\r\n\r\n", "to=1 header"),
               ROW("Subject: a\r\nTo: b", "to=1"),
               ROW("", ""));
}

TEST(newlines_that_receivers_read_differently)
{
    CHECK_ROWS(ROW("Subject: a\nTo: b\n\r\n", "to=1 header"),
               ROW("Subject: a\n\nTo: b\r\n\r\n", "to=1 header"),
               ROW("Subject: a\r\n\nTo: b\r\n\r\n", "to=1 header"),
               ROW("Subject: a\r\n\r\r\nTo: b\r\n\r\n", "to=1 header"),
               ROW("Subject: a\rTo: b\r\n\r\n", "header"),
               ROW("Subject: a\r\n\rTo: b\r\n\r\n", "to=1 header"),
               ROW("Content-Type: x/y; boundary=b\r\n\r--b\r\nTo: a\r\n\r\n\r--b\r\nContent-Type: x/y; name=no\r\n", "to=1 header"),
               ROW("T\ro:\r b\r\n\r\n", "to=1 header"),
               ROW("Content-Disposition: x; filename=\"a\rb\"\r\n\r\n", "name=2 header"),
               ROW("T\0o: b\r\n\r\n", "to=1 header"),
               ROW("\0To: b\r\n\r\n", "to=1 header"));
}

TEST(names_of_fields)
{
    CHECK_ROWS(ROW("tO : b\r\n\r\n", "to=1 header"),
               ROW("To\t \t:b\r\n\r\n", "to=1 header"),
               ROW("To\r\n : b\r\n\r\n", "to=1 header"),
               ROW("To b: c\r\n\r\n", "header"),
               ROW("Tom: b\r\n\r\n", "header"),
               ROW("T: b\r\n\r\n", "header"),
               ROW(": b\r\n\r\n", "header"),
               ROW("X-To: b\r\n To: c\r\n\r\n", "header"),
               ROW(" To: b\r\n\r\n", "to=1 header"),
               ROW("no field\r\nTo: b\r\n\r\n", "to=1 header"),
               ROW("content-transfer-encoding-and-more: 7bit\r\nTo: b\r\n\r\n", "to=1 header"),
               ROW("--\r\n-To: a\r\nTo: b\r\n\r\n", "to=1 header"),
               ROW("-\nTo: b\r\n\r\n", "to=1 header"));
}

TEST(dots_that_stuff_lines)
{
    CHECK_ROWS(ROW(".To: b\r\n\r\n", "to=1 header"),
               ROW("..To: b\r\n\r\n", "header"),
               ROW("To: a\r\n. , b\r\n\r\n", "to=1 to=2 header"),
               ROW("X: a\r\n.\r\nTo: b\r\n\r\n", "to=1 header"),
               ROW("X: a\r\n.\nTo: b\r\n\r\n", "to=1 header"),
               ROW("Content-Type: multipart/x; boundary=b\r\n\r\nx\r\n.--b\r\n." PART("abc") "\r\n", "header name=3"),
               ROW("Content-Type: multipart/x; boundary=b\r\n\r\n..--b\r\n" PART("abc") "\r\n", "header"));
}

TEST(dots_in_chunks_mean_nothing)
{
    static struct feeding feeding;
    static const char text[] = ".To: a\r\nContent-Type: multipart/x; boundary=b\r\n\r\n.--b\r\n" PART("no") "\r\n--b\r\n"
                               PART("abc") "\r\n";
    for (size_t cut = 0; cut < sizeof text; cut++) {
        harness_row("cut at %zu", cut);
        begin(&feeding, text);
        feeding.mime.counted = true;
        feed(&feeding, 0, cut);
        feed(&feeding, cut, sizeof text - 1);
        CHECK_TEXT(finish(&feeding), "header name=3");
    }
}

/* ---- To ---- */

#define TO(value, wanted) ROW("To:" value "\r\n\r\n", wanted " header")

TEST(mailboxes)
{
    CHECK_ROWS(TO("", "to=1"),
               TO(" a@b", "to=1"),
               TO(" a@b, c@d", "to=1 to=2"),
               TO(" a,b,c", "to=1 to=2 to=3"),
               TO(" ,, a , ,b,", "to=1 to=2"),
               TO(" \"a, b\" <c@d>, e", "to=1 to=2"),
               TO(" \"a\\\", b\" <c@d>, e", "to=1 to=2"),
               TO(" a (b, c (d, e), f), g", "to=1 to=2"),
               TO(" (b\\), c), g, h", "to=1 to=2"),
               TO(" (a), (b), (c)", "to=1"),
               TO(" <@a,@b:c@d>, e", "to=1 to=2"),
               TO(" <a@b, c@d", "to=1 to=2"),
               TO(" <@a,@b:c@d>,<e>,<f>", "to=1 to=2 to=3"),
               TO(" a@[IPv6:1,2], b", "to=1 to=2"),
               TO(" a@[1>,2], b", "to=1 to=2"),
               TO(" a; b", "to=1 to=2"),
               TO(" a,\r\n b,\r\n\tc", "to=1 to=2 to=3"),
               ROW("To: a\r\nTo: b, c\r\nCc: d, e\r\nTo:\r\n\r\n", "to=1 to=2 to=3 to=4 header"));
}

TEST(groups_of_mailboxes)
{
    CHECK_ROWS(TO(" g: a, b;", "to=1 to=2"),
               TO(" g:;", "to=1"),
               TO(" undisclosed-recipients:;", "to=1"),
               TO(" a, g: b, c;, d", "to=1 to=2 to=3 to=4"),
               TO(" \"g, h\": a, b;", "to=1 to=2"),
               TO(" a, g:;", "to=1"));
}

TEST(only_the_message_has_recipients)
{
    CHECK_ROWS(ROW("Content-Type: message/rfc822\r\n\r\nTo: a, b\r\n\r\n", "header"),
               ROW("Content-Type: multipart/x; boundary=b\r\n\r\n--b\r\nTo: a, b\r\n\r\n", "header"));
}

/* ---- Content-Transfer-Encoding ---- */

#define ENCODING(value, wanted) ROW("Content-Transfer-Encoding:" value "\r\n\r\n", "encoding=" wanted " header")

TEST(encodings)
{
    CHECK_ROWS(ENCODING("7bit", "7bit"), ENCODING(" 8BIT", "8bit"), ENCODING(" Base64 ", "base64"),
               ENCODING(" binary", "binary"), ENCODING("\tQuoted-Printable", "quoted-printable"),
               ENCODING(" (x(y)\\)) 7bit (z)", "7bit"), ENCODING(" base(x)64", "base64"), ENCODING("\r\n base64;", "base64"),
               ENCODING(" x-uuencode", "others"), ENCODING("", "others"), ENCODING(" 7bit 8bit", "others"),
               ENCODING(" 7bits", "others"), ENCODING(" 7bi", "others"), ENCODING(" quoted-printable-and-something", "others"),
               ENCODING(" \"7bit\"", "others"), ENCODING(" (", "others"), ENCODING(" 7bit; x", "others"));
}

TEST(encodings_of_parts)
{
    CHECK_ROWS(ROW("Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64\r\n"
                   "Content-Type: multipart/x; boundary=b\r\n\r\n--b\r\nContent-transfer-encoding: 8bit\r\n\r\n"
                   "Content-Transfer-Encoding: binary\r\n--b--\r\nContent-Transfer-Encoding: binary\r\n",
                   "encoding=7bit encoding=base64 header encoding=8bit"),
               ROW("Content-Transfer-Encoding: 7bit", "| encoding=7bit"));
}

/* ---- media types ---- */

TEST(media_types)
{
    CHECK_ROWS(TYPE("application/zip", "type=2"), TYPE("Application/ZIP; x=y", "type=2"),
               TYPE("application / zip (x)", "type=2"), TYPE("(x)application/(y)zip;", "type=2"),
               TYPE("application/evil.exe", "type=01"), TYPE("application/zip name=abc", "type=2 name=3"),
               TYPE("application/zip\r\n name=abc", "type=2 name=3"), TYPE("\"application/zip\"", "type=2"),
               ROW("Content-Type: application/zips\r\n\r\n", "header"), ROW("Content-Type:\r\n\r\n", "header"),
               ROW("Content-Type: ;\r\n\r\n", "header"),
               ROW("Content-Type: application/zip\r\nContent-Type: text/evil\r\n\r\n", "type=2 type=1 header"));
}

/* ---- file names ---- */

TEST(plain_names)
{
    CHECK_ROWS(FILE_NAME("filename=abc", "name=3"), FILE_NAME("filename=abc.exe", "type=0 name=7"),
               FILE_NAME("FileName = \"abc.exe\"", "type=0 name=7"), FILE_NAME("filename=\"\"", "name=0"),
               FILE_NAME("filename=", "name=0"), FILE_NAME("filename=abc; x=y; z", "name=3"),
               FILE_NAME("x=y;filename=abc", "name=3"), FILE_NAME("x=\"; filename=abc\"; filename=d", "name=1"),
               FILE_NAME("filename=a.exe; filename=evil; name=c", "type=0 name=5 type=1 name=4 name=1"),
               FILE_NAME("filename(c)=abc", "name=3"), ROW("Content-Disposition: xfilename=abc; filename\r\n\r\n", "header"),
               ROW("Content-Disposition: filename=abc\r\n\r\n", "name=3 header"),
               ROW("Content-Disposition: attachment; filename=abc", "| name=3"),
               TYPE("x/y; name=abc.exe", "type=0 name=7"), TYPE("x/y; filename=abc", "name=3"));
}

TEST(names_in_quotes)
{
    CHECK_ROWS(FILE_NAME("filename=\"a;b\\\"c\\\\\"; x", "name=6"), FILE_NAME("filename=\"a.ex\\e\"", "type=0 name=5"),
               FILE_NAME("filename=\"a.exe", "type=0 name=5"), FILE_NAME("filename=\"a.exe \"", "type=0 name=6"),
               FILE_NAME("filename=\"a.exe ", "type=0 name=6"),
               FILE_NAME("filename=\"a.exe b\"", "name=7"), FILE_NAME("filename=\"a\r\n b\"", "name=3"),
               FILE_NAME("filename=\"a\" filename=\"bc\"", "name=1 name=2"), FILE_NAME("filename=\"a\".exe", "type=0 name=5"),
               FILE_NAME("filename=\"a.exe\"x", "type=0 name=6"), FILE_NAME("filename=\"a(b\"", "name=3"),
               FILE_NAME("filename=\"a.exe\0.txt\"", "type=0 name=10"), FILE_NAME("\"filename=a.exe", "type=0 name=5"));
}

TEST(names_that_should_have_quotes)
{
    CHECK_ROWS(FILE_NAME("filename=my file.exe ; x=y", "type=0 name=11"), FILE_NAME("filename=a.exe name", "type=0 name=10"),
               FILE_NAME("filename=a.exe (x)", "type=0 name=8"), FILE_NAME("filename=a(1).exe", "type=0 name=8"),
               FILE_NAME("filename=a(b.exe", "type=0 name=7"), FILE_NAME("filename=(x)a.exe", "type=0 name=8"),
               FILE_NAME("filename=a\"b\"c", "name=3"), FILE_NAME("filename=a\r\n b", "name=3"));
}

TEST(comments_that_hide_parameters)
{
    CHECK_ROWS(FILE_NAME("(x; filename=a.exe", "type=0 name=5"), FILE_NAME("(x); filename=a.exe", "type=0 name=5"),
               FILE_NAME("(x;y) filename=ab", "name=2"),
               ROW("Content-Type: x/y (; name=ab\r\n\r\n", "name=2 header"));
}

TEST(encoded_words)
{
    CHECK_ROWS(FILE_NAME("filename=\"=?utf-8?B?ZXZpbC5leGU=?=\"", "type=01 name=8"),
               FILE_NAME("filename==?utf-8?b?ZXZpbC5leGU?=", "type=01 name=8"),
               FILE_NAME("filename=\"=?x?q?=65vil=2Ee_x?= y\"", "type=1 name=10"),
               FILE_NAME("filename=\"=?x?Q?ev?= =?x?B?aWw=?=\"", "type=1 name=4"),
               FILE_NAME("filename=\"=?x?Q?a?=\r\n =?x?Q?.exe?=\"", "type=0 name=5"),
               FILE_NAME("filename=\"=?x?Q?a?= b =?x?Q?c?=\"", "name=5"),
               FILE_NAME("filename=\"=?x?Q?a?==?x?Q?b?=\"", "name=2"),
               FILE_NAME("filename=\"x =?x?Q?a?=\"", "name=3"),
               FILE_NAME("filename=\"=?x?B?ZXY=?= =?x?B?aWw=?=\"", "type=1 name=4"),
               FILE_NAME("filename=\"=?x?B?Z X\tZ*pbA==?=\"", "type=1 name=4"),
               FILE_NAME("filename=\"=?x?Q?a=zb=4?=\"", "name=6"),
               FILE_NAME("filename=\"=?utf-16be?B?AGEALgBlAHgAZQ==?=\"", "type=0 name=10"),
               FILE_NAME("filename=\"=?x?Q?a?b?=\"", "name=3"));
}

TEST(what_is_no_encoded_word)
{
    CHECK_ROWS(FILE_NAME("filename=\"a=b\"", "name=3"), FILE_NAME("filename=\"a==b=\"", "name=5"),
               FILE_NAME("filename=\"=?a.exe\"", "type=0 name=7"), FILE_NAME("filename=\"=?a b.exe\"", "type=0 name=9"),
               FILE_NAME("filename=\"=?a?x?evil\"", "type=1 name=10"), FILE_NAME("filename=\"=?a?qx.exe\"", "type=0 name=10"),
               FILE_NAME("filename=\"=?a?q?b.exe\"", "type=0 name=5"), FILE_NAME("filename=\"=?a?b?xx.exe\"", "type=0 name=3"),
               FILE_NAME("filename=\"= =?x?q?a?=\"", "name=3"));
}

TEST(extended_names)
{
    CHECK_ROWS(FILE_NAME("filename*=utf-8''a%20b%2Eexe", "type=0 name=7"), FILE_NAME("filename*=utf-8'en'%c3%a4", "name=2"),
               FILE_NAME("filename*=''ev%69l", "type=1 name=4"), FILE_NAME("filename*=a%2Eexe", "type=0 name=5"),
               FILE_NAME("filename*=\"x''a%2eexe\"", "type=0 name=5"), FILE_NAME("filename*=x''a%zz%4%", "name=7"),
               FILE_NAME("filename*=x''a'b'c", "name=5"), FILE_NAME("filename*=it's.exe", "type=0 name=8"),
               FILE_NAME("filename*=utf-8''application/zip", "type=2 name=15"),
               FILE_NAME("filename*=\"x' 'a\"", "name=1"), FILE_NAME("filename*=x''a%00b", "name=3"),
               FILE_NAME("filename*=x''a.exe%00b", "type=0 name=7"),
               FILE_NAME("filename*=utf-16le''a%00.%00e%00x%00e%00", "type=0 name=10"),
               FILE_NAME("filename=a; filename*=x''bc", "name=1 name=2"), FILE_NAME("filename=a%20b", "name=5"));
}

TEST(continued_names)
{
    CHECK_ROWS(FILE_NAME("filename*0=a; filename*1=\"b.exe\"", "type=0 name=6"),
               FILE_NAME("filename*0*=utf-8''a%2e; filename*1=%ex; filename*2*=%65", "name=6"),
               FILE_NAME("filename*0*=utf-8''a%2e; filename*1=ex; filename*2*=%65", "type=0 name=5"),
               FILE_NAME("filename*0=ev;\r\n x=y;\r\n filename*1=il; filename=z", "name=1 type=1 name=4"),
               FILE_NAME("filename*1=.exe; filename*0=ab", "type=0 name=6"),
               FILE_NAME("filename*0=a; name*0=bcd; filename*1=.exe", "name=3 type=0 name=5"),
               FILE_NAME("filename*0=\"=?x?B?ZXZp\"; filename*1=\"bA==?=\"", "type=1 name=4"),
               FILE_NAME("filename*0=\"a \"; filename*1=b", "name=3"), FILE_NAME("filename*1*=it's'a", "name=6"),
               FILE_NAME("filename*0*=x''", "name=0"),
               FILE_NAME("filename*1=ab; filename*0*=x''c", "name=3"),
               TYPE("x/y; name*0=ab; name*1=c", "name=3"));
}

/* ---- parts ---- */

#define MULTIPART(parameters) "Content-Type: multipart/mixed; " parameters "\r\n\r\n"

TEST(parts)
{
    CHECK_ROWS(ROW(MULTIPART("boundary=b") PART("no") "\r\n--b\r\n" PART("abc") "\r\n" PART("no") "--b\r\n" PART("abcd")
                   "\r\n--b--\r\n" PART("no"), "header name=3 name=4"),
               ROW(MULTIPART("boundary=b") "--b\r\n\r\n--b\r\n--b\r\n" PART("a") "--b\r\n" PART("bc") "\r\n",
                   "header name=1 name=2"),
               ROW(MULTIPART("boundary=b") "--b \t\r\n" PART("abc") "\r\n--b-- \t\r\n" PART("no"), "header name=3"),
               ROW(MULTIPART("boundary=b") "--b--x\r\n" PART("abc") "\r\n--b-\r\n" PART("a") "\r\n--bx\r\n" PART("ab") "\r\n",
                   "header name=3 name=1 name=2"),
               ROW(MULTIPART("boundary=b") "--b--\r\n" PART("no") "\r\n--b\r\n" PART("abc") "\r\n", "header name=3"),
               ROW(MULTIPART("boundary=b") "\n--b\n" PART("abc") "\r\n", "header name=3"),
               ROW(MULTIPART("boundary=b") "--B\r\n" PART("no") "x--b\r\n" PART("no") "-b\r\n--\r\n--c--b\r\n" PART("no")
                   "-\n--b\r\n" PART("abc") "\r\n", "header name=3"));
}

TEST(delimiters_in_headers)
{
    CHECK_ROWS(ROW("Content-Type: multipart/x; boundary=b\r\n--b\r\nTo: a\r\n" PART("abc") "\r\n--b--\r\n", "to=1 name=3 header"),
               ROW("Content-Type: multipart/x; boundary=b\r\n--b--\r\nTo: a\r\n\r\n", "to=1 header"),
               ROW(MULTIPART("boundary=b") "--b\r\n--x\r\n" PART("abc") "--b\r\n\r\n", "header name=3"),
               ROW(MULTIPART("boundary=b") "--b\r\n\r--b--\r\n" PART("abc") "\r\n", "header name=3"));
}

TEST(forms_of_a_boundary)
{
#define DELIMITED(parameters, line) ROW(MULTIPART(parameters) "--" line "\r\n" PART("abc") "\r\n", "header name=3")
    CHECK_ROWS(DELIMITED("boundary=\"a b\"", "a b"), DELIMITED("boundary=\"a\\\"b\"", "a\"b"), DELIMITED("BOUNDARY = b;x", "b"),
               DELIMITED("boundary=\"b  \"", "b"), DELIMITED("boundary=b (x)", "b"),
               DELIMITED("boundary=----=_1/2:3?", "----=_1/2:3?"),
               DELIMITED("boundary*=us-ascii'en'a%20b", "a b"), DELIMITED("boundary*0=a; x=y; boundary*1=b", "ab"),
               DELIMITED("boundary*0*=''a%2D; boundary*1=b", "a-b"), DELIMITED("boundary=a; boundary=b", "a"),
               DELIMITED("boundary=a; boundary=b", "b"), DELIMITED("boundary=a; boundary=b; boundary=c", "c"),
               DELIMITED("boundary=\"\"", "x"), DELIMITED("x=y", "x"), DELIMITED("charset=\"x;y\" boundary=b", "b"),
               DELIMITED("boundary=\"b", "b"), DELIMITED("(; boundary=b", "b"),
               ROW("Content-Type: text/plain; boundary=b\r\n\r\n--b\r\n" PART("abc") "\r\n", "header name=3"),
               ROW("Content-Type: text/plain\r\nContent-Type: multipart/x; boundary=b\r\nContent-Type: multipart/x; boundary=c\r\n"
                   "\r\n--c\r\n" PART("abc") "\r\n--b\r\n" PART("ab") "\r\n", "header name=3 name=2"),
               ROW("Content-Type: text/plain\r\n\r\n--b\r\n" PART("no"), "header"),
               ROW("Content-Disposition: x; boundary=b\r\n\r\n--b\r\n" PART("no"), "header"),
               ROW(MULTIPART("boundary=bc") "--b\r\n" PART("no") "\r\n", "header"));
}

#define TEN "0123456789"
#define SEVENTY TEN TEN TEN TEN TEN TEN TEN

TEST(long_boundaries)
{
    CHECK_ROWS(ROW(MULTIPART("boundary=" SEVENTY) "--" SEVENTY "\r\n" PART("abc") "\r\n--" SEVENTY "--\r\n"
                   PART("no"), "header name=3"),
               ROW(MULTIPART("boundary=" SEVENTY "x") "--" SEVENTY "x\r\n" PART("abc") "\r\n", "header name=3"),
               ROW(MULTIPART("boundary=" SEVENTY "--") "--" SEVENTY "--\r\n" PART("abc") "\r\n", "header name=3"),
               ROW(MULTIPART("boundary=b") "--b\r\n" MULTIPART("boundary=" SEVENTY "x") "--b\r\n" MULTIPART("boundary=c")
                   "--c--\r\n" PART("no"), "header"),
               ROW(MULTIPART("boundary=" SEVENTY) "--" TEN "\r\n" PART("no"), "header"));
}

TEST(parts_in_parts)
{
    CHECK_ROWS(ROW(MULTIPART("boundary=a") "--a\r\n" MULTIPART("boundary=b") "--b\r\n" PART("x") "\r\n--b--\r\n--a\r\n" PART("xy")
                   "\r\n--b\r\n" PART("xyz") "\r\n--a--\r\n", "header name=1 name=2 name=3"),
               ROW(MULTIPART("boundary=a") "--a\r\n" MULTIPART("boundary=a1") "--a1\r\n" PART("x") "\r\n--a1\r\n" PART("xy")
                   "\r\n--a\r\n" PART("xyz") "\r\n", "header name=1 name=2 name=3"),
               ROW(MULTIPART("boundary=a1") "--a1\r\n" MULTIPART("boundary=a") "--a\r\n" PART("x") "\r\n--a1\r\n" PART("xy")
                   "\r\n--a\r\n" PART("xyz") "\r\n", "header name=1 name=2 name=3"));
}

/* What one receiver takes for a delimiter and the next for text hides no part from either. */
TEST(delimiters_that_are_none)
{
#define HIDES(text) ROW(text PART("abc") "\r\n", "header name=3")
    CHECK_ROWS(HIDES(MULTIPART("boundary=a") "--a\r\n" MULTIPART("boundary=b") "--ax\r\n\r\n--b\r\n"),
               HIDES(MULTIPART("boundary=a") "--a\r\n" MULTIPART("boundary=b") "--a--x\r\n\r\n--b\r\n"),
               HIDES(MULTIPART("boundary=f; boundary=a") "--a\r\n" MULTIPART("boundary=b") "--f\r\n\r\n--b\r\n"),
               HIDES("Content-Type: multipart/x; boundary=a\r\n" MULTIPART("boundary=f") "--a\r\n" MULTIPART("boundary=b")
                   "--f\r\n\r\n--b\r\n"),
               HIDES(MULTIPART("boundary=a") "--a\r\n" MULTIPART("boundary=b") "--a--\r\n\r\n--b\r\n"));
}

TEST(messages_in_messages)
{
    CHECK_ROWS(ROW("Content-Type: message/rfc822\r\n\r\n" PART("ab") "\r\n" PART("no"), "header name=2"),
               ROW("Content-Type: Message/Global\r\n\r\nContent-Type: message/rfc822\r\n\r\n" PART("ab") "\r\n" PART("no"),
                   "header name=2"),
               ROW(MULTIPART("boundary=a") "--a\r\nContent-Type: message/rfc822\r\n\r\n" MULTIPART("boundary=b") "--b\r\n"
                   PART("ab") "\r\n--a\r\n" PART("xyz") "\r\n--b\r\n" PART("abcd") "\r\n",
                   "header name=2 name=3 name=4"),
               ROW("Content-Type: multipart/digest; boundary=a\r\n\r\n--a\r\n\r\n" PART("ab") "\r\n" PART("no") "--a\r\n"
                   "Content-Type: text/plain\r\n\r\n" PART("no") "--a\r\n\r\n" PART("xyz") "\r\n", "header name=2 name=3"),
               ROW(MULTIPART("boundary=a") "--a\r\nContent-Type: multipart/digest; boundary=b\r\n\r\n--a\r\n"
                   MULTIPART("boundary=c") "--c\r\n\r\n" PART("no"), "header"),
               ROW(MULTIPART("boundary=a") "--a\r\n\r\n" PART("no"), "header"));
}

/* ---- depth, length, place ---- */

static char message[1 << 20];

static size_t append(size_t len, const char *format, unsigned number)
{
    int written = snprintf(message + len, sizeof message - len, format, number, number);
    CHECK(written > 0 && len + (size_t)written < sizeof message);
    return len + (size_t)written;
}

static const char *said_of_message(struct feeding *feeding, size_t len)
{
    begin(feeding, message);
    feed(feeding, 0, len);
    return finish(feeding);
}

TEST(multiparts_of_any_depth)
{
    static struct feeding feeding;
    for (unsigned depth = 1; depth < 40; depth++) {
        size_t len = 0;
        harness_row("%u deep", depth);
        for (unsigned i = 0; i < depth; i++)
            len = append(len, "Content-Type: multipart/x; boundary=b%u.\r\n\r\n--b%u.\r\n", i);
        len = append(len, PART("abc") "\r\n", 0);
        CHECK_TEXT(said_of_message(&feeding, len), "header name=3");
        for (unsigned i = depth - 1; i; i--)
            len = append(len, "--b%u.--\r\n", i - 1);
        len = append(len, "--b0.\r\n" PART("abcd") "\r\n", 0);
        CHECK_TEXT(said_of_message(&feeding, len), "header name=3 name=4");
    }
}

TEST(delimiters_wherever_they_stand)
{
    static struct feeding feeding;
    for (unsigned before = 0; before < 70; before++) {
        size_t len = append(0, MULTIPART("boundary=b"), 0), body = len;
        memset(message + len, '-', before);
        len = append(len + before, "\r\n\n- \r\n.\r\n--b\r\n" PART("abc") "\r\n", 0);
        for (size_t cut = body; cut <= len; cut++) {
            harness_row("%u octets before it, cut at %zu", before, cut);
            begin(&feeding, message);
            feed(&feeding, 0, cut);
            feed(&feeding, cut, len);
            CHECK_TEXT(finish(&feeding), "header name=3");
        }
    }
}

TEST(names_without_end)
{
    static struct feeding feeding;
    size_t len = append(0, "Content-Disposition: x; filename=\"evil", 0);
    memset(message + len, ' ', 500000);
    len = append(len + 500000, "=?x", 0);
    memset(message + len, 'x', 400000);
    len = append(len + 400000, "\"\r\n\r\n", 0);
    CHECK_TEXT(said_of_message(&feeding, len), "type=1 name=900007 header");
    len = append(0, "Content-Type: x/", 0);
    memset(message + len, 'y', 500000);
    len = append(len + 500000, "; ", 0);
    memset(message + len, '(', 1000);
    len = append(len + 1000, "; name=abc\r\n\r\n", 0);
    CHECK_TEXT(said_of_message(&feeding, len), "name=3 header");
}

TEST(bodies_of_no_interest_are_not_read)
{
    static struct feeding feeding;
    size_t len = append(0, PART("abc") "\r\n", 0);
    begin(&feeding, message);
    feed(&feeding, 0, len);
    const uint8_t *nowhere = (const uint8_t *)(uintptr_t)4096, *at = nowhere;
    CHECK_EQUAL(mime_take(&feeding.mime, policy(), &at, nowhere + 4096), MIME_NOTHING);
    CHECK(at == nowhere + 4096);
}

/* ---- messages by chance ---- */

static size_t chance_message(struct dice *dice)
{
    static const char *const fragments[] = {
        "\r\n", "\r\n", "\r\n\r\n", "\n", "\r", ".", "--", "-", "--b", "--b--", "--bc", "--b\r\n", "--bc\r\n", "To: ", "a, b",
        ":", ";", "; ",
        "Content-Type: multipart/mixed; boundary=b", "Content-Type: multipart/digest; boundary=\"bc\"",
        "Content-Type: message/rfc822",
        "Content-Type: ", "application/zip", "Content-Disposition: x; ", "\r\nContent-Disposition: x; filename=",
        "\r\nContent-Type: application/zip; name=", "\r\nContent-Disposition: filename*0*=", "filename=", "filename*=",
        "filename*0*=", "filename*1=", "name=",
        "boundary=", "boundary*0=b; ", "boundary*1=c", "\"", "\"", "\\", "(", ")", " ", "\t", " ", "=?x?Q?", "=?x?B?", "?=", "=",
        "?", "%2e", "%",
        "'", "''", "evil", ".exe", "ZXZpbA", "=65", "<", ">", "[", "@", "Content-Transfer-Encoding: ", "base64", "7bit", "x",
    };
    size_t len = 0;
    for (unsigned count = 20 + dice_below(dice, 100); count; count--) {
        const char *fragment = fragments[dice_below(dice, sizeof fragments / sizeof *fragments)];
        if (dice_below(dice, 40) == 0)
            message[len++] = (char)dice_below(dice, 256);
        memcpy(message + len, fragment, strlen(fragment));
        len += strlen(fragment);
    }
    return len;
}

TEST(messages_by_chance)
{
    static struct feeding whole, cut;
    struct dice dice = { 20459 };
    unsigned names = 0, types = 0;
    for (unsigned round = 0; round < 20000; round++) {
        size_t len = chance_message(&dice), at = 0;
        harness_row("message %u", round);
        said_of_message(&whole, len);
        names += strstr(whole.trace.said, "name=") != NULL;
        types += strstr(whole.trace.said, "type=") != NULL;
        begin(&cut, message);
        for (uint32_t most = 1 + dice_below(&dice, 30); at < len;) {
            size_t to = at + 1 + dice_below(&dice, most);
            feed(&cut, at, to < len ? to : len);
            at = to;
        }
        CHECK_TEXT(finish(&cut), whole.trace.said);
        CHECK_EQUAL(cut.trace.places, whole.trace.places);
    }
    CHECK(names > 5000 && types > 1000);
}
