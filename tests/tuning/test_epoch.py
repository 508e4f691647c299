"""Records are of the code that was measured: where that changes, the epoch does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest

from butterflyc.compiler.run.kernel import with_layouts
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Spec
from butterflyc.targets.lanes_dsp import Dsp
from butterflyc.targets.lanes_neon import Neon
from butterflyc.targets.lanes_x86 import Avx2
from butterflyc.tuning.meters import EPOCH

from .small import spec

GOLDEN = Path(__file__).with_name("epoch.json")
LANES = {"scalar": Lanes(), "avx2": Avx2(), "neon": Neon(), "dsp": Dsp()}
DENSE = spec("linear", "f32 5 32, f32 24 32, f32 24", "f32 5 24", activation="gelu")
TERNARY = spec("ternary_dot", "i8 5 40, ternary 24 40", "i32 5 24", bits=8)
CODES = spec(
    "quantized_linear", "i8 5 40, i8 24 40, i32 24, i16 24", "i8 5 24", planes=4, drop=3, shift=17
)
TURNED = spec("integer_rotate", "i8 5 1 32, i16 3 8 4 4, i64 5 2", "i8 5 2 32", shift=15)
HEADS = spec("attention", "f32 1 2 9 8, f32 1 2 9 8, f32 1 2 9 8", "f32 1 2 9 8", scale=0.35)
EXPERTS = spec(
    "butterfly_experts",
    "f32 5 32, f32 3 8 4 4, ternary 64 32, f32 64, f32 64, f32 5 2, i64 5 2, f32 3 16 4 4",
    "f32 5 64", activation="gelu_poly", activation_bits=8, lanes_in=8, lanes_out=8,
)  # fmt: skip
# Kernel, call, parameters and lanes.
CASES: list[tuple[str, Spec, dict[str, int], str]] = [
    ("linear", DENSE, {}, "scalar"),
    ("linear", DENSE, {}, "avx2"),
    ("linear", DENSE, {"tile_rows": 2, "unroll_k": 8}, "avx2"),
    ("linear", DENSE, {}, "neon"),
    ("attention", HEADS, {}, "avx2"),
    ("ternary_dot", TERNARY, {}, "avx2"),
    ("ternary_dot", TERNARY, {"panel_rows": 6, "tile_vectors": 1}, "neon"),
    ("ternary_dot_table", TERNARY, {}, "scalar"),
    ("ternary_dot_table", CODES, {"trits": 5, "groups": 2, "unroll": 3}, "scalar"),
    ("integer_products", CODES, {"rows": 3}, "scalar"),
    ("integer_products", TURNED, {}, "scalar"),
    ("integer_pairs", CODES, {}, "dsp"),
    ("integer_pairs", TURNED, {}, "dsp"),
    ("butterfly_experts", EXPERTS, {}, "avx2"),
    ("butterfly_experts", EXPERTS, {}, "scalar"),
]


@cache
def digests() -> dict[str, str]:
    """Of the code of each case, by a name that says which it is."""
    kernels = {kernel.name: kernel for kernel in all_kernels()}
    found = {}
    for kernel_name, asked, parameters, lanes_name in CASES:
        kernel, lanes = kernels[kernel_name], LANES[lanes_name]
        way = asked.with_parameters(parameters)
        assert kernel.supports(way, lanes), kernel_name
        packed = with_layouts(kernel, way, lanes)
        code = str(kernel.build(kernel.opened(packed), lanes, "kernel"))
        said = " ".join(f"{name}={value}" for name, value in sorted(parameters.items()))
        name = f"{kernel_name} {asked.op} {lanes_name} {said}".rstrip()
        assert name not in found
        found[name] = sha256(code.encode()).hexdigest()
    return found


def test_code_is_that_of_the_epoch(request: pytest.FixtureRequest) -> None:
    """Typical kernels are built as they were when the epoch began."""
    found = digests()
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(json.dumps({"epoch": EPOCH, "code": found}, indent=2) + "\n")
        return
    golden = json.loads(GOLDEN.read_text())
    known = golden["code"]
    changed = sorted(name for name in {*found, *known} if found.get(name) != known.get(name))
    if not changed and golden["epoch"] == EPOCH:
        return
    what = f"the code of {', '.join(changed)} changed" if changed else "the epoch changed"
    raised = golden["epoch"] < EPOCH
    advice = "" if raised else "raise EPOCH in butterflyc/tuning/meters.py, and "
    pytest.fail(f"{what}: {advice}rewrite {GOLDEN.name} with --update-golden")


def test_code_is_the_same_in_every_process() -> None:
    """However Python hashes text: else what is told apart here would be nothing."""
    printing = f"import json; from {__name__} import digests; print(json.dumps(digests()))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", printing],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == digests()
