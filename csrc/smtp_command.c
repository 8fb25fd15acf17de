/*
 * smtp_command.c - a command line, octet by octet: its verb, its length, its argument. Each thing that a rule may look at is said
 * as a fact at the first octet that proves it, so that as much of the line as possible is still in hand.
 *
 * Facts that become true at one octet wait in client->due, a bit for each match, and are said one by one before the next octet is
 * looked at.
 */
#include "nq.h"

static uint64_t due(uint8_t match) { return (uint64_t)1 << match; }

static struct nq_said nothing(void) { return (struct nq_said){ .what = SAID_NOTHING }; }

/* ---- a line begins ---- */

static void begin(struct nq_session *session, const struct nq_policy *policy)
{
    struct nq_client *client = session->client;
    uint64_t of_message = 0;
    for (unsigned match = MATCH_OF_HEADER_LENGTH; match <= MATCH_OF_SIZE_EXCEEDED; match++)
        of_message |= policy->rules_of[match];
    client->behind = session_awaited_tail(session);
    client->behind_bare = client->behind && client->command.ended && client->command.len == client->command.body_len + 1;
    client->command = (struct nq_line){ 0 };
    client->fired &= (session_recipients(session) ? policy->rules_of[MATCH_OF_CMD_RCPT_COUNT] : 0) | of_message;
    client->begun = true;
    client->argument_told = client->newline_told = client->verb_told = false;
    client->chunk_phase = client->letters = 0;
    client->malformed = false;
    client->node = 0;
    client->length_told = 0;
    if (client->behind == VERB_GREETING)
        client->due |= due(MATCH_OF_EARLY_TALKER);
    else if (client->behind)
        client->due |= due(MATCH_OF_PIPELINED) |
                       (session->offered >> KEYWORD_PIPELINING & 1 ? 0 : due(MATCH_OF_NOT_OFFERED));
}

/* ---- the verb is known ---- */

static uint32_t offer_of(uint8_t verb)
{
    switch (verb) {
    case VERB_AUTH: return 1u << KEYWORD_AUTH;
    case VERB_BDAT: return 1u << KEYWORD_CHUNKING;
    case VERB_ETRN: return 1u << KEYWORD_ETRN;
    case VERB_STARTTLS: return 1u << KEYWORD_STARTTLS;
    default: return 0;
    }
}

static uint8_t keyword_in(uint32_t bits)
{
    return bits ? (uint8_t)__builtin_ctz(bits) : KEYWORD_NONE;
}

static void begin_argument(struct nq_client *client, uint8_t verb)
{
    memset(client->text, 0, sizeof client->text);
    if (verb_flags(verb) & VERB_SENDS) {
        path_begin(&client->path, true);
        client->declared = 0;
    } else if (verb == VERB_RCPT)
        path_begin(&client->path, false);
}

static struct nq_said verb_is_known(struct nq_session *session, uint8_t verb)
{
    struct nq_client *client = session->client;
    uint32_t offer = offer_of(verb);
    client->due |= due(MATCH_OF_SHORT_VERB);
    client->verb_told = true;
    if (offer && !(session->offered & offer))
        client->due |= due(MATCH_OF_NOT_OFFERED);
    if (verb == VERB_AUTH && session->server_offers >> KEYWORD_STARTTLS & 1)
        client->due |= due(MATCH_OF_AUTH_IN_CLEAR);
    if (verb_flags(verb) & VERB_SENDS)
        client->due |= due(MATCH_OF_TLS_REQUIRED);
    if (verb == VERB_RCPT)
        client->due |= due(MATCH_OF_CMD_RCPT_COUNT);
    begin_argument(client, verb);
    return (struct nq_said){ .what = SAID_VERB, .match = MATCH_OF_CMD_VERB, .word = verb, .why = REASON_COMMAND, .final = true };
}

static struct nq_said bad_verb(enum nq_reason why)
{
    return (struct nq_said){ .what = SAID_BAD_VERB, .match = MATCH_OF_CMD_VERB, .word = VERB_PRIVATE, .why = (uint8_t)why,
                             .final = true };
}

/* ---- facts that are due ---- */

