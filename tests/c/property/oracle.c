/*
 * oracle.c - what the applications must have read, from what was written: two passes over whole streams, line by line, as a
 * reader of RFC 5321 would do it with the finger on the page. No automaton, no resumption, no packets.
 *
 * The client's stream is read with the server's replies beside it: the n-th line gets the n-th reply behind the greeting, and
 * the replies to DATA, AUTH and STARTTLS say how to read on. Then the server's stream, with the verbs beside it.
 *
 * An illegal line leaves with its length. Letters that were a permitted verb's beginning may have left before it was known to
 * be illegal; all behind them is X. Where an adversary has sent several octets for one place, the stream that left is judged
 * against itself: the first octet that was taken counts, and it may hold no illegal line but an overwritten one.
 */
#include "sim.h"

#include <ctype.h>
#include <stdio.h>
#include <strings.h>

enum verb { OTHER = 0, EHLO, DATA, AUTH, STARTTLS };

struct reply {
    uint32_t begin, end;
    uint16_t code;
    enum verb to;
};

struct replies {
    uint32_t count;             /* complete ones */
    struct reply at[REPLIES];
};

/* What was written and what was read of one direction. */
struct reading {
    struct sim *sim;
    const uint8_t *in, *out;
    uint32_t in_len, out_len, i, o;
    bool complete;
    bool itself;                /* out is judged against itself */
    bool verb_cut, return_cut, keyword_cut;     /* a reset is to be expected if only the line's end is left to edit */
    bool dot_cut;               /* likewise: CRLF.CR had left, and no LF follows */
    bool auth_broken;           /* a reset is to be expected: an AUTH exchange held a bare CR or a NUL */
};

/* What is to become of a line. */
struct verdict {
    bool illegal;
    uint32_t kept;              /* octets that may have left before it was known */
    bool at_return;             /* and it was known by the line's end: there one more, and a reset */
    bool may_end;               /* a reply's line that may have come to end it */
};

/* ---- words ---- */

static uint32_t token_len(const uint8_t *line, uint32_t len, const char *ends)
{
    uint32_t n = 0;
    while (n < len && !(line[n] && strchr(ends, line[n])))
        n++;
    return n;
}

/* The longest beginning of the token that is one of some word, too; `whole`: the token is a word. */
static uint32_t common_beginning(const char *const *words, const uint8_t *token, uint32_t len, bool *whole)
{
    uint32_t best = 0;
    *whole = false;
    for (; *words; words++) {
        uint32_t n = 0;
        while (n < len && (*words)[n] && toupper(token[n]) == (*words)[n])
            n++;
        best = n > best ? n : best;
        *whole |= n == len && !(*words)[n] && len > 0;
    }
    return best;
}

static enum verb verb_of(const uint8_t *line, uint32_t len)
{
    static const char *const verbs[] = { [EHLO] = "EHLO", [DATA] = "DATA", [AUTH] = "AUTH", [STARTTLS] = "STARTTLS" };
    uint32_t token = token_len(line, len, " \t\r\n");
    for (enum verb verb = EHLO; verb <= STARTTLS; verb++)
        if (strlen(verbs[verb]) == token && strncasecmp((const char *)line, verbs[verb], token) == 0)
            return verb;
    return OTHER;
}

/* ---- comparing ---- */

static void show(char *into, size_t size, const uint8_t *octets, uint32_t len)
{
    size_t at = 0;
    into[0] = 0;
    for (uint32_t i = 0; i < len && at + 5 < size; i++) {
        bool plain = octets[i] >= ' ' && octets[i] <= '~';
        at += (size_t)snprintf(into + at, size - at, plain ? "%c" : "\\x%02x", octets[i]);
    }
}

