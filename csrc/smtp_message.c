/*
 * smtp_message.c - a message, octet by octet, as DATA or in chunks: its end, its lines, its size, and through mime.c its header
 * fields and parts. The scanner goes first, up to the next thing that it has to say; then the same octets, as they leave, are read
 * for what they mean. So what is told comes in the order of the octets, however they are cut.
 */
#include "nq.h"

static uint64_t due(uint8_t match) { return (uint64_t)1 << match; }

static struct nq_said fact(uint8_t match, uint64_t value, uint64_t back)
{
    return (struct nq_said){ .what = SAID_FACT, .match = match, .why = REASON_RULE, .value = value, .back = back };
}

static uint32_t line_limit(const struct nq_policy *policy, uint8_t match)
{
    uint64_t bound = rules_next_bound(policy, match, 0, 0);
    return bound < UINT32_MAX ? (uint32_t)bound : UINT32_MAX;
}

void message_begin(struct nq_client *client, const struct nq_policy *policy, bool counted)
{
    uint64_t of_message = 0;
    for (unsigned match = MATCH_OF_HEADER_LENGTH; match <= MATCH_OF_SIZE_EXCEEDED; match++)
        of_message |= policy->rules_of[match];
    data_begin(&client->data, counted, policy->watches_newlines, line_limit(policy, MATCH_OF_BODY_LINE_LENGTH),
               line_limit(policy, MATCH_OF_HEADER_LINE_LENGTH));
    client->fired &= ~of_message;
    client->message = 0;
    client->in_message = true;
    client->message_begins = true;
    client->newlines_told[0] = client->newlines_told[1] = 0;
    if (!policy->reads_mime)
        return;
    memset(client->of_message, 0, sizeof client->of_message);
    mime_begin(&client->mime);
    client->mime.counted = counted;
}

bool message_tells(struct nq_client *client, uint8_t match)
{
    if (match != MATCH_OF_BARE_NEWLINE && match != MATCH_OF_SMUGGLING)
        return true;
    uint16_t *told = &client->newlines_told[match == MATCH_OF_SMUGGLING];
    bool worth = *told < NQ_NEWLINES_TOLD;
    *told += worth;
    return worth;
}

/* ---- what the octets mean ---- */

static void read_text(struct nq_client *client, const struct nq_policy *policy, bool in_header, const uint8_t *from,
                      const uint8_t *to)
{
    const struct nq_expressions *all = &policy->expressions[in_header ? SUBJECT_HEADER : SUBJECT_BODY];
    uint8_t match = in_header ? MATCH_OF_HEADER_REGEX : MATCH_OF_BODY_REGEX;
    uint16_t *state = client->of_message[in_header];
    for (uint32_t i = 0; i < all->count; i++) {
        uint16_t before = state[i];
        state[i] = regex_step(&all->regex[i], before, from, to);
        if (!regex_matched(&all->regex[i], before) && regex_matched(&all->regex[i], state[i]))
            client->due |= due(match);
    }
}

static struct nq_said mime_fact(struct nq_client *client, enum nq_mime_said said)
{
    const struct nq_mime *mime = &client->mime;
    struct nq_said told = fact(0, 0, 0);
    told.final = true;
    switch (said) {
    case MIME_TO_FIELD: told.match = MATCH_OF_HEADER_TO_FIELDS, told.value = mime->to_fields; return told;
    case MIME_ENCODING: told.match = MATCH_OF_MIME_ENCODING, told.word = mime->encoding; return told;
    case MIME_FILETYPE: told.match = MATCH_OF_MIME_FILETYPE, told.value = mime->filetypes; return told;
    case MIME_FILENAME: told.match = MATCH_OF_MIME_FILENAME_LENGTH, told.value = mime->filename_length; return told;
    case MIME_HEADER_ENDS: client->due |= due(MATCH_OF_HEADER_REGEX); break;
    default: break;
    }
    return (struct nq_said){ .what = SAID_NOTHING };
}

/* Up to where the scanner has been. */
static struct nq_said read_on(struct nq_client *client, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    const uint8_t *at = cursor->at;
    bool in_header = client->mime.in_header;
    enum nq_mime_said said = mime_take(&client->mime, &policy->mime, &at, cursor->scanned);
    read_text(client, policy, in_header, cursor->at, at);
    cursor->at += at - cursor->at;
    return mime_fact(client, said);
}

/* Octets of the message up to the cursor; the scanner may have been further. */
static uint64_t octets_before(const struct nq_client *client, const struct nq_cursor *cursor)
{
    uint64_t ahead = cursor->scanned > cursor->at ? (uint64_t)(cursor->scanned - cursor->at) : 0;
    return client->data.octets[0] + client->data.octets[1] - ahead;
}