/* Letters of the verb; of one that was masked before its end, by the line as it came. */
static uint32_t verb_length(const struct nq_client *client)
{
    const struct nq_line *line = &client->command;
    uint32_t len = 0;
    if (client->verb_told)
        return line->len + (line->phase == PHASE_WORD);
    while (len < line->kept && line->text[len] != ' ' && line->text[len] != '\t' && line->text[len] != '\r')
        len++;
    return len;
}

static struct nq_said fill(const struct nq_session *session, struct nq_said said)
{
    const struct nq_client *client = session->client;
    const struct nq_line *line = &client->command;
    switch (said.match) {
    case MATCH_OF_PIPELINED: said.word = client->behind; break;
    case MATCH_OF_SHORT_VERB: said.value = verb_length(client); break;
    case MATCH_OF_NOT_OFFERED:
        said.word = line->len ? keyword_in(offer_of(line->word)) : (uint8_t)KEYWORD_PIPELINING;
        if (!said.word)
            said.word = path_keyword(&client->path);
        break;
    case MATCH_OF_CMD_SYNTAX: said.word = line->word; break;
    case MATCH_OF_CMD_RCPT_COUNT: said.value = session_recipients(session) + 1; break;
    case MATCH_OF_PARAMETER:
    case MATCH_OF_PARAMETER_SYNTAX: said.word = client->path.parameter; break;
    case MATCH_OF_DECLARED_SIZE: said.value = client->path.size; break;
    case MATCH_OF_SENDER_LENGTH:
    case MATCH_OF_RECIPIENT_LENGTH: said.value = client->path.length; break;
    case MATCH_OF_SENDER_REGEX:
    case MATCH_OF_RECIPIENT_REGEX:
    case MATCH_OF_MAIL_RELAY:
    case MATCH_OF_HELO_REGEX: said.text = client->text; break;
    case MATCH_OF_AUTH_MECHANISM: said.word = client->mechanism; break;
    case MATCH_OF_CMD_LINE_LENGTH:
        said.word = line->word;
        said.value = line->len + 1;
        said.final = client->newline_told;
        break;
    default: break;
    }
    return said;
}

struct nq_said command_due(struct nq_session *session, const struct nq_policy *policy)
{
    struct nq_client *client = session->client;
    while (client->due) {
        uint8_t match = (uint8_t)__builtin_ctzll(client->due);
        client->due &= client->due - 1;
        if (!policy->rules_of[match])
            continue;
        struct nq_said said = { .what = SAID_FACT, .match = match, .why = REASON_RULE, .final = true,
                                .back = client->command.len };
        return fill(session, said);
    }
    return nothing();
}

/* ---- arguments ---- */

static void step_texts(struct nq_client *client, const struct nq_expressions *expressions, const uint8_t *from,
                       const uint8_t *to)
{
    for (uint32_t i = 0; i < expressions->count && from < to; i++)
        client->text[i] = regex_step(&expressions->regex[i], client->text[i], from, to);
}

static uint32_t path_limit(const struct nq_client *client, const struct nq_policy *policy, bool sender)
{
    uint8_t match = sender ? MATCH_OF_SENDER_LENGTH : MATCH_OF_RECIPIENT_LENGTH;
    uint64_t bound = rules_next_bound(policy, match, client->fired, client->path.length);
    return bound < UINT32_MAX ? (uint32_t)bound : UINT32_MAX;
}

static struct nq_said address_fact(struct nq_client *client, enum nq_path_said said, bool sender)
{
    const struct nq_path *path = &client->path;
    uint8_t length = sender ? MATCH_OF_SENDER_LENGTH : MATCH_OF_RECIPIENT_LENGTH;
    struct nq_said fact = { .what = SAID_FACT, .why = REASON_RULE, .back = client->command.len };
    switch (said) {
    case PATH_SPECIAL: fact.match = MATCH_OF_SPECIAL_CHARACTER; return fact;
    case PATH_LENGTH: fact.match = length, fact.value = path->length + 1u; return fact;
    case PATH_ADDRESS:
        client->due |= due(length) | (sender ? due(MATCH_OF_SENDER_REGEX)
                                             : due(MATCH_OF_RECIPIENT_REGEX) | due(MATCH_OF_MAIL_RELAY));
        break;
    case PATH_PARAMETER:
        client->due |= due(MATCH_OF_PARAMETER);
        client->due |= path->valid ? 0 : due(MATCH_OF_PARAMETER_SYNTAX);
        if (path->parameter == PARAMETER_SIZE && path->valid) {
            client->declared = path->size;
            client->due |= due(MATCH_OF_DECLARED_SIZE);
        }
        break;
    default: break;
    }
    return nothing();
}

