/*
 * refuse.c - packets of our own: the RST that tells an end that its connection is over. To both ends each time, for the one
 * that is not told would wait for hours. Turning the offending packet itself into the RST was rejected: a GSO packet that
 * shrinks never arrives.
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

static struct nq_tcp *write_ipv4(const struct nq_speaker *speaker, uint8_t *into)
{
    struct nq_ipv4 *ip = (void *)into;
    *ip = (struct nq_ipv4){ .version_ihl = 0x45, .total_length = htons(sizeof *ip + sizeof(struct nq_tcp)),
                            .fragment = htons(0x4000), .ttl = 64, .protocol = 6 };
    memcpy(ip->source, speaker->source + 12, 4);
    memcpy(ip->destination, speaker->destination + 12, 4);
    return (void *)(into + sizeof *ip);
}

static struct nq_tcp *write_ipv6(const struct nq_speaker *speaker, uint8_t *into)
{
    struct nq_ipv6 *ip = (void *)into;
    *ip = (struct nq_ipv6){ .version_class_flow = htonl(6u << 28), .payload_length = htons(sizeof(struct nq_tcp)),
                            .next_header = 6, .hop_limit = 64 };
    memcpy(ip->source, speaker->source, 16);
    memcpy(ip->destination, speaker->destination, 16);
    return (void *)(into + sizeof *ip);
}

uint32_t refuse_rst(const struct nq_speaker *speaker, uint8_t *into)
{
    struct nq_tcp *tcp = speaker->family == 4 ? write_ipv4(speaker, into) : write_ipv6(speaker, into);
    *tcp = (struct nq_tcp){ .source = htons(speaker->source_port), .destination = htons(speaker->destination_port),
                            .seq = htonl(speaker->seq), .ack = htonl(speaker->ack), .offset = 5 << 4,
                            .flags = NQ_RST | NQ_ACK };
    struct nq_packet packet = { .data = into, .len = (uint32_t)((uint8_t *)(tcp + 1) - into) };
    struct nq_view view;
    packet_view(&view, &packet);
    packet_checksum_write(&view);
    return packet.len;
}
