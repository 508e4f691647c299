"""Imports run one way: kernels < compiler < passes < targets < butterflyc; models stand apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("kernels", "compiler", "passes", "targets", "butterflyc")
# The house that models may use: nothing but its errors.
OPEN_TO_MODELS = "butterflyc.compiler.errors"


def module_name(path: Path) -> str:
    """The import name of a file: ``butterflyc.`` plus its path in the repository."""
    parts = list(path.with_suffix("").parts)
    if parts[0] != "butterflyc":
        parts.insert(0, "butterflyc")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def layer_of(module: str) -> str:
    """The top folder that a module of the package lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in (*LAYERS, "models") else "butterflyc"


def imported(path: Path, source: str) -> list[tuple[int, str, bool]]:
    """Every import in a file: its line, its absolute name, and whether it is relative."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
            found += [(node.lineno, name, True) for name in names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module, False))
    return found


def faults(path: Path, source: str) -> list[str]:
    """Every import in a file that runs the wrong way, or names the package in full."""
    here = layer_of(module_name(path))
    bad = []
    for line, name, relative in imported(path, source):
        top = name.split(".")[0]
        if not relative:
            if top in (*LAYERS, "models"):
                bad.append(f"{path}:{line}: `{name}`: inside the package, import relatively")
            continue
        there = layer_of(name)
        if here == "models":
            wrong = there != "models" and not f"{name}.".startswith(f"{OPEN_TO_MODELS}.")
        elif there == "models":
            wrong = here != "butterflyc"
        else:
            wrong = LAYERS.index(there) > LAYERS.index(here)
        if wrong:
            bad.append(f"{path}:{line}: {here} imports {name}")
    return bad


def package_files() -> list[Path]:
    files = [
        path.relative_to(ROOT)
        for part in (*LAYERS, "models")
        for path in sorted((ROOT / part).rglob("*.py"))
    ]
    # `butterflyc/` may hold links to its sister folders (`make links`).
    return [path for path in files if not any((ROOT / up).is_symlink() for up in path.parents)]


def test_imports_run_one_way() -> None:
    """No file of the package imports from a layer above its own."""
    bad = [fault for path in package_files() for fault in faults(path, (ROOT / path).read_text())]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/dense.py", "from ..compiler import errors"),
        ("kernels/dense.py", "from ..models import vit"),
        ("compiler/ir/graph.py", "from ...passes import canonicalize"),
        ("compiler/ir/graph.py", "from ... import __version__"),
        ("compiler/ir/__init__.py", "from ...targets import cpu"),
        ("passes/fuse.py", "def late():\n    from ..targets.cpu import emit"),
        ("models/vit.py", "from ..compiler.ir import graph"),
        ("models/vit.py", "from ..compiler.errors_of_mine import x"),
        ("targets/cpu.py", "import butterflyc.passes.fuse"),
        ("targets/cpu.py", "from kernels import dense"),
        ("targets/cpu.py", "from ..butterflyc import build"),
    ],
)
def test_wrong_way_is_seen(path: str, source: str) -> None:
    """An import that breaks the rule is found, at whatever depth it stands."""
    assert len(faults(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/dense.py", "from .record import Kernel\nimport numpy"),
        ("compiler/ir/graph.py", "from .types import Type\nfrom ..errors import Damaged"),
        ("passes/fuse.py", "from ..compiler.ir import graph\nfrom ..kernels import layout"),
        ("models/vit.py", "from ..compiler.errors import BadInput\nfrom . import rotation"),
        ("models/vit.py", "from ..compiler import errors"),
        ("butterflyc/cli/demo.py", "from ..models import vit\nfrom ..targets import cpu"),
    ],
)
def test_right_way_is_let_pass(path: str, source: str) -> None:
    """An import that keeps the rule is not reported."""
    assert faults(Path(path), source) == []
