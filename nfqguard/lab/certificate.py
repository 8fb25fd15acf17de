"""A certificate for the lab's mail servers: made anew for each, signed by itself, believed by nobody outside it."""
from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nfqguard.lab import roots
from nfqguard.lab.topology import LabError

SECONDS = 30.0


@dataclass(frozen=True)
class Certificate:
    """Paths of two PEM files: the certificate and its key (ECDSA on P-256)."""

    chain: Path
    key: Path


def make(folder: Path, name: str, owner: int, progress: roots.Progress = lambda line: None) -> Certificate:
    """Make one in a new folder.

    name   of the server, as common name and subjectAltName
    owner  user number of whoever must read the key; nobody else can

    Raises LabError where OpenSSL, which comes with the root of Postfix, fails.
    """
    folder.mkdir()
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    root = roots.fetch("postfix", progress)
    done = subprocess.run(root.argv([
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-keyout", made.key, "-out", made.chain,
    ]), capture_output=True, text=True, check=False, timeout=SECONDS)
    if done.returncode != 0:
        raise LabError(f"openssl made no certificate for {name}: {done.stderr.strip()}")
    for path in (folder, made.key, made.chain):
        os.chown(path, owner, owner)
    made.key.chmod(0o600)
    return made
