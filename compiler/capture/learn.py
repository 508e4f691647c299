"""What calls of PyTorch tell of whole numbers: which experts are chosen, and how often each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .known import (
    Equal,
    Fact,
    Facts,
    Hits,
    Numbers,
    Occurs,
    Origin,
    Places,
    Sums,
    apply,
    constant,
    counts,
    some_count,
)

Args = Sequence[Any]
Named = Mapping[str, Any]
_Rule = Callable[..., Fact | None]

_MADE = frozenset({"arange", "full", "ones", "tensor", "zeros"})
_MADE_LIKE = {
    "new_zeros": torch.zeros, "zeros_like": torch.zeros,
    "new_ones": torch.ones, "ones_like": torch.ones,
}  # fmt: skip
# The same numbers in the same order.
_SAME = frozenset(
    {"clone", "contiguous", "cpu", "detach", "flatten", "float", "int", "long", "ravel", "reshape"}
    | {"squeeze", "to", "type", "unflatten", "unsqueeze", "view"}
)
# Some of the same numbers, or all of them in another order.
_SOME = frozenset(
    {"__getitem__", "expand", "gather", "index_select", "masked_select", "permute", "select", "t"}
    | {"take", "transpose", "swapaxes", "mT", "movedim", "chunk", "split", "unbind"}
)
# All of the numbers of several tensors.
_JOINED = frozenset(
    {"cat", "column_stack", "concat", "concatenate", "dstack", "hstack", "stack", "vstack"}
)
# Affine functions: sums and differences of counts are sums of counts.
_AFFINE = frozenset(
    {"__add__", "__getitem__", "__radd__", "__rsub__", "__sub__", "add", "cat", "clone", "concat"}
    | {"float"}
    | {"contiguous", "cpu", "cumsum", "detach", "flatten", "flip", "int", "long", "neg", "pad"}
    | {"reshape", "roll", "select", "squeeze", "stack", "sub", "subtract", "sum", "to"}
    | {"unsqueeze", "view", "__neg__"}
)  # fmt: skip
# Calls that order the axes anew.
_REORDERED = frozenset({"movedim", "moveaxis", "permute", "swapaxes", "swapdims", "t", "transpose"})
_WHERE_NOT_ZERO = frozenset({"argwhere", "nonzero", "where"})
# Comparisons of a count -> the number with which they tell whether there is any.
_IS_COUNT = {"gt": 0, "__gt__": 0, "greater": 0, "ne": 0, "__ne__": 0, "not_equal": 0} | {
    "ge": 1, "__ge__": 1, "greater_equal": 1,
}  # fmt: skip
_CONVERSIONS = frozenset({"float", "int", "long", "to"})  # exact for all counts below 2^24
_ROUTING = frozenset({"argmax", "argmin", "argsort", "max", "min", "sort", "topk"})
# The same numbers in another dtype, or in memory of their own.
_CAST = frozenset(
    {"bool", "clone", "contiguous", "cpu", "detach", "float", "int", "long", "to", "type"}
)
_MOST_CONSTANTS = 4096
_WIDE = frozenset({torch.int32, torch.int64})  # no count is too large for these


def learn(facts: Facts, function: Any, args: Args, named: Named, result: Any) -> None:
    """Notes what is known of the result of a call."""
    name = getattr(function, "__name__", "")
    if name in _ROUTING and args and isinstance(args[0], Tensor):
        _learn_choice(facts, name, args, named, result)
        return
    if name in _WHERE_NOT_ZERO and len(args) == 1:
        _learn_places(facts, args[0], result)
        return
    if name == "unbind":
        _learn_parts(facts, args, named, result)
        return
    fact = None
    if isinstance(result, Tensor):
        fact = _fact_of(facts, function, name, args, named, result)
    for written in (*(args[:1] if writes(name) else ()), named.get("out")):
        if isinstance(written, Tensor):
            facts.forget(written)
    if fact is not None:
        facts[result] = fact


def writes(name: str) -> bool:
    """Whether a call of that name changes its first tensor."""
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name == "__setitem__" or (name.startswith("__i") and name not in _NO_WRITES)


_NO_WRITES = frozenset({"__invert__", "__index__", "__int__", "__iter__"})


def _fact_of(
    facts: Facts, function: Any, name: str, args: Args, named: Named, result: Tensor
) -> Fact | None:
    if name in _MADE or name in _MADE_LIKE:
        return _made(name, function, args, named, result)
    known = facts[args[0]] if args and isinstance(args[0], Tensor) else None
    if name in _JOINED:
        joined = _joined(facts, args[0] if args else named.get("tensors"), result)
        if joined is not None:
            return joined
    rule: _Rule = _RULES.get(type(known), _of_nothing)
    found = rule(facts, known, name, args, named, result)
    wide = (*_WIDE, torch.float32) if name in _CONVERSIONS else _WIDE
    if found is None and name in _AFFINE and result.dtype in wide:
        return apply(function, args, named, facts)
    return found


def _joined(facts: Facts, parts: Any, result: Tensor) -> Numbers | None:
    """Numbers of several choices in one tensor, which are below the largest bound."""
    known = [facts[part] for part in parts] if isinstance(parts, tuple | list) else []
    bounds = [fact.bound for fact in known if isinstance(fact, Numbers)]
    if not bounds or len(bounds) < len(known) or result.dtype not in _WIDE:
        return None
    return Numbers(max(bounds), _origin(result, max(bounds)))


def _learn_parts(facts: Facts, args: Args, named: Named, result: Sequence[Tensor]) -> None:
    """The parts of a tensor along an axis, as list() and tolist() take them."""
    axis = named.get("dim", args[1] if len(args) > 1 else 0)
    known = facts[args[0]]
    for place, part in enumerate(result):
        if isinstance(known, Numbers):
            facts[part] = Numbers(known.bound, _origin(part, known.bound))
        elif isinstance(known, Sums):
            fact = apply(torch.select, (args[0], axis, place), {}, facts)
            if fact is not None:
                facts[part] = fact


def _learn_places(facts: Facts, x: Tensor, result: Any) -> None:
    """Where a vector is not zero: which numbers occur."""
    known = facts[x]
    if isinstance(known, Sums) and known.is_count_each():
        known = Occurs(x.shape[0])
    if isinstance(known, Occurs):
        (places,) = result if isinstance(result, tuple) else (result,)
        facts[places] = Places(known.classes)


def _made(name: str, function: Any, args: Args, named: Named, result: Tensor) -> Sums | None:
    sizes = all(isinstance(size, int) for size in result.shape)
    plain = result.dtype in _WIDE or result.dtype == torch.float32
    if not sizes or not plain or result.numel() > _MOST_CONSTANTS:
        return None
    if name in _MADE_LIKE:
        function, args, named = _MADE_LIKE[name], (tuple(result.shape),), {"dtype": result.dtype}
    if any(isinstance(x, Tensor) for x in (*args, *named.values())):
        return None
    return constant(function, args, {k: v for k, v in named.items() if k != "device"})


def _learn_choice(facts: Facts, name: str, args: Args, named: Named, result: Any) -> None:
    """The places that a call chose are below the length of the axis that it chose along."""
    x = args[0]
    place = 2 if name == "topk" else 1
    default = -1 if name in ("topk", "sort", "argsort") else None
    axis = named.get("dim", args[place] if len(args) > place else default)
    if name in ("argsort", "sort") and isinstance(axis, bool):
        axis = named.get("dim", -1)
    index = result if isinstance(result, Tensor) else result[1]
    if not isinstance(axis, int) or isinstance(axis, bool) or not x.dim():
        return
    size = x.shape[axis]
    if not isinstance(size, int) or (name in ("max", "min") and isinstance(result, Tensor)):
        return
    distinct = axis % x.dim() if name in ("topk", "sort", "argsort") else None
    facts[index] = Numbers(size, _origin(index, size), distinct)
    known = facts[x]
    if name in ("sort", "argsort") and isinstance(known, Numbers):
        in_place = known.origin is not None and not known.is_moved
        rises = x.dim() == 1 and not _descends(args, named)
        if in_place and rises:
            assert known.origin is not None, "looked at just now"
            known.origin.order = index.clone()
            facts[index] = Numbers(size, _origin(index, size), distinct, sorts=known.origin)
        if name == "sort":
            moved = Numbers(known.bound, known.origin, is_moved=True, is_sorted=rises)
            facts[result[0]] = moved


def _descends(args: Args, named: Named) -> bool:
    return bool(named.get("descending", False)) or any(x is True for x in args[1:])


def _origin(x: Tensor, bound: int) -> Origin | None:
    if not all(isinstance(size, int) for size in x.shape):
        return None
    return Origin(x.reshape(-1).clone(), bound, int(x.numel()))


def _of_nothing(
    facts: Facts, known: Any, name: str, args: Args, named: Named, result: Tensor
) -> Fact | None:
    """Sums over masks of which nothing else is known."""
    is_mask = args and isinstance(args[0], Tensor) and args[0].dtype == torch.bool
    counts_all = len(args) == 1 and not named
    if name in ("sum", "count_nonzero") and is_mask and counts_all:
        return some_count(args[0])
    return None


def _of_numbers(
    facts: Facts, known: Numbers, name: str, args: Args, named: Named, result: Tensor
) -> Fact | None:
    origin = known.origin
    if name == "one_hot" and origin is not None:
        return Hits(origin, int(result.shape[-1]), result.dim() - 1)
    if name in ("eq", "__eq__") and origin is not None and _is_number(args[1]):
        return Equal(origin, int(args[1]))
    if name == "view" and result.dtype != args[0].dtype:
        return None
    if name == "searchsorted" and known.is_sorted:
        return _bounds(facts, known, args[1], named)
    if name in _SAME and result.dtype in (*_WIDE, torch.float32):
        return replace(known, distinct=None) if name in _RESHAPED else known
    if name in _SOME and result.dtype in _WIDE:
        places = facts[args[-1]]
        if isinstance(places, Numbers) and places.sorts is not None and places.sorts is origin:
            return Numbers(known.bound, origin, is_moved=True, is_sorted=not known.is_moved)
        return Numbers(known.bound, _origin(result, known.bound))
    return None


def _bounds(facts: Facts, known: Numbers, values: Any, named: Named) -> Sums | None:
    """How many of sorted numbers lie below each of some constants, or not above it."""
    below = facts.sums(values)
    if known.origin is None or below is None or below.value is None:
        return None
    above = named.get("right", False) or named.get("side") == "right"
    numbers = np.arange(known.bound).reshape(-1, *(1,) * below.value.ndim)
    counted = numbers <= below.value if above else numbers < below.value
    return Sums(known.origin, np.concatenate([0 * counted[:1], counted]).astype(np.int64))


_RESHAPED = frozenset({"flatten", "ravel", "reshape", "squeeze", "unflatten", "unsqueeze", "view"})


def _is_number(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _of_hits(
    facts: Facts, known: Hits, name: str, args: Args, named: Named, result: Tensor
) -> Fact | None:
    if name in _REORDERED:
        return replace(known, axis=_axis_after(name, args, named, known.axis))
    if name in ("any", "amax") and result.shape == (known.classes,):
        return Occurs(known.classes) if known.axis not in _axes(args, named) else None
    if result.dtype not in _WIDE | {torch.bool, torch.float32}:
        return None
    if name in _CAST:
        return known
    if name in ("reshape", "view", "flatten"):
        axis = {args[0].dim() - 1: result.dim() - 1, 0: 0}.get(known.axis)
        if axis is None or result.shape[axis] != known.classes:
            return None
        return replace(known, axis=axis)
    if name != "sum":
        return None
    axes = _axes(args, named)
    if not axes or known.axis in axes:
        return None
    if result.dim() == 1:
        return counts(known.origin, known.classes)
    keep = named.get("keepdim", len(args) > 2 and args[2])
    before = 0 if keep else sum(axis < known.axis for axis in axes)
    return replace(known, axis=known.axis - before)


def _axes(args: Args, named: Named) -> list[int]:
    """The axes that a reduction takes away; none where it takes all."""
    axes = named.get("dim", named.get("axis", args[1] if len(args) > 1 else ()))
    return [axis % args[0].dim() for axis in ((axes,) if isinstance(axes, int) else axes or ())]


def _axis_after(name: str, args: Args, named: Named, axis: int) -> int:
    """Where an axis lies after a call that orders them anew."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        sizes = [2 if at == axis else 1 for at in range(args[0].dim())]
        moved = getattr(torch.empty(sizes), name)
        return list((moved(*args[1:], **named) if callable(moved) else moved).shape).index(2)


