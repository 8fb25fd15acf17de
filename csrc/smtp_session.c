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

static void await(struct nq_session *session, uint8_t verb, bool masked)
{
    if (session->awaited_runs) {
        struct nq_awaited *last = awaited_at(session, session->awaited_runs - 1u);
        if (last->verb == verb && last->masked == masked && last->count < UINT16_MAX) {
            last->count++;
            return;
        }
    }
    *awaited_at(session, session->awaited_runs++) = (struct nq_awaited){ .verb = verb, .masked = masked, .count = 1 };
}

static void answered(struct nq_session *session)
{
    uint8_t verb = awaited_head(session);
    if (!session->awaited_runs)
        return;
    session->answered += verb != VERB_GREETING && verb != VERB_MESSAGE;
    session->masked_answered = awaited_at(session, 0)->masked;
    if (--awaited_at(session, 0)->count)
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
    bool ehlo_next = session->awaited_runs > 1 && verb_flags(awaited_at(session, 1)->verb) & VERB_GREETS;
    while (ehlo_next && awaited_head(session) == VERB_NONE)
        answered(session);
}

uint8_t session_awaited_tail(const struct nq_session *session)
{
    unsigned last = session->awaited_first + session->awaited_runs - 1u;
    return session->awaited_runs ? session->awaited[last % NQ_AWAITED].verb : VERB_NONE;
}

/* What stands before the last command that ends a transaction belongs to another one, should the server agree. A MAIL within a
 * transaction is not such a command: servers refuse it, and go on counting (RFC 5321, 4.1.4). Nor is EHLO, behind which nobody
 * who is honest says more before its reply. */
uint32_t session_recipients(const struct nq_session *session)
{
    uint32_t count = session->client ? session->client->recipients : 0;
    bool within = session->transaction;
    for (unsigned i = 0; i < session->awaited_runs; i++) {
        const struct nq_awaited *run = &session->awaited[(session->awaited_first + i) % NQ_AWAITED];
        if (run->verb == VERB_RCPT)
            count += run->count;
        else if (verb_flags(run->verb) & VERB_SENDS) {
            count = within ? count : 0;
            within = true;
        } else if (run->verb == VERB_RSET || run->verb == VERB_MESSAGE || run->verb == VERB_BDAT) {
            count = 0;
            within = false;
        }
    }
    return count;
}

/* ---- the client's mode: the table, and the one function that changes it ---- */

static const struct {
    uint8_t verb;
    uint16_t code;              /* 0: any other */
    bool answers;               /* the command has its reply */
    uint8_t mode;
} transitions[] = {
    { VERB_DATA, 354, true, MODE_DATA },            /* RFC 5321, 4.1.1.4 */
    { VERB_DATA, 0, true, MODE_COMMAND },
    { VERB_AUTH, 334, false, MODE_AUTH },           /* RFC 4954, 4 */
    { VERB_AUTH, 0, true, MODE_COMMAND },
    { VERB_STARTTLS, 220, true, MODE_OPAQUE },      /* RFC 3207, 4 */
    { VERB_STARTTLS, 0, true, MODE_COMMAND },
    { VERB_XCLIENT, 0, true, MODE_COMMAND },
};

static void session_enter(struct nq_session *session, const struct nq_policy *policy, enum nq_mode mode)
{
    session->mode = (uint8_t)mode;
    if (mode == MODE_DATA && session->client)
        message_begin(session->client, policy, false);
    if (mode == MODE_CHUNK && !session->client->in_message)
        message_begin(session->client, policy, true);
}

void session_begin(struct nq_session *session)
{
    memset(session, 0, sizeof *session);
    await(session, VERB_GREETING, false);
}

bool session_waits(const struct nq_session *session)
{
    bool full = session->awaited_runs == NQ_AWAITED;
    return session->mode == MODE_WAIT || (session->mode == MODE_COMMAND && full && !session_inside_command(session));
}

bool session_inside_command(const struct nq_session *session)
{
    const struct nq_line *line = session->client ? &session->client->command : NULL;
    return session->mode == MODE_COMMAND && line && line->len && !line->ended;
}

bool session_rests(const struct nq_session *session)
{
    const struct nq_client *client = session->client;
    bool between = session->mode == MODE_COMMAND || session->mode == MODE_OPAQUE;
    return client && between && !session->transaction && !session->awaited_runs && !session_inside_command(session) &&
           !client->due && !client->in_message;
}

