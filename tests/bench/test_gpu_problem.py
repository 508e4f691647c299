"""Every way that the GPU benchmark knows of one layer computes the same layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.bench.gpu import eager, ours
from butterflyc.bench.gpu.contender import active_experts, calls_for, copies_for, draws_for
from butterflyc.bench.gpu.device import Rehearsal
from butterflyc.bench.gpu.points import OUTPUTS, points, rehearsed_points, tuned_shapes, wanted
from butterflyc.bench.gpu.problem import (
    Shape,
    difference,
    draw,
    gated,
    meaning,
    spec,
    tokens_of,
    weights,
)
from butterflyc.kernels.gpu import all_kernels

DEVICE = Rehearsal()
GPU = DEVICE.gpu


def arrays(shape, layer, x, went, dtype):
    values = {"x": x.float().numpy(), "gates": went.gates.numpy(), "experts": went.experts.numpy()}
    return {**layer.operands(dtype), **values}


@given(
    st.integers(1, 20),
    st.integers(1, 30),
    st.integers(2, 9),
    st.integers(1, 12),
    st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_operands_mean_what_the_model_computes(groups_in, groups_out, experts, tokens, seed):
    """The op on operands of any widths is the module of models/, and the faster eager form."""
    shape = Shape(4 * groups_in, 4 * groups_out, experts, tokens)
    layer = weights(shape.channels, shape.outputs, experts, seed)
    went = draw(shape, "uniform", "cpu", seed)
    x = tokens_of(shape, "f32", "cpu", seed)
    result = meaning(spec(shape, "f32"), arrays(shape, layer, x, went, "f32"))
    with torch.no_grad():
        module = eager.as_modelled(layer, shape, "f32", "cpu").mix(x, went.gates, went.experts)
        fast = eager.mixture(
            eager.frozen(layer, experts, "f32", "cpu"), x, went.gates, went.experts
        )
    assert difference(result, module.numpy()) < 1e-5
    assert difference(fast, module) < 1e-5


def test_a_layer_of_fewer_experts_is_the_first_ones():
    """Constants of many experts serve a spec of few, and a clone has addresses of its own."""
    shape = Shape(16, 32, 3, 4)
    many = ours.Constants(weights(16, 32, 7).operands("f32"), "cpu")
    few = ours.Constants(replace_experts(weights(16, 32, 7), 3).operands("f32"), "cpu")
    kernel = ours.serving(all_kernels(), spec(shape, "f32"), GPU)[0]
    found = ours.way(kernel, spec(shape, "f32"), GPU)
    left, right = many.of(found.spec), few.of(found.spec)
    assert all(torch.equal(left[name], right[name]) for name in right)
    cloned = ours.Cloned(many).of(found.spec)
    assert all(cloned[name].data_ptr() != left[name].data_ptr() for name in left)


def replace_experts(layer, count):
    return replace(layer, theta=layer.theta[:count], phi=layer.phi[:count])


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("routed", [False, True])
def test_each_kernel_is_the_layer(dtype, routed):
    """Every kernel, on its second copy and with its own routing, gives what eager gives."""
    shape = Shape(16, 32, 6, 5)
    layer = weights(16, 32, 6)
    constants = ours.Constants(layer.operands(dtype), "cpu")
    draws = draws_for(DEVICE, shape, "zipf")
    right = eager.contender("eager", layer, shape, dtype, DEVICE, 6)
    asked = spec(shape, dtype)
    for kernel in ours.serving(all_kernels(), asked, GPU):
        found = ours.way(kernel, asked, GPU)
        made = ours.contender(found, DEVICE, constants, shape, 6, routed=routed)
        with torch.no_grad():
            error = difference(made.call(1, draws[1]), right.call(0, draws[1]))
        assert error < {"f32": 1e-3, "f16": 4e-3, "bf16": 3e-2}[dtype], kernel.name


def test_a_kernel_without_inline_assembly_is_another():
    """Only launches change, and only in that."""
    asked = spec(Shape(16, 32, 6, 5), "bf16")
    for kernel in ours.serving(all_kernels(), asked, GPU):
        found = ours.way(kernel, asked, GPU)
        plain = ours.without_asm(found)
        assert len(plain.plan.steps) == len(found.plan.steps)
        assert "('ASM', True)" in str(found.plan)
        assert str(plain.plan) == str(found.plan).replace("('ASM', True)", "('ASM', False)")


def test_routing_is_as_its_name_says():
    """Uniform draws use all experts alike, Zipf's the first most; one expert has every token."""
    shape = Shape(16, 32, 16, 4096)
    counts = {
        name: np.bincount(draw(shape, name, "cpu", 0).experts.flatten().numpy(), minlength=16)
        for name in ("uniform", "zipf", "one expert")
    }
    assert counts["uniform"].max() < 1.3 * counts["uniform"].min()
    assert counts["zipf"][0] > 5 * counts["zipf"][15]
    assert counts["one expert"][15] == 4096
    went = draw(shape, "uniform", "cpu", 1)
    gates, experts = gated(went.logits)
    assert torch.equal(experts, went.experts)
    torch.testing.assert_close(gates.sum(1), torch.ones(4096))


def test_copies_are_larger_than_the_cache():
    """For few tokens, as far as memory goes; many tokens need no copies."""

    class Large(Rehearsal):
        rehearsal = False
        cache_bytes = 50 << 20
        memory_bytes = 140 << 30

    few, many = Shape(256, 1024, 8, 1), Shape(256, 1024, 8, 4096)
    assert copies_for(Large(), few, 1 << 20, 1 << 20) == 150
    assert copies_for(Large(), few, 1 << 20, 14 << 30) == 4
    assert copies_for(Large(), few, 1 << 30, 1 << 30) == 1
    assert copies_for(Large(), few, 1, 1) == 512
    assert copies_for(Large(), many, 1, 1) == 1
    assert (calls_for(Large(), few, 1), calls_for(Large(), many, 1)) == (20, 1)
    assert active_experts(draws_for(Large(), few, "one expert")) == 2


def test_points_cover_what_is_wanted():
    """All widths, experts and tokens are there once; those with the largest weights come last."""
    asked = points()
    assert len(set(asked)) == len(asked)
    plain = {p.shape for p in asked if p.routing == "uniform" and not p.compiled}
    want = {
        Shape(d, f, e, t)
        for d, f in OUTPUTS.items()
        for e in (8, 64, 256)
        for t in (1, 32, 4096, 65536)
        if d < 4096 or t < 65536 or e == 8
    }
    assert plain == want
    assert (asked[-1].shape.channels, asked[-1].shape.experts) == (4096, 256)
    assert all(p.routing != "uniform" or p.compiled for p in asked if asked.count(p) != 1)
    assert len(tuned_shapes(asked)) == 12
    assert {p.compiled for p in rehearsed_points()} == {True, False}


def test_targets_are_those_of_the_plan():
    """More is wanted of few tokens and many experts; nothing may be slower."""
    table = {
        (1024, 8, 1): 2.5, (4096, 64, 1): 2.5, (1024, 8, 32): 6.0, (1024, 64, 32): 20.0,
        (4096, 256, 32): 20.0, (1024, 8, 4096): 1.2, (4096, 64, 4096): 1.6, (1024, 64, 65536): 1.2,
        (256, 8, 32): 1.5, (256, 256, 4096): 1.0,
    }  # fmt: skip
    for (d, experts, tokens), times in table.items():
        assert wanted(Shape(d, OUTPUTS[d], experts, tokens)) == times
