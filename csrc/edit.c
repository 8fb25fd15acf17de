/*
 * edit.c - the octets of an action. What keeps the length is done in place, and the packet is marked so that its checksums are
 * made anew. What changes the length is written down as a patch.
 *
 * Cisco's ASA overwrites the whole packet; here only the offending line changes, so that a pipelined neighbour does not
 * suffer, and CRLF survives, so that the server answers once.
 */
#include "nq.h"

void edit_overwrite(struct nq_view *view, uint8_t *from, uint8_t *to)
{
    if (from == to)
        return;
    memset(from, 'X', (size_t)(to - from));
    view->edited = true;
}

bool edit_mask_line(struct nq_view *view, struct nq_line *line, const struct nq_cursor *cursor, uint32_t skip, uint8_t why)
{
    bool between = line->cr && *cursor->at == '\n'; /* CR was taken for the beginning of the line's end, and stays it */
    uint32_t in_line = line->len - skip;
    uint32_t in_packet = (uint32_t)(cursor->at - cursor->begin);
    uint32_t back = in_line < in_packet ? in_line : in_packet;
    bool line_ends = *cursor->at == '\r' || *cursor->at == '\n';
    if (line_ends && back <= between)
        return false;
    if (back == in_line)
        line->word = 0; /* nothing of the word has left: the server will not know it */
    line->passed = line->len - back;
    edit_overwrite(view, cursor->at - back, cursor->at - between);
    line->phase = PHASE_OVERWRITE;
    line->why = why;
    line->cr = between;
    return true;
}

static bool change(struct nq_view *view, const struct nq_cursor *cursor, uint8_t *at, uint8_t now, struct nq_change *change)
{
    if (at < cursor->begin || at >= cursor->end)
        return false;
    *change = (struct nq_change){ at, *at, now };
    view->edited |= *at != now;
    *at = now;
    return true;
}

bool edit_blank(struct nq_view *view, const struct nq_cursor *cursor, struct nq_change *what)
{
    return change(view, cursor, cursor->at, ' ', what);
}

bool edit_repair_newline(struct nq_view *view, const struct nq_cursor *cursor, struct nq_change *what)
{
    uint8_t *before = cursor->at - 1;
    bool blank = before >= cursor->begin && (*before == ' ' || *before == '\t');
    return blank && change(view, cursor, before, '\r', what);
}

bool edit_defuse_newline(struct nq_view *view, const struct nq_cursor *cursor, const struct nq_data *data, bool ends,
                         struct nq_change *what)
{
    uint8_t *at = cursor->at, *before = at - 1;
    bool behind_cr = data->state == DATA_CR || data->state == DATA_DOT_CR;
    if (behind_cr && change(view, cursor, before, ' ', what))
        return true;
    if (data->state == DATA_DOT_CR)
        return false; /* CRLF.CR has left */
    if (*at == '\n' || *at == 0 || *at == '.')
        return change(view, cursor, at, ' ', what);
    if (!ends || data->defused)
        return true; /* what left already ends no more than a line */
    return change(view, cursor, before, ' ', what) || change(view, cursor, at, ' ', what); /* the dot, or the CR behind it */
}

/* The blank behind the code is no part of the text, nor is a blank behind the hyphen of "220- ". */
void edit_banner(struct nq_view *view, const struct nq_line *line, uint8_t *from, uint8_t *to)
{
    enum { TEXT_AT = 4 };
    bool text_begins = line->len - (uint32_t)(to - from) == TEXT_AT;
    for (uint8_t *at = from; at < to; at++) {
        if (at == from && text_begins && *at == ' ')
            continue;
        if (*at == '2' || *at == '0' || *at == '\r' || *at == '\n')
            continue;
        view->edited |= *at != '*';
        *at = '*';
    }
}

/* Where in "ESMTP" the octets before stand: 0 outside a word, 6 inside another. */
static uint8_t step_esmtp(uint8_t stands, uint8_t octet)
{
    static const char word[] = "ESMTP";
    enum { WHOLE = 5, OTHER };
    if (octet == ' ' || octet == '\t')
        return 0;
    return stands < WHOLE && (octet & 0xdf) == word[stands] ? stands + 1 : OTHER;
}

