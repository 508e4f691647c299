"""What all tests share: tools that may be missing, golden files, and settled Hypothesis profiles.

``BUTTERFLYC_STRICT_TOOLS=1`` (set in CI) turns "tool missing, skipped" into a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings

# Before torch or a BLAS is imported: as many test workers run as there are cores.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# What was measured on this machine is not to decide what tests see, nor what they start.
_nowhere = TemporaryDirectory(prefix="butterflyc-tests-")
os.environ["BUTTERFLYC_TUNE_DB"] = str(Path(_nowhere.name) / "none.sqlite")

STRICT_TOOLS = os.environ.get("BUTTERFLYC_STRICT_TOOLS", "") not in ("", "0")

# Time limits and speed checks say more about the load on the machine than about the code.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True
)
settings.load_profile("ci" if STRICT_TOOLS or "CI" in os.environ else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite golden files; review the diff"
    )
    parser.addoption(
        "--strangers-report", metavar="FILE", help="add a JSON line for each model of strangers"
    )


@pytest.fixture(scope="session")
def needs_tool() -> Callable[..., str]:
    """``needs_tool("gcc", ...)``: the path of the first one found; else skip, or fail in CI."""

    def find(*names: str) -> str:
        for name in names:
            if path := shutil.which(name):
                return path
        reason = f"{' or '.join(names)} not found; `make toolchains` may install it"
        if STRICT_TOOLS:
            pytest.fail(f"{reason} (BUTTERFLYC_STRICT_TOOLS is set)")
        pytest.skip(reason)

    return find


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """``golden(path, text)``: the file holds this text, or is rewritten by ``--update-golden``."""
    update = request.config.getoption("--update-golden")

    def compare(path: Path, text: str) -> None:
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        if not path.is_file():
            pytest.fail(f"{path} is missing; --update-golden writes it")
        want = path.read_text()
        if text != want:
            lines = unified_diff(
                want.splitlines(), text.splitlines(), str(path), "now", lineterm=""
            )
            pytest.fail("\n".join([*lines, "--update-golden rewrites the file"]))

    return compare