_Noreturn static void differs(struct reading *reading, const char *what)
{
    char written[400], read[400];
    show(written, sizeof written, reading->in + reading->i, reading->in_len - reading->i);
    show(read, sizeof read, reading->out + reading->o, reading->out_len - reading->o);
    FAIL("%s\n  written, from %u on: \"%s\"\n     read, from %u on: \"%s\"", what, reading->i, written, reading->o, read);
}

static bool exhausted(const struct reading *reading) { return reading->o >= reading->out_len; }

/* The next octets read are these; where reading has ended early, as far as it went. */
static void expect(struct reading *reading, const void *octets, uint32_t len, const char *what)
{
    uint32_t left = reading->out_len - reading->o;
    uint32_t n = len < left ? len : left;
    if (memcmp(reading->out + reading->o, octets, n))
        differs(reading, what);
    reading->o += n;
}

static void same(struct reading *reading, uint32_t len, const char *what)
{
    expect(reading, reading->in + reading->i, len, what);
    reading->i += len;
}

/* Up to and with LF, or to the end. */
static uint32_t line_len(const struct reading *reading)
{
    const uint8_t *at = reading->in + reading->i;
    uint32_t left = reading->in_len - reading->i;
    const uint8_t *end = memchr(at, '\n', left);
    return end ? (uint32_t)(end - at) + 1 : left;
}

/* Without its end. */
static uint32_t body_len(const uint8_t *line, uint32_t len)
{
    if (len && line[len - 1] == '\n')
        len -= len > 1 && line[len - 2] == '\r' ? 2 : 1;
    return len;
}

/* From `skip` octets behind its beginning on, at most verdict.kept octets stand as they were, and all behind them are X. */
static bool is_overwritten(const struct reading *reading, uint32_t len, uint32_t skip, struct verdict verdict)
{
    const uint8_t *in = reading->in + reading->i, *out = reading->out + reading->o;
    uint32_t body = body_len(in, len), left = reading->out_len - reading->o, first = body;
    while (first > skip) {
        uint32_t at = first - 1;
        if (at < left && out[at] != 'X' && !(out[at] == '\r' && in[at] == '\r'))
            break;
        first--;
    }
    uint32_t kept = skip + verdict.kept;
    if (first > kept && !(verdict.at_return && left <= kept + 1))
        return false;
    for (uint32_t at = 0; at < len && at < left; at++)
        if ((at < first || at >= body) && out[at] != in[at] && !(at == 3 && verdict.may_end && in[at] == '-' && out[at] == ' '))
            return false;
    return true;
}

/* ---- the client's stream ---- */

static struct verdict judge_verb(struct reading *reading, const uint8_t *line, uint32_t body, bool ended)
{
    bool whole;
    uint32_t token = token_len(line, body, " \t\r");
    uint32_t known = common_beginning(reading->sim->plan.rules->verbs, line, token, &whole);
    bool open_end = token == body && !ended; /* more may come */
    if (known < token)
        return (struct verdict){ true, known, false, false };
    if (token == 0)
        return (struct verdict){ body > 0 && line[0] != '\r', 0, false, false };
    if (whole || open_end)
        return (struct verdict){ false, 0, false, false };
    bool at_return = token == body || line[token] == '\r';
    reading->verb_cut |= at_return;
    return (struct verdict){ true, at_return ? token - 1 : token, at_return, false };
}

/* NUL, or CR that no LF follows. */
static struct verdict judge_octets(struct reading *reading, const uint8_t *line, uint32_t body)
{
    for (uint32_t at = 0; at < body; at++) {
        if (line[at] == 0)
            return (struct verdict){ true, at, false, false };
        if (at && line[at - 1] == '\r') {
            reading->return_cut |= line[at] == '\r';
            return (struct verdict){ true, line[at] == '\r' ? at - 1 : at, line[at] == '\r', false };
        }
    }
    bool at_end = body && line[body - 1] == '\r' && line[body] != 0 && line[body] == '\r';
    if (at_end) { /* "\r\r\n": the second may belong to the line's end, the first does not */
        reading->return_cut = true;
        return (struct verdict){ true, body - 1, true, false };
    }
    return (struct verdict){ false, 0, false, false };
}

