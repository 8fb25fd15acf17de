/*
 * engine.c - composition: calls the stages in a packet's order, and owns the memory. What a stage decides comes back as a
 * value; the consequences (outputs, events, counters) are drawn here.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "nq.h"

struct nq_engine {
    struct nq_settings settings;
    _Atomic(const struct nq_policy *) policy;
    struct nq_pool pool;
    struct nq_flow_table flows;
    struct nq_ring ring;
    struct nq_held *retired;    /* decided in this call; their octets stay until the next */
    struct nq_result result;
    uint32_t injections;
    struct nq_patches patches;  /* changes of length in the packet that is being heard */
    struct nq_block *composed;  /* packets put together in this call; they stay until the next */
    uint64_t now, ticked;
    uint64_t counters[COUNTERS];
    uint8_t scratch[NQ_INJECTIONS][NQ_OURS_OCTETS];
};

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

/* One thread writes; others may read a value that is a moment old. */
static void add(struct nq_engine *engine, enum nq_counter counter, uint64_t amount)
{
    uint64_t value = __atomic_load_n(&engine->counters[counter], __ATOMIC_RELAXED);
    __atomic_store_n(&engine->counters[counter], value + amount, __ATOMIC_RELAXED);
}

void engine_count(struct nq_engine *engine, enum nq_counter counter) { add(engine, counter, 1); }

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
static void report_line(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, uint8_t reason,
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

static void report_insertion(struct nq_engine *engine, const struct nq_flow *flow, const struct nq_cursor *cursor)
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

static void report_reset(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, uint8_t reason)
{
    struct nq_event *event = event_begin(engine, NQ_EVENT_RESET, reason);
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

static void report_drop(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction,
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

static void report_flow(struct nq_engine *engine, struct nq_flow *flow, uint8_t reason)
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

/* ---- outputs ---- */

static struct nq_output *output(struct nq_engine *engine)
{
    return &engine->result.outputs[engine->result.count++];
}

static void drop_packet(struct nq_engine *engine, const struct nq_packet *packet, enum nq_reason reason)
{
    engine_count(engine, COUNT_FIRST_REASON + reason);
    if (packet->flags & NQ_OURS)
        return;
    engine_count(engine, COUNT_DROPPED);
    *output(engine) = (struct nq_output){ .kind = NQ_DECISION, .id = packet->id, .verdict = NQ_DROP };
}

static void drop(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, const struct nq_view *view,
                 enum nq_reason reason)
{
    drop_packet(engine, view->packet, reason);
    report_drop(engine, flow, direction, view, reason);
}

static void accept(struct nq_engine *engine, struct nq_view *view)
{
    bool ours = view->packet->flags & NQ_OURS;
    struct nq_output *out = output(engine);
    engine_count(engine, ours ? COUNT_INJECTED : COUNT_ACCEPTED);
    *out = (struct nq_output){ .kind = ours ? NQ_INJECTION : NQ_DECISION, .id = view->packet->id, .verdict = NQ_ACCEPT };
    if (!view->edited && !ours)
        return;
    if (!ours)
        engine_count(engine, COUNT_EDITED);
    packet_checksum_write(view);
    out->data = view->ip;
    out->len = (uint32_t)(view->payload - view->ip) + view->payload_len;
}

/* Put the segment together anew from the store, as the receiver is to see it: its octets may be more or fewer than the
 * sender's. Where all of them have arrived or none is left, an empty segment at the receiver's last octet makes it say so
 * (RFC 9293, 3.8.4, as for a keep-alive). The kernel's segmenter throws a GSO packet away that has shrunk to one segment, so
 * that one leaves as a packet of our own: to wait for a smaller one cost the sender a timeout where an ACK to it was lost.
 * Returns REASON_NONE, or why it cannot be. */
static enum nq_reason compose(struct nq_engine *engine, const struct nq_stream *own, struct nq_view *view,
                              struct nq_packet *packet)
{
    uint32_t headers = (uint32_t)(view->payload - view->ip), mss = own->mss;
    uint32_t to = stream_out(own, view->seq + view->payload_len);
    uint32_t from = seq_min(seq_max(stream_out(own, view->seq), own->acked), to);
    uint32_t len = to - from;
    struct nq_block *block = headers + len <= NQ_SMALL_OCTETS ? pool_small(&engine->pool) : pool_large(&engine->pool);
    if (!block)
        return REASON_MEMORY;
    block->next = engine->composed;
    engine->composed = block;
    if (headers + len > UINT16_MAX || !stream_copy(own, from, to, block->data + headers))
        return REASON_STORE_LIMIT;
    memcpy(block->data, view->ip, headers);
    *packet = (struct nq_packet){ .id = view->packet->id, .flags = view->packet->flags, .data = block->data,
                                  .len = UINT16_MAX, .block = block };
    if (view->payload_len > mss && len <= mss && !(packet->flags & NQ_OURS)) {
        drop_packet(engine, view->packet, REASON_SHRUNK);
        packet->flags |= NQ_OURS;
    }
    view->packet = packet;
    view->tcp = (void *)(block->data + ((uint8_t *)view->tcp - view->ip));
    view->source = block->data + (view->source - view->ip);
    view->destination = block->data + (view->destination - view->ip);
    view->ip = block->data;
    view->payload = block->data + headers;
    packet_resize(view, len);
    packet_write_seq(view, len || (view->flags & NQ_FIN) ? from : to - 1);
    return REASON_NONE;
}

/* Accept a segment of a flow, with its numbers made the receiver's. `stored`: its octets lie in the store. */
static void accept_segment(struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, struct nq_view *view,
                           bool stored)
{
    const struct nq_stream *own = &flow->stream[direction], *peer = &flow->stream[!direction];
    struct nq_packet packet;
    if (stream_renumbers(peer))
        stream_translate_acks(peer, view, own->window_scale);
    if (stream_renumbers(own) && stored && view->payload_len) {
        enum nq_reason reason = compose(engine, own, view, &packet);
        if (reason) {
            drop(engine, flow, direction, view, reason);
            return;
        }
    } else if (stream_renumbers(own))
        packet_write_seq(view, stream_out(own, view->seq));
    accept(engine, view);
}

static void inject(struct nq_engine *engine, const struct nq_speaker *speaker, uint8_t flags, const uint8_t *text,
                   uint32_t text_len)
{
    if (engine->injections == NQ_INJECTIONS)
        return;
    uint8_t *into = engine->scratch[engine->injections++];
    uint32_t len = refuse_say(speaker, flags, text, text_len, into);
    engine_count(engine, COUNT_INJECTED);
    *output(engine) = (struct nq_output){ .kind = NQ_INJECTION, .len = len, .data = into };
}

static void inject_rst(struct nq_engine *engine, const struct nq_speaker *speaker)
{
    inject(engine, speaker, NQ_RST, NULL, 0);
}

/* ---- the end of a flow ---- */

static void retire(struct nq_engine *engine, struct nq_held *held)
{
    held->next = engine->retired;
    engine->retired = held;
}

static void drop_held(struct nq_engine *engine, struct nq_flow *flow, uint64_t before, enum nq_reason reason)
{
    for (int i = 0; i < 2; i++)
        for (struct nq_held *held; (held = stream_expired(&flow->stream[i], before));) {
            drop_packet(engine, &held->packet, reason);
            retire(engine, held);
        }
}

/* The flow is over: its memory goes back, its record is written. Its slot stays until its timer ends. */
static void finish(struct nq_engine *engine, struct nq_flow *flow, enum nq_reason reason)
{
    drop_held(engine, flow, UINT64_MAX, reason);
    for (int i = 0; i < 2; i++)
        stream_end(&flow->stream[i], &engine->pool);
    report_flow(engine, flow, (uint8_t)reason);
}

static void remove_flow(struct nq_engine *engine, struct nq_flow *flow, enum nq_reason reason)
{
    finish(engine, flow, reason);
    flow_free(&engine->flows, flow);
    __atomic_store_n(&engine->counters[COUNT_FLOWS], engine->flows.used, __ATOMIC_RELAXED);
}

/* The reply and the end of the server's stream, again where the client has not acknowledged them. */
static void say_refusal(struct nq_engine *engine, struct nq_flow *flow, const struct nq_view *view)
{
    const struct nq_policy *policy = flow->policy;
    struct nq_speaker server = speaker_answering(flow, view, 0);
    flow->replied = engine->now;
    inject(engine, &server, NQ_PSH | NQ_FIN, policy->refusal, policy->refusal_len);
}

/* Take a refused client's octets: in order, they are acknowledged and thrown away. False where it has had enough of that. */
static bool discard(struct nq_flow *flow, const struct nq_view *view)
{
    struct nq_stream *stream = &flow->stream[0];
    uint32_t end = view->seq + view->payload_len;
    if (!seq_after(view->seq, stream->next) && seq_after(end, stream->next)) {
        flow->discarded += end - stream->next;
        stream->next = end;
    }
    if ((view->flags & NQ_FIN) && end == stream->next && !stream->fin) {
        stream->fin = true;
        stream->next++;
    }
    return flow->discarded <= NQ_DISCARD;
}

/* The client is told why and the server is reset; then the client's octets are taken off its hands until it has read that:
 * one that is still writing a message reads nothing before it is done. */
static void refuse_with_reply(struct nq_engine *engine, struct nq_flow *flow, const struct nq_view *view,
                              enum nq_reason reason)
{
    struct nq_speaker client = speaker_of(flow, 0);
    engine_count(engine, COUNT_REFUSALS);
    flow->answers_reset = true;
    discard(flow, view);
    say_refusal(engine, flow, view);
    inject_rst(engine, &client);
    flow_on(&engine->flows, flow, ON_REPLIED, engine->now);
    finish(engine, flow, reason);
}

static bool may_reply(const struct nq_flow *flow, unsigned direction)
{
    bool open = flow->state == FLOW_ESTABLISHED || flow->state == FLOW_HALF_CLOSED;
    return flow->policy->refusal_len && direction == 0 && open && !flow->stream[1].fin;
}

/* Both ends are told, the packet goes nowhere, what follows is dropped. */
static void refuse(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, const struct nq_view *view,
                   enum nq_reason reason)
{
    report_reset(engine, flow, direction, (uint8_t)reason);
    if (may_reply(flow, direction)) {
        refuse_with_reply(engine, flow, view, reason);
        return;
    }
    engine_count(engine, COUNT_RESETS);
    for (unsigned i = 0; i < 2; i++) {
        struct nq_speaker speaker = speaker_of(flow, i);
        inject_rst(engine, &speaker);
    }
    flow->answers_reset = true;
    flow_on(&engine->flows, flow, ON_REFUSED, engine->now);
    finish(engine, flow, reason);
}

/* A packet of a flow that the policy has ended. The RST may have been lost: its sender is told again. */
static void bury(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    drop(engine, flow, direction, view, REASON_DEAD);
    flow_touch(&engine->flows, flow, engine->now);
    if (!flow->answers_reset || !(view->flags & NQ_ACK) || (view->flags & NQ_RST))
        return;
    struct nq_speaker speaker = speaker_of(flow, !direction);
    speaker.seq = view->ack;
    speaker.ack = view->seq + view->payload_len;
    inject_rst(engine, &speaker);
}

static void end_refused(struct nq_engine *engine, struct nq_flow *flow)
{
    flow->answers_reset = true;
    flow_on(&engine->flows, flow, ON_REFUSED, engine->now);
}

/* A packet of a flow whose client is being told why it was refused. */
static void hear_refused(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    uint32_t said = flow->policy->refusal_len + 1u;
    uint32_t end = stream_next_out(&flow->stream[1]) + said;
    if (direction == 1) {
        bury(engine, flow, direction, view);
        return;
    }
    drop(engine, flow, direction, view, REASON_DEAD);
    if (view->flags & (NQ_RST | NQ_SYN)) {
        if ((view->flags & NQ_RST) && (view->seq == flow->stream[0].next || view->seq == flow->stream[0].acked))
            end_refused(engine, flow);
        return;
    }
    if (!discard(flow, view)) {
        struct nq_speaker server = speaker_answering(flow, view, said);
        inject_rst(engine, &server);
        end_refused(engine, flow);
        return;
    }
    if (seq_before(view->ack, end) && engine->now - flow->replied >= NQ_REPEAT)
        say_refusal(engine, flow, view);
    else if (view->payload_len || (view->flags & NQ_FIN)) {
        struct nq_speaker server = speaker_answering(flow, view, said);
        inject(engine, &server, 0, NULL, 0);
    }
    if (flow->stream[0].fin && !seq_before(view->ack, end))
        end_refused(engine, flow);
}

/* ---- what is said ---- */

static void tally(struct nq_engine *engine, const struct nq_said *said)
{
    switch (said->what) {
    case SAID_COMMAND_END: engine_count(engine, COUNT_COMMANDS); break;
    case SAID_REPLY_LINE: engine_count(engine, COUNT_REPLIES); break;
    case SAID_END_OF_DATA: engine_count(engine, COUNT_MESSAGES); break;
    default: break;
    }
}

/* An action that changes the length; where there is no room for that, what comes nearest and keeps it. Returns REASON_NONE,
 * or why the flow must end. */
static enum nq_reason change_length(struct nq_engine *engine, struct nq_flow *flow, unsigned direction,
                                    struct nq_view *view, const struct nq_cursor *cursor, const struct nq_said *said,
                                    struct nq_judgement judgement)
{
    enum { BEHIND_THE_CODE = 4 };
    const struct nq_policy *policy = flow->policy;
    struct nq_line *line = &flow->session.reply;
    struct nq_patches *patches = &engine->patches;
    bool room = stream_may_edit(&flow->stream[direction], &engine->pool, patches->count + 1);
    switch (judgement.action) {
    case ACTION_REPLACE_BANNER:
        if (!room || !edit_replace_banner(patches, line, said->from, said->to, policy->banner_text, policy->banner_len))
            edit_banner(view, line, said->from, said->to);
        break;
    case ACTION_REMOVE_LINE:
        if (room && edit_remove_line(view, patches, line, cursor, REASON_KEYWORD_REMOVED))
            break;
        if (!edit_mask_line(view, line, cursor, BEHIND_THE_CODE, judgement.reason))
            return judgement.reason;
        break;
    case ACTION_REMOVE:
    case ACTION_REMOVE_AND_REPORT:
        if (!room || !edit_remove(patches, said->from, said->to))
            return REASON_MEMORY; /* half a line is out already */
        if (judgement.action == ACTION_REMOVE_AND_REPORT)
            report_line(engine, flow, direction, judgement.reason, cursor);
        break;
    case ACTION_INSERT_HEADER:
        if (room && edit_insert(patches, said->from, policy->header, policy->header_len))
            report_insertion(engine, flow, cursor);
        else
            engine_count(engine, COUNT_EDITS_SKIPPED);
        break;
    }
    return REASON_NONE;
}

/* Returns REASON_NONE, or why the flow must end. */
static enum nq_reason act(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                          const struct nq_cursor *cursor, const struct nq_said *said, struct nq_judgement judgement)
{
    enum { BEHIND_THE_CODE = 4 };
    struct nq_line *line = direction == 0 ? &flow->session.command : &flow->session.reply;
    switch (judgement.action) {
    case ACTION_ALLOW_WORD:
        line->phase = PHASE_REST;
        line->word = VERB_PRIVATE;
        break;
    case ACTION_MASK_LINE:
        if (!edit_mask_line(view, line, cursor, direction == 0 ? 0 : BEHIND_THE_CODE, judgement.reason))
            return judgement.reason;
        break;
    case ACTION_MASK_BANNER:
        line->phase = PHASE_BANNER;
        line->why = flow->policy->banner == NQ_BANNER_TEXT ? REASON_BANNER_REPLACED : judgement.reason;
        break;
    case ACTION_OVERWRITE: edit_overwrite(view, said->from, said->to); break;
    case ACTION_OVERWRITE_BANNER: edit_banner(view, line, said->from, said->to); break;
    case ACTION_REPORT: report_line(engine, flow, direction, judgement.reason, cursor); break;
    case ACTION_RESET: return judgement.reason;
    default: return change_length(engine, flow, direction, view, cursor, said, judgement);
    }
    return REASON_NONE;
}

/* The line that stays before one that is taken out may have to end the reply. */
static void remember_separator(const struct nq_line *line, struct nq_cursor *cursor)
{
    enum { SEPARATOR_AT = 3 };
    bool here = (uint32_t)(cursor->at - cursor->begin) >= line->len - SEPARATOR_AT;
    if (line->phase != PHASE_REMOVE)
        cursor->separator = line->separator == '-' && here ? cursor->at - line->len + SEPARATOR_AT : NULL;
}

/* Let the session hear octets, and do what the policy says. Stops where the client must wait. */
static enum nq_reason listen(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                             struct nq_cursor *cursor)
{
    const struct nq_policy *policy = flow->policy;
    struct nq_session *session = &flow->session;
    engine->patches.count = 0;
    while (cursor->at < cursor->end) {
        struct nq_said said = direction == 0 ? session_client(session, policy, cursor)
                                             : session_server(session, policy, cursor);
        if (said.what == SAID_WAIT)
            break;
        tally(engine, &said);
        if (said.what == SAID_REPLY_LINE)
            remember_separator(&session->reply, cursor);
        struct nq_judgement judgement = direction == 0 ? inspect_client(policy, session, &said)
                                                       : inspect_server(policy, session, &said);
        enum nq_reason reason = judgement.action ? act(engine, flow, direction, view, cursor, &said, judgement)
                                                 : REASON_NONE;
        if (reason)
            return reason;
    }
    return REASON_NONE;
}

/* ---- exceptions: what cannot be judged ---- */

enum { NO_EXCEPTION = NQ_EXCEPTIONS };

static unsigned exception_of(enum nq_reason reason)
{
    switch (reason) {
    case REASON_MIDSTREAM: return NQ_EXC_MIDSTREAM;
    case REASON_ACK_BEYOND: return NQ_EXC_GAP;
    case REASON_MEMORY:
    case REASON_STORE_LIMIT:
    case REASON_FLOWS_FULL: return NQ_EXC_MEMORY;
    case REASON_OPTIONS:
    case REASON_AUTHENTICATED: return NQ_EXC_UNPARSABLE;
    case REASON_TRUNCATED: return NQ_EXC_TRUNCATED;
    default: return NO_EXCEPTION;
    }
}

static void give_up(struct nq_engine *engine, struct nq_flow *flow, struct nq_view *view)
{
    static const uint8_t opening[] = { ON_SYN, ON_SYN_ACK, ON_ACK };
    for (size_t i = 0; i < sizeof opening && flow->state < FLOW_ESTABLISHED; i++)
        flow_on(&engine->flows, flow, opening[i], engine->now); /* it lives as long as one that is judged */
    engine_count(engine, COUNT_GIVEN_UP);
    flow->given_up = true;
    view->edited = false;
    accept(engine, view);
    drop_held(engine, flow, UINT64_MAX, REASON_HELD_EXPIRED);
    for (int i = 0; i < 2; i++)
        stream_end(&flow->stream[i], &engine->pool);
}

/* A segment without a flow has no state to be right about: both RSTs stand where its own numbers say. */
static void reset_without_flow(struct nq_engine *engine, const struct nq_view *view)
{
    struct nq_speaker forward = packet_speaker(view, false), back = packet_speaker(view, true);
    if (view->flags & NQ_RST)
        return;
    inject_rst(engine, &forward);
    inject_rst(engine, &back);
}

/* The policy's answer to a segment that does not pass; flow may be NULL. */
static void cannot_judge(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                         enum nq_reason reason)
{
    const struct nq_policy *policy = flow ? flow->policy : atomic_load_explicit(&engine->policy, memory_order_acquire);
    unsigned exception = exception_of(reason);
    uint8_t answer = exception == NO_EXCEPTION ? NQ_ANSWER_DROP : policy->exceptions[exception];
    bool changed = flow && (flow->stream[0].log || flow->stream[1].log);
    if (answer == NQ_ANSWER_PASS && !changed) {
        if (flow)
            give_up(engine, flow, view);
        else
            accept(engine, view);
        return;
    }
    drop(engine, flow, direction, view, reason);
    if (answer == NQ_ANSWER_DROP)
        return;
    if (flow && flow->state != FLOW_FREE)
        refuse(engine, flow, direction, view, reason);
    else
        reset_without_flow(engine, view);
}

/* ---- a segment's octets ---- */

static void take_fin(struct nq_engine *engine, struct nq_flow *flow, unsigned direction)
{
    flow->stream[direction].fin = true;
    flow->stream[direction].next++;
    flow_on(&engine->flows, flow, flow->stream[!direction].fin ? ON_SECOND_FIN : ON_FIRST_FIN, engine->now);
}

/* Only the first `octets` of the payload may go now; the rest goes from a copy once the server has replied. A GSO packet that
 * would shrink to one segment, which the kernel cannot send, is left out, and a packet of our own goes in its place. */
static void accept_part(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                        uint32_t octets)
{
    struct nq_stream *stream = &flow->stream[direction];
    struct nq_packet ours = *view->packet;
    engine_count(engine, COUNT_PARTED);
    stream_hold_rest(stream, &engine->pool, &engine->settings, view, octets, engine->now);
    if (view->payload_len > stream->mss && octets <= stream->mss) {
        drop_packet(engine, view->packet, REASON_BEFORE_REPLY);
        ours.flags |= NQ_OURS;
        view->packet = &ours;
    }
    packet_cut(view, octets);
    accept_segment(engine, flow, direction, view, true);
}

static void hold(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    enum nq_reason reason = stream_hold(&flow->stream[direction], &engine->pool, &engine->settings, view, engine->now);
    if (reason)
        cannot_judge(engine, flow, direction, view, reason);
    else
        engine_count(engine, COUNT_HELD);
}

/* What was forwarded from behind the hole that is filled now must stand as it left. If it does not, the filler never leaves:
 * the application behind us has not read an octet of it. */
static enum nq_reason judge_ahead(struct nq_engine *engine, struct nq_flow *flow, unsigned direction)
{
    struct nq_stream *stream = &flow->stream[direction];
    struct nq_view copy = { .edited = false };
    for (struct nq_extent *extent; (extent = stream_ahead_due(stream, &engine->pool));) {
        struct nq_cursor cursor = { extent->data, extent->data, extent->data + extent->len, NULL };
        enum nq_reason reason = listen(engine, flow, direction, &copy, &cursor);
        if (reason)
            return reason;
        if (copy.edited || engine->patches.count || cursor.at < cursor.end)
            return REASON_AHEAD_WRONG;
        stream_adopt(stream);
    }
    return REASON_NONE;
}

/* Keep `len` octets from `from` as they leave: with what was added, without what was taken out. */
static enum nq_reason store_patched(struct nq_engine *engine, struct nq_stream *stream, const struct nq_view *view,
                                    uint8_t *from, uint32_t len)
{
    enum nq_reason reason = REASON_NONE;
    uint8_t *at = from, *end = from + len;
    for (uint32_t i = 0; i < engine->patches.count && !reason; i++) {
        const struct nq_patch *patch = &engine->patches.patch[i];
        if (patch->at > at)
            reason = stream_store(stream, &engine->pool, &engine->settings, view->packet, at, (uint32_t)(patch->at - at));
        if (!reason)
            reason = stream_replace(stream, &engine->pool, &engine->settings, patch->removed, patch->text, patch->added);
        at = patch->at + patch->removed;
    }
    if (!reason && at < end)
        reason = stream_store(stream, &engine->pool, &engine->settings, view->packet, at, (uint32_t)(end - at));
    return reason;
}

/* Judge the octets that nobody has judged yet, from `fresh` on. Sets how many were taken. */
static enum nq_reason judge_fresh(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                                  uint8_t *fresh, uint32_t *taken)
{
    struct nq_stream *stream = &flow->stream[direction];
    bool was_opaque = flow->session.mode == MODE_OPAQUE, was_edited = view->edited;
    bool over_ahead = stream_ahead_touches(stream, view);
    struct nq_cursor cursor = { fresh, fresh, view->payload + view->payload_len, NULL };
    view->edited = false;
    enum nq_reason reason = listen(engine, flow, direction, view, &cursor);
    *taken = (uint32_t)(cursor.at - fresh);
    if (reason)
        return reason;
    if (!was_opaque && flow->session.mode == MODE_OPAQUE && stream_holds_more(&flow->stream[0]))
        return REASON_TLS_INJECTION; /* CVE-2011-0411: it came before the server agreed */
    bool beyond_fin = (view->flags & NQ_FIN) && stream_ahead_beyond(stream, view->seq + view->payload_len);
    if (stream->ahead && (cursor.at < cursor.end || beyond_fin || (over_ahead && view->edited) || engine->patches.count))
        return REASON_AHEAD_WRONG;
    view->edited |= was_edited;
    reason = store_patched(engine, stream, view, fresh, *taken);
    return reason ? reason : judge_ahead(engine, flow, direction);
}

static void decide(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    struct nq_stream *stream = &flow->stream[direction];
    uint32_t known = stream->next - view->seq, taken = 0;
    enum nq_reason reason = stream_room(stream, &engine->pool, &engine->settings, view->payload_len - known);
    if (reason) {
        cannot_judge(engine, flow, direction, view, reason);
        return;
    }
    stream_restore(stream, view);
    reason = judge_fresh(engine, flow, direction, view, view->payload + known, &taken);
    if (reason) {
        drop_packet(engine, view->packet, reason);
        refuse(engine, flow, direction, view, reason);
        return;
    }
    if (known + taken < view->payload_len) {
        accept_part(engine, flow, direction, view, known + taken);
        return;
    }
    accept_segment(engine, flow, direction, view, true);
    if (view->flags & NQ_FIN)
        take_fin(engine, flow, direction);
}

/* Behind a hole in message data, octets that need no edit wherever the data stood before them may go at once: the ends'
 * own loss recovery then works, where holding would cost most of the goodput. */
static bool may_go_ahead(const struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    uint8_t mode = flow->session.mode;
    if ((view->flags & NQ_FIN) || stream_ahead_touches(&flow->stream[direction], view))
        return false;
    if (mode == MODE_OPAQUE)
        return true;
    if (flow->session.message_begins && flow->policy->header_len)
        return false; /* the hole will grow */
    return mode == MODE_BODY && direction == 0 && !scan_may_end_data(view->payload, view->payload + view->payload_len);
}

static void behind_hole(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    struct nq_stream *stream = &flow->stream[direction];
    if (stream_ahead_covers(stream, view)) {
        stream_restore(stream, view);
        accept_segment(engine, flow, direction, view, false);
        return;
    }
    if (!may_go_ahead(flow, direction, view)) {
        hold(engine, flow, direction, view);
        return;
    }
    enum nq_reason reason = stream_go_ahead(stream, &engine->pool, &engine->settings, view);
    if (reason) {
        cannot_judge(engine, flow, direction, view, reason);
        return;
    }
    engine_count(engine, COUNT_AHEAD);
    accept_segment(engine, flow, direction, view, false);
}

/* What the server must reply to first. Where a part of the packet went before and has not arrived, that part goes again. */
static bool must_wait(const struct nq_flow *flow, unsigned direction, const struct nq_view *view)
{
    const struct nq_stream *stream = &flow->stream[direction];
    bool again = seq_before(view->seq, stream->next) && stream->acked != stream_next_out(stream);
    return direction == 0 && view->payload_len && !again && session_waits(&flow->session);
}

/* A FIN among octets that were decided long ago is a lie, unless it is the one that was decided. */
static void strip_undecided_fin(const struct nq_stream *stream, struct nq_view *view)
{
    if (!stream->fin || view->seq + view->payload_len + 1 != stream->next)
        packet_cut(view, view->payload_len);
}

/* Held since before the FIN came, and one of its octets lies in the FIN's place: nobody has decided that octet. */
static bool takes_fins_place(const struct nq_stream *stream, const struct nq_view *view)
{
    return stream->fin && view->payload_len && seq_after(view->seq + view->payload_len, stream->next - 1);
}

static void carry(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    struct nq_stream *stream = &flow->stream[direction];
    if (takes_fins_place(stream, view)) {
        drop(engine, flow, direction, view, REASON_AFTER_FIN);
        return;
    }
    switch (stream_place(stream, view)) {
    case PLACE_EMPTY:
        accept_segment(engine, flow, direction, view, false);
        break;
    case PLACE_OLD:
        if (view->packet->flags & NQ_OURS) { /* its sender was quicker */
            drop_packet(engine, view->packet, REASON_HELD_TWICE);
            break;
        }
        if (stream_restore(stream, view))
            engine_count(engine, COUNT_RESTORED);
        if (view->flags & NQ_FIN)
            strip_undecided_fin(stream, view);
        accept_segment(engine, flow, direction, view, true);
        break;
    case PLACE_AHEAD:
        behind_hole(engine, flow, direction, view);
        break;
    case PLACE_NEXT:
        if (stream->fin)
            drop(engine, flow, direction, view, REASON_AFTER_FIN);
        else if (must_wait(flow, direction, view))
            hold(engine, flow, direction, view);
        else
            decide(engine, flow, direction, view);
        break;
    }
}

/* What waited may be ready now: a hole was filled, or the server has replied. Its side first: its reply may be among it. */
static void release(struct nq_engine *engine, struct nq_flow *flow)
{
    for (unsigned direction = 2; direction-- > 0;) {
        while (flow->state != FLOW_DEAD && !(direction == 0 && session_waits(&flow->session))) {
            struct nq_held *held = stream_ready(&flow->stream[direction]);
            if (!held)
                break;
            struct nq_view view;
            packet_view(&view, &held->packet);
            carry(engine, flow, direction, &view);
            retire(engine, held);
        }
    }
}

/* ---- a packet ---- */

static struct nq_flow *admit(struct nq_engine *engine, const struct nq_view *view)
{
    struct nq_flow *flow = flow_open(&engine->flows, view, engine->now);
    if (!flow) {
        struct nq_flow *old = flow_dispensable(&engine->flows);
        if (!old)
            return NULL;
        remove_flow(engine, old, REASON_EVICTED);
        flow = flow_open(&engine->flows, view, engine->now);
    }
    flow->policy = atomic_load_explicit(&engine->policy, memory_order_acquire);
    session_begin(&flow->session);
    engine_count(engine, COUNT_FLOWS_OPENED);
    __atomic_store_n(&engine->counters[COUNT_FLOWS], engine->flows.used, __ATOMIC_RELAXED);
    return flow;
}

static void reopen(struct nq_engine *engine, struct nq_flow *flow)
{
    finish(engine, flow, REASON_REOPENED);
    flow_reopen(&engine->flows, flow, engine->now);
    session_begin(&flow->session);
    engine_count(engine, COUNT_FLOWS_OPENED);
}

/* The flow that this packet belongs to or begins; NULL and the reason where there is none. */
static struct nq_flow *flow_for(struct nq_engine *engine, const struct nq_view *view, unsigned *direction,
                                enum nq_reason *reason)
{
    struct nq_flow *flow = flow_find(&engine->flows, view, direction);
    bool begins = (view->flags & (NQ_SYN | NQ_ACK | NQ_RST | NQ_FIN)) == NQ_SYN;
    if (flow && (flow_replaced(flow, *direction, view) || (flow->given_up && begins))) {
        remove_flow(engine, flow, REASON_REOPENED);
        flow = NULL;
    }
    if (flow && flow_reopened(&engine->flows, flow, *direction, view))
        reopen(engine, flow);
    if (flow)
        return flow;
    *direction = 0;
    flow = begins ? admit(engine, view) : NULL;
    *reason = flow ? REASON_NONE : begins ? REASON_FLOWS_FULL : REASON_MIDSTREAM;
    return flow;
}

/* A packet that shows no segment. Only its policy's answer to truncated packets can let it pass. */
static void unreadable(struct nq_engine *engine, const struct nq_packet *packet, enum nq_reason reason)
{
    const struct nq_policy *policy = atomic_load_explicit(&engine->policy, memory_order_acquire);
    if (reason == REASON_TRUNCATED && policy->exceptions[NQ_EXC_TRUNCATED] == NQ_ANSWER_PASS) {
        engine_count(engine, COUNT_ACCEPTED);
        *output(engine) = (struct nq_output){ .kind = NQ_DECISION, .id = packet->id, .verdict = NQ_ACCEPT };
        return;
    }
    drop_packet(engine, packet, reason);
    report_drop(engine, NULL, 0, NULL, reason);
}

/* A window wider than the store could let more pass than can be kept: it is offered as wide as the store (RFC 7323, 2.3). */
static void clamp_window(const struct nq_engine *engine, const struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    uint8_t scale = flow->stream[direction].window_scale;
    uint32_t widest = engine->settings.store_per_stream;
    bool agreed = flow->state >= FLOW_ESTABLISHED && flow->state <= FLOW_CLOSING; /* both have named their scale */
    if (!agreed || (view->flags & NQ_SYN) || (uint64_t)view->window << scale <= widest)
        return;
    view->window = widest >> scale;
    packet_write_acks(view);
    view->edited = true;
}

/* A segment of a flow that is judged. */
static void judge_segment(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view)
{
    clamp_window(engine, flow, direction, view);
    enum nq_reason reason = flow_segment(&engine->flows, &engine->pool, flow, direction, view, engine->now);
    if (reason) {
        cannot_judge(engine, flow, direction, view, reason);
        if (flow->state == FLOW_FREE)
            remove_flow(engine, flow, reason);
        return;
    }
    if (view->flags & NQ_SYN)
        accept(engine, view);
    else if (view->flags & NQ_RST)
        accept_segment(engine, flow, direction, view, false);
    else
        carry(engine, flow, direction, view);
    release(engine, flow);
    if (flow->state == FLOW_CLOSED)
        finish(engine, flow, view->flags & NQ_RST ? REASON_RST : REASON_FIN);
    flow_touch(&engine->flows, flow, engine->now);
}

/* An ICMP error about a segment of a flow: the number that it quotes becomes its sender's. One that speaks of nothing under way
 * is forged (RFC 5927, 4.1). It comes from where the segment went. */
static void judge_icmp(struct nq_engine *engine, struct nq_view *about)
{
    unsigned direction = 0;
    const struct nq_packet *packet = about->packet;
    struct nq_flow *flow = flow_find(&engine->flows, about, &direction);
    const struct nq_stream *own = flow ? &flow->stream[direction] : NULL;
    bool back = flow && (!engine->settings.binding || packet->in_ifindex == own->out_ifindex);
    if (!flow || !back || (!flow->given_up && !stream_under_way(own, about->seq))) {
        drop_packet(engine, packet, REASON_ICMP);
        return;
    }
    if (own->log || own->shift)
        icmp_write(about, stream_acknowledged(own, about->seq));
    engine_count(engine, COUNT_ACCEPTED);
    struct nq_output *out = output(engine);
    *out = (struct nq_output){ .kind = NQ_DECISION, .id = packet->id, .verdict = NQ_ACCEPT };
    if (!about->edited)
        return;
    engine_count(engine, COUNT_EDITED);
    out->data = packet->data;
    out->len = packet->len;
}

static void judge(struct nq_engine *engine, const struct nq_packet *packet)
{
    struct nq_view view = { .packet = packet };
    unsigned direction = 0;
    enum nq_reason reason = packet_view(&view, packet);
    if (reason == REASON_NOT_TCP && icmp_error(&view, packet)) {
        judge_icmp(engine, &view);
        return;
    }
    if (reason) {
        unreadable(engine, packet, reason);
        return;
    }
    if (!packet_checksum_valid(&view)) {
        drop(engine, NULL, 0, &view, REASON_CHECKSUM);
        return;
    }
    struct nq_flow *flow = flow_for(engine, &view, &direction, &reason);
    if (!flow) {
        cannot_judge(engine, NULL, 0, &view, reason);
        return;
    }
    flow->stream[direction].packets++;
    flow->stream[direction].octets += packet->len;
    if (flow->given_up) {
        accept(engine, &view);
        flow_touch(&engine->flows, flow, engine->now);
    } else if (flow->state == FLOW_DEAD)
        bury(engine, flow, direction, &view);
    else if (flow->state == FLOW_REFUSED)
        hear_refused(engine, flow, direction, &view);
    else
        judge_segment(engine, flow, direction, &view);
}

/* ---- the two entries ---- */

static void begin(struct nq_engine *engine, uint64_t now)
{
    while (engine->retired) {
        struct nq_held *held = engine->retired;
        engine->retired = held->next;
        held_drop(&engine->pool, held);
    }
    while (engine->composed) {
        struct nq_block *block = engine->composed;
        engine->composed = block->next;
        block_drop(&engine->pool, block);
    }
    engine->result.count = 0;
    engine->injections = 0;
    engine->now = now;
}

const struct nq_result *nq_engine_packet(struct nq_engine *engine, const struct nq_packet *packet, uint64_t now)
{
    begin(engine, now);
    engine_count(engine, COUNT_PACKETS);
    add(engine, COUNT_OCTETS, packet->len);
    judge(engine, packet);
    return &engine->result;
}

/* A flow that was seen too long before the last tick was looked at then; so the newest are looked at until one such comes. */
static void expire_held(struct nq_engine *engine)
{
    const uint64_t second = 1000000000u;
    uint64_t last = engine->ticked;
    engine->ticked = engine->now;
    if (engine->pool.held_free == engine->settings.held || engine->now < NQ_HOLD * second)
        return;
    uint32_t index = engine->flows.timers[TIMER_IDLE].newest;
    while (index && engine->flows.slots[index].seen + (NQ_HOLD + 2) * second > last) {
        drop_held(engine, &engine->flows.slots[index], engine->now - NQ_HOLD * second, REASON_HELD_EXPIRED);
        index = engine->flows.slots[index].older;
    }
}

const struct nq_result *nq_engine_tick(struct nq_engine *engine, uint64_t now)
{
    enum { FLOWS_A_TICK = 4096 };
    begin(engine, now);
    expire_held(engine);
    for (int i = 0; i < FLOWS_A_TICK; i++) {
        struct nq_flow *flow = flow_due(&engine->flows, now);
        if (!flow)
            break;
        remove_flow(engine, flow, REASON_TIMEOUT);
    }
    return &engine->result;
}

const struct nq_result *nq_engine_drain(struct nq_engine *engine, uint64_t now)
{
    begin(engine, now);
    for (uint32_t i = 1; i <= engine->settings.flows && !ring_full(&engine->ring); i++)
        if (engine->flows.slots[i].state != FLOW_FREE)
            remove_flow(engine, &engine->flows.slots[i], REASON_STOPPED);
    return &engine->result;
}

/* ---- making and ending ---- */

void nq_settings_default(struct nq_settings *settings)
{
    *settings = (struct nq_settings){
        .flows = NQ_FLOWS, .large_blocks = NQ_LARGE_BLOCKS, .small_blocks = NQ_SMALL_BLOCKS, .extents = NQ_EXTENTS,
        .held = NQ_HELD, .held_per_flow = NQ_HELD_PER_FLOW, .store_per_stream = NQ_STORE_PER_STREAM,
        .edit_logs = NQ_EDIT_LOGS, .events = NQ_EVENTS,
        .synwait = NQ_SYNWAIT, .finwait = NQ_FINWAIT, .idle = NQ_IDLE, .tombstone = NQ_TOMBSTONE,
        .binding = NQ_BIND_STRICT,
    };
}

static const char *settings_fault(const struct nq_settings *settings)
{
    if (settings->flows < 1 || settings->flows > 1u << 24)
        return "flows must be 1 to 16777216";
    if (settings->large_blocks < 4 || settings->small_blocks < 4 || settings->extents < 4)
        return "large_blocks, small_blocks and extents must be 4 or more";
    if (settings->events < 2 || settings->events > 1u << 24 || (settings->events & (settings->events - 1)))
        return "events must be a power of two, 2 to 16777216";
    if (!settings->synwait || !settings->finwait || !settings->idle || !settings->tombstone)
        return "synwait, finwait, idle and tombstone must be 1 second or more";
    if (settings->store_per_stream < NQ_LARGE_OCTETS)
        return "store_per_stream must hold one packet of 64 KiB at least (67584)";
    return NULL;
}

static bool take_memory(struct nq_engine *engine)
{
    size_t outputs = 2 * (size_t)engine->settings.held + NQ_INJECTIONS + 8; /* a packet may be dropped and leave as ours */
    engine->result.outputs = calloc(outputs, sizeof *engine->result.outputs);
    return engine->result.outputs && pool_init(&engine->pool, &engine->settings) &&
           flow_table_init(&engine->flows, &engine->settings) && ring_init(&engine->ring, engine->settings.events);
}

struct nq_engine *nq_engine_new(const struct nq_settings *settings, const struct nq_policy *policy, char *error)
{
    const char *fault = settings_fault(settings);
    struct nq_engine *engine = fault ? NULL : calloc(1, sizeof *engine);
    if (!engine) {
        snprintf(error, NQ_ERROR_MAX, "%s", fault ? fault : "no memory for an engine");
        return NULL;
    }
    engine->settings = *settings;
    atomic_init(&engine->policy, policy);
    if (!take_memory(engine)) {
        snprintf(error, NQ_ERROR_MAX, "no memory for the pool, the flow table or the event ring");
        nq_engine_free(engine);
        return NULL;
    }
    return engine;
}

void nq_engine_free(struct nq_engine *engine)
{
    if (!engine)
        return;
    ring_end(&engine->ring);
    flow_table_end(&engine->flows);
    pool_end(&engine->pool);
    free(engine->result.outputs);
    free(engine);
}

void nq_engine_install(struct nq_engine *engine, const struct nq_policy *policy)
{
    atomic_store_explicit(&engine->policy, policy, memory_order_release);
}

uint32_t nq_engine_events(struct nq_engine *engine, struct nq_event *into, uint32_t max)
{
    return ring_take(&engine->ring, into, max);
}
