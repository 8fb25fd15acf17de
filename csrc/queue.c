/*
 * queue.c - netlink in and out: the only file that knows NFQUEUE. It sees no TCP.
 *
 * The socket arrives bound, with nothing to copy (NFQNL_COPY_NONE: the kernel drops meanwhile), and is configured here; the
 * copy range comes last, so that no packet arrives before the queue is what it has to be. Then a round is: recvmmsg into
 * blocks of the engine's pool, the engine for each packet, one sendmsg of concatenated verdicts. Nothing is allocated or
 * copied per packet: an edited packet goes back by iovec from the block that it was received into.
 *
 * Rejected: a batch verdict (it takes every lower id with it, held packets included); CLOCK_REALTIME for `now` (somebody
 * sets the clock, and every flow has been idle for a year).
 */
#define _GNU_SOURCE     /* recvmmsg */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "nq.h"

#define SLOTS            64             /* packets taken in one round */
#define PENDING          256            /* verdicts sent in one message */
#define PENDING_OCTETS   (256u << 10)   /* of edited packets in one message: what the kernel copies at once */
#define VERDICT_OCTETS   (NLMSG_SPACE(sizeof(struct nfgenmsg)) + NLA_HDRLEN + sizeof(struct nfqnl_msg_verdict_hdr))
#define MARK_OCTETS      (NLA_HDRLEN + sizeof(uint32_t))
#define HEADS_OCTETS     (PENDING * (VERDICT_OCTETS + MARK_OCTETS + NLA_HDRLEN + NLA_ALIGNTO))
#define COPY_RANGE       65531          /* nfnetlink_queue.c: 0xffff - NLA_HDRLEN */
#define SEND_BUFFER_MIN  (2 * NQ_LARGE_OCTETS)
#define TICK             250000000ull   /* ns */
#define ACK_WAIT         1000           /* ms; the kernel answers while we send */
#define SEQUENCE         0x6e710000     /* of our configuration messages */

struct verdict {
    struct nq_output output;
    uint32_t mark;                      /* the packet's new one; 0: it keeps its own */
};

struct arrival {                        /* a packet as the kernel handed it over */
    struct nq_packet packet;
    uint32_t mark;
};

struct batch {                          /* a message of many verdicts in the making */
    struct iovec pieces[2 * PENDING + 1];
    uint32_t count;
    uint32_t heads_len;
    uint8_t heads[HEADS_OCTETS];
};

struct nq_queue {
    struct nq_engine *engine;
    struct nq_pool *pool;
    struct nq_injector injector;
    int fd, wake;
    uint16_t number;                    /* network order */
    uint32_t offload_mark;
    _Atomic bool stopping;
    _Atomic uint64_t progress;
    uint64_t epoch;                     /* ns; what CLOCK_MONOTONIC lacks to the wall clock, when the queue was made */
    uint64_t tick_due;
    uint32_t pending_octets, pending_max;
    uint32_t pending_count;
    struct verdict pending[PENDING];    /* not yet sent */
    struct batch batch;
    uint32_t slots;                     /* blocks in hand */
    uint32_t slots_max;                 /* at most SLOTS, and a quarter of the pool */
    struct nq_block *blocks[SLOTS];
    struct iovec into[SLOTS];
    struct mmsghdr messages[SLOTS];
    uint8_t reserve[NQ_LARGE_OCTETS] __attribute__((aligned(8)));   /* receives while there is no block at all */
};

/* ---- configuration ---------------------------------------------------------------------------------------------- */

struct config {
    struct nlmsghdr header;
    struct nfgenmsg family;
    uint8_t attributes[32];
};

static void config_begin(struct config *config, uint16_t number, uint32_t sequence)
{
    memset(config, 0, sizeof *config);
    config->header.nlmsg_len = offsetof(struct config, attributes);
    config->header.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG;
    config->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    config->header.nlmsg_seq = sequence;
    config->family.version = NFNETLINK_V0;
    config->family.res_id = number;
}

static void config_add(struct config *config, uint16_t type, const void *value, uint16_t len)
{
    struct nlattr attribute = { .nla_len = NLA_HDRLEN + len, .nla_type = type };
    uint8_t *at = (uint8_t *)config + config->header.nlmsg_len;

    memcpy(at, &attribute, sizeof attribute);
    memcpy(at + NLA_HDRLEN, value, len);
    config->header.nlmsg_len += NLA_ALIGN(attribute.nla_len);
}

