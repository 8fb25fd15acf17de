/*
 * trace.c - one line for everything that happens, to read a single schedule by.
 */
#include "sim.h"

#include <stdarg.h>
#include <stdio.h>

void trace(struct sim *sim, const char *format, ...)
{
    va_list arguments;
    if (!sim->tracing)
        return;
    va_start(arguments, format);
    printf("%10.3f ms  ", (double)sim->now / 1000);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

static void print_flags(uint8_t flags)
{
    for (int bit = 0; bit < 6; bit++)
        if (flags & 1u << bit)
            putchar("FSRPAU"[bit]);
}

static void print_sack(const struct seen *seen, uint32_t base)
{
    for (uint32_t at = 0; at + 4 <= seen->options_len; at++)
        if (seen->options[at] == 5 && (seen->options[at + 1] & 7) == 2)
            for (uint32_t edge = at + 2; edge + 8 <= at + seen->options[at + 1]; edge += 8)
                printf(" sack %d-%d", (int)(load32(seen->options + edge) - base), (int)(load32(seen->options + edge + 4) - base));
}

void trace_packet(struct sim *sim, const char *where, const uint8_t *octets, uint32_t len)
{
    struct seen seen;
    if (!sim->tracing || !segment_seen(&seen, octets, len))
        return;
    uint32_t tcp = octets[0] >> 4 == 4 ? 20 : 40;
    unsigned from = octets[tcp] == 0 && octets[tcp + 1] == 25 ? SERVER : CLIENT;
    printf("%10.3f ms  %-16s %c ", (double)sim->now / 1000, where, "CS"[from]);
    print_flags(seen.flags);
    printf(" seq %d ack %d win %u len %u", (int)(seen.seq - sim->end[from].iss - 1),
           (int)(seen.ack - sim->end[!from].iss - 1), seen.window, seen.len);
    if (!(seen.flags & NQ_SYN))
        print_sack(&seen, sim->end[!from].iss + 1);
    printf("  \"");
    for (uint32_t i = 0; i < seen.len && i < 160; i++) {
        uint8_t octet = seen.payload[i];
        if (octet == '\r' || octet == '\n')
            printf(octet == '\r' ? "\\r" : "\\n");
        else if (octet < 32 || octet > 126)
            printf("\\x%02x", octet);
        else
            putchar(octet);
    }
    printf("\"\n");
}
