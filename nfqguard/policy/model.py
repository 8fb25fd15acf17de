"""The configuration as pydantic models: names, types, ranges and defaults, and nothing that reads a file.

Keys are written with hyphens in TOML (`max-data`) and with underscores in Python (`max_data`).
"""
from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


def hyphenate(name: str) -> str:
    """The TOML spelling of a field name."""
    return name.replace("_", "-")


class Section(BaseModel):
    """A table of the configuration: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=hyphenate, populate_by_name=True)


Port = Annotated[int, Field(ge=1, le=65535)]
Absent = Literal["drop", "accept"]


class Deployment(Section):
    """How packets are brought to us: the steps in Netfilter."""

    hook: Literal["forward", "host"] = "forward"
    """forward: mangle FORWARD of a gateway. host: mangle INPUT and OUTPUT of a mail host."""
    ports: tuple[Port, ...] = (25,)
    queue_first: Annotated[int, Field(ge=0, le=65535)] = 0
    queue_count: Annotated[int, Field(ge=1, le=15)] = 1
    connmark_mask: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] = 0xF000000
    """The bits of the connmark that are ours; one run of adjacent bits that can count to queue-count."""
    own_mark: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] = 0x6E660001
    """The packet mark of what we send ourselves; exempt where our own packets would be queued."""
    on_absent: Absent = "drop"
    """No process is bound to the queue: drop, or accept uninspected."""
    on_overload: Absent = "drop"
    """The queue is full: drop, or accept uninspected."""
    exempt: tuple[IPv4Network | IPv6Network, ...] = ()
    """Hosts or networks whose mail is not inspected, whichever end they are."""
    chain: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,23}$")] = "NFQGUARD"
