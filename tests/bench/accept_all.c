/*
 * accept_all.c - accepts every packet of one NFQUEUE queue: the least that any inspector on a queue can cost.
 *
 *   accept_all --queue N --timeout T [--receive-buffer OCTETS]
 *
 * It is what nfqguard is measured against, so it does what nfqguard's loop must do and nothing else: packets arrive whole and
 * uncut (GSO, copy range 65531), up to 64 of them by one recvmmsg, and their verdicts leave concatenated in one send, without
 * payload. Receiving only the heads of the packets, or one batch verdict for all, would be cheaper still, but no inspector
 * could do the same: it must see the octets, and hold back some packets while others go on.
 *
 * Raw netlink (linux/netfilter/nfnetlink_queue.h), no library. Runs until SIGTERM, SIGINT or the timeout; then prints one
 * line of JSON: packets, octets, calls of recvmmsg, packets that came with CAP_LEN (cut short; must be 0).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define BATCH          64
#define COPY_RANGE     65531u        /* what the kernel allows: 65535 less an attribute's header */
#define SLOT           (68u << 10)   /* a packet with its attributes, rounded up to pages */
#define QUEUE_LENGTH   1024u         /* this and the receive buffer: as nfqguard has them */
#define CONFIG_ROOM    256
#define WAIT_SECONDS   1             /* a signal that comes just before recvmmsg is seen after it */

#ifndef NFNL_SUBSYS_QUEUE
#define NFNL_SUBSYS_QUEUE 3
#endif

struct verdict { /* one message of a concatenated send; every part is a multiple of four octets */
    struct nlmsghdr header;
    struct nfgenmsg family;
    struct nlattr attribute;
    struct nfqnl_msg_verdict_hdr body;
};

struct loop {
    int fd;
    char *slots;
    struct mmsghdr messages[BATCH];
    struct iovec places[BATCH];
    struct verdict verdicts[BATCH];
    uint64_t packets, octets, calls, cut;
};

static volatile sig_atomic_t stopping;

static void stop(int signal)
{
    (void)signal;
    stopping = 1;
}

static void fail(const char *what)
{
    fprintf(stderr, "accept_all: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- set up ----------------------------------------------------------------------------------------------------- */

static void put(struct nlmsghdr *message, uint16_t type, const void *data, uint16_t length)
{
    struct nlattr *attribute = (struct nlattr *)((char *)message + NLMSG_ALIGN(message->nlmsg_len));

    attribute->nla_type = type;
    attribute->nla_len = (uint16_t)(NLA_HDRLEN + length);
    memcpy((char *)attribute + NLA_HDRLEN, data, length);
    message->nlmsg_len = NLMSG_ALIGN(message->nlmsg_len) + NLA_ALIGN(attribute->nla_len);
}

static void await_ack(int fd, const char *what)
{
    char reply[CONFIG_ROOM * 2];
    ssize_t got = recv(fd, reply, sizeof reply, 0);
    const struct nlmsghdr *header = (const struct nlmsghdr *)reply;
    const struct nlmsgerr *error = NLMSG_DATA(header);

    if (got < (ssize_t)NLMSG_LENGTH(sizeof *error) || header->nlmsg_type != NLMSG_ERROR)
        errno = EPROTO;
    else
        errno = -error->error;
    if (errno)
        fail(what);
}

/* Bind, copy range, length and GSO in one message, so that no packet is queued under other terms. */
static void configure(int fd, uint16_t queue)
{
    char room[CONFIG_ROOM] = {0};
    struct nlmsghdr *message = (struct nlmsghdr *)room;
    struct nfgenmsg family = {.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(queue)};
    struct nfqnl_msg_config_cmd command = {.command = NFQNL_CFG_CMD_BIND};
    struct nfqnl_msg_config_params params = {.copy_range = htonl(COPY_RANGE), .copy_mode = NFQNL_COPY_PACKET};
    uint32_t length = htonl(QUEUE_LENGTH), flags = htonl(NFQA_CFG_F_GSO);

    message->nlmsg_len = NLMSG_LENGTH(sizeof family);
    message->nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG;
    message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    memcpy(NLMSG_DATA(message), &family, sizeof family);
    put(message, NFQA_CFG_CMD, &command, sizeof command);
    put(message, NFQA_CFG_PARAMS, &params, sizeof params);
    put(message, NFQA_CFG_QUEUE_MAXLEN, &length, sizeof length);
    put(message, NFQA_CFG_MASK, &flags, sizeof flags);
    put(message, NFQA_CFG_FLAGS, &flags, sizeof flags);
    if (send(fd, message, message->nlmsg_len, 0) < 0)
        fail("configure");
    await_ack(fd, "configure");
}

static int open_netlink(int receive_buffer)
{
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    struct timeval wait = {.tv_sec = WAIT_SECONDS};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER), one = 1;

    if (fd < 0 || bind(fd, (struct sockaddr *)&kernel, sizeof kernel)
        || connect(fd, (struct sockaddr *)&kernel, sizeof kernel))
        fail("netlink");
    setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof one);
    setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait)
        || setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer, sizeof receive_buffer))
        fail("socket options");
    return fd;
}

