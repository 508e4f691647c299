"""Every folder that holds Python is shipped, and an install adds no top-level name but ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("compiler", "kernels", "models", "passes", "targets")
NOT_COPIED = shutil.ignore_patterns(
    ".venv", ".git", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


def listed_packages() -> set[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return set(tomllib.load(file)["tool"]["setuptools"]["packages"])


def found_packages() -> set[str]:
    folders = {path.parent for part in PARTS for path in (ROOT / part).rglob("*.py")}
    found = {".".join(("butterflyc", *folder.relative_to(ROOT).parts)) for folder in folders}
    for path in (ROOT / "butterflyc").rglob("*.py"):
        parts = path.parent.relative_to(ROOT).parts
        if len(parts) < 2 or parts[1] not in PARTS:  # the links of `make links`
            found.add(".".join(parts))
    return found


def test_every_package_folder_is_listed() -> None:
    """The packages in pyproject.toml are the folders that hold Python, no more and no less."""
    assert found_packages() == listed_packages()


def test_every_package_folder_has_an_init() -> None:
    """Each folder of the package holds ``__init__.py``, so that type checkers agree with Python."""
    for package in found_packages():
        parts = package.split(".")
        folder = ROOT.joinpath(*(parts[1:] if len(parts) > 1 and parts[1] in PARTS else parts))
        assert (folder / "__init__.py").is_file(), folder


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=NOT_COPIED)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    """The wheel has each Python file and data file of the tree once, under ``butterflyc/``."""
    shipped = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    wanted = set()
    for package in listed_packages():
        parts = package.split(".")
        folder = ROOT.joinpath(*(parts[1:] if len(parts) > 1 and parts[1] in PARTS else parts))
        wanted |= {"/".join((*parts, path.name)) for path in folder.glob("*.py")}
    data = "compiler/run/command", "compiler/run/machines", "targets/cores"
    data += "targets/package_files", "targets/prices"
    wanted |= {
        f"butterflyc/{path.relative_to(ROOT)}"
        for folder in data
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    wanted |= {"butterflyc/py.typed", "butterflyc/compiler/lower/pool.c"}
    missing = wanted - set(shipped)
    assert not missing, f"not in the wheel: {sorted(missing)}"
    assert all(name.startswith("butterflyc/") for name in shipped)
    assert len(shipped) == len(set(shipped))


@pytest.mark.slow
def test_install_adds_one_top_level_name(wheel: Path, tmp_path: Path) -> None:
    """After an install of the core, only ``butterflyc`` is new, and its commands run torch-less."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", wheel, cwd=tmp_path)
    record = run(
        python, "-c",
        "import importlib.metadata as m, json;"
        "print(json.dumps([str(p) for p in m.files('butterflyc')]))",
        cwd=tmp_path,
    )  # fmt: skip
    top = {Path(name).parts[0] for name in json.loads(record)}
    assert {name for name in top if name != ".." and ".dist-info" not in name} == {"butterflyc"}

    seen = run(
        python, "-c",
        "import importlib.util as u;"
        f"print([n for n in {(*PARTS, 'tests', 'benchmarks', 'examples')} if u.find_spec(n)])",
        cwd=tmp_path,
    )  # fmt: skip
    assert seen.strip() == "[]"

    command = tmp_path / "venv" / "bin" / "butterflyc"
    targets = json.loads(run(command, "targets", "--json", cwd=tmp_path))
    assert "host" in [target["name"] for target in targets["targets"]]
    doctor = json.loads(run(command, "doctor", "--json", cwd=tmp_path))
    assert not next(item for item in doctor["packages"] if item["name"] == "torch")["found"]
