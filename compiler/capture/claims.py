"""What a model's author says: "this value is the result of a Butterfly layer".

`mark` says it of a value in forward, `register` of what every module of a class returns. Both are
hints: recognition proves each claim, or compilation fails (`recognise_claims`).
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UsageError

MARK = "butterflyc.mark.default"
_Module = TypeVar("_Module", bound=type[nn.Module])
_REGISTERED: dict[str, type[nn.Module]] = {}


def mark(y: Tensor, label: str = "") -> Tensor:
    """``y`` itself, said to be the result of a Butterfly layer; ``label`` is for messages.

    Go on with what is returned: a mark whose result nothing uses is not part of the model. Outside
    of `torch.export` the call does nothing. Compiling raises Unsupported if the claim is false.
    """
    if not isinstance(y, Tensor):
        raise UsageError(
            f"butterflyc.mark of a {type(y).__name__}",
            help="mark the tensor that the layer returns: return butterflyc.mark(y)",
        )
    if not torch.compiler.is_exporting():
        return y
    return torch.ops.butterflyc.mark(y, label)


def register(kind: _Module) -> _Module:
    """Says that what modules of exactly this class return is marked; as a decorator or a call.

    A class of which a module returns several tensors claims that one of them is the result.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UsageError(
            f"butterflyc.register of {kind!r}",
            help="register the class of a layer, a subclass of torch.nn.Module",
        )
    _REGISTERED[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return kind


def forget(module: str) -> None:
    """Forget the classes of a Python module, which is about to be run again."""
    for name in [name for name, kind in _REGISTERED.items() if kind.__module__ == module]:
        del _REGISTERED[name]


def is_registered(name: str) -> bool:
    """Whether a class of this full name was registered."""
    return name in _REGISTERED


# An output may not share memory with an input, so in an exported program a mark is a copy.
@torch.library.custom_op("butterflyc::mark", mutates_args=())
def _mark(y: Tensor, label: str = "") -> Tensor:
    return y.clone()


@_mark.register_fake
def _(y: Tensor, label: str = "") -> Tensor:
    return torch.empty_like(y)


def _no_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """The gradient needs nothing of the call."""


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return grad, None


_mark.register_autograd(_gradient, setup_context=_no_context)


@_mark.register_vmap
def _batched(
    info: Any, in_dims: tuple[int | None, ...], y: Tensor, label: str = ""
) -> tuple[Tensor, int | None]:
    return torch.ops.butterflyc.mark(y, label), in_dims[0]