static struct verdict judge_command(struct reading *reading, uint32_t len)
{
    const uint8_t *line = reading->in + reading->i;
    uint32_t body = body_len(line, len);
    bool ended = len && line[len - 1] == '\n';
    struct verdict verb = judge_verb(reading, line, body, ended);
    if (verb.illegal)
        return verb;
    struct verdict octets = judge_octets(reading, line, body);
    return octets;
}

/* Returns the verb of the line as the server has read it, or as it will read it. */
static enum verb read_command(struct reading *reading, uint32_t len)
{
    struct verdict verdict = judge_command(reading, len);
    const uint8_t *in = reading->in + reading->i, *out = reading->out + reading->o;
    uint32_t left = reading->out_len - reading->o;
    if (!verdict.illegal) {
        same(reading, len, "a legal command line");
        return verb_of(in, len);
    }
    if (!is_overwritten(reading, len, 0, verdict))
        differs(reading, "an illegal command line");
    reading->i += len;
    reading->o += len < left ? len : left;
    return len <= left ? verb_of(out, len) : OTHER;
}

/* Message data from here on ends behind the first CRLF.CRLF, the CRLF before it being the DATA line's where it is empty. */
static uint32_t message_len(const struct reading *reading)
{
    const uint8_t *at = reading->in + reading->i;
    uint32_t left = reading->in_len - reading->i;
    if (left >= 3 && memcmp(at, ".\r\n", 3) == 0)
        return 3;
    for (uint32_t n = 5; n <= left; n++)
        if (memcmp(at + n - 5, "\r\n.\r\n", 5) == 0)
            return n;
    return 0;
}

/* The octet of message data at `at` is a newline, or half of one, that a receiver may take for a line's end and another does not. */
static bool is_bare(const uint8_t *in, uint32_t at, uint32_t len, bool before)
{
    if (in[at] == '\n')
        return !before || in[at - 1] != '\r';
    return in[at] == '\r' && at + 1 < len && in[at + 1] != '\n';
}

/* Bare newlines have become blanks; a CR may have left before it was known to be bare, and then a dot behind it is a blank. A NUL may
 * have become one at a line's beginning. What CRLF.CR opens that has left can only be ended. */
static void read_defused(struct reading *reading, uint32_t len)
{
    const uint8_t *in = reading->in + reading->i, *out = reading->out + reading->o;
    uint32_t left = reading->out_len - reading->o, n = len < left ? len : left;
    for (uint32_t at = 0; at < n; at++) {
        bool bare = is_bare(in, at, len, at > 0), cr_left = at && in[at - 1] == '\r' && out[at - 1] == '\r';
        bool blank = out[at] == ' ' && (bare || in[at] == 0 || (in[at] == '.' && cr_left));
        bool same = out[at] == in[at] && !(bare && in[at] == '\n') && !(in[at] == '.' && cr_left);
        if (blank || same)
            continue;
        reading->i += at;
        reading->o += at;
        differs(reading, "message data without bare newlines");
    }
    for (uint32_t at = 0; at + 3 < len; at++)
        reading->dot_cut |= in[at] == '.' && in[at + 1] == '\r' && in[at + 2] != '\n' &&
                            (at == 0 || (at >= 2 && in[at - 1] == '\n' && in[at - 2] == '\r'));
    reading->i += len;
    reading->o += n;
}

