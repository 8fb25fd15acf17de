/*
 * event.c - a fixed ring from the packet path to Python: one writer, one reader, no lock. It drops and counts, it never
 * blocks: mail must not stand still because a disk does.
 */
#include <stdatomic.h>
#include <strings.h>
#include <sys/mman.h>

#include "nq.h"

bool ring_init(struct nq_ring *ring, uint32_t slots)
{
    size_t octets = (size_t)slots * sizeof(struct nq_event);
    void *memory = mmap(NULL, octets, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return false;
    ring->slots = memory;
    ring->memory_octets = octets;
    ring->mask = slots - 1;
    atomic_init(&ring->head, 0);
    atomic_init(&ring->tail, 0);
    return true;
}

void ring_end(struct nq_ring *ring)
{
    if (ring->slots)
        munmap(ring->slots, ring->memory_octets);
    ring->slots = NULL;
}

bool ring_full(const struct nq_ring *ring)
{
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    return atomic_load_explicit(&ring->head, memory_order_relaxed) - tail > ring->mask;
}

struct nq_event *ring_slot(struct nq_ring *ring)
{
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    if (head - tail > ring->mask)
        return NULL;
    struct nq_event *slot = &ring->slots[head & ring->mask];
    memset(slot, 0, sizeof *slot);
    return slot;
}

void ring_publish(struct nq_ring *ring)
{
    atomic_fetch_add_explicit(&ring->head, 1, memory_order_release);
}

uint32_t ring_take(struct nq_ring *ring, struct nq_event *into, uint32_t max)
{
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
    uint32_t count = head - tail < max ? head - tail : max;
    for (uint32_t i = 0; i < count; i++)
        into[i] = ring->slots[(tail + i) & ring->mask];
    atomic_store_explicit(&ring->tail, tail + count, memory_order_release);
    return count;
}

static bool blank(uint8_t octet) { return octet == ' ' || octet == '\t'; }

static bool base64(uint8_t octet)
{
    return (octet >= 'A' && octet <= 'Z') || (octet >= 'a' && octet <= 'z') || (octet >= '0' && octet <= '9') ||
           octet == '+' || octet == '/' || octet == '=';
}

/* Octets of the verb that brings credentials, where the text begins with it; else 0. */
static uint32_t credential_verb(const uint8_t *text, uint32_t len)
{
    static const char *const verbs[] = { "AUTH", "X-EXPS" /* Exchange's own */ };
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (len >= strlen(verbs[i]) && strncasecmp((const char *)text, verbs[i], strlen(verbs[i])) == 0)
            return (uint32_t)strlen(verbs[i]);
    return 0;
}

bool event_credentials(const struct nq_line *line)
{
    return credential_verb(line->text, line->kept);
}

/* How many octets of the line may be told: all, or those up to and with the AUTH mechanism, or none of a lone base64 word
 * (a client that goes on with AUTH though the server refused it says its password in such a line); behind AUTH it is one
 * however short it is. */
static uint32_t tellable(const uint8_t *text, uint32_t len, bool behind_auth)
{
    uint32_t at = 0;
    while (at < len && blank(text[at]))
        at++;
    uint32_t verb = credential_verb(text + at, len - at);
    if (verb) {
        for (at += verb; at < len && blank(text[at]); at++)
            ;
        while (at < len && !blank(text[at]))
            at++;
        return at;
    }
    uint32_t from = at;
    while (at < len && base64(text[at]))
        at++;
    bool padded = at > from && text[at - 1] == '='; /* no word of a command ends so, however short it is */
    return at == len && (padded || behind_auth || len - from >= 16) ? 0 : len;
}

void event_text(struct nq_event *event, const struct nq_line *line, bool behind_auth)
{
    static const char redacted[] = "[redacted]";
    bool known = line->word && line->word != VERB_PRIVATE;
    uint32_t told = tellable(line->text, line->kept, behind_auth && !known);
    memcpy(event->text, line->text, told);
    event->text_len = (uint8_t)told;
    if (told < line->kept) {
        if (told)
            event->text[event->text_len++] = ' ';
        memcpy(event->text + event->text_len, redacted, sizeof redacted - 1);
        event->text_len = (uint8_t)(event->text_len + sizeof redacted - 1);
    }
}
