/*
 * smtp_session.c - two machines, client and server, coupled by the commands that await a reply.
 *
 * State follows the server. A command changes nothing when the client says it; it enters a queue, and the reply that it
 * gets moves the state. Firewalls that believed the client (CVE-2000-1022) opened data mode at DATA, heard the server say
 * 503, and passed every command from then on as if it were mail.
 *
 * Where the reply decides how the client's next octets are to be read (DATA, AUTH, STARTTLS), the mode is MODE_WAIT until
 * that reply is there.
 */
#include "nq.h"

/* ---- the commands that await a reply ---- */

static struct nq_awaited *awaited_at(struct nq_session *session, unsigned index)
{
    return &session->awaited[(session->awaited_first + index) % NQ_AWAITED];
}

static uint8_t awaited_head(struct nq_session *session)
{
    return session->awaited_runs ? awaited_at(session, 0)->verb : VERB_NONE;
}

static uint8_t awaited_tail(struct nq_session *session)
{
    return session->awaited_runs ? awaited_at(session, session->awaited_runs - 1u)->verb : VERB_NONE;
}

static void await(struct nq_session *session, uint8_t verb)
{
    if (session->awaited_runs) {
        struct nq_awaited *last = awaited_at(session, session->awaited_runs - 1u);
        if (last->verb == verb && last->count < UINT16_MAX) {
            last->count++;
            return;
        }
    }
    *awaited_at(session, session->awaited_runs++) = (struct nq_awaited){ .verb = verb, .count = 1 };
}

static void answered(struct nq_session *session)
{
    if (!session->awaited_runs || --awaited_at(session, 0)->count)
        return;
    session->awaited_first = (uint8_t)((session->awaited_first + 1) % NQ_AWAITED);
    session->awaited_runs--;
}

/* Replies to what came before the last command will not come any more: some servers do not answer an empty line. */
static void answer_all_but_last(struct nq_session *session)
{
    while (session->awaited_runs > 1 || awaited_at(session, 0)->count > 1)
        answered(session);
}

/* No server says 250 in several lines to an empty line: that is the reply to the EHLO behind it, and the line has none. */
static void pass_over_empty_lines(struct nq_session *session)
{
    bool ehlo_next = session->awaited_runs > 1 && awaited_at(session, 1)->verb == VERB_EHLO;
    while (ehlo_next && awaited_head(session) == VERB_NONE)
        answered(session);
}

/* ---- the client's mode: the table, and the one function that changes it ---- */

static const struct {
    uint8_t verb;
    uint16_t code;              /* 0: any other */
    bool answers;               /* the command has its reply */
    uint8_t mode;
} transitions[] = {
    { VERB_DATA, 354, true, MODE_BODY },            /* RFC 5321, 4.1.1.4 */
    { VERB_DATA, 0, true, MODE_COMMAND },
    { VERB_AUTH, 334, false, MODE_AUTH },           /* RFC 4954, 4 */
    { VERB_AUTH, 0, true, MODE_COMMAND },
    { VERB_STARTTLS, 220, true, MODE_OPAQUE },      /* RFC 3207, 4 */
    { VERB_STARTTLS, 0, true, MODE_COMMAND },
};

static void session_enter(struct nq_session *session, enum nq_mode mode)
{
    session->mode = (uint8_t)mode;
    if (mode != MODE_BODY)
        return;
    session->body = BODY_LINE_START;
    session->message_begins = true;
}

void session_begin(struct nq_session *session)
{
    memset(session, 0, sizeof *session);
    await(session, VERB_GREETING);
}

bool session_waits(const struct nq_session *session)
{
    bool full = session->awaited_runs == NQ_AWAITED;
    bool at_line_start = session->command.ended || session->command.len == 0;
    return session->mode == MODE_WAIT || (session->mode == MODE_COMMAND && full && at_line_start);
}

/* ---- TLS: opaque, but for its beginning ---- */

static void hear_tls(struct nq_hello *hello, uint8_t type, struct nq_cursor *cursor)
{
    hello_take(hello, type, cursor->at, cursor->end);
    cursor->at = cursor->end;
}