/* Returns whether its end was there. */
static bool read_message(struct reading *reading)
{
    const char *header = reading->sim->plan.rules->header;
    uint32_t len = message_len(reading);
    if (header && !reading->itself && reading->i < reading->in_len && !exhausted(reading)) {
        bool skipped = nq_engine_counter(reading->sim->gate.engine, COUNT_EDITS_SKIPPED) > 0;
        uint32_t left = reading->out_len - reading->o, size = (uint32_t)strlen(header);
        bool there = memcmp(reading->out + reading->o, header, size < left ? size : left) == 0;
        if (there || !skipped) {
            expect(reading, header, size, "the header that is inserted");
            expect(reading, "\r\n", 2, "the end of the header that is inserted");
        }
    }
    uint32_t octets = len ? len : reading->in_len - reading->i;
    if (reading->sim->plan.rules->defuses)
        read_defused(reading, octets);
    else
        same(reading, octets, "message data");
    return len > 0;
}

/* What follows a line that waits for its reply: nothing without that reply. Returns false there. */
static bool replied(struct reading *reading, const struct replies *replies, uint32_t line)
{
    if (line < replies->count)
        return true;
    if (!exhausted(reading))
        differs(reading, "octets have passed before the reply that they depend on");
    return false;
}

/* A bare CR may leave before it is known to be one; a NUL, and what stands behind either, may not. */
static bool read_auth_line(struct reading *reading)
{
    const uint8_t *line = reading->in + reading->i;
    uint32_t len = line_len(reading), n = 0;
    while (n < len && line[n] && !(line[n] == '\r' && n + 1 < len && line[n + 1] != '\n'))
        n++;
    reading->auth_broken |= n < len;
    same(reading, n < len && line[n] ? n + 1 : n, "a line of an AUTH exchange");
    if (n < len && !exhausted(reading))
        differs(reading, "octets behind a bare CR or a NUL in an AUTH exchange");
    return n == len;
}

static bool read_auth(struct reading *reading, struct replies *replies, uint32_t *line)
{
    while (replied(reading, replies, *line)) {
        if (replies->at[*line].code != 334 || reading->i == reading->in_len)
            return true;
        if (!read_auth_line(reading))
            return false;
        replies->at[++*line].to = AUTH;
    }
    return false;
}

/* What a line has led to. Returns false where reading cannot go on. */
static bool read_consequences(struct reading *reading, struct replies *replies, enum verb verb, uint32_t *line)
{
    if (verb == AUTH)
        return read_auth(reading, replies, line);
    if (verb != STARTTLS && verb != DATA)
        return true;
    if (!replied(reading, replies, *line))
        return false;
    if (verb == STARTTLS && replies->at[*line].code == 220) {
        same(reading, reading->in_len - reading->i, "octets behind STARTTLS");
        return false;
    }
    if (verb == STARTTLS || replies->at[*line].code != 354)
        return true;
    if (!read_message(reading))
        return false;
    replies->at[++*line].to = OTHER;
    return true;
}

/* Goes on where the server has read no further: what would explain a reset may come there. */
static void read_client(struct reading *reading, struct replies *replies)
{
    uint32_t line = 0;
    while (reading->i < reading->in_len) {
        enum verb verb = read_command(reading, line_len(reading));
        CHECK(++line < REPLIES - 2);
        replies->at[line].to = verb;
        if (!read_consequences(reading, replies, verb, &line))
            break;
    }
    if (reading->complete && (reading->i < reading->in_len || reading->o < reading->out_len))
        differs(reading, "the server has not read all, or too much");
    if (!exhausted(reading))
        differs(reading, "the server has read more than was written");
}

/* ---- the server's stream ---- */

static void find_replies(const struct end *server, struct replies *replies)
{
    uint32_t begin = 0, line = 0;
    replies->count = 0;
    for (uint32_t at = 0; at < server->said; at++) {
        char separator;
        if (server->say[at] != '\n')
            continue;
        uint16_t code = reply_code(server->say + line, at + 1 - line, &separator);
        line = at + 1;
        if (!code || separator == '-')
            continue;
        CHECK(replies->count < REPLIES);
        replies->at[replies->count++] = (struct reply){ begin, at + 1, code, OTHER };
        begin = at + 1;
        if (code == 220 && replies->count > 1) /* STARTTLS: what follows are no replies */
            break;
    }
}