/* Does the word ESMTP stand at `at`, whole, as far as these octets go? The cut inside it is the only case that guesses. */
static bool esmtp_at(const uint8_t *at, const uint8_t *to)
{
    uint8_t stands = 0;
    for (; at < to && stands < 5 && *at != '\r'; at++)
        if ((stands = step_esmtp(stands, *at)) > 5)
            return false;
    return stands > 0 && (at == to || stands == 5) && (at == to || *at == ' ' || *at == '\r' || *at == '\t');
}

/* Code, host name and the word ESMTP stay (Postfix's clients look for it), the rest becomes *. line->node says where in the
 * text the line stood: 0 before the name, 1 inside it, 2 behind it, 3 + n behind n octets of ESMTP, 9 inside another word. */
void edit_banner_modern(struct nq_view *view, struct nq_line *line, uint8_t *from, uint8_t *to)
{
    enum { BEFORE, NAME, BETWEEN, ESMTP, OTHER = 9 };
    for (uint8_t *at = from; at < to; at++) {
        bool blank = *at == ' ' || *at == '\t', ends = *at == '\r' || *at == '\n';
        bool stays = true;
        if (line->node <= NAME)
            line->node = blank ? (line->node ? BETWEEN : BEFORE) : NAME;
        else if (blank)
            line->node = BETWEEN;
        else if (line->node != OTHER && !ends) {
            uint8_t stands = line->node >= ESMTP ? (uint8_t)(line->node - ESMTP) : 0;
            stays = stands ? step_esmtp(stands, *at) <= 5 : esmtp_at(at, to);
            line->node = stays ? (uint16_t)(ESMTP + stands + 1) : OTHER;
        } else
            stays = ends;
        if (stays || ends)
            continue;
        view->edited |= *at != '*';
        *at = '*';
    }
}

bool edit_replace(struct nq_patches *patches, uint8_t *from, uint8_t *to, const uint8_t *text, uint32_t len)
{
    struct nq_patch *last = patches->count ? &patches->patch[patches->count - 1] : NULL;
    if (last && !len && last->at + last->removed == from) {
        last->removed += (uint32_t)(to - from);
        return true;
    }
    if (patches->count == NQ_PATCHES)
        return false;
    patches->patch[patches->count++] = (struct nq_patch){ from, (uint32_t)(to - from), len, text };
    return true;
}

bool edit_remove(struct nq_patches *patches, uint8_t *from, uint8_t *to)
{
    return from == to || edit_replace(patches, from, to, NULL, 0);
}

bool edit_insert(struct nq_patches *patches, uint8_t *at, const uint8_t *text, uint32_t len)
{
    return edit_replace(patches, at, at, text, len);
}

bool edit_remove_line(struct nq_view *view, struct nq_patches *patches, struct nq_line *line, const struct nq_cursor *cursor,
                      uint8_t why)
{
    bool ends_reply = line->separator == ' ';
    if ((uint32_t)(cursor->at - cursor->begin) < line->len || (ends_reply && !cursor->separator))
        return false;
    if (!edit_remove(patches, cursor->at - line->len, cursor->at))
        return false;
    if (ends_reply) {
        *cursor->separator = ' ';
        view->edited = true;
    }
    line->phase = PHASE_REMOVE;
    line->why = why;
    return true;
}

bool edit_replace_banner(struct nq_patches *patches, const struct nq_line *line, uint8_t *from, uint8_t *to,
                         const uint8_t *text, uint32_t len)
{
    enum { TEXT_AT = 4 };
    bool text_begins = line->len - (uint32_t)(to - from) == TEXT_AT;
    uint8_t *end = to[-1] == '\r' ? to - 1 : to;
    return text_begins ? edit_replace(patches, from, end, text, len) : edit_remove(patches, from, end);
}