/* ---- the client speaks ---- */

static struct nq_said command_ends(struct nq_session *session)
{
    struct nq_line *line = &session->command;
    uint8_t verb = line->why && !line->word ? VERB_MASKED : line->word;
    session->commands++;
    await(session, verb);
    if (verb_flags(verb) & VERB_WAITS)
        session_enter(session, MODE_WAIT);
    return (struct nq_said){ .what = SAID_COMMAND_END };
}

static struct nq_said hear_command(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    switch (scan_command(&session->command, &policy->verbs, cursor)) {
    case TOKEN_WORD: return (struct nq_said){ .what = SAID_VERB };
    case TOKEN_UNKNOWN: return (struct nq_said){ .what = SAID_BAD_VERB, .why = REASON_COMMAND };
    case TOKEN_INCOMPLETE: return (struct nq_said){ .what = SAID_BAD_VERB, .why = REASON_INCOMPLETE };
    case TOKEN_BARE_CR: return (struct nq_said){ .what = SAID_BAD_LINE, .why = REASON_BARE_CR };
    case TOKEN_NUL: return (struct nq_said){ .what = SAID_BAD_LINE, .why = REASON_NUL };
    case TOKEN_TOO_LONG: return (struct nq_said){ .what = SAID_TOO_LONG, .why = REASON_COMMAND_LENGTH };
    case TOKEN_SPAN: return (struct nq_said){ .what = SAID_SPAN };
    case TOKEN_LINE: return command_ends(session);
    default: return (struct nq_said){ .what = SAID_NOTHING };
    }
}

/* A bare CR or a NUL ends a line for some servers, and what stands behind it would be a command that nobody has judged. The
 * flow ends: no mechanism says them (RFC 4954, 4), and to mask an answer would only hide that. */
static struct nq_said hear_auth(struct nq_session *session, struct nq_cursor *cursor)
{
    enum nq_token token = scan_line(&session->command, cursor);
    session->command.kept = 0; /* a secret: never told */
    switch (token) {
    case TOKEN_TOO_LONG: return (struct nq_said){ .what = SAID_TOO_LONG, .why = REASON_COMMAND_LENGTH };
    case TOKEN_BARE_CR: return (struct nq_said){ .what = SAID_BAD_AUTH, .why = REASON_BARE_CR };
    case TOKEN_NUL: return (struct nq_said){ .what = SAID_BAD_AUTH, .why = REASON_NUL };
    case TOKEN_LINE: session_enter(session, MODE_WAIT); break;
    default: break;
    }
    return (struct nq_said){ .what = SAID_NOTHING };
}

static uint32_t octets_of_a_final_dot(uint8_t body)
{
    return body == BODY_DOT ? 1 : body == BODY_DOT_CR ? 2 : 0;
}

static struct nq_said hear_body(struct nq_session *session, struct nq_cursor *cursor)
{
    const uint8_t *from = cursor->at;
    uint32_t pending = octets_of_a_final_dot(session->body);
    if (session->message_begins) {
        session->message_begins = false;
        return (struct nq_said){ .what = SAID_MESSAGE, .why = REASON_HEADER_INSERTED };
    }
    enum nq_token token = scan_body(&session->body, cursor);
    session->data += (uint64_t)(cursor->at - from) + pending;
    if (token != TOKEN_END_OF_DATA) {
        session->data -= octets_of_a_final_dot(session->body);
        return (struct nq_said){ .what = SAID_BODY };
    }
    session->data -= 3;
    session->messages++;
    session_enter(session, MODE_COMMAND);
    await(session, VERB_MESSAGE);
    return (struct nq_said){ .what = SAID_END_OF_DATA };
}

struct nq_said session_client(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    uint8_t *from = cursor->at;
    struct nq_said said = { .what = SAID_NOTHING };
    if (session_waits(session))
        return (struct nq_said){ .what = SAID_WAIT };
    switch (session->mode) {
    case MODE_COMMAND: said = hear_command(session, policy, cursor); break;
    case MODE_BODY: said = hear_body(session, cursor); break;
    case MODE_AUTH: said = hear_auth(session, cursor); break;
    default: hear_tls(&session->hello[0], HELLO_CLIENT, cursor); break;
    }
    said.from = from;
    said.to = cursor->at;
    return said;
}

