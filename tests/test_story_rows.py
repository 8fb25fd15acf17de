"""Each thing that the inspection promises has a story: the rows of Cisco's features and of the faults that ours must
not have, of the presets, and of the threats. A story names its rows in `Covers:`."""
from __future__ import annotations

import pytest
from story import read_stories

CISCO = {
    "cisco-1-smtp-whitelist": "IOS smtp: twelve commands, any other becomes X",
    "cisco-1-esmtp-whitelist-ios": "IOS esmtp: fifteen commands",
    "cisco-1-deeper-size": "esmtp looks deeper: SIZE",
    "cisco-1-deeper-etrn": "... ETRN",
    "cisco-1-deeper-binarymime": "... BINARYMIME",
    "cisco-1-deeper-pipelining": "... PIPELINING",
    "cisco-1-deeper-auth": "... AUTH",
    "cisco-1-deeper-dsn": "... DSN",
    "cisco-1-deeper-enhancedstatuscodes": "... ENHANCEDSTATUSCODES",
    "cisco-1-deeper-8bitmime": "... 8BITMIME",
    "cisco-1-deeper-use-without-offer": "... use without an offer",
    "cisco-1-esmtp-whitelist-asa": "ASA: 7 and 8 commands; ATRN, STARTTLS, ONEX, VERB, CHUNKING, private: X",
    "cisco-1-mailguard": "MailGuard: HELO MAIL RCPT DATA RSET NOOP QUIT",
    "cisco-1-state-four-characters": "a command is at least 4 characters",
    "cisco-1-state-crlf": "... ends in CRLF",
    "cisco-1-state-wait": "... and the client waits for the reply",
    "cisco-1-anomaly-truncated-command": "watched: truncated command",
    "cisco-1-anomaly-wrong-termination": "... wrong termination",
    "cisco-1-anomaly-unexpected-transition": "... unexpected transition by the server",
    "cisco-1-anomaly-unknown-command": "... unknown command",
    "cisco-1-anomaly-tcp-stream-editing": "... TCP stream editing",
    "cisco-1-anomaly-pipelining": "... pipelining",
    "cisco-1-special-character-replace": "| or stray < > in an address: a blank, 108002",
    "cisco-1-special-character-reset": "| in MAIL or RCPT closes the session, 108003",
    "cisco-1-body-length": "match body length gt",
    "cisco-1-body-line-length": "match body line length gt",
    "cisco-1-cmd-line-length": "match cmd line length gt",
    "cisco-1-cmd-rcpt-count": "match cmd RCPT count gt",
    "cisco-1-cmd-verb": "match cmd verb",
    "cisco-1-ehlo-reply-parameter": "match ehlo-reply-parameter",
    "cisco-1-header-length": "match header length gt",
    "cisco-1-header-line-length": "match header line length gt",
    "cisco-1-header-to-fields": "match header to-fields count gt",
    "cisco-1-invalid-recipients": "match invalid-recipients count gt",
    "cisco-1-mime-filename-length": "match mime filename length gt",
    "cisco-1-mime-filetype": "match mime filetype regex",
    "cisco-1-mime-encoding": "match mime encoding",
    "cisco-1-sender-address-length": "match sender-address length gt",
    "cisco-1-sender-address-regex": "match sender-address regex",
    "cisco-1-actions-drop-connection": "action drop-connection log",
    "cisco-1-actions-mask": "action mask log",
    "cisco-1-actions-reset": "action reset log",
    "cisco-1-actions-log": "action log",
    "cisco-1-actions-rate-limit": "action rate-limit",
    "cisco-1-actions-not": "match not",
    "cisco-1-actions-order": "the first match that does more than log decides",
    "cisco-1-send-protocol-error": "send-protocol-error: the client is told",
    "cisco-1-parameters-mask-banner": "mask-banner",
    "cisco-1-parameters-mail-relay-drop": "mail-relay action drop-connection",
    "cisco-1-parameters-mail-relay-log": "mail-relay action log",
    "cisco-1-parameters-special-character": "special-character action {drop-connection|log}",
    "cisco-1-parameters-allow-tls": "allow-tls: behind the server's 220 inspection stops, 108007",
    "cisco-1-ios-options-alert": "ip inspect name: alert",
    "cisco-1-ios-options-audit-trail": "... audit-trail",
    "cisco-1-ios-options-max-data": "... max-data",
    "cisco-1-ios-options-timeout": "... timeout",
    "cisco-1-timers-synwait": "synwait 30",
    "cisco-1-timers-finwait": "finwait 5",
    "cisco-1-timers-idle": "tcp idle 3600",
    "cisco-1-exemption": "no inspect esmtp for a mail gateway's addresses",
    "cisco-1-mpf-class": "another inspection for a class of traffic",
    "cisco-1-zbf-body-regex": "ZBF: body regex",
    "cisco-1-zbf-cmd-verb": "... cmd verb",
    "cisco-1-zbf-header-length": "... header length",
    "cisco-1-zbf-header-regex": "... header regex",
    "cisco-1-zbf-content-type": "... MIME content-type regex",
    "cisco-1-zbf-mime-encoding": "... MIME encoding",
    "cisco-1-zbf-recipient-regex": "... recipient address regex",
    "cisco-1-zbf-recipient-count": "... recipient count",
    "cisco-2-incomplete-discarded": "incomplete commands: an event, and never completed behind us",
}

