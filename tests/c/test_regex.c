/*
 * test_regex.c - a table is validated before it runs, and runs alike in whatever pieces the text comes. That the tables mean what
 * the patterns say is tests/test_regex.py's to show.
 */
#include "harness.h"
#include "nq.h"

enum { STATES = 4, CLASSES = 3 };

/* "ab" anywhere, or "a" at the end: 0 start, 1 behind a, 2 matched; 3 is never reached. Classes: 0 others, 1 a, 2 b. */
struct tables {
    uint8_t class_of[256];
    uint16_t next[STATES * CLASSES];
    uint8_t accepts[STATES];
    struct nq_regex_spec spec;
};

static struct tables *tables(void)
{
    static struct tables made;
    made = (struct tables){
        .next = { 0, 1, 0, 0, 1, 2, 2, 2, 2, 0, 0, 0 },
        .accepts = { 0, 2, 3, 0 },
    };
    made.class_of['a'] = 1;
    made.class_of['b'] = 2;
    made.spec = (struct nq_regex_spec){ STATES, CLASSES, made.class_of, made.next, made.accepts };
    return &made;
}

static void check_refused(const struct nq_regex_spec *spec, const char *why)
{
    struct nq_regex regex;
    char error[NQ_ERROR_MAX] = "";
    harness_row("%s", why);
    CHECK(!regex_init(&regex, spec, error));
    CHECK(strstr(error, why) != NULL);
    CHECK(regex.next == NULL && regex.accepts == NULL);
    regex_end(&regex); /* of what never began is harmless */
}

TEST(sizes_are_validated)
{
    struct tables *made = tables();
    static const struct {
        uint32_t states, classes;
        const char *why;
    } rows[] = {
        { 0, CLASSES, "1 to 65535 states (0)" },
        { 65536, CLASSES, "1 to 65535 states (65536)" },
        { UINT32_MAX, CLASSES, "1 to 65535 states" },
        { STATES, 0, "1 to 256 classes of octets (0)" },
        { STATES, 257, "1 to 256 classes of octets (257)" },
        { STATES, 2, "class that does not exist (98)" },
        { 2, CLASSES, "leads to one that does not exist (1)" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        made->spec.states = rows[i].states;
        made->spec.classes = rows[i].classes;
        check_refused(&made->spec, rows[i].why);
    }
}

TEST(missing_parts_are_refused)
{
    struct tables *made = tables();
    struct nq_regex_spec whole = made->spec;
    made->spec.class_of = NULL;
    check_refused(&made->spec, "missing");
    made->spec = whole;
    made->spec.next = NULL;
    check_refused(&made->spec, "missing");
    made->spec = whole;
    made->spec.accepts = NULL;
    check_refused(&made->spec, "missing");
}

TEST(every_index_is_validated)
{
    for (int octet = 0; octet < 256; octet++) {
        struct tables *made = tables();
        made->class_of[octet] = CLASSES;
        check_refused(&made->spec, "class that does not exist");
    }
    for (int cell = 0; cell < STATES * CLASSES; cell++) {
        struct tables *made = tables();
        made->next[cell] = STATES;
        check_refused(&made->spec, "leads to one that does not exist");
    }
    for (int state = 0; state < STATES; state++) {
        struct tables *made = tables();
        made->accepts[state] = 4;
        check_refused(&made->spec, "accepts in a way that does not exist");
    }
}

TEST(a_state_that_has_matched_must_stay)
{
    for (int class = 0; class < CLASSES; class++) {
        struct tables *made = tables();
        made->next[2 * CLASSES + class] = 0;
        check_refused(&made->spec, "a state that has matched is left (2)");
    }
}

static void begin(struct nq_regex *regex)
{
    char error[NQ_ERROR_MAX] = "";
    struct tables *made = tables();
    CHECK(regex_init(regex, &made->spec, error));
    CHECK_TEXT(error, "");
    memset(made, 0xff, sizeof *made); /* the tables were copied */
}

TEST(text_in_any_pieces)
{
    static const struct {
        const char *text;
        bool matched, at_end;
    } rows[] = {
        { "", false, false },     { "a", false, true },    { "b", false, false },    { "ab", true, true },
        { "xxaxb", false, false }, { "xxaab", true, true }, { "xxabxxxx", true, true }, { "xxxxa", false, true },
        { "\x80\xff" "ab", true, true },
    };
    struct nq_regex regex;
    begin(&regex);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t len = strlen(rows[i].text);
        harness_row("%s", rows[i].text);
        for (size_t first = 0; first <= len; first++)
            for (size_t second = first; second <= len; second++) {
                const uint8_t *text = guarded(rows[i].text, len);
                uint16_t state = regex_step(&regex, 0, text, text + first);
                state = regex_step(&regex, state, text + first, text + second);
                state = regex_step(&regex, state, text + second, text + len);
                CHECK_EQUAL(regex_matched(&regex, state), rows[i].matched);
                CHECK_EQUAL(regex_matches_at_end(&regex, state), rows[i].at_end);
            }
    }
    regex_end(&regex);
}

TEST(the_largest_table)
{
    enum { MOST = 65535 };
    static uint16_t next[MOST * 2];
    static uint8_t accepts[MOST], class_of[256];
    for (uint32_t state = 0; state < MOST; state++) /* counts the letters a */
        next[2 * state] = (uint16_t)state, next[2 * state + 1] = (uint16_t)(state + 1 < MOST ? state + 1 : state);
    accepts[MOST - 1] = 1;
    class_of['a'] = 1;
    struct nq_regex_spec spec = { MOST, 2, class_of, next, accepts };
    struct nq_regex regex;
    char error[NQ_ERROR_MAX] = "";
    CHECK(regex_init(&regex, &spec, error));
    uint16_t state = 0;
    for (uint32_t i = 0; i < MOST - 2; i++)
        state = regex_step(&regex, state, (const uint8_t *)"xa", (const uint8_t *)"xa" + 2);
    CHECK(!regex_matches_at_end(&regex, state));
    state = regex_step(&regex, state, (const uint8_t *)"a", (const uint8_t *)"a" + 1);
    CHECK(regex_matched(&regex, state));
    regex_end(&regex);
}