bool session_due(const struct nq_session *session, unsigned direction, const struct nq_cursor *cursor)
{
    const struct nq_client *client = session->client;
    if (direction == 1)
        return session->due || session->masked_answered;
    if (!client || session_waits(session))
        return client && client->due;
    return client->due || (session->mode == MODE_CHUNK && !client->chunk) ||
           ((session->mode == MODE_DATA || session->mode == MODE_CHUNK) && cursor->token);
}

/* ---- TLS: opaque, but for its beginning ---- */

static void hear_tls(struct nq_hello *hello, uint8_t type, struct nq_cursor *cursor)
{
    hello_take(hello, type, cursor->at, cursor->end);
    cursor->at = cursor->end;
}

/* ---- the client speaks ---- */

/* Between two chunks of a message: whether the next one goes on with it or begins another is for the server to say. */
static bool ends_message(uint8_t verb)
{
    return verb == VERB_RSET || verb_flags(verb) & (VERB_SENDS | VERB_GREETS);
}

static struct nq_said command_ends(struct nq_session *session, const struct nq_policy *policy, struct nq_said said)
{
    struct nq_line *line = &session->client->command;
    bool masked = line->phase == PHASE_OVERWRITE;
    uint8_t verb = masked && !line->word ? VERB_MASKED : line->word;
    session->commands++;
    bool nameless = !line->word || line->word == VERB_PRIVATE;
    session->behind_auth = event_credentials(line) || (session->behind_auth && nameless && !memchr(line->text, ' ', line->kept));
    await(session, verb, masked);
    if (verb_flags(verb) & VERB_WAITS || (session->client->in_message && ends_message(verb)))
        session_enter(session, policy, MODE_WAIT);
    if (verb == VERB_BDAT && !masked)
        session_enter(session, policy, MODE_CHUNK);
    return said;
}

static struct nq_said hear_command(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    struct nq_said said = command_hear(session, policy, cursor);
    return said.what == SAID_COMMAND_END ? command_ends(session, policy, said) : said;
}

static struct nq_said hear_auth(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    bool ended = false;
    struct nq_said said = command_hear_auth(session, policy, cursor, &ended);
    if (ended)
        session_enter(session, policy, MODE_WAIT);
    return said;
}

/* RFC 2033, 4.2: a reply for each recipient that the server has accepted. */
static void await_message(struct nq_session *session)
{
    uint32_t replies = session->lmtp && session->client->accepted ? session->client->accepted : 1;
    while (replies--)
        await(session, VERB_MESSAGE, false);
}

static struct nq_said hear_message(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    bool counted = session->mode == MODE_CHUNK;
    struct nq_said said = message_hear(session, policy, cursor);
    if (said.what != SAID_END_OF_DATA)
        return said;
    session_enter(session, policy, MODE_COMMAND);
    if (!counted)
        await_message(session);
    else if (session->client->in_message)
        said.what = SAID_BODY; /* of a chunk, and more are to come */
    return said;
}

/* Told once the client speaks TLS: until then the server's 220 may be followed by anything. */
static struct nq_said hear_client_tls(struct nq_session *session, struct nq_cursor *cursor)
{
    bool seen = hello_seen(&session->hello[0]);
    uint64_t behind = (uint64_t)(cursor->end - cursor->at) - (NQ_HELLO_OCTETS - session->hello[0].octets);
    hear_tls(&session->hello[0], HELLO_CLIENT, cursor);
    if (seen || !hello_seen(&session->hello[0]))
        return (struct nq_said){ .what = SAID_NOTHING };
    return (struct nq_said){ .what = SAID_FACT, .match = MATCH_OF_TLS_STARTED, .why = REASON_RULE, .final = true,
                             .back = behind };
}

