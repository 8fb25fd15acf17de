/*
 * edit_log.c - where the sender's sequence numbers and the receiver's part company, and how one becomes the other.
 *
 * `in` is the sender's numbering, `out` the receiver's. An edit says: `in_len` octets from `in` on left as `out_len` octets
 * from `out` on. Behind the last edit the two differ by the stream's shift. A stream whose length was never changed has no
 * log, and both numberings are one.
 *
 * The kernel's own sequence adjustment was rejected: it runs only for flows under NAT whose verdict carries NFQA_CT, and
 * knows one position per direction.
 */
#include "nq.h"

/* Behind an edit, numbering goes on. */
static uint32_t in_end(const struct nq_edit *edit) { return edit->in + edit->in_len; }
static uint32_t out_end(const struct nq_edit *edit) { return edit->out + edit->out_len; }

uint32_t edit_log_out(const struct nq_edit_log *log, int32_t shift, uint32_t seq)
{
    if (!log || !log->count)
        return seq + (uint32_t)shift;
    for (uint32_t i = log->count; i-- > 0;) {
        const struct nq_edit *edit = &log->edits[i];
        if (!seq_after(seq, edit->in))
            continue;
        return seq_before(seq, in_end(edit)) ? out_end(edit) : out_end(edit) + (seq - in_end(edit));
    }
    return log->edits[0].out + (seq - log->edits[0].in);
}

uint32_t edit_log_acknowledged(const struct nq_edit_log *log, int32_t shift, uint32_t ack)
{
    if (!log || !log->count)
        return ack - (uint32_t)shift;
    for (uint32_t i = log->count; i-- > 0;) {
        const struct nq_edit *edit = &log->edits[i];
        if (!seq_before(ack, out_end(edit)))
            return in_end(edit) + (ack - out_end(edit));
        if (seq_after(ack, edit->out))
            return edit->in;
    }
    return log->edits[0].in + (ack - log->edits[0].out);
}

uint32_t edit_log_received(const struct nq_edit_log *log, int32_t shift, uint32_t left)
{
    if (!log || !log->count)
        return left - (uint32_t)shift;
    for (uint32_t i = log->count; i-- > 0;) {
        const struct nq_edit *edit = &log->edits[i];
        if (!seq_before(left, out_end(edit)))
            return in_end(edit) + (left - out_end(edit));
        if (seq_after(left, edit->out))
            return in_end(edit);
    }
    return log->edits[0].in + (left - log->edits[0].out);
}

/* What the receiver has acknowledged can be forgotten: nobody will ask for its numbers again, but the last is kept, for it
 * says where numbering went on. */
static void forget_arrived(struct nq_edit_log *log, uint32_t acked)
{
    uint32_t gone = 0;
    while (gone + 1 < log->count && seq_before(out_end(&log->edits[gone]), acked))
        gone++;
    log->count -= gone;
    memmove(log->edits, log->edits + gone, log->count * sizeof *log->edits);
}

bool edit_log_room(struct nq_edit_log *log, uint32_t acked, uint32_t edits)
{
    if (log->count + edits > NQ_EDITS)
        forget_arrived(log, acked);
    return log->count + edits <= NQ_EDITS;
}

void edit_log_add(struct nq_edit_log *log, struct nq_edit edit)
{
    struct nq_edit *last = log->count ? &log->edits[log->count - 1] : NULL;
    if (last && in_end(last) == edit.in && out_end(last) == edit.out) {
        last->in_len += edit.in_len;
        last->out_len += edit.out_len;
        return;
    }
    log->edits[log->count++] = edit;
}

uint32_t edit_log_growth(const struct nq_edit_log *log, uint32_t acked)
{
    int64_t growth = 0;
    for (uint32_t i = 0; i < log->count; i++)
        if (seq_after(out_end(&log->edits[i]), acked))
            growth += (int64_t)log->edits[i].out_len - log->edits[i].in_len;
    return growth > 0 ? (uint32_t)growth : 0;
}
