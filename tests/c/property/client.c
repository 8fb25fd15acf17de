/*
 * client.c - an SMTP client: groups of commands, well-formed and not, one reply awaited for each line, or none at all.
 */
#include "sim.h"

#include <stdio.h>

enum { GREETING = 0, COMMANDS, DATA_SAID, BODY_SAID, AUTH_SAID, TLS_SAID, QUIT_SAID, OPAQUE, TALKED_AHEAD };

uint16_t reply_code(const uint8_t *line, uint32_t len, char *separator)
{
    *separator = ' ';
    for (int i = 0; i < 3; i++)
        if ((uint32_t)i >= len || line[i] < '0' || line[i] > '9')
            return 0;
    if (len < 4 || (line[3] != ' ' && line[3] != '-' && line[3] != '\r' && line[3] != '\n'))
        return 0;
    if (line[3] == '-')
        *separator = '-';
    return (uint16_t)((line[0] - '0') * 100 + (line[1] - '0') * 10 + (line[2] - '0'));
}

/* ---- lines ---- */

static void say_line(struct sim *sim, const char *line, uint32_t len)
{
    uint8_t octets[160];
    for (uint32_t i = 0; i < len; i++) {
        bool lower = chance(sim, 100) && line[i] >= 'A' && line[i] <= 'Z';
        octets[i] = (uint8_t)(line[i] + (lower ? 'a' - 'A' : 0));
    }
    uint32_t ends = chance(sim, 100) ? 1 : 2;
    memcpy(octets + len, ends == 1 ? "\n" : "\r\n", ends);
    end_write(sim, &sim->end[CLIENT], octets, len + ends);
    sim->client.want++;
}

static void say(struct sim *sim, const char *line) { say_line(sim, line, (uint32_t)strlen(line)); }

static void say_good(struct sim *sim)
{
    static const char *const lines[] = { "NOOP", "NOOP and an argument", "RSET", "VRFY somebody", "HELP", "HELP MAIL", "",
                                         "MAIL FROM:<a@example.net>", "RCPT TO:<b@example.org>", "RSET\tx", "NOOP " };
    say(sim, lines[roll(sim, sizeof lines / sizeof *lines)]);
}

/* Lines that no policy of ours lets pass; some can only be refused by a reset once their last octet stands alone. */
static void say_bad(struct sim *sim)
{
    static const char *const lines[] = { "EXPN root", "XFOO", "TURN", "BDAT 5 LAST", "DATAX", "MAILFROM:<>", "HELPFUL things",
                                         " NOOP", "\tRSET", "NOOP:", "@", "RSE x", "HEL \tx", "D ata", "VRF-Y", "RCPTRCPT RCPT",
                                         "XX", "E", "NO OP", "expn \r\r bare", "EXPN a\rb", "A\rB", "HELPS\r\rx",
                                         "EXPN of a line that is a good deal longer than the others are, on and on" };
    static const char *const with_nul[] = { "NOOP \0 nul", "NO\0P nul.", "RSET\0RSET." };
    static const char *const returns[] = { "NOOP a\rb", "MAIL\rMAIL", "RSET \r x", "\rNOOP", "VRFY a\rEXPN b" };
    static const char *const resets[] = { "MAI", "RSE", "HEL", "NOO\rP", "QUI" };
    switch (roll(sim, 12)) {
    case 0: say_line(sim, with_nul[roll(sim, 3)], 10); break;
    case 1: say(sim, returns[roll(sim, 5)]); break;
    case 2: if (chance(sim, 300)) say(sim, resets[roll(sim, 5)]); break;
    default: say(sim, lines[roll(sim, sizeof lines / sizeof *lines)]);
    }
}

static void say_some(struct sim *sim)
{
    for (uint32_t i = roll(sim, 4); i > 0; i--)
        if (chance(sim, 300))
            say_bad(sim);
        else
            say_good(sim);
}

/* ---- groups ---- */

static void say_mail(struct sim *sim)
{
    say(sim, "MAIL FROM:<a@example.net>");
    for (uint32_t i = roll(sim, 4); i > 0; i--)
        say(sim, chance(sim, 800) ? "RCPT TO:<b@example.org>" : "EXPN everybody");
    say(sim, chance(sim, 900) ? "DATA" : "DATA ");
    sim->client.doing = DATA_SAID;
}

