"""GPU kernels as machine code, compiled by Triton on a machine that needs no GPU and no driver.

Triton runs in processes of their own, one a core: what is set for Triton in this process and its
environment (TRITON_INTERPRET above all) does not change the code, and a crash is an error message.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

import attrs

from ...kernels.gpu.launch import Launch
from ..errors import (
    ButterflycError,
    Damaged,
    ToolFailed,
    ToolMissing,
    UnknownName,
    Unsupported,
    UsageError,
)
from ..run.native import cores

# Where the modules of launches are.
KERNELS = Launch.__module__.rpartition(".")[0]
# Bytes of an argument, by its type; buffers are addresses.
POINTER_BYTES = 8
NUMBER_BYTES = {"i32": 4, "fp32": 4}

METADATA = "kernels/gpu.json"
SCHEMA = 1
# Variables by which Triton, LLVM and ptxas are told to make other code, or to write files ...
_PREFIXES = ("TRITON_", "MLIR_", "LLVM_", "NVPTX_", "PTXAS_", "DISABLE_", "USE_IR_LOC")
# ... but for those that name another ptxas: code of an older one runs with older drivers.
_KEPT = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")
# No line numbers: they would bring the paths of this machine into the code.
_SET = {"TRITON_DISABLE_LINE_INFO": "1"}
_CHILD = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from {module} import serve
serve()
"""
_MOST_LINES = 30


@attrs.frozen
class Code:
    """A compiled kernel. It runs in blocks of 32 * ``warps`` threads.

    ``parameters`` are the bytes of each parameter of ``entry``; the last ``trailing`` of them are
    addresses that Triton adds behind the launch's arguments, all of which are to be null.
    ``shared`` are the bytes of dynamic shared memory that a block needs.
    """

    symbol: str
    capability: int
    entry: str
    warps: int
    shared: int
    parameters: tuple[int, ...]
    trailing: int
    cubin: bytes = attrs.field(repr=False)

    @property
    def path(self) -> str:
        """The code's file in an artefact."""
        return f"kernels/sm{self.capability}/{self.symbol}.cubin"


def argument_bytes(launch: Launch) -> tuple[int, ...]:
    """The sizes of a launch's arguments as a kernel's parameters. Raises UsageError."""
    for name, argument in launch.arguments:
        if not argument.is_buffer and argument.type not in NUMBER_BYTES:
            raise UsageError(
                f"argument '{name}' of {launch.function} is of type {argument.type}",
                help=f"numbers are {' or '.join(NUMBER_BYTES)}, buffers start with *",
            )
    return tuple(
        POINTER_BYTES if argument.is_buffer else NUMBER_BYTES[argument.type]
        for _, argument in launch.arguments
    )


def compile_launch(
    launch: Launch, capability: int, package: str = KERNELS, cache: Path | None = None
) -> Code:
    """What ``launch`` runs on GPUs of ``capability``; as `compile_all`."""
    return compile_all([launch], capability, package=package, cache=cache)[launch.symbol]


def compile_all(
    launches: Iterable[Launch],
    capability: int,
    progress: Callable[[str], None] = lambda _: None,
    package: str = KERNELS,
    cache: Path | None = None,
) -> dict[str, Code]:
    """The code of every launch by its symbol, each compiled once, on all cores.

    ``package`` is where the modules of launches are; ``cache`` a folder in which Triton keeps what
    it has compiled. The same launches give the same bytes on every machine with this version of
    Triton. Raises ToolMissing without Triton, ToolFailed with Triton's message, Unsupported.
    """
    if find_spec("triton") is None:
        raise ToolMissing(
            "kernels for GPUs are compiled by Triton, which is not installed",
            help='pip install "butterflyc[gpu]"',
        )
    wanted = {launch.symbol: launch for launch in launches}
    for launch in wanted.values():
        argument_bytes(launch)
    if not wanted:
        return {}
    workers, found = min(len(wanted), cores()), {}
    with ExitStack() as stack:
        folder = cache or Path(stack.enter_context(TemporaryDirectory(prefix="butterflyc-triton-")))
        idle: SimpleQueue[_Process] = SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(_process(_environment(folder))))

        def compiled(launch: Launch) -> Code:
            process = idle.get()
            try:
                return process.compiled(package, launch, capability)
            finally:
                idle.put(process)

        pool = ThreadPoolExecutor(workers)
        # Before the processes end; after an error, without what has not been begun.
        stack.callback(pool.shutdown, cancel_futures=True)
        for symbol, code in zip(wanted, pool.map(compiled, wanted.values()), strict=True):
            progress(f"compiled {symbol} for sm_{capability}")
            found[symbol] = code
    return found


