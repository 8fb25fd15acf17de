/*
 * conntrack.c - asks the kernel's connection tracking (ctnetlink) what a packet of our own would meet in OUTPUT.
 *
 * We know an endpoint by the address that mangle FORWARD shows. Where one end is translated, that is the address of an
 * entry's tuple in one direction only:
 *   DNAT    server -> client is a tuple of the entry, and the kernel translates its source; client -> server is none, and
 *           its addresses are final, for the server sees the client as it is
 *   SNAT    the other way round
 *   both    no direction is a tuple; what the far end knows the near one as stands in the entry, and is put in here
 * A packet whose tuple is unknown must leave untracked: taken for a new connection (nf_conntrack_tcp_loose), it finds that
 * its reply tuple belongs to an entry already, and its source port is changed.
 *
 * A question is one send and one receive: the kernel has answered when send returns. The entry behind two translations can
 * only be found by walking the table (a dump with a filter; 35 ms were measured at 100,000 entries), so what was found is
 * kept for a while, and after a dump there is none for DUMP_REST times as long as it took. Packets of ours that go out
 * meanwhile without their translation arrive nowhere; the engine tells an end again that goes on talking.
 *
 * What leaves untracked, conntrack does not see. Where that matters it is told: acknowledgements of ours let the client
 * send more than the window that conntrack knows of, which would be INVALID; and an entry whose ends were both reset by
 * untracked packets would stand for days.
 *
 * Connections in a zone are not found: packets of ours leave untracked, which is right unless they are translated.
 * Source: net/netfilter/nf_conntrack_netlink.c.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "nq.h"

#define DUMP_REST  50                   /* dumps take a fiftieth of the time at most */
#define KEPT       10000000000ull       /* ns that a translation is believed */
#define DATAGRAMS  64                   /* of one dump: a kernel before 5.8 takes no filter and tells its whole table */
#define ANSWER     16384                /* octets of one datagram of a dump */
#define CLOSED     10                   /* seconds that an entry lives on; nf_conntrack_tcp_timeout_close */

/* Flags of CTA_FILTER_*_FLAGS: what of a tuple has to agree. nf_conntrack_netlink.c has them; no header offers them. */
#define SOURCE_ADDRESS 0x01
#define PROTOCOL       0x08
#define SOURCE_PORT    0x10

struct request {
    struct nlmsghdr header;
    struct nfgenmsg family;
    uint8_t attributes[256];
};

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static struct nlattr *put(struct request *request, uint16_t type, const void *value, uint16_t len)
{
    struct nlattr *attribute = (void *)((uint8_t *)request + request->header.nlmsg_len);

    *attribute = (struct nlattr){ .nla_len = (uint16_t)(NLA_HDRLEN + len), .nla_type = type };
    memcpy((uint8_t *)attribute + NLA_HDRLEN, value, len);
    request->header.nlmsg_len += NLA_ALIGN(attribute->nla_len);
    return attribute;
}

static struct nlattr *nest(struct request *request, uint16_t type)
{
    return put(request, type | NLA_F_NESTED, "", 0);
}

static void nest_end(const struct request *request, struct nlattr *nested)
{
    nested->nla_len = (uint16_t)((uint8_t *)request + request->header.nlmsg_len - (uint8_t *)nested);
}

static void put_tuple(struct request *request, uint16_t type, const struct nq_tuple *tuple)
{
    uint16_t octets = tuple->family == 4 ? 4 : 16;
    uint8_t protocol = IPPROTO_TCP;
    struct nlattr *whole = nest(request, type), *part = nest(request, CTA_TUPLE_IP);

    put(request, tuple->family == 4 ? CTA_IP_V4_SRC : CTA_IP_V6_SRC, tuple->address[0], octets);
    put(request, tuple->family == 4 ? CTA_IP_V4_DST : CTA_IP_V6_DST, tuple->address[1], octets);
    nest_end(request, part);
    part = nest(request, CTA_TUPLE_PROTO);
    put(request, CTA_PROTO_NUM, &protocol, sizeof protocol);
    put(request, CTA_PROTO_SRC_PORT, &tuple->port[0], sizeof tuple->port[0]);
    put(request, CTA_PROTO_DST_PORT, &tuple->port[1], sizeof tuple->port[1]);
    nest_end(request, part);
    nest_end(request, whole);
}

