"""Integers by kernels of the smallest constants: what that saves, and what it is refused for."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.cli.app import run
from butterflyc.compiler.errors import UnknownName, UsageError
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE
from butterflyc.passes.select_kernels import kernel_of, spec_of
from butterflyc.program import Program
from butterflyc.targets.prices import prices_of, smallest
from butterflyc.verify import verify

ROWS = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))


@cache
def model() -> ButterflyMoE:
    torch.manual_seed(0)
    config = ButterflyConfig(
        d_model=100, d_ff=100, experts=4, top_k=2, down="ternary", angle_std=1.0, layers_in=1
    )
    return ButterflyMoE(config).eval()


@cache
def program(prefer: str | None = None, target: str = "rv32imc") -> Program:
    return bc.compile(model(), (ROWS,), target=target, mode="int8", prefer=prefer)


def weights(made: Program) -> int:
    return int(made.manifest["memory"]["weights"])


def test_constants_are_as_small_as_any_way_makes_them() -> None:
    """No kernel wants less for any node; five ternary weights a byte, where four are faster."""
    small, fast = program("size"), program()
    assert weights(small) < weights(fast)
    assert (small.manifest["prefer"], fast.manifest["prefer"]) == ("size", "speed")
    price = smallest(prices_of("rv32imc").instructions)
    for node in small.stages["spare_arena"].nodes:
        if "kernel" not in node.notes:
            continue
        spec, kernels = spec_of(node), all_kernels()
        taken = int(price(kernel_of(node, kernels), spec, Lanes()) or 0)
        bare = spec.with_parameters({})
        able = [k for k in kernels if spec.op in k.ops and k.supports(bare, Lanes())]
        for kernel in able:
            for way in kernel.space(bare, Lanes()):
                assert taken <= int(price(kernel, bare.with_parameters(way), Lanes()) or 0), node
    trits = [n.notes.get("tune_trits") for n in small.stages["select_kernels"].nodes]
    assert 5 in trits


@pytest.mark.parametrize("target", ["c99", "host"])
def test_any_machine_may_prefer_it(target: str) -> None:
    """Also where nothing is known of times; the program computes the same bits."""
    small = program("size", target)
    assert weights(small) <= weights(program(None, target))
    if target == "host":
        assert verify(small).passed
        np.testing.assert_array_equal(
            np.asarray(small(ROWS)), np.asarray(program(None, target)(ROWS))
        )


def test_what_was_tuned_is_not_taken() -> None:
    """Records say what is fastest."""
    assert program("size").manifest["tuning"]["tuned"] == 0


def test_what_cannot_be_preferred() -> None:
    """Other words, and other modes, in which kernels are chosen by speed alone."""
    with pytest.raises(UnknownName, match="preference 'small'"):
        bc.compile(model(), (ROWS,), mode="int8", prefer="small")
    with pytest.raises(UsageError, match="by their size in mode int8, this is mode f32"):
        bc.compile(model(), (ROWS,), prefer="size")
    line = "compile models/digits.safetensors --prefer size -o none.bfly"
    assert run(line.split()) == 2
