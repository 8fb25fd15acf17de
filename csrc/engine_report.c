/*
 * engine_report.c - part of the engine: what Python is told: counters and events.
 */
#include "nq.h"

/* ---- counters ---- */

static const char *const counter_names[] = {
#define COUNTER(symbol, name) name,
#include "counters.def"
#undef COUNTER
    "drop.none",
#define REASON(symbol, name) "drop." name,
#include "reasons.def"
#undef REASON
};

uint32_t nq_counter_count(void) { return COUNTERS; }

const char *nq_counter_name(uint32_t counter) { return counter < COUNTERS ? counter_names[counter] : NULL; }

const char *nq_reason_name(uint32_t reason)
{
    return reason < REASONS ? counter_names[COUNT_FIRST_REASON + reason] + sizeof "drop." - 1 : NULL;
}

uint64_t nq_engine_counter(const struct nq_engine *engine, uint32_t counter)
{
    return counter < COUNTERS ? __atomic_load_n(&engine->counters[counter], __ATOMIC_RELAXED) : 0;
}

struct nq_pool *engine_pool(struct nq_engine *engine) { return &engine->pool; }

/* ---- events ---- */

static struct nq_event *event_begin(struct nq_engine *engine, enum nq_event_type type, uint8_t reason)
{
    struct nq_event *event = ring_slot(&engine->ring);
    engine_count(engine, event ? COUNT_EVENTS : COUNT_EVENTS_LOST);
    if (event) {
        event->time = engine->now;
        event->type = (uint8_t)type;
        event->reason = reason;
    }
    return event;
}

/* What a policy without alerts does is counted, and not told. */
static struct nq_event *alert_begin(struct nq_engine *engine, const struct nq_flow *flow, enum nq_event_type type,
                                    uint8_t reason)
{
    return flow->policy->alert ? event_begin(engine, type, reason) : NULL;
}

static void event_flow(struct nq_event *event, const struct nq_flow *flow, unsigned direction)
{
    struct nq_speaker client = speaker_of(flow, 0);
    event->flow = flow->id;
    event->started = flow->started;
    event->direction = (uint8_t)direction;
    memcpy(event->client, client.source, 16);
    memcpy(event->server, client.destination, 16);
    event->client_port = client.source_port;
    event->server_port = client.destination_port;
    memcpy(event->policy, flow->policy->name, sizeof event->policy);
}

/* The rule at `place` - 1 of the policy, if any. */
static void event_rule(struct nq_event *event, const struct nq_policy *policy, uint8_t place)
{
    if (!place)
        return;
    const struct nq_rule *rule = &policy->rules[place - 1];
    event->rule = place;
    event->match = rule->match;
    event->action = rule->action;
    event->bound = rule->bound;
    memcpy(event->rule_name, rule->name, sizeof event->rule_name);
}

static const struct nq_line *line_of(const struct nq_session *session, unsigned direction)
{
    static const struct nq_line none;
    return direction == 1 ? &session->reply : session->client ? &session->client->command : &none;
}

/* The line's first octets as they left: from `passed` on they became X. What is redacted stays so. */
static void event_after_mask(struct nq_event *event, const struct nq_line *line, uint32_t told)
{
    event->after_len = line->kept;
    for (uint32_t i = 0; i < line->kept; i++)
        event->after[i] = i >= line->passed ? 'X' : i < told ? event->text[i] : '?';
}

static void event_after_banner(struct nq_event *event, const struct nq_policy *policy, const struct nq_session *session)
{
    enum { TEXT_AT = 4, BEHIND_THE_NAME = 2 };
    struct nq_line line = { .len = event->text_len, .node = session->reply_part > 1 ? BEHIND_THE_NAME : 0 };
    struct nq_view view = { .edited = false };
    uint8_t *after = (uint8_t *)event->after;
    event->after_len = event->text_len;
    memcpy(after, event->text, event->text_len);
    if (event->text_len <= TEXT_AT)
        return;
    if (policy->banner == NQ_BANNER_MODERN)
        edit_banner_modern(&view, &line, after + TEXT_AT, after + event->text_len);
    else
        edit_banner(&view, &line, after + TEXT_AT, after + event->text_len);
}