static void read_banner_line(struct reading *reading)
{
    const struct rules *rules = reading->sim->plan.rules;
    const uint8_t *line = reading->in + reading->i;
    uint32_t len = line_len(reading), body = body_len(line, len);
    char separator;
    if (!reply_code(line, len, &separator) || rules->banner == NQ_BANNER_PASS || body < 4) {
        same(reading, len, "a greeting line");
        return;
    }
    same(reading, 4, "a greeting's code");
    if (rules->banner == NQ_BANNER_TEXT) {
        expect(reading, rules->banner_text, (uint32_t)strlen(rules->banner_text), "a greeting's other text");
        reading->i += body - 4;
    }
    for (uint32_t at = 4; rules->banner == NQ_BANNER_ASA && at < body; at++, reading->i++) {
        bool stays = line[at] == '2' || line[at] == '0' || line[at] == '\r' || (at == 4 && line[at] == ' ');
        expect(reading, stays ? line + at : (const uint8_t *)"*", 1, "a greeting's masked text");
    }
    same(reading, len - body, "a greeting's line end");
}

/* Where an edit log or a block was missing the greeting was masked instead of replaced, perhaps from its middle on. */
static void read_banner_loosely(struct reading *reading)
{
    uint32_t len = line_len(reading);
    const uint8_t *end = exhausted(reading) ? NULL : memchr(reading->out + reading->o, '\n', reading->out_len - reading->o);
    reading->o = end ? (uint32_t)(end - reading->out) + 1 : reading->out_len;
    reading->i += len;
}

static struct verdict judge_keyword(struct reading *reading, const uint8_t *text, uint32_t len)
{
    bool whole;
    uint32_t token = token_len(text, len, " \t\r=");
    uint32_t known = common_beginning(reading->sim->plan.rules->keywords, text, token, &whole);
    if (known < token)
        return (struct verdict){ true, known, false, false };
    if (token == 0)
        return (struct verdict){ len > 0 && text[0] != '\r', 0, false, false };
    bool at_return = token == len || text[token] == '\r';
    reading->keyword_cut |= !whole && at_return;
    return (struct verdict){ !whole, at_return ? token - 1 : token, at_return, false };
}

struct ehlo {
    uint32_t part;              /* lines with a code so far */
    bool ended;                 /* a line that ends the reply was read */
};

/* A line that stays; in the place of the last it ends the reply, where those behind it were removed. */
static void read_kept_line(struct reading *reading, struct ehlo *ehlo, uint32_t len, bool coded)
{
    if (coded && ehlo->ended)
        differs(reading, "a line behind the EHLO reply's last");
    bool removes = reading->sim->plan.rules->remove_keywords;
    uint32_t left = reading->out_len - reading->o;
    if (coded && removes && left > 3 && reading->in[reading->i + 3] == '-' && reading->out[reading->o + 3] == ' ') {
        same(reading, 3, "the code of an EHLO reply");
        expect(reading, " ", 1, "the separator of an EHLO reply");
        reading->i++;
        same(reading, len - 4, "the line of an EHLO reply that ends it");
        ehlo->ended = true;
        return;
    }
    ehlo->ended |= coded && len > 3 && reading->in[reading->i + 3] != '-';
    same(reading, len, "a line of an EHLO reply");
}

static void read_ehlo_line(struct reading *reading, struct ehlo *ehlo)
{
    const uint8_t *line = reading->in + reading->i;
    uint32_t len = line_len(reading), body = body_len(line, len);
    char separator;
    bool coded = reply_code(line, len, &separator);
    struct verdict verdict = { false, 0, false, false };
    if (coded && ehlo->part && body >= 4)
        verdict = judge_keyword(reading, line + 4, body - 4);
    ehlo->part += coded;
    verdict.may_end = reading->sim->plan.rules->remove_keywords;
    if (!verdict.illegal) {
        read_kept_line(reading, ehlo, len, coded);
        return;
    }
    bool removes = reading->sim->plan.rules->remove_keywords;
    if (is_overwritten(reading, len, 4, verdict) && !(removes && exhausted(reading))) {
        uint32_t left = reading->out_len - reading->o;
        ehlo->ended |= left > 3 && reading->out[reading->o + 3] != '-';
        reading->o += len < left ? len : left;
    } else if (!removes)
        differs(reading, "a keyword that is not offered");
    reading->i += len;
}