static struct nq_said hear_path(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor,
                                bool sender)
{
    struct nq_client *client = session->client;
    const uint8_t *at = cursor->at;
    if (!*at && client->argument_told && !client->command.dry_run)
        return (struct nq_said){ .what = SAID_BAD_LINE, .why = REASON_NUL }; /* a rule was asked, and it is still there */
    client->path.limit = path_limit(client, policy, sender);
    enum nq_path_said what = path_take(&client->path, &at, cursor->end);
    step_texts(client, &policy->expressions[sender ? SUBJECT_SENDER : SUBJECT_RECIPIENT], client->path.address_from,
               client->path.address_to);
    scan_consume(&client->command, cursor, at);
    struct nq_said said = address_fact(client, what, sender);
    client->argument_told = what == PATH_SPECIAL && !*at;
    uint8_t keyword = path_keyword(&client->path);
    if (what == PATH_PARAMETER && keyword && !(session->offered >> keyword & 1))
        client->due |= due(MATCH_OF_NOT_OFFERED);
    return said;
}

static uint8_t *argument_end(const struct nq_cursor *cursor, bool word)
{
    uint8_t *at = cursor->at;
    while (at < cursor->end && *at != '\r' && *at != '\n' && *at && !(word && (*at == ' ' || *at == '\t')))
        at++;
    return at;
}

static void pass_blanks(struct nq_line *line, struct nq_cursor *cursor)
{
    uint8_t *at = cursor->at;
    while (at < cursor->end && (*at == ' ' || *at == '\t'))
        at++;
    scan_consume(line, cursor, at);
}

/* The first word behind EHLO: it is complete at the octet that ends it. */
static void hear_name(struct nq_client *client, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    if (client->argument_told)
        return;
    if (!client->node)
        pass_blanks(&client->command, cursor);
    uint8_t *to = argument_end(cursor, true);
    client->node |= to > cursor->at;
    step_texts(client, &policy->expressions[SUBJECT_HELO], cursor->at, to);
    scan_consume(&client->command, cursor, to);
    if (cursor->at == cursor->end)
        return;
    client->argument_told = true;
    client->due |= due(MATCH_OF_HELO_REGEX) | (client->node ? 0 : due(MATCH_OF_CMD_SYNTAX));
}

static bool is_alphanumeric(uint8_t octet)
{
    return (octet >= '0' && octet <= '9') || ((octet & 0xdf) >= 'A' && (octet & 0xdf) <= 'Z');
}

/* RFC 1985, 5.1: a domain, "@" and a domain, or "#" and the name of a queue; nothing behind it. client->node: octets of it. */
static void hear_node(struct nq_client *client, struct nq_cursor *cursor)
{
    if (client->argument_told)
        return;
    if (!client->node)
        pass_blanks(&client->command, cursor);
    uint8_t *to = argument_end(cursor, false);
    for (const uint8_t *at = cursor->at; at < to; at++, client->node += client->node < UINT16_MAX) {
        bool blank = *at == ' ' || *at == '\t';
        client->malformed |= client->letters && !blank;
        client->letters |= blank;
        client->malformed |= !blank && !is_alphanumeric(*at) && !strchr(client->node ? ".-_:[]" : "@#[", *at);
    }
    scan_consume(&client->command, cursor, to);
    if (cursor->at == cursor->end)
        return;
    client->argument_told = true;
    if (client->malformed || !client->node)
        client->due |= due(MATCH_OF_CMD_SYNTAX);
}

