"""How many experts of a ButterflyViT fit a board, and what one more takes.

The figures are those of placements: what `compile` would put into each memory, packed and padded,
with an arena that is planned. A number of experts is foretold from a smaller model, then the model
is lowered with that number and with one more, to see that the first fits and the other does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .compiler.errors import DoesNotFit, UsageError
from .expert_sizes import Sized, Subject
from .passes.budget import Budgets
from .targets.code_size import Code
from .targets.memories import OF_SYSTEMS, bytes_of, sized
from .targets.placement import Region
from .targets.registry import Core, Memory, family_of, load_core
from .tuning.records import records_for

if TYPE_CHECKING:
    from .models.vit import ViTConfig

Progress = Callable[[str], None]
MOST_LOWERED = 64 << 20  # bytes of weights: larger models are not lowered but foretold
IN_ARENA = ("arena", "inputs", "outputs", "stack")


@dataclass(frozen=True)
class Share:
    """Bytes of a memory: ``usable``, and what takes them.

    ``experts`` are weights that experts own: rotations, and their rows of routers. ``shared`` are
    all other weights. ``activations`` are arena, inputs, outputs and stack. ``code`` is estimated.
    ``one_more`` is what another expert takes in every layer.
    """

    memory: str
    usable: int
    shared: int
    experts: int
    activations: int
    code: int
    one_more: int

    @property
    def used(self) -> int:
        return self.shared + self.experts + self.activations + self.code

    @property
    def left(self) -> int:
        """Bytes that nothing takes; below 0 where it is overfull."""
        return self.usable - self.used

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "used": self.used, "left": self.left}


@dataclass(frozen=True)
class Budget:
    """The most ``experts`` a layer that fit; 0 if not even ``fewest``, as many as a token goes to.

    ``memories`` are those of the most that fit, or else of the fewest. ``binds`` names the memories
    that are overfull with one more, or with the fewest. ``checked``: the model was lowered with
    that many experts, and with one more; else the figures are foretold from one of ``lowered``
    experts. ``without_code`` is how many would fit if there were no code, which is estimated high;
    a GPU's is not counted, nor what its libraries take. ``advice`` has what makes room for more,
    and for how many, as foretold.
    """

    target: str
    mode: str
    model: Mapping[str, Any]
    options: Mapping[str, Any]
    experts: int
    fewest: int
    binds: tuple[str, ...]
    checked: bool
    lowered: int
    without_code: int
    has_code: bool
    memories: tuple[Share, ...]
    advice: tuple[tuple[str, int], ...]
    seconds: float
    error: DoesNotFit | None = None

    def memory(self, name: str) -> Share | None:
        """What is in the memory of that name, if the target has it."""
        return next((share for share in self.memories if share.memory == name), None)

    @property
    def excess(self) -> dict[str, int]:
        """By how many bytes memories are overfull with the fewest experts; empty if some fit."""
        return {share.memory: -share.left for share in self.memories if share.left < 0}

    def as_dict(self) -> dict[str, Any]:
        """The budget as plain data, for JSON."""
        kept = {k: v for k, v in vars(self).items() if k not in ("memories", "advice", "error")}
        memories = [share.as_dict() for share in self.memories]
        return {**kept, "memories": memories, "advice": dict(self.advice)}


@dataclass(frozen=True)
class Found:
    """The most experts that fit: the model ``at`` that number (or the fewest), and ``above`` it."""

    experts: int
    fewest: int
    at: Sized
    above: Sized
    checked: bool
    lowered: int

    @property
    def overfull(self) -> Sized:
        """The model of the fewest experts that do not fit."""
        return self.above if self.experts else self.at


def experts_that_fit(
    target: str,
    config: ViTConfig | None = None,
    *,
    mode: str | None = None,
    weight_snr: float | None = None,
    angles: str | None = None,
    prefer: str | None = None,
    memories: Mapping[str, str | int] | None = None,
    memory: str | int | None = None,
    code: str | int | None = None,
    target_file: str | Path | None = None,
    records: str | Path | bool = True,
    advise: bool = False,
    progress: Progress = lambda _: None,
) -> Budget:
    """How many experts of a ButterflyViT of ``config`` (the papers' by default) fit ``target``.

    The number of experts that ``config`` has itself does not matter. Options are those of
    `compile`. ``memory`` is how many bytes a model may take where the target's own memories are
    not known, as of CPUs and GPUs: ``"4GiB"``. ``code`` is how large the code is, where one that
    was compiled is known: it hardly depends on the number of experts. To ``advise`` takes some
    three times as long.

    Raises UsageError where memory is not known, for sizes, modes and options that cannot be, and
    what `compile` raises; no DoesNotFit, which the result's ``error`` is.
    """
    from .expert_model import butterfly_of, subject_of
    from .models.vit import ViTConfig

    start, config = perf_counter(), config or ViTConfig()
    core, whole = memories_of(target, target_file, memories or {}, memory)
    mode = mode or family_of(core).MODES[0]
    given = {"weight_snr": weight_snr, "angles": angles, "prefer": prefer}
    budgets = Budgets.asked(mode, **given)
    tuned = records_for(core, records).tuned
    subject = subject_of(config, core, mode, budgets, whole, tuned, progress)
    if code is not None:
        subject = replace(subject, code=Code(bytes_of(code, "code"), "an earlier compilation"))
    fewest = butterfly_of(config).top_k
    found = most_experts(subject, fewest, progress)
    return Budget(
        target=core.name,
        mode=mode,
        model=config.as_dict(),
        options=budgets.said(mode),
        experts=found.experts,
        fewest=fewest,
        binds=tuple(r.name for r in found.overfull.placed.regions if r.excess),
        checked=found.checked,
        lowered=found.lowered,
        without_code=without_code(subject, found),
        has_code=found.at.placed.code.bytes > 0,
        memories=shares(found),
        advice=advice(subject, found, config, progress) if advise else (),
        seconds=perf_counter() - start,
        error=None if found.experts else misfit(subject, found.at),
    )


def memories_of(
    target: str,
    target_file: str | Path | None,
    given: Mapping[str, str | int],
    memory: str | int | None,
) -> tuple[Core, Memory | None]:
    """The core with the memories that a user gives; or the one memory of a CPU or GPU.

    Raises UsageError where there is no limit, or two of them.
    """
    core = load_core(target, Path(target_file) if target_file else None)
    known = family_of(core).MEMORIES
    core = sized(core, given, known)
    if not known and memory is None:
        raise UsageError(
            f"memory of {core.name} is not known",
            help="--memory 4GiB, for one: what there is for the model",
        )
    if known and memory is not None:
        raise UsageError(
            f"{core.name} has more than one memory: {', '.join(known)}",
            help="give --flash, --partition, --sram or --psram in place of --memory",
        )
    if known and core.memory("flash") is None:
        raise UsageError(
            f"the flash of {core.name} is not known", help="--flash 4M, for one, says what it has"
        )
    if memory is None:
        return core, None
    size = bytes_of(memory, "memory", OF_SYSTEMS)
    return core, Memory("memory", size, size)


def most_experts(subject: Subject, fewest: int, progress: Progress = lambda _: None) -> Found:
    """The most experts that fit, ``fewest`` at least; see `Budget`."""
    base, low, high = subject.first, fewest - 1, 0
    lowered: dict[int, Sized] = {}
    while high - low != 1:
        most = foretold(subject, base, fewest)
        count = max(low, min(most, high - 1) if high else most)
        count += count == low  # what is foretold is there; now the one that is one too many
        if subject.predicted(base, count).placed.weights > MOST_LOWERED:
            return _foretold_from_more(subject, base, fewest, progress)
        progress(f"lowering with {count:,} experts a layer")
        base = lowered[count] = subject.lowered(count)
        low, high = (count, high) if base.placed.fits else (low, count)
    if low >= fewest:
        return Found(low, fewest, lowered[low], lowered[high], True, low)
    at = lowered[fewest]
    return Found(0, fewest, at, subject.predicted(at, fewest + 1), True, fewest)


def _foretold_from_more(subject: Subject, base: Sized, fewest: int, progress: Progress) -> Found:
    """Of models that are too large to lower: from the largest power of two that is not."""
    experts = base.experts
    while subject.predicted(base, 2 * experts).placed.weights <= MOST_LOWERED:
        experts *= 2
    progress(f"lowering with {experts:,} experts a layer")
    larger = subject.lowered(experts)
    most = foretold(subject, larger, fewest)
    at, above = (subject.predicted(larger, max(fewest, most) + more) for more in (0, 1))
    return Found(most if most >= fewest else 0, fewest, at, above, False, experts)


def foretold(subject: Subject, base: Sized, fewest: int) -> int:
    """The most experts whose placement fits, as foretold from ``base``; ``fewest`` - 1 if none."""
    twice = subject.predicted(base, 2 * base.experts)
    guesses = [
        base.experts + (region.usable - region.used) * base.experts // grown
        for region in base.placed.regions
        if region.usable and (grown := twice.used(region.name) - region.used) > 0
    ]
    return largest(
        lambda experts: subject.predicted(base, experts).placed.fits,
        fewest,
        max(fewest, min(guesses)),
    )


def largest(fits: Callable[[int], bool], least: int, guess: int) -> int:
    """The largest number that ``fits``, if all from ``least`` to it do and none behind it.

    ``least`` - 1 if none does. The nearer the ``guess``, the fewer are asked.
    """
    low, high, step = least - 1, guess, 1
    if fits(guess):
        low, high = guess, guess + 1
        while fits(high):
            low, high, step = high, high + 2 * step, 2 * step
    else:
        while high - step >= least and not fits(high - step):
            high, step = high - step, 2 * step
        low = max(low, high - step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def without_code(subject: Subject, found: Found) -> int:
    """The most experts that would fit beside no code at all; 0 if not even the fewest."""

    def fits(experts: int) -> bool:
        graph = subject.predicted(found.at, experts).graph
        return subject.placement(graph, Code(0)).fits

    most = largest(fits, found.fewest, max(found.fewest, found.experts))
    return most if most >= found.fewest else 0


def advice(
    subject: Subject, found: Found, config: ViTConfig, progress: Progress = lambda _: None
) -> tuple[tuple[str, int], ...]:
    """The options with which more experts fit, each alone, and how many as foretold."""
    from .expert_model import variants

    more: dict[str, int] = {}
    for option, other in variants(subject, config, progress):
        most = foretold(other, other.first, found.fewest)
        if most > found.experts and most >= found.fewest:
            more[option] = most
    return tuple(more.items())


def shares(found: Found) -> tuple[Share, ...]:
    """What takes each memory whose size is known, and that holds something or has room."""
    return tuple(
        _share(found, region, found.above.used(region.name))
        for region in found.at.placed.regions
        if region.usable
    )


def _share(found: Found, region: Region, above: int) -> Share:
    sizes = {part.what: part.bytes for part in region.parts}
    weights = sizes.get("weights", 0)
    own = found.at.owned if weights else 0
    return Share(
        memory=region.name,
        usable=region.usable or 0,
        shared=weights - own,
        experts=own,
        activations=sum(sizes.get(what, 0) for what in IN_ARENA),
        code=sizes.get("code", 0),
        one_more=above - region.used,
    )


def misfit(subject: Subject, at: Sized) -> DoesNotFit:
    """The error for a model that does not fit with the fewest experts."""
    family, graph = family_of(subject.core), subject.planned(at.graph)
    if family.MEMORIES:
        error: DoesNotFit = family.misfit(graph, at.placed)
        return error
    (region,) = at.placed.regions
    return DoesNotFit(
        f"{graph.name} with {at.experts} experts a layer does not fit: it takes {region.used:,} "
        f"bytes, {region.usable:,} are there: {region.excess:,} too many",
        help="a smaller model, or more memory",
    )
