/*
 * smtp_path.c - a resumable scanner of what stands behind MAIL and RCPT: the address, and the parameters of ESMTP. All its
 * state lies in the caller's struct, so octets may come one by one, and what is said, and where, does not depend on the cuts.
 *
 * The address is read as lenient servers read it (Postfix, Sendmail): blanks around the colon, no angle brackets, a backslash
 * outside quotes. Refusing all that RFC 5321 does not allow was rejected: the server would go on where we had stopped, and the
 * policy would know less of the address than the server. Parameters are the other way round: their syntax is judged by the
 * letter, and a server that takes more than that is told of, not guarded.
 */
#include "nq.h"

_Static_assert(sizeof(struct nq_path) <= 64 + 2 * sizeof(void *), "every flow has one");
_Static_assert(PARAMETERS <= 16, "a bit for each in nq_path.given and nq_path.candidates");

enum { QUOTED = 1, ESCAPED = 2 };       /* path->quoting */

enum {                                  /* path->phase */
    PHASE_OF_WORD,                      /* in "FROM:" or "TO:" */
    PHASE_OF_COLON,                     /* behind it */
    PHASE_OF_BARE, PHASE_OF_ANGLE,      /* in an address without and with brackets */
    PHASE_OF_CLOSE,                     /* at the '>' of which PATH_ADDRESS was said */
    PHASE_OF_BEHIND,                    /* straight behind it: a blank is due */
    PHASE_OF_BETWEEN,                   /* at a blank, or where a parameter may begin */
    PHASE_OF_KEYWORD, PHASE_OF_VALUE
};

/* What a step answers besides enum nq_path_said, which leaves the octet where it is and ends the call. */
enum { STEP_TAKE = 0x10, STEP_TAKE_ADDRESS, STEP_AGAIN };

static bool is_blank(uint8_t octet) { return octet == ' ' || octet == '\t'; }
static bool is_line_end(uint8_t octet) { return octet == '\r' || octet == '\n'; }
static bool is_digit(uint8_t octet) { return octet >= '0' && octet <= '9'; }
static uint8_t upper(uint8_t octet) { return octet >= 'a' && octet <= 'z' ? octet - 32 : octet; }
static bool is_letter(uint8_t octet) { return upper(octet) >= 'A' && upper(octet) <= 'Z'; }

/* ---- words among few ---------------------------------------------------------------------------------------------- */

/* Of the words in `candidates`, a bit for each, those that go on with this octet at `index`. */
static uint16_t narrow(const char *const *words, uint16_t candidates, uint16_t index, uint8_t octet)
{
    uint16_t left = 0;
    for (unsigned i = 0; candidates >> i; i++)
        if ((candidates >> i & 1) && (uint8_t)words[i][index] == upper(octet))
            left |= (uint16_t)(1u << i);
    return left;
}

/* The candidate that is complete with `count` octets, or -1. */
static int complete(const char *const *words, uint16_t candidates, uint16_t count)
{
    for (int i = 0; candidates >> i; i++)
        if ((candidates >> i & 1) && !words[i][count])
            return i;
    return -1;
}

/* ---- values: sequences of elements -------------------------------------------------------------------------------- */

enum element_class {
    END, DIGIT, NONZERO, SIGN, MODE, ATEXT, XTEXT, ADDRESS_TEXT, VALUE,
    LITERAL = 0x80                      /* and its octet, a letter in upper case */
};

struct element {
    uint8_t class;
    uint16_t least, most;
    uint8_t skip_absent, skip_present;  /* so many elements behind it do not count where it is absent, or present */
};
#define ANY_NUMBER UINT16_MAX
#define ONE(octet) { LITERAL | (octet), 1, 1, 0, 0 }
#define OPTIONAL(octet, absent, present) { LITERAL | (octet), 0, 1, absent, present }
#define DIGITS(least, most) { DIGIT, least, most, 0, 0 }

