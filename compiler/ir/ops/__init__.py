"""The op tables: every op by name. Adding an op is one line in the table of its family."""

from __future__ import annotations

from . import butterfly, elementwise, linear, shape
from .structure import STRUCTURAL
from .table import Op

OPS: dict[str, Op] = {
    entry.name: entry for family in (elementwise, shape, linear, butterfly) for entry in family.OPS
}

__all__ = ["OPS", "STRUCTURAL", "Op"]
