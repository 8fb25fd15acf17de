/*
 * mime.c - header fields and MIME structure of a message, octet by octet (RFC 5322, 2045-2047, 2183, 2231).
 *
 * A library that builds a tree of the message (GMime) was rejected: it wants the message whole and allocates as its sender
 * pleases. Here a message costs struct nq_mime, whatever is in it.
 *
 * Receivers disagree about broken messages, and who hides a file name counts on that. Where there are two readings, the one is
 * taken in which more is seen, or both:
 * - A line ends at LF, with CR or without. A CR elsewhere in a header field is dropped, as NUL is from names.
 * - A header ends at an empty line that ends in CRLF, no sooner; boundary lines count in headers, too.
 * - A dot at a line's beginning is taken off, though the sender need not have doubled it (RFC 5321, 4.5.2); not in chunks.
 * - Any boundary parameter counts, whatever the media type; of several in one header the first and the last.
 * - A multipart without a boundary has any line that begins with two hyphens for one.
 * - A delimiter still counts behind the closing one, and behind one of a multipart around its own: whether such a line was text
 *   or a delimiter is what receivers differ in, so no boundary is forgotten before the message ends. Where there are more than
 *   are kept, any line that begins with two hyphens is a delimiter.
 * - A semicolon ends a comment in a parameter, and so may a blank end a name without quotes.
 * - A file name is tried as it stands and decoded.
 * Not followed: parts inside encoded ones, continuations of RFC 2231 that come out of order (they add up as they come), a CR
 * alone for a line's end.
 */
#include "nq.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { PLACE_LINE, PLACE_DOT, PLACE_CR, PLACE_HYPHEN, PLACE_DELIMITER, PLACE_INSIDE };
enum { FIELD_NONE, FIELD_NAMING, FIELD_TO, FIELD_ENCODING, FIELD_TYPE, FIELD_DISPOSITION };
enum { STEP_TYPE, STEP_BEFORE, STEP_BEFORE_VALUE, STEP_VALUE };
enum { TEXT_SINGLE, TEXT_NAME, TEXT_FILENAME, TEXTS, SINK_BOUNDARY = TEXTS, SINK_NONE };
enum { RAW = 1, DECODED = 2 };      /* readings of a text; the regular expressions' states are kept by reading - 1 */
enum { NO_SLOT = 0xff };
enum {                              /* what is to be said, in this order; a text's bit is DUE_TEXT << its number */
    DUE_TO = 1, DUE_ENCODING = 2, DUE_TYPE = 4, DUE_TEXT = 8, DUE_HEADER_ENDS = 64
};

_Static_assert(sizeof(struct nq_mime) <= 1200, "a message costs too much");
_Static_assert(NQ_MULTIPARTS <= 16, "a bit for each");
_Static_assert((int)TEXTS == (int)NQ_MIME_TEXTS && DUE_TEXT << TEXTS == DUE_HEADER_ENDS, "a bit for each");

static bool is_blank(uint8_t octet) { return octet == ' ' || octet == '\t'; }

static uint8_t lower(uint8_t octet) { return octet >= 'A' && octet <= 'Z' ? octet | 0x20 : octet; }

