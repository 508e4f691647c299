"""Executes whole plans on a CPU, by Triton's interpreter.

A function of Triton is either compiled or interpreted, from where it is defined. So the files of
this folder are loaded a second time, as a package of another name, with the interpreter on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .launch import TRITON, Launch, Plan
from .library import execute, torch_dtype, unpack

if TYPE_CHECKING:
    import torch

PACKAGE = f"{__package__}_interpreted"
# What constants are for the interpreter, which has no inline assembly.
INTERPRETED = {"ASM": False}
DTYPES = {triton: name for name, triton in TRITON.items()}


def interpret(plan: Plan, buffers: dict[str, torch.Tensor]) -> None:
    """Executes ``plan`` on CPU tensors, by the names of its buffers; adds the dense copies."""
    for copy in plan.once:
        unpack(copy, buffers)
    for step in plan.steps:
        if isinstance(step, Launch):
            launch(step, buffers)
        else:
            execute(step, buffers)


def launch(step: Launch, buffers: Mapping[str, torch.Tensor]) -> None:
    """Executes one launch on CPU tensors, by the names of its buffers."""
    arguments: dict[str, Any] = dict(step.constants)
    for name, argument in step.arguments:
        if argument.is_buffer:
            dtype = torch_dtype(DTYPES[argument.type.removeprefix("*")])
            arguments[name] = buffers[str(argument.value)].reshape(-1).view(dtype)
        else:
            arguments[name] = argument.value
    arguments |= {name: value for name, value in INTERPRETED.items() if name in arguments}
    # A GPU says nothing of infinities on the way to a number.
    with _unpatched(), np.errstate(all="ignore"):
        interpreted(step.module, step.function)[step.grid](**arguments)


@cache
def interpreted(module: str, function: str) -> Any:
    """The kernel ``function`` of kernels/gpu/``module``.py, to be interpreted."""
    import triton

    if PACKAGE not in sys.modules:
        folder = Path(__file__).parent
        spec = spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None, "this file is imported, so its folder is a package"
        assert spec.loader is not None, "a package of files has a loader"
        sys.modules[PACKAGE] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    before = triton.knobs.runtime.interpret
    triton.knobs.runtime.interpret = True
    try:
        kernel = getattr(import_module(f"{PACKAGE}.{module}"), function)
    finally:
        triton.knobs.runtime.interpret = before
    _plain_device_functions()
    return kernel


def _plain_device_functions() -> None:
    """Leaves only kernels, which are named as their files, to Triton's interpreter.

    What they call is plain Python by then; as it is, each call would patch all of Triton again.
    """
    from triton.runtime.interpreter import InterpretedFunction

    for name in [name for name in sys.modules if name.startswith(f"{PACKAGE}.")]:
        module = sys.modules[name]
        vars(module)["range"] = _range
        for key, value in list(vars(module).items()):
            if isinstance(value, InterpretedFunction):
                home = value.fn.__module__.rpartition(".")[2]
                if value.fn.__name__ != home:
                    setattr(module, key, value.rewrite())


def _range(*bounds: Any) -> range:
    """The loop of a kernel. Triton 3.6 cannot make whole numbers of its numbers with NumPy 2."""
    return range(*(int(b.handle.data.item()) if hasattr(b, "handle") else b for b in bounds))


@contextmanager
def _unpatched() -> Iterator[None]:
    """Puts the functions of Triton back that its interpreter replaces by its own."""
    import triton.language as tl

    places: list[Any] = [tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.condition]
    places.append(tl.core.tensor_descriptor_base)
    before = [dict(vars(place)) for place in places]
    try:
        yield
    finally:
        for place, values in zip(places, before, strict=True):
            for name in [n for n, v in vars(place).items() if values.get(n) is not v]:
                if name in values:
                    setattr(place, name, values[name])
                else:
                    delattr(place, name)
