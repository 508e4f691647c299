"""What a model returns, as a row of results.

Results are taken from front to back: of tuples and lists by place, of dicts, named tuples and
dataclasses by name, in the order in which these hold them. None and text are no results; a number
of Python is a result without axes, and so is one that only data tells.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, OutputKind

from ..errors import Unsupported
from ..ir.graph import unique
from .number import Array, Number
from .sources import clean, is_of_user
from .structure import Place, parts_of, places_of

_NUMBERS = (bool, int, float, torch.SymBool, torch.SymInt, torch.SymFloat)
# A bool is an int too, so it stands first.
_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float32}
_WANTED = "return tensors: one, or tuples, lists, dicts, named tuples or dataclasses of them"


def results_of(returned: Any, where: str = "") -> list[tuple[Place, Any]]:
    """Each result, a tensor or a number, and its place. Raises Unsupported for what is neither."""
    return list(_results(returned, (), where))


def _results(value: Any, place: Place, where: str) -> Iterator[tuple[Place, Any]]:
    if is_no_result(value):
        return
    if isinstance(value, Number | Array):
        yield place, value.tensor
    elif isinstance(value, np.ndarray | np.generic):
        yield place, torch.as_tensor(value)
    elif isinstance(value, (Tensor, *_NUMBERS)):
        yield place, value
    else:
        for key, part in _parts(value, place, where):
            yield from _results(part, (*place, key), where)


def is_no_result(value: Any) -> bool:
    """Whether a model may return ``value`` beside its results: it is computed from nothing."""
    return value is None or isinstance(value, str)


def _parts(value: Any, place: Place, where: str) -> Iterable[tuple[str | int, Any]]:
    """What a structure holds; torch's order goes first, which programs are exported in."""
    parts = parts_of(value)
    if parts is not None:
        return parts
    if isinstance(value, Mapping):
        return ((str(key), part) for key, part in value.items())
    if isinstance(value, tuple | list):
        return enumerate(value)
    if is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in fields(value))
    at = f" as result {'.'.join(map(str, place))}" if place else ""
    raise Unsupported(
        f"the model returns a {type(value).__name__}{at}",
        where=where or None,
        help=_WANTED,
    )


def places_in(program: ExportedProgram) -> list[Place]:
    """The place of each result of an exported program."""
    spec = program.call_spec.out_spec
    assert spec is not None, "torch.export tells what a program returns"
    users = (
        output.arg
        for output in program.graph_signature.output_specs
        if output.kind == OutputKind.USER_OUTPUT
    )
    return [
        place
        for place, arg in zip(places_of(spec), users, strict=True)
        if not (isinstance(arg, ConstantArgument) and is_no_result(arg.value))
    ]


def names_of(places: Sequence[Place]) -> tuple[str, ...]:
    """A name for each result, if the model gives any of them a name."""
    if all(isinstance(key, int) for place in places for key in place):
        return ()
    return unique(clean(".".join(map(str, place))) for place in places)


@contextmanager
def returning_results(model: nn.Module) -> Iterator[list[Place]]:
    """While it lasts, ``model`` returns the row of its results; gives their places in the end."""
    places: list[Place] = []

    def row(module: nn.Module, given: Any, returned: Any) -> tuple[Any, ...]:
        found = results_of(returned, forward_of(model))
        places[:] = [place for place, _ in found]
        return tuple(value for _, value in found)

    hook = model.register_forward_hook(row)
    try:
        yield places
    finally:
        hook.remove()


def check_some(places: list[Place], where: str = "") -> None:
    """Unsupported unless there is a result."""
    if not places:
        what = "the model returns no tensor, so there is nothing to compute"
        raise Unsupported(what, where=where or None, help=_WANTED)


def forward_of(model: nn.Module) -> str:
    """``file.py:line`` of the model's forward, or nothing."""
    code = getattr(inspect.unwrap(model.forward), "__code__", None)
    if code is None or not is_of_user(code.co_filename):
        return ""
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def number_as_tensor(number: bool | int | float) -> Tensor:
    """A number of Python as a result."""
    dtype = next(dtype for kind, dtype in _DTYPES.items() if isinstance(number, kind))
    return torch.tensor(number, dtype=dtype)


def arrays_of(returned: Any) -> tuple[np.ndarray, ...]:
    """The results that a model returned, as arrays."""
    values = (value for _, value in results_of(returned))
    return tuple(array_of(v if isinstance(v, Tensor) else number_as_tensor(v)) for v in values)


def array_of(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor, wherever and however it holds them."""
    return tensor.detach().cpu().resolve_conj().resolve_neg().numpy()
