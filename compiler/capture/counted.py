"""How often numbers occur, by calls whose result is as long as only data tells.

Below a bound that is known every number may occur, so each is counted; one that does not has no
rows. The counts are sums of one-hot rows, of which it is known what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .known import Facts, Numbers
from .number import Array

Args = Sequence[Any]
Named = Mapping[str, Any]
Counting = Callable[[Facts, Args, Named], Any]  # None where torch's own call is as good


def _counts(x: Tensor, classes: int) -> Tensor:
    return F.one_hot(x.long().flatten(), classes).sum(0)


def bincount(facts: Facts, args: Args, named: Named) -> Any:
    x = args[0].tensor if isinstance(args[0], Array) else args[0]
    known = facts[x]
    least = named.get("minlength", args[2] if len(args) > 2 else 0)
    weighted = named.get("weights", args[1] if len(args) > 1 else None) is not None
    if not isinstance(known, Numbers) or weighted:
        return None
    return _counts(x, max(least, known.bound))


def histc(facts: Facts, args: Args, named: Named) -> Any:
    """Bins each of which holds one number."""
    known = facts[args[0]]
    names = ("bins", "min", "max")
    settings = dict(zip(names, args[1:], strict=False)) | dict(named)
    bins = settings.get("bins", 100)
    if not isinstance(known, Numbers) or bins < known.bound:
        return None
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        alone = torch.eye(known.bound, bins)
        each = [torch.histc(torch.tensor([float(n)]), **settings) for n in range(known.bound)]
        if not torch.equal(torch.stack(each), alone):
            return None
    return _counts(args[0], bins).to(args[0].dtype)


def one_hot(facts: Facts, args: Args, named: Named) -> Any:
    known = facts[args[0]]
    classes = named.get("num_classes", args[1] if len(args) > 1 else -1)
    return F.one_hot(args[0], known.bound) if classes == -1 and isinstance(known, Numbers) else None


def unique(facts: Facts, args: Args, named: Named) -> Any:
    """All numbers that may occur."""
    known = facts[args[0]]
    options = [name for name, value in named.items() if value and name != "sorted"]
    if not isinstance(known, Numbers) or len(args) > 2 or options not in ([], ["return_counts"]):
        return None
    numbers = torch.arange(known.bound)
    return (numbers, _counts(args[0], known.bound)) if options else numbers


def unique_consecutive(facts: Facts, args: Args, named: Named) -> Any:
    """The same where the numbers are sorted."""
    known = facts[args[0]]
    is_sorted = isinstance(known, Numbers) and known.is_sorted
    return unique(facts, args, named) if is_sorted and len(args) == 1 else None


COUNTS: dict[str, Counting] = {
    function.__name__: function
    for function in (bincount, histc, one_hot, unique, unique_consecutive)
}
