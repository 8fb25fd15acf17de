"""What clients do to a mail server: each function is a scenario, for every server that offers what it needs."""
from __future__ import annotations

import base64
import itertools
import random
import ssl

from live_mail import CLIENT_NAME, LOGIN, RECIPIENT, SECURED, V4, V6, Bench, scenario
from mail_lab import SENDER, Smtp

from nfqguard.lab.dialogue import Dialogue
from nfqguard.lab.server import PASSWORD

HEAD = b"""\
From: Carol <carol@outside.example>
To: Alice <alice@inside.example>
Subject: %b
Date: Sun, 01 Mar 2026 10:00:00 +0000
Message-ID: <live@outside.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: %b

"""
TRAPS = b"EXPN root\nVERB\n. a dot\n..\n.\n250-CHUNKING\n354 go ahead\n\nSTARTTLS\nBDAT 10 LAST\nQUIT\n"


def _lines(octets: bytes) -> bytes:
    return octets.replace(b"\n", b"\r\n")


def _message(lines: int = 300) -> bytes:
    """Longer than a packet, with what could be taken for something else; ends of line are LF."""
    fox = b"".join(b"%5d the quick brown fox jumps over the lazy dog\n" % number for number in range(lines))
    return HEAD % (b"a message", b"7bit") + TRAPS + fox + TRAPS


MESSAGE = _message()
EIGHT_BIT = HEAD % (b"eight bits", b"8bit") + "schöne Grüße, καλημέρα, доброе утро\n".encode() * 50 + TRAPS
INTERNATIONAL = HEAD.replace(b"Carol", "Carøl".encode()) % ("Grüße".encode(), b"8bit") + b"a line\n"
INTERNATIONAL_SENDER = "carøl@outside.example"
LARGE_OCTETS = 30_000_000


