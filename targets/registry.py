"""The cores and boards that can be compiled for: one TOML file each, in ``cores/`` or a user's."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs

from ..compiler.errors import UsageError, unknown_name

CORES = Path(__file__).parent / "cores"


@attrs.frozen
class Memory:
    """One memory region: ``nominal`` bytes it has, ``usable`` are left for a model.

    ``window`` is the most bytes of it that the chip can address at once. Of a flash, ``firmware``
    are the bytes that are not for a model (what is not usable, if None), and ``partition`` is the
    part that holds the program (all of it, if None). What is ``optional`` is not there unless a
    user says so: PSRAM, which some modules have beside the chip.
    """

    name: str
    nominal: int = attrs.field(validator=attrs.validators.gt(0))
    usable: int = attrs.field(validator=attrs.validators.gt(0))
    window: int | None = None
    firmware: int | None = None
    partition: int | None = None
    optional: bool = False

    @usable.validator
    def _not_over_nominal(self, _: object, usable: int) -> None:
        if usable > self.nominal:
            raise ValueError(f"usable {usable:,} bytes of nominal {self.nominal:,}")


@attrs.frozen
class GpuFacts:
    """Of a GPU: compute ``capability`` (10 * major + minor), bytes of shared memory that a block
    may have, and peaks: ``bandwidth`` in bytes a second, ``products`` in 16-bit multiply-adds a
    second.
    """

    capability: int
    multiprocessors: int = attrs.field(validator=attrs.validators.gt(0))
    shared_bytes: int = attrs.field(validator=attrs.validators.gt(0))
    bandwidth: int = attrs.field(validator=attrs.validators.gt(0))
    products: int = attrs.field(validator=attrs.validators.gt(0))


@attrs.frozen
class Core:
    """What is known about a core or board; only its family reads it.

    ``family`` is a file of ``targets/``, ``triple``, ``cpu`` and ``features`` are LLVM's names
    (``native``: this machine's), ``lanes`` names a vector unit, ``memories`` is empty where memory
    is no limit, ``toolchain`` lists C compilers by preference (``zig`` is that of the package
    ziglang), and ``runner`` is how a compiled model runs here: ``native``, or the name of an
    emulator, of whose processors ``emulator_cpu`` is the one to take. ``cpu_features`` are what a
    CPU must have to run the code, as Linux prints them. ``gpu`` are the sizes of a GPU.
    """

    name: str = attrs.field(validator=attrs.validators.matches_re(r"[a-z0-9][a-z0-9+-]*"))
    family: str
    description: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    lanes: str
    toolchain: tuple[str, ...]
    runner: str
    memories: tuple[Memory, ...] = ()
    clock_hz: int | None = None
    cpu_features: tuple[str, ...] | None = None
    emulator_cpu: str | None = None
    gpu: GpuFacts | None = None

    def memory(self, name: str) -> Memory | None:
        """The memory of that name that is there, if any."""
        found = (m for m in self.memories if m.name == name and not m.optional)
        return next(found, None)


def core_names() -> tuple[str, ...]:
    """The names of all cores and boards that we ship, sorted."""
    return tuple(sorted(path.stem for path in CORES.glob("*.toml")))


def load_core(name: str, extra_file: Path | None = None) -> Core:
    """The core of that name: the one in ``extra_file``, or one that we ship.

    Raises ``UnknownName`` with the nearest names, ``UsageError`` listing every fault of a file.
    """
    extra = _read(extra_file) if extra_file else None
    if extra and extra.name == name:
        return extra
    if name not in core_names():
        raise unknown_name("target", name, {*core_names(), *([extra.name] if extra else [])})
    return _read(CORES / f"{name}.toml")


def describe(name: str, extra_file: Path | None = None) -> dict[str, Any]:
    """The same as plain data, for ``--json``."""
    return attrs.asdict(load_core(name, extra_file))


def core_from(data: Mapping[str, Any]) -> Core:
    """The core that `describe` gave as plain data. Raises what cattrs raises for other data."""
    from cattrs import Converter

    converter = Converter(forbid_extra_keys=True)
    for kind in (int, str, bool):  # cattrs would make "8" of 8, and 8 of "8"
        converter.register_structure_hook(kind, _exactly)
    return converter.structure(data, Core)


def family_of(core: Core) -> Any:
    """The module beside this one that compiles for ``core``."""
    return import_module(f".{core.family}", __package__)


def _read(path: Path) -> Core:
    from cattrs import ClassValidationError, transform_error
    from cattrs.errors import IterableValidationError

    try:
        core = core_from(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}",
            help="give a TOML file like those in targets/cores/",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML file: {error}") from error
    except (ClassValidationError, IterableValidationError) as error:
        faults = [
            fault.replace(" @ $.", " at ").removesuffix(" @ $")
            for fault in transform_error(error, format_exception=_fault)
        ]
        raise UsageError(
            f"{path} describes no target: {'; '.join(faults)}",
            help=f"keys: {', '.join(field.name for field in attrs.fields(Core))}; "
            f"{CORES / 'x86-64-v3.toml'} is an example",
        ) from error
    if path.parent == CORES and core.name != path.stem:
        raise UsageError(f"{path} describes '{core.name}', which is not its own name")
    return core


def _fault(error: BaseException, kind: type | None) -> str:
    from cattrs import ForbiddenExtraKeysError

    if isinstance(error, ForbiddenExtraKeysError):
        return f"unknown key {', '.join(sorted(error.extra_fields))}"
    if isinstance(error, KeyError):
        return "missing key"
    return str(error.args[0])


def _exactly(value: object, kind: type) -> object:
    """The value itself, if it is of this very kind (a bool is no int)."""
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, found {value!r}")
    return value