static int hex_digit(uint8_t octet)
{
    uint8_t letter = lower(octet);
    return octet >= '0' && octet <= '9' ? octet - '0' : letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

static int base64_digit(uint8_t octet)
{
    if (octet >= 'A' && octet <= 'Z')
        return octet - 'A';
    if (octet >= 'a' && octet <= 'z')
        return octet - 'a' + 26;
    if (octet >= '0' && octet <= '9')
        return octet - '0' + 52;
    return octet == '+' ? 62 : octet == '/' ? 63 : -1;
}

/* ---- words: names of fields and parameters, media types, encodings ---- */

static void word_begin(struct nq_mime *mime)
{
    mime->word_len = 0;
    mime->word_blank = false;
}

static void word_put(struct nq_mime *mime, uint8_t octet)
{
    if (octet == 0 || mime->word_len > NQ_MIME_WORD)
        return;
    if (mime->word_len < NQ_MIME_WORD)
        mime->word[mime->word_len] = lower(octet);
    mime->word_len++;   /* one more than fits: it is none of those that matter */
}

static bool word_is(const struct nq_mime *mime, const char *text)
{
    return mime->word_len == strlen(text) && memcmp(mime->word, text, mime->word_len) == 0;
}

static bool word_begins(const struct nq_mime *mime, const char *text)
{
    return mime->word_len >= strlen(text) && memcmp(mime->word, text, strlen(text)) == 0;
}

/* ---- texts: what the regular expressions are tried on ---- */

static void text_begin(struct nq_mime_text *text)
{
    *text = (struct nq_mime_text){ .begun = true };
}

static void text_step(const struct nq_mime_policy *policy, struct nq_mime_text *text, int reading, uint8_t octet)
{
    uint16_t *state = text->state[reading - 1];
    for (uint32_t i = 0; i < policy->filetype_count; i++)
        state[i] = regex_step(policy->filetypes[i], state[i], &octet, &octet + 1);
}

/* The text may end here: what matches then has matched. */
static void text_try(const struct nq_mime_policy *policy, struct nq_mime_text *text)
{
    for (uint32_t i = 0; i < policy->filetype_count; i++)
        if (regex_matches_at_end(policy->filetypes[i], text->state[RAW - 1][i]) ||
            regex_matches_at_end(policy->filetypes[i], text->state[DECODED - 1][i]))
            text->matched |= (uint8_t)(1u << i);
}

/* A decoded octet. For some receivers a NUL ends the name, for others it is half of a letter (UTF-16). */
static void text_put(const struct nq_mime_policy *policy, struct nq_mime_text *text, uint8_t octet)
{
    text->length++;
    if (octet)
        text_step(policy, text, DECODED, octet);
    else
        text_try(policy, text);
}

static void text_put_blanks(const struct nq_mime_policy *policy, struct nq_mime_text *text)
{
    for (; text->blanks; text->blanks--)
        text_put(policy, text, ' ');
}

/* ---- encoded words: =?charset?Q?text?= or =?charset?B?text?= (RFC 2047), in texts ---- */

enum { CODED_NONE, CODED_EQUALS, CODED_CHARSET, CODED_LETTER, CODED_MARK, CODED_TEXT, CODED_END };

static void q_put(const struct nq_mime_policy *policy, struct nq_mime_text *text, uint8_t octet);

/* What began with = is no escape. */
static void q_flush(const struct nq_mime_policy *policy, struct nq_mime_text *text)
{
    uint8_t waits = text->hex;
    text->hex = 0;
    if (waits)
        text_put(policy, text, '=');
    if (waits > 1)
        text_put(policy, text, waits);
}

static void q_put(const struct nq_mime_policy *policy, struct nq_mime_text *text, uint8_t octet)
{
    if (text->hex && hex_digit(octet) < 0)
        q_flush(policy, text);
    if (text->hex == 1) {
        text->hex = octet;
    } else if (text->hex) {
        uint8_t value = (uint8_t)(hex_digit(text->hex) << 4 | hex_digit(octet));
        text->hex = 0;
        text_put(policy, text, value);
    } else if (octet == '=') {
        text->hex = 1;
    } else {
        text_put(policy, text, octet == '_' ? ' ' : octet);
    }
}

static void base64_put(const struct nq_mime_policy *policy, struct nq_mime_text *text, uint8_t octet)
{
    int digit = base64_digit(octet);
    if (digit < 0)
        return;
    text->bits = (uint16_t)(text->bits << 6 | digit);
    text->bit_count += 6;
    if (text->bit_count < 8)
        return;
    text->bit_count -= 8;
    text_put(policy, text, (uint8_t)(text->bits >> text->bit_count));
}

static void coded_put(const struct nq_mime_policy *policy, struct nq_mime_text *text, uint8_t octet)
{
    if (text->base64)
        base64_put(policy, text, octet);
    else
        q_put(policy, text, octet);
}

/* An octet outside encoded words. Blanks wait: between two of them they do not count (6.2). */
static void put_outside(const struct nq_mime_policy *policy, struct nq_mime_text *text, uint8_t octet)
{
    if (is_blank(octet)) {
        text->blanks++;
    } else if (octet == '=') {
        text->coded = CODED_EQUALS;
        text->waiting = 1;
    } else {
        text_put_blanks(policy, text);
        text->behind_coded = false;
        text_put(policy, text, octet);
    }
}

/* What waited was no encoded word. The raw reading has it; of the decoded one, only the length. */
static void coded_abandon(const struct nq_mime_policy *policy, struct nq_mime_text *text)
{
    text_put_blanks(policy, text);
    text->behind_coded = false;
    if (text->coded == CODED_EQUALS)
        text_put(policy, text, '=');
    else
        text->length += text->waiting;
    text->coded = CODED_NONE;
    text->waiting = 0;
}

static void coded_begin(const struct nq_mime_policy *policy, struct nq_mime_text *text)
{
    if (text->behind_coded)
        text->blanks = 0;
    text_put_blanks(policy, text);
    text->coded = CODED_TEXT;
    text->waiting = 0;
    text->bits = text->bit_count = text->hex = 0;
}

static void coded_end(const struct nq_mime_policy *policy, struct nq_mime_text *text)
{
    q_flush(policy, text);
    text->coded = CODED_NONE;
    text->behind_coded = true;
}

/* The next octet of =?charset?Q? False where it is not. */
static bool coded_prefix(struct nq_mime_text *text, uint8_t octet)
{
    uint8_t letter = lower(octet);
    switch (text->coded) {
    case CODED_EQUALS:
    case CODED_MARK: text->coded += octet == '?' && text->coded == CODED_EQUALS; return octet == '?';
    case CODED_CHARSET: text->coded += octet == '?'; return !is_blank(octet);
    default:
        text->base64 = letter == 'b';
        text->coded += letter == 'b' || letter == 'q';
        return text->coded == CODED_MARK;
    }
}

/* An octet of a text, perhaps of an encoded word in it. */
static void text_decode(const struct nq_mime_policy *policy, struct nq_mime_text *text, uint8_t octet)
{
    switch (text->coded) {
    case CODED_NONE: put_outside(policy, text, octet); return;
    case CODED_END:
        text->coded = CODED_TEXT;
        if (octet == '=') {
            coded_end(policy, text);
            return;
        }
        coded_put(policy, text, '?');
        /* fall through */
    case CODED_TEXT:
        if (octet == '?')
            text->coded = CODED_END;
        else
            coded_put(policy, text, octet);
        return;
    default: break;
    }
    bool last = text->coded == CODED_MARK;
    if (!coded_prefix(text, octet)) {
        coded_abandon(policy, text);
        put_outside(policy, text, octet);
    } else if (last) {
        coded_begin(policy, text);
    } else {
        text->waiting++;
    }
}

static void text_end(const struct nq_mime_policy *policy, struct nq_mime_text *text, bool keeps_blanks)
{
    if (text->coded == CODED_TEXT || text->coded == CODED_END)
        coded_end(policy, text);
    else if (text->coded)
        coded_abandon(policy, text);
    text_try(policy, text);
    if (keeps_blanks)
        text_put_blanks(policy, text);
    text_try(policy, text);
}

/* ---- boundaries ---- */

/* A place for one more boundary of the present header: of several, the first and the last are kept. NO_SLOT: there is none left,
 * and any line that begins with two hyphens will do. */
static uint8_t slot_take(struct nq_mime *mime)
{
    uint8_t slot = mime->boundaries;
    if (slot >= mime->own_from + 2)
        slot--;
    else if (slot == NQ_MULTIPARTS) {
        mime->boundary_len[slot - 1] = 0;
        mime->cut &= (uint16_t)~(1u << (slot - 1));
        return NO_SLOT;
    } else
        mime->boundaries++;
    uint16_t bit = (uint16_t)(1u << slot);
    mime->boundary_len[slot] = 0;
    mime->cut &= (uint16_t)~bit;
    mime->digests = (uint16_t)((mime->digests & ~bit) | (mime->digest ? bit : 0));
    return slot;
}

/* Of a longer one, its beginning: lines are compared no further (RFC 2046, 5.1.1). */
static void boundary_put(struct nq_mime *mime, uint8_t octet)
{
    if (mime->slot == NO_SLOT)
        return;
    uint8_t *len = &mime->boundary_len[mime->slot];
    if (*len < NQ_BOUNDARY)
        mime->boundary[mime->slot][(*len)++] = octet;
    else
        mime->cut |= (uint16_t)(1u << mime->slot);
}

/* No boundary ends in a blank, says RFC 2046; some receivers take it off, others do not. */
static void boundaries_trim(struct nq_mime *mime)
{
    for (uint8_t i = 0; i < mime->boundaries; i++)
        while (mime->boundary_len[i] && is_blank(mime->boundary[i][mime->boundary_len[i] - 1]))
            mime->boundary_len[i]--;
}

/* ---- values of parameters ---- */

static struct nq_mime_text *sink_text(struct nq_mime *mime)
{
    return mime->sink < TEXTS ? &mime->text[mime->sink] : NULL;
}

/* charset'language' was what came so far (RFC 2231, 4). */
static void value_restart(struct nq_mime *mime)
{
    struct nq_mime_text *text = sink_text(mime);
    if (mime->sink == SINK_BOUNDARY && mime->slot != NO_SLOT)
        mime->boundary_len[mime->slot] = (uint8_t)mime->value_from;
    if (!text)
        return;
    memset(text->state[DECODED - 1], 0, sizeof text->state[DECODED - 1]);
    text->length = mime->value_from;
    text->blanks = text->waiting = 0;
    text->coded = CODED_NONE;
}

static void value_put(struct nq_mime *mime, const struct nq_mime_policy *policy, uint8_t octet)
{
    if (mime->sink == SINK_BOUNDARY)
        boundary_put(mime, octet);
    else
        text_decode(policy, sink_text(mime), octet);
}

/* What began with % is no escape. */
static void percent_flush(struct nq_mime *mime, const struct nq_mime_policy *policy)
{
    uint8_t waits = mime->percent;
    mime->percent = 0;
    if (waits)
        value_put(mime, policy, '%');
    if (waits > 1)
        value_put(mime, policy, waits);
}

static void percent_put(struct nq_mime *mime, const struct nq_mime_policy *policy, uint8_t octet)
{
    if (mime->percent && hex_digit(octet) < 0)
        percent_flush(mime, policy);
    if (mime->percent == 1) {
        mime->percent = octet;
    } else if (mime->percent) {
        uint8_t value = (uint8_t)(hex_digit(mime->percent) << 4 | hex_digit(octet));
        mime->percent = 0;
        value_put(mime, policy, value);
    } else if (octet == '%') {
        mime->percent = 1;
    } else if (octet == '\'' && mime->apostrophes < 2 && ++mime->apostrophes == 2) {
        value_restart(mime);
    } else {
        value_put(mime, policy, octet);
    }
}

static void value_octet(struct nq_mime *mime, const struct nq_mime_policy *policy, uint8_t octet, int readings)
{
    if (mime->sink == SINK_NONE)
        return;
    if ((readings & RAW) && mime->sink < TEXTS)
        text_step(policy, sink_text(mime), RAW, octet);
    if (!(readings & DECODED))
        return;
    if (mime->extended)
        percent_put(mime, policy, octet);
    else
        value_put(mime, policy, octet);
}

static void value_begin_text(struct nq_mime *mime)
{
    struct nq_mime_text *text = sink_text(mime);
    if (!mime->continued || !text->begun)
        text_begin(text);
    mime->value_from = text->length;
}

static void value_begin_boundary(struct nq_mime *mime)
{
    if (!mime->continued || mime->continued_slot == NO_SLOT)
        mime->slot = slot_take(mime);
    else
        mime->slot = mime->continued_slot;
    if (mime->continued)
        mime->continued_slot = mime->slot;
    mime->value_from = mime->slot == NO_SLOT ? 0 : mime->boundary_len[mime->slot];
}

static void value_end(struct nq_mime *mime, const struct nq_mime_policy *policy)
{
    struct nq_mime_text *text = sink_text(mime);
    if (mime->sink != SINK_NONE)
        percent_flush(mime, policy);
    if (text && mime->continued) {
        text_try(policy, text);
    } else if (text) {
        text_end(policy, text, mime->was_quoted);
        mime->due |= (uint8_t)(DUE_TEXT << mime->sink);
    }
    mime->sink = SINK_NONE;
    mime->step = STEP_BEFORE;
    word_begin(mime);
}

/* ---- names of parameters ---- */

/* The word without what RFC 2231 adds to it: *, *0, *0* and so on. */
static void parameter_strip(struct nq_mime *mime)
{
    const uint8_t *star = memchr(mime->word, '*', mime->word_len <= NQ_MIME_WORD ? mime->word_len : 0);
    mime->continued = mime->extended = false;
    mime->apostrophes = 0;
    if (!star)
        return;
    uint8_t len = (uint8_t)(star - mime->word), at = len + 1;
    mime->extended = mime->word[mime->word_len - 1] == '*';
    for (; at < mime->word_len && mime->word[at] >= '0' && mime->word[at] <= '9'; at++) {
        mime->continued = true;
        if (mime->word[at] != '0')
            mime->apostrophes = 2;  /* charset and language are in the first piece */
    }
    mime->word_len = len;
}

/* The word before = is complete. */
static void parameter_begin(struct nq_mime *mime)
{
    parameter_strip(mime);
    bool name = word_is(mime, "name"), filename = word_is(mime, "filename");
    mime->sink = SINK_NONE;
    mime->percent = 0;
    mime->was_quoted = false;
    mime->step = STEP_BEFORE_VALUE;
    if (name || filename) {
        mime->sink = !mime->continued ? TEXT_SINGLE : name ? TEXT_NAME : TEXT_FILENAME;
        value_begin_text(mime);
    } else if (word_is(mime, "boundary") && mime->field == FIELD_TYPE) {
        mime->sink = SINK_BOUNDARY;
        mime->has_boundary = true;
        value_begin_boundary(mime);
    }
}

/* ---- comments and quoted strings of structured fields (RFC 5322, 3.2.2 and 3.2.4) ---- */

enum lexeme { LEX_PLAIN, LEX_BLANK, LEX_COMMENT, LEX_OPEN, LEX_QUOTED, LEX_BACKSLASH, LEX_CLOSE };

static enum lexeme lex_comment(struct nq_mime *mime, uint8_t octet)
{
    if (mime->escaped)
        mime->escaped = false;
    else if (octet == '\\')
        mime->escaped = true;
    else if (octet == '(' && mime->comment < UINT8_MAX)
        mime->comment++;
    else if (octet == ')')
        mime->comment--;
    return LEX_COMMENT;
}

static enum lexeme lex_quoted(struct nq_mime *mime, uint8_t octet)
{
    if (mime->escaped) {
        mime->escaped = false;
        return LEX_QUOTED;
    }
    mime->escaped = octet == '\\';
    mime->quoted = octet != '"';
    return mime->escaped ? LEX_BACKSLASH : mime->quoted ? LEX_QUOTED : LEX_CLOSE;
}

static enum lexeme lex(struct nq_mime *mime, uint8_t octet)
{
    if (mime->comment)
        return lex_comment(mime, octet);
    if (mime->quoted)
        return lex_quoted(mime, octet);
    switch (octet) {
    case '(': mime->comment = 1; return LEX_COMMENT;
    case '"': mime->quoted = true; return LEX_OPEN;
    case ' ':
    case '\t': return LEX_BLANK;
    default: return LEX_PLAIN;
    }
}

static void lex_begin(struct nq_mime *mime)
{
    mime->comment = 0;
    mime->quoted = mime->escaped = false;
}

/* ---- Content-Type and Content-Disposition ---- */

static void type_end(struct nq_mime *mime, const struct nq_mime_policy *policy)
{
    if (mime->word_len) {
        text_try(policy, &mime->text[TEXT_SINGLE]);
        mime->due |= DUE_TYPE;
        mime->has_type = true;
    }
    mime->nested |= word_begins(mime, "message/");
    mime->multipart |= word_begins(mime, "multipart/");
    mime->digest = word_is(mime, "multipart/digest");
    mime->step = STEP_BEFORE;
    word_begin(mime);
}

static void type_octet(struct nq_mime *mime, const struct nq_mime_policy *policy, uint8_t octet, enum lexeme lexeme)
{
    if (lexeme == LEX_BLANK)
        mime->word_blank = true;
    if (lexeme != LEX_PLAIN && lexeme != LEX_QUOTED)
        return;
    if (octet == ';' && lexeme == LEX_PLAIN) {
        type_end(mime, policy);
        return;
    }
    if (mime->word_blank && mime->slash == 2) { /* the semicolon is missing */
        type_end(mime, policy);
        word_put(mime, octet);
        return;
    }
    mime->word_blank = false;
    mime->slash = octet == '/' ? 1 : mime->slash ? 2 : 0;
    octet = lower(octet);
    word_put(mime, octet);
    text_step(policy, &mime->text[TEXT_SINGLE], RAW, octet);
    text_step(policy, &mime->text[TEXT_SINGLE], DECODED, octet);
}

/* Before or in the name of a parameter. A quotation mark or a comment here means nothing. */
static void parameter_octet(struct nq_mime *mime, uint8_t octet, enum lexeme lexeme)
{
    if (lexeme == LEX_BLANK || lexeme == LEX_OPEN || lexeme == LEX_COMMENT) {
        mime->quoted = false;
        mime->word_blank = true;
    } else if (octet == ';') {
        word_begin(mime);
    } else if (octet == '=') {
        parameter_begin(mime);
    } else {
        if (mime->word_blank)
            word_begin(mime);
        word_put(mime, octet);
    }
}

/* A blank behind a value without quotes ends it, but a file name may go on. */
static void value_blank(struct nq_mime *mime, const struct nq_mime_policy *policy)
{
    if (mime->step == STEP_BEFORE_VALUE)
        return;
    if (mime->sink >= TEXTS || mime->was_quoted) {
        value_end(mime, policy);
        return;
    }
    text_try(policy, sink_text(mime));
    value_octet(mime, policy, ' ', RAW | DECODED);
}

static void value_lexeme(struct nq_mime *mime, const struct nq_mime_policy *policy, uint8_t octet, enum lexeme lexeme)
{
    struct nq_mime_text *text = sink_text(mime);
    switch (lexeme) {
    case LEX_BLANK: value_blank(mime, policy); return;
    case LEX_OPEN: mime->was_quoted = true; break;
    case LEX_BACKSLASH: value_octet(mime, policy, octet, RAW); break;
    case LEX_COMMENT:
        value_octet(mime, policy, octet, RAW);
        if (text)
            text->length++;
        break;
    case LEX_CLOSE:
        if (text)
            text_try(policy, text);
        break;
    default: value_octet(mime, policy, octet, RAW | DECODED); break;
    }
    mime->step = STEP_VALUE;
}

static void parameters_octet(struct nq_mime *mime, const struct nq_mime_policy *policy, uint8_t octet)
{
    if (octet == ';')
        mime->comment = 0;
    enum lexeme lexeme = lex(mime, octet);
    if (mime->step == STEP_TYPE)
        type_octet(mime, policy, octet, lexeme);
    else if (mime->step < STEP_BEFORE_VALUE)
        parameter_octet(mime, octet, lexeme);
    else if (octet == ';' && lexeme == LEX_PLAIN)
        value_end(mime, policy);
    else
        value_lexeme(mime, policy, octet, lexeme);
}

static void parameters_begin(struct nq_mime *mime, int step)
{
    mime->step = (uint8_t)step;
    mime->sink = SINK_NONE;
    mime->continued_slot = NO_SLOT;
    mime->slash = 0;
    mime->digest = mime->multipart = mime->has_boundary = false;
    for (int i = 0; i < TEXTS; i++)
        text_begin(&mime->text[i]);
    mime->text[TEXT_NAME].begun = mime->text[TEXT_FILENAME].begun = false;
}

static void parameters_end(struct nq_mime *mime, const struct nq_mime_policy *policy)
{
    if (mime->step == STEP_TYPE)
        type_end(mime, policy);
    else if (mime->step >= STEP_BEFORE_VALUE)
        value_end(mime, policy);
    for (int i = TEXT_NAME; i < TEXTS; i++) {
        if (!mime->text[i].begun)
            continue;
        text_end(policy, &mime->text[i], true);
        mime->due |= (uint8_t)(DUE_TEXT << i);
    }
    if (mime->multipart && !mime->has_boundary)
        slot_take(mime);
    boundaries_trim(mime);
}

/* ---- To: how many mailboxes (RFC 5322, 3.4) ---- */

enum { BRACKET_NONE, BRACKET_OPENED, BRACKET_ANGLE, BRACKET_ROUTE, BRACKET_LITERAL, BRACKETS };

static void mailbox_end(struct nq_mime *mime)
{
    if (mime->mailbox && mime->mailboxes++) {   /* the first was counted with the field */
        mime->to_fields++;
        mime->due |= DUE_TO;
    }
    mime->mailbox = false;
}

static uint8_t bracket_behind(uint8_t bracket, uint8_t octet)
{
    switch (octet) {
    case '<': return bracket == BRACKET_NONE ? BRACKET_OPENED : bracket;
    case '>': return bracket == BRACKET_LITERAL ? bracket : BRACKET_NONE;
    case '[': return BRACKET_LITERAL;
    case ']': return bracket == BRACKET_LITERAL ? BRACKET_NONE : bracket;
    case '@': return bracket == BRACKET_OPENED ? BRACKET_ROUTE : bracket;
    default: return bracket == BRACKET_OPENED ? BRACKET_ANGLE : bracket;
    }
}

/* A comma separates inside angle brackets, too, unless a source route stands there. */
static void to_octet(struct nq_mime *mime, uint8_t octet)
{
    enum lexeme lexeme = lex(mime, octet);
    if (lexeme == LEX_BLANK || lexeme == LEX_COMMENT)
        return;
    bool separates = lexeme == LEX_PLAIN && mime->bracket < BRACKET_ROUTE;
    if (separates && (octet == ',' || octet == ';')) {
        mailbox_end(mime);
        mime->bracket = BRACKET_NONE;
    } else if (separates && octet == ':' && mime->bracket == BRACKET_NONE) {
        mime->mailbox = false;  /* it was the name of a group */
    } else {
        mime->mailbox = true;
        if (lexeme == LEX_PLAIN)
            mime->bracket = bracket_behind(mime->bracket, octet);
    }
}

static void to_begin(struct nq_mime *mime)
{
    mime->mailbox = false;
    mime->mailboxes = 0;
    mime->bracket = BRACKET_NONE;
    mime->to_fields++;
    mime->due |= DUE_TO;
}

/* ---- Content-Transfer-Encoding (RFC 2045, 6.1) ---- */

static void encoding_octet(struct nq_mime *mime, uint8_t octet)
{
    enum lexeme lexeme = lex(mime, octet);
    if (lexeme == LEX_COMMENT)
        return;
    if (lexeme == LEX_BLANK) {
        mime->word_blank = mime->word_len > 0;
        return;
    }
    if (mime->word_blank)   /* a second word: none that anybody knows */
        mime->word_len = NQ_MIME_WORD;
    word_put(mime, octet);
}

static void encoding_end(struct nq_mime *mime)
{
    static const char *const names[ENCODINGS] = {
        [ENCODING_7BIT] = "7bit", [ENCODING_8BIT] = "8bit", [ENCODING_BASE64] = "base64",
        [ENCODING_BINARY] = "binary", [ENCODING_QUOTED_PRINTABLE] = "quoted-printable",
    };
    while (mime->word_len && mime->word_len <= NQ_MIME_WORD && mime->word[mime->word_len - 1] == ';')
        mime->word_len--;
    mime->encoding = ENCODING_OTHERS;
    for (uint8_t i = 0; i < ENCODINGS; i++)
        if (names[i] && word_is(mime, names[i]))
            mime->encoding = i;
    mime->due |= DUE_ENCODING;
}

/* ---- header fields ---- */

static const struct {
    const char *name;
    uint8_t field;
} fields[] = {
    { "to", FIELD_TO },
    { "content-type", FIELD_TYPE },
    { "content-disposition", FIELD_DISPOSITION },
    { "content-transfer-encoding", FIELD_ENCODING },
};

static void field_begin(struct nq_mime *mime)
{
    mime->field = FIELD_NONE;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (word_is(mime, fields[i].name))
            mime->field = fields[i].field;
    word_begin(mime);
    lex_begin(mime);
    switch (mime->field) {
    case FIELD_TYPE: parameters_begin(mime, STEP_TYPE); break;
    case FIELD_DISPOSITION: parameters_begin(mime, STEP_BEFORE); break;
    case FIELD_TO:
        if (mime->in_header)
            to_begin(mime);
        else
            mime->field = FIELD_NONE;
        break;
    default: break;
    }
}

/* Blanks before the colon are obsolete, but read (RFC 5322, 4.5). */
static void naming_octet(struct nq_mime *mime, uint8_t octet)
{
    if (octet == ':')
        field_begin(mime);
    else if (is_blank(octet))
        mime->word_blank = mime->word_len > 0;
    else if (mime->word_blank)
        mime->field = FIELD_NONE;
    else
        word_put(mime, octet);
}

static void field_octet(struct nq_mime *mime, const struct nq_mime_policy *policy, uint8_t octet)
{
    if (octet == '\r')
        return;
    switch (mime->field) {
    case FIELD_NAMING: naming_octet(mime, octet); break;
    case FIELD_TO: to_octet(mime, octet); break;
    case FIELD_ENCODING: encoding_octet(mime, octet); break;
    case FIELD_TYPE:
    case FIELD_DISPOSITION: parameters_octet(mime, policy, octet); break;
    default: break;
    }
}

static void field_end(struct nq_mime *mime, const struct nq_mime_policy *policy)
{
    switch (mime->field) {
    case FIELD_TO: mailbox_end(mime); break;
    case FIELD_ENCODING: encoding_end(mime); break;
    case FIELD_TYPE:
    case FIELD_DISPOSITION: parameters_end(mime, policy); break;
    default: break;
    }
    mime->field = FIELD_NONE;
}

/* A blank that begins the first line continues nothing: some receivers read a field behind it. */
static void header_begin(struct nq_mime *mime, bool digest)
{
    mime->header = true;
    mime->own_from = mime->boundaries;
    mime->default_nested = digest;
    mime->nested = mime->has_type = mime->digest = false;
    mime->field = FIELD_NAMING;
    mime->place = PLACE_LINE;
    word_begin(mime);
}

static void header_end(struct nq_mime *mime)
{
    if (mime->in_header)
        mime->due |= DUE_HEADER_ENDS;
    mime->in_header = false;
    mime->header = false;
    mime->place = mime->boundaries ? PLACE_LINE : PLACE_INSIDE;
    if (mime->nested || (mime->default_nested && !mime->has_type))
        header_begin(mime, false);
}

/* ---- delimiters (RFC 2046, 5.1.1) ---- */

/* Behind the boundary: nothing yet, a hyphen, what closes the multipart, anything else. */
enum { TAIL_EMPTY, TAIL_HYPHEN, TAIL_CLOSES, TAIL_OTHER };

static void delimiter_begin(struct nq_mime *mime)
{
    mime->place = PLACE_DELIMITER;
    mime->alive = (uint16_t)((1u << mime->boundaries) - 1);
    mime->compared = 0;
    mime->found = NO_SLOT;
}

static uint8_t tail_behind(uint8_t tail, uint8_t octet)
{
    if (tail < TAIL_CLOSES)
        return octet == '-' ? tail + 1 : TAIL_OTHER;
    return tail == TAIL_CLOSES && (is_blank(octet) || octet == '\r') ? TAIL_CLOSES : TAIL_OTHER;
}

/* Boundaries that are complete before the next octet: the longest is meant, the innermost of equal ones. */
static void delimiter_match(struct nq_mime *mime)
{
    for (uint8_t i = 0; i < mime->boundaries; i++)
        if ((mime->alive >> i & 1) && mime->boundary_len[i] == mime->compared) {
            mime->alive &= (uint16_t)~(1u << i);
            mime->found = i;
            mime->tail = mime->cut >> i & 1 ? TAIL_OTHER : TAIL_EMPTY;
        }
}

static void delimiter_end(struct nq_mime *mime)
{
    header_begin(mime, mime->digests >> mime->found & 1);
    mime->header = mime->in_header || mime->tail != TAIL_CLOSES;
}

static void delimiter_octet(struct nq_mime *mime, uint8_t octet)
{
    if (mime->alive)
        delimiter_match(mime);
    if (octet == '\n' && mime->found != NO_SLOT) {
        delimiter_end(mime);
    } else if (octet == '\n' || (!mime->alive && mime->found == NO_SLOT)) {
        mime->place = octet == '\n' ? PLACE_LINE : PLACE_INSIDE;
    } else {
        if (mime->found != NO_SLOT)
            mime->tail = tail_behind(mime->tail, octet);
        for (uint8_t i = 0; i < mime->boundaries; i++)
            if ((mime->alive >> i & 1) && mime->boundary[i][mime->compared] != octet)
                mime->alive &= (uint16_t)~(1u << i);
        mime->compared++;
    }
}

/* ---- lines ---- */

/* The first octet of a line, or the first behind its dot or CR. */
static void line_octet(struct nq_mime *mime, const struct nq_mime_policy *policy, uint8_t octet)
{
    uint8_t place = mime->place;
    if (octet == '.' && place == PLACE_LINE && !mime->counted) {
        mime->place = PLACE_DOT;
        return;
    }
    mime->place = PLACE_INSIDE;
    if (mime->header && !is_blank(octet))
        field_end(mime, policy);
    if (octet == '\n')
        mime->place = PLACE_LINE;
    else if (octet == '\r')
        mime->place = place == PLACE_LINE && mime->header ? PLACE_CR : PLACE_INSIDE;
    else if (octet == '-')
        mime->place = place != PLACE_CR && mime->boundaries ? PLACE_HYPHEN : PLACE_INSIDE;
    else if (mime->header && !is_blank(octet)) {
        mime->field = FIELD_NAMING;
        word_begin(mime);
    }
    if (mime->header && mime->place == PLACE_INSIDE)
        field_octet(mime, policy, octet);
}

static void octet_taken(struct nq_mime *mime, const struct nq_mime_policy *policy, uint8_t octet)
{
    switch (mime->place) {
    case PLACE_CR:
        if (octet == '\n') {
            header_end(mime);
            break;
        }
        /* fall through */
    case PLACE_LINE:
    case PLACE_DOT: line_octet(mime, policy, octet); break;
    case PLACE_HYPHEN:
        if (octet == '-')
            delimiter_begin(mime);
        else
            mime->place = octet == '\n' ? PLACE_LINE : PLACE_INSIDE;
        break;
    case PLACE_DELIMITER: delimiter_octet(mime, octet); break;
    default:
        if (octet == '\n')
            mime->place = PLACE_LINE;
        else if (mime->header)
            field_octet(mime, policy, octet);
        break;
    }
}

/* The first LF from `at` on behind which a hyphen or a dot stands, or nothing that is known yet; or end. */
static const uint8_t *find_line(const uint8_t *at, const uint8_t *end)
{
#if defined(__SSE2__)
    const __m128i lf = _mm_set1_epi8('\n'), hyphen = _mm_set1_epi8('-'), dot = _mm_set1_epi8('.');
    for (; end - at >= 65; at += 64) { /* four at a time, and a look at which only where there is one */
        __m128i hits[4];
        for (int i = 0; i < 4; i++) {
            __m128i first = _mm_cmpeq_epi8(_mm_loadu_si128((const void *)(at + 16 * i)), lf);
            __m128i second = _mm_loadu_si128((const void *)(at + 16 * i + 1));
            hits[i] = _mm_and_si128(first, _mm_or_si128(_mm_cmpeq_epi8(second, hyphen), _mm_cmpeq_epi8(second, dot)));
        }
        if (_mm_movemask_epi8(_mm_or_si128(_mm_or_si128(hits[0], hits[1]), _mm_or_si128(hits[2], hits[3]))))
            break;
    }
#endif
    for (; at < end; at++)
        if (*at == '\n' && (end - at < 2 || at[1] == '-' || at[1] == '.'))
            return at;
    return end;
}

/* What lies inside a line and is of no interest. */
static const uint8_t *pass(const struct nq_mime *mime, const uint8_t *at, const uint8_t *end)
{
    if (!mime->header)
        return mime->boundaries ? find_line(at, end) : end;
    if (mime->field != FIELD_NONE)
        return at;
    const uint8_t *newline = memchr(at, '\n', (size_t)(end - at));
    return newline ? newline : end;
}

/* ---- what is said ---- */

static enum nq_mime_said say_text(struct nq_mime *mime, struct nq_mime_text *text, uint8_t bit)
{
    if (text->matched) {
        mime->filetypes = text->matched;
        text->matched = 0;
        return MIME_FILETYPE;
    }
    mime->due &= (uint8_t)~bit;
    mime->filename_length = text->length;
    return MIME_FILENAME;
}

/* The first thing that is due; MIME_NOTHING where nothing is. */
static enum nq_mime_said say(struct nq_mime *mime)
{
    uint8_t bit = mime->due & (uint8_t)-mime->due;
    switch (bit) {
    case 0: return MIME_NOTHING;
    case DUE_TO: mime->due &= (uint8_t)~bit; return MIME_TO_FIELD;
    case DUE_ENCODING: mime->due &= (uint8_t)~bit; return MIME_ENCODING;
    case DUE_HEADER_ENDS: mime->due &= (uint8_t)~bit; return MIME_HEADER_ENDS;
    case DUE_TYPE:
        mime->due &= (uint8_t)~bit;
        mime->filetypes = mime->text[TEXT_SINGLE].matched;
        return mime->filetypes ? MIME_FILETYPE : say(mime);
    default: return say_text(mime, &mime->text[__builtin_ctz(bit / DUE_TEXT)], bit);
    }
}

void mime_begin(struct nq_mime *mime)
{
    memset(mime, 0, offsetof(struct nq_mime, boundary));
    header_begin(mime, false);
    mime->in_header = true;
}

/* While something is due, the octet at *at has been taken and is not consumed: the caller comes again for the rest. */
enum nq_mime_said mime_take(struct nq_mime *mime, const struct nq_mime_policy *policy, const uint8_t **at, const uint8_t *end)
{
    while (*at < end) {
        if (!mime->due && mime->place == PLACE_INSIDE && (*at = pass(mime, *at, end)) == end)
            break;
        if (!mime->due)
            octet_taken(mime, policy, **at);
        if (!mime->due) {
            ++*at;
            continue;
        }
        enum nq_mime_said said = say(mime);
        *at += mime->due == 0;
        if (said)
            return said;
    }
    return MIME_NOTHING;
}

enum nq_mime_said mime_end(struct nq_mime *mime, const struct nq_mime_policy *policy)
{
    if (mime->header)
        field_end(mime, policy);
    return say(mime);
}
