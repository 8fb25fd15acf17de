/*
 * engine_hear.c - part of the engine: the session hears octets, the policy judges what was said, the action is done.
 */
#include "nq.h"

static void tally(struct nq_engine *engine, const struct nq_flow *flow, const struct nq_said *said)
{
    switch (said->what) {
    case SAID_COMMAND_END: engine_count(engine, COUNT_COMMANDS); break;
    case SAID_TRANSITION:
    case SAID_REPLY_LINE:
        engine_count(engine, COUNT_REPLIES);
        if (flow->session.replies == 1 && flow->policy->audit_trail)
            engine_report_start(engine, flow);
        break;
    case SAID_END_OF_DATA: engine_count(engine, COUNT_MESSAGES); break;
    default: break;
    }
}

static enum nq_reason change_length_not(struct nq_engine *engine, struct nq_flow *flow, unsigned direction,
                                        const struct nq_cursor *cursor, const struct nq_said *said,
                                        struct nq_judgement judgement);

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
    if (judgement.dry_run)
        return change_length_not(engine, flow, direction, cursor, said, judgement);
    bool room = stream_may_edit(&flow->stream[direction], &engine->pool, patches->count + 1);
    switch (judgement.action) {
    case ACTION_REPLACE_BANNER:
        if (!room || !edit_replace_banner(patches, line, said->from, said->to, policy->banner_text, policy->banner_len))
            edit_banner(view, line, said->from, said->to);
        break;
    case ACTION_REMOVE_LINE:
        line->rule = judgement.rule ? (uint8_t)(1 + (judgement.rule - policy->rules)) : 0;
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
            engine_report_insertion(engine, flow, cursor, false);
        else
            engine_count(engine, COUNT_EDITS_SKIPPED);
        break;
    }
    return REASON_NONE;
}

/* A dry run of the same: it is told, and nothing is changed. */
static enum nq_reason change_length_not(struct nq_engine *engine, struct nq_flow *flow, unsigned direction,
                                        const struct nq_cursor *cursor, const struct nq_said *said,
                                        struct nq_judgement judgement)
{
    struct nq_line *line = &flow->session.reply;
    if (judgement.action == ACTION_INSERT_HEADER) {
        engine_report_insertion(engine, flow, cursor, true);
        return REASON_NONE;
    }
    line->phase = PHASE_REST;
    line->why = REASON_KEYWORD_REMOVED;
    line->dry_run = true;
    return REASON_NONE;
}

static struct nq_line *line_of(struct nq_flow *flow, unsigned direction)
{
    return direction == 0 ? &flow->session.client->command : &flow->session.reply;
}

/* A verb or keyword passes that the policy does not name, or names and does not allow. */
static void allow_word(struct nq_line *line, const struct nq_said *said, const struct nq_cursor *cursor)
{
    line->blank = said->what == SAID_BAD_VERB && !line->len && (*cursor->at == ' ' || *cursor->at == '\t');
    line->phase = said->what == SAID_BAD_VERB ? PHASE_UNKNOWN : PHASE_REST;
    if (said->what == SAID_BAD_VERB)
        line->word = line->blank ? 0 : (uint8_t)VERB_PRIVATE;
}

static bool of_word(const struct nq_said *said)
{
    return said->what == SAID_VERB || said->what == SAID_BAD_VERB || said->what == SAID_KEYWORD ||
           said->what == SAID_BAD_KEYWORD;
}

/* Has a number of BDAT left already? Servers read it though X follows ("10XX" is 10 to sscanf), and count octets where commands
 * are heard here. */
static bool number_has_left(const struct nq_line *line, unsigned direction, const struct nq_cursor *cursor)
{
    return direction == 0 && line->word == VERB_BDAT && line->len > sizeof "BDAT " - 1 + (size_t)(cursor->at - cursor->begin);
}

/* The flow must end, and the rule is why; NULL: what the policy is made of is. */
static enum nq_reason ends_by(struct nq_engine *engine, const struct nq_said *said, struct nq_judgement judgement)
{
    engine->ending = judgement.rule;
    engine->ending_said = *said;
    return judgement.reason;
}

