"""What a model uses that cannot be compiled: all of it is collected, then said at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ..errors import Unsupported
from .site import LOWERINGS

if TYPE_CHECKING:
    from torch import fx

_MOST_LINES = 6
_NOWHERE = "no source line"
MASK_ADVICE = (
    "keep all rows and select with torch.where(mask, ..., ...), or gather the parameters of the "
    "chosen expert by index"
)
STATE_ADVICE = (
    "the results depend on what an earlier call wrote, and a compiled model keeps nothing between "
    "calls: return the new value as an output, and pass the old one as an input"
)
_SIZE = f"the size of its result depends on the data: {MASK_ADVICE}"
_RANDOM = "a compiled model draws no random numbers: pass them as an input, or call model.eval()"
_CONTROL = "write the computation for all cases and select with torch.where"
_RECURRENT = "write the steps out with linear, sigmoid and tanh"

# Operators whose result has no fixed size, and what to do about each. Nothing can make them known.
OF_NO_SIZE = {
    "_local_scalar_dense": "keep the value a tensor: no .item(), int() or float()",
    "_unique": _SIZE,
    "_unique2": _SIZE,
    "bincount": "its size depends on the data: sum one_hot(x, num_classes) over the rows",
    "item": "keep the value a tensor: no .item(), int() or float()",
    "unique_consecutive": _SIZE,
    "unique_dim": _SIZE,
}
# What to do about others that people meet; the beginning of the operator's name is enough.
ADVICE = {
    "_embedding_bag": "take embedding(...) and sum or average over the axis",
    "_grouped_mm": "gather each row's matrix and use einsum, or compute all experts and select",
    "_native_batch_norm": "call model.eval() before torch.export",
    "as_strided": "use reshape, transpose, unfold or slices; select with a mask",
    "bernoulli": _RANDOM,
    "embedding_renorm": "scale the rows of the weight once, and leave max_norm out",
    "exponential": _RANDOM,
    "gru": _RECURRENT,
    "lstm": _RECURRENT,
    "multinomial": _RANDOM,
    "normal": _RANDOM,
    "rand": _RANDOM,
    "rnn": _RECURRENT,
}
HIGHER_ORDER = {
    "cond": _CONTROL,
    "map": "call the function on the whole batch",
    "scan": "write the steps out",
    "while_loop": "write the steps out, a fixed number of them",
    "wrap_with_autocast": "export the model without autocast, in float32",
    "wrap_with_set_grad_enabled": "remove torch.no_grad / enable_grad from forward",
}


def advice_for(target: str) -> str:
    """What to write instead of an operator that has no lowering."""
    if not target.startswith("aten."):
        known = HIGHER_ORDER.get(target)
        return known or "write it with the operators of torch, without custom kernels"
    bare = target.split(".")[1]
    if bare in OF_NO_SIZE:
        return OF_NO_SIZE[bare]
    for prefix in sorted(ADVICE, key=len, reverse=True):
        if bare.startswith(prefix):
            return ADVICE[prefix]
    names = sorted({name.split(".")[1] for name in LOWERINGS})
    near = get_close_matches(bare.strip("_"), names, n=3, cutoff=0.6)
    hint = f"; the nearest known are {', '.join(near)}" if near else ""
    return f"write it with elementwise operators, matmul, sum, max, gather and where{hint}"


class Refusals:
    """A list of what was refused, each with its advice and its source lines."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], Counter[str]] = {}

    def add(self, what: str, source: str, advice: str) -> None:
        self._lines.setdefault((what, advice), Counter())[source or _NOWHERE] += 1

    def add_operator(self, node: fx.Node, target: str, source: str) -> None:
        self.add(target, source, advice_for(target))

    def raise_if_any(self) -> None:
        """Raises Unsupported with every entry, if there is one."""
        if not self._lines:
            return
        calls = sum(counter.total() for counter in self._lines.values())
        head = f"{calls} call{'s' * (calls > 1)} of the model cannot be compiled:"
        entries = [f"  {what} x{found.total()}: {_places(found)}" for (what, _), found in self]
        advice = [f"{what}: {advice}" for (what, advice), _ in self]
        first = next((line for _, found in self for line in found if line != _NOWHERE), None)
        raise Unsupported(
            "\n".join([head, *entries]), where=first, help="\n        ".join(dict.fromkeys(advice))
        )

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[tuple[tuple[str, str], Counter[str]]]:
        return iter(self._lines.items())


def _places(found: Counter[str]) -> str:
    """``model.py:3, model.py:9 (2)`` and how many lines more."""
    places = [f"{line} ({n})" if n > 1 else line for line, n in found.items()]
    more = len(places) - _MOST_LINES
    return ", ".join(places[:_MOST_LINES]) + (f" and {more} lines more" if more > 0 else "")