def _of_equal(
    facts: Facts, known: Equal, name: str, args: Args, named: Named, result: Tensor
) -> Fact | None:
    if name in _SAME and result.dtype != torch.bool:
        return known
    if name in _SAME:
        return known
    if name not in ("sum", "count_nonzero") or len(args) > 1 or named:
        return None
    every = counts(known.origin, known.origin.bound)
    if not 0 <= known.number < known.origin.bound:
        return None
    return Sums(known.origin, every.parts[:, known.number])


def _of_sums(
    facts: Facts, known: Sums, name: str, args: Args, named: Named, result: Tensor
) -> Fact | None:
    """Ones written into zeros at the experts' numbers; which of them occur."""
    compared = name in _IS_COUNT and _is_number(args[1]) and args[1] == _IS_COUNT[name]
    if compared or name == "bool":
        return Occurs(int(result.shape[0])) if known.is_count_each() else None
    if known.value is None or bool((known.value != 0).any()):
        return None
    if name.startswith("scatter"):
        return _scattered(facts, name, args, named)
    if name.rstrip("_") == "index_add" and len(args) == 4 and not named:
        index = facts[args[2]]
        if isinstance(index, Numbers) and index.origin is not None and _is_one(facts, args[3]):
            return counts(index.origin, int(known.value.shape[0])) if result.dim() == 1 else None
    return None


