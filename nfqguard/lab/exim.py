"""A real Exim inside the lab, as a server with mailboxes and as a client: Debian's exim4-daemon-light, private root.

Only what a lab must have differs from Exim's defaults: no DNS, no syslog, no retries, and mailboxes (maildir) for a few
users of one domain. Its own notable offers stay: CHUNKING, PRDR, SMTPUTF8 and, where it was built in, early pipelining.
"""
from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, ClassVar

from nfqguard.lab import certificate
from nfqguard.lab.server import DOMAIN, MESSAGE_SIZE_LIMIT, PASSWORD, USERS, MailServer

USER = "Debian-exim"
PROGRAM = "/usr/sbin/exim4"

PARTS = """\
begin acl
recipient:
  accept domains = {domain}
  deny message = relay not permitted

begin routers
{smarthost}
boxes:
  driver = accept
  domains = {domain}
  local_parts = {users}
  transport = maildir

begin transports
maildir:
  driver = appendfile
  maildir_format
  directory = {folder}/mail/$local_part_data
  user = {user}
  return_path_add
smarthost:
  driver = smtp
{transport}
begin authenticators
{authenticators}"""

SMARTHOST = """\
relayed:
  driver = manualroute
  route_list = <+ * "<| {address}" byname
  transport = smarthost
"""

SERVER_AUTHENTICATORS = """\
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{ {{inlist{{$auth2}}{{{users}}}}} {{eq{{$auth3}}{{{password}}}}} }}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = <| Username: | Password:
  server_condition = ${{if and{{ {{inlist{{$auth1}}{{{users}}}}} {{eq{{$auth2}}{{{password}}}}} }}}}
  server_set_id = $auth1
"""

CLIENT_AUTHENTICATORS = """\
plain:
  driver = plaintext
  public_name = PLAIN
  client_send = ^{users[0]}@{domain}^{password}
"""


@dataclass(frozen=True)
class Exim(MailServer):
    """See MailServer; settings are main options.

    smarthost  an address, IPv4 or IPv6, to which all mail goes; empty: mail for the domain goes into its mailboxes
    transport  options of the smtp transport to the smarthost
    """

    smarthost: str = ""
    transport: Mapping[str, str] = field(default_factory=dict)
    root_name: ClassVar[str] = "exim4"

    @property
    def log(self) -> Path:
        return self.folder / "mainlog"

    def submit(self, sender: str, recipient: str, message: bytes) -> None:
        """Hand it a message and wait until delivery was tried. subprocess.CalledProcessError where it is not taken."""
        self.configure()
        self.run([PROGRAM, "-odf", "-oi", "-f", sender, recipient], input=message, text=False)

    def _begin(self) -> CompletedProcess[Any]:
        # Its daemon keeps what it was started with open: a pipe of ours would never end.
        with (self.folder / "started").open("wb") as said:
            return self.run([PROGRAM, "-bd"], check=False, stdout=said, stderr=said)

    def last_words(self) -> str:
        started = self.folder / "started"
        return super().last_words() + (f"\n{started.read_text(errors='replace')}" if started.exists() else "")

    def configure(self) -> None:
        """Write all that it needs, its configuration last: where that is, the rest is whole."""
        file = self.folder / "etc/exim4/exim4.conf"
        if file.exists():
            return
        root = self.root()
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("spool", "mail"):
            (self.folder / name).mkdir(parents=True)
        root.write_etc(self.folder / "etc")
        owner = root.users()[USER]
        if self.secure:
            certificate.make(self.folder / "tls", self.name, owner, self.progress)
        for path in (self.folder, self.folder / "spool", self.folder / "mail"):
            os.chown(path, owner, owner)
        file.write_text(self._configuration())
        file.chmod(0o644)

    def _configuration(self) -> str:
        accounts = ":".join((*USERS, *(f"{user}@{DOMAIN}" for user in USERS)))
        authenticators = CLIENT_AUTHENTICATORS if self.smarthost else SERVER_AUTHENTICATORS if self.secure else ""
        return "".join(f"{key} = {value}\n" for key, value in self._main().items()) + PARTS.format(
            domain=DOMAIN, users=" : ".join(USERS), folder=self.folder, user=USER,
            smarthost=SMARTHOST.format(address=self.smarthost) if self.smarthost else "",
            transport="".join(f"  {key} = {value}\n" for key, value in self.transport.items()),
            authenticators=authenticators.format(
                users=USERS if self.smarthost else accounts, domain=DOMAIN, password=PASSWORD))

    def _main(self) -> dict[str, str]:
        options = {
            "primary_hostname": self.name,
            "spool_directory": f"{self.folder}/spool",
            "log_file_path": f"{self.folder}/%slog",
            "pid_file_path": str(self.pid_file),
            "notifier_socket": f"{self.folder}/notifier",
            "local_interfaces": f"<; {self.home.ipv4} ; {self.home.ipv6}",
            "daemon_smtp_ports": "25",
            "message_size_limit": str(MESSAGE_SIZE_LIMIT),
            "smtp_accept_max": "0",
            "host_lookup": "",
            "smtp_banner": "$smtp_active_hostname ESMTP Exim $version_number",
            "dsn_advertise_hosts": "*",
            "keep_environment": "",
            "acl_smtp_rcpt": "recipient",
            "tls_advertise_hosts": "*" if self.secure else "",
        }
        if self.secure:
            options |= {"tls_certificate": f"{self.folder}/tls/certificate.pem",
                        "tls_privatekey": f"{self.folder}/tls/key.pem"}
        return options | dict(self.settings)
