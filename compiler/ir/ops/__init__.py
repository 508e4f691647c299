"""The op tables: every op by name. Adding an op is one line in the table of its family."""

from __future__ import annotations

from . import (
    butterfly,
    deep_layer,
    elementwise,
    integer,
    integer_fused,
    integer_gates,
    integer_turn,
    layer,
    linear,
    shape,
)
from .structure import STRUCTURAL
from .table import Op

FAMILIES = (
    elementwise,
    shape,
    linear,
    butterfly,
    layer,
    deep_layer,
    integer,
    integer_fused,
    integer_gates,
    integer_turn,
)
OPS: dict[str, Op] = {entry.name: entry for family in FAMILIES for entry in family.OPS}

__all__ = ["OPS", "STRUCTURAL", "Op"]
