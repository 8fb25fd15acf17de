/*
 * packet.c - views of IPv4, IPv6 and TCP, and their checksums. No state, no allocation.
 *
 * Everything is checked against the octets that are really there, never against what a header claims (RFC 791 3.1,
 * RFC 8200 3 and 4, RFC 9293 3.1).
 */
#include "nq.h"

#include <arpa/inet.h>

enum { PROTOCOL_TCP = 6, HOP_BY_HOP = 0, ROUTING = 43, FRAGMENT = 44, DESTINATION_OPTIONS = 60 };

static uint16_t load16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }

static enum nq_reason view_ipv4(struct nq_view *view, uint32_t len, uint32_t *octets)
{
    const struct nq_ipv4 *ip = (const void *)view->ip;
    if (len < sizeof *ip)
        return REASON_SHORT;
    uint32_t header = (ip->version_ihl & 0x0fu) * 4;
    uint32_t total = ntohs(ip->total_length);
    if (header < sizeof *ip || total < header || total > len)
        return REASON_SHORT;
    if (ntohs(ip->fragment) & 0x3fff) /* MF or an offset */
        return REASON_FRAGMENT;
    if (ip->protocol != PROTOCOL_TCP)
        return REASON_NOT_TCP;
    view->family = 4;
    view->source = ip->source;
    view->destination = ip->destination;
    view->ip_header = header;
    *octets = total;
    return REASON_NONE;
}

static enum nq_reason view_ipv6(struct nq_view *view, uint32_t len, uint32_t *octets)
{
    const struct nq_ipv6 *ip = (const void *)view->ip;
    if (len < sizeof *ip)
        return REASON_SHORT;
    uint32_t total = sizeof *ip + ntohs(ip->payload_length);
    uint32_t at = sizeof *ip;
    uint8_t next = ip->next_header;
    if (total > len)
        return REASON_SHORT;
    for (int walked = 0; next != PROTOCOL_TCP; walked++) {
        if (next == FRAGMENT)
            return REASON_FRAGMENT;
        if (next != HOP_BY_HOP && next != ROUTING && next != DESTINATION_OPTIONS)
            return walked ? REASON_EXTENSION : REASON_NOT_TCP;
        if (walked == NQ_EXTENSION_HEADERS || at + 8 > total)
            return REASON_EXTENSION;
        next = view->ip[at];
        at += 8u + view->ip[at + 1] * 8u;
        if (at > total)
            return REASON_EXTENSION;
    }
    view->family = 6;
    view->source = ip->source;
    view->destination = ip->destination;
    view->ip_header = at;
    *octets = total;
    return REASON_NONE;
}

static enum nq_reason view_tcp(struct nq_view *view, uint32_t octets)
{
    struct nq_tcp *tcp = (void *)(view->ip + view->ip_header);
    if (octets - view->ip_header < sizeof *tcp)
        return REASON_SHORT;
    uint32_t header = (tcp->offset >> 4) * 4u;
    if (header < sizeof *tcp || header > octets - view->ip_header)
        return REASON_SHORT;
    view->tcp = tcp;
    view->payload = (uint8_t *)tcp + header;
    view->payload_len = octets - view->ip_header - header;
    view->source_port = ntohs(tcp->source);
    view->destination_port = ntohs(tcp->destination);
    view->seq = ntohl(tcp->seq);
    view->ack = ntohl(tcp->ack);
    view->window = ntohs(tcp->window);
    view->flags = tcp->flags & 0x3f;
    view->edited = false;
    return REASON_NONE;
}

enum nq_reason packet_view(struct nq_view *view, const struct nq_packet *packet)
{
    if (packet->flags & NQ_TRUNCATED)
        return REASON_TRUNCATED;
    if (packet->len < 1)
        return REASON_SHORT;
    uint32_t octets = 0;
    enum nq_reason reason;
    view->packet = packet;
    view->ip = packet->data;
    switch (packet->data[0] >> 4) {
    case 4: reason = view_ipv4(view, packet->len, &octets); break;
    case 6: reason = view_ipv6(view, packet->len, &octets); break;
    default: return REASON_SHORT;
    }
    return reason ? reason : view_tcp(view, octets);
}

