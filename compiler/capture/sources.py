"""Where a call stands in the user's code, and what to call its result."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import StackSummary
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_TORCH = re.compile(r"[/\\](site|dist)-packages[/\\](torch|functorch)[/\\]")
_HERE = str(Path(__file__).parent)
_PYTHON = str(Path(traceback.__file__).parent)
_ODD = re.compile(r"[^A-Za-z0-9_.]+")


def is_of_user(file: str) -> bool:
    """Whether a file is neither PyTorch's, nor Python's machinery, nor of this folder."""
    is_of_python = file.startswith(_PYTHON) and "-packages" not in file
    return not (_TORCH.search(file) or file.startswith(("<", _HERE)) or is_of_python)


def source_of(node: fx.Node) -> str:
    """``file.py:line`` of the innermost line of the user's code that made ``node``, or nothing."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    for file, line in reversed(frames):
        if is_of_user(file):
            return f"{Path(file).name}:{line}"
    return ""


def user_frame(trace: TracebackType | None) -> tuple[str, str]:
    """``file.py:line`` of the innermost frame in the user's code, and the text of that line."""
    for frame in reversed(traceback.extract_tb(trace)):
        if is_of_user(frame.filename):
            return f"{Path(frame.filename).name}:{frame.lineno}", frame.line or ""
    return "", ""


@contextmanager
def every_user_line() -> Iterator[None]:
    """While it lasts, torch notes each line of the user's code; by itself, only lines of `forward`.

    Without the hook (another PyTorch), sources name the line of the innermost forward.
    """
    from torch.fx.proxy import TracerBase

    def user_lines(_: Any, stack: StackSummary) -> StackSummary:
        names = [frame.name for frame in stack]
        start = names.index("forward") if "forward" in names else len(names)
        return StackSummary.from_list([f for f in stack[start:] if is_of_user(f.filename)])

    name = "_filter_traceback_frames"
    before = getattr(TracerBase, name, None)
    if before is not None:
        setattr(TracerBase, name, user_lines)
    try:
        yield
    finally:
        if before is not None:
            setattr(TracerBase, name, before)


def module_path(node: fx.Node) -> str:
    """The path of the module in whose forward the call stands: ``blocks.0.attention``."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    # A module that is called again has `@1` behind its path.
    return re.sub(r"@\d+", "", path)


def name_of(node: fx.Node) -> str:
    """The module's path and the operator: ``blocks.0.attention.qkv.linear``."""
    target = str(node.target)
    bare = target.split(".")[1] if target.startswith("aten.") else node.name
    path = module_path(node)
    return clean(f"{path}.{bare.strip('_')}" if path else bare.strip("_"))


def clean(name: str) -> str:
    """A name of letters, digits, dots and underscores."""
    return _ODD.sub("_", name).strip("._") or "model"
