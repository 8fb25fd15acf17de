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
    uint32_t in_line = line->len - skip;
    uint32_t in_packet = (uint32_t)(cursor->at - cursor->begin);
    uint32_t back = in_line < in_packet ? in_line : in_packet;
    bool line_ends = *cursor->at == '\r' || *cursor->at == '\n';
    if (line_ends && back == 0)
        return false;
    if (back == in_line)
        line->word = 0; /* nothing of the word has left: the server will not know it */
    edit_overwrite(view, cursor->at - back, cursor->at);
    line->phase = PHASE_OVERWRITE;
    line->why = why;
    line->cr = false;
    return true;
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