static void read_option(struct nq_tcp_options *options, uint8_t *at, uint8_t size)
{
    enum { MSS = 2, WINDOW_SCALE = 3, MD5 = 19, AO = 29, FAST_OPEN = 34 };
    switch (at[0]) {
    case MSS:
        if (size == 4) {
            options->mss = load16(at + 2);
            options->mss_at = at;
        }
        break;
    case WINDOW_SCALE:
        if (size == 3)
            options->window_scale = at[2] > 14 ? 14 : at[2]; /* RFC 7323, 2.3 */
        break;
    case MD5:
    case AO:
        options->authenticated = true;
        break;
    case FAST_OPEN:
        options->fast_open = at;
        break;
    }
}

bool packet_options(const struct nq_view *view, struct nq_tcp_options *options)
{
    uint8_t *at = (uint8_t *)view->tcp + sizeof *view->tcp;
    *options = (struct nq_tcp_options){ .window_scale = 0xff };
    while (at < view->payload && at[0] != 0) {
        if (at[0] == 1) {
            at++;
            continue;
        }
        ptrdiff_t left = view->payload - at;
        if (left < 2 || at[1] < 2 || at[1] > left)
            return false;
        read_option(options, at, at[1]);
        at += at[1];
    }
    return true;
}

static uint8_t *find_option(const struct nq_view *view, uint8_t kind)
{
    uint8_t *at = (uint8_t *)view->tcp + sizeof *view->tcp;
    while (view->payload - at >= 2 && at[0] != 0) {
        if (at[0] == 1) {
            at++;
            continue;
        }
        if (at[1] < 2 || at[1] > view->payload - at)
            return NULL;
        if (at[0] == kind)
            return at;
        at += at[1];
    }
    return NULL;
}

uint8_t *packet_sack(const struct nq_view *view)
{
    enum { SACK = 5 };
    return find_option(view, SACK);
}

uint8_t *packet_timestamps(const struct nq_view *view)
{
    enum { TIMESTAMPS = 8, OCTETS = 10 };
    uint8_t *at = find_option(view, TIMESTAMPS);
    return at && at[1] == OCTETS ? at : NULL;
}

bool packet_lower_mss(struct nq_view *view, struct nq_tcp_options *options, uint16_t by)
{
    if (!options->mss_at)
        return false;
    options->mss = (uint16_t)(options->mss > 2u * by ? options->mss - by : options->mss / 2);
    uint16_t mss = htons(options->mss);
    memcpy(options->mss_at + 2, &mss, sizeof mss);
    view->edited = true;
    return true;
}

uint32_t packet_load32(const uint8_t *at)
{
    return (uint32_t)load16(at) << 16 | load16(at + 2);
}

void packet_store32(uint8_t *at, uint32_t value)
{
    value = htonl(value);
    memcpy(at, &value, sizeof value);
}

void packet_write_acks(struct nq_view *view)
{
    view->tcp->ack = htonl(view->ack);
    view->tcp->window = htons((uint16_t)view->window);
}

void packet_write_seq(struct nq_view *view, uint32_t seq)
{
    view->tcp->seq = htonl(seq);
    view->edited = true;
}

/* RFC 1071. Eight octets at a time in native order: the sum does not care for the order until it is folded. */
uint64_t checksum_add(uint64_t sum, const uint8_t *data, size_t len)
{
    uint64_t low = 0, high = 0;
    while (len >= 32) {
        uint64_t part[4];
        memcpy(part, data, 32);
        for (int i = 0; i < 4; i++) {
            low += (uint32_t)part[i];
            high += part[i] >> 32;
        }
        data += 32;
        len -= 32;
    }
    sum += low + high;
    for (; len >= 2; data += 2, len -= 2) {
        uint16_t word;
        memcpy(&word, data, 2);
        sum += word;
    }
    if (len) {
        uint16_t word = 0;
        memcpy(&word, data, 1);
        sum += word;
    }
    return sum;
}

