"""butterflyc: a compiler for Butterfly mixture-of-experts models.

    import butterflyc as bc

    prog = bc.compile(model, (example,), target="host")
    y = prog(x)
    prog.save("model.bfly")

The import path of a file is ``butterflyc.`` plus its path in the repository.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file():  # a checkout: the parts lie beside this folder
    __path__.insert(0, str(_ROOT))

if TYPE_CHECKING:
    from .build import compile
    from .compiler import errors
    from .compiler.capture.claims import mark, register
    from .compiler.ir.interpret import interpret
    from .program import Program, load
    from .targets.registry import core_names as targets
    from .tuning.tune import tune
    from .verify import verify

__version__ = "0.1.0"
__all__ = [
    "Program",
    "compile",
    "errors",
    "interpret",
    "load",
    "mark",
    "register",
    "targets",
    "tune",
    "verify",
]

# What is public, and where it is: imported when it is first asked for, since torch takes seconds.
_PUBLIC = {
    "Program": (".program", "Program"),
    "compile": (".build", "compile"),
    "errors": (".compiler.errors", None),
    "interpret": (".compiler.ir.interpret", "interpret"),
    "load": (".program", "load"),
    "mark": (".compiler.capture.claims", "mark"),
    "register": (".compiler.capture.claims", "register"),
    "targets": (".targets.registry", "core_names"),
    "tune": (".tuning.tune", "tune"),
    "verify": (".verify", "verify"),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'butterflyc' has no attribute '{name}'")
    module, attribute = _PUBLIC[name]
    found = import_module(module, __name__)
    # Kept, since the import has put the module `verify` where the function belongs.
    globals()[name] = getattr(found, attribute) if attribute else found
    return globals()[name]
