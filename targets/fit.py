"""What is said of a model that does not fit: by how much, where, and what would make it fit.

Each suggestion is tried before it is made: the model is placed again as it would then be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..compiler.errors import DoesNotFit, UsageError
from ..compiler.ir import Graph
from .experts import Experts, experts_of
from .memories import firmware_bytes, sized
from .placement import MEMORIES, Placement
from .registry import Core, core_names, load_core

SHOWN_BUFFERS = 4
SHOWN_KINDS = 4
FLASH_SIZES = tuple(2**power for power in range(21, 25))  # 2 to 16 MiB: what modules come with
KIB = 1 << 10
PAGE = 64 * KIB  # what partitions of programs are aligned to

Replace = Callable[[Core], Placement]
# Where the model would go with dense weights of so many digits.
Coarser = Callable[[int], Placement]
# Digits of a weight, and the signal to noise that they mostly keep, by `quantize`'s measure.
DIGITS = {4: 30, 3: 20}


def does_not_fit(
    graph: Graph, placement: Placement, replace: Replace, coarser: Coarser
) -> DoesNotFit:
    """The error for a ``placement`` that is overfull.

    ``replace`` places it on another core, ``coarser`` with weights of fewer digits.
    """
    core = placement.core
    full = [region for region in placement.regions if region.excess]
    needs = "; ".join(
        f"{region.name} needs {region.used:,} bytes, {region.usable:,} are usable: "
        f"{region.excess:,} too many"
        for region in full
    )
    where = [line for region in full for line in CAUSES[region.name](placement)]
    tips = [tip for region in full for tip in TIPS[region.name](graph, placement, replace)]
    if placement.region("flash") in full:
        tips += _fewer_digits(placement, coarser)
    tips += _boards(core, replace)
    return DoesNotFit(
        f"{graph.name} does not fit {core.name}: {needs}",
        where="\n     ".join(where),
        help="\n        ".join(tips) or "no board that is known holds it: make the model smaller",
    )


def _sram_cause(placement: Placement) -> list[str]:
    """Where the arena is fullest, and with what."""
    arena = placement.arena
    if arena.peak is None:
        return ["inputs, outputs and stack alone"]
    held = [f"{each.name} {each.bytes:,}" for each in arena.held[:SHOWN_BUFFERS]]
    if rest := arena.held[SHOWN_BUFFERS:]:
        held.append(f"{len(rest)} more, {sum(each.bytes for each in rest):,}")
    source = f" ({arena.peak.source})" if arena.peak.source else ""
    return [
        f"{arena.peak.name}{source}, where {arena.peak.bytes:,} bytes of the arena are in use:",
        *(f"  {each}" for each in held),
    ]


def _flash_cause(placement: Placement) -> list[str]:
    """What the flash holds, the most first."""
    sizes = weights_by(placement, "kind")
    largest = sorted(sizes, key=lambda kind: -sizes[kind])
    held = [f"{kind} {sizes[kind]:,}" for kind in largest[:SHOWN_KINDS]]
    if rest := largest[SHOWN_KINDS:]:
        held.append(f"{len(rest)} more, {sum(sizes[kind] for kind in rest):,}")
    code = placement.code
    how = f"measured on {code.measured}" if code.measured else "a high estimate"
    return ["the weights:", *(f"  {each}" for each in held), f"the code: {code.bytes:,} ({how})"]


def weights_by(placement: Placement, key: str) -> dict[str, int]:
    """Bytes of the constants as they lie in memory, by their ``kind`` or ``layer``."""
    sums: dict[str, int] = {}
    for constant in placement.constants:
        group = getattr(constant, key)
        sums[group] = sums.get(group, 0) + constant.place
    return sums


def _sram_tips(graph: Graph, placement: Placement, replace: Replace) -> Iterator[str]:
    core, region, arena = placement.core, placement.region("sram"), placement.arena.bytes
    optional = next((m for m in core.memories if m.name == "psram" and m.optional), None)
    if optional:
        size = f"{optional.nominal // (KIB * KIB)}M"
        moved = replace(sized(core, {"psram": size}, MEMORIES))
        if moved.region("psram").parts and not moved.region("sram").excess:
            yield f"--psram {size}, if the board has it: takes the arena, {arena:,} bytes (slower)"
    if region.memory and region.used <= region.memory.nominal:
        needed = -(-region.used // KIB)
        yield (
            f"--sram {needed}K, if the firmware leaves that much of the chip's "
            f"{region.memory.nominal // KIB}K in one piece"
        )


def _flash_tips(graph: Graph, placement: Placement, replace: Replace) -> Iterator[str]:
    if (experts := experts_of(graph)) and experts.count > experts.chosen:
        yield _fewer_experts(experts, placement)
    core, region = placement.core, placement.region("flash")
    assert region.memory, "a flash is overfull only where its size is known"
    flash = region.memory
    needed = -(-(region.used + firmware_bytes(flash)) // PAGE) * PAGE
    if flash.partition and _helps(core, {"partition": needed}, replace):
        yield f"--partition {needed // KIB}K: the least that holds it, of {flash.nominal:,} bytes"
        return
    if flash.window and flash.window < FLASH_SIZES[0]:
        return  # it is in the chip
    for size in FLASH_SIZES:
        if size > flash.nominal and _helps(core, {"flash": size}, replace):
            within = f", in a partition of {needed // KIB}K" if flash.partition else ""
            yield f"--flash {size // (KIB * KIB)}M, if there is a module with it{within}"
            return


def _fewer_experts(experts: Experts, placement: Placement) -> str:
    usable, code = placement.region("flash").usable or 0, placement.code
    most, least = experts.fitting(usable - code.bytes), experts.chosen
    all_of_them = experts.weights(experts.count)
    if most < least:
        saved = all_of_them - experts.weights(least)
        may = code.measured is None and experts.fitting(usable) >= least
        return (
            f"fewer experts {'may' if may else 'do not'} help: {least} a layer, as many as a token "
            f"takes, in place of {experts.count} save {saved:,} bytes"
            + (", and the code may be smaller than estimated" if may else "")
        )
    return (
        f"{most} experts a layer in place of {experts.count}: saves "
        f"{all_of_them - experts.weights(most):,} bytes ({experts.bytes_each:,} an expert over "
        f"{experts.layers} layers)"
    )


def _fewer_digits(placement: Placement, coarser: Coarser) -> list[str]:
    """The most digits with which the flash suffices; nothing where none of them is enough."""
    for digits, budget in DIGITS.items():
        other = coarser(digits)
        if not other.region("flash").excess:
            saved = placement.weights - other.weights
            return [
                f"--weight-snr {budget}: saves {saved:,} bytes where dense weights of {digits} "
                f"digits keep {budget} dB, and costs accuracy"
            ]
    return []


def _helps(core: Core, given: dict[str, int], replace: Replace) -> bool:
    """Whether the flash is no longer overfull with these sizes, which may be impossible ones."""
    try:
        other = sized(core, given, MEMORIES)
    except UsageError:
        return False
    return not replace(other).region("flash").excess


def _boards(core: Core, replace: Replace) -> list[str]:
    """The boards of the family that hold the whole model."""
    others = (load_core(name) for name in core_names() if name != core.name)
    boards = [other for other in others if other.family == core.family and other.memories]
    fitting = [board.name for board in boards if replace(board).fits]
    return [f"--target {' or '.join(fitting)}: holds it as it is"] if fitting else []


CAUSES = {"flash": _flash_cause, "sram": _sram_cause}
TIPS = {"flash": _flash_tips, "sram": _sram_tips}
