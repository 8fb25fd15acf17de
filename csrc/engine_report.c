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

/* About the line that ended at cursor->at. */
void engine_report_line(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, uint8_t reason,
                        const struct nq_cursor *cursor)
{
    const struct nq_session *session = &flow->session;
    const struct nq_line *line = direction == 0 ? &session->command : &session->reply;
    enum nq_event_type type = reason == REASON_KEYWORD      ? NQ_EVENT_MASK_KEYWORD
                              : reason == REASON_BANNER     ? NQ_EVENT_MASK_BANNER
                              : reason == REASON_TRANSITION ? NQ_EVENT_TRANSITION
                              : reason == REASON_KEYWORD_REMOVED  ? NQ_EVENT_REMOVE_KEYWORD
                              : reason == REASON_BANNER_REPLACED  ? NQ_EVENT_REPLACE_BANNER
                                                            : NQ_EVENT_MASK_COMMAND;
    static const enum nq_counter counts[] = {
        [NQ_EVENT_MASK_KEYWORD] = COUNT_KEYWORDS_MASKED,
        [NQ_EVENT_MASK_BANNER] = COUNT_BANNERS_MASKED,
        [NQ_EVENT_MASK_COMMAND] = COUNT_COMMANDS_MASKED,
        [NQ_EVENT_TRANSITION] = COUNT_TRANSITIONS,
        [NQ_EVENT_REMOVE_KEYWORD] = COUNT_KEYWORDS_REMOVED,
        [NQ_EVENT_REPLACE_BANNER] = COUNT_BANNERS_REPLACED,
    };
    engine_count(engine, counts[type]);
    struct nq_event *event = event_begin(engine, type, reason);
    if (!event)
        return;
    event_flow(event, flow, direction);
    event_text(event, line);
    event->length = line->body_len;
    event->line = direction == 0 ? session->commands : session->replies - 1;
    event->offset = flow->stream[direction].decided + (uint64_t)(cursor->at - cursor->begin) - line->len;
    ring_publish(&engine->ring);
}

void engine_report_insertion(struct nq_engine *engine, const struct nq_flow *flow, const struct nq_cursor *cursor)
{
    engine_count(engine, COUNT_HEADERS_INSERTED);
    struct nq_event *event = event_begin(engine, NQ_EVENT_INSERT_HEADER, REASON_HEADER_INSERTED);
    if (!event)
        return;
    event_flow(event, flow, 0);
    event->length = flow->policy->header_len;
    event->line = flow->session.commands;
    event->offset = flow->stream[0].decided + (uint64_t)(cursor->at - cursor->begin);
    event->text_len = flow->policy->header_len - 2 < NQ_TEXT_MAX ? flow->policy->header_len - 2 : NQ_TEXT_MAX;
    memcpy(event->text, flow->policy->header, event->text_len);
    ring_publish(&engine->ring);
}

void engine_report_end(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, enum nq_event_type type,
                       uint8_t reason)
{
    struct nq_event *event = event_begin(engine, type, reason);
    if (!event)
        return;
    event_flow(event, flow, direction);
    event->line = direction == 0 ? flow->session.commands + 1 : flow->session.replies;
    event->offset = flow->stream[direction].decided;
    event_text(event, direction == 0 ? &flow->session.command : &flow->session.reply);
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