uint16_t checksum_fold(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static uint32_t segment_octets(const struct nq_view *view)
{
    return (uint32_t)(view->payload - (uint8_t *)view->tcp) + view->payload_len;
}

static uint64_t pseudo_header(const struct nq_view *view)
{
    size_t address = view->family == 4 ? 4 : 16;
    uint64_t sum = htons(PROTOCOL_TCP);
    uint32_t octets = segment_octets(view);
    sum += htons((uint16_t)(octets >> 16)) + htons((uint16_t)octets);
    sum = checksum_add(sum, view->source, address);
    return checksum_add(sum, view->destination, address);
}

/* The address that the checksum covers is the final one where a routing header is still to be followed (RFC 8200, 8.1);
 * such packets fail here and are dropped: nobody sends mail that way. */
bool packet_checksum_valid(const struct nq_view *view)
{
    if (view->packet->flags & (NQ_CSUM_NOT_READY | NQ_CSUM_VERIFIED))
        return true;
    uint64_t pseudo = pseudo_header(view);
    if (view->tcp->checksum == checksum_fold(pseudo)) /* left to the sender's network card */
        return true;
    return checksum_fold(checksum_add(pseudo, (uint8_t *)view->tcp, segment_octets(view))) == 0xffff;
}

void packet_checksum_write(struct nq_view *view)
{
    if (view->family == 4) {
        struct nq_ipv4 *ip = (void *)view->ip;
        ip->checksum = 0;
        ip->checksum = (uint16_t)~checksum_fold(checksum_add(0, view->ip, view->ip_header));
    }
    view->tcp->checksum = 0;
    uint64_t sum = checksum_add(pseudo_header(view), (uint8_t *)view->tcp, segment_octets(view));
    view->tcp->checksum = (uint16_t)~checksum_fold(sum);
}

void packet_normalise_syn(struct nq_view *view, const struct nq_tcp_options *options)
{
    enum { NO_OPERATION = 1 };
    if (options->fast_open) {
        memset(options->fast_open, NO_OPERATION, options->fast_open[1]);
        view->edited = true;
    }
    if (view->payload_len)
        packet_cut(view, 0);
}

void packet_clear_urgent(struct nq_view *view)
{
    view->tcp->flags &= (uint8_t)~NQ_URG;
    view->tcp->urgent = 0;
    view->flags &= (uint8_t)~NQ_URG;
    view->edited = true;
}

void packet_cut(struct nq_view *view, uint32_t octets)
{
    view->flags &= (uint8_t)~(NQ_FIN | NQ_PSH);
    view->tcp->flags &= (uint8_t)~(NQ_FIN | NQ_PSH);
    packet_resize(view, octets);
}

void packet_resize(struct nq_view *view, uint32_t octets)
{
    view->payload_len = octets;
    uint32_t total = (uint32_t)(view->payload - view->ip) + octets;
    if (view->family == 4)
        ((struct nq_ipv4 *)(void *)view->ip)->total_length = htons((uint16_t)total);
    else
        ((struct nq_ipv6 *)(void *)view->ip)->payload_length = htons((uint16_t)(total - sizeof(struct nq_ipv6)));
    view->edited = true;
}

void packet_address(uint8_t into[16], const uint8_t *address, uint8_t family)
{
    static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };
    if (family == 6) {
        memcpy(into, address, 16);
        return;
    }
    memcpy(into, mapped, 12);
    memcpy(into + 12, address, 4);
}

struct nq_speaker packet_speaker(const struct nq_view *view, bool back)
{
    struct nq_speaker speaker = { .family = view->family };
    packet_address(back ? speaker.destination : speaker.source, view->source, view->family);
    packet_address(back ? speaker.source : speaker.destination, view->destination, view->family);
    speaker.source_port = back ? view->destination_port : view->source_port;
    speaker.destination_port = back ? view->source_port : view->destination_port;
    speaker.seq = back ? view->ack : view->seq;
    speaker.ack = back ? view->seq + view->payload_len : view->ack;
    return speaker;
}

void packet_endpoints(const struct nq_view *view, struct nq_event *event)
{
    bool from_server = view->source_port < view->destination_port;
    struct nq_speaker client = packet_speaker(view, from_server);
    memcpy(event->client, client.source, 16);
    memcpy(event->server, client.destination, 16);
    event->client_port = client.source_port;
    event->server_port = client.destination_port;
    event->direction = from_server;
}
