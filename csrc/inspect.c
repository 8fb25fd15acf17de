/*
 * inspect.c - what was said x policy -> match -> action. The only file where the two meet; it changes nothing.
 */
#include "nq.h"

static struct nq_judgement judgement(enum nq_action action, uint8_t reason)
{
    return (struct nq_judgement){ .action = (uint8_t)action, .reason = reason };
}

struct nq_judgement inspect_client(const struct nq_policy *policy, const struct nq_session *session,
                                   const struct nq_said *said)
{
    bool too_much = policy->max_data && session->data > policy->max_data;
    switch (said->what) {
    case SAID_BAD_VERB: return judgement(policy->mask_verbs ? ACTION_MASK_LINE : ACTION_ALLOW_WORD, said->why);
    case SAID_BAD_LINE: return judgement(ACTION_MASK_LINE, said->why);
    case SAID_BAD_AUTH:
    case SAID_TOO_LONG: return judgement(ACTION_RESET, said->why);
    case SAID_SPAN: return judgement(ACTION_OVERWRITE, 0);
    case SAID_COMMAND_END: return judgement(session->command.why ? ACTION_REPORT : ACTION_PASS, session->command.why);
    case SAID_MESSAGE: return judgement(policy->header_len ? ACTION_INSERT_HEADER : ACTION_PASS, said->why);
    case SAID_BODY:
    case SAID_END_OF_DATA: return judgement(too_much ? ACTION_RESET : ACTION_PASS, too_much ? REASON_MAX_DATA : 0);
    default: return judgement(ACTION_PASS, 0);
    }
}

struct nq_judgement inspect_server(const struct nq_policy *policy, const struct nq_session *session,
                                   const struct nq_said *said)
{
    static const uint8_t span[NQ_BANNER_TEXT + 1] = { ACTION_PASS, ACTION_OVERWRITE_BANNER, ACTION_REPLACE_BANNER };
    uint8_t phase = session->reply.phase, why = session->reply.why;
    switch (said->what) {
    case SAID_BANNER: return judgement(policy->banner ? ACTION_MASK_BANNER : ACTION_PASS, said->why);
    case SAID_BAD_KEYWORD: return judgement(policy->remove_keywords ? ACTION_REMOVE_LINE : ACTION_MASK_LINE, said->why);
    case SAID_SPAN:
        return judgement(phase == PHASE_BANNER   ? span[policy->banner]
                         : phase == PHASE_REMOVE ? ACTION_REMOVE
                                                 : ACTION_OVERWRITE, 0);
    case SAID_REPLY_LINE:
        return judgement(phase == PHASE_REMOVE ? ACTION_REMOVE_AND_REPORT : why ? ACTION_REPORT : ACTION_PASS, why);
    case SAID_TRANSITION: return judgement(ACTION_REPORT, said->why);
    case SAID_INJECTION: return judgement(ACTION_RESET, said->why);
    default: return judgement(ACTION_PASS, 0);
    }
}