struct nq_said session_client(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    uint8_t *from = cursor->at;
    struct nq_said said = message_due(session->client, policy, cursor);
    bool in_message = session->mode == MODE_DATA || session->mode == MODE_CHUNK, waits = session_waits(session);
    if (said.what || waits || (cursor->at == cursor->end && !in_message)) {
        said = said.what ? said : command_due(session, policy);
        if (!said.what && waits)
            said.what = SAID_WAIT;
    } else
        switch (session->mode) {
        case MODE_COMMAND: said = hear_command(session, policy, cursor); break;
        case MODE_CHUNK:
        case MODE_DATA: said = hear_message(session, policy, cursor); break;
        case MODE_AUTH: said = hear_auth(session, policy, cursor); break;
        default: said = hear_client_tls(session, cursor); break;
        }
    said.from = from;
    said.to = cursor->at;
    return said;
}

/* ---- the server speaks ---- */

/* A message that was sent in chunks is not gone on with. Chunks that came behind the command that ended it are another's. */
static void forget_message(struct nq_client *client, const struct nq_session *session)
{
    if (!session->awaited_runs && session->mode != MODE_CHUNK)
        client->in_message = false;
}

static void transaction_ends(struct nq_session *session)
{
    session->transaction = false;
    if (!session->client)
        return;
    session->client->recipients = session->client->accepted = 0;
    forget_message(session->client, session);
}

/* What the server says to a command that is no matter of modes. */
static void take_answer(struct nq_session *session, uint8_t verb, uint16_t code)
{
    bool good = code / 100 == 2;
    if (verb == VERB_RCPT) {
        session->invalid = (uint16_t)(session->invalid + (code >= 400 && session->invalid < UINT16_MAX));
        session->due |= code >= 400 ? (uint64_t)1 << MATCH_OF_INVALID_RECIPIENTS : 0;
        if (session->client) {
            session->client->recipients++;
            session->client->accepted += good;
        }
    } else if (verb_flags(verb) & VERB_SENDS) {
        if (good && session->client) {
            session->client->recipients = session->client->accepted = 0;
            forget_message(session->client, session);
        }
        session->transaction |= good;
    } else if (verb_flags(verb) & VERB_GREETS && good) {
        transaction_ends(session);
        session->lmtp = verb == VERB_LHLO;
        if (verb == VERB_HELO)
            session->offered = session->server_offers = 0;
    } else if ((verb == VERB_RSET || verb == VERB_XCLIENT) && good) {
        transaction_ends(session);
        if (verb == VERB_XCLIENT)
            session->offered = session->server_offers = 0;
    } else if (verb == VERB_MESSAGE && awaited_head(session) != VERB_MESSAGE)
        transaction_ends(session);
    else if (verb == VERB_BDAT && session->client && !session->client->in_message)
        transaction_ends(session);
    else if (verb == VERB_BDAT && session->client && code >= 400)
        forget_message(session->client, session);
}

/* A complete reply. False where its code fits no command that the client has sent. */
static bool answer(struct nq_session *session, const struct nq_policy *policy, uint16_t code)
{
    /* RFC 5321, 3.8: at any time, and the server closes: it will say nothing else that anybody waits for. */
    if (code == 421 && awaited_head(session) != VERB_GREETING) {
        while (session->mode == MODE_WAIT && session->awaited_runs)
            answered(session);
        if (session->mode == MODE_WAIT)
            session_enter(session, policy, MODE_COMMAND);
        return true;
    }
    bool steers = code == 354 || code == 334;
    if (steers && session->mode == MODE_WAIT && awaited_head(session) != session_awaited_tail(session))
        answer_all_but_last(session);
    bool awaited = session->awaited_runs > 0;
    uint8_t verb = awaited_head(session);
    for (size_t i = 0; i < sizeof transitions / sizeof *transitions; i++) {
        if (transitions[i].verb != verb || (transitions[i].code && transitions[i].code != code))
            continue;
        if (transitions[i].answers)
            answered(session);
        if (session->mode == MODE_WAIT)
            session_enter(session, policy, transitions[i].mode);
        take_answer(session, verb, code);
        return true;
    }
    answered(session);
    if (session->mode == MODE_WAIT && !session->awaited_runs)
        session_enter(session, policy, MODE_COMMAND);
    take_answer(session, verb, code);
    return awaited && !steers;
}

/* A BDAT that is refused before its octets are there: nobody can say what the server takes them for. */
static bool answers_early(const struct nq_session *session)
{
    return session->mode == MODE_CHUNK && session->awaited_runs == 1 &&
           session->awaited[session->awaited_first].verb == VERB_BDAT && session->awaited[session->awaited_first].count == 1;
}

