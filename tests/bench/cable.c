/*
 * cable.c - a length of cable between two interfaces: it delays, reorders, duplicates and loses frames.
 *
 *   cable --left DEV --right DEV [--delay US] [--jitter US] [--reorder N] [--duplicate N] [--lose N] [--seed N] [--timeout S]
 *
 * Every frame is late by `delay` microseconds. Of 10,000 frames with TCP in them, `reorder` are late by up to `jitter` more,
 * so that later ones overtake them; `duplicate` come a second time, up to `jitter` later; `lose` do not come. Chance is a
 * generator with a seed, each direction its own. It ends at SIGTERM, or after `timeout` seconds, and prints a line of JSON.
 *
 * Frames go through packet sockets with virtio's header, so that a segment of 64 KiB stays one, and a checksum that the
 * sender has left to its device stays left: the hosts at both ends see the offloads of a direct link. A second NFQUEUE was
 * rejected, for it cannot duplicate such a segment, and netem, for many kernels lack it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FRAME_MAX     (70u << 10)   /* virtio's header, Ethernet's, and 64 KiB */
#define QUEUE_FRAMES  65536u
#define QUEUE_OCTETS  (256u << 20)
#define SOCKET_OCTETS (128 << 20)
#define BATCH         64
#define SHARE         10000u

struct options {
    const char *device[2];
    uint64_t delay, jitter; /* ns */
    unsigned reorder, duplicate, lose, seed, timeout;
};

struct frame {
    uint64_t due, order;
    uint32_t length;
    uint8_t octets[];
};

struct direction { /* from one device to the other */
    int from, to;
    uint64_t random, order;
    struct frame **heap; /* the next to leave first */
    uint32_t waiting, octets;
    uint64_t frames, delayed, duplicated, lost, overflowed, refused;
};

static volatile sig_atomic_t ended;

static void end(int number)
{
    (void)number;
    ended = 1;
}

static void fail(const char *what)
{
    fprintf(stderr, "cable: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t draw(struct direction *direction) /* splitmix64 */
{
    uint64_t z = direction->random += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static bool happens(struct direction *direction, unsigned share)
{
    return draw(direction) % SHARE < share;
}

/* ---- the frames that are on their way --------------------------------------------------------------------------- */

static bool before(const struct frame *a, const struct frame *b)
{
    return a->due != b->due ? a->due < b->due : a->order < b->order;
}

static void push(struct direction *direction, struct frame *frame)
{
    uint32_t at = direction->waiting++;

    while (at && before(frame, direction->heap[(at - 1) / 2])) {
        direction->heap[at] = direction->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    direction->heap[at] = frame;
    direction->octets += frame->length;
}

static void pop(struct direction *direction)
{
    struct frame *last = direction->heap[--direction->waiting];
    uint32_t at = 0, child;

    direction->octets -= direction->waiting ? direction->heap[0]->length : last->length;
    while ((child = 2 * at + 1) < direction->waiting) {
        if (child + 1 < direction->waiting && before(direction->heap[child + 1], direction->heap[child]))
            child++;
        if (!before(direction->heap[child], last))
            break;
        direction->heap[at] = direction->heap[child];
        at = child;
    }
    direction->heap[at] = last;
}

static void carry(struct direction *direction, const uint8_t *octets, uint32_t length, uint64_t due)
{
    struct frame *frame;

    if (direction->waiting == QUEUE_FRAMES || direction->octets + length > QUEUE_OCTETS) {
        direction->overflowed++;
        return;
    }
    frame = malloc(sizeof *frame + length);
    if (!frame)
        fail("memory");
    *frame = (struct frame){.due = due, .order = direction->order++, .length = length};
    memcpy(frame->octets, octets, length);
    push(direction, frame);
}

static bool is_tcp(const uint8_t *ethernet, uint32_t length)
{
    uint16_t kind;

    if (length < ETH_HLEN + 40)
        return false;
    memcpy(&kind, ethernet + 12, sizeof kind);
    return (kind == htons(ETH_P_IP) && ethernet[ETH_HLEN + 9] == IPPROTO_TCP) ||
           (kind == htons(ETH_P_IPV6) && ethernet[ETH_HLEN + 6] == IPPROTO_TCP);
}

static void take_frame(const struct options *options, struct direction *direction, uint8_t *octets, uint32_t length)
{
    const uint32_t header = sizeof(struct virtio_net_hdr);
    uint64_t due = now() + options->delay;

    /* What the sender's checksum said about itself is not ours to say. */
    ((struct virtio_net_hdr *)octets)->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
    direction->frames++;
    if (!is_tcp(octets + header, length - header)) {
        carry(direction, octets, length, due);
        return;
    }
    if (happens(direction, options->lose)) {
        direction->lost++;
        return;
    }
    if (happens(direction, options->duplicate)) {
        direction->duplicated++;
        carry(direction, octets, length, due + draw(direction) % (options->jitter + 1));
    }
    if (happens(direction, options->reorder)) {
        direction->delayed++;
        due += draw(direction) % (options->jitter + 1);
    }
    carry(direction, octets, length, due);
}

/* ---- the sockets ------------------------------------------------------------------------------------------------ */

static int open_device(const char *name)
{
    const int one = 1, room = SOCKET_OCTETS;
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    address.sll_ifindex = (int)if_nametoindex(name);
    if (fd < 0 || !address.sll_ifindex ||
        setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) ||
        setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one) ||
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) ||
        setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) ||
        bind(fd, (struct sockaddr *)&address, sizeof address))
        fail(name);
    return fd;
}

