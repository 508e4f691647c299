"""Suite ``cortex-a``: kernels on ARM cores that are not here, by exact counts and LLVM's models.

QEMU runs each kernel once and counts its instructions; llvm-mca says what their blocks take on a
core. What that leaves out stands in `compiler.run.cycles`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ..compiler.run.kernel_call import CountedCall, call_kernel
from ..compiler.run.modelled import MainLoop, ModelledCall, modelled
from ..targets.cpu import Machine, machine
from ..targets.registry import load_core
from .cases import Case, cases
from .cortex_a_cores import CORES, ModelledCore, peak
from .kernels import best
from .timing import Row

SUITE = "cortex-a"
LOOP = "loop MAC/cycle"
CALL = "call MAC/cycle"
EPILOGUE = "share of cycles behind the product"
# What a person sees first: the rest is for --json.
SHOWN = (LOOP, CALL, EPILOGUE)
NOTES = (
    "No ARM core was there: instructions are counted in QEMU, cycles are LLVM's models of cores.",
    "The model of the Cortex-A53 is coarse: one NEON instruction at a time, all of one latency.",
    "The Cortex-A72 is modelled as an A57, the A76 as a Neoverse N1. Caches are left out.",
)


def machines() -> dict[str, Machine]:
    """What is compiled for, by core."""
    return {name: machine(load_core(core.target)) for name, core in CORES.items()}


def suite(
    progress: Callable[[str], None] = lambda _: None, built: Mapping[str, Machine] | None = None
) -> list[Row]:
    """Every case on every core, or on the cores of ``built``.

    Raises ToolMissing, and VerificationFailed where a kernel computes something else than its op.
    """
    rows: list[Row] = []
    for name, target in (machines() if built is None else built).items():
        for case in cases(target.lanes):
            progress(f"{case.name} {case.shape} on {name}")
            rows += case_rows(name, case, target)
    return rows


def case_rows(name: str, case: Case, target: Machine) -> list[Row]:
    """The rows of one case on the core ``name``. Raises as `suite` does."""
    kernel = best(case.spec, target.lanes)
    emulated = CORES[name].emulated
    call = call_kernel(kernel, case.spec, case.arrays, target.lanes, target.target, emulated)
    case.check(call.results)
    return rows_of(name, case, target, call)


def rows_of(name: str, case: Case, target: Machine, call: CountedCall) -> list[Row]:
    """What ``call``, which was made for ``case``, says of the core ``name``."""
    core = CORES[name]
    found = modelled(call, core.model, case.floats)
    instruction = peak_instruction(case, target)
    most = peak(core.model, instruction)
    against = f"peak {most:g} ({instruction})"

    def row(
        metric: str,
        value: float,
        baseline: str = "",
        ratio: float = 1,
        wanted: float | None = None,
    ) -> Row:
        named = f"{case.name} on {name}"
        return Row(SUITE, named, case.shape, metric, value, baseline, ratio, 0.0, 1, wanted)

    reached, computed = case.products / found.cycles, float(found.products)
    return [
        *_loop_rows(row, found.loop, core, case, most, against),
        row(CALL, reached, against, reached / most),
        row("call MAC/cycle if blocks overlap", case.products / found.overlapping_cycles),
        row("call instructions/MAC", found.instructions / case.products),
        row("call MAC computed", computed, "asked for", computed / case.products),
        *_part_rows(row, found, core, case),
        *_roofline_rows(row, found.cycles, call.moved_bytes, core),
    ]


def peak_instruction(case: Case, target: Machine) -> str:
    """The instruction that does most products of the case's kind, exactly, on this machine."""
    if case.floats:
        return "fmla"
    return "sdot" if "+dotprod" in target.target.get("mattr", ()) else "smlal"


def _loop_rows(
    row: Callable[..., Row],
    loop: MainLoop | None,
    core: ModelledCore,
    case: Case,
    most: float,
    against: str,
) -> Iterator[Row]:
    """The loop as its instructions stand, against what they could reach, its peak and peers."""
    achieved = loop.achieved if loop else 0.0
    wanted = wanted_of(core, case, most)
    yield row(LOOP, achieved, against, achieved / most, wanted and wanted / most)
    if loop:
        yield row("loop MAC/cycle at most", loop.bound, LOOP, loop.bound / achieved)
    if case.name == "ternary_dot":
        for peer, rate in core.peers + (core.panel_peers if case.rows > 1 else ()):
            told = f"{peer} {rate:g}, read off the same model earlier, not now"
            yield row(f"{LOOP} of {peer}", rate, told, achieved / rate)


def wanted_of(core: ModelledCore, case: Case, most: float) -> float | None:
    """The products a cycle that the case's loop shall reach, where there is such a number."""
    if case.name == "ternary_dot":
        return core.one_row if case.rows == 1 else core.many_rows
    if case.name == "ternary_dot_7_bits":
        return core.one_row_7_bits if case.rows == 1 else core.many_rows_7_bits
    if case.name == "linear" and case.rows > 1 and core.dense:
        return core.dense * most
    return None


def _part_rows(
    row: Callable[..., Row], found: ModelledCall, core: ModelledCore, case: Case
) -> Iterator[Row]:
    """Of fused experts: where the cycles go. The ratio is to the largest share allowed."""
    if case.spec.op != "butterfly_experts":
        return
    shares = {part: cycles / found.cycles for part, cycles in found.parts.items()}
    yield row("share of cycles before the product", shares["before"])
    yield row("share of cycles of the product", shares["product"])
    if core.epilogue and shares["behind"]:
        told = f"at most {core.epilogue:g}"
        yield row(EPILOGUE, shares["behind"], told, core.epilogue / shares["behind"], 1.0)
    else:
        yield row(EPILOGUE, shares["behind"])


def _roofline_rows(
    row: Callable[..., Row], cycles: float, moved_bytes: int, core: ModelledCore
) -> Iterator[Row]:
    """A call's cycles by arithmetic, and by its bytes where each is read from memory once."""
    yield row("cycles by arithmetic", cycles)
    if core.memory:
        by_bytes = moved_bytes / core.memory.bytes_per_cycle
        yield row("cycles by bytes", by_bytes, str(core.memory), by_bytes / cycles)