static int verdicts_send(struct nq_queue *queue, const struct verdict *verdicts, uint32_t count);

/* A packet that comes before the queue is ours in full has no engine to go to. Its sender will repeat it. */
static void drop_early(struct nq_queue *queue, const struct nlmsghdr *header)
{
    const struct nlattr *first = (const void *)((const uint8_t *)NLMSG_DATA(header) + sizeof(struct nfgenmsg));
    struct verdict drop = { .output = { .kind = NQ_DECISION, .verdict = NQ_DROP } };
    struct nfqnl_msg_packet_hdr packet;

    if (header->nlmsg_len < NLMSG_SPACE(sizeof(struct nfgenmsg)) + NLA_HDRLEN + sizeof packet
        || first->nla_type != NFQA_PACKET_HDR)
        return;
    memcpy(&packet, (const uint8_t *)first + NLA_HDRLEN, sizeof packet);
    drop.output.id = ntohl(packet.packet_id);
    verdicts_send(queue, &drop, 1);
}

/* Wait for the kernel's answer to the message numbered `sequence`. Returns 0 or -errno. */
static int config_answer(struct nq_queue *queue, uint32_t sequence)
{
    struct pollfd readable = { .fd = queue->fd, .events = POLLIN };
    const struct nlmsghdr *header = (const void *)queue->reserve;
    const struct nlmsgerr *answer = NLMSG_DATA(header);

    for (;;) {
        ssize_t got;

        if (poll(&readable, 1, ACK_WAIT) <= 0)
            return -ETIMEDOUT;
        got = recv(queue->fd, queue->reserve, sizeof queue->reserve, MSG_DONTWAIT);
        if (got < 0 && errno != EINTR && errno != EAGAIN && errno != ENOBUFS)
            return -errno;
        if (got < (ssize_t)NLMSG_LENGTH(sizeof(int)))
            continue;
        if (header->nlmsg_type == NLMSG_ERROR && header->nlmsg_seq == sequence)
            return answer->error;
        if (header->nlmsg_type == (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET))
            drop_early(queue, header);
    }
}

static int config_send(struct nq_queue *queue, const struct config *config)
{
    const struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };

    if (sendto(queue->fd, config, config->header.nlmsg_len, 0, (const void *)&kernel, sizeof kernel) < 0)
        return -errno;
    return config_answer(queue, config->header.nlmsg_seq);
}

static int configure_length(struct nq_queue *queue, uint32_t length)
{
    struct config config;
    uint32_t value = htonl(length);

    config_begin(&config, queue->number, SEQUENCE);
    config_add(&config, NFQA_CFG_QUEUE_MAXLEN, &value, sizeof value);
    return config_send(queue, &config);
}

/* Sets the flag or clears it: what a former owner of the queue left does not matter. */
static int configure_flag(struct nq_queue *queue, uint32_t flag, bool on)
{
    struct config config;
    uint32_t mask = htonl(flag), value = on ? mask : 0;

    config_begin(&config, queue->number, SEQUENCE + 1 + flag);
    config_add(&config, NFQA_CFG_FLAGS, &value, sizeof value);
    config_add(&config, NFQA_CFG_MASK, &mask, sizeof mask);
    return config_send(queue, &config);
}

static int configure_copy(struct nq_queue *queue)
{
    struct config config;
    struct nfqnl_msg_config_params params = { .copy_range = htonl(COPY_RANGE), .copy_mode = NFQNL_COPY_PACKET };

    config_begin(&config, queue->number, SEQUENCE + 64);
    config_add(&config, NFQA_CFG_PARAMS, &params, sizeof params);
    return config_send(queue, &config);
}

static bool refused(char *error, const struct nq_queue *queue, const char *what, int rc)
{
    if (rc == 0)
        return false;
    if (rc == -EPERM)
        snprintf(error, NQ_ERROR_MAX, "queue %u: %s was refused: the queue belongs to another process, or CAP_NET_ADMIN is "
                 "missing", ntohs(queue->number), what);
    else
        snprintf(error, NQ_ERROR_MAX, "queue %u: %s was refused: %s", ntohs(queue->number), what, strerror(-rc));
    return true;
}

