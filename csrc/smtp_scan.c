/*
 * smtp_scan.c - a resumable scanner of command lines and reply lines. It knows where words and lines begin and end, and not
 * what they mean. All its state lies in the caller's struct, so octets may come one by one.
 *
 * Holding octets until a line is complete was rejected: with Nagle's algorithm on the other side each hold costs 200 ms.
 * So every octet is consumed as it comes, and a word is judged by the prefix automaton before it is complete.
 */
#include "nq.h"

void scan_consume(struct nq_line *line, struct nq_cursor *cursor, const uint8_t *to)
{
    uint32_t octets = (uint32_t)(to - cursor->at);
    uint32_t room = NQ_LINE_KEPT - line->kept;
    uint32_t keep = octets < room ? octets : room;
    memcpy(line->text + line->kept, cursor->at, keep);
    line->kept = (uint8_t)(line->kept + keep);
    line->len += octets;
    line->cr = octets && to[-1] == '\r';
    cursor->at += octets;
}

/* At LF: the line is complete. */
static enum nq_token end_line(struct nq_line *line, struct nq_cursor *cursor)
{
    uint32_t before = line->len - (line->cr ? 1 : 0);
    scan_consume(line, cursor, cursor->at + 1);
    line->body_len = before;
    if (line->kept > before)
        line->kept = (uint8_t)before;
    line->ended = true;
    return TOKEN_LINE;
}

static void begin_line(struct nq_line *line)
{
    if (line->ended)
        *line = (struct nq_line){ 0 };
}

/* Octets that become X: all up to the line's end. A CR is left alone where LF follows, or where nobody can tell yet. */
static enum nq_token scan_overwrite(struct nq_line *line, struct nq_cursor *cursor)
{
    uint8_t *at = cursor->at;
    while (at < cursor->end && *at != '\n' && !(*at == '\r' && (at + 1 == cursor->end || at[1] == '\n')))
        at++;
    if (at > cursor->at) {
        scan_consume(line, cursor, at);
        return line->len >= NQ_COMMAND_LINE_MAX ? TOKEN_TOO_LONG : TOKEN_SPAN;
    }
    if (*at == '\n')
        return end_line(line, cursor);
    scan_consume(line, cursor, at + 1);
    return TOKEN_NONE;
}

static enum nq_token scan_rest(struct nq_line *line, struct nq_cursor *cursor)
{
    if (line->len >= NQ_COMMAND_LINE_MAX)
        return TOKEN_TOO_LONG;
    uint8_t *at = cursor->at;
    size_t room = NQ_COMMAND_LINE_MAX - line->len;
    const uint8_t *limit = (size_t)(cursor->end - at) < room ? cursor->end : at + room;
    while (at < limit && *at != '\n' && *at != '\r' && (*at || line->dry_run))
        at++;
    bool taken = at > cursor->at;
    if (taken)
        scan_consume(line, cursor, at);
    if (at == limit)
        return at == cursor->end ? TOKEN_NONE : TOKEN_TOO_LONG;
    if (*at == 0)
        return TOKEN_NUL;
    if (taken && *at == '\n')
        return TOKEN_NONE; /* bare: the caller looks at it before it is taken, as it would in another cut */
    if (*at == '\n')
        return end_line(line, cursor);
    scan_consume(line, cursor, at + 1);
    return TOKEN_NONE;
}

/* RFC 5321 4.1.1: a verb ends at a blank or the line's end; servers take a tab for a blank. An EHLO keyword ends at '=',
 * too: "AUTH=LOGIN" is what servers say to clients of the year 1998. */
static bool ends_word(uint8_t octet, bool reply)
{
    return octet == ' ' || octet == '\t' || octet == '\r' || octet == '\n' || (reply && octet == '=');
}

static enum nq_token word_ends(struct nq_line *line, const struct nq_automaton *automaton, bool line_ends)
{
    bool empty = !line->node; /* a reply stands in PHASE_WORD from its code on */
    if (empty && !line_ends)
        return TOKEN_UNKNOWN; /* servers skip a leading blank and take the word behind it */
    if (!empty && !automaton->word[line->node])
        return TOKEN_INCOMPLETE;
    line->phase = PHASE_REST;
    line->word = empty ? 0 : automaton->word[line->node];
    return empty ? TOKEN_NONE : TOKEN_WORD;
}

