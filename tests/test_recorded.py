"""A capture's ends do not hear us: they acknowledge what they were sent when it was taken, and the replay goes on."""
from __future__ import annotations

import pytest
from wire import CLIENT, SERVER, Wire, preset_spec

from nfqguard.engine import Policy

C, S = CLIENT, SERVER


class Capture(Wire):
    """A conversation as it was without us: each end acknowledges all that the other has sent."""

    def __init__(self, policy):
        super().__init__(policy, recorded=1, binding=0)
        self.acknowledge = False

    def spoken(self, side, octets):
        own, peer = self.ends[side], self.ends[1 - side]
        acks = {"ack": peer.isn + 1 + peer.sent}
        self.send(self.segment(side, octets, **acks))
        own.sent += len(octets)
        self.send(self.segment(1 - side, ack=own.isn + 1 + own.sent))


TALK = [
    (S, b"220 mail\r\n"),
    (C, b"EHLO x\r\n"),
    (S, b"250-mail\r\n250-STARTTLS\r\n250 SIZE\r\n"),
    (C, b"MAIL FROM:<a@b>\r\nDATA\r\nSubject: x\r\n\r\nEXPN\r\n.\r\nEXPN b\r\nQUIT\r\n"),
    (S, b"250 ok\r\n354 go\r\n"),
    (S, b"250 queued\r\n500 x\r\n221 bye\r\n"),
]


@pytest.mark.parametrize("policy", ["ios-esmtp", "asa"])
def test_what_waits_leaves_though_it_was_acknowledged_long_ago(policy):
    capture = Capture(policy)
    capture.open()
    for side, octets in TALK:
        capture.spoken(side, octets)
    message = b"Subject: x\r\n\r\nEXPN\r\n.\r\n"
    assert capture.at_server == b"EHLO x\r\nMAIL FROM:<a@b>\r\nDATA\r\n" + message + b"XXXXXX\r\nQUIT\r\n"
    assert capture.at_client.endswith(b"221 bye\r\n") and not capture.dropped


def test_lengths_may_change():
    policy = Policy(preset_spec("asa", banner="text", banner_text="a longer greeting than it was", remove_keywords=True,
                                insert_header="X-Gateway: here"))
    capture = Capture(policy)
    capture.open()
    for side, octets in TALK:
        capture.spoken(side, octets)
    assert b"DATA\r\nX-Gateway: here\r\nSubject: x\r\n" in capture.at_server
    assert capture.at_server.endswith(b"XXXXXX\r\nQUIT\r\n")
    assert capture.at_client.startswith(b"220 a longer greeting than it was\r\n250-mail\r\n250 SIZE\r\n")
    assert not capture.dropped


def test_an_ack_of_what_was_never_seen_stays_beyond():
    capture = Capture("ios-esmtp")
    capture.open()
    capture.spoken(S, b"220 mail\r\n")
    capture.send(capture.segment(S, ack=capture.ends[C].isn + 1 + 500))
    assert capture.counter("drop.ack-beyond") == 1