static const struct element unknown_value[] = { { VALUE, 1, ANY_NUMBER, 0, 0 }, { 0 } };    /* RFC 5321, 4.1.2 */
static const struct element size_value[] = { DIGITS(1, 20), { 0 } };                        /* RFC 1870, 3 */
static const struct element holdfor_value[] = { DIGITS(1, 9), { 0 } };                      /* RFC 4865, 3 */
static const struct element xtext_value[] = { { XTEXT, 1, ANY_NUMBER, 0, 0 }, { 0 } };      /* RFC 3461, 4: '<>', too */
static const struct element orcpt_value[] = {                                               /* RFC 3461, 4.2 */
    { ATEXT, 1, ANY_NUMBER, 0, 0 }, ONE(';'), { ADDRESS_TEXT, 0, ANY_NUMBER, 0, 0 }, { 0 }
};
static const struct element by_value[] = {                                                  /* RFC 2852, 4 */
    { SIGN, 0, 1, 0, 0 }, DIGITS(1, 9), ONE(';'), { MODE, 1, 1, 0, 0 }, OPTIONAL('T', 0, 0), { 0 }
};
static const struct element priority_value[] = {                                            /* RFC 6710, 8 */
    OPTIONAL('0', 0, 2), OPTIONAL('-', 0, 0), { NONZERO, 1, 1, 0, 0 }, { 0 }
};
static const struct element holduntil_value[] = {                                           /* RFC 3339, 5.6 */
    DIGITS(4, 4), ONE('-'), DIGITS(2, 2), ONE('-'), DIGITS(2, 2), ONE('T'),
    DIGITS(2, 2), ONE(':'), DIGITS(2, 2), ONE(':'), DIGITS(2, 2), OPTIONAL('.', 1, 0), DIGITS(1, ANY_NUMBER),
    OPTIONAL('Z', 0, 4), { SIGN, 1, 1, 0, 0 }, DIGITS(2, 2), ONE(':'), DIGITS(2, 2), { 0 }
};

/* RFC 3629, 4: no overlong form, no surrogate, nothing above U+10FFFF. */
static bool take_utf8(struct nq_path *path, uint8_t octet)
{
    if (path->awaited) {
        bool follows = octet >= path->lowest && octet <= path->highest;
        path->awaited--;
        path->lowest = 0x80;
        path->highest = 0xbf;
        return follows;
    }
    path->awaited = octet >= 0xf0 ? 3 : octet >= 0xe0 ? 2 : 1;
    path->lowest = octet == 0xe0 ? 0xa0 : octet == 0xf0 ? 0x90 : 0x80;
    path->highest = octet == 0xed ? 0x9f : octet == 0xf4 ? 0x8f : 0xbf;
    return octet >= 0xc2 && octet <= 0xf4;
}

static bool is_upper_hex(uint8_t octet) { return is_digit(octet) || (octet >= 'A' && octet <= 'F'); }

/* RFC 3461, 4: visible ASCII, and '+' with two digits for what else there is. path->escape: digits to come. */
static bool take_xtext(struct nq_path *path, uint8_t octet)
{
    if (path->escape) {
        path->escape--;
        return is_upper_hex(octet);
    }
    if (octet == '+')
        path->escape = 2;
    return octet > 32 && octet < 127 && octet != '=';
}

enum { BACKSLASH = 0x10, BRACE, POINT };    /* path->escape: behind '\', behind "\x", and POINT + digits behind "\x{" */

/* The inside of \x{...}, RFC 6533, 3: two to six digits. That the code point needs no such form is left to the server. */
static bool take_point(struct nq_path *path, uint8_t octet)
{
    uint8_t digits = path->escape - POINT;
    if (path->escape == BACKSLASH || path->escape == BRACE) {
        bool expected = path->escape == BACKSLASH ? octet == 'x' : octet == '{';
        path->escape++;
        return expected;
    }
    if (octet == '}') {
        path->escape = 0;
        return digits >= 2;
    }
    path->escape++;
    return digits < 6 && is_upper_hex(upper(octet));
}

