"""Keeping torch.export's dumps off the screen: what it refuses, our own error says in one place."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO, cast


class _WithoutGraphs:
    """A stream that lets all text pass but the graph which torch.export prints as it fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if text.lstrip().startswith("def forward(self") and "torch.ops." in text:
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _nothing(_: logging.LogRecord) -> bool:
    return False


def _handlers_of_torch() -> list[logging.Handler]:
    loggers = [
        logger
        for name, logger in list(logging.root.manager.loggerDict.items())
        if name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger)
    ]
    return list({id(h): h for logger in loggers for h in logger.handlers}.values())


@contextmanager
def quiet_torch() -> Iterator[None]:
    """While it lasts, torch logs nothing to its own handlers and prints no graphs."""
    handlers = _handlers_of_torch()
    for handler in handlers:
        handler.addFilter(_nothing)
    try:
        with redirect_stderr(cast(TextIO, _WithoutGraphs(sys.stderr))):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_nothing)
