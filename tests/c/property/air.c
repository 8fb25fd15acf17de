/*
 * air.c - packets under way, by time of arrival. Delay that varies more than packets are apart makes reordering.
 */
#include "sim.h"

void air_begin(struct air *air)
{
    air->count = 0;
    air->order = 0;
    air->free_count = FLIGHTS;
    for (uint16_t i = 0; i < FLIGHTS; i++)
        air->free[i] = (uint16_t)(FLIGHTS - 1 - i);
}

struct flight *air_packet(struct air *air)
{
    if (!air->free_count)
        return NULL;
    struct flight *flight = &air->flights[air->free[--air->free_count]];
    flight->in_ifindex = flight->out_ifindex = flight->flags = 0;
    return flight;
}

void air_drop(struct air *air, struct flight *flight)
{
    air->free[air->free_count++] = (uint16_t)(flight - air->flights);
}

static bool earlier(const struct air *air, uint16_t a, uint16_t b)
{
    const struct flight *one = &air->flights[a], *two = &air->flights[b];
    return one->at < two->at || (one->at == two->at && one->order < two->order);
}

static void heap_add(struct air *air, uint16_t index)
{
    uint32_t at = air->count++;
    for (; at && earlier(air, index, air->heap[(at - 1) / 2]); at = (at - 1) / 2)
        air->heap[at] = air->heap[(at - 1) / 2];
    air->heap[at] = index;
}

static void depart(struct sim *sim, struct flight *flight, unsigned hop)
{
    const struct link *link = &sim->plan.link[hop];
    flight->hop = (uint8_t)hop;
    flight->order = sim->air.order++;
    flight->at = sim->now + link->delay + (link->jitter ? roll(sim, link->jitter) : 0);
    heap_add(&sim->air, (uint16_t)(flight - sim->air.flights));
}

void air_send(struct sim *sim, struct flight *flight, unsigned hop)
{
    static const char *const lost[HOPS] = { "C lost before", "S lost before", "lost before C", "lost before S" };
    const struct link *link = &sim->plan.link[hop];
    if (chance(sim, link->loss)) {
        trace_packet(sim, lost[hop], flight->octets, flight->len);
        air_drop(&sim->air, flight);
        return;
    }
    struct flight *again = chance(sim, link->twice) ? air_packet(&sim->air) : NULL;
    if (again) {
        again->flags = flight->flags;
        again->in_ifindex = flight->in_ifindex;
        again->out_ifindex = flight->out_ifindex;
        again->len = flight->len;
        memcpy(again->octets, flight->octets, flight->len);
        depart(sim, again, hop);
    }
    depart(sim, flight, hop);
}

uint64_t air_next(const struct air *air) { return air->count ? air->flights[air->heap[0]].at : NEVER; }

struct flight *air_arrives(struct air *air)
{
    uint16_t first = air->heap[0], last = air->heap[--air->count];
    uint32_t at = 0;
    for (uint32_t child = 1; child < air->count; child = 2 * at + 1) {
        if (child + 1 < air->count && earlier(air, air->heap[child + 1], air->heap[child]))
            child++;
        if (!earlier(air, air->heap[child], last))
            break;
        air->heap[at] = air->heap[child];
        at = child;
    }
    air->heap[at] = last;
    return &air->flights[first];
}
