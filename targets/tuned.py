"""Kernels with their parameters that were measured fastest, by GPU: files in ``tuned/``.

A file is for one device. Entries are by the sizes of a layer; tokens by the nearest power of two,
since the best parameters change slowly with them. How many experts there are does not matter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from ..compiler.errors import Damaged
from ..kernels.record import Spec

FOLDER = Path(__file__).parent / "tuned"
SCHEMA = "butterflyc.tuned/1"
# Powers of two by which the tokens of an entry may be away from those that are asked for.
MOST_STEPS = 2


@attrs.frozen
class Sizes:
    """Of a call: what the choice of a kernel depends on. ``down`` is 0 without w_down."""

    tokens: int
    chosen: int
    channels: int
    outputs: int
    down: int
    dtype: str
    codes: bool

    @property
    def layer(self) -> Sizes:
        """The same of any number of tokens."""
        return attrs.evolve(self, tokens=0)


def sizes_of(spec: Spec) -> Sizes:
    """The sizes of a spec of `butterfly_layer`."""
    x, w, gates = spec.operands[0], spec.operands[2], spec.operands[5]
    down = spec.operands[8].shape[0] if len(spec.operands) > 8 else 0
    return Sizes(
        *(x.shape[0], gates.shape[1], x.shape[1], w.shape[0], down),
        dtype=spec.attribute("dtype"),
        codes=spec.attribute("activation_bits") == 8,
    )


@attrs.frozen
class Entry:
    """What was fastest for ``sizes``, and its median."""

    sizes: Sizes
    kernel: str
    parameters: Mapping[str, int]
    median_us: float


@attrs.frozen
class Tuned:
    """The entries of one device, and with what they were measured."""

    device: str
    capability: int
    triton: str
    torch: str
    entries: tuple[Entry, ...]

    def choice(self, spec: Spec) -> tuple[str, Mapping[str, int]] | None:
        """Kernel and parameters for ``spec``: of the entry whose tokens are nearest, if near."""
        if spec.op != "butterfly_layer":
            return None
        asked = sizes_of(spec)

        def steps(entry: Entry) -> float:
            return abs(math.log2(max(entry.sizes.tokens, 1) / max(asked.tokens, 1)))

        alike = [entry for entry in self.entries if entry.sizes.layer == asked.layer]
        best = min(alike, key=steps, default=None)
        if best is None or steps(best) > MOST_STEPS:
            return None
        return best.kernel, best.parameters

    def choices(self, specs: Iterable[Spec]) -> dict[str, tuple[str, Mapping[str, int]]]:
        """The choices by digest, as `select_kernels` takes them."""
        found = ((spec.digest, self.choice(spec)) for spec in specs)
        return {digest: choice for digest, choice in found if choice is not None}


def to_json(tuned: Tuned) -> bytes:
    """The file's text: an entry a line, so that a change is seen."""
    head = attrs.asdict(tuned, filter=attrs.filters.exclude("entries"))
    entries = ",\n  ".join(json.dumps(attrs.asdict(e), sort_keys=True) for e in tuned.entries)
    text = json.dumps({"schema": SCHEMA, **head}, indent=1)[:-2]
    return f'{text},\n "entries": [\n  {entries}\n ]\n}}\n'.encode()


def from_json(data: bytes, name: str) -> Tuned:
    """What `to_json` made. Raises Damaged, with the file's ``name``, for anything else."""
    try:
        document = json.loads(data)
        if document.pop("schema") != SCHEMA:
            raise ValueError(f"the schema is not {SCHEMA}")
        entries = document.pop("entries")
        made = (Entry(**{**entry, "sizes": Sizes(**entry["sizes"])}) for entry in entries)
        return Tuned(**document, entries=tuple(made))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(
            f"{name} does not hold tuned parameters: {type(error).__name__}: {error}",
            help="make it again: python benchmarks/gpu.py",
        ) from error


def file_name(device: str) -> str:
    """The file of a device, by the driver's name of it: ``nvidia-h200.json``."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def find(device: str, capability: int, folder: Path = FOLDER) -> tuple[Tuned | None, str]:
    """The file of this device, else of another of its capability; and a line that says which.

    Raises Damaged for a file that cannot be read.
    """
    files = sorted(folder.glob("*.json"))
    held = [from_json(path.read_bytes(), path.name) for path in files]
    for tuned in held:
        if tuned.device == device:
            return tuned, f"parameters as measured on {device}"
    for tuned in held:
        if tuned.capability == capability:
            return tuned, f"parameters as measured on {tuned.device}: none are of {device}"
    return None, f"parameters by default: none were measured on {device} or its kind"
