/*
 * inject.c - packets of our own: raw sockets that send a complete packet as it is, under the mark by which the deployment
 * knows it for ours. A reset or a refusal cannot leave as the verdict on somebody's packet: a GSO packet that shrinks to
 * one segment or less is dropped by the segmenter.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nq.h"

/* Raw sockets of IPPROTO_RAW never receive, so nothing ever fills up. Returns the descriptor or -errno. */
static int raw_socket(int family, int level, int option, uint32_t mark)
{
    int on = 1, saved;
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

int injector_open(struct nq_injector *injector, uint32_t mark)
{
    injector->ipv4 = injector->ipv6 = -1;
    if (mark == 0)
        return 0;
    injector->ipv4 = raw_socket(AF_INET, IPPROTO_IP, IP_HDRINCL, mark);
    if (injector->ipv4 < 0)
        return injector->ipv4;
    injector->ipv6 = raw_socket(AF_INET6, IPPROTO_IPV6, IPV6_HDRINCL, mark);
    if (injector->ipv6 < 0 && injector->ipv6 != -EAFNOSUPPORT) {    /* a kernel without IPv6 forwards none */
        int error = injector->ipv6;

        injector_close(injector);
        return error;
    }
    return 0;
}

void injector_close(struct nq_injector *injector)
{
    if (injector->ipv4 >= 0)
        close(injector->ipv4);
    if (injector->ipv6 >= 0)
        close(injector->ipv6);
    injector->ipv4 = injector->ipv6 = -1;
}

static int send_to(int fd, const void *data, uint32_t len, const void *to, socklen_t to_len)
{
    ssize_t sent;

    if (fd < 0)
        return -ENOTCONN;
    do
        sent = sendto(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL, to, to_len);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : 0;
}

int injector_send(const struct nq_injector *injector, const uint8_t *data, uint32_t len)
{
    if (len >= sizeof(struct nq_ipv4) && data[0] >> 4 == 4) {
        struct sockaddr_in to = { .sin_family = AF_INET };

        memcpy(&to.sin_addr, ((const struct nq_ipv4 *)data)->destination, 4);
        return send_to(injector->ipv4, data, len, &to, sizeof to);
    }
    if (len >= sizeof(struct nq_ipv6) && data[0] >> 4 == 6) {
        struct sockaddr_in6 to = { .sin6_family = AF_INET6 };

        memcpy(&to.sin6_addr, ((const struct nq_ipv6 *)data)->destination, 16);
        return send_to(injector->ipv6, data, len, &to, sizeof to);
    }
    return -EINVAL;
}