static bool configure(struct nq_queue *queue, const struct nq_queue_settings *settings, char *error)
{
    return !refused(error, queue, "the queue's length", configure_length(queue, settings->length))
        && !refused(error, queue, "GSO (whole packets of up to 64 KB)", configure_flag(queue, NFQA_CFG_F_GSO, true))
        && !refused(error, queue, "fail-open",
                    configure_flag(queue, NFQA_CFG_F_FAIL_OPEN, settings->fail_open))
        && !refused(error, queue, "copying whole packets", configure_copy(queue));
}

/* The forced options pass net.core.rmem_max, and need CAP_NET_ADMIN in the first user namespace. */
static void buffer_size(int fd, int forced, int plain, uint32_t octets)
{
    int value = octets > INT32_MAX / 2 ? INT32_MAX / 2 : (int)octets;

    if (setsockopt(fd, SOL_SOCKET, forced, &value, sizeof value) < 0)
        setsockopt(fd, SOL_SOCKET, plain, &value, sizeof value);
}

static bool socket_options(struct nq_queue *queue, uint32_t buffer, char *error)
{
    int on = 1, granted = 0;
    socklen_t len = sizeof granted;

    if (setsockopt(queue->fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &on, sizeof on) < 0
        || setsockopt(queue->fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on) < 0)
        return !refused(error, queue, "a socket option (is the descriptor a netlink socket?)", -errno);
    buffer_size(queue->fd, SO_RCVBUFFORCE, SO_RCVBUF, buffer);
    buffer_size(queue->fd, SO_SNDBUFFORCE, SO_SNDBUF, buffer);
    getsockopt(queue->fd, SOL_SOCKET, SO_SNDBUF, &granted, &len);
    if (granted < SEND_BUFFER_MIN) {
        snprintf(error, NQ_ERROR_MAX, "queue %u: a send buffer of %d octets cannot give a packet of 64 KB back: raise "
                 "net.core.wmem_max to %d", ntohs(queue->number), granted, SEND_BUFFER_MIN);
        return false;
    }
    queue->pending_max = (uint32_t)granted / 2 < PENDING_OCTETS ? (uint32_t)granted / 2 : PENDING_OCTETS;
    return true;
}

/* ---- verdicts --------------------------------------------------------------------------------------------------- */

/* Octets that follow each other in heads become one piece. */
static void batch_head(struct batch *batch, const void *octets, uint32_t len)
{
    uint8_t *at = batch->heads + batch->heads_len;
    struct iovec *last = batch->count > 0 ? &batch->pieces[batch->count - 1] : NULL;

    memcpy(at, octets, len);
    batch->heads_len += len;
    if (last && (uint8_t *)last->iov_base + last->iov_len == at)
        last->iov_len += len;
    else
        batch->pieces[batch->count++] = (struct iovec){ .iov_base = at, .iov_len = len };
}

static void batch_mark(struct batch *batch, uint32_t mark)
{
    const struct { struct nlattr attribute; uint32_t mark; } head = {
        { .nla_len = MARK_OCTETS, .nla_type = NFQA_MARK }, htonl(mark),
    };

    batch_head(batch, &head, sizeof head);
}

static void batch_verdict(struct batch *batch, uint16_t number, const struct verdict *verdict)
{
    const struct nq_output *output = &verdict->output;
    struct {
        struct nlmsghdr header;
        struct nfgenmsg family;
        struct nlattr attribute;
        struct nfqnl_msg_verdict_hdr verdict;
    } head = {
        .header = { .nlmsg_len = VERDICT_OCTETS, .nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT,
                    .nlmsg_flags = NLM_F_REQUEST },
        .family = { .nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = number },
        .attribute = { .nla_len = NLA_HDRLEN + sizeof head.verdict, .nla_type = NFQA_VERDICT_HDR },
        .verdict = { .verdict = htonl(output->verdict), .id = htonl(output->id) },
    };
    struct nlattr payload = { .nla_len = (uint16_t)(NLA_HDRLEN + output->len), .nla_type = NFQA_PAYLOAD };
    static const uint8_t padding[NLA_ALIGNTO];

    _Static_assert(sizeof head == VERDICT_OCTETS, "a verdict has no holes");
    head.header.nlmsg_len += (verdict->mark ? MARK_OCTETS : 0) + (output->data ? NLA_HDRLEN + output->len : 0);
    batch_head(batch, &head, sizeof head);
    if (verdict->mark)
        batch_mark(batch, verdict->mark);
    if (!output->data)
        return;
    batch_head(batch, &payload, sizeof payload);
    batch->pieces[batch->count++] = (struct iovec){ .iov_base = output->data, .iov_len = output->len };
    batch_head(batch, padding, NLA_ALIGN(output->len) - output->len);
}

