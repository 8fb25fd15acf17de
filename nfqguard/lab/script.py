"""What the demonstration says to the mail server, and what must come of it under the preset `asa`.

What the server must receive is written out here by hand and not computed: the inspection is not asked what is right.
"""
from __future__ import annotations

from dataclasses import dataclass

NOT_RECOGNIZED = b"500 5.5.2 Error: command not recognized\r\n"
"""Postfix's answer to a line of X."""


@dataclass(frozen=True)
class Turn:
    """What the client sends in one go, and what must come of it.

    note      for the reader
    sent      octets the client sends
    received  octets the server must receive for them
    replies   how each reply to it must begin, as the client reads it
    masked    the command lines that must have become X, as events name them
    typed     one octet per packet; otherwise all in one
    """

    note: str
    sent: bytes
    received: bytes
    replies: tuple[bytes, ...]
    masked: tuple[str, ...] = ()
    typed: bool = False


def _legal(note: str, sent: bytes, reply: bytes, typed: bool = False) -> Turn:
    return Turn(note, sent, sent, (reply,), typed=typed)


DIALOGUE = (
    _legal("permitted", b"EHLO client.outside.example\r\n", b"250-mail.inside.example\r\n"),
    Turn("EXPN", b"EXPN root\r\n", b"XXXXXXXXX\r\n", (NOT_RECOGNIZED,), ("EXPN root",)),
    Turn("VERB", b"VERB\r\n", b"XXXX\r\n", (NOT_RECOGNIZED,), ("VERB",)),
    Turn("ONEX", b"ONEX\r\n", b"XXXX\r\n", (NOT_RECOGNIZED,), ("ONEX",)),
    Turn("XEXCH50", b"XEXCH50 20 2\r\n", b"XXXXXXXXXXXX\r\n", (NOT_RECOGNIZED,), ("XEXCH50 20 2",)),
    Turn("a private one", b"XYZZY open sesame\r\n", b"XXXXXXXXXXXXXXXXX\r\n", (NOT_RECOGNIZED,),
         ("XYZZY open sesame",)),
    _legal("HELO typed, a packet each", b"HELO client.outside.example\r\n", b"250 mail.inside.example\r\n", typed=True),
    Turn("EXPN typed: E alone may begin a verb", b"EXPN root\r\n", b"EXXXXXXXX\r\n", (NOT_RECOGNIZED,), ("EXPN root",),
         typed=True),
    Turn("two in a packet, one forbidden", b"NOOP\r\nEXPN staff\r\n", b"NOOP\r\nXXXXXXXXXX\r\n",
         (b"250 2.0.0 Ok\r\n", NOT_RECOGNIZED), ("EXPN staff",)),
    Turn("and the other way round", b"TURN\r\nVRFY alice@inside.example\r\n", b"XXXX\r\nVRFY alice@inside.example\r\n",
         (NOT_RECOGNIZED, b"252 2.0.0 alice@inside.example\r\n"), ("TURN",)),
    _legal("permitted", b"MAIL FROM:<carol@outside.example>\r\n", b"250 2.1.0 Ok\r\n"),
    _legal("permitted", b"RCPT TO:<bob@inside.example>\r\n", b"250 2.1.5 Ok\r\n"),
    _legal("permitted", b"DATA\r\n", b"354 "),
    _legal("message data is no command", b"Subject: a dialogue\r\n\r\nEXPN root\r\n.\r\n", b"250 2.0.0 Ok: queued as "),
    _legal("permitted", b"QUIT\r\n", b"221 2.0.0 Bye\r\n"),
)

GREETING = b"220 mail.inside.example ESMTP Postfix\r\n"
GREETING_MASKED = b"220 *********************************\r\n"
KEYWORDS_MASKED = {b"250-SMTPUTF8\r\n": b"250-XXXXXXXX\r\n", b"250 CHUNKING\r\n": b"250 XXXXXXXX\r\n"}
"""Of the reply to EHLO, what the preset does not know: as the server said it, and as the client must read it."""


def client_view(said: bytes) -> bytes:
    """What the client must read where the server says `said`: greeting and unknown keywords masked, all else as is."""
    lines = said.splitlines(keepends=True)
    masks = {GREETING: GREETING_MASKED, **KEYWORDS_MASKED}
    return b"".join(masks.get(line, line) for line in lines)


SUBJECT = "A message through the gateway"
MESSAGE = f"""\
From: Carol <carol@outside.example>
To: Alice <alice@inside.example>
Subject: {SUBJECT}
Date: Sun, 01 Mar 2026 10:00:00 +0000
Message-ID: <demo@outside.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=us-ascii

Message data is no command: none of these lines may change.

EXPN root
VERB
DEBUG
. a line that begins with a dot
..
.
250-CHUNKING
{"".join(f"{number:4} the quick brown fox jumps over the lazy dog{chr(10)}" for number in range(1, 401))}\
The end.
"""
"""Longer than a packet, with everything in it that an inspection could mistake."""
