/*
 * tls_hello.c - does a stream go on with a TLS handshake? Only the first record's beginning is looked at: a handshake record of
 * some version of TLS that holds a hello. Nothing is verified, for nothing depends on it but whether two ends that agreed to TLS
 * seem to have begun it: those that did not are watched on.
 */
#include "nq.h"

enum { HANDSHAKE = 22, MAJOR = 3 };     /* RFC 8446, 5.1: type, version (2), length (2), then the handshake's type */

void hello_take(struct nq_hello *hello, uint8_t type, const uint8_t *at, const uint8_t *end)
{
    const struct { uint8_t low, high; } record[NQ_HELLO_OCTETS] = {
        { HANDSHAKE, HANDSHAKE }, { MAJOR, MAJOR }, { 0, 4 }, { 0, 0xff }, { 0, 0xff }, { type, type },
    };
    for (; at < end && !hello->wrong && hello->octets < NQ_HELLO_OCTETS; at++) {
        hello->wrong = *at < record[hello->octets].low || *at > record[hello->octets].high;
        hello->octets++;
    }
}

bool hello_seen(const struct nq_hello *hello) { return !hello->wrong && hello->octets == NQ_HELLO_OCTETS; }