/* One message for `count` verdicts, at most PENDING. Returns 0 or -errno; what the kernel thinks of each comes as
 * NLMSG_ERROR. */
static int verdicts_send(struct nq_queue *queue, const struct verdict *verdicts, uint32_t count)
{
    struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
    struct batch *batch = &queue->batch;
    struct msghdr message = { .msg_name = &kernel, .msg_namelen = sizeof kernel, .msg_iov = batch->pieces };
    ssize_t sent;

    batch->count = batch->heads_len = 0;
    for (uint32_t i = 0; i < count; i++)
        batch_verdict(batch, queue->number, &verdicts[i]);
    message.msg_iovlen = batch->count;
    do
        sent = sendmsg(queue->fd, &message, 0);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : 0;
}

/* The kernel had no memory for the whole: one by one; a packet that cannot be given back edited must not stay, and never
 * leaves as it came. */
static void pending_rescue(struct nq_queue *queue)
{
    for (uint32_t i = 0; i < queue->pending_count; i++) {
        struct verdict drop = { .output = { .kind = NQ_DECISION, .id = queue->pending[i].output.id, .verdict = NQ_DROP } };

        if (verdicts_send(queue, &queue->pending[i], 1) == 0)
            continue;
        engine_count(queue->engine, verdicts_send(queue, &drop, 1) == 0 ? COUNT_EDITS_LOST : COUNT_VERDICTS_LOST);
    }
}

static void pending_flush(struct nq_queue *queue)
{
    if (queue->pending_count > 0 && verdicts_send(queue, queue->pending, queue->pending_count) < 0)
        pending_rescue(queue);
    queue->pending_count = queue->pending_octets = 0;
}

static void pending_add(struct nq_queue *queue, const struct nq_output *output, uint32_t mark)
{
    uint32_t octets = VERDICT_OCTETS + MARK_OCTETS + (output->data ? output->len : 0);
    struct verdict *verdict;

    if (queue->pending_count == PENDING || queue->pending_octets + octets > queue->pending_max)
        pending_flush(queue);
    verdict = &queue->pending[queue->pending_count++];
    *verdict = (struct verdict){ *output, output->offload && queue->offload_mark ? mark | queue->offload_mark : 0 };
    if (output->len > COPY_RANGE) {     /* an attribute's length has 16 bits */
        verdict->output.verdict = NQ_DROP;
        verdict->output.data = NULL;
        engine_count(queue->engine, COUNT_EDITS_LOST);
    }
    queue->pending_octets += octets;
}

static void inject(struct nq_queue *queue, const struct nq_output *output)
{
    int left = injector_send(&queue->injector, output->data, output->len);

    if (left < 0)
        engine_count(queue->engine, COUNT_INJECT_FAILED);
    else if (left == TRACKING_FINAL)
        engine_count(queue->engine, COUNT_INJECT_UNTRACKED);
    else if (left == TRACKING_UNASKED)
        engine_count(queue->engine, COUNT_INJECT_UNASKED);
}

/* Pass on what a call to the engine returned. `slot` is the memory that the call's packet lies in: it stays as it is until
 * the round's verdicts are sent; anything else is only good until the next call. `mark`: the call's packet's; only its decision
 * ever offloads. */
static void answer(struct nq_queue *queue, const struct nq_result *result, const uint8_t *slot, uint32_t mark)
{
    bool fleeting = false;

    for (uint32_t i = 0; i < result->count; i++) {
        const struct nq_output *output = &result->outputs[i];

        if (output->kind == NQ_DECISION) {
            pending_add(queue, output, mark);
            fleeting |= output->data && (!slot || output->data < slot || output->data >= slot + NQ_LARGE_OCTETS);
            continue;
        }
        pending_flush(queue);   /* what was decided before leaves before */
        inject(queue, output);
    }
    if (fleeting)
        pending_flush(queue);
}

/* ---- packets ---------------------------------------------------------------------------------------------------- */

