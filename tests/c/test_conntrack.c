/*
 * test_conntrack.c - what holds without a kernel that answers. The questions themselves are tested through the gateway.
 */
#include <errno.h>

#include "harness.h"
#include "wire.h"

TEST(where_conntrack_cannot_be_asked_the_packet_is_tracked_as_it_is)
{
    static struct nq_injector injector;
    struct nq_tuple tuple = { .family = 4, .address = { { 10, 0, 0, 1 }, { 10, 0, 0, 2 } }, .port = { 1, 2 } };
    struct nq_tuple before = tuple;
    injector_init(&injector);
    CHECK_EQUAL(conntrack_judge(&injector.conntrack, &tuple, TELL_LIBERAL), TRACKING_UNASKED);
    CHECK_OCTETS(&tuple, sizeof tuple, &before, sizeof before);
}

TEST(without_a_mark_nothing_is_opened_and_nothing_sent)
{
    static struct nq_injector injector;
    struct nq_speaker speaker = { .family = 4, .source_port = 25, .destination_port = 40000 };
    uint8_t packet[NQ_OURS_OCTETS];
    uint32_t len = refuse_rst(&speaker, packet);
    CHECK_EQUAL(injector_open(&injector, 0), 0);
    CHECK_EQUAL(injector.conntrack.fd, -1);
    CHECK_EQUAL(injector_send(&injector, packet, len), -ENOTCONN);
    CHECK_EQUAL(injector_send(&injector, packet, len - 1), -EINVAL);
    packet[9] = 17;
    CHECK_EQUAL(injector_send(&injector, packet, len), -EINVAL);
    injector_close(&injector);
}
