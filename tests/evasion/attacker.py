"""A userland TCP that takes the steps of a case: it acknowledges what comes, sends what it is told, repeats nothing."""
from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from evasion.case import Answer, Case, Forge, Fragments, Harm, Hear, Pause, Put, Restart, Step
from evasion.link import Link
from evasion.packet import FORGED, MASK, Ends, Received, fragments, whole

FIN, SYN, RST, ACK = 1, 2, 4, 16
PATIENCE = 1.5
"""Seconds to wait for an answer. A server's own retransmission takes 0.2 to 1 s."""
FIRST_TIMESTAMP = 1_000_000


class Attacker:
    """One attempt, from one port of the attacker's address."""

    def __init__(self, link: Link, case: Case, ends: Ends, victim: Victim) -> None:
        self._link, self._case, self._ends, self._victim = link, case, ends, victim
        self._isn = random.getrandbits(32) if case.isn is None else case.isn
        self._timestamp = FIRST_TIMESTAMP
        self._news = asyncio.Event()
        self._end = 0
        self._clear()
        link.listen(ends.version, ends.source_port, self._take)

    def _clear(self) -> None:
        self.opened = False
        self.heard = bytearray()
        self._peer_isn = self._next = self._echo = 0

    async def attack(self) -> None:
        """Take all steps. An answer that does not come is no failure: then the steps go on without it."""
        for step in (*self._case.opening, *self._case.steps):
            await self._step(step)

    def leave(self) -> None:
        """A RST where the stream may stand, so that nobody keeps the connection."""
        for seq in {self._isn + 1, self._isn + 1 + self._end}:
            self._link.send(whole(self._ends, Put(flags="RA"), seq, self._next))

    async def _step(self, step: Step) -> None:
        match step:
            case Put():
                self._put(step)
            case Fragments():
                self._fragments(step)
            case Forge():
                self._forge(step)
            case Harm():
                self._victim.harm(step)
            case Answer():
                await self._until(lambda: self.opened)
            case Hear(count):
                await self._until(lambda: replies(self.heard) >= count)
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Restart(isn_step):
                self._isn += isn_step
                self._clear()

    async def _until(self, condition: object) -> None:
        assert callable(condition)
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not condition():
            self._news.clear()
            left = deadline - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except TimeoutError:
                return

    def _put(self, put: Put) -> None:
        seq = self._isn + 1 + put.at
        ack = (self._next + put.ack if "A" in put.flags else 0) & MASK
        self._end = max(self._end, min(put.at + len(put.payload), 1 << 16))
        self._link.send(whole(self._ends, self._stamped(put), seq & MASK, ack))

    def _stamped(self, put: Put) -> Put:
        if put.timestamp is None and not self._case.timestamps:
            return put
        self._timestamp += 10
        value = self._timestamp if put.timestamp is None else put.timestamp
        option = b"\x01\x01\x08\x0a" + value.to_bytes(4, "big") + self._echo.to_bytes(4, "big")
        return replace(put, options=option + put.options)

    def _fragments(self, what: Fragments) -> None:
        self._end = max(self._end, what.at + len(what.payload))
        number = random.getrandbits(16)
        for packet in fragments(self._ends, what, (self._isn + 1 + what.at) & MASK, self._next, number):
            self._link.send(packet)

    def _forge(self, forged: Forge) -> None:
        back = self._ends.back()
        ends = back if forged.as_public else replace(back, source=self._ends.inside)
        put = Put(forged.payload, flags=forged.flags, window=forged.window)
        self._link.send(whole(ends, put, (self._next + forged.at) & MASK, (self._isn + 1 + forged.ack) & MASK, FORGED))

    def _take(self, got: Received) -> None:
        if got.forged or got.source_port != 25 or got.destination != self._ends.source or got.flags & RST:
            return
        self._echo = got.timestamp or self._echo
        if got.flags & SYN and not self.opened and got.flags & ACK:
            self._peer_isn, self._next, self.opened = got.seq, (got.seq + 1) & MASK, True
        elif self.opened and got.seq == self._next:
            self.heard += got.payload
            self._next = got.end
        self._news.set()
        if self.opened and (got.payload or got.flags & FIN):
            acknowledgement = self._stamped(Put(flags="A"))
            self._link.send(whole(self._ends, acknowledgement, (self._isn + 1 + self._end) & MASK, self._next))


class Victim:
    """The neighbour's connection as somebody on the link sees it."""

    def __init__(self, link: Link, ends: Ends) -> None:
        self._link, self._ends = link, ends
        self._place = {"client": 0, "server": 0}
        link.listen(ends.version, ends.source_port, self._take)

    def harm(self, forged: Harm) -> None:
        """Forge a segment; the other end's place is what the speaker is believed to acknowledge."""
        other = "server" if forged.speaks == "client" else "client"
        ends = self._ends if forged.speaks == "client" else replace(self._ends.back(), source=self._ends.inside)
        put = Put(forged.payload, flags=forged.flags, checksum=forged.checksum)
        self._link.send(whole(ends, put, (self._place[forged.speaks] + forged.at) & MASK,
                              (self._place[other] + forged.ack) & MASK, FORGED))

    def _take(self, got: Received) -> None:
        if not got.forged:
            self._place["client" if got.destination_port == 25 else "server"] = got.end


def replies(heard: bytes | bytearray) -> int:
    """Complete replies in what the server said: lines with a blank behind the code."""
    return sum(1 for line in bytes(heard).split(b"\r\n")[:-1] if line[3:4] == b" ")