static uint32_t attribute_u32(const struct nlattr *attribute)
{
    uint32_t value = 0;

    if (attribute->nla_len >= NLA_HDRLEN + sizeof value)
        memcpy(&value, (const uint8_t *)attribute + NLA_HDRLEN, sizeof value);
    return ntohl(value);
}

static bool packet_id(struct nq_packet *packet, const struct nlattr *attribute)
{
    struct nfqnl_msg_packet_hdr header;

    if (attribute->nla_len < NLA_HDRLEN + sizeof header)
        return false;
    memcpy(&header, (const uint8_t *)attribute + NLA_HDRLEN, sizeof header);
    packet->id = ntohl(header.packet_id);
    return true;
}

static void packet_checksum_state(struct nq_packet *packet, uint32_t info)
{
    packet->flags &= ~NQ_CSUM_VERIFIED;
    if (info & NFQA_SKB_CSUMNOTREADY)
        packet->flags |= NQ_CSUM_NOT_READY;
    else if (!(info & NFQA_SKB_CSUM_NOTVERIFIED))
        packet->flags |= NQ_CSUM_VERIFIED;
}

/* Is the packet all there? Its own header says how long it is; octets too many are as wrong as octets too few. */
static bool packet_complete(const struct nq_packet *packet)
{
    const struct nq_ipv4 *ipv4 = (const void *)packet->data;
    const struct nq_ipv6 *ipv6 = (const void *)packet->data;

    if (packet->len >= sizeof *ipv4 && packet->data[0] >> 4 == 4)
        return ntohs(ipv4->total_length) == packet->len;
    if (packet->len >= sizeof *ipv6 && packet->data[0] >> 4 == 6)
        return sizeof *ipv6 + ntohs(ipv6->payload_length) == packet->len;
    return true;                /* no IP at all: for the engine to say */
}

static bool packet_attribute(struct arrival *arrival, struct nlattr *attribute)
{
    struct nq_packet *packet = &arrival->packet;

    switch (attribute->nla_type & NLA_TYPE_MASK) {
    case NFQA_PACKET_HDR:
        return packet_id(packet, attribute);
    case NFQA_MARK:
        arrival->mark = attribute_u32(attribute);
        break;
    case NFQA_IFINDEX_INDEV:
        packet->in_ifindex = attribute_u32(attribute);
        break;
    case NFQA_IFINDEX_OUTDEV:
        packet->out_ifindex = attribute_u32(attribute);
        break;
    case NFQA_SKB_INFO:
        packet_checksum_state(packet, attribute_u32(attribute));
        break;
    case NFQA_CAP_LEN:
        packet->flags |= NQ_TRUNCATED;
        break;
    case NFQA_PAYLOAD:
        packet->data = (uint8_t *)attribute + NLA_HDRLEN;
        packet->len = attribute->nla_len - NLA_HDRLEN;
        break;
    }
    return true;
}

/* Fill `arrival` from the message's attributes up to `end`. Returns false where there is no id to answer to. An attribute
 * that does not fit makes the packet a truncated one. */
static bool packet_parse(struct arrival *arrival, struct nlmsghdr *header, uint8_t *end)
{
    struct nq_packet *packet = &arrival->packet;
    uint8_t *at = (uint8_t *)header + NLMSG_SPACE(sizeof(struct nfgenmsg));
    bool named = false;

    packet->flags |= NQ_CSUM_VERIFIED;      /* absent NFQA_SKB_INFO: nothing to remark (nfqnl_put_packet_info) */
    packet->data = at;
    while (at + NLA_HDRLEN <= end) {
        struct nlattr *attribute = (struct nlattr *)at;

        if (attribute->nla_len < NLA_HDRLEN || attribute->nla_len > end - at) {
            packet->flags |= NQ_TRUNCATED;
            break;
        }
        if (!packet_attribute(arrival, attribute))
            return false;
        named |= (attribute->nla_type & NLA_TYPE_MASK) == NFQA_PACKET_HDR;
        at += NLA_ALIGN(attribute->nla_len);
    }
    if (!packet_complete(packet) || packet->len == 0)
        packet->flags |= NQ_TRUNCATED;
    return named;
}

static void message_packet(struct nq_queue *queue, struct nlmsghdr *header, uint8_t *end, struct nq_block *block,
                           uint64_t now)
{
    struct arrival arrival = { .packet.block = block };

    if (!packet_parse(&arrival, header, end)) {
        engine_count(queue->engine, COUNT_MALFORMED);
        return;
    }
    answer(queue, nq_engine_packet(queue->engine, &arrival.packet, now), block ? block->data : queue->reserve, arrival.mark);
}

