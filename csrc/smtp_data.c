/*
 * smtp_data.c - message data: where it ends, how long its lines are, and what one side may take for a line's end that the other
 * does not. Only CRLF.CRLF ends the data (RFC 5321, 4.1.1.4). Servers that take a bare LF or CR for a line's end see the end in
 * seven more places, and then commands in what the sender's server took for text (CVE-2023-51764, -51765, -51766).
 *
 * What a line's first octets mean is a table. Inside a line nothing matters but the next CR or LF, and finding that is vectorised.
 * States follow the octets as they came, not as they leave, so that what is told does not depend on what was changed.
 */
#include "nq.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { ANY, CR, LF, DOT, NUL, CLASSES };

static const uint8_t next_state[DATA_STATES][CLASSES] = {
    /*                      other        CR           LF                dot             NUL */
    [DATA_LINE_START]  = { DATA_INSIDE, DATA_CR,     DATA_FALSE_START, DATA_DOT,       DATA_FALSE_START },
    [DATA_INSIDE]      = { DATA_INSIDE, DATA_CR,     DATA_FALSE_START, DATA_INSIDE,    DATA_INSIDE },
    [DATA_CR]          = { DATA_INSIDE, DATA_CR,     DATA_LINE_START,  DATA_FALSE_DOT, DATA_FALSE_START },
    [DATA_DOT]         = { DATA_INSIDE, DATA_DOT_CR, DATA_FALSE_START, DATA_INSIDE,    DATA_FALSE_DOT },
    [DATA_DOT_CR]      = { DATA_INSIDE, DATA_CR,     DATA_LINE_START,  DATA_FALSE_DOT, DATA_FALSE_START },
    [DATA_FALSE_START] = { DATA_INSIDE, DATA_CR,     DATA_FALSE_START, DATA_FALSE_DOT, DATA_FALSE_START },
    [DATA_FALSE_DOT]   = { DATA_INSIDE, DATA_CR,     DATA_FALSE_START, DATA_INSIDE,    DATA_FALSE_DOT },
};

static const uint8_t tells[DATA_STATES][CLASSES] = {
    /*                      other               CR                  LF                  dot                 NUL */
    [DATA_LINE_START]  = { 0,                  0,                  TOKEN_BARE_NEWLINE, 0,                  TOKEN_BARE_NEWLINE },
    [DATA_INSIDE]      = { 0,                  0,                  TOKEN_BARE_NEWLINE, 0,                  0 },
    [DATA_CR]          = { TOKEN_BARE_NEWLINE, TOKEN_BARE_NEWLINE, 0,                  TOKEN_BARE_NEWLINE, TOKEN_BARE_NEWLINE },
    [DATA_DOT]         = { 0,                  0,                  TOKEN_FALSE_END,    0,                  TOKEN_BARE_NEWLINE },
    [DATA_DOT_CR]      = { TOKEN_FALSE_END,    TOKEN_FALSE_END,    0,                  TOKEN_FALSE_END,    TOKEN_FALSE_END },
    [DATA_FALSE_START] = { 0,                  0,                  TOKEN_BARE_NEWLINE, 0,                  0 },
    [DATA_FALSE_DOT]   = { 0,                  TOKEN_FALSE_END,    TOKEN_FALSE_END,    0,                  TOKEN_BARE_NEWLINE },
};

static int class_of(const struct nq_data *data, uint8_t octet)
{
    switch (octet) {
    case '\r': return CR;
    case '\n': return LF;
    case '.': return data->counted ? ANY : DOT;
    case 0: return data->counted ? ANY : NUL;
    default: return ANY;
    }
}

void data_begin(struct nq_data *data, bool counted, bool watched, uint32_t body_limit, uint32_t header_limit)
{
    *data = (struct nq_data){ .counted = counted, .watched = watched && !counted, .in_header = true,
                              .line_limit = { body_limit, header_limit } };
}

uint32_t data_pending(const struct nq_data *data)
{
    return data->state == DATA_DOT ? 1 : data->state == DATA_DOT_CR ? 2 : 0;
}

enum { BLOCK = 64 };