struct nq_said message_due(struct nq_client *client, const struct nq_policy *policy, const struct nq_cursor *cursor)
{
    for (unsigned match = MATCH_OF_HEADER_LENGTH; match <= MATCH_OF_SIZE_EXCEEDED && client->due; match++) {
        bool is_due = client->due >> match & 1, header = match == MATCH_OF_HEADER_REGEX;
        client->due &= ~due((uint8_t)match);
        if (!is_due || !policy->rules_of[match])
            continue;
        bool length = match == MATCH_OF_HEADER_LENGTH || match == MATCH_OF_BODY_LENGTH;
        struct nq_said said = fact((uint8_t)match, 0, octets_before(client, cursor));
        said.final = (header && !client->mime.in_header) || (length && !client->in_message);
        said.text = client->of_message[header];
        if (length)
            said.value = client->data.octets[match == MATCH_OF_HEADER_LENGTH];
        if (match == MATCH_OF_SIZE_EXCEEDED)
            said.value = client->message, said.limit = client->declared;
        return said;
    }
    return (struct nq_said){ .what = SAID_NOTHING };
}

/* What still waited for a next line: a message of chunks ends without the line of a dot. */
static struct nq_said read_end(struct nq_client *client, const struct nq_policy *policy)
{
    for (enum nq_mime_said said; (said = mime_end(&client->mime, &policy->mime));) {
        struct nq_said told = mime_fact(client, said);
        if (told.what)
            return told;
    }
    return (struct nq_said){ .what = SAID_NOTHING };
}

/* ---- what the scanner says ---- */

static struct nq_said long_line(const struct nq_client *client)
{
    const struct nq_data *data = &client->data;
    uint32_t limit = data->line_limit[data->in_header];
    return fact(data->in_header ? MATCH_OF_HEADER_LINE_LENGTH : MATCH_OF_BODY_LINE_LENGTH, (uint64_t)limit + 1, data->line_len);
}

static struct nq_said ends(struct nq_session *session)
{
    struct nq_client *client = session->client;
    client->in_message = false;
    client->due |= due(MATCH_OF_HEADER_LENGTH) | due(MATCH_OF_BODY_LENGTH); /* what was not too long never will be */
    session->messages++;
    if (client->declared && client->message > client->declared)
        client->due |= due(MATCH_OF_SIZE_EXCEEDED);
    return (struct nq_said){ .what = SAID_END_OF_DATA };
}

/* The octets from `before` on are taken. */
static void count(struct nq_session *session, const struct nq_policy *policy, uint64_t before)
{
    struct nq_client *client = session->client;
    const struct nq_data *data = &client->data;
    client->message = data->octets[0] + data->octets[1] - data_pending(data);
    session->data += client->message - before;
    if (rules_exceeded(policy, MATCH_OF_HEADER_LENGTH, client->fired, data->octets[1]))
        client->due |= due(MATCH_OF_HEADER_LENGTH);
    if (rules_exceeded(policy, MATCH_OF_BODY_LENGTH, client->fired, data->octets[0]))
        client->due |= due(MATCH_OF_BODY_LENGTH);
}

static void scan(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    struct nq_client *client = session->client;
    struct nq_cursor part = *cursor;
    uint64_t before = client->message;
    if (client->data.counted && (uint64_t)(part.end - part.at) > client->chunk)
        part.end = part.at + client->chunk;
    cursor->token = (uint8_t)data_scan(&client->data, &part);
    cursor->scanned = part.at;
    if (client->data.counted)
        client->chunk -= (uint64_t)(part.at - cursor->at);
    count(session, policy, before);
    if (!policy->reads_mime)
        cursor->at = part.at;
}

static struct nq_said message_begins(struct nq_client *client)
{
    client->message_begins = false;
    return (struct nq_said){ .what = SAID_MESSAGE, .why = REASON_HEADER_INSERTED };
}

struct nq_said message_hear(struct nq_session *session, const struct nq_policy *policy, struct nq_cursor *cursor)
{
    struct nq_client *client = session->client;
    if (client->message_begins)
        return message_begins(client);
    struct nq_said said;
    bool fresh = cursor->scanned <= cursor->at && !cursor->token;
    if (fresh)
        scan(session, policy, cursor);
    if (cursor->at < cursor->scanned) {
        said = read_on(client, policy, cursor);
        if (said.what || cursor->at < cursor->scanned || client->due)
            return said;
    }
    uint8_t token = cursor->token;
    cursor->token = TOKEN_NONE;
    switch (token) {
    case TOKEN_LONG_LINE: return long_line(client);
    case TOKEN_BARE_NEWLINE: return fact(MATCH_OF_BARE_NEWLINE, 0, 0);
    case TOKEN_FALSE_END: return fact(MATCH_OF_SMUGGLING, 0, 0);
    case TOKEN_END_OF_DATA: return ends(session);
    default: break;
    }
    bool last = client->data.counted && !client->chunk && client->last;
    said = last && policy->reads_mime ? read_end(client, policy) : (struct nq_said){ .what = SAID_NOTHING };
    if (said.what)
        return said;
    if (client->data.counted && !client->chunk)
        return client->last ? ends(session) : (struct nq_said){ .what = SAID_END_OF_DATA };
    return (struct nq_said){ .what = SAID_BODY };
}