static bool knows(const struct rules *rules, const char *verb)
{
    for (const char *const *at = rules->verbs; *at; at++)
        if (strcmp(*at, verb) == 0)
            return true;
    return false;
}

static void say_group(struct sim *sim)
{
    struct client *client = &sim->client;
    client->doing = COMMANDS;
    if (chance(sim, 300))
        say_some(sim);
    switch (roll(sim, 8)) {
    case 0: say(sim, "EHLO client.example.net"); break;
    case 1: say(sim, "HELO client.example.net"); break;
    case 2:
        say(sim, chance(sim, 500) ? "AUTH LOGIN" : "AUTH PLAIN AGEAYg==");
        client->doing = AUTH_SAID;
        break;
    case 3:
        if (!sim->plan.talks_ahead && knows(sim->plan.rules, "STARTTLS") && chance(sim, 300)) {
            say(sim, "STARTTLS");
            client->doing = TLS_SAID;
            break;
        }
        /* fall through */
    case 4: say_some(sim); break;
    default: say_mail(sim);
    }
}

static void say_body(struct sim *sim)
{
    sim->client.doing = BODY_SAID;
    message_write(sim);
    sim->client.want++;
    if (sim->plan.behind_body && chance(sim, 600))
        say_some(sim);
}

static void finish(struct sim *sim)
{
    say(sim, "QUIT");
    sim->client.doing = QUIT_SAID;
}

static void talk_ahead(struct sim *sim)
{
    struct end *end = &sim->end[CLIENT];
    say(sim, "EHLO me");
    for (uint32_t i = 0; i < sim->plan.groups; i++) {
        say_group(sim);
        if (sim->client.doing == DATA_SAID)
            message_write(sim);
        if (sim->client.doing == AUTH_SAID)
            end_text(sim, end, "c2VjcmV0\r\n");
    }
    finish(sim);
    sim->client.doing = TALKED_AHEAD;
    end->closes = true;
}

/* ---- replies ---- */

static void count_replies(struct client *client, struct end *end)
{
    for (uint32_t at = end->read; at < end->got; at++) {
        char separator;
        if (end->heard[at] != '\n')
            continue;
        uint16_t code = reply_code(end->heard + client->line_at, at + 1 - client->line_at, &separator);
        client->line_at = at + 1;
        if (!code || separator == '-')
            continue;
        client->replies++;
        client->code = code;
    }
    end->read = end->got;
}

static void next_step(struct sim *sim)
{
    struct client *client = &sim->client;
    struct end *end = &sim->end[CLIENT];
    if (client->doing == DATA_SAID && client->code == 354) {
        say_body(sim);
        return;
    }
    if (client->doing == AUTH_SAID && client->code == 334) {
        end_text(sim, end, chance(sim, 800) ? "c2VjcmV0\r\n" : "EXPN\r\n");
        client->want++;
        return;
    }
    if (client->doing == TLS_SAID && client->code == 220) {
        client->doing = OPAQUE;
        blob_write(sim, end);
        return;
    }
    if (client->doing == QUIT_SAID) {
        end->closes = true;
        return;
    }
    if (client->groups == sim->plan.groups || end->said > STREAM_FULL || client->code == 421)
        finish(sim);
    else
        say_group(sim);
    client->groups++;
}

void client_reads(struct sim *sim)
{
    struct client *client = &sim->client;
    struct end *end = &sim->end[CLIENT];
    if (client->doing == OPAQUE) {
        if (end->got > end->read && !end->closes) {
            blob_write(sim, end);
            end->closes = true;
        }
        end->read = end->got;
        return;
    }
    if (sim->plan.talks_ahead && client->doing == GREETING)
        talk_ahead(sim);
    count_replies(client, end);
    if (client->doing == TALKED_AHEAD)
        return;
    if (!client->want)
        client->want = 1; /* the greeting */
    while (client->replies >= client->want && !end->closes && client->doing != OPAQUE)
        next_step(sim);
    if (end->fin)
        end->closes = true;
}
