/*
 * adversary.c - a client that sends, beside what it says, other octets in their place, before and after them, false FINs and
 * RSTs and ACKs; and somebody who speaks for either end from the other end's side. Nobody promises such a client anything but
 * that the server's application reads no forbidden command, and one stream only.
 */
#include "sim.h"

static uint32_t forge_octets(struct sim *sim, uint8_t *into)
{
    static const char *const pieces[] = { "EXPN root\r\n", "\r\n.\r\n", "DATA\r\n", "MAIL FROM:<x@y>\r\n", "RCPT TO:<a>\r\n", "X",
                                          "\r\n", "\n", "\r", ".", " ", "STARTTLS\r\n", "QUIT\r\n", "AUTH LOGIN\r\n", "NOOP",
                                          "EX", "PN x\r\n", "RSET\n", "BDAT 9\r\n", "\xff" };
    uint32_t len = 0;
    for (uint32_t i = between(sim, 1, 8); i > 0; i--) {
        const char *piece = pieces[roll(sim, sizeof pieces / sizeof *pieces)];
        memcpy(into + len, piece, strlen(piece));
        len += (uint32_t)strlen(piece);
    }
    if (chance(sim, 100))
        into[roll(sim, len)] = 0;
    return len;
}

static void forge(struct sim *sim, unsigned from, struct segment segment, bool wrong_side)
{
    struct flight *flight = air_packet(&sim->air);
    if (!flight)
        return;
    bool client_side = (from == CLIENT) != wrong_side;
    segment.from = from;
    flight->len = wire_write(&sim->gate.wire, &segment, flight->octets);
    flight->in_ifindex = client_side ? CLIENT_IFINDEX : SERVER_IFINDEX;
    flight->out_ifindex = client_side ? SERVER_IFINDEX : CLIENT_IFINDEX;
    trace_packet(sim, wrong_side ? "forged" : "C lies", flight->octets, flight->len);
    air_send(sim, flight, client_side ? CLIENT_TO_GATE : SERVER_TO_GATE);
}

/* Somewhere near what the client says just now. */
static uint32_t some_place(struct sim *sim, const struct end *end)
{
    switch (roll(sim, 5)) {
    case 0: return end->una;
    case 1: return end->next;
    case 2: return end->una + roll(sim, end->high - end->una + 1);
    case 3: return end->next + roll(sim, 60);
    default: return end->high > 40 ? end->high - roll(sim, 40) : 0;
    }
}

static void lie(struct sim *sim)
{
    struct end *end = &sim->end[CLIENT];
    uint8_t octets[200];
    struct segment segment = { .seq = end->iss + 1 + some_place(sim, end), .flags = NQ_ACK | NQ_PSH, .payload = octets,
                               .window = 65535, .ack = end->irs + 1 + end->got };
    segment.len = forge_octets(sim, octets);
    if (chance(sim, 300))
        segment.len = between(sim, 1, segment.len);
    if (chance(sim, 60))
        segment.flags |= NQ_FIN;
    if (chance(sim, 60))
        segment.flags |= NQ_URG;
    if (chance(sim, 50))
        segment.ack += between(sim, 1, 2000); /* optimistic, or beyond all that was forwarded */
    forge(sim, CLIENT, segment, false);
}

static void disturb(struct sim *sim)
{
    struct end *end = &sim->end[CLIENT];
    static const uint8_t flags[] = { NQ_RST, NQ_RST | NQ_ACK, NQ_FIN | NQ_ACK, NQ_SYN, NQ_SYN | NQ_ACK, 0, NQ_PSH };
    struct segment segment = { .seq = end->iss + 1 + some_place(sim, end), .flags = flags[roll(sim, sizeof flags)],
                               .window = roll(sim, 65536), .ack = end->irs + 1 + end->got };
    bool kills = segment.flags & (NQ_RST | NQ_FIN);
    if (!kills || chance(sim, 100))
        forge(sim, CLIENT, segment, false);
}

static void forge_from_wrong_side(struct sim *sim)
{
    unsigned as = roll(sim, 2);
    struct end *end = &sim->end[as];
    uint8_t octets[200];
    static const uint8_t flags[] = { NQ_ACK, NQ_ACK, NQ_ACK | NQ_PSH, NQ_RST, NQ_ACK | NQ_FIN, NQ_SYN, NQ_SYN | NQ_ACK };
    struct segment segment = { .seq = end->iss + 1 + some_place(sim, end), .flags = flags[roll(sim, sizeof flags)],
                               .window = 65535, .ack = sim->end[!as].iss + 1 + sim->end[!as].next, .payload = octets };
    segment.len = forge_octets(sim, octets);
    if (as == SERVER && chance(sim, 500)) {
        static const char reply[] = "354 go on\r\n";
        memcpy(octets, reply, sizeof reply - 1);
        segment.len = sizeof reply - 1;
    }
    forge(sim, as, segment, true);
}

void adversary_acts(struct sim *sim)
{
    if (sim->end[CLIENT].state != END_ESTABLISHED)
        return;
    switch (roll(sim, 8)) {
    case 0: disturb(sim); break;
    case 1: forge_from_wrong_side(sim); break;
    default: lie(sim);
    }
}
