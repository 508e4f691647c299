"""Plans of GPU kernels come back from their file as they were."""

from __future__ import annotations

import json
from typing import Any

import pytest

from butterflyc.compiler.errors import Damaged
from butterflyc.compiler.run.plans import LayerPlan, launches_of, pack_plans, unpack_plans
from butterflyc.kernels.gpu.launch import Argument, Fill, Launch, Plan, Product, Unpack
from butterflyc.kernels.record import Tensor

LAUNCH = Launch(
    "rotate_rows",
    "rotate_rows",
    (("x", Argument("*fp16", "x")), ("T", Argument("i32", 65)), ("eps", Argument("fp32", 0.5))),
    (("FAST", True), ("KIND", "gelu"), ("BM", 4)),
    (17, 1, 1),
    warps=2,
)
ONCE = (Unpack("w", "dense", (16, 32), "f16"),)
PLANS = {
    "mlp": LayerPlan("library", Plan((LAUNCH, Product("a", "b", "y"), Fill("y")), ONCE)),
    "mlp.2": LayerPlan("library", Plan((LAUNCH,)), (Tensor("f16", (2, 3)), Tensor("f32", (2,)))),
}


def test_round_trip() -> None:
    """Every step, number, flag, word and scratch tensor is as before, and so are symbols."""
    again = unpack_plans(pack_plans(PLANS))
    assert again == PLANS
    assert [launch.symbol for launch in launches_of(again)] == [LAUNCH.symbol]
    kinds = [type(value) for _, value in launches_of(again)[0].constants]
    assert kinds == [bool, str, int]


def test_symbols_tell_kernels_apart() -> None:
    """Another constant or type makes another kernel; another number of rows does not."""
    rows = (("T", Argument("i32", 66)),)
    other = Launch("rotate_rows", "rotate_rows", rows, (), (1, 1, 1))
    more = Launch("rotate_rows", "rotate_rows", (("T", Argument("i32", 67)),), (), (9, 1, 1))
    even = Launch("rotate_rows", "rotate_rows", (("T", Argument("i32", 64)),), (), (1, 1, 1))
    wide = Launch("rotate_rows", "rotate_rows", rows, (("BM", 4),), (1, 1, 1))
    assert other.symbol == more.symbol
    assert len({other.symbol, even.symbol, wide.symbol}) == 3


def damaged(change: Any) -> bytes:
    data = json.loads(pack_plans(PLANS))
    change(data)
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        damaged(lambda d: d["mlp"].update(more=1)),
        damaged(lambda d: d["mlp"].pop("plan")),
        damaged(lambda d: d["mlp"]["plan"]["steps"][0].update(kind="Jump")),
        damaged(lambda d: d["mlp"]["plan"]["steps"][0]["constants"].append(["X", {}])),
    ],
)
def test_damage_is_told(data: bytes) -> None:
    """What is no plan is an error that says so."""
    with pytest.raises(Damaged, match="plans of the GPU kernels"):
        unpack_plans(data)