def _environment(cache: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or not k.startswith(_PREFIXES)}
    return kept | _SET | {"TRITON_CACHE_DIR": str(cache)}


@attrs.frozen
class _Process:
    """A process that compiles launches, one after another; ``printed`` is what it writes beside."""

    child: subprocess.Popen[bytes]
    printed: IO[bytes]

    def compiled(self, package: str, launch: Launch, capability: int) -> Code:
        requests, answers = self.child.stdin, self.child.stdout
        assert requests is not None, "it was asked for"
        assert answers is not None, "it was asked for"
        try:
            pickle.dump((package, launch, capability), requests)
            requests.flush()
            answer = pickle.load(answers)
        except (EOFError, OSError) as error:
            with suppress(OSError):  # of what the child has not read
                requests.close()
            raise self._crash(launch, capability) from error
        if isinstance(answer, ButterflycError):
            raise answer
        assert isinstance(answer, Code), f"the answer is {type(answer).__name__}"
        return answer

    def _crash(self, launch: Launch, capability: int) -> ToolFailed:
        status = self.child.wait()
        self.printed.seek(0)
        printed = self.printed.read().decode(errors="backslashreplace")
        return ToolFailed(
            f"the process that compiles {launch.symbol} for sm_{capability} ended with status "
            f"{status}{_shown(printed)}",
            help="a status below 0 is a signal: -9 where memory ran out, -11 a fault of Triton",
        )


@contextmanager
def _process(environment: Mapping[str, str]) -> Iterator[_Process]:
    command = [sys.executable, "-c", _CHILD.format(module=__name__), json.dumps(sys.path)]
    with (
        TemporaryFile() as printed,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            env=environment,
        ) as child,
    ):
        yield _Process(child, printed)


def _shown(printed: str) -> str:
    """The last lines of what was printed, to stand behind what happened."""
    lines = [line.rstrip() for line in printed.splitlines() if line.strip()]
    return "".join(f"\n  | {line}" for line in lines[-_MOST_LINES:])


