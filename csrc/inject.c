/*
 * inject.c - packets of our own: raw sockets that send a complete packet as it is, under the marks by which the deployment
 * knows it for ours. A reset or a refusal cannot leave as the verdict on somebody's packet: a GSO packet that shrinks to
 * one segment or less is dropped by the segmenter.
 *
 * They leave by OUTPUT, where connection tracking looks at them a second time; see conntrack.c for what it makes of them.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nq.h"

enum { IPV4, IPV6 };
enum { TRACKED, UNTRACKED };

/* Raw sockets of IPPROTO_RAW never receive, so nothing ever fills up. Returns the descriptor or -errno. */
static int raw_socket(int family, uint32_t mark)
{
    int on = 1, saved;
    int level = family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6, option = family == AF_INET ? IP_HDRINCL : IPV6_HDRINCL;
    int fd = socket(family, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_RAW);

    if (fd < 0)
        return -errno;
    if (setsockopt(fd, level, option, &on, sizeof on) == 0
        && setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof mark) == 0)
        return fd;
    saved = errno;
    close(fd);
    return -saved;
}

void injector_init(struct nq_injector *injector)
{
    memset(injector, 0, sizeof *injector);
    for (int i = 0; i < 4; i++)
        injector->fd[i / 2][i % 2] = -1;
    injector->conntrack.fd = -1;
}

int injector_open(struct nq_injector *injector, uint32_t mark)
{
    injector_init(injector);
    if (mark == 0)
        return 0;
    for (uint32_t i = 0; i < 4; i++) {
        int fd = raw_socket(i / 2 == IPV4 ? AF_INET : AF_INET6, mark + (i % 2 == UNTRACKED));

        injector->fd[i / 2][i % 2] = fd;
        if (fd < 0 && !(i / 2 == IPV6 && fd == -EAFNOSUPPORT)) {    /* a kernel without IPv6 forwards none */
            injector_close(injector);
            return fd;
        }
    }
    injector->unasked = conntrack_open(&injector->conntrack);
    return 0;
}

void injector_close(struct nq_injector *injector)
{
    for (int i = 0; i < 4; i++) {
        if (injector->fd[i / 2][i % 2] >= 0)
            close(injector->fd[i / 2][i % 2]);
        injector->fd[i / 2][i % 2] = -1;
    }
    conntrack_close(&injector->conntrack);
}

/* RFC 1624: the checksum's part in `len` octets (even) that become others. */
static uint16_t checksum_adjust(uint16_t checksum, const void *from, const void *to, size_t len)
{
    uint32_t sum = (uint16_t)~checksum;
    uint16_t old, new;

    for (size_t i = 0; i < len; i += 2) {
        memcpy(&old, (const uint8_t *)from + i, 2);
        memcpy(&new, (const uint8_t *)to + i, 2);
        sum += (uint16_t)~old + (uint32_t)new;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

/* IPv4's own header checksum is the kernel's affair (raw(7)). */
static void write_source(uint8_t *address, size_t octets, struct nq_tcp *tcp, const struct nq_tuple *tuple)
{
    uint16_t checksum = checksum_adjust(tcp->checksum, address, tuple->address[0], octets);

    tcp->checksum = checksum_adjust(checksum, &(uint16_t){ tcp->source }, &tuple->port[0], 2);
    tcp->source = tuple->port[0];
    memcpy(address, tuple->address[0], octets);
}

/* Data without FIN is some end's own, kept from a packet that conntrack saw come in. */
static enum nq_telling telling_of(const struct nq_tcp *tcp, const uint8_t *end)
{
    bool data = end - (const uint8_t *)tcp > (tcp->offset >> 4) * 4;

    return tcp->flags & NQ_RST ? TELL_ENDED : data && !(tcp->flags & NQ_FIN) ? TELL_NOTHING : TELL_LIBERAL;
}

static int send_to(struct nq_injector *injector, const struct nq_tuple *tuple, enum nq_tracking tracking,
                   const uint8_t *data, uint32_t len)
{
    struct sockaddr_in to4 = { .sin_family = AF_INET };
    struct sockaddr_in6 to6 = { .sin6_family = AF_INET6 };
    bool is4 = tuple->family == 4;
    int fd = injector->fd[is4 ? IPV4 : IPV6][tracking == TRACKING_FINAL ? UNTRACKED : TRACKED];
    ssize_t sent;

    if (fd < 0)
        return -ENOTCONN;
    memcpy(&to4.sin_addr, tuple->address[1], 4);
    memcpy(&to6.sin6_addr, tuple->address[1], 16);
    do
        sent = sendto(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL, is4 ? (void *)&to4 : (void *)&to6,
                      is4 ? sizeof to4 : sizeof to6);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : (int)tracking;
}

int injector_send(struct nq_injector *injector, uint8_t *data, uint32_t len)
{
    struct nq_ipv4 *ipv4 = (void *)data;
    struct nq_ipv6 *ipv6 = (void *)data;
    bool is4 = len >= sizeof *ipv4 + sizeof(struct nq_tcp) && data[0] == 0x45 && ipv4->protocol == IPPROTO_TCP;
    bool is6 = len >= sizeof *ipv6 + sizeof(struct nq_tcp) && data[0] >> 4 == 6 && ipv6->next_header == IPPROTO_TCP;
    size_t octets = is4 ? 4 : 16;
    uint8_t *source = is4 ? ipv4->source : ipv6->source;
    struct nq_tcp *tcp = (void *)(source + 2 * octets);
    struct nq_tuple tuple = { .family = is4 ? 4 : 6 };
    enum nq_tracking tracking;

    if (!is4 && !is6)
        return -EINVAL;
    memcpy(tuple.address[0], source, octets);
    memcpy(tuple.address[1], source + octets, octets);
    tuple.port[0] = tcp->source;
    tuple.port[1] = tcp->destination;
    tracking = conntrack_judge(&injector->conntrack, &tuple, telling_of(tcp, data + len));
    write_source(source, octets, tcp, &tuple);
    return send_to(injector, &tuple, tracking, data, len);
}