struct newlines { uint64_t cr, lf; };   /* bits: octets of a block */

/* The first `count` octets from `at` on, at most a block. */
static struct newlines newlines_in(const uint8_t *at, size_t count)
{
    struct newlines found = { 0, 0 };
    uint8_t tail[BLOCK];
    if (count < BLOCK) {
        memset(tail + count, 0, BLOCK - count);
        at = memcpy(tail, at, count);
    }
#if defined(__SSE2__)
    const __m128i cr = _mm_set1_epi8('\r'), lf = _mm_set1_epi8('\n');
    for (int i = 0; i < BLOCK; i += 16) {
        __m128i octets = _mm_loadu_si128((const void *)(at + i));
        found.cr |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(octets, cr)) << i;
        found.lf |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(octets, lf)) << i;
    }
#else
    for (int i = 0; i < BLOCK; i++) {
        found.cr |= (uint64_t)(at[i] == '\r') << i;
        found.lf |= (uint64_t)(at[i] == '\n') << i;
    }
#endif
    return found;
}

static void line_begins(struct nq_data *data, uint64_t octets)
{
    data->octets[data->in_header] += octets;
    if (data->line_len == 0)
        data->in_header = false; /* RFC 5322, 2.1: the empty line */
    data->line_len = 0;
    data->long_line = false;
}

/* Octets inside a line. False where it becomes too long among them: then as many as prove it are taken. */
static bool take(struct nq_data *data, uint8_t **at, uint32_t count)
{
    uint32_t limit = data->line_limit[data->in_header];
    bool fits = (uint64_t)data->line_len + count <= limit || data->line_len > limit || data->long_line;
    count = fits ? count : limit - data->line_len + 1;
    data->line_len += count;
    *at += count;
    return fits;
}

/* Is this CRLF, and an ordinary octet behind it? */
static bool ordinary_end(const uint8_t *at, const uint8_t *end)
{
    return end - at > 2 && at[0] == '\r' && at[1] == '\n' && at[2] != '.' && at[2] != '\r' && at[2] != '\n' && at[2];
}

/* Whole lines without anything in them that matters, from inside a line on, a block at a time. Returns where that ends: at a
 * newline that is not simply CRLF before an ordinary octet, inside the last line, or where a line is too long. */
static uint8_t *pass_lines(struct nq_data *data, uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        uint8_t *block = at;
        size_t count = end - at < BLOCK ? (size_t)(end - at) : BLOCK;
        struct newlines found = newlines_in(block, count);
        for (uint64_t ends = found.cr | (found.lf & ~(found.cr << 1)); ends; ends &= ends - 1) {
            uint8_t *newline = block + __builtin_ctzll(ends);
            if (!take(data, &at, (uint32_t)(newline - at)) || !ordinary_end(at, end))
                return at;
            at += 2;
            data->line_len = 0;
            data->long_line = false;
        }
        if (at < block + count && !take(data, &at, (uint32_t)(block + count - at)))
            return at;
    }
    return at;
}

/* One octet, by the table. */
static void step(struct nq_data *data, int class)
{
    uint8_t was = data->state;
    bool ends_line = class == LF && (was == DATA_CR || was == DATA_DOT_CR);
    bool bare_cr = !ends_line && (was == DATA_CR || was == DATA_DOT_CR);
    data->state = next_state[was][class];
    if (ends_line) {
        line_begins(data, 1);
        return;
    }
    data->line_len += (class == CR ? 0 : 1) + (bare_cr ? 1 : 0);
    data->octets[data->in_header]++;
}

