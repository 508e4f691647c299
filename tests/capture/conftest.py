"""Slow tests of many models: all of them, or a share.

``BUTTERFLYC_SHARE=1/5`` takes the second fifth of those in this folder; CI takes another fifth with
each commit. Without it, as in `make test-slow`, all are taken.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARE = os.environ.get("BUTTERFLYC_SHARE", "0/1")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    which, of = map(int, SHARE.split("/"))
    shared = [i for i in items if HERE in i.path.parents and i.get_closest_marker("slow")]
    left_out = {item for number, item in enumerate(shared) if number % of != which}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
