/*
 * test_limits.c - how often something may happen: over time, and taken by several threads at once.
 */
#include <pthread.h>

#include "harness.h"
#include "nq.h"

#define SECOND 1000000000ull
#define BEGIN  (1700000000ull * SECOND)

static uint32_t taken(struct nq_limit *limit, uint32_t rate, uint64_t now, uint32_t tries)
{
    uint32_t count = 0;
    while (tries--)
        count += limit_take(limit, rate, now);
    return count;
}

TEST(a_second_s_worth_at_once)
{
    for (uint32_t rate = 1; rate < 2000; rate = rate * 3 + 1) {
        struct nq_limit limit = { 0 };
        harness_row("%u a second", rate);
        CHECK_EQUAL(taken(&limit, rate, BEGIN, 3 * rate + 10), rate);
        CHECK_EQUAL(taken(&limit, rate, BEGIN + SECOND / rate - rate, 5), 0); /* a second has not always `rate` whole parts */
        CHECK_EQUAL(taken(&limit, rate, BEGIN + SECOND, 3 * rate + 10), rate);
    }
}

TEST(one_more_when_its_time_has_come)
{
    struct nq_limit limit = { 0 };
    CHECK_EQUAL(taken(&limit, 4, BEGIN, 10), 4);
    for (uint64_t quarter = 1; quarter < 100; quarter++) {
        uint64_t now = BEGIN + quarter * SECOND / 4;
        CHECK_EQUAL(taken(&limit, 4, now - 1, 3), 0);
        CHECK_EQUAL(taken(&limit, 4, now, 3), 1);
    }
}

TEST(the_rate_holds_over_any_time)
{
    struct dice dice = { 7 };
    for (uint32_t rate = 1; rate <= 50; rate += 7) {
        struct nq_limit limit = { 0 };
        uint64_t now = BEGIN;
        uint32_t count = 0;
        while (now < BEGIN + 60 * SECOND) {
            now += dice_below(&dice, 20000000);
            count += limit_take(&limit, rate, now);
        }
        harness_row("%u a second", rate);
        CHECK(count <= 61 * rate + 1 && count >= 59 * rate);
    }
}

TEST(silence_saves_up_no_more_than_a_second)
{
    struct nq_limit limit = { 0 };
    taken(&limit, 5, BEGIN, 10);
    CHECK_EQUAL(taken(&limit, 5, BEGIN + 3600 * SECOND, 100), 5);
}

TEST(a_clock_that_is_a_little_behind_takes_nothing_extra)
{
    struct nq_limit limit = { 0 };
    CHECK_EQUAL(taken(&limit, 5, BEGIN, 10), 5);
    CHECK_EQUAL(taken(&limit, 5, BEGIN - 1000000, 10), 0);
    CHECK_EQUAL(taken(&limit, 5, BEGIN, 10), 0);
}

enum { THREADS = 4, TRIES = 50000, RATE = 1000 };

struct taker {
    struct nq_limit *limit;
    uint32_t count;
};

static void *take(void *argument)
{
    struct taker *taker = argument;
    for (uint64_t i = 0; i < TRIES; i++)
        taker->count += limit_take(taker->limit, RATE, BEGIN + i * (10 * SECOND / TRIES));
    return NULL;
}

/* All threads live through the same ten seconds; together they take what one would, though no lock orders them. */
TEST(several_threads_take_from_one_limit)
{
    struct nq_limit limit = { 0 };
    struct taker takers[THREADS];
    pthread_t threads[THREADS];
    uint32_t count = 0;
    for (int i = 0; i < THREADS; i++) {
        takers[i] = (struct taker){ .limit = &limit };
        CHECK_EQUAL(pthread_create(&threads[i], NULL, take, &takers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
        count += takers[i].count;
    }
    CHECK(count <= 11 * RATE);
    CHECK(count >= 10 * RATE);
}
