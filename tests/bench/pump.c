/*
 * pump.c - a message pump: sender and sink of mail in one program, fast enough that neither is what a benchmark measures.
 *
 *   pump source   --host A --port P --messages N --size O --sessions S --timeout T   sends N messages over S sessions at once
 *   pump sink     --host A --port P --sessions S --timeout T                         serves S sessions, then ends
 *   pump dialogue --host A --port P --messages N --timeout T                         N NOOPs in lockstep: latency
 *   pump message  --size O                                                           writes one message as it goes over the wire
 *
 * Each prints one line of JSON on standard output. --checksum adds an FNV-1a sum over all data octets at either end, so that
 * "what was sent arrived" is a comparison of two numbers; it costs more than the whole rest and is off otherwise.
 *
 * The message is made once and sent from memory in as few writes as the kernel takes. One blocking thread per session: with
 * one or four bulk sessions an event loop saves nothing, and the kernel sees the largest possible writes and reads.
 * The sink looks for the end of data with memchr for the dot, which base64 never holds; comparing five octets at each
 * position, or memmem, takes longer than the copy out of the kernel. Socket buffers are left to autotuning at both ends.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LINE_COLUMNS    76          /* RFC 2045 6.8: the longest line of base64 */
#define PART_OCTETS     (2u << 20)  /* an attachment; larger messages have more of them */
#define SIZE_MIN        2048u
#define SIZE_MAX_OCTETS (256u << 20)
#define SESSIONS_MAX    1024u
#define MESSAGES_MAX    10000000u
#define READ_OCTETS     (256u << 10)
#define COMMAND_MAX     4096
#define FNV_BASIS       0xcbf29ce484222325ull
#define FNV_PRIME       0x100000001b3ull
#define BOUNDARY        "=_pump_7f3a9c51"

struct options {
    const char *host, *port;
    unsigned messages, size, sessions, timeout;
    bool checksum;
};

struct text { /* a growing piece of memory */
    char *at;
    size_t length, room;
};

struct session {
    pthread_t thread;
    const struct options *options;
    const struct text *wire; /* source: the prepared data; NULL in a sink */
    int fd;
    unsigned to_send;
    uint64_t octets, messages, sum;
    double seconds;
};

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "pump: %s: %s\n", what, why);
    exit(1);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t fnv(uint64_t sum, const char *at, size_t length)
{
    for (size_t i = 0; i < length; i++)
        sum = (sum ^ (unsigned char)at[i]) * FNV_PRIME;
    return sum;
}

/* ---- the message ------------------------------------------------------------------------------------------------ */

static void append(struct text *text, const char *at, size_t length)
{
    if (text->length + length > text->room) {
        text->room = (text->length + length) * 2;
        text->at = realloc(text->at, text->room);
        if (!text->at)
            fail("memory", strerror(errno));
    }
    memcpy(text->at + text->length, at, length);
    text->length += length;
}

static void append_string(struct text *text, const char *string)
{
    append(text, string, strlen(string));
}

static void append_header(struct text *text)
{
    append_string(text, "Received: from client.example (client.example [192.0.2.1])\r\n"
                        "\tby relay.example (Postfix) with ESMTP id 4XyZ0k3M2nz1b\r\n"
                        "\tfor <sink@server.example>; Sun, 22 Nov 2026 09:00:00 +0000 (UTC)\r\n"
                        "From: Pump <pump@client.example>\r\n"
                        "To: Sink <sink@server.example>\r\n"
                        "Subject: quarterly figures, with the attachments that were asked for\r\n"
                        "Date: Sun, 22 Nov 2026 09:00:00 +0000\r\n"
                        "Message-ID: <20261122090000.7F3A9C51@client.example>\r\n"
                        "MIME-Version: 1.0\r\n"
                        "Content-Type: multipart/mixed; boundary=\"" BOUNDARY "\"\r\n"
                        "\r\n"
                        "This is a message in several parts in MIME format.\r\n");
    append_string(text, "--" BOUNDARY "\r\n"
                        "Content-Type: text/plain; charset=us-ascii\r\n"
                        "Content-Transfer-Encoding: 7bit\r\n"
                        "\r\n"
                        "Please find the figures attached.\r\n"
                        ".hidden files are not among them: this line begins with a dot,\r\n"
                        "..\r\n"
                        ".\r\n"
                        "and so do the two before this one, one of which is nothing else.\r\n"
                        "\r\n");
}