/* An acknowledgement, or a verdict on a packet that is gone: a device went down, or a flush took it. */
static void message_error(struct nq_queue *queue, const struct nlmsghdr *header, const uint8_t *end)
{
    const struct nlmsgerr *answer = NLMSG_DATA(header);

    if ((const uint8_t *)answer + sizeof answer->error <= end && answer->error != 0)
        engine_count(queue->engine, COUNT_VERDICT_ERRORS);
}

/* Every message of one datagram. Only the kernel writes to this socket: netlink asks CAP_NET_ADMIN of anybody else. */
static void datagram(struct nq_queue *queue, struct nq_block *block, uint8_t *at, uint32_t len, uint64_t now)
{
    uint8_t *end = at + len;

    while (end - at >= NLMSG_HDRLEN) {
        struct nlmsghdr *header = (struct nlmsghdr *)at;
        uint32_t left = (uint32_t)(end - at), own = header->nlmsg_len;
        uint8_t *own_end = at + (own < left ? own : left);

        if (own < NLMSG_HDRLEN) {
            engine_count(queue->engine, COUNT_MALFORMED);
            return;
        }
        if (header->nlmsg_type == (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET))
            message_packet(queue, header, own_end, block, now);
        else if (header->nlmsg_type == NLMSG_ERROR)
            message_error(queue, header, own_end);
        if (own >= left)
            return;
        at += NLMSG_ALIGN(own);
    }
}

/* ---- slots ------------------------------------------------------------------------------------------------------ */

/* A block that the engine has kept is the engine's; the slot takes a fresh one, but never one of the last that are free:
 * those are the engine's, too, or nothing could be stored and all mail would stand. Without blocks the reserve receives,
 * and the engine copies what it wants to keep. */
static void slots_refill(struct nq_queue *queue)
{
    for (uint32_t i = 0; i < queue->slots;) {
        struct nq_block *block = queue->blocks[i];

        if (block->refs == 1) {
            i++;
            continue;
        }
        block_drop(queue->pool, block);
        queue->blocks[i] = queue->blocks[--queue->slots];
    }
    while (queue->slots < queue->slots_max && queue->pool->large_free > queue->slots_max)
        queue->blocks[queue->slots++] = pool_large(queue->pool);
    if (queue->slots < queue->slots_max)
        engine_count(queue->engine, COUNT_SLOTS_SHORT);
}

