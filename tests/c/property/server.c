/*
 * server.c - an SMTP server: one reply a line, whatever the line holds; message data ends at CRLF.CRLF and nowhere else.
 */
#include "sim.h"

#include <stdio.h>
#include <strings.h>

enum { COMMAND = 0, DATA, AUTH, OPAQUE };

/* ---- replies ---- */

static const char *line_end(struct sim *sim) { return chance(sim, 60) ? "\n" : "\r\n"; }

/* Some servers print lines of their own in between (RFC 5321 knows no such thing, Exchange did). */
static void chatter(struct sim *sim)
{
    static const char *const lines[] = { "*** debug: 250 octets free\r\n", "25 is not a code\r\n", "\r\n", "2500 neither\r\n" };
    if (chance(sim, 40))
        end_text(sim, &sim->end[SERVER], lines[roll(sim, 4)]);
}

static void reply(struct sim *sim, uint16_t code, const char *text)
{
    char line[200];
    for (uint32_t parts = chance(sim, 150) ? between(sim, 1, 3) : 0;; parts--) {
        chatter(sim);
        snprintf(line, sizeof line, "%u%c%s%s", code, parts ? '-' : ' ', text, line_end(sim));
        end_text(sim, &sim->end[SERVER], line);
        if (!parts)
            break;
    }
}

static void greet(struct sim *sim)
{
    static const char *const texts[] = { "mail.example.org ESMTP Postfix 3.7.2", " 2020 200 ESMTP", "x",
                                         "mail ready at 12:00:22, 2 of 20" };
    reply(sim, chance(sim, 950) ? 220 : 554, texts[roll(sim, 4)]);
}

static void offer(struct sim *sim)
{
    static const char *const lines[] = { "SIZE 1000", "8BITMIME", "PIPELINING", "AUTH LOGIN PLAIN", "AUTH=LOGIN", "DSN", "dsn", "",
                                         "STARTTLS", "CHUNKING", "SMTPUTF8", "XSECRET on", "SIZEX", " SIZE", "=", "STARTTLS=x",
                                         "S 1", "AUT=H", "VERB", "ETRN a\rb", "X", "CHUNKING\r\rx" };
    char line[200];
    uint32_t parts = roll(sim, 9);
    snprintf(line, sizeof line, "250%cmail.example.org%s", parts ? '-' : ' ', line_end(sim));
    end_text(sim, &sim->end[SERVER], line);
    while (parts--) {
        const char *text = lines[roll(sim, sizeof lines / sizeof *lines)];
        if (chance(sim, 5))
            text = chance(sim, 500) ? "SIZ" : "ETR";
        chatter(sim);
        snprintf(line, sizeof line, "250%c%s%s", parts ? '-' : ' ', text, line_end(sim));
        end_text(sim, &sim->end[SERVER], line);
    }
}

static void reply_auth(struct sim *sim)
{
    struct server *server = &sim->server;
    server->mode = server->auth_left ? AUTH : COMMAND;
    if (server->auth_left)
        reply(sim, 334, "VXNlcm5hbWU6");
    else
        reply(sim, chance(sim, 500) ? 235 : 535, "so be it");
    server->auth_left -= server->auth_left > 0;
}

/* ---- commands ---- */

static bool verb_is(const uint8_t *line, uint32_t len, const char *verb)
{
    uint32_t size = (uint32_t)strlen(verb);
    if (len < size || strncasecmp((const char *)line, verb, size))
        return false;
    return len == size || strchr(" \t\r\n", line[size]) != NULL;
}

static void obey(struct sim *sim, const uint8_t *line, uint32_t len)
{
    struct server *server = &sim->server;
    static const char *const plain[] = { "HELO", "MAIL", "RCPT", "NOOP", "RSET", "VRFY", "HELP" };
    if (verb_is(line, len, "EHLO") && chance(sim, 950)) {
        offer(sim);
    } else if (verb_is(line, len, "DATA")) {
        server->mode = chance(sim, 850) ? DATA : COMMAND;
        reply(sim, server->mode == DATA ? 354 : chance(sim, 500) ? 503 : 250, "as you like");
    } else if (verb_is(line, len, "AUTH")) {
        server->auth_left = roll(sim, 3);
        reply_auth(sim);
    } else if (verb_is(line, len, "STARTTLS")) {
        bool agrees = chance(sim, 800);
        server->mode = agrees ? OPAQUE : COMMAND;
        end_text(sim, &sim->end[SERVER], agrees ? "220 go ahead\r\n" : "454 not now\r\n");
    } else if (verb_is(line, len, "QUIT")) {
        reply(sim, 221, "bye");
        server->over = sim->end[SERVER].closes = !sim->plan.talks_ahead; /* who talked ahead has more to say */
    } else {
        for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
            if (verb_is(line, len, plain[i]) && chance(sim, 900)) {
                reply(sim, 250, "ok");
                return;
            }
        reply(sim, 500, "no such thing");
    }
}

static void take_line(struct sim *sim, const uint8_t *line, uint32_t len)
{
    if (sim->server.mode == AUTH)
        reply_auth(sim);
    else
        obey(sim, line, len);
}

void server_reads(struct sim *sim)
{
    struct server *server = &sim->server;
    struct end *end = &sim->end[SERVER];
    if (!end->said && !server->over)
        greet(sim);
    for (; end->read < end->got; end->read++) {
        uint32_t at = end->read, begin = server->line_at;
        if (server->over)
            continue;
        if (server->mode == OPAQUE) {
            if (at + 1 == end->got)
                blob_write(sim, end);
            continue;
        }
        if (end->heard[at] != '\n' || (server->mode == DATA && (at == begin || end->heard[at - 1] != '\r')))
            continue;
        server->line_at = at + 1;
        if (server->mode != DATA)
            take_line(sim, end->heard + begin, at - begin);
        else if (at - begin == 2 && end->heard[begin] == '.') {
            server->mode = COMMAND;
            reply(sim, 250, "queued");
        }
    }
    if (end->fin)
        end->closes = true;
}
