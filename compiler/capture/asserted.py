"""Conditions that only check the data: `assert x.isfinite().all()`, `if bad.any(): raise ...`.

What such a line asks hangs on data, but all that it does is to fail. A model that is traced goes on
as if the check passed; the compiled model has no such checks.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import FrameType

from .sources import is_of_user

Parents = Sequence[ast.AST]  # from the outermost


def passing_answer() -> tuple[bool, str] | None:
    """What passes the check that asks, and where it stands; None if what asks is no check.

    Nor is it one where a `try` might catch what it raises.
    """
    asking: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "torch.export":
        if is_of_user(frame.f_code.co_filename):
            asking = asking or frame
            if any(isinstance(parent, ast.Try) for parent in _parents_at(*_place(frame))):
                return None
        frame = frame.f_back
    if asking is None:
        return None
    file, line = _place(asking)
    answer = _answer(file, line)
    return None if answer is None else (answer, f"{Path(file).name}:{line}")


def _place(frame: FrameType) -> tuple[str, int]:
    return frame.f_code.co_filename, frame.f_lineno


@cache
def _answer(file: str, line: int) -> bool | None:
    """What passes the check at a line; None where there is none, or parts of it are negated."""
    for statement in reversed(_parents_at(file, line)):
        if isinstance(statement, ast.Assert):
            return _same_for_all(statement.test, True)
        if isinstance(statement, ast.If):
            only_fails = all(isinstance(each, ast.Raise) for each in statement.body)
            asks = statement.test.lineno <= line <= (statement.test.end_lineno or 0)
            only_fails = only_fails and not statement.orelse
            return _same_for_all(statement.test, False) if only_fails and asks else None
    return None


def _same_for_all(test: ast.expr, answer: bool) -> bool | None:
    """The answer to every part of a test that makes it ``answer``."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _same_for_all(test.operand, not answer)
    if isinstance(test, ast.BoolOp):
        found = {_same_for_all(part, answer) for part in test.values}
        return found.pop() if len(found) == 1 else None
    return answer


@cache
def _parents_at(file: str, line: int) -> Parents:
    """The statements around a line, and that which stands there."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ()
    return tuple(_containing(tree, line))


def _containing(tree: ast.AST, line: int) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.stmt) and child.lineno <= line <= (child.end_lineno or 0):
            yield child
            yield from _containing(child, line)
        elif not isinstance(child, ast.stmt | ast.expr):  # an except clause, or a case
            yield from _containing(child, line)
