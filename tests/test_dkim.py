"""A signed message that conforms to the RFCs still verifies behind the engine, whatever the policy and the packets.

A signature (RFC 6376) covers header fields and body by hashes: one octet more, fewer or other breaks it. dkimpy signs
and verifies; the keys are made anew for each run, and what DNS would say of them is told to the verifier directly.
"""
from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from nacl.signing import SigningKey
from wire import CLIENT, SERVER, Dialogue, play, preset, preset_spec

import nfqguard.policy.presets
from nfqguard.engine import Policy

PRESETS = sorted(path.stem for path in Path(nfqguard.policy.presets.__path__[0]).glob("*.toml"))
STEPS = [0, 1, 2, 7, 64, 536, 1460]
"""Octets of a packet; 0: each thing said is one packet."""

DOMAIN = b"example.org"
SIGNED = [b"from", b"to", b"subject", b"date", b"message-id", b"references", b"mime-version", b"content-type"]
CANONICALIZATIONS = [(header, body) for header in (b"relaxed", b"simple") for body in (b"relaxed", b"simple")]
ALGORITHMS = [b"rsa-sha256", b"ed25519-sha256"]
SIGNATURES = [(algorithm, forms) for algorithm in ALGORITHMS for forms in CANONICALIZATIONS]
DATA = b"DATA\r\n"

REFERENCES = b"\r\n ".join(b"<%04d.%s@mail.example.org>" % (number, b"x" * 50) for number in range(40))
HEADER = b"\r\n".join([
    b"From: \"Joe  Example\" <joe@example.org>",
    b"To: Ann <ann@example.net>,\r\n\tBob <bob@example.net>,\r\n    \"C. | D.\" <cd@example.net>",
    b"Subject: Quarterly   figures,\r\n and a second  line of the subject,\r\n\tand a third \t ",
    b"Date: Mon, 02 Jun 2025 10:00:00 +0000", b"Message-ID: <1.2.3@mail.example.org>", b"References: " + REFERENCES,
    b"MIME-Version: 1.0", b"Content-Type: multipart/mixed;\r\n boundary=\"=_b\"", b"X-Long: " + b"y" * 990,
])
BODY = b"\r\n".join([
    b"--=_b", b"Content-Type: text/plain; charset=utf-8", b"Content-Transfer-Encoding: 8bit", b"",
    "Grüße,  with   blanks and\ttabs ".encode(), b"z" * 998, b".", b"..", b".leading", b"...", b". ", b"", b"  ",
    b"DATA", b"QUIT", b"MAIL FROM:<x@example.com>", b"STARTTLS", b"250-XXXX", b"From here on", b"--=_b",
    b"Content-Type: application/octet-stream; name=\"figures.bin\"", b"Content-Transfer-Encoding: base64", b"",
    base64.encodebytes(bytes(range(256)) * 20).replace(b"\n", b"\r\n") + b"--=_b--", b".", b"", b"", b"",
])


@cache
def keys() -> dict[bytes, tuple[bytes, bytes]]:
    """Algorithm -> (what the signer has, what DNS says)."""
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    seed = SigningKey.generate()
    return {
        b"rsa-sha256": (pem, b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)),
        b"ed25519-sha256": (base64.b64encode(bytes(seed)),
                            b"v=DKIM1; k=ed25519; p=" + base64.b64encode(bytes(seed.verify_key))),
    }


def selector(algorithm: bytes) -> bytes:
    return algorithm.partition(b"-")[0]


def record(name: bytes, timeout: float = 5) -> bytes | None:
    """The TXT record of a selector, or None."""
    names = {selector(algorithm) + b"._domainkey." + DOMAIN + b".": record for algorithm, (_, record) in keys().items()}
    return names.get(name)


@cache
def signed() -> bytes:
    """The message with one signature of each algorithm and canonicalization; the first of SIGNATURES stands first."""
    message = HEADER + b"\r\n\r\n" + BODY
    signatures = [
        dkim.sign(message, selector(algorithm), DOMAIN, keys()[algorithm][0], canonicalize=forms,
                  signature_algorithm=algorithm, include_headers=SIGNED)
        for algorithm, forms in SIGNATURES
    ]
    return b"".join(signatures) + message


def valid(message: bytes) -> list[bool]:
    """For each of SIGNATURES: does it verify?"""
    return [verifies(message, index) for index in range(len(SIGNATURES))]


def verifies(message: bytes, index: int) -> bool:
    try:
        return bool(dkim.DKIM(message).verify(index, dnsfunc=record))
    except dkim.ValidationError:        # of the body's hash; a wrong signature returns False
        return False


def stuffed(message: bytes) -> bytes:
    """As it goes over the wire (RFC 5321, 4.5.2), its end included."""
    lines = message.removesuffix(b"\r\n").split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines) + b"\r\n.\r\n"


def received(stream: bytes) -> bytes:
    """The message in what a server has read."""
    begin = stream.index(DATA) + len(DATA)
    lines = stream[begin:stream.index(b"\r\n.\r\n", begin)].split(b"\r\n")
    return b"\r\n".join(line.removeprefix(b".") for line in lines) + b"\r\n"


