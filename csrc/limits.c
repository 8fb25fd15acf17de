/*
 * limits.c - how often something may happen: the one thing that the queues share and change. A limit is the moment at which its
 * next event would be on time (the generic cell rate algorithm), in one word, so that many queues take from it without a lock.
 */
#include <stdatomic.h>

#include "nq.h"

bool limit_take(struct nq_limit *limit, uint32_t rate, uint64_t now)
{
    const uint64_t second = 1000000000u;
    uint64_t due = atomic_load_explicit(&limit->due, memory_order_relaxed), next;
    do {
        next = (due > now ? due : now) + second / rate;
        if (next > now + second)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&limit->due, &due, next, memory_order_relaxed, memory_order_relaxed));
    return true;
}