/* Returns REASON_NONE, or why the flow must end. */
static enum nq_reason mask_line(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                                const struct nq_cursor *cursor, const struct nq_said *said, struct nq_judgement judgement)
{
    enum { BEHIND_THE_CODE = 4 };
    struct nq_line *line = line_of(flow, direction);
    uint32_t skip = direction == 0 ? 0 : BEHIND_THE_CODE;
    if (line->phase == PHASE_OVERWRITE)
        return REASON_NONE;
    line->rule = judgement.rule ? (uint8_t)(1 + (judgement.rule - flow->policy->rules)) : 0;
    line->dry_run = judgement.dry_run;
    if (judgement.dry_run) {
        line->why = line->why ? line->why : judgement.reason;
        line->passed = skip;
        if (of_word(said))
            allow_word(line, said, cursor);
        return REASON_NONE;
    }
    if (!number_has_left(line, direction, cursor) && edit_mask_line(view, line, cursor, skip, judgement.reason))
        return REASON_NONE;
    return ends_by(engine, said, judgement);
}

/* False where the octet has left. What is not to be done is done and undone: so it is known what it would have been. */
static bool change_octet(struct nq_view *view, const struct nq_cursor *cursor, const struct nq_data *data,
                         const struct nq_said *said, bool dry_run, struct nq_change *change)
{
    bool edited = view->edited, done = true;
    switch (said->match) {
    case MATCH_OF_SPECIAL_CHARACTER: done = edit_blank(view, cursor, change); break;
    case MATCH_OF_WRONG_TERMINATION: edit_repair_newline(view, cursor, change); break;
    default: done = edit_defuse_newline(view, cursor, data, said->match == MATCH_OF_SMUGGLING, change); break;
    }
    if (!dry_run)
        return done;
    if (change->at)
        *change->at = change->was;
    view->edited = edited;
    return true;
}

static enum nq_reason replace_octet(struct nq_engine *engine, struct nq_flow *flow, struct nq_view *view,
                                    const struct nq_cursor *cursor, const struct nq_said *said, struct nq_judgement judgement)
{
    struct nq_change change = { .at = NULL };
    struct nq_data *data = &flow->session.client->data;
    if (!change_octet(view, cursor, data, said, judgement.dry_run, &change))
        return ends_by(engine, said, judgement);
    if (said->match == MATCH_OF_BARE_NEWLINE || said->match == MATCH_OF_SMUGGLING)
        data->defused |= change.at != NULL && !judgement.dry_run;
    if (!judgement.dry_run)
        engine_count(engine, change.at ? COUNT_OCTETS_REPLACED : COUNT_EDITS_SKIPPED);
    engine_report_rule(engine, flow, 0, judgement, said, cursor, &change);
    return REASON_NONE;
}

/* The rule ends the flow, unless it is one that lets so many pass. */
static enum nq_reason end_by_rule(struct nq_engine *engine, struct nq_flow *flow, unsigned direction,
                                  const struct nq_cursor *cursor, const struct nq_said *said, struct nq_judgement judgement)
{
    const struct nq_rule *rule = judgement.rule;
    struct nq_limit *limit = &flow->policy->limits[rule - flow->policy->rules];
    if (rule->action == NQ_DO_RATE_LIMIT && limit_take(limit, rule->rate, engine->now)) {
        judgement.action = ACTION_TELL;
        engine_report_rule(engine, flow, direction, judgement, said, cursor, NULL);
        return REASON_NONE;
    }
    return ends_by(engine, said, judgement);
}

static void mask_banner(struct nq_session *session, const struct nq_policy *policy, struct nq_judgement judgement)
{
    enum { BEHIND_THE_NAME = 2 };
    struct nq_line *line = &session->reply;
    line->dry_run = judgement.dry_run;
    line->why = policy->banner == NQ_BANNER_TEXT ? REASON_BANNER_REPLACED : judgement.reason;
    line->phase = judgement.dry_run ? PHASE_REST : PHASE_BANNER;
    line->node = session->reply_part ? BEHIND_THE_NAME : 0;
}

static void overwrite_banner(const struct nq_policy *policy, struct nq_view *view, struct nq_line *line,
                             const struct nq_said *said)
{
    bool before = view->edited;
    view->edited = false;
    if (policy->banner == NQ_BANNER_MODERN)
        edit_banner_modern(view, line, said->from, said->to);
    else
        edit_banner(view, line, said->from, said->to);
    line->passed += view->edited; /* whether anything of it changed */
    view->edited |= before;
}

/* A dry run of a reset: told once of what goes on and on. */
static void reset_not(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, uint8_t reason)
{
    if (direction == 0)
        flow->session.client->command.dry_run = true; /* the scanner lets the octet pass */
    if (reason == REASON_MAX_DATA && flow->session.max_data_told)
        return;
    flow->session.max_data_told |= reason == REASON_MAX_DATA;
    engine_count(engine, COUNT_DRY_RUNS);
    engine_report_end(engine, flow, direction, NQ_EVENT_RESET, reason, true);
}