static enum nq_event_type line_event(uint8_t reason, unsigned direction)
{
    switch (reason) {
    case REASON_KEYWORD: return NQ_EVENT_MASK_KEYWORD;
    case REASON_BANNER: return NQ_EVENT_MASK_BANNER;
    case REASON_TRANSITION: return NQ_EVENT_TRANSITION;
    case REASON_KEYWORD_REMOVED: return NQ_EVENT_REMOVE_KEYWORD;
    case REASON_BANNER_REPLACED: return NQ_EVENT_REPLACE_BANNER;
    default: return direction == 0 ? NQ_EVENT_MASK_COMMAND : NQ_EVENT_MASK_KEYWORD;
    }
}

static void event_after(struct nq_event *event, const struct nq_flow *flow, const struct nq_line *line)
{
    uint32_t told = event->text_len < line->kept ? event->text_len : line->kept;
    switch (event->type) {
    case NQ_EVENT_MASK_COMMAND:
    case NQ_EVENT_MASK_KEYWORD: event_after_mask(event, line, told); break;
    case NQ_EVENT_MASK_BANNER: event_after_banner(event, flow->policy, &flow->session); break;
    case NQ_EVENT_REPLACE_BANNER:
        event->after_len = flow->policy->banner_len < NQ_TEXT_MAX ? flow->policy->banner_len : NQ_TEXT_MAX;
        memcpy(event->after, flow->policy->banner_text, event->after_len);
        break;
    default: break;
    }
}

/* About the line that ended at cursor->at. */
void engine_report_line(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, uint8_t reason,
                        const struct nq_cursor *cursor)
{
    static const enum nq_counter counts[] = {
        [NQ_EVENT_MASK_KEYWORD] = COUNT_KEYWORDS_MASKED,
        [NQ_EVENT_MASK_BANNER] = COUNT_BANNERS_MASKED,
        [NQ_EVENT_MASK_COMMAND] = COUNT_COMMANDS_MASKED,
        [NQ_EVENT_TRANSITION] = COUNT_TRANSITIONS,
        [NQ_EVENT_REMOVE_KEYWORD] = COUNT_KEYWORDS_REMOVED,
        [NQ_EVENT_REPLACE_BANNER] = COUNT_BANNERS_REPLACED,
    };
    const struct nq_session *session = &flow->session;
    const struct nq_line *line = line_of(session, direction);
    enum nq_event_type type = line_event(reason, direction);
    engine_count(engine, line->dry_run ? COUNT_DRY_RUNS : counts[type]);
    if (line->rule && !flow->policy->rules[line->rule - 1].log)
        return;
    struct nq_event *event = alert_begin(engine, flow, type, reason);
    if (!event)
        return;
    event_flow(event, flow, direction);
    event_text(event, line, direction == 0 && session->behind_auth);
    event_rule(event, flow->policy, line->rule);
    event->dry_run = line->dry_run;
    event->code = line->code;
    event->length = line->body_len;
    event->line = direction == 0 ? session->commands : session->replies - 1;
    event->offset = flow->stream[direction].decided + (uint64_t)(cursor->at - cursor->begin) - line->len;
    event_after(event, flow, line);
    ring_publish(&engine->ring);
}

static bool of_message(uint8_t match) { return match >= MATCH_OF_HEADER_LENGTH && match <= MATCH_OF_SIZE_EXCEEDED; }

/* A rule has matched at cursor->at; what it did stands in the judgement. change: of an octet, or NULL. */
void engine_report_rule(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction,
                        struct nq_judgement judgement, const struct nq_said *said, const struct nq_cursor *cursor,
                        const struct nq_change *change)
{
    const struct nq_session *session = &flow->session;
    const struct nq_rule *rule = judgement.rule;
    engine_count(engine, judgement.dry_run ? COUNT_DRY_RUNS : COUNT_RULES_MATCHED);
    if (!rule->log)
        return;
    if (!message_tells(session->client, rule->match)) {
        engine_count(engine, COUNT_EVENTS_SPARED);
        return;
    }
    struct nq_event *event = alert_begin(engine, flow, NQ_EVENT_MATCH, judgement.reason);
    if (!event)
        return;
    event_flow(event, flow, direction);
    event_rule(event, flow->policy, (uint8_t)(1 + (rule - flow->policy->rules)));
    event->dry_run = judgement.dry_run;
    event->value = match_flags(rule->match) & MATCH_ABOVE && !said->final ? rule->bound + 1 : said->value;
    event->bound = said->limit ? said->limit : rule->bound;
    event->code = direction == 1 ? session->reply.code : 0;
    event->line = direction == 1 ? session->replies - 1 : session->commands + !of_message(rule->match);
    event->offset = flow->stream[direction].decided + (uint64_t)(cursor->at - cursor->begin) - said->back;
    if (change && change->at) {
        event->offset = flow->stream[direction].decided + (uint64_t)(change->at - cursor->begin);
        event->text_len = event->after_len = event->length = 1;
        event->text[0] = (char)change->was;
        event->after[0] = (char)change->now;
    } else if (!of_message(rule->match))
        event_text(event, line_of(session, direction), direction == 0 && session->behind_auth);
    ring_publish(&engine->ring);
}