enum nq_token data_scan(struct nq_data *data, struct nq_cursor *cursor)
{
    while (cursor->at < cursor->end) {
        if (data->state == DATA_INSIDE && !data->told) {
            uint8_t *from = cursor->at;
            cursor->at = pass_lines(data, from, cursor->end);
            data->octets[data->in_header] += (uint64_t)(cursor->at - from);
            if (data->line_len > data->line_limit[data->in_header] && !data->long_line) {
                data->long_line = true;
                return TOKEN_LONG_LINE;
            }
            if (cursor->at == cursor->end)
                break;
        }
        int class = data->told ? data->told - 1 : class_of(data, *cursor->at);
        enum nq_token token = data->watched && !data->told ? tells[data->state][class] : 0;
        if (token) {
            data->told = (uint8_t)(1 + class);
            data->defused &= token == TOKEN_FALSE_END;
            return token;
        }
        bool ends = data->state == DATA_DOT_CR && class == LF;
        step(data, class);
        data->told = 0;
        cursor->at++;
        if (ends) {
            data->octets[data->in_header] -= 3;
            return TOKEN_END_OF_DATA;
        }
    }
    return TOKEN_NONE;
}

/* The first CR or LF from `at` on, or end. */
static uint8_t *find_newline(uint8_t *at, const uint8_t *end)
{
#if defined(__SSE2__)
    const __m128i cr = _mm_set1_epi8('\r'), lf = _mm_set1_epi8('\n');
    for (; end - at >= 32; at += 32) {
        __m128i low = _mm_loadu_si128((const void *)at), high = _mm_loadu_si128((const void *)(at + 16));
        __m128i lows = _mm_or_si128(_mm_cmpeq_epi8(low, cr), _mm_cmpeq_epi8(low, lf));
        __m128i highs = _mm_or_si128(_mm_cmpeq_epi8(high, cr), _mm_cmpeq_epi8(high, lf));
        unsigned hits = (unsigned)_mm_movemask_epi8(lows) | (unsigned)_mm_movemask_epi8(highs) << 16;
        if (hits)
            return at + __builtin_ctz(hits);
    }
#endif
    while (at < end && *at != '\r' && *at != '\n')
        at++;
    return at;
}

/* Bare newlines, and what begins a line in some eyes and is edited there: a dot or NUL behind what may be a bare CR, a NUL behind
 * CRLF or behind a dot there. */
static bool newline_matters_among(const uint8_t *at, const uint8_t *end)
{
    if (at < end && (*at == '.' || *at == 0))
        return true;
    for (; (at = find_newline((uint8_t *)at, end)) < end; at += 2) {
        if (*at == '\n' || end - at < 2 || at[1] != '\n') /* a CR at the end may be sent again with what shows that it is bare */
            return true;
        bool dot = end - at > 2 && at[2] == '.';
        if (end - at > 2 + dot && at[2 + dot] == 0)
            return true;
    }
    return false;
}

/* The first "\r\n." at or behind `at`, or end. */
static const uint8_t *find_dot_line(const uint8_t *at, const uint8_t *end)
{
#if defined(__SSE2__)
    const __m128i cr = _mm_set1_epi8('\r'), lf = _mm_set1_epi8('\n'), dot = _mm_set1_epi8('.');
    for (; end - at >= 18; at += 16) {
        __m128i first = _mm_cmpeq_epi8(_mm_loadu_si128((const void *)at), cr);
        __m128i second = _mm_cmpeq_epi8(_mm_loadu_si128((const void *)(at + 1)), lf);
        __m128i third = _mm_cmpeq_epi8(_mm_loadu_si128((const void *)(at + 2)), dot);
        int hits = _mm_movemask_epi8(_mm_and_si128(_mm_and_si128(first, second), third));
        if (hits)
            return at + __builtin_ctz((unsigned)hits);
    }
#endif
    for (; end - at >= 3; at++)
        if (at[0] == '\r' && at[1] == '\n' && at[2] == '.')
            return at;
    return end;
}

static bool may_end(const uint8_t *at, const uint8_t *end)
{
    static const char ends[][5] = { "\n.\r\n", ".\r\n" };
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t len = strlen(ends[i]);
        if ((size_t)(end - at) >= len && memcmp(at, ends[i], len) == 0)
            return true;
    }
    while ((at = find_dot_line(at, end)) < end) {
        at += 3;
        if (end - at >= 2 && at[0] == '\r' && at[1] == '\n')
            return true;
    }
    return false;
}

bool data_may_matter(const uint8_t *at, const uint8_t *end, bool watched)
{
    return may_end(at, end) || (watched && newline_matters_among(at, end));
}
