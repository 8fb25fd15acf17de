"""What a policy needs of the system and does not have."""
from __future__ import annotations

from nfqguard.deploy.system import CONNTRACK_LIBERAL, conntrack_is_liberal
from nfqguard.policy.load import Configuration
from nfqguard.policy.model import Policy, hyphenate
from nfqguard.policy.problem import Problem


def unmet(configuration: Configuration) -> tuple[Problem, ...]:
    """Why the policies in use cannot work on this system, in this network namespace, as it is now.

    Connection tracking checks the window of both directions against what it saw of them itself. It sees the client's
    side and the server's in one numbering, so behind an edit that changed the length everything looks outside the
    window: INVALID, untranslated under NAT, dropped by our own chain (nf_conntrack_proto_tcp.c, tcp_in_window).
    """
    keys = {name: _key_that_changes_length(policy) for name, policy in configuration.policies_in_use.items()}
    if not any(keys.values()) or conntrack_is_liberal() is not False:
        return ()
    return tuple(_untold(configuration, name, key) for name, key in keys.items() if key is not None)


def _untold(configuration: Configuration, name: str, key: str) -> Problem:
    return Problem(
        configuration.files[0] if configuration.files else f"policy {name}",
        f"policies.{name}.{key}",
        f"this changes how many octets a connection has, and the kernel's connection tracking ({CONNTRACK_LIBERAL} is "
        "0) drops what comes behind such a change, so mail stands still",
        f"run `sysctl -w {CONNTRACK_LIBERAL}=1`, and write {CONNTRACK_LIBERAL} = 1 to a file of /etc/sysctl.d to keep "
        "it, or leave the key out")


def _key_that_changes_length(policy: Policy) -> str | None:
    """The first one as the operator writes it. Mirrors PolicySpec.changes_length."""
    found = {"mask_banner": policy.mask_banner == "text", "remove_ehlo": policy.remove_ehlo,
             "insert_header": bool(policy.insert_header),
             **{f"matches.{match.name}": match.action == "remove" and match.acts for match in policy.matches}}
    return next((hyphenate(name) for name, changes in found.items() if changes and not policy.dry_run), None)
