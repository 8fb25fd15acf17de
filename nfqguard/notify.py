"""What systemd is told of our state: sd_notify(3) over the datagram socket in NOTIFY_SOCKET; without one, nothing."""
from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """The service manager's ear. A manager that does not listen is told less, and never waited for: what waits here
    would hear no signal."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read NOTIFY_SOCKET (a path, or a name in the abstract namespace behind an at sign)."""
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address

    def ready(self) -> None:
        """Every queue is bound and drained."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The stop has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            try:
                sender.sendto(message.encode(), self._address)
            except OSError as error:
                log.debug("the service manager was not told %s: %s", message, error)
