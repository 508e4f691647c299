"""The way out of a lowering that does not serve a form of its call."""

from __future__ import annotations


class Refused(Exception):
    """A form of a known operator that has no lowering: what it is, and what to write instead."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice


def accept(condition: bool, what: str, advice: str) -> None:
    """Raises Refused unless ``condition``."""
    if not condition:
        raise Refused(what, advice)
