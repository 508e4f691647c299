"""Many small kernels in one object, each compared with the meaning of its op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import Phase

from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.lower.tir import build_object
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Kernel, Spec

from .harness import GUARD, TARGETS, Array, flushed, guarded, linked, tensor

# A failure names its case; to shrink the batch would compile hundreds more for nothing.
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)


@dataclass(frozen=True)
class Case:
    """An op on arrays. ``name`` is the op's; attributes may leave out what has a default."""

    name: str
    arrays: Sequence[Array]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def full(self) -> dict[str, Any]:
        return OPS[self.name].complete(self.attributes)

    def wanted(self, double: bool = False) -> list[Array]:
        """The op's meaning, of the arrays or of the same in float64."""
        arrays = [
            a.astype(np.float64) if double and a.dtype.kind == "f" else a for a in self.arrays
        ]
        with np.errstate(all="ignore"):
            results = OPS[self.name].meaning(*arrays, **self.full)
        return [np.asarray(r) for r in (results if isinstance(results, tuple) else (results,))]

    def taken_by(self, lanes: Lanes) -> Case:
        """The same of what ``lanes`` take its arrays for."""
        return replace(self, arrays=[flushed(lanes, array) for array in self.arrays])

    @property
    def spec(self) -> Spec:
        operands = tuple(tensor(array) for array in self.arrays)
        results = tuple(tensor(array) for array in self.wanted())
        return Spec(self.name, tuple(sorted(self.full.items())), operands, results)

    def __str__(self) -> str:
        return f"{self.name} {dict(self.attributes)} of {', '.join(map(str, self.spec.operands))}"


def run_batch(
    kernel: Kernel,
    cases: Sequence[Case],
    lanes: Lanes,
    others: Sequence[Sequence[Array]] | None = None,
) -> list[list[Array]]:
    """The results of every case, compiled together; ``others``, if given, replace their arrays.

    A byte written behind a result is an error.
    """
    specs = [case.spec for case in cases]
    unserved = [
        str(case) for case, s in zip(cases, specs, strict=True) if not kernel.supports(s, lanes)
    ]
    assert not unserved, f"kernel {kernel.name} does not support {unserved}"
    distinct = {f"{kernel.name}_{spec.digest}": spec for spec in specs}
    functions = {name: kernel.build(spec, lanes, name) for name, spec in distinct.items()}
    taken = {n: (len(spec.operands) + len(spec.results), 0) for n, spec in distinct.items()}
    calls = linked(lanes, build_object(functions, TARGETS[lanes.name]), taken)
    found = []
    arrays = others or [case.arrays for case in cases]
    for case, spec, given in zip(cases, specs, arrays, strict=True):
        inputs = [np.ascontiguousarray(a) for a in given]
        results = [guarded(result) for result in spec.results]
        written = [memory for memory, _ in results]
        calls[f"{kernel.name}_{spec.digest}"]([*inputs, *written], ())
        intact = all(np.all(memory[-GUARD:] == 0xAB) for memory in written)
        assert intact, f"kernel {kernel.name} wrote behind a result of {case}"
        found.append([result for _, result in results])
    return found


def check_exact(kernel: Kernel, cases: Sequence[Case], lanes: Lanes) -> None:
    """Every case gives what its op means, element for element."""
    cases = [case.taken_by(lanes) for case in cases]
    for case, results in zip(cases, run_batch(kernel, cases, lanes), strict=True):
        for result, wanted in zip(results, case.wanted(), strict=True):
            assert result.dtype == wanted.dtype
            left, right = flushed(lanes, result), flushed(lanes, wanted)
            np.testing.assert_array_equal(left, right, err_msg=str(case))


def check_close(
    kernel: Kernel,
    cases: Sequence[Case],
    lanes: Lanes,
    limit: Callable[[Case, Array], Array] = lambda case, wanted: 2e-6 * np.abs(wanted),
) -> None:
    """Every float is within ``limit`` of the meaning in float64; NaN and infinities are equal."""
    cases = [case.taken_by(lanes) for case in cases]
    for case, results in zip(cases, run_batch(kernel, cases, lanes), strict=True):
        for result, wanted in zip(results, case.wanted(double=True), strict=True):
            with np.errstate(all="ignore"):
                single = wanted.astype(np.float32)
                special = ~np.isfinite(single)
                np.testing.assert_array_equal(result[special], single[special], err_msg=str(case))
                error = np.abs(result.astype(np.float64) - wanted)
                wrong = ~special & ~(error <= limit(case, wanted) + 1.2e-38)
            assert not wrong.any(), (
                f"{case}: {result[wrong][:4]}, want {wanted[wrong][:4]} of "
                f"{[a.ravel()[:4] for a in case.arrays]}"
            )