void engine_report_answer(struct nq_engine *engine, const struct nq_flow *flow, uint16_t code)
{
    struct nq_event *event = alert_begin(engine, flow, NQ_EVENT_ANSWER, REASON_NONE);
    if (!event)
        return;
    event_flow(event, flow, 1);
    event_text(event, &flow->session.reply, false);
    event->code = code;
    event->line = flow->session.answered;
    ring_publish(&engine->ring);
}

void engine_report_start(struct nq_engine *engine, const struct nq_flow *flow)
{
    struct nq_event *event = event_begin(engine, NQ_EVENT_START, REASON_NONE);
    if (!event)
        return;
    event_flow(event, flow, 0);
    ring_publish(&engine->ring);
}

void engine_report_insertion(struct nq_engine *engine, const struct nq_flow *flow, const struct nq_cursor *cursor, bool dry_run)
{
    engine_count(engine, dry_run ? COUNT_DRY_RUNS : COUNT_HEADERS_INSERTED);
    struct nq_event *event = alert_begin(engine, flow, NQ_EVENT_INSERT_HEADER, REASON_HEADER_INSERTED);
    if (!event)
        return;
    event_flow(event, flow, 0);
    event->dry_run = dry_run;
    event->length = flow->policy->header_len;
    event->line = flow->session.commands;
    event->offset = flow->stream[0].decided + (uint64_t)(cursor->at - cursor->begin);
    event->text_len = flow->policy->header_len - 2 < NQ_TEXT_MAX ? flow->policy->header_len - 2 : NQ_TEXT_MAX;
    memcpy(event->text, flow->policy->header, event->text_len);
    ring_publish(&engine->ring);
}

void engine_report_end(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, enum nq_event_type type,
                       uint8_t reason, bool dry_run)
{
    struct nq_event *event = event_begin(engine, type, reason);
    if (!event)
        return;
    event_flow(event, flow, direction);
    event->dry_run = dry_run;
    event->line = direction == 1 ? flow->session.replies
                                 : flow->session.commands + !(engine->ending && of_message(engine->ending->match));
    event->offset = engine->ended_at ? engine->ended_at - 1 : flow->stream[direction].decided;
    event_text(event, line_of(&flow->session, direction), direction == 0 && flow->session.behind_auth);
    if (engine->ending) {
        event_rule(event, flow->policy, (uint8_t)(1 + (engine->ending - flow->policy->rules)));
        event->value = engine->ending_said.value;
        event->bound = engine->ending_said.limit ? engine->ending_said.limit : engine->ending->bound;
    }
    ring_publish(&engine->ring);
}

/* Drops that an ordinary network causes, or that repeat what was told before, are counted and not told. */
static bool worth_telling(enum nq_reason reason)
{
    return reason != REASON_HELD_TWICE && reason != REASON_HELD_LIMIT && reason != REASON_HELD_EXPIRED &&
           reason != REASON_BEFORE_REPLY && reason != REASON_DEAD;
}

void engine_report_drop(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction,
                        const struct nq_view *view, enum nq_reason reason)
{
    struct nq_event *event = worth_telling(reason) ? event_begin(engine, NQ_EVENT_DROP, (uint8_t)reason) : NULL;
    if (!event)
        return;
    if (flow)
        event_flow(event, flow, direction);
    else if (view)
        packet_endpoints(view, event);
    event->length = view ? view->payload_len : 0;
    ring_publish(&engine->ring);
}

void engine_report_flow(struct nq_engine *engine, struct nq_flow *flow, uint8_t reason)
{
    if (flow->recorded)
        return;
    flow->recorded = true;
    engine_count(engine, COUNT_FLOWS_ENDED);
    struct nq_event *event = event_begin(engine, NQ_EVENT_FLOW, reason);
    if (!event)
        return;
    event_flow(event, flow, 0);
    for (int i = 0; i < 2; i++) {
        event->packets[i] = flow->stream[i].packets;
        event->octets[i] = flow->stream[i].octets;
    }
    ring_publish(&engine->ring);
}