/* "250-XXXXXXXA": what a firewall on the way leaves of a keyword. */
static bool keyword_is_masked(const uint8_t *text, uint32_t len)
{
    uint32_t count = 0;
    while (count < len && text[count] == 'X')
        count++;
    bool suffix = count + 1 == len && text[count] >= 'A' && text[count] <= 'Z';
    return count >= 4 && (count == len || suffix);
}

static void take_offer(struct nq_session *session)
{
    enum { BEHIND_THE_CODE = 4 };
    const struct nq_line *line = &session->reply;
    const uint8_t *word = line->text + BEHIND_THE_CODE;
    uint32_t len = 0, kept = line->kept > BEHIND_THE_CODE ? line->kept - (uint32_t)BEHIND_THE_CODE : 0;
    bool passes = line->phase != PHASE_OVERWRITE && line->phase != PHASE_REMOVE;
    while (len < kept && word[len] != ' ' && word[len] != '=' && word[len] != '\t')
        len++;
    uint32_t bit = 1u << keyword_named(word, len) & ~1u;
    session->server_offers |= bit;
    session->offered |= passes ? bit : 0;
    if (keyword_is_masked(word, len))
        session->due |= (uint64_t)1 << MATCH_OF_STARTTLS_STRIPPED;
}

static void note_ehlo_line(struct nq_session *session)
{
    bool ehlo = session->reply.code == 250 && verb_flags(awaited_head(session)) & VERB_GREETS;
    if (ehlo && session->reply_part == 0)
        session->offered = session->server_offers = 0;
    else if (ehlo)
        take_offer(session);
}

/* RFC 2034, 4: "250 2.1.0 ok": class, subject and detail, in every reply of class 2, 4 or 5 but the greeting and those to HELO and
 * EHLO. Its length, 0: there is none. */
static uint32_t enhanced_code(const uint8_t *text, uint32_t len)
{
    uint32_t at = 0, dots = 0, digits = 0;
    for (; at < len && (text[at] == '.' || (text[at] >= '0' && text[at] <= '9')); at++) {
        digits = text[at] == '.' ? 0 : digits + 1;
        dots += text[at] == '.';
        if (digits > 3 || (text[at] == '.' && (at == 0 || text[at - 1] == '.')) || (!dots && digits > 1))
            return 0;
    }
    return dots == 2 && digits && (at == len || text[at] == ' ') ? at : 0;
}

static void note_enhanced_code(struct nq_session *session, uint8_t verb)
{
    enum { BEHIND_THE_CODE = 4 };
    const struct nq_line *line = &session->reply;
    unsigned class = line->code / 100;
    uint32_t kept = line->kept > BEHIND_THE_CODE ? line->kept - (uint32_t)BEHIND_THE_CODE : 0;
    bool offered = session->offered >> KEYWORD_ENHANCEDSTATUSCODES & 1;
    session->enhanced = 0;
    if (verb == VERB_GREETING || verb_flags(verb) & VERB_GREETS || (class != 2 && class != 4 && class != 5))
        return;
    if (!enhanced_code(line->text + BEHIND_THE_CODE, kept))
        session->enhanced = offered ? ENHANCED_MISSING : 0;
    else if (line->text[BEHIND_THE_CODE] != (uint8_t)('0' + class))
        session->enhanced = ENHANCED_WRONG;
    else
        session->enhanced = offered ? 0 : ENHANCED_NOT_OFFERED;
    if (session->enhanced)
        session->due |= (uint64_t)1 << MATCH_OF_ENHANCED_CODE;
}

struct nq_said session_injection(void)
{
    return (struct nq_said){ .what = SAID_INJECTION, .match = MATCH_OF_STARTTLS_INJECTION, .why = REASON_TLS_INJECTION };
}

