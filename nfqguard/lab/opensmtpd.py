"""A real OpenSMTPD inside the lab: Debian's, from a private root, with mailboxes (maildir) for a few users.

It has its queue, its control socket and the folder it confines itself to compiled in, below /var and /run: they are its
own in the mount namespace that it runs in anyway. It speaks in clear only: the OpenSMTPD of Debian 12 fails in every
TLS handshake (its keys are kept by an engine that OpenSSL 3 does not ask), and it takes AUTH only behind TLS.
"""
from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from subprocess import CompletedProcess
from typing import Any, ClassVar

from nfqguard.lab.server import DOMAIN, MESSAGE_SIZE_LIMIT, USERS, MailServer
from nfqguard.lab.topology import LabError

USER = "opensmtpd"

CONFIGURATION = """\
table boxes {{ {boxes} }}
smtp max-message-size {limit}
listen on {ipv4} port 25 hostname {name}
listen on {ipv6} port 25 hostname {name}
action "deliver" maildir "{folder}/mail/%{{rcpt.user}}" virtual <boxes> user {user}
match from any for domain "{domain}" action "deliver"
"""

PRIVATE = """\
set -eu
folder=$1
mount --bind "$folder/var" /var/spool
mount --bind "$folder/lib" /var/lib
mount --bind "$folder" /mnt
mount -t tmpfs -o mode=755 nfqguard-lab /run
mkdir -p "$folder"
mount --move /mnt "$folder"
smtpd -d > "$folder/maillog" 2>&1 < /dev/null &
echo $! > "$folder/pid"
"""
"""The whole folder moves into an empty /run, where its own control socket is to lie at the place compiled in."""


@dataclass(frozen=True)
class OpenSmtpd(MailServer):
    """See MailServer; it takes no settings, and cannot be secure."""

    root_name: ClassVar[str] = "opensmtpd"

    def _begin(self) -> CompletedProcess[Any]:
        with (self.folder / "started").open("wb") as said:
            return self.run(["sh", "-c", PRIVATE, "sh", str(self.folder)], check=False, stdout=said, stderr=said)

    def configure(self) -> None:
        """Write all that it needs, the folder of its confinement last: where that is, the rest is whole."""
        if self.secure or self.settings:
            raise LabError("Debian 12's OpenSMTPD cannot do TLS, and takes AUTH only behind it; it has no settings")
        last = self.folder / "lib/opensmtpd/empty"
        if last.exists():
            return
        root = self.root()
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("var/smtpd", "mail"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "var/smtpd").chmod(0o711)     # it insists
        root.write_etc(self.folder / "etc")
        owner = root.users()[USER]
        os.chown(self.folder / "mail", owner, owner)
        (self.folder / "etc/mailname").write_text(f"{self.name}\n")
        (self.folder / "etc/resolv.conf").write_text("lookup file\n")    # before it greets it asks for the peer's name
        file = self.folder / "etc/smtpd.conf"
        file.write_text(self._configuration())
        file.chmod(0o600)
        last.mkdir(parents=True)

    def _configuration(self) -> str:
        boxes = ", ".join(f'"{user}@{DOMAIN}" = "{USER}"' for user in USERS)
        return CONFIGURATION.format(boxes=boxes, limit=MESSAGE_SIZE_LIMIT, ipv4=self.home.ipv4, ipv6=self.home.ipv6,
                                    name=self.name, folder=self.folder, user=USER, domain=DOMAIN)
