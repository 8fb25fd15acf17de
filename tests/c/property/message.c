/*
 * message.c - what is written at random: message data with every near miss of its end, and what TLS looks like.
 */
#include "sim.h"

void end_write(struct sim *sim, struct end *end, const void *octets, size_t len)
{
    if (end->closes || end->said + len > STREAM_MAX - 64)
        return;
    memcpy(end->say + end->said, octets, len);
    end->said += (uint32_t)len;
    if (sim->tracing)
        trace(sim, "%c writes %zu octets, %u in all", "CS"[end->self], len, end->said);
}

void end_text(struct sim *sim, struct end *end, const char *text) { end_write(sim, end, text, strlen(text)); }

struct draft {
    uint8_t octets[4096];
    uint32_t len;
    bool bare;                  /* dots stay single: the data ends where the first line of a dot stands */
};

/* RFC 5321, 4.5.2: a dot at the beginning of a line is doubled. */
static void draft_add(struct draft *draft, uint8_t octet)
{
    const uint8_t *end = draft->octets + draft->len;
    bool line_begins = draft->len == 0 || (draft->len >= 2 && end[-2] == '\r' && end[-1] == '\n');
    if (octet == '.' && line_begins && !draft->bare)
        draft->octets[draft->len++] = '.';
    draft->octets[draft->len++] = octet;
}

void message_write(struct sim *sim)
{
    static const char *const pieces[] = { "\r\n", "\r\n", "\r\n", ".", ".\r\n", "\n.\r\n", "\n.\n", "\r.\r", "\r", "\n", "..\r\n",
                                          "\r\n.\n", "\r\n.\r", "EXPN root\r\n", "QUIT\r\n", "Subject: x\r\n",
                                          "250 ok\r\n", "words and words, ", "XXXX", "\r\r\n", "\n\r\n", ".\r.\r\n",
                                          "\r\n.\n", "\r\n.\n.\r\n" };
    struct draft draft = { .bare = sim->plan.talks_ahead && chance(sim, 300) }; /* who waits must know how many replies come */
    uint32_t size = chance(sim, 150) ? 3500 : chance(sim, 100) ? 0 : between(sim, 1, 500);
    while (draft.len < size) {
        const char *piece = pieces[roll(sim, sizeof pieces / sizeof *pieces)];
        if (size > 500 && chance(sim, 700))
            piece = "0123456789012345678901234567890123456789012345678901234567890123456789";
        for (; *piece; piece++)
            draft_add(&draft, (uint8_t)*piece);
        if (chance(sim, 50))
            draft_add(&draft, (uint8_t)roll(sim, 256));
    }
    if (draft.len && (draft.len < 2 || memcmp(draft.octets + draft.len - 2, "\r\n", 2)))
        for (const char *end = "\r\n"; *end; end++)
            draft_add(&draft, (uint8_t)*end);
    memcpy(draft.octets + draft.len, ".\r\n", 3);
    end_write(sim, &sim->end[CLIENT], draft.octets, draft.len + 3);
}

void blob_write(struct sim *sim, struct end *end)
{
    uint8_t octets[700];
    uint32_t len = between(sim, 1, sizeof octets);
    for (uint32_t i = 0; i < len; i++)
        octets[i] = (uint8_t)roll(sim, 256);
    octets[0] = 22; /* a TLS record: handshake */
    end_write(sim, end, octets, len);
}
