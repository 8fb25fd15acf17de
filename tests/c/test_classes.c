/*
 * test_classes.c - which policy a connection gets: the lists one by one, their order, and what is refused.
 */
#include <arpa/inet.h>

#include "harness.h"
#include "nq.h"

static struct nq_policy otherwise, first, second;
static char error[NQ_ERROR_MAX];

static struct nq_network network(const char *prefix, uint32_t bits)
{
    struct nq_network made = { .family = strchr(prefix, ':') ? 6 : 4, .bits = bits };
    CHECK_EQUAL(inet_pton(made.family == 4 ? AF_INET : AF_INET6, prefix, made.prefix), 1);
    return made;
}

/* From `client` to `server`. */
static struct nq_speaker opening(const char *client, const char *server, uint16_t port)
{
    struct nq_network from = network(client, 0), to = network(server, 0);
    struct nq_speaker made = { .family = (uint8_t)from.family, .source_port = 40000, .destination_port = port };
    packet_address(made.source, from.prefix, made.family);
    packet_address(made.destination, to.prefix, made.family);
    return made;
}

static const struct nq_policy *chosen(const struct nq_class_spec *specs, uint32_t count, struct nq_speaker opening)
{
    struct nq_classes *classes = nq_classes_new(specs, count, &otherwise, error);
    CHECK(classes != NULL);
    const struct nq_policy *policy = classes_choose(classes, &opening, 3, 4);
    const struct nq_policy *found = policy->exempt ? NULL : policy;
    CHECK(classes_otherwise(classes) == &otherwise);
    nq_classes_free(classes);
    return found;
}

TEST(a_network_holds_what_begins_with_its_bits)
{
    static const struct { const char *prefix; uint32_t bits; const char *client; bool within; } rows[] = {
        { "10.0.0.0", 8, "10.255.0.1", true },      { "10.0.0.0", 8, "11.0.0.1", false },
        { "10.16.0.0", 12, "10.31.255.255", true }, { "10.16.0.0", 12, "10.32.0.0", false },
        { "192.0.2.128", 25, "192.0.2.128", true }, { "192.0.2.128", 25, "192.0.2.127", false },
        { "192.0.2.7", 32, "192.0.2.7", true },     { "192.0.2.7", 32, "192.0.2.6", false },
        { "0.0.0.0", 0, "255.255.255.255", true },  { "0.0.0.0", 0, "2001:db8::1", false },
        { "::", 0, "2001:db8::1", true },           { "::", 0, "192.0.2.7", false },
        { "2001:db8::", 33, "2001:db8:7fff::1", true }, { "2001:db8::", 33, "2001:db8:8000::1", false },
        { "2001:db8::1", 128, "2001:db8::1", true },    { "2001:db8::1", 128, "2001:db8::2", false },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct nq_network clients = network(rows[i].prefix, rows[i].bits);
        struct nq_class_spec in = { .name = "in", .policy = &first, .clients = &clients, .client_count = 1 };
        const char *server = strchr(rows[i].client, ':') ? "2001:db8:9::9" : "198.51.100.9";
        harness_row("%s in %s/%u", rows[i].client, rows[i].prefix, rows[i].bits);
        CHECK((chosen(&in, 1, opening(rows[i].client, server, 25)) == &first) == rows[i].within);
    }
}

