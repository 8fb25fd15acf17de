/*
 * classes.c - which policy a connection gets, if any, by what its SYN shows: networks, port, interfaces. An ordered list, and the
 * first hit decides, as an operator reads it. It is asked once for each connection, so a walk will do; a trie over the networks
 * was rejected.
 *
 * The exempt have a policy, too, with nothing in it but that: each flow has one, and its record tells its name.
 */
#include <stdio.h>
#include <stdlib.h>

#include "nq.h"

enum { CLASSES = 1024, ENTRIES = 65536 };

struct networks {
    struct nq_network *list;
    uint32_t count;
};

struct numbers {
    uint32_t *list;
    uint32_t count;
};

struct class {
    const struct nq_policy *policy;
    uint32_t direction;         /* enum nq_direction */
    struct networks clients, servers, inside;
    struct numbers ports, in, out;
};

struct nq_classes {
    struct nq_policy exempt;
    const struct nq_policy *otherwise;
    uint32_t count;
    struct class classes[];
};

/* ---- making ---- */

static bool refused(char *error, const char *name, const char *why)
{
    snprintf(error, NQ_ERROR_MAX, "class %.40s: %s", name, why);
    return false;
}

static bool bit_at(const uint8_t *octets, uint32_t bit) { return octets[bit / 8] & (0x80 >> bit % 8); }

static bool network_valid(const struct nq_network *network)
{
    uint32_t all = network->family == 4 ? 32 : 128;
    if ((network->family != 4 && network->family != 6) || network->bits > all)
        return false;
    for (uint32_t bit = network->bits; bit < all; bit++)
        if (bit_at(network->prefix, bit))
            return false;
    return true;
}

static bool take_networks(struct networks *into, const struct nq_network *from, uint32_t count, const char *name, char *error)
{
    if (count > ENTRIES)
        return refused(error, name, "a list of networks is too long");
    into->list = calloc(count + 1, sizeof *into->list);
    if (!into->list)
        return refused(error, name, "no memory for its networks");
    for (; into->count < count; into->count++) {
        if (!network_valid(&from[into->count]))
            return refused(error, name, "a network has too many bits, or bits behind its prefix");
        into->list[into->count] = from[into->count];
    }
    return true;
}

static bool take_numbers(struct numbers *into, const uint32_t *from, uint32_t count, const char *name, char *error)
{
    if (count > ENTRIES)
        return refused(error, name, "a list of interfaces is too long");
    into->list = calloc(count + 1, sizeof *into->list);
    if (!into->list)
        return refused(error, name, "no memory for its interfaces");
    for (; into->count < count; into->count++)
        into->list[into->count] = from[into->count];
    return true;
}

static bool take_ports(struct numbers *into, const uint16_t *from, uint32_t count, const char *name, char *error)
{
    if (count > ENTRIES)
        return refused(error, name, "its list of ports is too long");
    into->list = calloc(count + 1, sizeof *into->list);
    if (!into->list)
        return refused(error, name, "no memory for its ports");
    for (; into->count < count; into->count++)
        into->list[into->count] = from[into->count];
    return true;
}

static bool take_class(struct nq_classes *classes, const struct nq_class_spec *spec, char *error)
{
    struct class *class = &classes->classes[classes->count++];
    const char *name = spec->name;
    class->policy = spec->policy ? spec->policy : &classes->exempt;
    class->direction = spec->direction;
    return take_networks(&class->clients, spec->clients, spec->client_count, name, error) &&
           take_networks(&class->servers, spec->servers, spec->server_count, name, error) &&
           take_networks(&class->inside, spec->inside, spec->inside_count, name, error) &&
           take_ports(&class->ports, spec->ports, spec->port_count, name, error) &&
           take_numbers(&class->in, spec->in_ifindexes, spec->in_count, name, error) &&
           take_numbers(&class->out, spec->out_ifindexes, spec->out_count, name, error);
}

static void make_exempt(struct nq_policy *policy)
{
    snprintf(policy->name, sizeof policy->name, "exempt");
    policy->exempt = policy->offload = true;
    memset(policy->exceptions, NQ_ANSWER_PASS, sizeof policy->exceptions);
}

struct nq_classes *nq_classes_new(const struct nq_class_spec *specs, uint32_t count, const struct nq_policy *otherwise,
                                  char *error)
{
    struct nq_classes *classes = count <= CLASSES ? calloc(1, sizeof *classes + count * sizeof *classes->classes) : NULL;
    if (!classes) {
        snprintf(error, NQ_ERROR_MAX, count <= CLASSES ? "no memory for %u classes" : "%u classes are too many", count);
        return NULL;
    }
    classes->otherwise = otherwise;
    make_exempt(&classes->exempt);
    for (uint32_t i = 0; i < count; i++)
        if (!take_class(classes, &specs[i], error)) {
            nq_classes_free(classes);
            return NULL;
        }
    return classes;
}

void nq_classes_free(struct nq_classes *classes)
{
    for (uint32_t i = 0; classes && i < classes->count; i++) {
        struct class *class = &classes->classes[i];
        free(class->clients.list);
        free(class->servers.list);
        free(class->inside.list);
        free(class->ports.list);
        free(class->in.list);
        free(class->out.list);
    }
    free(classes);
}

/* ---- choosing ---- */

static bool within(const struct nq_network *network, uint8_t family, const uint8_t address[16])
{
    const uint8_t *octets = family == 4 ? address + 12 : address;
    uint32_t whole = network->bits / 8, rest = network->bits % 8;
    if (network->family != family || memcmp(network->prefix, octets, whole) != 0)
        return false;
    return !rest || ((network->prefix[whole] ^ octets[whole]) & (0xff00 >> rest & 0xff)) == 0;
}

static bool within_any(const struct networks *networks, uint8_t family, const uint8_t address[16])
{
    for (uint32_t i = 0; i < networks->count; i++)
        if (within(&networks->list[i], family, address))
            return true;
    return false;
}

static bool fits(const struct networks *networks, uint8_t family, const uint8_t address[16])
{
    return !networks->count || within_any(networks, family, address);
}

static bool goes(const struct class *class, const struct nq_speaker *client)
{
    bool client_inside = within_any(&class->inside, client->family, client->source);
    bool server_inside = within_any(&class->inside, client->family, client->destination);
    switch (class->direction) {
    case NQ_INBOUND: return server_inside && !client_inside;
    case NQ_OUTBOUND: return client_inside && !server_inside;
    default: return true;
    }
}

static bool asks_for(const struct numbers *numbers, uint32_t value)
{
    for (uint32_t i = 0; i < numbers->count; i++)
        if (numbers->list[i] == value)
            return true;
    return !numbers->count;
}

const struct nq_policy *classes_choose(const struct nq_classes *classes, const struct nq_speaker *client, uint32_t in,
                                       uint32_t out)
{
    for (uint32_t i = 0; i < classes->count; i++) {
        const struct class *class = &classes->classes[i];
        if (asks_for(&class->ports, client->destination_port) && asks_for(&class->in, in) && asks_for(&class->out, out) &&
            fits(&class->clients, client->family, client->source) &&
            fits(&class->servers, client->family, client->destination) && goes(class, client))
            return class->policy;
    }
    return classes->otherwise;
}

const struct nq_policy *classes_otherwise(const struct nq_classes *classes) { return classes->otherwise; }