def _of_places(
    facts: Facts, known: Places, name: str, args: Args, named: Named, result: Tensor
) -> Fact | None:
    """The same places with one axis more or less."""
    column = name in ("__getitem__", "select") and args[0].dim() == 2 and result.dim() == 1
    whole = column and (name == "select" or not isinstance(args[1], int | Tensor))
    return known if whole or (name in _SAME and result.dtype in _WIDE) else None


def _scattered(facts: Facts, name: str, args: Args, named: Named) -> Fact | None:
    if len(args) != 4 or named:
        return None
    x, axis, index, ones = args
    numbers = facts[index]
    if not isinstance(numbers, Numbers) or numbers.origin is None or not _is_one(facts, ones):
        return None
    adds = name.startswith("scatter_add")
    last = x.dim() - 1
    rows = x.shape[:-1] == index.shape[:-1]
    if axis % x.dim() != last or not rows or x.shape[-1] < numbers.bound:
        return None
    if not (adds or numbers.distinct == last == index.dim() - 1):
        return None
    return (
        Hits(numbers.origin, int(x.shape[-1]), last) if x.dim() > 1 else _if_adds(adds, numbers, x)
    )


def _if_adds(adds: bool, numbers: Numbers, x: Tensor) -> Fact | None:
    assert numbers.origin is not None, "looked at by the caller"
    return counts(numbers.origin, int(x.shape[0])) if adds else None


def _is_one(facts: Facts, x: Any) -> bool:
    if isinstance(x, int | float):
        return x == 1
    fact = facts[x]
    return isinstance(fact, Sums) and fact.value is not None and bool((fact.value == 1).all())


_RULES: dict[type, _Rule] = {
    Numbers: _of_numbers,
    Hits: _of_hits,
    Equal: _of_equal,
    Places: _of_places,
    Sums: _of_sums,
}
