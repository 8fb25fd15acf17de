"""What a match may look at: the kinds of csrc/matches.def with what each takes, and the reply that fits its refusal.

Names are those of ASA's `match` where it has one. The enhanced codes are those of RFC 3463 and RFC 7372.
"""
from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto


class Takes(Flag):
    """The flags of csrc/matches.def (MATCH_ABOVE ...)."""

    NOTHING = 0
    ABOVE = auto()      # `gt`
    BELOW = auto()      # `lt`
    WORDS = auto()      # `names`, `except-names`
    REGEX = auto()      # `regex`, `ignore-case`
    CODES = auto()      # `codes`
    MASK = auto()       # a line is in hand that may become X
    OCTET = auto()      # octets are in hand that may be replaced by as many
    SERVER = auto()     # it is the server that speaks


NOTHING, ABOVE, BELOW, WORDS, REGEX = Takes.NOTHING, Takes.ABOVE, Takes.BELOW, Takes.WORDS, Takes.REGEX
CODES, MASK, OCTET, SERVER = Takes.CODES, Takes.MASK, Takes.OCTET, Takes.SERVER

PARAMETERS = ("SIZE", "BODY", "SMTPUTF8", "RET", "ENVID", "NOTIFY", "ORCPT", "AUTH", "REQUIRETLS", "BY", "HOLDFOR",
              "HOLDUNTIL", "MT-PRIORITY")
"""Of MAIL and RCPT: csrc/smtp_parameters.def."""

ENCODINGS = ("7BIT", "8BIT", "BASE64", "BINARY", "QUOTED-PRINTABLE")
"""RFC 2045, 6.1."""

ARGUED = ("AUTH", "EHLO", "ETRN", "HELO", "LHLO")
"""The verbs whose argument is looked at by `cmd syntax`."""

ENHANCED_FAULTS = ("MISSING", "WRONG", "NOT-OFFERED")
"""What may be wrong with the enhanced status code of a reply (RFC 2034)."""

OTHERS = "OTHERS"
"""ASA's word for all that has no name of its own."""

ASA_KEYWORDS = ("8BITMIME", "AUTH", "BINARYMIME", "CHECKPOINT", "DSN", "ENHANCEDSTATUSCODES", "ETRN", "PIPELINING",
                "SIZE", "VRFY")
"""What ASA's `match ehlo-reply-parameter` names beside `others`."""

ASA_SPELLING = {"ECODE": "ENHANCEDSTATUSCODES"}
"""ASA's name of a keyword -> the keyword."""

COUNTED = ABOVE | MASK
TRIED = REGEX | MASK
NAMED = WORDS | MASK


@dataclass(frozen=True)
class Criterion:
    """One kind of match.

    name      as written behind `match =`
    takes     which keys belong to it, and what can be done where it matches
    summary   what it is true for
    reply     what a refused client reads where the match names no reply; empty: no reply can reach the client there
    words     the words that there are; empty: any word
    needs_words  a match without `names` and `except-names` would say nothing
    """

    name: str
    takes: Takes
    summary: str
    reply: str = ""
    words: tuple[str, ...] = ()
    needs_words: bool = False