def serve() -> None:
    """In a process of its own: reads launches from its input and writes what became of each."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # where Triton prints what goes wrong
        while True:
            try:
                request = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            pickle.dump(_answer(*request), answers)
            answers.flush()


def _answer(package: str, launch: Launch, capability: int) -> Code | ButterflycError:
    try:
        return _compiled(package, launch, capability)
    except ButterflycError as error:
        return error
    except Exception as error:
        return ToolFailed(
            f"Triton does not compile {launch.function} for sm_{capability}: "
            f"{type(error).__name__}{_shown(str(error))}",
            where=f"{package}.{launch.module}",
        )


def _compiled(package: str, launch: Launch, capability: int) -> Code:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, constants = _function(package, launch), dict(launch.constants)
    types = {name: argument.type for name, argument in launch.arguments}
    names = list(function.arg_names)
    if sorted(names) != sorted([*types, *constants]):
        raise UsageError(
            f"{launch.function} takes {', '.join(names)}; "
            f"its launch gives {', '.join([*types, *constants])}",
            where=f"{package}.{launch.module}",
        )
    # Of `Launch.key`, so that one code serves all launches of a symbol.
    aligned = [name for name, _, aligned in launch.key[2] if aligned and types[name] != "fp32"]
    source = ASTSource(
        fn=function,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "enable_fp_fusion": True,
        # Without tf32, which is what Triton takes where a product of float32 says nothing.
        "allowed_dot_input_precisions": ("ieee", "tf32x3"),
    }
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _code(launch, capability, made.metadata, made.asm["ptx"], made.asm["cubin"])


def _function(package: str, launch: Launch) -> Any:
    try:
        return getattr(import_module(f"{package}.{launch.module}"), launch.function)
    except (ImportError, AttributeError) as error:
        raise UnknownName(
            f"there is no kernel {launch.function} in {package}.{launch.module}: {error}",
            help="a launch names a file of kernels/gpu, and a function in it",
        ) from error


def _code(launch: Launch, capability: int, metadata: Any, ptx: str, cubin: bytes) -> Code:
    """What Triton made. Raises Unsupported where a launch would need more than it says."""
    for kind in ("global", "profile"):
        size = getattr(metadata, f"{kind}_scratch_size")
        if size:
            raise Unsupported(
                f"{launch.function} needs {size} bytes of {kind} scratch a block from Triton, "
                "which a launch does not allocate",
                help="address memory by pointers in place of tensor descriptors made in the kernel",
            )
    parameters, given = parameter_bytes(ptx, metadata.name), argument_bytes(launch)
    added = parameters[len(given) :]
    if parameters[: len(given)] != given or set(added) - {POINTER_BYTES}:
        raise Unsupported(
            f"{launch.function} has parameters of {list(parameters)} bytes, its launch gives "
            f"{list(given)}, and only addresses may follow",
            help="this version of Triton passes parameters in a way that is not known here",
        )
    return Code(
        symbol=launch.symbol,
        capability=capability,
        entry=metadata.name,
        warps=metadata.num_warps,
        shared=metadata.shared,
        parameters=parameters,
        trailing=len(added),
        cubin=cubin,
    )


def parameter_bytes(ptx: str, entry: str) -> tuple[int, ...]:
    """The sizes of the parameters of ``entry``; 0 for one that is no number and no address."""
    listed = re.search(rf"\.entry\s+{re.escape(entry)}\s*\(([^)]*)\)", ptx)
    assert listed is not None, f"Triton names {entry}, which its PTX does not have"
    sizes = re.findall(r"\.param\s+(?:\.[a-z](\d+)|\.align)", listed[1])
    return tuple(int(bits or 0) // 8 for bits in sizes)


def to_files(codes: Iterable[Code]) -> dict[str, bytes]:
    """The files of an artefact that hold ``codes``: one of metadata, and a cubin of each."""
    kept = sorted(codes, key=lambda code: code.path)
    entries = [attrs.asdict(code, filter=attrs.filters.exclude("cubin")) for code in kept]
    text = json.dumps({"schema": SCHEMA, "codes": entries}, indent=1, sort_keys=True)
    return {METADATA: text.encode(), **{code.path: code.cubin for code in kept}}


def from_files(files: Mapping[str, bytes]) -> tuple[Code, ...]:
    """The codes in an artefact's ``files``. Raises Damaged with the file that is wrong."""
    try:
        data = json.loads(files[METADATA])
        schema, entries = data["schema"], data["codes"]
        if schema != SCHEMA or set(data) != {"schema", "codes"}:
            raise ValueError(f"schema {schema} and {sorted(data)}, not schema {SCHEMA} and codes")
        return tuple(_from_entry(entry, files) for entry in entries)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(
            f"{METADATA} does not describe the kernels beside it: {type(error).__name__}: {error}",
            help="compile the model again, or take the butterflyc that made the artefact",
        ) from error


def _from_entry(entry: Mapping[str, Any], files: Mapping[str, bytes]) -> Code:
    kinds = {"symbol": str, "entry": str, "parameters": list}
    for name, value in entry.items():
        kind = kinds.get(name, int)
        if type(value) is not kind:
            raise TypeError(f"{name} is {value!r}, not of type {kind.__name__}")
    values = {**entry, "parameters": _sizes(entry["parameters"])}
    code = Code(**values, cubin=b"")
    return attrs.evolve(code, cubin=files[code.path])


def _sizes(values: Sequence[Any]) -> tuple[int, ...]:
    if not all(type(value) is int for value in values):
        raise TypeError(f"parameters are {values!r}, not numbers")
    return tuple(values)