def _large() -> bytes:
    text = base64.b64encode(random.Random(30).randbytes(LARGE_OCTETS * 3 // 4))
    lines = [text[at:at + 76] for at in range(0, len(text), 76)]
    for number in range(0, len(lines), 1000):
        lines[number] += b"\n" + TRAPS.splitlines()[number // 1000 % 11]
    return HEAD % (b"thirty megabytes", b"7bit") + b"\n".join(lines) + b"\n"


def _insecure() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# ---- Python's smtplib

@scenario()
def smtplib_plain(bench: Bench) -> None:
    with Smtp(bench.client, V4) as smtp:
        smtp.sendmail(SENDER, [RECIPIENT], _lines(MESSAGE))


@scenario(bob=1)
def smtplib_several_messages_and_refusals(bench: Bench) -> None:
    with Smtp(bench.client, V6) as smtp:
        smtp.ehlo()
        codes = [smtp.docmd(*words)[0] for words in (("NOOP", "x"), ("VRFY", "alice"), ("HELP",), ("RSET",))]
        assert all(200 <= code < 600 for code in codes)
        assert smtp.docmd("DATA")[0] in (503, 554)
        assert smtp.docmd("MAIL", "FROM:<>")[0] == 250
        assert smtp.docmd("MAIL", "FROM:<twice@outside.example>")[0] == 503
        assert smtp.docmd("RCPT", "TO:<nobody@elsewhere.example>")[0] >= 400
        assert smtp.docmd("RSET")[0] == 250
        refused = smtp.sendmail(SENDER, [RECIPIENT, "x@elsewhere.example", "bob@inside.example"], _lines(MESSAGE))
        assert list(refused) == ["x@elsewhere.example"]


@scenario("STARTTLS", shows=(b"STARTTLS\r\n",))
def smtplib_starttls(bench: Bench) -> None:
    with Smtp(bench.client, V4) as smtp:
        smtp.starttls(context=_insecure())
        smtp.sendmail(SENDER, [RECIPIENT], _lines(MESSAGE))


@scenario("STARTTLS", "AUTH", shows=(b"STARTTLS\r\n",))
def smtplib_starttls_and_auth(bench: Bench) -> None:
    with Smtp(bench.client, V6) as smtp:
        smtp.starttls(context=_insecure())
        smtp.login(LOGIN, PASSWORD)
        smtp.sendmail(SENDER, [RECIPIENT], _lines(MESSAGE))


@scenario("AUTH", shows=(b"AUTH PLAIN ", b"AUTH LOGIN"))
def smtplib_auth_in_clear(bench: Bench) -> None:
    """A password that is refused, then the right one, in several lines."""
    with Smtp(bench.client, V4) as smtp:
        smtp.ehlo()
        assert smtp.docmd("AUTH", "PLAIN " + base64.b64encode(b"\0alice\0wrong").decode())[0] == 535
        smtp.user, smtp.password = LOGIN, PASSWORD
        assert smtp.auth("LOGIN", smtp.auth_login, initial_response_ok=False)[0] == 235
        smtp.sendmail(SENDER, [RECIPIENT], _lines(MESSAGE))


@scenario("8BITMIME", shows=(b"BODY=8BITMIME",))
def smtplib_8bitmime(bench: Bench) -> None:
    with Smtp(bench.client, V4) as smtp:
        smtp.sendmail(SENDER, [RECIPIENT], _lines(EIGHT_BIT), mail_options=["BODY=8BITMIME"])


@scenario("SMTPUTF8", shows=(b"SMTPUTF8", "carøl".encode()))
def smtplib_smtputf8(bench: Bench) -> None:
    with Smtp(bench.client, V6) as smtp:
        smtp.sendmail(INTERNATIONAL_SENDER, [RECIPIENT], _lines(INTERNATIONAL),
                      mail_options=["SMTPUTF8", "BODY=8BITMIME"])


@scenario("DSN", shows=(b"NOTIFY=FAILURE,DELAY", b"ENVID=QQ31+2B4159", b"RET=HDRS"))
def smtplib_dsn(bench: Bench) -> None:
    with Smtp(bench.client, V4) as smtp:
        smtp.sendmail(SENDER, [RECIPIENT], _lines(MESSAGE), mail_options=["RET=HDRS", "ENVID=QQ31+2B4159"],
                      rcpt_options=["NOTIFY=FAILURE,DELAY", "ORCPT=rfc822;alice+2Bx@inside.example"])


def _thirty_megabytes(bench: Bench) -> None:
    with Smtp(bench.client, V4) as smtp:
        smtp.sendmail(SENDER, [RECIPIENT], _lines(_large()))


# ---- octets by hand: what no common client does

@scenario("PIPELINING", shows=(b"DATA\r\n",))
def a_pipelined_dialogue(bench: Bench) -> None:
    with Dialogue(bench.client, V6) as client:
        client.reply()
        assert client.ask(b"EHLO client.outside.example\r\n").startswith(b"250-")
        client.send(b"MAIL FROM:<carol@outside.example>\r\nRCPT TO:<nobody@elsewhere.example>\r\n"
                    b"RCPT TO:<alice@inside.example>\r\nDATA\r\n")
        assert [client.reply()[:1] for _ in range(4)] [::2] == [b"2", b"2"]
        stuffed = b"".join(b"." * line.startswith(b".") + line for line in _lines(MESSAGE).splitlines(keepends=True))
        assert client.ask(stuffed + b".\r\n")[:3] == b"250"
        client.send(b"NOOP\r\nRSET\r\nQUIT\r\n" if bench.server.root_name == "postfix" else b"QUIT\r\n")
        client.reply()
        client.read_to_end()


@scenario("CHUNKING", shows=(b"BDAT 0 LAST\r\n",), alice=2)
def chunks_by_hand(bench: Bench) -> None:
    """Message data that looks like commands, cut so that chunks begin and end at awkward places; two messages, all of
    each in one go, RFC 3030 with RFC 2920."""
    text = _lines(MESSAGE)
    cuts = [0, 1, text.index(b"\r\n.\r\n") + 1, text.index(b"BDAT 10 LAST"), text.index(b"QUIT") + 4, len(text)]
    chunks = b"".join(b"BDAT %d\r\n%b" % (end - start, text[start:end])
                      for start, end in itertools.pairwise(cuts))
    with Dialogue(bench.client, V4) as client:
        client.reply()
        client.ask(b"EHLO client.outside.example\r\n")
        envelope = b"MAIL FROM:<carol@outside.example>\r\nRCPT TO:<alice@inside.example>\r\n"
        client.send(envelope + chunks + b"BDAT 0 LAST\r\n")
        assert [client.reply()[:3] for _ in range(2 + len(cuts))] == [b"250"] * (2 + len(cuts))
        client.send(envelope + b"bdat %d last\r\n%bQUIT\r\n" % (len(text), text))
        assert [client.reply()[:3] for _ in range(4)] == [b"250"] * 3 + [b"221"]
        client.read_to_end()


# ---- swaks

def _swaks(bench: Bench, address: str, *words: str) -> None:
    bench.tool("swaks", "--server", address, "--helo", CLIENT_NAME, "--from", SENDER, "--to", RECIPIENT, "--timeout",
               "20", "--data", "@" + bench.file(MESSAGE.removesuffix(b"\n")), *words)


@scenario()
def swaks_plain(bench: Bench) -> None:
    _swaks(bench, V6)


@scenario("PIPELINING")
def swaks_pipeline(bench: Bench) -> None:
    _swaks(bench, V4, "--pipeline")


@scenario("STARTTLS", shows=(b"STARTTLS\r\n",))
def swaks_tls(bench: Bench) -> None:
    _swaks(bench, V4, "--tls")


@scenario("AUTH", shows=(b"AUTH LOGIN",))
def swaks_auth(bench: Bench) -> None:
    _swaks(bench, V6, "--auth", "LOGIN", "--auth-user", LOGIN, "--auth-password", PASSWORD)


# ---- curl

def _curl(bench: Bench, address: str, message: bytes, *words: str, sender: str = SENDER) -> None:
    host = f"[{address}]" if ":" in address else address
    bench.tool("curl", "--silent", "--show-error", "--url", f"smtp://{host}/{CLIENT_NAME}", "--mail-from", sender,
               "--mail-rcpt", RECIPIENT, "--upload-file", bench.file(_lines(message)), "--max-time", "30", *words)


@scenario()
def curl_plain(bench: Bench) -> None:
    _curl(bench, V4, MESSAGE)


@scenario("STARTTLS", "AUTH", shows=(b"STARTTLS\r\n",))
def curl_tls_and_auth(bench: Bench) -> None:
    _curl(bench, V6, MESSAGE, "--ssl-reqd", "--insecure", "--user", f"{LOGIN}:{PASSWORD}")


@scenario("AUTH", shows=(b"AUTH PLAIN",))
def curl_auth_in_clear(bench: Bench) -> None:
    _curl(bench, V4, MESSAGE, "--user", f"{LOGIN}:{PASSWORD}")


@scenario("SMTPUTF8", shows=(b"SMTPUTF8", "carøl".encode()))
def curl_smtputf8(bench: Bench) -> None:
    _curl(bench, V6, INTERNATIONAL, sender=INTERNATIONAL_SENDER)


# ---- Postfix

def _sendmail(bench: Bench, message: bytes, *words: str, sender: str = SENDER) -> None:
    bench.postfix.run(["/usr/sbin/sendmail", "-i", *words, "-f", sender, RECIPIENT], input=message, text=False)


@scenario()
def postfix_plain(bench: Bench) -> None:
    _sendmail(bench, MESSAGE)


@scenario("STARTTLS", "AUTH", shows=(b"STARTTLS\r\n",))
def postfix_tls_and_auth(bench: Bench) -> None:
    _sendmail(bench, MESSAGE, sender=SECURED)


@scenario("DSN", "8BITMIME", shows=(b"NOTIFY=FAILURE", b"BODY=8BITMIME"))
def postfix_dsn_and_8bitmime(bench: Bench) -> None:
    _sendmail(bench, EIGHT_BIT, "-N", "failure", "-V", "QQ314159", "-B", "8BITMIME")


@scenario("SMTPUTF8", shows=(b"SMTPUTF8", "carøl".encode()))
def postfix_smtputf8(bench: Bench) -> None:
    _sendmail(bench, INTERNATIONAL, "-O", "SMTPUTF8", sender=INTERNATIONAL_SENDER)


# ---- Exim

@scenario()
def exim_plain(bench: Bench) -> None:
    """With CHUNKING where the server offers it: Exim uses it of its own accord."""
    bench.exim.submit(SENDER, RECIPIENT, MESSAGE)


@scenario("STARTTLS", "AUTH", shows=(b"STARTTLS\r\n",))
def exim_tls_and_auth(bench: Bench) -> None:
    bench.exim.submit(SECURED, RECIPIENT, MESSAGE)


@scenario("CHUNKING", shows=(b"BDAT ",))
def exim_chunking_of_eight_bits(bench: Bench) -> None:
    bench.exim.submit(SENDER, RECIPIENT, EIGHT_BIT)


# ---- thirty megabytes

@scenario()
def large_by_smtplib(bench: Bench) -> None:
    _thirty_megabytes(bench)


@scenario(long=True)
def large_by_postfix(bench: Bench) -> None:
    _sendmail(bench, _large())


@scenario(long=True)
def large_by_exim(bench: Bench) -> None:
    """In chunks, where the server takes them."""
    bench.exim.submit(SENDER, RECIPIENT, _large())


@scenario(long=True)
def large_by_curl(bench: Bench) -> None:
    _curl(bench, V6, _large())


@scenario("CHUNKING", shows=(b"BDAT 3",), long=True)
def large_in_one_chunk(bench: Bench) -> None:
    text = _lines(_large())
    with Dialogue(bench.client, V6, seconds=30) as client:
        client.reply()
        client.ask(b"EHLO client.outside.example\r\n")
        client.ask(b"MAIL FROM:<carol@outside.example>\r\n")
        client.ask(b"RCPT TO:<alice@inside.example>\r\n")
        assert client.ask(b"BDAT %d LAST\r\n" % len(text) + text)[:3] == b"250"
        assert client.ask(b"QUIT\r\n")[:3] == b"221"
        client.read_to_end()
