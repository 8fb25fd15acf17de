"""The attacker's link: whole frames at the client's interface, sent and heard by AF_PACKET.

The attacker's addresses belong to no kernel, so no kernel answers for them with a RST; the gateway finds them by a
permanent neighbour entry. What the client's own kernel sends and receives is heard, too, as by anybody on the link.
"""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from evasion.packet import Received, received
from nfqguard.lab.topology import Host, Lab

ADDRESSES = {4: "172.22.1.66", 6: "fd00:22::66"}
ETHER_TYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
ETH_P_ALL = 3
RECEIVE_BUFFER = 8 << 20
SO_RCVBUFFORCE = 33
"""asm-generic/socket.h; Python has no name for it."""
PERMANENT = 0x80
"""NUD_PERMANENT of linux/neighbour.h."""

Listener = Callable[[Received], None]


class Link:
    """Sends packets as whoever one likes, and hands each TCP segment heard to who has asked for its port."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._listeners: dict[tuple[int, int], Listener] = {}
        own, gateway = (_mac(host, host.device) for host in (lab.client, lab.gateway))
        self._header = gateway + own
        for address in ADDRESSES.values():
            lab.gateway.configure(partial(_settle, address=address, at=own.hex(":"), device=lab.gateway.device))
        self._socket = lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.bind((lab.client.device, ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._socket.setblocking(False)

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def close(self) -> None:
        with suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def send(self, packet: bytes) -> None:
        """Put an IP packet on the wire, to the gateway."""
        self._socket.send(self._header + ETHER_TYPES[packet[0] >> 4] + packet)

    def listen(self, version: int, port: int, listener: Listener) -> None:
        """Hand over segments of that IP version which come to a local port or leave from it."""
        self._listeners[version, port] = listener

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while True:
                frame = self._socket.recv(1 << 16)
                if frame[12:14] in ETHER_TYPES.values():
                    self._deliver(received(frame[14:]))

    def _deliver(self, segment: Received | None) -> None:
        if segment is None:
            return
        port = segment.source_port if segment.destination_port == 25 else segment.destination_port
        listener = self._listeners.get((6 if ":" in segment.source else 4, port))
        if listener is not None:
            listener(segment)


def _settle(stack: Any, address: str, at: str, device: str) -> None:
    """A permanent neighbour entry."""
    stack.neigh("replace", dst=address, lladdr=at, ifindex=stack.link_lookup(ifname=device)[0], state=PERMANENT,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def _mac(host: Host, device: str) -> bytes:
    def find(stack: Any) -> str:
        return str(stack.get_links(ifname=device)[0].get_attr("IFLA_ADDRESS"))

    return bytes.fromhex(host.configure(find).replace(":", ""))