static enum nq_token scan_word(struct nq_line *line, const struct nq_automaton *automaton, struct nq_cursor *cursor,
                               bool reply)
{
    while (cursor->at < cursor->end) {
        uint8_t octet = *cursor->at;
        if (ends_word(octet, reply))
            return word_ends(line, automaton, octet == '\r' || octet == '\n');
        if (octet == 0 && !reply && !line->dry_run)
            return TOKEN_NUL;
        uint16_t node = automaton_step(automaton, line->node, octet);
        if (!node)
            return TOKEN_UNKNOWN;
        if (automaton->doomed[node]) {
            line->word = automaton->word[node];
            return TOKEN_FORBIDDEN;
        }
        line->node = node;
        line->phase = PHASE_WORD;
        scan_consume(line, cursor, cursor->at + 1);
    }
    return TOKEN_NONE;
}

/* A verb that passes though nobody knows it, up to its end. */
static enum nq_token scan_unknown(struct nq_line *line, struct nq_cursor *cursor)
{
    uint8_t *at = cursor->at;
    if (line->blank) { /* servers skip it, and so the verb is the word behind it */
        while (at < cursor->end && (*at == ' ' || *at == '\t'))
            at++;
        scan_consume(line, cursor, at);
        line->blank = at == cursor->end;
        line->phase = line->blank ? PHASE_UNKNOWN : PHASE_START;
        return TOKEN_NONE;
    }
    while (at < cursor->end && *at && !ends_word(*at, false))
        at++;
    scan_consume(line, cursor, at);
    if (at == cursor->end)
        return TOKEN_NONE;
    line->phase = PHASE_REST;
    line->word = VERB_PRIVATE;
    return TOKEN_WORD;
}

enum nq_token scan_command(struct nq_line *line, const struct nq_automaton *verbs, struct nq_cursor *cursor)
{
    begin_line(line);
    if (line->phase == PHASE_OVERWRITE)
        return line->len < NQ_COMMAND_LINE_MAX ? scan_overwrite(line, cursor) : TOKEN_TOO_LONG;
    if (line->cr && *cursor->at != '\n' && !line->dry_run)
        return TOKEN_BARE_CR;
    if (line->phase == PHASE_REST)
        return scan_rest(line, cursor);
    if (line->phase == PHASE_UNKNOWN)
        return scan_unknown(line, cursor);
    return scan_word(line, verbs, cursor, false);
}

enum nq_token scan_line(struct nq_line *line, struct nq_cursor *cursor)
{
    begin_line(line);
    return line->cr && *cursor->at != '\n' && !line->dry_run ? TOKEN_BARE_CR : scan_rest(line, cursor);
}

/* Inside the three digits and the octet behind them (RFC 5321, 4.2). A line without a code is none of ours to judge. */
static enum nq_token scan_code(struct nq_line *line, struct nq_cursor *cursor)
{
    while (cursor->at < cursor->end) {
        uint8_t octet = *cursor->at;
        bool digit = octet >= '0' && octet <= '9';
        if (line->digits < 3 && digit) {
            line->code = (uint16_t)(line->code * 10 + (octet - '0'));
            line->digits++;
            scan_consume(line, cursor, cursor->at + 1);
            continue;
        }
        line->phase = PHASE_REST;
        if (line->digits < 3)
            line->digits = NQ_NO_CODE;
        else if (octet == ' ' || octet == '-') {
            line->separator = octet;
            scan_consume(line, cursor, cursor->at + 1);
            return TOKEN_CODE;
        } else if (octet != '\r' && octet != '\n')
            line->digits = NQ_NO_CODE;
        return TOKEN_NONE;
    }
    return TOKEN_NONE;
}

static enum nq_token scan_to_lf(struct nq_line *line, struct nq_cursor *cursor, enum nq_token found)
{
    uint8_t *at = memchr(cursor->at, '\n', (size_t)(cursor->end - cursor->at));
    uint8_t *to = at ? at : cursor->end;
    if (to == cursor->at)
        return end_line(line, cursor);
    scan_consume(line, cursor, to);
    return found;
}

enum nq_token scan_reply(struct nq_line *line, const struct nq_automaton *keywords, struct nq_cursor *cursor)
{
    begin_line(line);
    switch (line->phase) {
    case PHASE_START: return scan_code(line, cursor);
    case PHASE_WORD: return scan_word(line, keywords, cursor, true);
    case PHASE_OVERWRITE: {
        enum nq_token token = scan_overwrite(line, cursor);
        return token == TOKEN_TOO_LONG ? TOKEN_SPAN : token; /* a server's line has no bound here */
    }
    case PHASE_BANNER:
    case PHASE_REMOVE: return scan_to_lf(line, cursor, TOKEN_SPAN);
    default: return scan_to_lf(line, cursor, TOKEN_NONE);
    }
}