static struct nq_said reply_ends(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    uint16_t code = session->reply.code;
    if (answers_early(session) && code != 421)
        return (struct nq_said){ .what = SAID_EARLY_REPLY, .why = REASON_EARLY_REPLY };
    bool was_opaque = session->mode == MODE_OPAQUE;
    note_enhanced_code(session, awaited_head(session));
    session->masked_answered = false;
    bool fits = answer(session, policy, code);
    session->due |= (uint64_t)1 << MATCH_OF_REPLY_CODE;
    if (session->mode == MODE_OPAQUE && !was_opaque) {
        if (cursor->at < cursor->end) {
            cursor->at = cursor->end;
            return session_injection();
        }
    }
    if (fits)
        return (struct nq_said){ .what = SAID_REPLY_LINE };
    return (struct nq_said){ .what = SAID_TRANSITION, .match = MATCH_OF_UNEXPECTED_REPLY, .why = REASON_TRANSITION,
                             .value = code, .final = true, .back = session->reply.len };
}

static struct nq_said reply_line_ends(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    struct nq_line *line = &session->reply;
    session->replies++;
    if (line->digits == NQ_NO_CODE)
        return (struct nq_said){ .what = SAID_REPLY_LINE };
    note_ehlo_line(session);
    session->reply_part++;
    if (line->separator == '-')
        return (struct nq_said){ .what = SAID_REPLY_LINE };
    session->reply_part = 0;
    return reply_ends(session, policy, cursor);
}

static struct nq_said code_is_known(struct nq_session *session, const struct nq_policy *policy)
{
    struct nq_line *line = &session->reply;
    if (line->code == 250 && session->reply_part > 0)
        pass_over_empty_lines(session);
    uint8_t verb = awaited_head(session);
    if (verb == VERB_GREETING && line->code == 220)
        return (struct nq_said){ .what = SAID_BANNER, .why = REASON_BANNER };
    bool judged = policy->mask_keywords || policy->rules_of[MATCH_OF_EHLO_PARAMETER];
    bool ehlo = verb == VERB_EHLO || verb == VERB_LHLO;
    if (ehlo && line->code == 250 && session->reply_part > 0 && judged)
        line->phase = PHASE_WORD; /* RFC 5321, 4.1.1.1: a keyword on every line but the first */
    return (struct nq_said){ .what = SAID_NOTHING };
}

static struct nq_said keyword(const struct nq_session *session, bool known)
{
    return (struct nq_said){ .what = known ? SAID_KEYWORD : SAID_BAD_KEYWORD, .match = MATCH_OF_EHLO_PARAMETER,
                             .word = known ? session->reply.word : KEYWORD_NONE, .why = REASON_KEYWORD, .final = true,
                             .back = session->reply.len };
}

static struct nq_said hear_reply(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    switch (scan_reply(&session->reply, &policy->keywords, cursor)) {
    case TOKEN_CODE: return code_is_known(session, policy);
    case TOKEN_WORD:
    case TOKEN_FORBIDDEN: return keyword(session, true);
    case TOKEN_UNKNOWN:
    case TOKEN_INCOMPLETE: return keyword(session, false);
    case TOKEN_SPAN: return (struct nq_said){ .what = SAID_SPAN };
    case TOKEN_LINE: return reply_line_ends(session, policy, cursor);
    default: return (struct nq_said){ .what = SAID_NOTHING };
    }
}

static struct nq_said reply_due(struct nq_session *session)
{
    if (session->masked_answered) {
        session->masked_answered = false;
        return (struct nq_said){ .what = SAID_ANSWER, .value = session->reply.code };
    }
    uint8_t match = (uint8_t)__builtin_ctzll(session->due);
    session->due &= session->due - 1;
    uint64_t value = match == MATCH_OF_INVALID_RECIPIENTS ? session->invalid : session->reply.code;
    return (struct nq_said){ .what = SAID_FACT, .match = match, .why = REASON_RULE, .value = value, .final = true,
                             .word = match == MATCH_OF_ENHANCED_CODE ? session->enhanced : 0, .back = session->reply.len };
}

struct nq_said session_server(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    uint8_t *from = cursor->at;
    struct nq_said said = { .what = SAID_NOTHING };
    if (session->due || session->masked_answered)
        said = reply_due(session);
    else if (session->mode == MODE_OPAQUE && !session->hello[0].octets) {
        cursor->at = cursor->end; /* TLS is the client's to begin (RFC 8446, 4.1.2) */
        said = session_injection();
    } else if (session->mode == MODE_OPAQUE)
        hear_tls(&session->hello[1], HELLO_SERVER, cursor);
    else
        said = hear_reply(session, policy, cursor);
    said.from = from;
    said.to = cursor->at;
    return said;
}
