"""Which tests share a process where several run them."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share one process, as their fixtures are dear.

    All files whose tests start simulations, or look at what the machine's processes leave, share
    one too: they would see each other's.
    """
    apart = {
        item.path
        for item in items
        if item.get_closest_marker("slow") or "traces" in getattr(item, "fixturenames", ())
    }
    for item in items:
        name = "simulations" if item.path in apart else str(item.path)
        item.add_marker(pytest.mark.xdist_group(name))
