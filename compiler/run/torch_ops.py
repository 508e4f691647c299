"""Every op of a floating graph on torch tensors, on whatever device they lie.

The interpreter defines what an op computes; functions here give the same, to round-off, for NaN and
infinity too. None of them waits for a device, and no shape depends on data, so a sequence of them
can be captured in a CUDA graph. A bf16 is a true one here. Ops of integer mode are not in the
table: they are for microcontrollers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..ir import Node, Type
from . import torch_ops_butterfly, torch_ops_elementwise, torch_ops_linear, torch_ops_shape
from .torch_types import TORCH

# Operands in the order of the op table, then the op's attributes by name. What a function gives may
# be wider than the result's type: `evaluate` rounds it.
TABLE: dict[str, Callable[..., Any]] = {
    **torch_ops_elementwise.TABLE,
    **torch_ops_shape.TABLE,
    **torch_ops_linear.TABLE,
    **torch_ops_butterfly.TABLE,
}


def evaluate(node: Node, operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The results of ``node``, each of its type, on the device of ``operands``."""
    found = TABLE[node.op](*operands, **node.attributes)
    parts = found if isinstance(found, tuple) else (found,)
    return tuple(x.to(TORCH[t.dtype]) for x, t in zip(parts, node.types, strict=True))


def tensor_of(array: np.ndarray, type: Type, device: torch.device | str = "cpu") -> torch.Tensor:
    """A copy of the logical ``array`` on ``device``, as torch holds ``type``."""
    return torch.from_numpy(np.array(array)).to(device, TORCH[type.dtype])