static void hear_mechanism(struct nq_client *client, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    enum { NO_NODE = UINT16_MAX };
    if (client->argument_told)
        return;
    if (!client->node)
        pass_blanks(&client->command, cursor);
    uint8_t *to = argument_end(cursor, true);
    for (const uint8_t *at = cursor->at; at < to; at++) /* RFC 4954, 4: SASL's names (RFC 4422, 3.1) */
        client->malformed |= (!is_alphanumeric(*at) && *at != '-' && *at != '_') || ++client->letters > 20;
    for (const uint8_t *at = cursor->at; at < to && client->node != NO_NODE; at++) {
        client->node = automaton_step(&policy->mechanisms, client->node, *at);
        client->node = client->node ? client->node : NO_NODE;
    }
    scan_consume(&client->command, cursor, to);
    if (cursor->at == cursor->end)
        return;
    client->mechanism = client->node == NO_NODE ? 0 : policy->mechanisms.word[client->node];
    client->argument_told = true;
    client->due |= due(MATCH_OF_AUTH_MECHANISM) | (client->malformed || !client->letters ? due(MATCH_OF_CMD_SYNTAX) : 0);
}

/* "BDAT 86 LAST", RFC 3030 2: strictly, for the octets behind it are counted by this number alone. A server that ends lines
 * at CRLF only would read on behind a bare LF, and take the chunk for commands. */
static bool take_chunk(struct nq_client *client, uint8_t octet)
{
    static const char last[] = "LAST";
    enum { BEFORE, DIGITS, BEHIND, LETTERS, END = LETTERS + 3, TRAILING };
    bool blank = octet == ' ', ends = octet == '\r', digit = octet >= '0' && octet <= '9';
    switch (client->chunk_phase) {
    case BEFORE:
        if (blank)
            return true;
        client->chunk = 0;
        client->last = false;
        client->chunk_phase = DIGITS;
        if (!digit)
            return false;
        /* fall through */
    case DIGITS:
        if (digit) {
            client->chunk = client->chunk * 10 + (octet - '0');
            return client->chunk <= INT32_MAX; /* servers have taken 2^32 + 10 for 10, and the rest for commands */
        }
        client->chunk_phase = BEHIND;
        return blank || ends;
    case BEHIND:
        if (blank || ends)
            return true;
        client->chunk_phase = LETTERS + 1;
        return (octet & 0xdf) == 'L';
    case TRAILING: return blank || ends;
    default:
        if ((octet & 0xdf) != last[client->chunk_phase - LETTERS])
            return false;
        client->last = client->chunk_phase == END;
        client->chunk_phase++;
        return true;
    }
}

static struct nq_said hear_chunk(struct nq_session *session, struct nq_cursor *cursor)
{
    struct nq_client *client = session->client;
    uint8_t *at = cursor->at;
    bool offered = session->server_offers >> KEYWORD_CHUNKING & 1, good = offered && !client->behind_bare;
    while (good && at < cursor->end) {
        good = take_chunk(client, *at);
        if (*at == '\r' || *at == '\n' || !*at || !good)
            break;
        at++;
    }
    scan_consume(&client->command, cursor, at);
    if (!good && client->command.dry_run) /* told already; the server does not know it, or not like this */
        client->command.word = VERB_PRIVATE;
    return good || client->command.dry_run
               ? nothing()
               : (struct nq_said){ .what = SAID_BAD_LINE, .why = offered ? REASON_CHUNK_SYNTAX : REASON_CHUNK };
}

static struct nq_said hear_argument(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    struct nq_client *client = session->client;
    uint8_t verb = client->command.word;
    switch (verb) {
    case VERB_RCPT: return hear_path(session, policy, cursor, false);
    case VERB_BDAT: return hear_chunk(session, cursor);
    case VERB_AUTH: hear_mechanism(client, policy, cursor); break;
    case VERB_ETRN: hear_node(client, cursor); break;
    case VERB_EHLO:
    case VERB_HELO:
    case VERB_LHLO: hear_name(client, policy, cursor); break;
    default:
        if (verb_flags(verb) & VERB_SENDS)
            return hear_path(session, policy, cursor, true);
        break;
    }
    return nothing();
}

/* ---- the line ---- */