/* Behind "utf-8;" the address may be UTF-8 itself, or hold \x{...} (RFC 6533, 3); behind any other type it is xtext. '+' is
 * allowed in both: it is RFC 3461's and servers decode it first. */
static bool take_address_text(struct nq_path *path, uint8_t octet)
{
    if (!path->candidates)
        return take_xtext(path, octet);
    if (path->escape >= BACKSLASH)
        return take_point(path, octet);
    if (path->awaited || (octet >= 0x80 && !path->escape))
        return take_utf8(path, octet);
    if (octet == '\\' && !path->escape) {
        path->escape = BACKSLASH;
        return true;
    }
    return take_xtext(path, octet);
}

/* RFC 5321, 4.1.2 esmtp-value, and RFC 6531, 3.3. */
static bool take_any_value(struct nq_path *path, uint8_t octet)
{
    if (path->awaited || octet >= 0x80)
        return take_utf8(path, octet);
    return octet > 32 && octet < 127 && octet != '=';
}

/* RFC 5322, 3.2.3; the type of an address in ORCPT. path->candidates: may it be "utf-8", and behind it: was it? */
static bool take_atext(struct nq_path *path, uint8_t octet)
{
    static const char *const utf8[] = { "UTF-8" };
    if (!is_letter(octet) && !is_digit(octet) && !strchr("!#$%&'*+-/=?^_`{|}~", octet)) {
        path->candidates = complete(utf8, path->candidates, path->count) == 0;
        return false;
    }
    path->candidates = narrow(utf8, path->candidates, path->count, octet);
    return true;
}

static bool take_number(struct nq_path *path, uint8_t octet)
{
    if (!is_digit(octet))
        return false;
    uint64_t digit = octet - '0';
    path->number = path->number > (UINT64_MAX - digit) / 10 ? UINT64_MAX : path->number * 10 + digit;
    return true;
}

/* RFC 2852, 4: the message comes back ("R") only after some time. */
static bool is_mode(const struct nq_path *path, uint8_t octet)
{
    return upper(octet) == 'N' || (upper(octet) == 'R' && path->number && !path->negative);
}

static bool take_sign(struct nq_path *path, uint8_t octet)
{
    path->negative = octet == '-';
    return octet == '-' || octet == '+';
}

/* Is the octet one of the class? Where it may belong to the next one instead, saying no leaves no trace of it. */
static bool take_class(struct nq_path *path, uint8_t class, uint8_t octet)
{
    switch (class) {
    case END: return false;
    case DIGIT: return take_number(path, octet);
    case NONZERO: return is_digit(octet) && octet != '0';
    case SIGN: return take_sign(path, octet);
    case MODE: return is_mode(path, octet);
    case ATEXT: return take_atext(path, octet);
    case XTEXT: return take_xtext(path, octet);
    case ADDRESS_TEXT: return take_address_text(path, octet);
    case VALUE: return take_any_value(path, octet);
    default: return upper(octet) == (class & ~LITERAL);
    }
}

/* To the element behind this one. False where this one, or what it requires, is still missing. */
static bool leave_element(struct nq_path *path, const struct element *element)
{
    if (element->class == END || path->count < element->least)
        return false;
    path->element += 1 + (path->count ? element->skip_present : element->skip_absent);
    path->count = 0;
    return true;
}

static bool take_in_sequence(struct nq_path *path, const struct element *elements, uint8_t octet)
{
    const struct element *element = elements + path->element;
    while (path->count >= element->most || !take_class(path, element->class, octet)) {
        if (!leave_element(path, element))
            return false;
        element = elements + path->element;
    }
    path->count++;
    return true;
}

static bool end_sequence(struct nq_path *path, const struct element *elements)
{
    while (elements[path->element].class != END)
        if (!leave_element(path, elements + path->element))
            return false;
    return !path->escape && !path->awaited;
}

/* ---- parameters ----------------------------------------------------------------------------------------------------- */