static void receive(const struct options *options, struct direction *direction)
{
    static uint8_t octets[FRAME_MAX];

    for (int i = 0; i < BATCH; i++) {
        ssize_t got = recv(direction->from, octets, sizeof octets, MSG_TRUNC);

        if (got < 0 && (errno == EAGAIN || errno == EINTR || errno == ENETDOWN))
            return;
        if (got < 0)
            fail("receive");
        if ((size_t)got > sizeof octets || (size_t)got < sizeof(struct virtio_net_hdr))
            direction->refused++;
        else
            take_frame(options, direction, octets, (uint32_t)got);
    }
}

/* Returns when the next is due; UINT64_MAX where none waits. */
static uint64_t send_due(struct direction *direction)
{
    enum { AGAIN = 100000 };

    while (direction->waiting && direction->heap[0]->due <= now()) {
        struct frame *frame = direction->heap[0];

        if (send(direction->to, frame->octets, frame->length, 0) < 0) {
            if (errno == EAGAIN || errno == ENOBUFS)
                return now() + AGAIN;
            direction->refused++;
        }
        pop(direction);
        free(frame);
    }
    return direction->waiting ? direction->heap[0]->due : UINT64_MAX;
}

static void run(const struct options *options, struct direction *directions, const sigset_t *unblocked)
{
    struct pollfd polled[2] = {{directions[0].from, POLLIN, 0}, {directions[1].from, POLLIN, 0}};

    while (!ended) {
        uint64_t due = UINT64_MAX, at = now();
        struct timespec wait;

        for (int i = 0; i < 2; i++) {
            uint64_t next = send_due(&directions[i]);
            due = next < due ? next : due;
        }
        at = now();
        wait.tv_sec = due == UINT64_MAX || due < at ? 0 : (time_t)((due - at) / 1000000000u);
        wait.tv_nsec = due == UINT64_MAX || due < at ? 0 : (long)((due - at) % 1000000000u);
        if (ppoll(polled, 2, due == UINT64_MAX ? NULL : &wait, unblocked) < 0 && errno != EINTR)
            fail("poll");
        for (int i = 0; i < 2; i++)
            if (polled[i].revents)
                receive(options, &directions[i]);
    }
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

static unsigned number(const char *name, const char *text, unsigned most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*end || end == text || value > most) {
        fprintf(stderr, "cable: --%s must be a number up to %u, not \"%s\"\n", name, most, text);
        exit(2);
    }
    return (unsigned)value;
}

static struct options parse(int argc, char **argv)
{
    static const struct option names[] = {
        {"left", 1, NULL, 'l'}, {"right", 1, NULL, 'r'}, {"delay", 1, NULL, 'd'}, {"jitter", 1, NULL, 'j'},
        {"reorder", 1, NULL, 'o'}, {"duplicate", 1, NULL, 'u'}, {"lose", 1, NULL, 'x'}, {"seed", 1, NULL, 's'},
        {"timeout", 1, NULL, 't'}, {0},
    };
    struct options options = {.timeout = 600};
    int option;

    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'l': options.device[0] = optarg; break;
        case 'r': options.device[1] = optarg; break;
        case 'd': options.delay = number("delay", optarg, 10000000) * (uint64_t)1000; break;
        case 'j': options.jitter = number("jitter", optarg, 10000000) * (uint64_t)1000; break;
        case 'o': options.reorder = number("reorder", optarg, SHARE); break;
        case 'u': options.duplicate = number("duplicate", optarg, SHARE); break;
        case 'x': options.lose = number("lose", optarg, SHARE); break;
        case 's': options.seed = number("seed", optarg, UINT32_MAX); break;
        case 't': options.timeout = number("timeout", optarg, 3600); break;
        default: exit(2);
        }
    }
    if (!options.device[0] || !options.device[1]) {
        fprintf(stderr, "cable: --left and --right must name two interfaces\n");
        exit(2);
    }
    return options;
}

static void print_direction(const char *name, const struct direction *direction, const char *behind)
{
    struct tpacket_stats missed = {0};
    socklen_t length = sizeof missed;

    getsockopt(direction->from, SOL_PACKET, PACKET_STATISTICS, &missed, &length);
    printf("\"%s\": {\"frames\": %llu, \"delayed\": %llu, \"duplicated\": %llu, \"lost\": %llu, \"overflowed\": %llu, "
           "\"refused\": %llu}%s", name, (unsigned long long)direction->frames, (unsigned long long)direction->delayed,
           (unsigned long long)direction->duplicated, (unsigned long long)direction->lost,
           (unsigned long long)direction->overflowed + missed.tp_drops, (unsigned long long)direction->refused, behind);
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    struct direction directions[2] = {0};
    struct sigaction action = {.sa_handler = end};
    sigset_t blocked, unblocked;
    int left = open_device(options.device[0]), right = open_device(options.device[1]);

    for (int i = 0; i < 2; i++) {
        directions[i] = (struct direction){.from = i ? right : left, .to = i ? left : right,
                                           .random = options.seed * 2u + (unsigned)i};
        directions[i].heap = calloc(QUEUE_FRAMES, sizeof *directions[i].heap);
        if (!directions[i].heap)
            fail("memory");
    }
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGALRM);
    sigprocmask(SIG_BLOCK, &blocked, &unblocked);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
    alarm(options.timeout);
    puts("ready");
    fflush(stdout);
    run(&options, directions, &unblocked);
    fputc('{', stdout);
    print_direction("left_to_right", &directions[0], ", ");
    print_direction("right_to_left", &directions[1], "}\n");
    return 0;
}
