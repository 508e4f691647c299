"""The C of the driver for several threads, and of its pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from butterflyc.compiler.lower.model_c import threads_of, write_model
from butterflyc.kernels.lanes import Lanes
from butterflyc.targets.parts import kernel_functions

from ..passes.test_split_work import block, split

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("threads", [2, 8])
def test_text(threads: int, golden: Callable[[Path, str], None]) -> None:
    """The whole driver is as in golden/: 5 rows in 2 parts, and in more parts than there are."""
    graph = split(block(), threads)
    symbols, _ = kernel_functions(graph, Lanes(), "m", lambda _: None)
    model = write_model(graph, "m", symbols)
    golden(GOLDEN / f"threads_{threads}.c", model.source)
    if threads == 2:
        golden(GOLDEN / "threads_2.h", model.header)


@pytest.mark.parametrize("name", ["m", "bfly", "my_BFLY", "bflybfly"])
def test_the_pool_is_called_as_the_model(name: str) -> None:
    """Every name of pool.c takes the model's, also one that looks like the one in the file."""
    text = threads_of(block(), name).pool()
    assert f'#include "{name}.h"' in text
    assert f"{name}_pool *{name}_pool_create(int threads) {{" in text
    assert f"if (threads > {name.upper()}_THREADS)" in text