FAULTS = {
    "cisco-3-1": "CRLF.CRLF split across packets was dropped",
    "cisco-3-2": "single typed characters were overwritten",
    "cisco-3-3": "DATA, 503, and data mode all the same (CVE-2000-1022)",
    "cisco-3-4": "DKIM and duplicate header fields aborted good mail",
    "cisco-3-5": "a long header line killed the connection without a reply",
    "cisco-3-6": "STARTTLS was stripped by default",
    "cisco-3-7": "the banner mask downgrades Postfix",
    "cisco-3-8": "half support of BDAT: masked ...",
    "cisco-3-8-bdat": "... or its octets are counted through chunks and messages",
    "cisco-3-9": "PIPELINING was offered and punished",
    "cisco-3-10": "100 recipients as a hard limit",
    "cisco-3-11": "message bodies were buffered",
    "cisco-3-12": "one closing sequence drove the processor up (CVE-2011-4006)",
    "cisco-3-13": "state lost between client and server",
}

PRESETS = {
    "verbs": "verbs", "ehlo": "EHLO keywords passed", "banner": "banner", "cmd-line": "command line",
    "state": "state rules", "rcpt-count": "RCPT count", "header-line": "header line", "body-line": "body line",
    "sender-address": "sender address", "mime-filename": "MIME filename",
    "special-character": "| ` NUL in an address", "starttls": "STARTTLS",
    "auth-in-clear": "AUTH in clear while STARTTLS is offered", "smuggling": "smuggling, bare CR and LF in a body",
    "size-exceeded": "SIZE declared and exceeded", "unknown-reply-codes": "unknown reply codes",
    "cannot-tell": "midstream, gap, memory, unparsable", "truncated-packet": "truncated packet",
}

THREATS = {
    "threats-1": "SMTP smuggling (CVE-2023-51764, -51765, -51766)",
    "threats-1-bare-newline": "... a bare CR or LF elsewhere in a body",
    "threats-1-excluded": "... exemptable",
    "threats-1-in-commands": "... a bare CR or NUL in a command",
    "threats-2": "STARTTLS command injection (CVE-2011-0411)",
    "threats-3": "STARTTLS response injection",
    "threats-4": "STARTTLS stripping upstream",
    "threats-5-plaintext-auth": "plaintext AUTH before TLS",
    "threats-5-require-tls": "mail without TLS",
    "threats-5-secrets": "secrets are never told",
    "threats-6-pipelining": "pipelining before the reply",
    "threats-6-early-talker": "early talker",
    "threats-7": "inconsistent retransmission",
    "threats-9-x-link2state": "X-LINK2STATE (CVE-2005-0560)",
    "threats-9-probing": "EXPN and VRFY probing",
    "threats-9-pipe": "a pipe in an address",
    "threats-9-http": "HTTP verbs on the mail port",
    "threats-11-oversized": "endless lines, oversized everything",
}

BEYOND = {
    "beyond-bdat": "many chunks and messages", "beyond-dry-run": "dry run", "beyond-helo": "helo name",
    "beyond-insert-header": "a header line of our own", "beyond-reply-code": "reply code",
    "beyond-silent-server": "a server that never speaks",
}

ROWS = {
    **CISCO, **FAULTS, **THREATS, **BEYOND,
    **{f"presets-{row}-{preset}": f"{preset}: {text}" for row, text in PRESETS.items() for preset in ("asa", "modern")},
    "presets-starttls-injection-modern": "modern: STARTTLS injection, both ways",
}

NOT_OF_THE_SESSION = {
    "cisco-1-one-or-the-other": "smtp and esmtp at once: an error of the configuration (test_policy.py)",
    "cisco-1-timers-udp-and-dns": "udp idle and dns: no protocol of ours is UDP; built with the generic inspection",
    "cisco-1-half-open-limits": "high and low, total and one-minute rate: built with the limits",
    "cisco-1-per-host-half-open": "max-incomplete and block-time: built with the limits",
    "cisco-1-static-max-conns": "max_conns and max_embryonic: built with the limits",
    "cisco-1-generic-inspection": "ip inspect tcp, udp, ftp, http, icmp: built with the limits",
    "cisco-1-example-router": "static NAT and access-list 101: a network, not a dialogue; built with the limits",
    "presets-starttls-injection-asa": "ASA masks STARTTLS: presets-starttls-asa",
    "presets-on-absent-on-overload": "keys of the deployment (test_deploy_plan.py, test_queue.py)",
    "threats-8": "fragments: conntrack defragments before us (test_deploy_system.py, test_evasion.py)",
    "threats-10": "half-open and connection floods: built with the limits; of a flow table: test_memory.py",
}
"""Rows for which no dialogue of one session can be told, and why."""

STORIES = read_stories()


@pytest.mark.parametrize("row", ROWS)
def test_each_row_has_a_story(row: str) -> None:
    assert [story.name for story in STORIES if row in story.covers], f"{row}: {ROWS[row]}"


def test_a_story_covers_rows_that_there_are() -> None:
    assert {(story.name, row) for story in STORIES for row in story.covers if row not in ROWS} == set()
    assert not ROWS.keys() & NOT_OF_THE_SESSION.keys()


def test_there_are_many() -> None:
    assert len(STORIES) >= 120
    assert len({story.title for story in STORIES}) == len(STORIES)
