"""Programs of others that fail: each is told with the name of the program and the reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from butterflyc.compiler.errors import ToolFailed
from butterflyc.compiler.run import tools


def test_tools_that_fail_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that crashes, takes too long or fails with a message of its own is named."""
    python = [sys.executable, "-c"]
    crash = "import os; os.kill(os.getpid(), {})"
    with pytest.raises(ToolFailed, match="was ended by SIGABRT"):
        tools.run_tool([*python, crash.format(6)], tmp_path)
    with pytest.raises(ToolFailed, match="was ended by SIGKILL"):
        tools.limited([*python, crash.format(9)], 60, 10)
    with pytest.raises(ToolFailed, match="was ended by signal 40"):
        tools.limited([*python, crash.format(40)], 60, 10)
    own = f"import sys; print('{sys.executable}: no such board', file=sys.stderr); sys.exit(1)"
    with pytest.raises(ToolFailed, match=r"failed with status 1:\n.*no such board"):
        tools.limited([*python, own], 60, 10)
    monkeypatch.setattr(tools, "TOOL_SECONDS", 0.2)
    with pytest.raises(ToolFailed, match=r"took more than 0\.2 s"):
        tools.run_tool([*python, "import time; time.sleep(60)"], tmp_path)
