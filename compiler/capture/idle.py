"""A captured graph against its model, always; where it was asked about, with most experts idle.

What a model does only for an expert in use is seen where that expert gets no token: so some scores
are pushed down, in the model and in the graph alike (`pushed.py`).

Two runs in float32 may differ because a score, or a number to be rounded, lies on a tie that their
roundings decide otherwise. Such a difference is gone in double precision, or once the inputs and
the scores are moved by a little on both sides; what a graph does otherwise than its model is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..ir.graph import Graph
from ..ir.interpret import interpret
from .arguments import Arguments
from .doubled import Doubled
from .pushed import Push, PushedCalls, with_pushed
from .results import array_of, arrays_of

_LIMIT = 1e-4
_TRIALS = 4
_TRIALS_OF_WRITES = 2
# By how much inputs and scores are moved: far above rounding.
_MOVES = (1e-4, 1e-3)


def check_also_idle(model: nn.Module, graph: Graph, examples: Arguments) -> None:
    """Raises Unsupported if the graph differs from the model for natural or for pushed routing."""
    for trial in range(_TRIALS):
        for down in (None, trial) if trial else (None,):
            worst = lasting_difference(model, graph, _varied(examples, trial), down)
            if worst > _LIMIT:
                when = "on other inputs" if down is None else "where some experts get no token"
                raise Unsupported(
                    f"the model asks whether an expert has tokens, and does more than skip it: "
                    f"without the question the result differs by {worst:.1e} {when}",
                    help="keep what an idle expert adds the same as what it adds with no tokens: 0",
                )


def check_same(model: nn.Module, graph: Graph, examples: Arguments, *, writes: bool) -> None:
    """Raises Unsupported if the graph differs from the model, which has in-place calls or none.

    torch.export may lose that two values share memory; all else is a fault of the capture.
    """
    for trial in range(_TRIALS_OF_WRITES if writes else 1):
        worst = lasting_difference(model, graph, _varied(examples, trial), None)
        if worst > _LIMIT and writes:
            raise Unsupported(
                f"the model writes in place to what another value shares: captured, its result "
                f"differs by {worst:.1e}",
                help="write to a copy (x.clone()), or use calls that return a new tensor (x + 1)",
            )
        if worst > _LIMIT:
            raise Unsupported(
                f"captured, the model's result differs by {worst:.1e} from PyTorch's",
                help="this is a fault of butterflyc: please report it with the model",
            )


def lasting_difference(
    model: nn.Module, graph: Graph, given: Arguments, down: int | None = None
) -> float:
    """How far the graph is from the model on ``given``, however ties are decided.

    0 where the model fails, as some models do for an idle expert.
    """
    least = float("inf")
    for moved, apart, wide in _ways():
        inputs = given.filled([_moved(x, moved) for x in given.tensors])
        found = _difference(model, graph, inputs, Push(down, apart), wide)
        if found is None and not (moved or wide):
            return 0.0
        least = least if found is None else min(least, found)
        if least <= _LIMIT:
            break
    return least


def _ways() -> Iterator[tuple[float, float, bool]]:
    """How to compare: by how much inputs and scores are moved, and whether in double precision."""
    for move in (0.0, *_MOVES):
        yield move, move, False
        yield move, move, True


def _difference(
    model: nn.Module, graph: Graph, given: Arguments, push: Push, wide: bool
) -> float | None:
    """How far one run of the graph is from one run of the model; None where the model fails."""
    inputs = [array_of(x) for x in given.tensors]
    given = given.copied()
    try:
        with torch.no_grad(), Doubled() if wide else nullcontext(), PushedCalls(push):
            returned = model(*given.places, **given.names)
    except Exception:
        return None
    now = interpret(with_pushed(graph, push), *inputs, precision="f64" if wide else None)
    return max(_relative(a, b) for a, b in zip(now, arrays_of(returned), strict=True))


def _relative(now: np.ndarray, was: np.ndarray) -> float:
    """The largest difference, relative to the largest element."""
    finite = np.isfinite(was)
    if not np.array_equal(finite, np.isfinite(now)):
        return float("inf")
    if not np.array_equal(now[~finite], was[~finite], equal_nan=True):
        return float("inf")
    off = np.abs(now[finite].astype(np.float64) - was[finite]).max(initial=0)
    return float(off / max(np.abs(was[finite]).max(initial=0), 1e-30))


def _varied(examples: Arguments, trial: int) -> Arguments:
    """The example inputs, then others of their size and kind."""
    if trial == 0:
        return examples
    source = torch.Generator().manual_seed(trial)
    varied = []
    for x in examples.tensors:
        order = torch.randperm(x.numel(), generator=source)
        mixed = x.reshape(-1)[order].reshape(x.shape)
        noise = torch.randn(x.shape, generator=source) if x.is_floating_point() else 0
        varied.append(mixed + noise if x.is_floating_point() else mixed)
    return examples.filled(varied)


def _moved(x: Tensor, size: float) -> Tensor:
    """``x`` with each number moved by up to ``size`` of itself.

    Equal numbers stay equal and whole ones whole, since a model may ask whether they are.
    """
    if not size or not x.is_floating_point():
        return x
    scale = x.abs().nan_to_num(0, 0, 0).amax().clamp_min(1e-30) if x.numel() else 1.0
    moved = x * (1 + size * (7 * x / scale).cos())
    return torch.where(x == x.round(), x, moved)
