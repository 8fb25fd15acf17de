/*
 * icmp.c - ICMP errors about segments of a flow (RFC 792, RFC 4443). They quote the segment as it was where it got stuck, so
 * behind an edit that changed the length they quote a number that its sender has never used; without the right one path MTU
 * discovery goes nowhere.
 */
#include "nq.h"

#include <arpa/inet.h>

enum { PROTOCOL_TCP = 6, ICMPV4 = 1, ICMPV6 = 58, QUOTED_AT = 8, TCP_QUOTED = 8 };

static uint16_t load16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }

static bool icmpv4_error(uint8_t type) { return type == 3 || type == 11 || type == 12; }

static bool icmpv6_error(uint8_t type) { return type >= 1 && type <= 4; }

/* The quoted packet may be cut off behind its ninth octet of TCP, so its own lengths say nothing. */
static bool view_quoted(struct nq_view *about, uint8_t *at, uint32_t len)
{
    uint32_t header;
    if (len < 1)
        return false;
    if (at[0] >> 4 == 4) {
        const struct nq_ipv4 *ip = (const void *)at;
        header = (at[0] & 0x0fu) * 4;
        if (len < sizeof *ip || header < sizeof *ip || ip->protocol != PROTOCOL_TCP)
            return false;
        about->source = ip->source;
        about->destination = ip->destination;
    } else {
        const struct nq_ipv6 *ip = (const void *)at;
        header = sizeof *ip;
        if (len < sizeof *ip || ip->next_header != PROTOCOL_TCP)
            return false;
        about->source = ip->source;
        about->destination = ip->destination;
    }
    if (len < header + TCP_QUOTED)
        return false;
    about->family = at[0] >> 4 == 4 ? 4 : 6;
    about->tcp = (void *)(at + header);
    about->source_port = load16(at + header);
    about->destination_port = load16(at + header + 2);
    about->seq = packet_load32(at + header + 4);
    return true;
}

bool icmp_error(struct nq_view *about, const struct nq_packet *packet)
{
    uint8_t *ip = packet->data;
    uint32_t header = packet->len >= 20 && ip[0] >> 4 == 4 ? (ip[0] & 0x0fu) * 4 : 40;
    bool v4 = ip[0] >> 4 == 4;
    if (packet->len < header + QUOTED_AT || (v4 && header < 20) || ip[v4 ? 9 : 6] != (v4 ? ICMPV4 : ICMPV6))
        return false;
    uint8_t *icmp = ip + header;
    if (!(v4 ? icmpv4_error(icmp[0]) : icmpv6_error(icmp[0])))
        return false;
    *about = (struct nq_view){ .packet = packet, .ip = ip, .icmp = icmp, .ip_header = header };
    return view_quoted(about, icmp + QUOTED_AT, packet->len - header - QUOTED_AT);
}

/* What the next link carries (RFC 1191, 4; RFC 4443, 3.2) lowered by what an edit may add, as the MSS was. Else the segment
 * that an edit makes longer would be too big however often its sender heard the true number. IPv6 senders believe no less
 * than 1280 (RFC 8201, 4). */
static void lower_mtu(struct nq_view *about, uint16_t by)
{
    enum { V4_TYPE = 3, V4_CODE = 4, V6_TYPE = 2, V6_LEAST = 1280 };
    uint8_t *icmp = about->icmp;
    bool v4 = about->ip[0] >> 4 == 4;
    if (v4 ? icmp[0] != V4_TYPE || icmp[1] != V4_CODE : icmp[0] != V6_TYPE)
        return;
    uint32_t mtu = v4 ? load16(icmp + 6) : packet_load32(icmp + 4);
    if (mtu <= 2u * by) /* 0: a router that does not tell */
        return;
    mtu -= by;
    if (v4) {
        icmp[6] = (uint8_t)(mtu >> 8);
        icmp[7] = (uint8_t)mtu;
    } else if (mtu >= V6_LEAST)
        packet_store32(icmp + 4, mtu);
    else if (mtu + by > V6_LEAST)
        packet_store32(icmp + 4, V6_LEAST);
}

void icmp_write(struct nq_view *about, uint32_t seq, uint16_t headroom)
{
    uint32_t len = about->packet->len - about->ip_header;
    uint64_t sum = 0;
    packet_store32((uint8_t *)about->tcp + 4, seq);
    if (headroom)
        lower_mtu(about, headroom);
    about->icmp[2] = about->icmp[3] = 0;
    if (about->ip[0] >> 4 == 6) { /* RFC 4443, 2.3 */
        sum = checksum_add(htons(ICMPV6), about->ip + 8, 32);
        sum += htons((uint16_t)len);
    }
    uint16_t checksum = (uint16_t)~checksum_fold(checksum_add(sum, about->icmp, len));
    memcpy(about->icmp + 2, &checksum, sizeof checksum);
    about->edited = true;
}
