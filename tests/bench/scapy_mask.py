#!/usr/bin/env python3
"""Mask forbidden SMTP commands with NetfilterQueue and scapy: what a user writes in an afternoon.

It follows no stream: no order, no retransmission, no command in two packets. It is here as a measure of speed, for it
does per packet what every such script does: parse with scapy, look, rewrite, let scapy compute the checksums.

    scapy_mask.py [QUEUE]
"""
from __future__ import annotations

import sys

from netfilterqueue import NetfilterQueue
from scapy.layers.inet import IP, TCP

VERBS = {
    b"AUTH", b"DATA", b"EHLO", b"ETRN", b"HELO", b"HELP", b"MAIL", b"NOOP", b"QUIT", b"RCPT", b"RSET", b"SAML", b"SEND",
    b"SOML", b"VRFY",
}
END_OF_DATA = b"\r\n.\r\n"

bodies: dict[tuple[str, int], bytes] = {}
"""The clients that are sending a body, and the last octets of it."""


def from_server(ip: IP) -> None:
    client = (ip.dst, ip[TCP].dport)
    if bytes(ip[TCP].payload).startswith(b"354"):
        bodies[client] = b"\r\n"


def masked(line: bytes) -> bytes:
    text = line.rstrip(b"\r\n")
    words = text.split(None, 1)
    if not words or words[0].upper() in VERBS:
        return line
    return b"X" * len(text) + line[len(text):]


def from_client(ip: IP) -> bytes | None:
    """The payload to send on instead, or None where it may stay."""
    client = (ip.src, ip[TCP].sport)
    load = bytes(ip[TCP].payload)
    if not load:
        return None
    if client in bodies:
        tail = (bodies[client] + load)[-len(END_OF_DATA):]
        bodies[client] = tail
        if tail == END_OF_DATA:
            del bodies[client]
        return None
    wanted = b"".join(masked(line) for line in load.splitlines(keepends=True))
    return wanted if wanted != load else None


def inspect(packet) -> None:  # type: ignore[no-untyped-def]
    ip = IP(packet.get_payload())
    if TCP in ip:
        if ip[TCP].dport == 25:
            wanted = from_client(ip)
            if wanted is not None:
                ip[TCP].remove_payload()
                ip = ip / wanted
                del ip.len, ip.chksum, ip[TCP].chksum
                packet.set_payload(bytes(ip))
        else:
            from_server(ip)
    packet.accept()


def main() -> None:
    queue = NetfilterQueue()
    queue.bind(int(sys.argv[1]) if len(sys.argv) > 1 else 0, inspect)
    try:
        queue.run()
    except KeyboardInterrupt:
        pass
    finally:
        queue.unbind()


if __name__ == "__main__":
    main()
