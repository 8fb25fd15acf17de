/*
 * refuse.c - packets of our own. A RST tells an end that its connection is over; to both ends each time, for the one that is
 * not told would wait for hours. A refusal tells the client why: the server's address speaks a reply and closes, while the
 * server gets its RST.
 *
 * Turning the offending packet itself into the RST was rejected: a GSO packet that shrinks never arrives.
 */
#include "nq.h"

#include <arpa/inet.h>

struct nq_speaker speaker_of(const struct nq_flow *flow, unsigned direction)
{
    unsigned self = flow->originator_first ? direction : !direction;
    struct nq_speaker speaker = {
        .family = flow->family,
        .source_port = flow->key.port[self],
        .destination_port = flow->key.port[!self],
        .seq = stream_next_out(&flow->stream[direction]),
        .ack = stream_acknowledged(&flow->stream[!direction], flow->stream[!direction].acked),
    };
    memcpy(speaker.source, flow->key.address[self], 16);
    memcpy(speaker.destination, flow->key.address[!self], 16);
    return speaker;
}

struct nq_speaker speaker_answering(const struct nq_flow *flow, unsigned direction, const struct nq_view *view, uint32_t said)
{
    struct nq_speaker speaker = speaker_of(flow, 1);
    const uint8_t *stamps = packet_timestamps(view);
    speaker.seq += said;
    speaker.ack = flow->stream[0].next;
    speaker.stamped = stamps;
    if (stamps) { /* what the client echoes is the server's own clock */
        memcpy(speaker.stamps, stamps + (direction == 0 ? 6 : 2), 4);
        memcpy(speaker.stamps + 4, stamps + (direction == 0 ? 2 : 6), 4);
    }
    return speaker;
}

static struct nq_tcp *write_ipv4(const struct nq_speaker *speaker, uint32_t octets, uint8_t *into)
{
    struct nq_ipv4 *ip = (void *)into;
    *ip = (struct nq_ipv4){ .version_ihl = 0x45, .total_length = htons((uint16_t)(sizeof *ip + octets)),
                            .fragment = htons(0x4000), .ttl = 64, .protocol = 6 };
    memcpy(ip->source, speaker->source + 12, 4);
    memcpy(ip->destination, speaker->destination + 12, 4);
    return (void *)(into + sizeof *ip);
}

static struct nq_tcp *write_ipv6(const struct nq_speaker *speaker, uint32_t octets, uint8_t *into)
{
    struct nq_ipv6 *ip = (void *)into;
    *ip = (struct nq_ipv6){ .version_class_flow = htonl(6u << 28), .payload_length = htons((uint16_t)octets),
                            .next_header = 6, .hop_limit = 64 };
    memcpy(ip->source, speaker->source, 16);
    memcpy(ip->destination, speaker->destination, 16);
    return (void *)(into + sizeof *ip);
}

uint32_t refuse_say(const struct nq_speaker *speaker, uint8_t flags, const uint8_t *text, uint32_t len, uint8_t *into)
{
    enum { STAMPS = 12, WINDOW = 0xffff };
    static const uint8_t stamps[4] = { 1, 1, 8, 10 };
    uint32_t options = speaker->stamped ? STAMPS : 0, octets = (uint32_t)sizeof(struct nq_tcp) + options + len;
    struct nq_tcp *tcp = speaker->family == 4 ? write_ipv4(speaker, octets, into) : write_ipv6(speaker, octets, into);
    uint8_t *at = (uint8_t *)(tcp + 1);
    *tcp = (struct nq_tcp){ .source = htons(speaker->source_port), .destination = htons(speaker->destination_port),
                            .seq = htonl(speaker->seq), .ack = htonl(speaker->ack), .window = WINDOW,
                            .offset = (uint8_t)((sizeof *tcp + options) / 4 << 4), .flags = flags | NQ_ACK };
    if (options) {
        memcpy(at, stamps, sizeof stamps);
        memcpy(at + sizeof stamps, speaker->stamps, sizeof speaker->stamps);
    }
    if (len)
        memcpy(at + options, text, len);
    struct nq_packet packet = { .data = into, .len = (uint32_t)(at + options + len - into) };
    struct nq_view view;
    packet_view(&view, &packet);
    packet_checksum_write(&view);
    return packet.len;
}

uint32_t refuse_rst(const struct nq_speaker *speaker, uint8_t *into)
{
    return refuse_say(speaker, NQ_RST, NULL, 0, into);
}
