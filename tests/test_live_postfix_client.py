"""Postfix as a client outside: what it says to a server behind the gateway depends on the greeting that it reads."""
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from live_mail import RECIPIENT, relaying_clients
from mail_lab import SENDER, guarded, live_lab, records, stop

from nfqguard.lab.postfix import Postfix
from nfqguard.lab.recorder import Recorder
from nfqguard.lab.topology import Lab

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

ASA_BANNER = """\
[policies.asa-banner]
extends = "modern"
mask-banner = "asa"
"""
OPPORTUNISTIC = {"smtp_tls_policy_maps": "", "smtp_tls_security_level": "may"}


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[Lab, Postfix, Postfix]]:
    with live_lab() as lab, relaying_clients(lab, OPPORTUNISTIC) as (client, _):
        server = Postfix(lab, secure=True)
        server.start()
        yield lab, client, server


def _said(ends: tuple[Lab, Postfix, Postfix], policy: str, extra: str = "") -> tuple[bytes, bytes, list[str]]:
    """Send a message; the greeting that the client read, what it said before TLS, and the matches that were told."""
    lab, client, server = ends
    before = len(server.messages())
    with guarded(lab, policy, extra) as guard, Recorder(lab.client) as recorder:
        client.run(["/usr/sbin/sendmail", "-i", "-f", SENDER, RECIPIENT], input="Subject: hello\n\nhello\n")
        server.await_messages(before + 1)
        first = recorder.conversations()[0]
        seen = recorder.wait(first.client[1])
        stop(guard)
        matches = [str(each["nfqguard"].get("match")) for each in records(guard, "smtp")]
    heard, said = bytes(seen.to_client.octets), bytes(seen.to_server.octets)
    return heard.partition(b"\n")[0], said.partition(b"\x16\x03")[0], matches


def test_under_modern_postfix_says_ehlo_and_starttls(ends: tuple[Lab, Postfix, Postfix]) -> None:
    greeting, said, matches = _said(ends, "modern")
    assert greeting == b"220 mail.inside.example ESMTP *******\r"
    assert said == b"EHLO client.outside.example\r\nSTARTTLS\r\n"
    assert "mask-banner" in matches


def test_a_greeting_of_stars_makes_postfix_fall_back(ends: tuple[Lab, Postfix, Postfix]) -> None:
    """The control: with ASA's stars Postfix takes the server for a PIX (smtp_pix_workarounds): no TLS."""
    greeting, said, _ = _said(ends, "asa-banner", ASA_BANNER)
    assert greeting.startswith(b"220 ****") and b"ESMTP" not in greeting
    assert said.startswith(b"HELO client.outside.example\r\nMAIL FROM:<carol@outside.example>")
    assert b"STARTTLS" not in said and b"EHLO" not in said and said.endswith(b"QUIT\r\n")
