"""Suite ``kernels``: products as a fraction of the machine's peak, measured in the same run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..compiler.run.kernel import bind, spec_for
from ..kernels import all_kernels
from ..kernels.record import Kernel, Spec, Tensor
from ..targets.cpu import machine
from ..targets.registry import load_core
from .peak import peaks
from .timing import Row, interleave, one_core

# (op, rows, k, outputs, fraction of the peak that we want)
TERNARY = (
    (1, 256, 1024, 0.45),
    (4, 256, 1024, None),
    (64, 256, 1024, 0.75),
    (130, 256, 1024, 0.75),
)
DENSE = ((65, 256, 768, 0.85), (65, 256, 256, 0.85), (65, 1024, 256, 0.85), (1, 256, 256, None))


def ternary_spec(rows: int, depth: int, outputs: int) -> Spec:
    operands = Tensor("i8", (rows, depth)), Tensor("ternary", (outputs, depth))
    return spec_for("ternary_dot", operands, [Tensor("i32", (rows, outputs))])


def dense_spec(rows: int, depth: int, outputs: int) -> Spec:
    operands = (
        Tensor("f32", (rows, depth)),
        Tensor("f32", (outputs, depth)),
        Tensor("f32", (outputs,)),
    )
    return spec_for("linear", operands, [Tensor("f32", (rows, outputs))])


def suite(progress: Callable[[str], None] = lambda _: None, rounds: int = 25) -> list[Row]:
    """Every product of the table above, on one core."""
    host = machine(load_core("host"))
    rng = np.random.default_rng(0)
    contenders, work = {}, {}
    for kind, (call, products) in peaks().items():
        contenders[f"peak {kind}"], work[f"peak {kind}"] = call, products
    wanted = {}
    for rows, depth, outputs, target in TERNARY:
        spec = ternary_spec(rows, depth, outputs)
        codes = rng.integers(-127, 128, (rows, depth)).astype(np.int8)
        weights = rng.integers(-1, 2, (outputs, depth)).astype(np.int8)
        key = f"ternary {rows}x{depth}x{outputs}"
        progress(f"compiling {key}")
        call = bind(best(spec, host.lanes), spec, (codes, weights), host.lanes, host.target)
        call()
        np.testing.assert_array_equal(call.results[0], codes.astype(int) @ weights.T.astype(int))
        contenders[key], work[key], wanted[key] = call.raw(), rows * depth * outputs, target
    for rows, depth, outputs, target in DENSE:
        spec = dense_spec(rows, depth, outputs)
        x, w, b = (rng.standard_normal(t.shape).astype(np.float32) for t in spec.operands)
        key = f"dense {rows}x{depth}x{outputs}"
        progress(f"compiling {key}")
        call = bind(best(spec, host.lanes), spec, (x, w, b), host.lanes, host.target)
        call()
        np.testing.assert_allclose(call.results[0], x @ w.T + b, rtol=1e-3, atol=1e-3)
        contenders[key], work[key], wanted[key] = call.raw(), rows * depth * outputs, target
    with one_core():
        times = interleave(contenders, rounds, progress)
    rows_out = []
    for key, target in wanted.items():
        peak = "peak ternary" if key.startswith("ternary") else "peak float"
        # A rate at its best is what a machine can do, so both sides count their best round.
        share, (_, spread) = times.best(peak) / times.best(key), times.ratio(peak, key)
        scale = work[key] / work[peak]
        rows_out.append(
            Row(
                "kernels",
                key.split()[0],
                key.split()[1],
                "fraction of peak",
                work[key] / times.best(key) / 1e9,
                f"{peak} {work[peak] / times.best(peak) / 1e9:.1f} GMAC/s",
                share * scale,
                spread * scale,
                target_ratio=target,
            )
        )
    return rows_out


def best(spec: Spec, lanes: object) -> Kernel:
    """The kernel that `select_kernels` would choose for ``spec``."""
    able = [k for k in all_kernels() if spec.op in k.ops and k.supports(spec, lanes)]  # type: ignore[arg-type]
    return min(able, key=lambda k: (k.cost(spec, lanes), k.name))  # type: ignore[arg-type]