struct parameter {
    bool recipient;                     /* RCPT's; the others are MAIL's */
    bool list;                          /* its words make a list; the first word stands alone */
    uint16_t longest;                   /* octets of the value; 0: no limit of its own */
    const struct element *elements;     /* either these or words; neither: it has no value */
    uint16_t word_count;
    const char *words[4];
};

static const struct parameter parameters[PARAMETERS] = {
    [PARAMETER_UNKNOWN] = { .elements = unknown_value },
    [PARAMETER_SIZE] = { .elements = size_value },
    [PARAMETER_BODY] = { .words = { "7BIT", "8BITMIME", "BINARYMIME" }, .word_count = 3 },
    [PARAMETER_RET] = { .words = { "FULL", "HDRS" }, .word_count = 2 },
    [PARAMETER_ENVID] = { .elements = xtext_value, .longest = 100 },
    [PARAMETER_NOTIFY] = { .recipient = true, .list = true, .words = { "NEVER", "SUCCESS", "FAILURE", "DELAY" },
                           .word_count = 4 },
    [PARAMETER_ORCPT] = { .recipient = true, .elements = orcpt_value, .longest = 500 },
    [PARAMETER_AUTH] = { .elements = xtext_value },
    [PARAMETER_BY] = { .elements = by_value },
    [PARAMETER_HOLDFOR] = { .elements = holdfor_value },
    [PARAMETER_HOLDUNTIL] = { .elements = holduntil_value },
    [PARAMETER_MT_PRIORITY] = { .elements = priority_value },
};

static const char *const names[PARAMETERS] = {
    [PARAMETER_UNKNOWN] = "",
#define PARAMETER(symbol, text, keyword) [PARAMETER_##symbol] = text,
#include "smtp_parameters.def"
#undef PARAMETER
};

static void begin_word(struct nq_path *path, const struct parameter *parameter)
{
    path->candidates = (uint16_t)((1u << parameter->word_count) - 1);
    path->count = 0;
}

/* path->element holds a bit for each word of the list so far. */
static bool end_word(struct nq_path *path, const struct parameter *parameter)
{
    int word = complete(parameter->words, path->candidates, path->count);
    if (word < 0)
        return false;
    bool alone = !path->element || (word && !(path->element & 1));
    bool again = path->element >> word & 1;
    path->element |= (uint8_t)(1u << word);
    return alone && !again;
}

static bool take_in_words(struct nq_path *path, const struct parameter *parameter, uint8_t octet)
{
    if (octet == ',' && parameter->list) {
        bool good = end_word(path, parameter);
        begin_word(path, parameter);
        return good;
    }
    path->candidates = narrow(parameter->words, path->candidates, path->count++, octet);
    return path->candidates;
}

static void begin_value(struct nq_path *path)
{
    const struct parameter *parameter = &parameters[path->parameter];
    path->phase = PHASE_OF_VALUE;
    path->number = 0;
    path->element = path->escape = path->awaited = 0;
    path->value_length = 0;
    begin_word(path, parameter);
    if (path->parameter == PARAMETER_ORCPT)
        path->candidates = 1; /* take_atext() has one word to tell from others */
}

/* Once a value is invalid, nobody needs to know more of it. */
static void take_value(struct nq_path *path, uint8_t octet)
{
    const struct parameter *parameter = &parameters[path->parameter];
    if (!path->valid)
        return;
    path->value_length++;
    if (parameter->longest && path->value_length > parameter->longest)
        path->valid = false;
    else if (parameter->elements)
        path->valid = take_in_sequence(path, parameter->elements, octet);
    else
        path->valid = take_in_words(path, parameter, octet);
}

static void end_value(struct nq_path *path)
{
    const struct parameter *parameter = &parameters[path->parameter];
    if (path->valid)
        path->valid = parameter->elements ? end_sequence(path, parameter->elements) : end_word(path, parameter);
    if (path->valid && path->parameter == PARAMETER_SIZE)
        path->size = path->number;
}