def dialogue(message: bytes, extended: bool) -> Dialogue:
    """A session that delivers the message. What it begins with is the client's choice, which knows the policy."""
    hello = [(CLIENT, b"EHLO joe.example.org\r\n"), (SERVER, b"250-mail.example.net\r\n250 8BITMIME\r\n")]
    old = [(CLIENT, b"HELO joe.example.org\r\n"), (SERVER, b"250 mail.example.net\r\n")]
    return [
        (SERVER, b"220 mail.example.net ESMTP\r\n"), *(hello if extended else old),
        (CLIENT, b"MAIL FROM:<joe@example.org>\r\n"), (SERVER, b"250 2.1.0 Ok\r\n"),
        (CLIENT, b"RCPT TO:<ann@example.net>\r\n"), (SERVER, b"250 2.1.5 Ok\r\n"),
        (CLIENT, DATA), (SERVER, b"354 Go on\r\n"), (CLIENT, stuffed(message)), (SERVER, b"250 2.0.0 Ok: queued\r\n"),
        (CLIENT, b"QUIT\r\n"), (SERVER, b"221 2.0.0 Bye\r\n"),
    ]


def delivered(message: bytes, policy: Policy, extended: bool, step: int) -> bytes:
    """The message as the server reads it; the session must have gone its way."""
    wire = play(dialogue(message, extended), policy, step=step)
    assert wire.counter("messages") == 1 and wire.counter("commands-masked") == 0
    assert wire.dropped == [] and not any(end.reset for end in wire.ends)
    assert wire.at_server.endswith(b"\r\n.\r\nQUIT\r\n")
    return received(wire.at_server)


def test_the_message_is_what_it_is_meant_to_be() -> None:
    message = signed()
    lines = message.split(b"\r\n")
    assert message.count(b"\r") == message.count(b"\n") == len(lines) - 1 and b"\0" not in message
    assert max(map(len, lines)) == 998 == len(b"X-Long: " + b"y" * 990)
    assert sum(line.startswith(b".") for line in lines) == 6 and b"\xc3\xbc" in message
    assert len(REFERENCES) > 2000
    assert received(DATA + stuffed(message)) == message


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_signed_message_still_verifies(name: str, step: int) -> None:
    spec = preset_spec(name)
    arrived = delivered(signed(), preset(name), "EHLO" in spec.verbs or not spec.mask_verbs, step)
    assert valid(arrived) == [True] * len(SIGNATURES)
    assert arrived == signed()


@pytest.mark.parametrize("step", STEPS)
def test_a_header_line_put_before_it_breaks_no_signature(step: int) -> None:
    """RFC 6376, 5.4: fields that are not signed may be added."""
    policy = Policy(preset_spec("ios-esmtp", insert_header="X-Inspected: yes"))
    arrived = delivered(signed(), policy, True, step)
    assert arrived == b"X-Inspected: yes\r\n" + signed()
    assert valid(arrived) == [True] * len(SIGNATURES)


# ---- the verifier does look

CHANGED = [b"Joe  Example", b"ann@example.net", b"third", b"02 Jun", b"<1.2.3", b"<0039.", b"=_b\"", b"with   blanks",
           b"zzzz", b"\r\n..\r\n", b"leading", b"figures.bin", b"--=_b--"]


@pytest.mark.parametrize("part", CHANGED)
def test_one_changed_octet_breaks_every_signature(part: bytes) -> None:
    message = signed()
    at = message.index(part) + len(part) - 2
    assert chr(message[at]).strip() or part == b"\r\n..\r\n"
    broken = message[:at] + bytes([message[at] ^ 1]) + message[at + 1:]
    assert valid(broken) == [False] * len(SIGNATURES)


def test_each_canonicalization_is_one_of_its_own() -> None:
    """White space at a line's end: relaxed does not see it, simple does."""
    body = signed().replace(b"leading\r\n", b"leading \r\n")
    assert valid(body) == [form == b"relaxed" for _, (_, form) in SIGNATURES]
    header = signed().replace(b"Message-ID: <", b"Message-ID:  <")
    assert valid(header) == [form == b"relaxed" for _, (form, _) in SIGNATURES]


def test_what_a_policy_masks_in_a_message_breaks_it() -> None:
    """An engine that took message data for commands would be found out: the message holds what is masked then."""
    line = b"STARTTLS\r\n"
    wire = play([(SERVER, b"220 x\r\n"), (CLIENT, b"EHLO a\r\n"), (SERVER, b"250 x\r\n"), (CLIENT, line)], "asa")
    masked = wire.at_server[-len(line):]
    assert masked != line
    assert valid(signed().replace(line, masked)) == [False] * len(SIGNATURES)


def test_without_the_key_nothing_verifies() -> None:
    verifier = dkim.DKIM(signed())
    assert not verifier.verify(0, dnsfunc=lambda name, timeout=5: None)