static void append_part_header(struct text *text, unsigned number)
{
    char line[512];

    snprintf(line, sizeof line,
             "--" BOUNDARY "\r\n"
             "Content-Type: application/octet-stream; name=\"figures-%04u.bin\"\r\n"
             "Content-Transfer-Encoding: base64\r\n"
             "Content-Disposition: attachment; filename=\"figures-%04u.bin\"\r\n"
             "\r\n",
             number, number);
    append_string(text, line);
}

/* Any four letters of the alphabet are three octets in base64: a generator gives the letters and nothing is encoded. */
static void append_base64_line(struct text *text, uint64_t *state)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char line[LINE_COLUMNS + 2];

    for (unsigned i = 0; i < LINE_COLUMNS; i++) {
        *state = *state * 6364136223846793005ull + 1442695040888963407ull;
        line[i] = alphabet[*state >> 58];
    }
    memcpy(line + LINE_COLUMNS, "\r\n", 2);
    append(text, line, sizeof line);
}

static void append_closing_part(struct text *text, size_t size)
{
    static const char head[] = "--" BOUNDARY "\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n";
    static const char filler[] = "the figures are as agreed ";
    static const char tail[] = "\r\n--" BOUNDARY "--\r\n";

    append(text, head, sizeof head - 1);
    while (text->length + sizeof tail - 1 < size) {
        size_t left = size - text->length - (sizeof tail - 1);
        size_t columns = left > LINE_COLUMNS ? LINE_COLUMNS : left;

        if (left - columns == 1)
            columns--; /* one octet is too short for a line end */
        for (size_t i = 0; i < columns; i++)
            append(text, &filler[i % (sizeof filler - 1)], 1);
        if (left > columns)
            append(text, "\r\n", 2);
    }
    append(text, tail, sizeof tail - 1);
}

/* A message of exactly `size` octets (RFC 1870: with every CRLF, without stuffing and end of data). */
static struct text make_message(size_t size)
{
    const size_t closing = 400; /* header and end of the last part, and a line more */
    struct text text = {0};
    uint64_t state = 42;

    append_header(&text);
    for (unsigned number = 1; text.length + closing + 512 < size; number++) {
        size_t end = text.length + PART_OCTETS < size - closing ? text.length + PART_OCTETS : size - closing;

        append_part_header(&text, number);
        while (text.length + LINE_COLUMNS + 2 <= end)
            append_base64_line(&text, &state);
    }
    append_closing_part(&text, size);
    return text;
}

/* RFC 5321 4.5.2: a dot before each line that begins with one; then the end of data. */
static struct text stuff(const struct text *message)
{
    struct text wire = {.at = malloc(message->length + 4096), .room = message->length + 4096};
    const char *at = message->at, *end = at + message->length;

    if (!wire.at)
        fail("memory", strerror(errno));
    while (at < end) {
        const char *line_end = memchr(at, '\n', (size_t)(end - at));

        if (*at == '.')
            append(&wire, ".", 1);
        append(&wire, at, (size_t)(line_end + 1 - at));
        at = line_end + 1;
    }
    append_string(&wire, ".\r\n");
    return wire;
}

static struct text make_wire(size_t size)
{
    struct text message = make_message(size), wire = stuff(&message);

    free(message.at);
    return wire;
}

/* ---- sockets ---------------------------------------------------------------------------------------------------- */

static struct addrinfo *resolve(const struct options *options)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV}, *found;
    int rc = getaddrinfo(options->host, options->port, &hints, &found);

    if (rc)
        fail(options->host, gai_strerror(rc));
    return found;
}

static int open_socket(const struct addrinfo *to)
{
    int fd = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        fail("socket", strerror(errno));
    return fd;
}

static int dial(const struct options *options)
{
    struct addrinfo *to = resolve(options);
    int fd = open_socket(to), one = 1;

    if (connect(fd, to->ai_addr, to->ai_addrlen))
        fail("connect", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    freeaddrinfo(to);
    return fd;
}

static int listen_on(const struct options *options)
{
    struct addrinfo *to = resolve(options);
    int fd = open_socket(to), one = 1;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, to->ai_addr, to->ai_addrlen) || listen(fd, (int)options->sessions))
        fail("listen", strerror(errno));
    freeaddrinfo(to);
    return fd;
}

