"""A model as it is captured and compared with: in eval mode, and left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode without gradients or fused encoder kernels; afterwards as it was.

    The fused kernels leave out padded tokens: capture sees none either.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    with _kept(model), torch.no_grad():
        with suppress(NotImplementedError):  # the module of an exported program has one mode only
            model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """What forward puts into attributes and buffers, or writes to them, is undone afterwards.

    Parameters are not copied: a model that writes to them is refused before it runs.
    """
    held: list[Any] = [vars(module) for module in model.modules()]
    held += [part for attributes in held for part in attributes.values() if _grows(part)]
    before = [(part, part.copy()) for part in held]
    values = (x for part in held for x in (part.values() if isinstance(part, dict) else part))
    tensors = [x for x in values if isinstance(x, Tensor) and not isinstance(x, nn.Parameter)]
    # What was made in inference mode cannot be written to outside of it.
    copies = [(x, x._version, x.detach().clone()) for x in tensors if not x.is_inference()]
    try:
        yield
    finally:
        for part, was in before:
            part.clear()
            (part.extend if isinstance(part, list) else part.update)(was)
        for x, version, copy in copies:
            if x._version != version:
                x.detach().copy_(copy)


def kept_by(model: nn.Module) -> dict[str, Any]:
    """What the attributes of all modules are, for comparison with a later state."""
    return {
        f"{path}.{name}".strip("."): (id(value), len(value) if _grows(value) else 0)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
    }


def _grows(value: Any) -> bool:
    return isinstance(value, list | dict | set)
