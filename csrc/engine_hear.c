/*
 * engine_hear.c - part of the engine: the session hears octets, the policy judges what was said, the action is done.
 */
#include "nq.h"

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
            engine_report_line(engine, flow, direction, judgement.reason, cursor);
        break;
    case ACTION_INSERT_HEADER:
        if (room && edit_insert(patches, said->from, policy->header, policy->header_len))
            engine_report_insertion(engine, flow, cursor);
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
    case ACTION_REPORT: engine_report_line(engine, flow, direction, judgement.reason, cursor); break;
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
enum nq_reason engine_listen(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
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
        if (said.what == SAID_REPLY_LINE)
            remember_separator(&session->reply, cursor);
        struct nq_judgement judgement = direction == 0 ? inspect_client(policy, session, &said)
                                                       : inspect_server(policy, session, &said);
        enum nq_reason reason = judgement.action ? act(engine, flow, direction, view, cursor, &said, judgement)
                                                 : REASON_NONE;
        if (reason)
            return reason;
        tally(engine, &said);
    }
    return REASON_NONE;
}