static void begin_parameter(struct nq_path *path, bool valid)
{
    path->phase = PHASE_OF_KEYWORD;
    path->parameter = PARAMETER_UNKNOWN;
    path->valid = valid;
    path->candidates = (uint16_t)((1u << PARAMETERS) - 2);
    path->count = 0;
}

/* Its name is known now. RFC 5321, 4.1.1.11 and the extensions' own: each with its command, and once. */
static void end_keyword(struct nq_path *path)
{
    int found = complete(names, path->candidates, path->count);
    if (!path->count)
        path->valid = false;
    if (found < 0)
        return;
    path->parameter = (uint8_t)found;
    if (parameters[found].recipient == path->sender || (path->given >> found & 1))
        path->valid = false;
    path->given |= (uint16_t)(1u << found);
}

/* RFC 5321, 4.1.2: esmtp-keyword. */
static void take_keyword(struct nq_path *path, uint8_t octet)
{
    if (!is_letter(octet) && !is_digit(octet) && !(octet == '-' && path->count))
        path->valid = false;
    path->candidates = narrow(names, path->candidates, path->count, octet);
    if (path->count < UINT16_MAX)
        path->count++;
}

/* ---- steps: one octet each ------------------------------------------------------------------------------------------ */

static int end_address(struct nq_path *path, uint8_t phase)
{
    path->phase = phase;
    return PATH_ADDRESS;
}

static int say_special(struct nq_path *path)
{
    path->excused = true;
    return PATH_SPECIAL;
}

static bool is_stray(const struct nq_path *path, uint8_t octet)
{
    return (octet == '<' || octet == '>') && !path->excused;
}

/* The word itself tells nothing, and there are servers that do not look at it: the address begins behind ':', or with '<'. */
static int step_word(struct nq_path *path, uint8_t octet)
{
    if (is_line_end(octet))
        return end_address(path, PHASE_OF_BETWEEN);
    if (octet == 0)
        return PATH_NOTHING;
    if (octet == '<' || octet == ':') {
        path->phase = PHASE_OF_COLON;
        return octet == '<' ? STEP_AGAIN : STEP_TAKE;
    }
    if ((octet == '>' || octet == '|' || octet == '`') && !path->excused)
        return say_special(path);
    return STEP_TAKE;
}

/* RFC 5321, 4.1.2 allows '<' and '>' in quotes. Behind a backslash outside quotes RFC 821 did: servers differ in where such an
 * address ends. */
static bool is_special(const struct nq_path *path, uint8_t octet)
{
    bool bracket = octet == '<' || octet == '>';
    return octet == '|' || octet == '`' || octet == 0 || (bracket && !(path->quoting & QUOTED));
}

static void quote(struct nq_path *path, uint8_t octet)
{
    if (path->quoting & ESCAPED)
        path->quoting &= (uint8_t)~ESCAPED;
    else if (octet == '\\')
        path->quoting |= ESCAPED;
    else if (octet == '"')
        path->quoting ^= QUOTED;
}

static int step_address(struct nq_path *path, uint8_t octet)
{
    bool angle = path->phase == PHASE_OF_ANGLE;
    if (is_line_end(octet))
        return end_address(path, PHASE_OF_BETWEEN);
    if (!path->quoting && angle && octet == '>')
        return end_address(path, PHASE_OF_CLOSE);
    if (!path->quoting && !angle && is_blank(octet))
        return end_address(path, PHASE_OF_BETWEEN);
    if (is_special(path, octet) && !path->excused)
        return say_special(path);
    if (path->length >= path->limit && path->limit != path->limit_told) {
        path->limit_told = path->limit;
        return PATH_LENGTH;
    }
    quote(path, octet);
    return STEP_TAKE_ADDRESS;
}

static int step_colon(struct nq_path *path, uint8_t octet)
{
    if (is_blank(octet))
        return STEP_TAKE;
    if (octet == '<') {
        path->phase = PHASE_OF_ANGLE;
        return STEP_TAKE;
    }
    int step = step_address(path, octet);
    if (step == STEP_TAKE_ADDRESS)
        path->phase = PHASE_OF_BARE;
    return step;
}