/* The part of the cursor that the line may take before a rule about its length has something to say; empty where it has now. */
static struct nq_cursor within_length(const struct nq_client *client, const struct nq_policy *policy,
                                      const struct nq_cursor *cursor)
{
    struct nq_cursor part = *cursor;
    uint32_t len = client->command.len, told = client->length_told == len + 1;
    uint64_t bound = rules_next_bound(policy, MATCH_OF_CMD_LINE_LENGTH, client->fired, (uint64_t)len + told);
    if (bound != UINT64_MAX && (uint64_t)(part.end - part.at) > bound - len)
        part.end = part.at + (bound - len);
    return part;
}

static struct nq_said too_long(struct nq_session *session, const struct nq_policy *policy)
{
    struct nq_client *client = session->client;
    client->length_told = client->command.len + 1;
    client->due |= due(MATCH_OF_CMD_LINE_LENGTH);
    return command_due(session, policy);
}

/* What is known of a line once its LF is there. */
static void at_line_end(struct nq_client *client, const struct nq_cursor *cursor)
{
    if (*cursor->at != '\n' || client->newline_told || !client->command.len)
        return;
    client->newline_told = true;
    client->due |= due(MATCH_OF_CMD_LINE_LENGTH) | (client->verb_told ? 0 : due(MATCH_OF_SHORT_VERB)) |
                   (client->command.cr ? 0 : due(MATCH_OF_WRONG_TERMINATION));
}

static struct nq_said said_of(struct nq_session *session, enum nq_token token)
{
    switch (token) {
    case TOKEN_WORD:
    case TOKEN_FORBIDDEN: return verb_is_known(session, session->client->command.word);
    case TOKEN_UNKNOWN: return bad_verb(REASON_COMMAND);
    case TOKEN_INCOMPLETE: return bad_verb(REASON_INCOMPLETE);
    case TOKEN_BARE_CR: return (struct nq_said){ .what = SAID_BAD_LINE, .why = REASON_BARE_CR };
    case TOKEN_NUL: return (struct nq_said){ .what = SAID_BAD_LINE, .why = REASON_NUL };
    case TOKEN_TOO_LONG: return (struct nq_said){ .what = SAID_TOO_LONG, .why = REASON_COMMAND_LENGTH };
    case TOKEN_SPAN: return (struct nq_said){ .what = SAID_SPAN };
    case TOKEN_LINE:
        session->client->begun = false;
        return (struct nq_said){ .what = SAID_COMMAND_END };
    default: return nothing();
    }
}

struct nq_said command_hear(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    struct nq_client *client = session->client;
    struct nq_line *line = &client->command;
    if (!client->begun)
        begin(session, policy);
    else
        at_line_end(client, cursor);
    struct nq_said said = command_due(session, policy);
    if (said.what)
        return said;
    struct nq_cursor part = within_length(client, policy, cursor);
    uint8_t *before = part.at;
    if (part.at == part.end)
        return too_long(session, policy);
    if (line->phase == PHASE_REST && !line->cr)
        said = hear_argument(session, policy, &part);
    if (!said.what && part.at == before && !client->due)
        said = said_of(session, scan_command(line, &policy->verbs, &part));
    cursor->at = part.at;
    return said;
}

/* A bare CR or a NUL ends a line for some servers, and what stands behind it would be a command that nobody has judged. The
 * flow ends: no mechanism says them (RFC 4954, 4), and to mask an answer would only hide that. */
struct nq_said command_hear_auth(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor,
                                 bool *ended)
{
    struct nq_client *client = session->client;
    if (!client->begun) {
        begin(session, policy);
        client->due = 0;
        client->command.word = VERB_AUTH;
        client->command.phase = PHASE_REST;
    }
    struct nq_cursor part = within_length(client, policy, cursor);
    if (part.at == part.end)
        return too_long(session, policy);
    enum nq_token token = client->command.phase == PHASE_OVERWRITE
                              ? scan_command(&client->command, &policy->verbs, &part)
                              : scan_line(&client->command, &part);
    cursor->at = part.at;
    client->command.kept = 0; /* a secret: never told */
    *ended = token == TOKEN_LINE;
    if (*ended)
        client->begun = false;
    bool unmarked = token == TOKEN_LINE && !client->command.why;
    struct nq_said said = token == TOKEN_WORD || unmarked ? nothing() : said_of(session, token);
    if (said.what == SAID_BAD_LINE)
        said.what = SAID_BAD_AUTH;
    return said;
}