static void send_all(int fd, const char *at, size_t length)
{
    while (length) {
        ssize_t sent = send(fd, at, length, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            fail("send", strerror(errno));
        at += sent;
        length -= (size_t)sent;
    }
}

/* ---- source ----------------------------------------------------------------------------------------------------- */

static bool reply_complete(const char *reply, size_t length)
{
    const char *last;

    if (length < 5 || reply[length - 1] != '\n')
        return false;
    last = memrchr(reply, '\n', length - 1);
    last = last ? last + 1 : reply;
    return reply + length - last >= 5 && last[3] != '-';
}

/* Reads one reply, of any number of lines. We send in lockstep, so nothing can follow it. */
static void expect(int fd, char first_digit, const char *after)
{
    char reply[COMMAND_MAX + 1];
    size_t length = 0;

    do {
        ssize_t got = recv(fd, reply + length, COMMAND_MAX - length, 0);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            fail(after, got ? strerror(errno) : "the server closed the connection or sent too long a reply");
        length += (size_t)got;
    } while (!reply_complete(reply, length));
    reply[length] = 0;
    if (reply[0] != first_digit)
        fail(after, reply);
}

static void command(int fd, const char *line, char first_digit)
{
    send_all(fd, line, strlen(line));
    expect(fd, first_digit, line);
}

static void send_message(struct session *session)
{
    const struct text *wire = session->wire;

    command(session->fd, "MAIL FROM:<pump@client.example>\r\n", '2');
    command(session->fd, "RCPT TO:<sink@server.example>\r\n", '2');
    command(session->fd, "DATA\r\n", '3');
    send_all(session->fd, wire->at, wire->length);
    expect(session->fd, '2', "end of data");
    session->octets += wire->length;
    session->messages++;
    if (session->options->checksum)
        session->sum += fnv(FNV_BASIS, wire->at, wire->length);
}

static void *run_source(void *argument)
{
    struct session *session = argument;
    double began = now();

    session->fd = dial(session->options);
    expect(session->fd, '2', "greeting");
    command(session->fd, "EHLO client.example\r\n", '2');
    while (session->messages < session->to_send)
        send_message(session);
    command(session->fd, "QUIT\r\n", '2');
    close(session->fd);
    session->seconds = now() - began;
    return NULL;
}

/* ---- sink ------------------------------------------------------------------------------------------------------- */

enum state { CONNECTED, GREETED, HAVE_SENDER, HAVE_RECIPIENT, IN_DATA, CLOSED };

struct reply_row {
    const char *verb;
    enum state least; /* below it: 503 */
    int next;         /* the state afterwards; -1: unchanged */
    const char *reply;
};

static const struct reply_row replies[] = {
    {"EHLO", CONNECTED, GREETED,
     "250-sink.example\r\n250-PIPELINING\r\n250-SIZE 0\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n"},
    {"HELO", CONNECTED, GREETED, "250 sink.example\r\n"},
    {"MAIL", GREETED, HAVE_SENDER, "250 2.1.0 Ok\r\n"},
    {"RCPT", HAVE_SENDER, HAVE_RECIPIENT, "250 2.1.5 Ok\r\n"},
    {"DATA", HAVE_RECIPIENT, IN_DATA, "354 End data with <CR><LF>.<CR><LF>\r\n"},
    {"RSET", CONNECTED, GREETED, "250 2.0.0 Ok\r\n"},
    {"NOOP", CONNECTED, -1, "250 2.0.0 Ok\r\n"},
    {"VRFY", CONNECTED, -1, "252 2.0.0 Cannot verify, send and see\r\n"},
    {"QUIT", CONNECTED, CLOSED, "221 2.0.0 Bye\r\n"},
};

static enum state answer(int fd, const char *line, size_t length, enum state state)
{
    const char *reply = "500 5.5.2 Command unrecognised\r\n";

    for (size_t i = 0; i < sizeof replies / sizeof *replies; i++) {
        const struct reply_row *row = &replies[i];

        if (length < 4 || strncasecmp(line, row->verb, 4) || (length > 4 && line[4] != ' '))
            continue;
        if (state < row->least) {
            reply = "503 5.5.1 Bad sequence of commands\r\n";
            break;
        }
        reply = row->reply;
        if (row->next >= 0)
            state = (enum state)row->next;
        break;
    }
    send_all(fd, reply, strlen(reply));
    return state;
}

struct body {
    char last[4];  /* the last octets seen, for an end of data that two reads share; starts as if after a CRLF */
    uint64_t sum;
};

/* The octets of buffer up to and including the end of data; 0 when it is not in there. */
static size_t end_of_data(const struct body *body, const char *buffer, size_t length)
{
    static const char end[5] = "\r\n.\r\n";
    char joint[8];
    size_t head = length < 4 ? length : 4;
    const char *at = buffer, *stop = buffer + length;

    memcpy(joint, body->last, 4);
    memcpy(joint + 4, buffer, head);
    for (size_t i = 0; i + 5 <= 4 + head; i++)
        if (!memcmp(joint + i, end, 5))
            return i + 1;
    while ((at = memchr(at, '.', (size_t)(stop - at)))) {
        if (at - buffer >= 2 && stop - at >= 3 && !memcmp(at - 2, end, 5))
            return (size_t)(at - buffer) + 3;
        at++;
    }
    return 0;
}

static void remember(struct body *body, const char *buffer, size_t length)
{
    size_t kept = length < 4 ? 4 - length : 0;

    memmove(body->last, body->last + 4 - kept, kept);
    memcpy(body->last + kept, buffer + length - (4 - kept), 4 - kept);
}

/* Takes message data out of the buffer; returns how much, and ends the data state when its end was there. */
static size_t take_data(struct session *session, struct body *body, const char *buffer, size_t length, enum state *state)
{
    size_t taken = end_of_data(body, buffer, length);
    bool ended = taken != 0;

    if (!ended)
        taken = length;
    session->octets += taken;
    if (session->options->checksum)
        body->sum = fnv(body->sum, buffer, taken);
    remember(body, buffer, taken);
    if (ended) {
        send_all(session->fd, "250 2.0.0 Ok: discarded\r\n", 25);
        session->messages++;
        session->sum += body->sum;
        *state = GREETED;
    }
    return taken;
}

static size_t take_line(struct session *session, const char *buffer, size_t length, enum state *state)
{
    const char *end = memchr(buffer, '\n', length);
    size_t line;

    if (!end) {
        if (length >= COMMAND_MAX)
            fail("command", "longer than a server takes");
        return 0;
    }
    line = (size_t)(end - buffer);
    *state = answer(session->fd, buffer, line && end[-1] == '\r' ? line - 1 : line, *state);
    return line + 1;
}

/* Consumes what the buffer holds; what is left is the beginning of a command line. */
static size_t take(struct session *session, struct body *body, const char *buffer, size_t length, enum state *state)
{
    size_t done = 0, taken;

    while (done < length && *state != CLOSED) {
        if (*state == IN_DATA) {
            taken = take_data(session, body, buffer + done, length - done, state);
        } else {
            taken = take_line(session, buffer + done, length - done, state);
            if (*state == IN_DATA)
                *body = (struct body){.last = {0, 0, '\r', '\n'}, .sum = FNV_BASIS};
        }
        if (!taken)
            break;
        done += taken;
    }
    return done;
}

static void *run_sink(void *argument)
{
    struct session *session = argument;
    char *buffer = malloc(READ_OCTETS);
    struct body body = {0};
    enum state state = CONNECTED;
    size_t length = 0;
    double began = now();

    if (!buffer)
        fail("memory", strerror(errno));
    send_all(session->fd, "220 sink.example ESMTP\r\n", 24);
    while (state != CLOSED) {
        ssize_t got = recv(session->fd, buffer + length, READ_OCTETS - length, 0);
        size_t done;

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        length += (size_t)got;
        done = take(session, &body, buffer, length, &state);
        memmove(buffer, buffer + done, length - done);
        length -= done;
    }
    close(session->fd);
    free(buffer);
    session->seconds = now() - began;
    return NULL;
}

/* ---- modes ------------------------------------------------------------------------------------------------------ */

static void print_sessions(const struct session *sessions, unsigned count)
{
    printf("\"sessions\": [");
    for (unsigned i = 0; i < count; i++)
        printf("%s{\"octets\": %llu, \"messages\": %llu, \"seconds\": %.6f}", i ? ", " : "",
               (unsigned long long)sessions[i].octets, (unsigned long long)sessions[i].messages, sessions[i].seconds);
    printf("]}\n");
}

static void print_report(const char *mode, const struct session *sessions, const struct options *options, double seconds)
{
    uint64_t octets = 0, messages = 0, sum = 0;

    for (unsigned i = 0; i < options->sessions; i++) {
        octets += sessions[i].octets;
        messages += sessions[i].messages;
        sum += sessions[i].sum;
    }
    printf("{\"mode\": \"%s\", \"octets\": %llu, \"messages\": %llu, \"seconds\": %.6f, ", mode,
           (unsigned long long)octets, (unsigned long long)messages, seconds);
    if (options->checksum)
        printf("\"checksum\": \"%016llx\", ", (unsigned long long)sum);
    print_sessions(sessions, options->sessions);
}

static struct session *new_sessions(const struct options *options, const struct text *wire)
{
    struct session *sessions = calloc(options->sessions, sizeof *sessions);

    if (!sessions)
        fail("memory", strerror(errno));
    for (unsigned i = 0; i < options->sessions; i++) {
        sessions[i].options = options;
        sessions[i].wire = wire;
        sessions[i].to_send = options->messages / options->sessions + (i < options->messages % options->sessions);
    }
    return sessions;
}

static void start(struct session *session, void *(*body)(void *))
{
    int rc = pthread_create(&session->thread, NULL, body, session);

    if (rc)
        fail("thread", strerror(rc));
}

static void join(struct session *sessions, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        pthread_join(sessions[i].thread, NULL);
}

static void source(const struct options *options)
{
    struct text wire = make_wire(options->size);
    struct session *sessions = new_sessions(options, &wire);
    double began = now();

    for (unsigned i = 0; i < options->sessions; i++)
        start(&sessions[i], run_source);
    join(sessions, options->sessions);
    print_report("source", sessions, options, now() - began);
    free(sessions);
    free(wire.at);
}

static void sink(const struct options *options)
{
    struct session *sessions = new_sessions(options, NULL);
    int listener = listen_on(options);
    double began = 0;

    for (unsigned i = 0; i < options->sessions; i++) {
        int one = 1;

        do
            sessions[i].fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        while (sessions[i].fd < 0 && errno == EINTR);
        if (sessions[i].fd < 0)
            fail("accept", strerror(errno));
        setsockopt(sessions[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (!i)
            began = now();
        start(&sessions[i], run_sink);
    }
    join(sessions, options->sessions);
    print_report("sink", sessions, options, now() - began);
    close(listener);
    free(sessions);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void dialogue(const struct options *options)
{
    double *trips = calloc(options->messages, sizeof *trips);
    int fd = dial(options);

    if (!trips)
        fail("memory", strerror(errno));
    expect(fd, '2', "greeting");
    command(fd, "EHLO client.example\r\n", '2');
    for (unsigned i = 0; i < options->messages; i++) {
        double began = now();

        command(fd, "NOOP\r\n", '2');
        trips[i] = now() - began;
    }
    command(fd, "QUIT\r\n", '2');
    close(fd);
    qsort(trips, options->messages, sizeof *trips, ascending);
    printf("{\"mode\": \"dialogue\", \"commands\": %u, \"p50_seconds\": %.9f, \"p99_seconds\": %.9f, \"max_seconds\": %.9f}\n",
           options->messages, trips[options->messages / 2], trips[(uint64_t)options->messages * 99 / 100],
           trips[options->messages - 1]);
    free(trips);
}

static void message(const struct options *options)
{
    struct text wire = make_wire(options->size);

    if (fwrite(wire.at, 1, wire.length, stdout) != wire.length)
        fail("write", strerror(errno));
    free(wire.at);
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

static unsigned number(const char *name, const char *text, unsigned least, unsigned most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*end || end == text || value < least || value > most) {
        fprintf(stderr, "pump: --%s must be a number from %u to %u, not \"%s\"\n", name, least, most, text);
        exit(2);
    }
    return (unsigned)value;
}

static struct options parse(int argc, char **argv)
{
    static const struct option names[] = {
        {"host", 1, NULL, 'h'}, {"port", 1, NULL, 'p'}, {"messages", 1, NULL, 'n'}, {"size", 1, NULL, 'o'},
        {"sessions", 1, NULL, 's'}, {"timeout", 1, NULL, 't'}, {"checksum", 0, NULL, 'c'}, {0},
    };
    struct options options = {.host = "127.0.0.1", .port = "25", .messages = 1, .size = 4096, .sessions = 1, .timeout = 60};
    int option;

    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'h': options.host = optarg; break;
        case 'p': options.port = optarg; break;
        case 'n': options.messages = number("messages", optarg, 1, MESSAGES_MAX); break;
        case 'o': options.size = number("size", optarg, SIZE_MIN, SIZE_MAX_OCTETS); break;
        case 's': options.sessions = number("sessions", optarg, 1, SESSIONS_MAX); break;
        case 't': options.timeout = number("timeout", optarg, 1, 3600); break;
        case 'c': options.checksum = true; break;
        default: exit(2);
        }
    }
    return options;
}

static void timed_out(int signal)
{
    static const char text[] = "pump: not done when the timeout was over\n";

    (void)signal;
    if (write(2, text, sizeof text - 1) < 0)
        _exit(5);
    _exit(4);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; void (*run)(const struct options *); } modes[] = {
        {"source", source}, {"sink", sink}, {"dialogue", dialogue}, {"message", message},
    };
    struct options options;

    if (argc < 2) {
        fprintf(stderr, "usage: pump source|sink|dialogue|message [options]\n");
        return 2;
    }
    options = parse(argc - 1, argv + 1);
    signal(SIGALRM, timed_out);
    alarm(options.timeout);
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(argv[1], modes[i].name)) {
            modes[i].run(&options);
            return 0;
        }
    fprintf(stderr, "pump: no such mode: %s\n", argv[1]);
    return 2;
}
