"""Compiled kernels on NVIDIA's driver, by ctypes: modules, arguments and launches.

Nothing here imports torch. Addresses and streams are numbers, so torch's may be given; the context
is the one that torch makes current.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Mapping, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_uint, c_void_p
from typing import Any

import attrs

from ...kernels.gpu.launch import Argument, Launch
from ..errors import BadInput, ButterflycError, DoesNotFit, Incompatible, ToolFailed, ToolMissing
from ..lower.cubin import Code, argument_bytes

LIBRARY = "libcuda.so.1"
# Addresses that kernels may take for multiples of this (`Launch.key`).
ALIGNMENT = 16
# What a block may have without being asked for.
PLAIN_SHARED_BYTES = 48 * 1024
# Chips on which code of others of the same generation does not run: those with ARM cores beside.
TEGRA = (53, 62, 72, 87, 101, 110)
THREADS_PER_WARP = 32

# Numbers of cuda.h.
_NO_DEVICE, _INVALID_CONTEXT = 100, 201
_HELP = {
    2: "the GPU has no memory left: a smaller batch needs less",
    700: "a kernel read or wrote memory that is not there; the GPU is of no use to this process "
    "any more: start it again",
}
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _SHARED_BYTES = 75, 76, 97
_STATIC_SHARED, _MOST_DYNAMIC_SHARED = 1, 8
_SIGNATURES: Mapping[str, Sequence[Any]] = {
    "cuInit": [c_uint],
    "cuDriverGetVersion": [POINTER(c_int)],
    "cuGetErrorName": [c_int, POINTER(c_char_p)],
    "cuGetErrorString": [c_int, POINTER(c_char_p)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuCtxGetCurrent": [POINTER(c_void_p)],
    "cuCtxSetCurrent": [c_void_p],
    "cuCtxGetDevice": [POINTER(c_int)],
    "cuModuleLoadData": [POINTER(c_void_p), c_char_p],
    "cuModuleUnload": [c_void_p],
    "cuModuleGetFunction": [POINTER(c_void_p), c_void_p, c_char_p],
    "cuFuncGetAttribute": [POINTER(c_int), c_int, c_void_p],
    "cuFuncSetAttribute": [c_void_p, c_int, c_int],
    # function, grid, block, shared bytes, stream, parameters, extra
    "cuLaunchKernel": [c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p],
}


def runs_on(code: int, capability: int) -> bool:
    """Whether machine code for one compute capability runs on a GPU of another.

    From 9.0 on Triton uses what one capability alone has.
    """
    if code == capability:
        return True
    same = code // 10 == capability // 10 < 9
    return same and code < capability and not {code, capability} & {*TEGRA}


class Cuda:
    """The driver's functions, each with its types; what fails becomes an error."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            loaded = ctypes.CDLL(library)
        except OSError as error:
            raise ToolMissing(
                f"this machine has no NVIDIA driver: {error}",
                help="--interpret runs it here, slowly",
            ) from error
        self._functions: dict[str, Any] = {}
        for name, types in _SIGNATURES.items():
            try:
                function = getattr(loaded, name)
            except AttributeError as error:
                raise Incompatible(
                    f"the NVIDIA driver is too old: {library} has no function {name}",
                    help="install a newer driver",
                ) from error
            function.argtypes, function.restype = types, c_int
            self._functions[name] = function
        status = self._functions["cuInit"](0)
        if status == _NO_DEVICE:
            raise ToolMissing(
                "the NVIDIA driver finds no GPU in this machine",
                help="is it hidden by CUDA_VISIBLE_DEVICES? --interpret runs it here, slowly",
            )
        self.check(status, "the NVIDIA driver does not start")

    def __getitem__(self, name: str) -> Any:
        return self._functions[name]

    def check(self, status: int, what: str) -> None:
        """Raises ToolFailed that says ``what`` happened, and why, unless ``status`` is 0."""
        if status:
            raise ToolFailed(f"{what}: {self.reason(status)}", help=_HELP.get(status))

    def reason(self, status: int) -> str:
        """The driver's name of an error, and what it says of it."""
        words = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = c_char_p()
            self[name](status, text)
            words.append((text.value or b"").decode(errors="replace"))
        return f"{words[0]} ({words[1]})" if words[0] else f"error {status}"

    def number(self, name: str, *arguments: Any) -> int:
        """What a function gives that writes an int to its first argument."""
        value = c_int()
        self.check(self[name](value, *arguments), f"{name} fails")
        return value.value

    def handle(self, name: str, *arguments: Any) -> int | None:
        """The same of a handle; None for a null one."""
        value = c_void_p()
        self.check(self[name](value, *arguments), f"{name} fails")
        return value.value