_ALL = (
    Criterion("cmd verb", NAMED, "a command with one of these verbs", "502 5.5.1 This command is not allowed here",
              needs_words=True),
    Criterion("cmd line length", COUNTED | WORDS, "a command line of more octets, its line end counted; with names: "
              "of these verbs only", "500 5.5.2 Line too long"),
    Criterion("cmd syntax", NAMED, "an argument that its RFC does not allow: the mechanism of AUTH, the node of ETRN, "
              "a name missing behind EHLO, HELO or LHLO", "501 5.5.4 Syntax error in the argument", ARGUED),
    Criterion("cmd RCPT count", COUNTED, "a RCPT that makes the recipients of a message more than this",
              "452 4.5.3 Too many recipients"),
    Criterion("cmd verb length", BELOW | MASK, "a command whose verb has fewer letters",
              "500 5.5.2 Command not recognized"),
    Criterion("pipelined command", NAMED, "a command sent before the reply to the one before it; with names: behind "
              "one of these verbs only", "554 5.5.0 Command sent before the reply to the one before it"),
    Criterion("early talker", NOTHING, "a client that speaks before the server's greeting",
              "554 5.5.0 Command sent before the greeting"),
    Criterion("wrong termination", OCTET, "a command line that ends in a bare LF",
              "500 5.5.2 A command has to end in CRLF"),
    Criterion("truncated command", NOTHING, "a command whose line never ends"),
    Criterion("not offered", NAMED, "the use of an extension that the server's EHLO reply did not offer; names are "
              "those of keywords", "503 5.5.1 This extension was not offered"),
    Criterion("parameter syntax", NAMED, "a parameter of MAIL or RCPT that its RFC does not allow in this form",
              "501 5.5.4 Syntax error in a parameter", (*PARAMETERS, OTHERS)),
    Criterion("parameter", NAMED, "a parameter of MAIL or RCPT; others: one that has no name here",
              "555 5.5.4 This parameter is not allowed here", (*PARAMETERS, OTHERS), needs_words=True),
    Criterion("declared size", COUNTED, "MAIL with a SIZE= of more octets", "552 5.3.4 Message too big"),
    Criterion("sender-address length", COUNTED, "MAIL with an address of more octets, without its brackets",
              "553 5.1.7 Sender address too long"),
    Criterion("sender-address regex", TRIED, "MAIL with an address that matches, tried without its brackets",
              "550 5.7.1 Sender refused by policy"),
    Criterion("recipient-address length", COUNTED, "RCPT with an address of more octets, without its brackets",
              "553 5.1.3 Recipient address too long"),
    Criterion("recipient-address regex", TRIED, "RCPT with an address that matches, tried without its brackets",
              "550 5.7.1 Recipient refused by policy"),
    Criterion("mail-relay", TRIED, "RCPT with an address outside these domains; one without a domain, such as "
              "postmaster, is inside", "550 5.7.1 Relaying denied"),
    Criterion("special-character", OCTET | MASK, "`|`, a back-quote, NUL, or a stray `<` or `>` in an address of MAIL "
              "or RCPT", "553 5.1.3 Character not allowed in an address"),
    Criterion("helo name regex", TRIED, "HELO, EHLO or LHLO with a name that matches",
              "550 5.7.1 Name refused by policy"),
    Criterion("auth mechanism", NAMED, "AUTH with one of these mechanisms",
              "504 5.5.4 Authentication mechanism not allowed here", needs_words=True),
    Criterion("auth in clear", MASK, "AUTH without TLS, though the server offers STARTTLS",
              "538 5.7.11 Encryption required for the requested authentication mechanism"),
    Criterion("tls required", MASK, "MAIL without TLS", "530 5.7.0 Must issue a STARTTLS command first"),
    Criterion("header length", ABOVE, "a message whose header section has more octets",
              "554 5.6.0 Message header too long"),
    Criterion("header line length", ABOVE, "a header line of more octets, its line end not counted",
              "554 5.6.0 Line in the message header too long"),
    Criterion("header to-fields count", ABOVE, "a message whose To fields name more mailboxes; each field counts as "
              "one at least", "554 5.7.1 Too many addresses in the To field"),
    Criterion("header regex", REGEX, "a header section that matches; ^ and $ mean lines",
              "554 5.7.1 Message refused by policy"),
    Criterion("body length", ABOVE, "a message whose body has more octets", "552 5.3.4 Message too big"),
    Criterion("body line length", ABOVE, "a body line of more octets, its line end not counted",
              "554 5.6.0 Line in the message body too long"),
    Criterion("body regex", REGEX, "a body that matches, as it is on the wire; ^ and $ mean lines",
              "554 5.7.1 Message refused by policy"),
    Criterion("mime encoding", WORDS, "a part with one of these Content-Transfer-Encodings; others: with any that has "
              "no name here", "554 5.6.1 Content transfer encoding not allowed here", (*ENCODINGS, OTHERS),
              needs_words=True),
    Criterion("mime filetype regex", REGEX, "a part whose media type, as type/subtype in lower case, or whose decoded "
              "file name matches", "554 5.7.1 Attachment refused by policy"),
    Criterion("mime filename length", ABOVE, "a part whose decoded file name has more octets",
              "554 5.6.0 File name of an attachment too long"),
    Criterion("smuggling", OCTET, "one of the seven false ends of message data (CVE-2023-51764, -51765, -51766)",
              "554 5.6.0 False end of message data"),
    Criterion("bare newline", OCTET, "any other bare CR or LF in message data",
              "554 5.6.0 Bare CR or LF in message data"),
    Criterion("size exceeded", NOTHING, "more message data than SIZE= declared",
              "552 5.3.4 Message is bigger than declared"),
    Criterion("ehlo-reply-parameter", NAMED | SERVER, "a line of the EHLO reply with one of these keywords; others: "
              "with one that is not among ehlo-keywords", "554 5.7.1 Session refused by policy", needs_words=True),
    Criterion("enhanced status code", WORDS | SERVER, "a reply whose enhanced status code is missing though "
              "ENHANCEDSTATUSCODES is offered, is of another class than the reply, or is there and was not offered",
              "421 4.3.0 The server does not keep to its offers", ENHANCED_FAULTS),
    Criterion("reply code", CODES | SERVER, "a reply with one of these codes", "554 5.7.1 Session refused by policy"),
    Criterion("invalid-recipients count", ABOVE | SERVER, "more refused RCPTs in a session",
              "421 4.7.0 Too many invalid recipients"),
    Criterion("unexpected reply", SERVER, "a reply that nothing asked for, or that its command does not allow",
              "421 4.3.0 The server answered out of turn"),
    Criterion("starttls stripped", SERVER, "an EHLO reply in which somebody before us overwrote a keyword with X",
              "421 4.7.0 TLS is not to be had on this path"),
    Criterion("starttls injection", SERVER, "octets in clear, from either end, between STARTTLS and TLS"),
    Criterion("tls started", SERVER, "the client's TLS hello behind the server's 220 to STARTTLS: from here on nothing "
              "is inspected"),
    Criterion("silent server", SERVER, "a server that sends no greeting", "421 4.4.1 The server does not answer"),
)

CRITERIA = {criterion.name: criterion for criterion in _ALL}
"""By name, in the order of csrc/matches.def."""
