"""A real Postfix inside the lab: its own configuration, queue and mailboxes under the lab's run directory.

It is Debian's Postfix out of a private root. Only what a lab must have differs from its defaults: no DNS, no syslog, no
limit on a client's connections, and mailboxes (maildir, virtual delivery) for a few users of one domain.
"""
from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, ClassVar

from nfqguard.lab import certificate, roots
from nfqguard.lab.server import DOMAIN, MESSAGE_SIZE_LIMIT, PASSWORD, USERS, MailServer
from nfqguard.lab.topology import LabError

MASTER = """\
smtp      inet  n - n - -    smtpd
pickup    unix  n - n 60 1   pickup
cleanup   unix  n - n - 0    cleanup
qmgr      unix  n - n 300 1  qmgr
rewrite   unix  - - n - -    trivial-rewrite
bounce    unix  - - n - 0    bounce
defer     unix  - - n - 0    bounce
trace     unix  - - n - 0    bounce
verify    unix  - - n - 1    verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - -    proxymap
proxywrite unix - - n - 1    proxymap
smtp      unix  - - n - -    smtp
relay     unix  - - n - -    smtp
showq     unix  n - n - -    showq
error     unix  - - n - -    error
retry     unix  - - n - -    error
discard   unix  - - n - -    discard
local     unix  - n n - -    local
virtual   unix  - n n - -    virtual
tlsmgr    unix  - - n 1000? 1 tlsmgr
lmtp      unix  - - n - -    lmtp
anvil     unix  - - n - 1    anvil
scache    unix  - - n - 1    scache
postlog   unix-dgram n - n - 1 postlogd
"""
"""Debian's master.cf without chroot, and with postlogd, which logs where no syslog is."""

SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
mech_list: PLAIN LOGIN
sasldb_path: {folder}/data/sasldb2
"""


@dataclass(frozen=True)
class Postfix(MailServer):
    """See MailServer; settings are parameters of main.cf."""

    root_name: ClassVar[str] = "postfix"

    @property
    def pid_file(self) -> Path:
        return self.folder / "queue/pid/master.pid"

    def run(self, argv: Sequence[str], **options: Any) -> CompletedProcess[Any]:
        """Run one of Postfix's own commands (postqueue, sendmail, postcat) for this instance; see Host.run()."""
        return super().run(["env", f"MAIL_CONFIG={self.folder}/etc/postfix", *argv], **options)

    def _begin(self) -> CompletedProcess[Any]:
        # Whoever runs us may have MAIL_CONFIG set for a Postfix of the machine.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MAIL_")}
        return self.home.run(self.root().argv(["postfix", "start"], self.folder / "etc"), check=False, env=environment)

    def configure(self) -> None:
        """Write all that it needs, main.cf last: where that is, the rest is whole."""
        if (self.folder / "etc/postfix/main.cf").exists():
            return
        root = self.root()
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("queue", "data", "mail"):
            (self.folder / name).mkdir(parents=True)
        root.write_etc(self.folder / "etc")
        owner = root.users()["postfix"]
        boxes = "".join(f"{user}@{DOMAIN} {user}/\n" for user in USERS)
        etc = self.folder / "etc/postfix"
        (etc / "mailboxes").write_text(boxes)
        (etc / "master.cf").write_text(MASTER)
        if self.secure:
            certificate.make(self.folder / "tls", self.name, owner, self.progress)
            self._write_passwords(root, etc / "sasl", owner)
        for name in ("data", "mail"):
            os.chown(self.folder / name, owner, owner)
        (etc / "main.cf").write_text("".join(f"{key} = {value}\n" for key, value in self._parameters(owner).items()))

    def _write_passwords(self, root: roots.Root, etc: Path, owner: int) -> None:
        etc.mkdir(exist_ok=True)
        (etc / "smtpd.conf").write_text(SASL.format(folder=self.folder))
        file = self.folder / "data/sasldb2"
        for user in USERS:
            done = self.home.run(root.argv(["saslpasswd2", "-p", "-c", "-f", file, "-u", DOMAIN, user]),
                                 input=PASSWORD, check=False)
            if done.returncode != 0:
                raise LabError(f"saslpasswd2 did not take {user}: {done.stderr.strip()}")
        os.chown(file, owner, owner)

    def _parameters(self, owner: int) -> dict[str, str]:
        parameters = {
            "compatibility_level": "3.6",
            "queue_directory": f"{self.folder}/queue",
            "data_directory": f"{self.folder}/data",
            "maillog_file": str(self.log),
            "maillog_file_prefixes": str(self.folder),
            "myhostname": self.name,
            "mydestination": "",
            "inet_interfaces": f"{self.home.ipv4}, [{self.home.ipv6}]",
            "inet_protocols": "all",
            "mynetworks": "10.10.10.0/24, [fd00:10::]/64",
            "disable_dns_lookups": "yes",
            "smtpd_peername_lookup": "no",
            "smtpd_client_connection_count_limit": "0",
            "alias_maps": "",
            "alias_database": "",
            "virtual_mailbox_domains": DOMAIN,
            "virtual_mailbox_base": f"{self.folder}/mail",
            "virtual_mailbox_maps": "texthash:/etc/postfix/mailboxes",
            "virtual_uid_maps": f"static:{owner}",
            "virtual_gid_maps": f"static:{owner}",
            "virtual_mailbox_limit": "0",
            "mailbox_size_limit": "0",
            "message_size_limit": str(MESSAGE_SIZE_LIMIT),
        }
        return parameters | (self._secured() if self.secure else {}) | dict(self.settings)

    def _secured(self) -> dict[str, str]:
        return {
            "smtpd_tls_security_level": "may",
            "smtpd_tls_cert_file": f"{self.folder}/tls/certificate.pem",
            "smtpd_tls_key_file": f"{self.folder}/tls/key.pem",
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_sasl_local_domain": DOMAIN,
            "cyrus_sasl_config_path": "/etc/postfix/sasl",
        }