TEST(everything_that_is_asked_for_must_fit)
{
    struct nq_network clients[] = { network("10.0.0.0", 8), network("172.16.0.0", 12) };
    struct nq_network servers = network("198.51.100.0", 24), inside = network("198.51.100.0", 25);
    const uint16_t ports[] = { 25, 587 };
    const uint32_t in[] = { 9, 3 }, out[] = { 4 }, elsewhere[] = { 5, 6 };
    struct nq_class_spec spec = {
        .name = "all", .policy = &first, .clients = clients, .client_count = 2, .servers = &servers, .server_count = 1,
        .inside = &inside, .inside_count = 1, .direction = NQ_INBOUND, .ports = ports, .port_count = 2,
        .in_ifindexes = in, .in_count = 2, .out_ifindexes = out, .out_count = 1,
    };
    CHECK(chosen(&spec, 1, opening("172.31.0.1", "198.51.100.1", 587)) == &first);
    CHECK(chosen(&spec, 1, opening("172.32.0.1", "198.51.100.1", 587)) == &otherwise);
    CHECK(chosen(&spec, 1, opening("172.31.0.1", "198.51.101.1", 587)) == &otherwise);
    CHECK(chosen(&spec, 1, opening("172.31.0.1", "198.51.100.200", 587)) == &otherwise);
    CHECK(chosen(&spec, 1, opening("172.31.0.1", "198.51.100.1", 26)) == &otherwise);
    CHECK(chosen(&spec, 1, opening("198.51.100.1", "172.31.0.1", 25)) == &otherwise);
    spec.in_ifindexes = elsewhere;
    CHECK(chosen(&spec, 1, opening("172.31.0.1", "198.51.100.1", 587)) == &otherwise);
    spec.in_ifindexes = in;
    spec.out_ifindexes = elsewhere;
    CHECK(chosen(&spec, 1, opening("172.31.0.1", "198.51.100.1", 587)) == &otherwise);
}

TEST(a_direction_is_across_the_border_of_what_is_inside)
{
    struct nq_network inside[] = { network("10.0.0.0", 8), network("2001:db8::", 32) };
    static const struct { const char *client, *server; uint32_t direction; } rows[] = {
        { "10.0.0.1", "198.51.100.1", NQ_OUTBOUND },     { "198.51.100.1", "10.0.0.1", NQ_INBOUND },
        { "2001:db8::1", "2001:db9::1", NQ_OUTBOUND },   { "2001:db9::1", "2001:db8::1", NQ_INBOUND },
        { "10.0.0.1", "10.0.0.2", NQ_EITHER_WAY },       { "198.51.100.1", "203.0.113.1", NQ_EITHER_WAY },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (uint32_t asked = NQ_EITHER_WAY; asked <= NQ_OUTBOUND; asked++) {
            struct nq_class_spec spec = { .name = "in", .policy = &first, .inside = inside, .inside_count = 2, .direction = asked };
            bool fits = asked == NQ_EITHER_WAY || asked == rows[i].direction;
            harness_row("%s to %s, %u", rows[i].client, rows[i].server, asked);
            CHECK((chosen(&spec, 1, opening(rows[i].client, rows[i].server, 25)) == &first) == fits);
        }
}

TEST(the_first_class_that_fits_decides)
{
    struct nq_network one = network("10.1.0.0", 16), all = network("10.0.0.0", 8);
    struct nq_class_spec specs[] = {
        { .name = "exempt", .clients = &one, .client_count = 1 },
        { .name = "narrow", .policy = &first, .clients = &one, .client_count = 1 },
        { .name = "wide", .policy = &second, .clients = &all, .client_count = 1 },
    };
    CHECK(chosen(specs, 3, opening("10.1.2.3", "198.51.100.1", 25)) == NULL);
    CHECK(chosen(specs + 1, 2, opening("10.1.2.3", "198.51.100.1", 25)) == &first);
    CHECK(chosen(specs, 3, opening("10.2.2.3", "198.51.100.1", 25)) == &second);
    CHECK(chosen(specs, 3, opening("11.2.2.3", "198.51.100.1", 25)) == &otherwise);
    CHECK(chosen(specs, 0, opening("10.1.2.3", "198.51.100.1", 25)) == &otherwise);
}

TEST(what_cannot_be_is_refused_with_its_name)
{
    struct nq_network wrong[] = { network("10.0.0.0", 33), network("2001:db8::", 129), network("10.0.0.1", 8), { .family = 5 } };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct nq_class_spec spec = { .name = "partners", .clients = &wrong[i], .client_count = 1 };
        harness_row("row %zu", i);
        error[0] = '\0';
        CHECK(nq_classes_new(&spec, 1, &otherwise, error) == NULL);
        CHECK(strstr(error, "class partners: ") == error);
    }
    CHECK(nq_classes_new(NULL, 1025, &otherwise, error) == NULL);
    CHECK_TEXT(error, "1025 classes are too many");
    nq_classes_free(NULL);
}
