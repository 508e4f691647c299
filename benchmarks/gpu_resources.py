"""What the kernels of GPUs use: registers, stack, shared memory, instructions of tensor cores.

    python benchmarks/gpu_resources.py [--quick] [--capability N ...] [--cache DIR] [--table]

Compiles what layers of the sizes below may run, on a machine that needs no GPU, and writes
results/gpu_resources.json. What was measured stays in the cache: a run that was cut short goes on
where it was, and code that is changed is measured again. ``--quick``: only the ways that are taken
without tuning. ``--table``: writes the table of docs/gpu_kernels.md from the results.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib import import_module
from itertools import product
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import triton

from butterflyc.bench.gpu.deep import deepened
from butterflyc.compiler.files import write_whole
from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.lower.cubin import KERNELS as PACKAGE
from butterflyc.compiler.lower.cubin import Code, compile_all
from butterflyc.compiler.run.native import cores
from butterflyc.compiler.run.sass import TENSOR_CORES, resources
from butterflyc.kernels.gpu import all_kernels
from butterflyc.kernels.gpu.launch import Gpu, Launch
from butterflyc.kernels.record import Kernel, Spec, Tensor
from butterflyc.targets import cuda
from butterflyc.targets.registry import load_core

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "gpu_resources.json"
CACHE = Path(gettempdir()) / "butterflyc-gpu-resources"
PAGE = ROOT / "docs" / "gpu_kernels.md"
# On the first two every way is compiled, on others the defaults: the instructions of 87 and 89 are
# those of 80, and before 80 only rotations and sums are Triton's.
CAPABILITIES = (90, 80, 87, 89, 75)
THOROUGH = CAPABILITIES[:2]
# dtype of rows, and bits of codes. Of the first two every way is compiled, of others the defaults:
# bfloat16 differs from float16 in its instructions, not in its tiles, and float32 has but defaults.
ROWS = (("f16", 0), ("f16", 8), ("bf16", 0), ("f32", 0))
TUNED = ROWS[:2]
# Channels and outputs of layers whose rotations have many layers; 8192 is the most that is served.
DEEP = ((256, 1024), (1024, 4096), (4096, 8192))
DEEP_TOKENS = 4096
# Channels of which the tiles are those of wider layers, but for fewer groups.
NARROWEST = 64
# Kernels whose work is a product; those of sums and rotations have no use for tensor cores.
PRODUCTS = ("up_prefill", "up_decode", "down_decode", "fused_layer")
# Measured at a time, before the cache is written.
BATCH = 16
START, END = "<!-- table: benchmarks/gpu_resources.py --table -->\n", "<!-- end of table -->\n"


@dataclass(frozen=True)
class Sizes:
    """Layers that are compiled: (channels, outputs of W_hat), and as many results as channels.

    Two experts are chosen; with so many channels one and four, too, in default ways. ``deep``:
    those of rotations of many layers.
    """

    widths: Sequence[tuple[int, int]] = (
        (64, 256),
        (256, 1024),
        (512, 2048),
        (1024, 4096),
        (4096, 14336),
    )
    tokens: Sequence[int] = (1, 32, 512, 4096, 65536)
    rows: Sequence[tuple[str, int]] = ROWS
    one_and_four: int | None = 1024
    deep: Sequence[tuple[int, int]] = ()


SIZES = Sizes(deep=DEEP)


@dataclass
class Asked:
    """A launch, and the layers that it is part of."""

    launch: Launch
    dtype: str
    codes: bool
    records: set[str] = field(default_factory=set)
    channels: set[int] = field(default_factory=set)
    tokens: set[int] = field(default_factory=set)
    chosen: set[int] = field(default_factory=set)
    # Those of its channels for which it is part of a way that is taken without tuning.
    default: set[int] = field(default_factory=set)


def gpu_of(capability: int) -> Gpu:
    return cuda.machine(load_core(f"cuda-sm{capability}")).lanes


def layer_spec(
    tokens: int, channels: int, outputs: int, *, chosen: int = 2, dtype: str = "f16", bits: int = 0
) -> Spec:
    """A layer of eight experts with GELU."""
    pairs = "f32" if dtype == "f32" else "f16"
    operands = (
        Tensor(dtype, (tokens, channels)),
        Tensor(pairs, (8, channels // 4, 4, 2)),
        Tensor("ternary", (outputs, channels)),
        Tensor("f32", ()),
        Tensor("f32", (outputs,)),
        Tensor("f32", (tokens, chosen)),
        Tensor("i64", (tokens, chosen)),
        Tensor(pairs, (8, outputs // 4, 4, 2)),
        Tensor(dtype, (channels, outputs)),
    )
    given = {"dtype": dtype, "activation": "gelu", "activation_bits": bits}
    attributes = tuple(sorted(OPS["butterfly_layer"].complete(given).items()))
    return Spec("butterfly_layer", attributes, operands, (Tensor(dtype, (tokens, channels)),))


def ways_of(kernel: Kernel, spec: Spec, gpu: Gpu, every: bool) -> Sequence[Mapping[str, int]]:
    """The ways to compute ``spec`` that ``kernel`` ships."""
    if not kernel.supports(spec, gpu):
        return ()
    ways = kernel.space(spec, gpu)
    return ways if every else ways[:1]


def asked(gpu: Gpu, quick: bool = False, sizes: Sizes = SIZES) -> dict[str, Asked]:
    """All launches by their symbols; ``quick``: of ways that are taken without tuning."""
    found: dict[str, Asked] = {}
    for (dtype, bits), spec in calls(sizes):
        (tokens, channels), chosen = spec.operands[0].shape, spec.operands[5].shape[1]
        tunable = (dtype, bits) in TUNED and chosen == 2 and channels > NARROWEST
        every = tunable and not quick
        for kernel in all_kernels():
            for i, way in enumerate(ways_of(kernel, spec, gpu, every)):
                for step in kernel.build(spec.with_parameters(way), gpu, "layer").steps:
                    if isinstance(step, Launch):
                        one = found.setdefault(step.symbol, Asked(step, dtype, bits > 0))
                        one.records.add(kernel.name)
                        one.channels.add(channels)
                        one.tokens.add(tokens)
                        one.chosen.add(chosen)
                        one.default |= {channels} if i == 0 else set()
    return found


def calls(sizes: Sizes) -> Iterator[tuple[tuple[str, int], Spec]]:
    """Layers, with the dtype of rows and the bits of codes of each."""
    for (channels, outputs), rows, tokens in product(sizes.widths, sizes.rows, sizes.tokens):
        also = channels == sizes.one_and_four and rows in TUNED
        for chosen in (2, 1, 4) if also else (2,):
            dtype, bits = rows
            yield rows, layer_spec(tokens, channels, outputs, chosen=chosen, dtype=dtype, bits=bits)
    for (channels, outputs), (dtype, bits) in product(sizes.deep, sizes.rows):
        spec = layer_spec(DEEP_TOKENS, channels, outputs, dtype=dtype, bits=bits)
        yield (dtype, bits), deepened(spec)


@cache
def sources() -> str:
    """A name for the code of all device functions, whatever their comments."""
    texts = []
    for path in sorted((ROOT / "kernels" / "gpu").glob("*.py")):
        module = import_module(f"{PACKAGE}.{path.stem}")
        own = [v for v in vars(module).values() if isinstance(v, triton.JITFunction)]
        texts += [ast.unparse(ast.parse(function.src)) for function in own]
    return sha256("".join(texts).encode()).hexdigest()[:12]


def used(code: Code) -> dict[str, Any]:
    """What a compiled kernel uses."""
    found = resources(code.cubin)
    return {
        "registers": found.registers,
        "stack": found.stack,
        "spills": found.spills,
        "shared": code.shared,
        "tensor_cores": {name: found.count(name) for name in TENSOR_CORES if found.count(name)},
    }


def measured(
    launches: Mapping[str, Launch], capability: int, folder: Path | None = None
) -> dict[str, dict[str, Any]]:
    """What each launch uses, by its symbol; from ``folder`` where it was measured before."""
    name = f"{sources()}-{triton.__version__}-sm{capability}.json"
    file = folder / name if folder else None
    known = json.loads(file.read_text()) if file and file.is_file() else {}
    missing = [launch for symbol, launch in launches.items() if symbol not in known]
    missing.sort(key=lambda launch: launch.function not in PRODUCTS)
    for first in range(0, len(missing), BATCH):
        codes = compile_all(missing[first : first + BATCH], capability)
        with ThreadPoolExecutor(cores()) as pool:
            known |= dict(zip(codes, pool.map(used, codes.values()), strict=True))
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, [json.dumps(known).encode()])
            done = sum(symbol in known for symbol in launches)
            print(f"sm_{capability}: {done} of {len(launches)}", flush=True)
    return {symbol: known[symbol] for symbol in launches}


def faults(one: Asked, use: Mapping[str, Any], gpu: Gpu) -> list[str]:
    """What is wrong with a kernel that is shipped: it spills, does not fit, or has no tensor cores.

    Products of float32 have none; the library's way serves what is big of them.
    """
    found = []
    if use["stack"] or use["spills"]:
        found.append(f"spills: {use['stack']} bytes, {use['spills']} instructions")
    if use["shared"] > gpu.shared_bytes:
        found.append(f"asks for {use['shared']} bytes, the GPU has {gpu.shared_bytes}")
    needed = one.launch.function in PRODUCTS and one.dtype != "f32"
    if needed and not use["tensor_cores"]:
        found.append("has no instruction of tensor cores")
    return found


def tile_of(launch: Launch) -> str:
    """Sizes of a tile, and what it is computed by."""
    sizes = [f"{k}={v}" for k, v in launch.constants if k in ("BM", "BT", "BF", "BK", "BG", "BD")]
    packed = dict(launch.constants).get("PACKED")
    kind = [] if packed is None else ["codes" if packed else "dense"]
    return " ".join([*sizes, *kind, f"warps={launch.warps}", f"stages={launch.stages}"])


def row_of(symbol: str, one: Asked) -> dict[str, Any]:
    """A row of the results, without what was measured."""
    return {
        "symbol": symbol,
        "kernel": one.launch.function,
        "records": sorted(one.records),
        "tile": tile_of(one.launch),
        "dtype": one.dtype,
        "codes": one.codes,
        "channels": sorted(one.channels),
        "tokens": sorted(one.tokens),
        "chosen": sorted(one.chosen),
        "default": sorted(one.default),
    }


def report(capabilities: Sequence[int], quick: bool, folder: Path) -> tuple[list[Any], list[str]]:
    """Rows for all ``capabilities``, equal ones as one; and faults, a line each."""
    rows: dict[str, dict[str, Any]] = {}
    wrong = []
    for capability in capabilities:
        gpu = gpu_of(capability)
        launches = asked(gpu, quick or capability not in THOROUGH)
        uses = measured({s: one.launch for s, one in launches.items()}, capability, folder)
        for symbol, one in launches.items():
            # A small GPU has other defaults, so the row is one of those that are equal else.
            row = row_of(symbol, one)
            rows.setdefault(json.dumps(row), {**row, "on": {}})["on"][capability] = uses[symbol]
            wrong += [
                f"sm_{capability} {one.launch.function} {tile_of(one.launch)} of {one.dtype}, "
                f"codes {one.codes}, channels {sorted(one.channels)}, tokens {sorted(one.tokens)}, "
                f"chosen {sorted(one.chosen)}: {fault}"
                for fault in faults(one, uses[symbol], gpu)
            ]
    return sorted(rows.values(), key=lambda row: (row["kernel"], row["symbol"])), wrong


def written(rows: Sequence[Any], capabilities: Sequence[int]) -> bytes:
    """The file of results: a row a line."""
    head: dict[str, Any] = {"triton": triton.__version__, "sources": sources()}
    head["capabilities"] = sorted(capabilities)
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    return f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n'.encode()


def table(results: Mapping[str, Any]) -> str:
    """What default ways use in float16 and in codes, for 256 and 1024 channels, in Markdown."""
    columns = [c for c in sorted(results["capabilities"]) if c >= 80]
    found: dict[tuple[str, ...], tuple[set[int], dict[int, list[Any]]]] = {}
    for row in results["rows"]:
        channels = {256, 1024} & set(row["default"])
        if channels and row["dtype"] == "f16" and 2 in row["chosen"]:
            key = (row["kernel"], "codes" if row["codes"] else "f16", row["tile"])
            widths, uses = found.setdefault(key, (set(), {}))
            widths |= channels
            for capability, use in row["on"].items():
                uses.setdefault(int(capability), []).append(use)
    names = ["kernel", "rows", "tile", "d", *(f"sm_{c}" for c in columns)]
    lines = [names, ["---"] * len(names)]
    for key, (widths, uses) in sorted(found.items()):
        shown = ", ".join(map(str, sorted(widths)))
        lines.append([*key, shown, *(cell(uses.get(c, [])) for c in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(uses: Sequence[Mapping[str, Any]]) -> str:
    """Registers, KiB of shared memory, and instructions: the most of kernels of one tile."""
    if not uses:
        return ""
    names = "+".join(sorted({name for use in uses for name in use["tensor_cores"]}))
    kib = max(use["shared"] for use in uses) / 1024
    return f"{max(use['registers'] for use in uses)} / {kib:.0f} {names}".rstrip()


def with_table(page: str, results: Mapping[str, Any]) -> str:
    """The text of the page with the table of ``results`` in its place."""
    before, _, rest = page.partition(START)
    return before + START + table(results) + END + rest.partition(END)[2]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--capability", type=int, nargs="+", default=CAPABILITIES)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    if options.table:
        text = with_table(PAGE.read_text(), json.loads(RESULTS.read_text()))
        write_whole(PAGE, [text.encode()])
        return 0
    rows, wrong = report(options.capability, options.quick, options.cache)
    for line in wrong:
        print(line)
    if options.quick or {*CAPABILITIES} - {*options.capability}:
        print("the results are left as they are, since they are of every way on every GPU")
    else:
        write_whole(RESULTS, [written(rows, options.capability)])
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
