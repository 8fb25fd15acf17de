"""The machine that a figure was measured on, so that nobody compares two machines' figures by mistake."""
from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def describe() -> dict[str, str | int | float]:
    """Processor, cores, kernel, memory in octets, distribution, Python, and the load of the last minute."""
    return {
        "cpu": _first(r"model name\s*:\s*(.+)", "/proc/cpuinfo") or platform.machine(),
        "cores": os.cpu_count() or 1,
        "kernel": platform.release(),
        "memory_octets": int(_first(r"MemTotal:\s*(\d+)", "/proc/meminfo") or 0) * 1024,
        "distribution": _first(r'PRETTY_NAME="?([^"\n]+)', "/etc/os-release") or "unknown",
        "hypervisor": "yes" if _first(r"^flags\s*:.*\b(hypervisor)\b", "/proc/cpuinfo") else "none seen",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def line(machine: dict[str, str | int | float]) -> str:
    """The same in one line."""
    memory = int(machine["memory_octets"]) / 2**30
    virtual = ", virtual" if machine["hypervisor"] == "yes" else ""
    return (f"{machine['cpu']}, {machine['cores']} cores{virtual}, {memory:.1f} GiB, "
            f"Linux {machine['kernel']}, {machine['distribution']}")


def _first(pattern: str, path: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1].strip() if found else None
