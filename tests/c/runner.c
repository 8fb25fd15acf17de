/*
 * runner.c - runs one test. One process a test: a sanitizer's report then belongs to one test, and no test sees what another
 * has left in memory.
 */
#include <stdio.h>
#include <string.h>

#include "harness.h"

static struct test *tests;

void harness_add(struct test *test)
{
    test->next = tests;
    tests = test;
}

/* ".../test_scan.c", "empty_lines" -> "scan.empty_lines" */
static void full_name(const struct test *test, char *into, size_t size)
{
    const char *base = strrchr(test->file, '/');
    base = base ? base + 1 : test->file;
    if (strncmp(base, "test_", 5) == 0)
        base += 5;
    snprintf(into, size, "%.*s.%s", (int)strcspn(base, "."), base, test->name);
}

int main(int argc, char **argv)
{
    char name[128];
    if (argc != 2) {
        fprintf(stderr, "usage: %s --list | NAME\n", argv[0]);
        return 2;
    }
    for (struct test *test = tests; test; test = test->next) {
        full_name(test, name, sizeof name);
        if (strcmp(argv[1], "--list") == 0)
            printf("%s\n", name);
        else if (strcmp(argv[1], name) == 0) {
            test->run();
            return 0;
        }
    }
    if (strcmp(argv[1], "--list") == 0)
        return 0;
    fprintf(stderr, "no test is called %s\n", argv[1]);
    return 2;
}