/* Returns how many datagrams can be taken at once. */
static uint32_t slots_offer(struct nq_queue *queue)
{
    uint32_t count = queue->slots > 0 ? queue->slots : 1;

    for (uint32_t i = 0; i < count; i++) {
        queue->into[i].iov_base = queue->slots > 0 ? queue->blocks[i]->data : queue->reserve;
        queue->into[i].iov_len = NQ_LARGE_OCTETS;
        queue->messages[i].msg_hdr = (struct msghdr){ .msg_iov = &queue->into[i], .msg_iovlen = 1 };
    }
    return count;
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec time;

    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t loop_now(const struct nq_queue *queue)
{
    return queue->epoch + clock_ns(CLOCK_MONOTONIC);
}

static void tick_if_due(struct nq_queue *queue, uint64_t now)
{
    if (now < queue->tick_due)
        return;
    queue->tick_due = now + TICK;
    answer(queue, nq_engine_tick(queue->engine, now), NULL, 0);
    pending_flush(queue);
}

/* What recvmmsg could not do. Returns 0 where the loop goes on. */
static int receive_error(struct nq_queue *queue, int error)
{
    if (error == EAGAIN || error == EINTR)
        return 0;
    if (error != ENOBUFS && error != ENOMEM)
        return -error;
    engine_count(queue->engine, COUNT_RECEIVE_ERRORS);
    return 0;
}

/* Take what is there, judge it and answer. Returns 1 if there may be more, 0 if there is none, or -errno. */
static int round_of_packets(struct nq_queue *queue)
{
    uint32_t offered = slots_offer(queue);
    int taken = recvmmsg(queue->fd, queue->messages, offered, MSG_DONTWAIT, NULL);
    uint64_t now = loop_now(queue);

    if (taken < 0)
        return receive_error(queue, errno);
    for (int i = 0; i < taken; i++)
        datagram(queue, queue->slots > 0 ? queue->blocks[i] : NULL, queue->into[i].iov_base,
                 queue->messages[i].msg_len, now);
    pending_flush(queue);
    slots_refill(queue);
    return (uint32_t)taken == offered;
}

/* Sleep until a packet comes, somebody wakes us or a tick is due. Returns 0 or -errno. */
static int wait_for_packets(struct nq_queue *queue)
{
    struct pollfd fds[2] = { { .fd = queue->fd, .events = POLLIN }, { .fd = queue->wake, .events = POLLIN } };
    uint64_t now = loop_now(queue);
    int timeout = now < queue->tick_due ? (int)((queue->tick_due - now) / 1000000 + 1) : 0;

    if (poll(fds, 2, timeout) < 0 && errno != EINTR)
        return -errno;
    return fds[0].revents & POLLNVAL ? -EBADF : 0;
}

int32_t nq_queue_run(struct nq_queue *queue)
{
    int rc = 0;

    while (rc >= 0 && !atomic_load_explicit(&queue->stopping, memory_order_relaxed)) {
        atomic_fetch_add_explicit(&queue->progress, 1, memory_order_relaxed);
        if (rc == 0)            /* a full round goes on at once */
            rc = wait_for_packets(queue);
        tick_if_due(queue, loop_now(queue));
        if (rc >= 0)
            rc = round_of_packets(queue);
    }
    return rc < 0 ? rc : 0;
}

void nq_queue_stop(struct nq_queue *queue)
{
    uint64_t one = 1;
    int saved = errno;

    atomic_store(&queue->stopping, true);
    if (write(queue->wake, &one, sizeof one) < 0)
        errno = saved;          /* the counter is full: it is readable all the same */
}

uint64_t nq_queue_progress(const struct nq_queue *queue)
{
    return atomic_load_explicit(&queue->progress, memory_order_relaxed);
}

int32_t nq_queue_conntrack(const struct nq_queue *queue)
{
    return queue->injector.unasked;
}

/* ---- beginning and end ------------------------------------------------------------------------------------------ */

static bool settings_valid(const struct nq_queue_settings *settings, char *error)
{
    if (settings->fd >= 0 && settings->number <= UINT16_MAX && settings->length > 0 && settings->length <= UINT16_MAX)
        return true;
    snprintf(error, NQ_ERROR_MAX, "queue %u: number and length go up to 65535, the length begins at 1 (is %u), and the "
             "descriptor must be open (is %d)", settings->number, settings->length, settings->fd);
    return false;
}

static bool queue_open(struct nq_queue *queue, const struct nq_queue_settings *settings, char *error)
{
    queue->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (queue->wake < 0)
        return !refused(error, queue, "an eventfd", -errno);
    return !refused(error, queue, "a raw socket for resets (needs CAP_NET_RAW)",
                    injector_open(&queue->injector, settings->own_mark))
        && socket_options(queue, settings->buffer, error)
        && configure(queue, settings, error);
}

struct nq_queue *nq_queue_new(const struct nq_queue_settings *settings, struct nq_engine *engine, char *error)
{
    struct nq_queue *queue;

    if (!settings_valid(settings, error))
        return NULL;
    queue = calloc(1, sizeof *queue);
    if (!queue) {
        snprintf(error, NQ_ERROR_MAX, "queue %u: out of memory", settings->number);
        return NULL;
    }
    queue->engine = engine;
    queue->pool = engine_pool(engine);
    injector_init(&queue->injector);
    queue->fd = settings->fd;
    queue->wake = -1;
    queue->number = htons((uint16_t)settings->number);
    queue->offload_mark = settings->offload_mark;
    queue->epoch = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_MONOTONIC);
    if (!queue_open(queue, settings, error)) {
        nq_queue_free(queue);
        return NULL;
    }
    queue->slots_max = queue->pool->large_free / 4 < SLOTS ? queue->pool->large_free / 4 : SLOTS;
    slots_refill(queue);
    return queue;
}

void nq_queue_free(struct nq_queue *queue)
{
    if (!queue)
        return;
    for (uint32_t i = 0; i < queue->slots; i++)
        block_drop(queue->pool, queue->blocks[i]);
    injector_close(&queue->injector);
    if (queue->wake >= 0)
        close(queue->wake);
    free(queue);
}
