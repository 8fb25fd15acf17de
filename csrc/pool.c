/*
 * pool.c - blocks, extents and held packets, all taken at the start and handed out from free lists.
 *
 * Two sizes of block: a queued packet is received straight into a large one, and keeping its octets is then a reference,
 * no copy; short payload is copied into small ones, so that a command of ten octets does not pin 66 KiB. One size for both
 * was rejected: it wastes either memory or copies. Last in, first out keeps the hot blocks hot.
 */
#include <sys/mman.h>

#include "nq.h"

struct layout {
    size_t large_data, small_data, blocks, extents, held, logs, clients, total;
};

static size_t aligned(size_t octets) { return (octets + 63) & ~(size_t)63; }

static struct layout lay_out(const struct nq_settings *settings)
{
    struct layout at;
    at.large_data = 0;
    at.small_data = at.large_data + (size_t)settings->large_blocks * NQ_LARGE_OCTETS;
    at.blocks = aligned(at.small_data + (size_t)settings->small_blocks * NQ_SMALL_OCTETS);
    at.extents = aligned(at.blocks + ((size_t)settings->large_blocks + settings->small_blocks) * sizeof(struct nq_block));
    at.held = aligned(at.extents + (size_t)settings->extents * sizeof(struct nq_extent));
    at.logs = aligned(at.held + (size_t)settings->held * sizeof(struct nq_held));
    at.clients = aligned(at.logs + (size_t)settings->edit_logs * sizeof(struct nq_edit_log));
    at.total = at.clients + (size_t)settings->flows * sizeof(struct nq_client);
    return at;
}

static struct nq_block *chain_blocks(struct nq_block *blocks, uint32_t count, uint8_t *data, uint32_t size)
{
    struct nq_block *head = NULL;
    for (uint32_t i = count; i-- > 0;) {
        blocks[i] = (struct nq_block){ .next = head, .data = data + (size_t)i * size, .size = size };
        head = &blocks[i];
    }
    return head;
}

bool pool_init(struct nq_pool *pool, const struct nq_settings *settings)
{
    struct layout at = lay_out(settings);
    uint8_t *memory = mmap(NULL, at.total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return false;
    *pool = (struct nq_pool){ .memory = memory, .memory_octets = at.total };
    struct nq_block *blocks = (void *)(memory + at.blocks);
    pool->large = chain_blocks(blocks, settings->large_blocks, memory + at.large_data, NQ_LARGE_OCTETS);
    pool->small = chain_blocks(blocks + settings->large_blocks, settings->small_blocks, memory + at.small_data,
                               NQ_SMALL_OCTETS);
    pool->large_free = settings->large_blocks;
    pool->small_free = settings->small_blocks;
    struct nq_extent *extents = (void *)(memory + at.extents);
    for (uint32_t i = settings->extents; i-- > 0; pool->extents_free++) {
        extents[i].next = pool->extents;
        pool->extents = &extents[i];
    }
    struct nq_held *held = (void *)(memory + at.held);
    for (uint32_t i = settings->held; i-- > 0; pool->held_free++) {
        held[i].next = pool->held;
        pool->held = &held[i];
    }
    struct nq_edit_log *logs = (void *)(memory + at.logs);
    for (uint32_t i = settings->edit_logs; i-- > 0; pool->logs_free++) {
        logs[i].next = pool->logs;
        pool->logs = &logs[i];
    }
    pool->fresh_clients = (void *)(memory + at.clients); /* as many as flows, and a page is touched once a client needs it */
    pool->clients_free = settings->flows;
    return true;
}

void pool_end(struct nq_pool *pool)
{
    if (pool->memory)
        munmap(pool->memory, pool->memory_octets);
    *pool = (struct nq_pool){ 0 };
}

static struct nq_block *take(struct nq_block **list, uint32_t *count)
{
    struct nq_block *block = *list;
    if (!block)
        return NULL;
    *list = block->next;
    (*count)--;
    block->next = NULL;
    block->used = 0;
    block->refs = 1;
    return block;
}

struct nq_block *pool_large(struct nq_pool *pool) { return take(&pool->large, &pool->large_free); }

struct nq_block *pool_small(struct nq_pool *pool) { return take(&pool->small, &pool->small_free); }

void block_drop(struct nq_pool *pool, struct nq_block *block)
{
    if (--block->refs)
        return;
    bool large = block->size == NQ_LARGE_OCTETS;
    struct nq_block **list = large ? &pool->large : &pool->small;
    block->next = *list;
    *list = block;
    (*(large ? &pool->large_free : &pool->small_free))++;
}

struct nq_extent *pool_extent(struct nq_pool *pool)
{
    struct nq_extent *extent = pool->extents;
    if (!extent)
        return NULL;
    pool->extents = extent->next;
    pool->extents_free--;
    extent->next = NULL;
    extent->block = NULL;
    extent->len = 0;
    return extent;
}

void extent_drop(struct nq_pool *pool, struct nq_extent *extent)
{
    if (extent->block)
        block_drop(pool, extent->block);
    extent->next = pool->extents;
    pool->extents = extent;
    pool->extents_free++;
}

struct nq_held *pool_held(struct nq_pool *pool)
{
    struct nq_held *held = pool->held;
    if (!held)
        return NULL;
    pool->held = held->next;
    pool->held_free--;
    *held = (struct nq_held){ 0 };
    return held;
}

void held_drop(struct nq_pool *pool, struct nq_held *held)
{
    if (held->packet.block)
        block_drop(pool, held->packet.block);
    held->next = pool->held;
    pool->held = held;
    pool->held_free++;
}

struct nq_edit_log *pool_edit_log(struct nq_pool *pool)
{
    struct nq_edit_log *log = pool->logs;
    if (!log)
        return NULL;
    pool->logs = log->next;
    pool->logs_free--;
    log->count = 0;
    return log;
}

void edit_log_drop(struct nq_pool *pool, struct nq_edit_log *log)
{
    log->next = pool->logs;
    pool->logs = log;
    pool->logs_free++;
}

struct nq_client *pool_client(struct nq_pool *pool)
{
    struct nq_client *client = pool->clients;
    if (!pool->clients_free)
        return NULL;
    pool->clients_free--;
    if (client)
        pool->clients = client->next;
    else
        client = pool->fresh_clients++;
    memset(client, 0, offsetof(struct nq_client, mime));
    return client;
}

void client_drop(struct nq_pool *pool, struct nq_client *client)
{
    client->next = pool->clients;
    pool->clients = client;
    pool->clients_free++;
}