static void prepare_verdict(struct verdict *verdict, uint16_t queue)
{
    verdict->header.nlmsg_len = sizeof *verdict;
    verdict->header.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT;
    verdict->header.nlmsg_flags = NLM_F_REQUEST;
    verdict->family = (struct nfgenmsg){.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(queue)};
    verdict->attribute = (struct nlattr){.nla_type = NFQA_VERDICT_HDR, .nla_len = NLA_HDRLEN + sizeof verdict->body};
    verdict->body.verdict = htonl(NF_ACCEPT);
}

static void prepare(struct loop *loop, uint16_t queue)
{
    size_t room = (size_t)BATCH * SLOT;

    loop->slots = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (loop->slots == MAP_FAILED)
        fail("memory");
    madvise(loop->slots, room, MADV_HUGEPAGE);
    memset(loop->slots, 0, room); /* touched now, not in the first packets */
    for (unsigned i = 0; i < BATCH; i++) {
        loop->places[i] = (struct iovec){loop->slots + (size_t)i * SLOT, SLOT};
        loop->messages[i].msg_hdr = (struct msghdr){.msg_iov = &loop->places[i], .msg_iovlen = 1};
        prepare_verdict(&loop->verdicts[i], queue);
    }
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

/* The packet's id, in network byte order as the verdict wants it; false when the message is not a packet. */
static bool read_packet(struct loop *loop, const char *message, size_t length, uint32_t *id)
{
    const struct nlmsghdr *header = (const struct nlmsghdr *)message;
    const char *at = message + NLMSG_LENGTH(sizeof(struct nfgenmsg)), *end = message + length;
    bool found = false;

    if (length < NLMSG_LENGTH(sizeof(struct nfgenmsg)) || header->nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET))
        return false;
    while (at + NLA_HDRLEN <= end) {
        const struct nlattr *attribute = (const struct nlattr *)at;

        if (attribute->nla_len < NLA_HDRLEN)
            break;
        if (attribute->nla_type == NFQA_PACKET_HDR) {
            memcpy(id, at + NLA_HDRLEN, sizeof *id);
            found = true;
        } else if (attribute->nla_type == NFQA_PAYLOAD) {
            loop->octets += attribute->nla_len - NLA_HDRLEN;
        } else if (attribute->nla_type == NFQA_CAP_LEN) {
            loop->cut++;
        }
        at += NLA_ALIGN(attribute->nla_len);
    }
    return found;
}

static void run(struct loop *loop)
{
    while (!stopping) {
        int got = recvmmsg(loop->fd, loop->messages, BATCH, MSG_WAITFORONE, NULL);
        unsigned verdicts = 0;

        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got < 0)
            fail("recvmmsg");
        for (int i = 0; i < got; i++)
            if (read_packet(loop, loop->places[i].iov_base, loop->messages[i].msg_len, &loop->verdicts[verdicts].body.id))
                verdicts++;
        loop->packets += verdicts;
        loop->calls++;
        if (verdicts && send(loop->fd, loop->verdicts, verdicts * sizeof *loop->verdicts, 0) < 0 && errno != EINTR)
            fail("send");
    }
}

static unsigned long number(const char *name, const char *text, unsigned long most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*end || end == text || value > most) {
        fprintf(stderr, "accept_all: --%s must be a number up to %lu, not \"%s\"\n", name, most, text);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"queue", 1, NULL, 'q'}, {"timeout", 1, NULL, 't'}, {"receive-buffer", 1, NULL, 'r'}, {0},
    };
    static struct loop loop;
    struct sigaction action = {.sa_handler = stop}; /* no SA_RESTART: recvmmsg must return */
    unsigned long queue = 0, timeout = 600, buffer = 32ul << 20;
    int option;

    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'q': queue = number("queue", optarg, 65535); break;
        case 't': timeout = number("timeout", optarg, 3600); break;
        case 'r': buffer = number("receive-buffer", optarg, 1ul << 30); break;
        default: return 2;
        }
    }
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
    alarm((unsigned)timeout);
    prepare(&loop, (uint16_t)queue);
    loop.fd = open_netlink((int)buffer);
    configure(loop.fd, (uint16_t)queue);
    run(&loop);
    close(loop.fd);
    printf("{\"packets\": %llu, \"octets\": %llu, \"calls\": %llu, \"cut\": %llu}\n", (unsigned long long)loop.packets,
           (unsigned long long)loop.octets, (unsigned long long)loop.calls, (unsigned long long)loop.cut);
    return 0;
}