/* Returns REASON_NONE, or why the flow must end. */
static enum nq_reason act(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                          const struct nq_cursor *cursor, const struct nq_said *said, struct nq_judgement judgement)
{
    struct nq_line *line = line_of(flow, direction);
    switch (judgement.action) {
    case ACTION_ALLOW_WORD: allow_word(line, said, cursor); break;
    case ACTION_MASK_LINE: return mask_line(engine, flow, direction, view, cursor, said, judgement);
    case ACTION_MASK_BANNER: mask_banner(&flow->session, flow->policy, judgement); break;
    case ACTION_OVERWRITE: edit_overwrite(view, said->from, said->to); break;
    case ACTION_OVERWRITE_BANNER: overwrite_banner(flow->policy, view, line, said); break;
    case ACTION_REPLACE_OCTET: return replace_octet(engine, flow, view, cursor, said, judgement);
    case ACTION_REPORT:
        if (judgement.reason == REASON_BANNER && !line->passed && !line->dry_run)
            break; /* there was nothing to hide */
        engine_report_line(engine, flow, direction, judgement.reason, cursor);
        break;
    case ACTION_TELL:
        if (said->what == SAID_ANSWER)
            engine_report_answer(engine, flow, (uint16_t)said->value);
        else
            engine_report_rule(engine, flow, direction, judgement, said, cursor, NULL);
        break;
    case ACTION_RESET:
        if (judgement.dry_run)
            reset_not(engine, flow, direction, judgement.reason);
        return judgement.dry_run ? REASON_NONE : judgement.reason;
    case ACTION_END: return end_by_rule(engine, flow, direction, cursor, said, judgement);
    default: return change_length(engine, flow, direction, view, cursor, said, judgement);
    }
    return REASON_NONE;
}

/* Is a rule to speak once of a line, transaction or message, however often the thing is seen? */
static bool fires_once(const struct nq_said *said)
{
    switch (said->match) {
    case MATCH_OF_CMD_LINE_LENGTH:
    case MATCH_OF_CMD_RCPT_COUNT:
    case MATCH_OF_SENDER_LENGTH:
    case MATCH_OF_RECIPIENT_LENGTH:
    case MATCH_OF_HEADER_LENGTH:
    case MATCH_OF_HEADER_TO_FIELDS:
    case MATCH_OF_HEADER_REGEX:
    case MATCH_OF_BODY_LENGTH:
    case MATCH_OF_BODY_REGEX: return said->what == SAID_FACT;
    default: return false;
    }
}

static enum nq_reason judge_said(struct nq_engine *engine, struct nq_flow *flow, unsigned direction, struct nq_view *view,
                                 const struct nq_cursor *cursor, const struct nq_said *said)
{
    const struct nq_session *session = &flow->session;
    uint64_t asked = 0, *fired = direction == 0 && fires_once(said) ? &session->client->fired : &asked;
    struct nq_judgement judgement;
    enum nq_reason reason;
    do {
        judgement = direction == 0 ? inspect_client(flow->policy, session, said, fired)
                                   : inspect_server(flow->policy, session, said, fired);
        reason = judgement.action ? act(engine, flow, direction, view, cursor, said, judgement) : REASON_NONE;
    } while (!reason && judgement.more);
    if (said->match == MATCH_OF_CMD_RCPT_COUNT && said->what == SAID_FACT) /* told once, and acted on at each recipient */
        *fired &= ~(flow->policy->rules_of[said->match] & flow->policy->rules_that_act);
    if (reason)
        engine->ended_at = flow->stream[direction].decided + (uint64_t)(cursor->at - cursor->begin) + 1;
    return reason;
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
    while (cursor->at < cursor->end || session_due(session, direction, cursor)) {
        bool was_opaque = session->mode == MODE_OPAQUE;
        struct nq_said said = direction == 0 ? session_client(session, policy, cursor)
                                             : session_server(session, policy, cursor);
        if (said.what == SAID_WAIT)
            break;
        if (!was_opaque && session->mode == MODE_OPAQUE && stream_holds_more(&flow->stream[0]))
            said = session_injection(); /* it came before the server agreed: CVE-2011-0411 */
        if (said.what == SAID_REPLY_LINE)
            remember_separator(&session->reply, cursor);
        enum nq_reason reason = judge_said(engine, flow, direction, view, cursor, &said);
        if (reason)
            return reason;
        tally(engine, flow, &said);
    }
    return REASON_NONE;
}