static void read_reply(struct reading *reading, const struct reply *reply, bool first)
{
    const struct rules *rules = reading->sim->plan.rules;
    struct ehlo ehlo = { 0, false };
    bool masks = first ? reply->code == 220 && rules->banner != NQ_BANNER_PASS
                       : reply->to == EHLO && reply->code == 250 && rules->mask_keywords;
    while (reading->i < reply->end) {
        if (!masks)
            same(reading, line_len(reading), "a reply");
        else if (!first)
            read_ehlo_line(reading, &ehlo);
        else if (reading->sim->plan.small && rules->banner == NQ_BANNER_TEXT)
            read_banner_loosely(reading);
        else
            read_banner_line(reading);
    }
    if (masks && !first && !exhausted(reading) && !ehlo.ended)
        differs(reading, "an EHLO reply without an end");
}

static void read_server(struct reading *reading, const struct replies *replies)
{
    for (uint32_t n = 0; n < replies->count; n++)
        read_reply(reading, &replies->at[n], n == 0);
    same(reading, reading->in_len - reading->i, "octets behind the last reply");
    if (reading->complete ? reading->o != reading->out_len : !exhausted(reading))
        differs(reading, "the client has read too much");
}

/* ---- both ---- */

/* Every reset must have its reason in what was said, or in bounds that were reached. */
static void explain_resets(struct sim *sim, const struct reading *client, const struct reading *server)
{
    uint64_t resets = nq_engine_counter(sim->gate.engine, COUNT_RESETS);
    uint64_t wrong = gate_count(sim, REASON_AHEAD_WRONG);
    bool explained = (client->verb_cut && gate_count(sim, REASON_INCOMPLETE)) ||
                     (client->return_cut && gate_count(sim, REASON_BARE_CR)) ||
                     (client->auth_broken && (gate_count(sim, REASON_BARE_CR) || gate_count(sim, REASON_NUL))) ||
                     (server->keyword_cut && gate_count(sim, REASON_KEYWORD)) ||
                     (client->dot_cut && gate_count(sim, REASON_RULE)) ||
                     (wrong && (sim->plan.behind_body || sim->plan.talks_ahead));
    for (enum nq_reason reason = 0; reason < REASONS; reason++)
        if (gate_count(sim, reason))
            trace(sim, "%s: %u", nq_reason_name(reason), (unsigned)gate_count(sim, reason));
    if (resets && !explained && !sim->plan.small && !sim->plan.adversary)
        FAIL("the connection was reset, and nothing that was said explains it");
}

void oracle_judges(struct sim *sim, bool complete)
{
    static struct replies replies;
    struct end *client = &sim->end[CLIENT], *server = &sim->end[SERVER];
    struct reading to_server = { .sim = sim, .in = client->say, .in_len = client->said, .out = server->heard,
                                 .out_len = server->got, .complete = complete };
    struct reading to_client = { .sim = sim, .in = server->say, .in_len = server->said, .out = client->heard,
                                 .out_len = client->got, .complete = complete };
    find_replies(server, &replies);
    if (sim->plan.adversary) {
        to_server.in = server->heard;
        to_server.in_len = server->got;
        to_server.itself = true;
    }
    read_client(&to_server, &replies);
    if (!sim->plan.adversary)
        read_server(&to_client, &replies);
    explain_resets(sim, &to_server, &to_client);
}
