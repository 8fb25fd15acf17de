"""How the tests are shared out: those that need network namespaces and the kernel's queues run one behind the other, for
they mostly wait; beside them run the others, which mostly compute."""
from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The group is one worker's; it is the largest, and so begins first."""
    for item in items:
        if item.get_closest_marker("system"):
            item.add_marker(pytest.mark.xdist_group("system"))