@attrs.frozen
class _Ready:
    """A launch with its arguments in place: ``pointers`` lead to them, ``buffers`` may change."""

    launch: Launch
    fixed: tuple[Any, ...]  # function, grid, block, shared bytes
    buffers: tuple[tuple[str, str, c_void_p], ...]  # parameter, buffer, address
    pointers: Any
    values: tuple[Any, ...]


class Driver:
    """Compiled kernels on one GPU, from which launches are made.

    The GPU is that of the context that is current in this thread (torch makes it so), or the
    machine's first. Of each kernel the newest code that runs there is loaded; `close` unloads it.
    """

    def __init__(self, codes: Iterable[Code], library: str = LIBRARY) -> None:
        """Loads the kernels; ``library`` is the driver's.

        Raises ToolMissing without driver or GPU, Incompatible where no kernel has code for the
        GPU, DoesNotFit where one needs more shared memory than a block has there.
        """
        self._cuda = Cuda(library)
        self._launch = self._cuda["cuLaunchKernel"]
        self._context = self._current()
        if self._context is None:  # the one that torch would take
            first = self._cuda.number("cuDeviceGet", 0)
            self._context = self._cuda.handle("cuDevicePrimaryCtxRetain", first)
            self._enter()
        device = self._cuda.number("cuCtxGetDevice")
        major, minor, self._shared_bytes = (
            self._cuda.number("cuDeviceGetAttribute", attribute, device)
            for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _SHARED_BYTES)
        )
        self.capability = 10 * major + minor
        self._modules: list[int | None] = []
        self._ready: dict[int, _Ready] = {}
        self._lock = threading.Lock()
        self._given = tuple(codes)
        self._codes = self._chosen()
        try:
            self._functions = {symbol: self._load(code) for symbol, code in self._codes.items()}
        except ButterflycError:
            self.close()
            raise

    def launch(self, launch: Launch, buffers: Mapping[str, int], stream: int = 0) -> None:
        """Puts ``launch`` on ``stream``; returns before it is done. ``buffers`` are addresses.

        The first time, arguments are laid out, and the launch is kept: give the same object again.
        From then on a call is one look-up, one store for each buffer and one call of the driver,
        which took 4 us of Python with 2 buffers and 6 us with 12 on one core of a small server. It
        asks for no memory and waits for nothing, so it can be captured in a CUDA graph. May be
        called from several threads.

        Raises BadInput for a buffer that has no address or none that is a multiple of 16,
        Incompatible without code for the launch, ToolFailed where the driver refuses it.
        """
        ready = self._ready.get(id(launch)) or self._prepare(launch)
        with self._lock:
            for parameter, name, cell in ready.buffers:
                address = buffers.get(name)
                if address is None or address % ALIGNMENT:
                    raise _no_address(launch, parameter, name, address)
                cell.value = address
            status = self._launch(*ready.fixed, stream, ready.pointers, None)
            if status == _INVALID_CONTEXT and self._current() is None:
                # A thread that has not used the GPU yet.
                self._enter()
                status = self._launch(*ready.fixed, stream, ready.pointers, None)
        if status:
            self._cuda.check(status, f"{launch.symbol} cannot be launched on {launch.grid} blocks")

    def close(self) -> None:
        """Unloads the kernels. CUDA graphs that hold them must not be replayed afterwards."""
        self._ready.clear()
        self._codes.clear()
        self._given = ()
        while self._modules:
            self._cuda.check(self._cuda["cuModuleUnload"](self._modules.pop()), "cuModuleUnload")

    def _current(self) -> int | None:
        return self._cuda.handle("cuCtxGetCurrent")

    def _enter(self) -> None:
        self._cuda.check(self._cuda["cuCtxSetCurrent"](self._context), "cuCtxSetCurrent fails")

    def _chosen(self) -> dict[str, Code]:
        """The newest code of each symbol that runs here: an artefact may have others for others."""
        codes = sorted(self._given, key=lambda code: code.capability)
        chosen = {c.symbol: c for c in codes if runs_on(c.capability, self.capability)}
        if codes and not chosen:
            raise self._no_code("no kernel has")
        return chosen

    def _no_code(self, what: str) -> Incompatible:
        there = sorted({f"sm_{code.capability}" for code in self._given})
        return Incompatible(
            f"{what} code for this GPU, which is of sm_{self.capability}; "
            f"there is some for {', '.join(there) or 'none'}",
            help=f"compile the model for it: --target cuda-sm{self.capability}",
        )

    def _load(self, code: Code) -> int | None:
        """The function of ``code``, ready to be launched."""
        module = c_void_p()
        status = self._cuda["cuModuleLoadData"](module, code.cubin)
        if status:
            version = self._cuda.number("cuDriverGetVersion")
            raise Incompatible(
                f"the NVIDIA driver, which is for CUDA {version // 1000}.{version % 1000 // 10}, "
                f"does not load {code.symbol}: {self._cuda.reason(status)}",
                help="install a newer driver; or compile the model again with an older ptxas: set "
                "TRITON_PTXAS_PATH, and TRITON_PTXAS_BLACKWELL_PATH, to one of this CUDA",
            )
        self._modules.append(module.value)
        function = self._cuda.handle("cuModuleGetFunction", module, code.entry.encode())
        # Asking for it also loads what drivers leave for a first launch, which a graph may not do.
        static = self._cuda.number("cuFuncGetAttribute", _STATIC_SHARED, function)
        if static + code.shared > self._shared_bytes:
            raise DoesNotFit(
                f"{code.symbol} needs {static + code.shared:,} bytes of shared memory, "
                f"a block has {self._shared_bytes:,} on this GPU",
                help=f"compile the model again: --target cuda-sm{self.capability}",
            )
        if code.shared > PLAIN_SHARED_BYTES:
            status = self._cuda["cuFuncSetAttribute"](function, _MOST_DYNAMIC_SHARED, code.shared)
            self._cuda.check(status, f"{code.symbol} cannot have {code.shared:,} bytes")
        return function

    def _prepare(self, launch: Launch) -> _Ready:
        code, given = self._codes.get(launch.symbol), argument_bytes(launch)
        if code is None:
            raise self._no_code(f"{launch.symbol} has no")
        if code.parameters != (*given, *[ctypes.sizeof(c_void_p)] * code.trailing):
            raise Incompatible(
                f"{launch.symbol} takes parameters of {list(code.parameters)} bytes, "
                f"the last {code.trailing} of them null, but the launch gives {list(given)}",
                help="compile the model again",
            )
        values = [*(_value(launch, *item) for item in launch.arguments)]
        values += [c_void_p() for _ in range(code.trailing)]
        addresses = [ctypes.addressof(value) for value in values]
        block = (THREADS_PER_WARP * code.warps, 1, 1)
        sizes = map(c_uint, (*launch.grid, *block, code.shared))
        ready = _Ready(
            launch,
            (c_void_p(self._functions[launch.symbol]), *sizes),
            tuple(
                (name, str(argument.value), value)
                for (name, argument), value in zip(launch.arguments, values, strict=False)
                if argument.is_buffer
            ),
            (c_void_p * len(values))(*addresses),
            tuple(values),
        )
        self._ready[id(launch)] = ready
        return ready


def _value(launch: Launch, name: str, argument: Argument) -> Any:
    """The argument as it lies in memory; a buffer's address is to come."""
    if argument.is_buffer:
        return c_void_p()
    number = argument.value
    assert not isinstance(number, str), f"'{name}' of {launch.function} is a name, not a number"
    if argument.type == "fp32":
        return c_float(number)
    if number != int(number) or not -(2**31) <= number < 2**31:
        raise BadInput(
            f"argument '{name}' of {launch.symbol} is {number:,}, which is no int32",
            help="fewer tokens a call keep such numbers small",
        )
    return c_int32(int(number))


def _no_address(launch: Launch, parameter: str, name: str, address: int | None) -> BadInput:
    if address is None:
        what = "has no address"
    else:
        what = f"lies at {address:#x}, which is no multiple of {ALIGNMENT}"
    return BadInput(
        f"buffer '{name}' {what}; {launch.symbol} takes it as '{parameter}'",
        help="a tensor that starts within another is moved by x.clone()",
    )