/* ---- the server speaks ---- */

/* A complete reply. False where its code fits no command that the client has sent. */
static bool answer(struct nq_session *session, uint16_t code)
{
    if (code == 421) /* RFC 5321, 3.8: at any time, and the server closes */
        return true;
    bool steers = code == 354 || code == 334;
    if (steers && session->mode == MODE_WAIT && awaited_head(session) != awaited_tail(session))
        answer_all_but_last(session);
    bool awaited = session->awaited_runs > 0;
    uint8_t verb = awaited_head(session);
    for (size_t i = 0; i < sizeof transitions / sizeof *transitions; i++) {
        if (transitions[i].verb != verb || (transitions[i].code && transitions[i].code != code))
            continue;
        if (transitions[i].answers)
            answered(session);
        session_enter(session, transitions[i].mode);
        return true;
    }
    answered(session);
    return awaited && !steers;
}

static struct nq_said reply_line_ends(struct nq_session *session, struct nq_cursor *cursor)
{
    struct nq_line *line = &session->reply;
    session->replies++;
    if (line->digits == NQ_NO_CODE)
        return (struct nq_said){ .what = SAID_REPLY_LINE };
    session->reply_part++;
    if (line->separator == '-')
        return (struct nq_said){ .what = SAID_REPLY_LINE };
    session->reply_part = 0;
    bool fits = answer(session, line->code);
    if (session->mode == MODE_OPAQUE && cursor->at < cursor->end)
        return (struct nq_said){ .what = SAID_INJECTION, .why = REASON_TLS_INJECTION };
    return (struct nq_said){ .what = fits ? SAID_REPLY_LINE : SAID_TRANSITION, .why = fits ? 0 : REASON_TRANSITION };
}

static struct nq_said code_is_known(struct nq_session *session, const struct nq_policy *policy)
{
    struct nq_line *line = &session->reply;
    if (line->code == 250 && session->reply_part > 0)
        pass_over_empty_lines(session);
    uint8_t verb = awaited_head(session);
    if (verb == VERB_GREETING && line->code == 220)
        return (struct nq_said){ .what = SAID_BANNER, .why = REASON_BANNER };
    if (verb == VERB_EHLO && line->code == 250 && session->reply_part > 0 && policy->mask_keywords)
        line->phase = PHASE_WORD; /* RFC 5321, 4.1.1.1: a keyword on every line but the first */
    return (struct nq_said){ .what = SAID_NOTHING };
}

static struct nq_said hear_reply(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    switch (scan_reply(&session->reply, &policy->keywords, cursor)) {
    case TOKEN_CODE: return code_is_known(session, policy);
    case TOKEN_WORD:
        return words_have(&policy->allowed_keywords, session->reply.word)
                   ? (struct nq_said){ .what = SAID_NOTHING }
                   : (struct nq_said){ .what = SAID_BAD_KEYWORD, .why = REASON_KEYWORD };
    case TOKEN_UNKNOWN: return (struct nq_said){ .what = SAID_BAD_KEYWORD, .why = REASON_KEYWORD };
    case TOKEN_INCOMPLETE: return (struct nq_said){ .what = SAID_BAD_KEYWORD, .why = REASON_KEYWORD };
    case TOKEN_SPAN: return (struct nq_said){ .what = SAID_SPAN };
    case TOKEN_LINE: return reply_line_ends(session, cursor);
    default: return (struct nq_said){ .what = SAID_NOTHING };
    }
}

struct nq_said session_server(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    uint8_t *from = cursor->at;
    struct nq_said said = { .what = SAID_NOTHING };
    if (session->mode == MODE_OPAQUE)
        hear_tls(&session->hello[1], HELLO_SERVER, cursor);
    else
        said = hear_reply(session, policy, cursor);
    said.from = from;
    said.to = cursor->at;
    return said;
}
