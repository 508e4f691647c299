"""Models named on a command line: an exported program, a Python function, a checkpoint."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ButterflycError, Damaged, UsageError, unknown_name
from .sources import user_frame

CheckpointLoader = Callable[[Path], tuple[Any, Any]]
KINDS = "model.pt2, file.py:function, or a checkpoint.safetensors of butterflyc.models"
_OTHER_KINDS = {
    ".bfly": "this is a compiled model: pass it to `butterflyc run`, `verify` or `inspect`",
    ".bin": "weights without code: write a function that loads them, and pass file.py:function",
    ".ckpt": "weights without code: write a function that loads them, and pass file.py:function",
    ".onnx": "write a function that returns the torch module, and pass file.py:function",
    ".pt": "weights without code: write a function that loads them, and pass file.py:function",
    ".pth": "weights without code: write a function that loads them, and pass file.py:function",
    ".py": "name the function that returns (module, example_inputs): file.py:function",
}


def load_model(spec: str, *, checkpoint_loader: CheckpointLoader | None = None) -> tuple[Any, Any]:
    """The module (or exported program) that ``spec`` names, and example inputs for `capture`.

    ``checkpoint_loader`` reads the checkpoints of a models library, which this package does not
    know. A ``file.py`` is run: give only files that you trust. Raises UsageError for what is no
    model or is not there, Damaged for a file that cannot be read.
    """
    path, function = _split(spec)
    if not path.exists():
        raise UsageError(f"there is no file '{path}'", help=f"MODEL is {KINDS}")
    if function is not None:
        return _from_function(path, function)
    if path.suffix == ".pt2":
        return _from_program(path)
    if path.suffix == ".safetensors" and checkpoint_loader is not None:
        return checkpoint_loader(path)
    kind = "a folder" if path.is_dir() else f"a '{path.suffix}' file"
    raise UsageError(
        f"'{spec}' is {kind}, not a model", help=_OTHER_KINDS.get(path.suffix, f"MODEL is {KINDS}")
    )


def _split(spec: str) -> tuple[Path, str | None]:
    file, colon, function = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return Path(file), function
    return Path(spec), None


def _from_program(path: Path) -> tuple[Any, Any]:
    import torch

    from . import claims  # noqa: F401  (a program may hold marks)
    from .arguments import Arguments

    try:
        program = torch.export.load(path)
    except Exception as error:
        raise Damaged(
            f"'{path}' is no exported program that PyTorch {torch.__version__} can read: {error}",
            help="write it again with torch.export.save(torch.export.export(model, inputs), path)",
        ) from error
    if program.example_inputs is None:
        raise UsageError(
            f"'{path}' holds no example inputs",
            help="write it again with torch.export.save(torch.export.export(model, inputs), path)",
        )
    return program, Arguments(*program.example_inputs)


def _from_function(path: Path, name: str) -> tuple[Any, Any]:
    module = _imported(path)
    known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
    function = getattr(module, name, None)
    if not callable(function):
        raise unknown_name(f"function of {path.name}", name, known)
    with _reporting(f"{name}() of {path.name} failed"):
        returned = function()
    return _checked(f"{path.name}:{name}", returned)


def _checked(where: str, returned: Any) -> tuple[Any, Any]:
    """``returned`` as (module, example inputs)."""
    import torch

    help = (
        "return (module, (x,)): a torch.nn.Module and the arguments of its forward, a tuple, or a "
        "dict by name"
    )
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise UsageError(f"{where} returned a {type(returned).__name__}", help=help)
    model, examples = returned
    if not isinstance(model, torch.nn.Module | torch.export.ExportedProgram):
        raise UsageError(f"{where} returned a {type(model).__name__} as the module", help=help)
    if not isinstance(examples, tuple | Mapping):
        kind = type(examples).__name__
        raise UsageError(f"{where} returned a {kind} as the example inputs", help=help)
    return model, examples


def _imported(path: Path) -> ModuleType:
    """The file as a module; its neighbours can be imported from it, as from a script."""
    from .claims import forget

    name = f"_butterflyc_user_{path.stem}"
    forget(name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec, f"no loader for {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with _reporting(f"{path.name} cannot be imported"):
            # Not by the loader: its cache takes a file changed within a second for the old one.
            exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    finally:
        sys.path.remove(folder)
    return module


@contextmanager
def _reporting(what: str) -> Iterator[None]:
    """Errors of the user's code as UsageError with the line; errors of ours as they are."""
    try:
        yield
    except ButterflycError:
        raise
    except Exception as error:
        where, line = user_frame(error.__traceback__)
        if isinstance(error, SyntaxError) and error.filename:
            where, line = f"{Path(error.filename).name}:{error.lineno}", (error.text or "").strip()
        raise UsageError(
            f"{what}: {type(error).__name__}: {error}",
            where=where or None,
            help=f"mend `{line}`" if line else None,
        ) from error
