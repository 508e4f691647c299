"""Ops that move elements and compute none, and reductions, on torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def broadcast(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.expand(shape)


def sliced(x: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop, step)
    return x[tuple(index)]


def concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


def from_front(index: Tensor, size: int) -> Tensor:
    """Negative numbers of elements count from the end."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


def take(x: Tensor, index: Tensor, axis: int) -> Tensor:
    axis %= x.ndim
    found = x.index_select(axis, from_front(index, x.shape[axis]).reshape(-1))
    return found.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


def gather(x: Tensor, index: Tensor, axis: int) -> Tensor:
    return x.gather(axis, from_front(index, x.shape[axis]))


def reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduced(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        # Along no axis torch would reduce all.
        return function(x, dim=axes, keepdim=keep) if axes else x

    return reduced


def mean(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).mean(dim, keepdim)


def argmax(x: Tensor, axis: int, keep: bool) -> Tensor:
    return (x.byte() if x.dtype == torch.bool else x).argmax(axis, keep)


TABLE: dict[str, Callable[..., Any]] = {
    "reshape": torch.reshape,
    "transpose": lambda x, order: x.permute(order),
    "broadcast": broadcast,
    "slice": sliced,
    "concat": concat,
    "take": take,
    "gather": gather,
    "sum": reduction(torch.sum),
    "mean": reduction(mean),
    "max": reduction(torch.amax),
    "min": reduction(torch.amin),
    "argmax": argmax,
}