/* Whatever it has become, it closes the address. */
static int step_close(struct nq_path *path, uint8_t octet)
{
    path->phase = PHASE_OF_BEHIND;
    return STEP_TAKE;
}

static int step_between(struct nq_path *path, uint8_t octet)
{
    if (is_line_end(octet) || octet == 0)
        return PATH_NOTHING;
    if (is_blank(octet)) {
        path->phase = PHASE_OF_BETWEEN;
        return STEP_TAKE;
    }
    if (is_stray(path, octet))
        return say_special(path);
    begin_parameter(path, path->phase == PHASE_OF_BETWEEN);
    return STEP_AGAIN;
}

static int end_parameter(struct nq_path *path)
{
    path->phase = PHASE_OF_BETWEEN;
    return PATH_PARAMETER;
}

static int step_keyword(struct nq_path *path, uint8_t octet)
{
    if (octet == 0)
        return PATH_NOTHING;
    if (is_line_end(octet) || is_blank(octet)) {
        end_keyword(path);
        if (parameters[path->parameter].word_count || (path->parameter && parameters[path->parameter].elements))
            path->valid = false; /* its value is missing */
        return end_parameter(path);
    }
    if (octet == '=') {
        end_keyword(path);
        begin_value(path);
        return STEP_TAKE;
    }
    if (is_stray(path, octet))
        return say_special(path);
    take_keyword(path, octet);
    return STEP_TAKE;
}

static int step_value(struct nq_path *path, uint8_t octet)
{
    if (octet == 0)
        return PATH_NOTHING;
    if (is_line_end(octet) || is_blank(octet)) {
        end_value(path);
        return end_parameter(path);
    }
    take_value(path, octet);
    return STEP_TAKE;
}

static int (*const steps[])(struct nq_path *path, uint8_t octet) = {
    [PHASE_OF_WORD] = step_word,
    [PHASE_OF_COLON] = step_colon,
    [PHASE_OF_BARE] = step_address,
    [PHASE_OF_ANGLE] = step_address,
    [PHASE_OF_CLOSE] = step_close,
    [PHASE_OF_BEHIND] = step_between,
    [PHASE_OF_BETWEEN] = step_between,
    [PHASE_OF_KEYWORD] = step_keyword,
    [PHASE_OF_VALUE] = step_value,
};

/* ---- the interface -------------------------------------------------------------------------------------------------- */

void path_begin(struct nq_path *path, bool sender)
{
    *path = (struct nq_path){ .sender = sender, .limit = UINT32_MAX, .limit_told = UINT32_MAX };
}

enum nq_path_said path_take(struct nq_path *path, const uint8_t **at, const uint8_t *end)
{
    path->address_from = path->address_to = *at;
    while (*at < end) {
        int step = steps[path->phase](path, **at);
        if (step == STEP_AGAIN)
            continue;
        if (step < STEP_TAKE)
            return (enum nq_path_said)step;
        if (step == STEP_TAKE_ADDRESS) {
            if (path->address_from == path->address_to)
                path->address_from = *at;
            path->address_to = *at + 1;
            path->length++;
        }
        path->excused = false;
        ++*at;
    }
    return PATH_NOTHING;
}

/* path->element holds the words that BODY was given: 7BIT, 8BITMIME, BINARYMIME. */
uint8_t path_keyword(const struct nq_path *path)
{
    enum { BINARY = 1 << 2 };
    static const uint8_t keywords[PARAMETERS] = {
#define PARAMETER(symbol, text, keyword) [PARAMETER_##symbol] = KEYWORD_##keyword,
#include "smtp_parameters.def"
#undef PARAMETER
    };
    if (path->parameter == PARAMETER_BODY && path->valid && path->element & BINARY)
        return KEYWORD_BINARYMIME; /* RFC 3030, 3 */
    return keywords[path->parameter];
}