static void request_begin(struct nq_conntrack *conntrack, struct request *request, const struct nq_tuple *tuple,
                          uint16_t type, uint16_t flags)
{
    memset(request, 0, sizeof *request);
    request->header = (struct nlmsghdr){
        .nlmsg_len = offsetof(struct request, attributes),
        .nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | type,
        .nlmsg_flags = NLM_F_REQUEST | flags,
        .nlmsg_seq = ++conntrack->sequence,
    };
    request->family = (struct nfgenmsg){ .nfgen_family = tuple->family == 4 ? AF_INET : AF_INET6,
                                         .version = NFNETLINK_V0 };
}

static int request_send(const struct nq_conntrack *conntrack, const struct request *request)
{
    const struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
    ssize_t sent;

    do
        sent = sendto(conntrack->fd, request, request->header.nlmsg_len, MSG_DONTWAIT, (const void *)&kernel,
                      sizeof kernel);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : 0;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

struct piece { const uint8_t *at, *end; };

/* The next attribute of `piece`, its value in `value`. False at the end, or where what is there does not fit. */
static bool next_attribute(struct piece *piece, uint16_t *type, struct piece *value)
{
    struct nlattr attribute;

    if (piece->end - piece->at < NLA_HDRLEN)
        return false;
    memcpy(&attribute, piece->at, sizeof attribute);
    if (attribute.nla_len < NLA_HDRLEN || attribute.nla_len > piece->end - piece->at)
        return false;
    *type = attribute.nla_type & NLA_TYPE_MASK;
    *value = (struct piece){ piece->at + NLA_HDRLEN, piece->at + attribute.nla_len };
    piece->at += NLA_ALIGN(attribute.nla_len) < piece->end - piece->at ? NLA_ALIGN(attribute.nla_len)
                                                                       : piece->end - piece->at;
    return true;
}

static void take(void *into, const struct piece *value, size_t len)
{
    if (value->end - value->at >= (ptrdiff_t)len)
        memcpy(into, value->at, len);
}

static void read_tuple(struct piece piece, struct nq_tuple *tuple)
{
    uint16_t type, inner_type;
    struct piece value, inner;

    while (next_attribute(&piece, &type, &value))
        while (next_attribute(&value, &inner_type, &inner)) {
            if (type == CTA_TUPLE_IP && (inner_type == CTA_IP_V4_SRC || inner_type == CTA_IP_V4_DST))
                take(tuple->address[inner_type == CTA_IP_V4_DST], &inner, 4);
            else if (type == CTA_TUPLE_IP && (inner_type == CTA_IP_V6_SRC || inner_type == CTA_IP_V6_DST))
                take(tuple->address[inner_type == CTA_IP_V6_DST], &inner, 16);
            else if (type == CTA_TUPLE_PROTO && (inner_type == CTA_PROTO_SRC_PORT || inner_type == CTA_PROTO_DST_PORT))
                take(&tuple->port[inner_type == CTA_PROTO_DST_PORT], &inner, 2);
        }
}

/* An entry's two tuples, from a message of ctnetlink. */
static void read_entry(const struct nlmsghdr *header, struct nq_tuple tuple[2])
{
    struct piece value, piece = { (const uint8_t *)NLMSG_DATA(header) + sizeof(struct nfgenmsg),
                                  (const uint8_t *)header + header->nlmsg_len };
    uint16_t type;

    memset(tuple, 0, 2 * sizeof *tuple);
    while (next_attribute(&piece, &type, &value))
        if (type == CTA_TUPLE_ORIG || type == CTA_TUPLE_REPLY)
            read_tuple(value, &tuple[type == CTA_TUPLE_REPLY]);
}

/* A datagram of the answer to our last request. Returns its length or -errno; it is there when the request was sent. */
static ssize_t receive(const struct nq_conntrack *conntrack, void *into, size_t size)
{
    ssize_t got;

    do
        got = recv(conntrack->fd, into, size, MSG_DONTWAIT);
    while ((got < 0 && errno == EINTR) ||
           (got >= (ssize_t)sizeof(struct nlmsghdr) &&
            ((const struct nlmsghdr *)into)->nlmsg_seq != conntrack->sequence));
    return got < 0 ? -errno : got;
}

/* ---- questions -------------------------------------------------------------------------------------------------- */

/* Is this the tuple of an entry, in either direction? 1, 0 or -errno. */
static int is_known(struct nq_conntrack *conntrack, const struct nq_tuple *tuple)
{
    uint8_t answer[1024] __attribute__((aligned(8)));
    const struct nlmsghdr *header = (const void *)answer;
    struct request request;
    ssize_t got;
    int rc;

    request_begin(conntrack, &request, tuple, IPCTNL_MSG_CT_GET, 0);
    put_tuple(&request, CTA_TUPLE_ORIG, tuple);
    rc = request_send(conntrack, &request);
    if (rc < 0)
        return rc;
    got = receive(conntrack, answer, sizeof answer);
    if (got < 0)
        return (int)got;
    if (header->nlmsg_type != NLMSG_ERROR)
        return 1;
    if (got < (ssize_t)NLMSG_LENGTH(sizeof(int)))
        return -EPROTO;
    rc = ((const struct nlmsgerr *)NLMSG_DATA(header))->error;
    return rc == -ENOENT ? 0 : rc < 0 ? rc : -EPROTO;
}

static struct nq_tuple reversed(const struct nq_tuple *tuple)
{
    struct nq_tuple reverse = { .family = tuple->family, .port = { tuple->port[1], tuple->port[0] } };

    memcpy(reverse.address[0], tuple->address[1], 16);
    memcpy(reverse.address[1], tuple->address[0], 16);
    return reverse;
}

static bool same_source(const struct nq_tuple *a, const struct nq_tuple *b)
{
    return memcmp(a->address[0], b->address[0], 16) == 0 && a->port[0] == b->port[0];
}

/* Look through a datagram of a dump for the entry whose two sides speak from these tuples' sources. 1 found, 0 not there,
 * -ENODATA where the dump ends. */
static int search(const uint8_t *at, size_t len, const struct nq_tuple *from, struct nq_tuple entry[2])
{
    struct nq_tuple back = reversed(from);

    while (len >= sizeof(struct nlmsghdr)) {
        const struct nlmsghdr *header = (const void *)at;

        if (header->nlmsg_len < NLMSG_HDRLEN || header->nlmsg_len > len || header->nlmsg_type == NLMSG_DONE ||
            header->nlmsg_type == NLMSG_ERROR)
            return -ENODATA;
        if (header->nlmsg_len >= NLMSG_SPACE(sizeof(struct nfgenmsg))) {
            read_entry(header, entry);
            entry[0].family = entry[1].family = from->family;
            if (same_source(&entry[0], from) && same_source(&entry[1], &back))
                return 1;
        }
        len -= NLMSG_ALIGN(header->nlmsg_len) < len ? NLMSG_ALIGN(header->nlmsg_len) : len;
        at += NLMSG_ALIGN(header->nlmsg_len);
    }
    return 0;
}

/* The entry that one end opened from from's source, and the other answers from from's destination. A dump that is not read
 * to its end keeps the socket busy, so then a fresh one takes its place. */
static bool dump(struct nq_conntrack *conntrack, const struct nq_tuple *from, struct nq_tuple entry[2])
{
    uint8_t answer[ANSWER] __attribute__((aligned(8)));
    /* A filter for an IPv6 address leaves out the very entries that agree (seen on Linux 6.18). search() compares. */
    const uint32_t flags = PROTOCOL | SOURCE_PORT | (from->family == 4 ? SOURCE_ADDRESS : 0);
    struct nq_tuple back = reversed(from);
    struct request request;
    struct nlattr *filter;
    int found;

    request_begin(conntrack, &request, from, IPCTNL_MSG_CT_GET, NLM_F_DUMP);
    put_tuple(&request, CTA_TUPLE_ORIG, from);
    put_tuple(&request, CTA_TUPLE_REPLY, &back);
    filter = nest(&request, CTA_FILTER);
    put(&request, CTA_FILTER_ORIG_FLAGS, &flags, sizeof flags);
    put(&request, CTA_FILTER_REPLY_FLAGS, &flags, sizeof flags);
    nest_end(&request, filter);
    if (request_send(conntrack, &request) < 0)
        return false;
    for (int i = 0; i < DATAGRAMS; i++) {
        ssize_t got = receive(conntrack, answer, sizeof answer);

        found = got < 0 ? -ENODATA : search(answer, (size_t)got, from, entry);
        if (found == -ENODATA)
            return false;
        if (found)
            break;
    }
    conntrack_close(conntrack);
    conntrack_open(conntrack);
    return found == 1;
}

/* The entry that has this tuple gets what conntrack did not see. No answer is asked for: nothing could be done about it. */
static void tell(struct nq_conntrack *conntrack, const struct nq_tuple *tuple, enum nq_telling telling)
{
    const struct nf_ct_tcp_flags liberal = { IP_CT_TCP_FLAG_BE_LIBERAL, IP_CT_TCP_FLAG_BE_LIBERAL };
    const uint32_t seconds = htonl(CLOSED);
    struct nlattr *whole, *tcp;
    struct request request;

    request_begin(conntrack, &request, tuple, IPCTNL_MSG_CT_NEW, 0);
    put_tuple(&request, CTA_TUPLE_ORIG, tuple);
    if (telling == TELL_ENDED) {
        put(&request, CTA_TIMEOUT, &seconds, sizeof seconds);
    } else {
        whole = nest(&request, CTA_PROTOINFO);
        tcp = nest(&request, CTA_PROTOINFO_TCP);
        put(&request, CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &liberal, sizeof liberal);
        put(&request, CTA_PROTOINFO_TCP_FLAGS_REPLY, &liberal, sizeof liberal);
        nest_end(&request, tcp);
        nest_end(&request, whole);
    }
    request_send(conntrack, &request);
}

/* ---- translations that were found ------------------------------------------------------------------------------- */

static uint64_t clock_now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* The same for both directions. */
static struct nq_translation *slot_of(struct nq_conntrack *conntrack, const struct nq_tuple *tuple)
{
    uint32_t sum = (uint32_t)tuple->port[0] + tuple->port[1];

    for (int i = 0; i < 16; i++)
        sum += (uint32_t)(tuple->address[0][i] + tuple->address[1][i]) << (i & 3);
    return &conntrack->kept[sum % NQ_TRANSLATIONS];
}

/* Find the entry of a packet with this tuple, whoever opened the connection: as a rule the end with the higher port. */
static void find(struct nq_conntrack *conntrack, const struct nq_tuple *tuple, struct nq_translation *kept)
{
    struct nq_tuple back = reversed(tuple);
    bool forward = ntohs(tuple->port[0]) > ntohs(tuple->port[1]);
    uint64_t began = clock_now();
    bool found = false;

    if (began >= conntrack->rested) {
        found = dump(conntrack, forward ? tuple : &back, kept->entry)
             || dump(conntrack, forward ? &back : tuple, kept->entry);
        kept->since = clock_now();
        conntrack->rested = kept->since + (kept->since - began) * DUMP_REST;
    }
    if (!found)
        memset(kept, 0, sizeof *kept);
}

static bool between(const struct nq_translation *kept, const struct nq_tuple *opener, const struct nq_tuple *answerer)
{
    return same_source(&kept->entry[0], opener) && same_source(&kept->entry[1], answerer);
}

/* What is translated twice: put in the source by which the packet's receiver knows the sender. Returns the entry's first
 * tuple, or NULL where there is none. */
static const struct nq_tuple *translate(struct nq_conntrack *conntrack, struct nq_tuple *tuple)
{
    struct nq_translation *kept = slot_of(conntrack, tuple);
    struct nq_tuple back = reversed(tuple);
    bool opener;

    if ((!between(kept, tuple, &back) && !between(kept, &back, tuple)) || clock_now() - kept->since > KEPT)
        find(conntrack, tuple, kept);
    opener = between(kept, tuple, &back);
    if (!opener && !between(kept, &back, tuple))
        return NULL;
    memcpy(tuple->address[0], kept->entry[opener].address[1], 16);
    tuple->port[0] = kept->entry[opener].port[1];
    return &kept->entry[0];
}

/* ---- what inject.c calls ---------------------------------------------------------------------------------------- */

int conntrack_open(struct nq_conntrack *conntrack)
{
    struct nq_tuple nobody = { .family = 4 };
    int on = 1, rc;

    conntrack->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_NETFILTER);
    if (conntrack->fd < 0)
        return -errno;
    setsockopt(conntrack->fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
    rc = is_known(conntrack, &nobody);
    if (rc < 0)
        conntrack_close(conntrack);
    return rc < 0 ? rc : 0;
}

void conntrack_close(struct nq_conntrack *conntrack)
{
    if (conntrack->fd >= 0)
        close(conntrack->fd);
    conntrack->fd = -1;
}

enum nq_tracking conntrack_judge(struct nq_conntrack *conntrack, struct nq_tuple *tuple, enum nq_telling telling)
{
    const struct nq_tuple *twice;
    struct nq_tuple reverse = reversed(tuple);
    int known = conntrack->fd < 0 ? -ENOTCONN : is_known(conntrack, tuple);

    if (known)
        return known < 0 ? TRACKING_UNASKED : TRACKING_KNOWN;
    known = is_known(conntrack, &reverse);
    if (known < 0)
        return TRACKING_UNASKED;
    twice = known ? NULL : translate(conntrack, tuple);
    if (twice && telling)
        tell(conntrack, twice, telling);
    else if (known && telling == TELL_LIBERAL)
        tell(conntrack, &reverse, telling);
    return TRACKING_FINAL;
}
