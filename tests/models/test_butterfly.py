"""ButterflyMoE: rotations, ternary weights, gates, and the loop-free form against the loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.errors import ButterflycError, UnknownName, UsageError
from butterflyc.models.butterfly import (
    Activation,
    ButterflyConfig,
    ButterflyMoE,
    Down,
    DownBias,
    MaskedLoopButterflyMoE,
    linear_form,
)
from butterflyc.models.rotation import SHUFFLES, Rotation, deinterleave, interleave
from butterflyc.models.routing import GATE_RULES, GateRule, choose
from butterflyc.models.ternary import absmean_scale, ternary

TOKENS = 11
QUICK = settings(max_examples=40)


@st.composite
def rotations(draw: st.DrawFn) -> Rotation:
    """Rotations of widths 1 to 40, of every depth, shuffle and direction."""
    width = draw(st.integers(1, 40))
    deepest = Rotation(width, 1).padded.bit_length() - 1
    return Rotation(
        width,
        layers=draw(st.integers(1, deepest)),
        shuffle=draw(st.sampled_from(SHUFFLES)),  # type: ignore[arg-type]
        shuffle_first=draw(st.booleans()),
        transposed=draw(st.booleans()),
    )


@st.composite
def configs(draw: st.DrawFn) -> ButterflyConfig:
    """ButterflyMoE layers of both forms with every choice drawn."""
    d_model, d_ff, experts = draw(st.integers(2, 20)), draw(st.integers(2, 20)), 5
    down = draw(st.sampled_from(get_args(Down)))
    choice = st.sampled_from
    config = ButterflyConfig(
        d_model=d_model,
        d_ff=d_ff,
        experts=experts,
        top_k=draw(st.integers(1, 4)),
        layers_in=draw(st.integers(1, (d_model - 1).bit_length())),
        layers_out=draw(st.integers(1, (d_ff - 1).bit_length())),
        shuffle=draw(choice(SHUFFLES)),  # type: ignore[arg-type]
        shuffle_first=draw(st.booleans()),
        transpose_in=draw(st.booleans()),
        transpose_out=draw(st.booleans()),
        activation=draw(choice(get_args(Activation))),
        activation_after=draw(st.booleans()),
        gate=draw(choice(GATE_RULES)),  # type: ignore[arg-type]
        gate_bias=draw(st.booleans()),
        gamma_per_row=draw(st.booleans()),
        up_bias=draw(st.booleans()),
        down=down,
        down_bias="none" if down == "absent" else draw(choice(get_args(DownBias))),
        angle_std=0.7,
    )
    return config


def dense_rotation(rotation: Rotation, angles: torch.Tensor) -> torch.Tensor:
    """The padded matrix of B(theta), built independently: one 2 x 2 block at a time."""
    n, half = rotation.padded, rotation.padded // 2
    order = torch.arange(n)
    source = {
        "deinterleave": torch.cat((order[0::2], order[1::2])),
        "interleave": torch.stack((order[:half], order[half:]), dim=1).flatten(),
        "stride": order,
    }[rotation.shuffle]
    permutation = torch.eye(n, dtype=torch.float64)[source]
    product = torch.eye(n, dtype=torch.float64)
    for layer in range(rotation.layers):
        step = 1 << layer if rotation.shuffle == "stride" else 1
        firsts = [i for i in range(n) if i // step % 2 == 0]
        givens = torch.eye(n, dtype=torch.float64)
        for angle, i in zip(angles[layer].tolist(), firsts, strict=True):
            cos, sin = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
            givens[i, i], givens[i, i + step] = cos, -sin
            givens[i + step, i], givens[i + step, i + step] = sin, cos
        both = (givens @ permutation) if rotation.shuffle_first else (permutation @ givens)
        product = both @ product
    return product.T if rotation.transposed else product


def random_angles(rotation: Rotation, seed: int = 0) -> torch.Tensor:
    """Angles [layers, padded / 2] of one expert, from N(0, 1), in float64."""
    random = torch.Generator().manual_seed(seed)
    shape = rotation.layers, rotation.padded // 2
    return torch.randn(shape, generator=random, dtype=torch.float64)


@QUICK
@given(rotations())
def test_rotation_is_the_product_of_its_layers(rotation: Rotation) -> None:
    """B(theta) x is strip(matrix . pad(x)) with the matrix multiplied out block by block."""
    angles = random_angles(rotation)
    x = torch.eye(rotation.width, dtype=torch.float64)
    matrix = dense_rotation(rotation, angles)[: rotation.width, : rotation.width]
    found = rotation.apply(x, angles.cos(), angles.sin()).T
    torch.testing.assert_close(found, matrix, rtol=0, atol=1e-6)


@QUICK
@given(rotations())
def test_rotation_is_orthogonal(rotation: Rotation) -> None:
    """At its padded width every B(theta) keeps lengths, and its transpose undoes it."""
    whole = replace(rotation, width=rotation.padded)
    angles = random_angles(whole)
    x = torch.eye(whole.width, dtype=torch.float64)
    turned = whole.apply(x, angles.cos(), angles.sin())
    torch.testing.assert_close(turned @ turned.T, x)
    back = replace(whole, transposed=not whole.transposed)
    torch.testing.assert_close(back.apply(turned, angles.cos(), angles.sin()), x)


def test_padding_strips_what_the_rotation_moved_out() -> None:
    """48 channels at L = 2 rotate as 64 and lose the energy of the 16 that are stripped."""
    rotation = Rotation(48)
    assert rotation.padded == 64
    assert rotation.angles == 2 * 32
    angles = random_angles(rotation)
    x = torch.ones(1, 48, dtype=torch.float64)
    y = rotation.apply(x, angles.cos(), angles.sin())
    assert y.shape == (1, 48)
    assert y.norm() < x.norm()


def test_shuffles_are_inverse_and_as_described() -> None:
    """Deinterleave takes even channels first; interleave undoes it."""
    x = torch.arange(6.0)
    assert deinterleave(x).tolist() == [0, 2, 4, 1, 3, 5]
    assert interleave(x).tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(interleave(deinterleave(x)), x)


@pytest.mark.parametrize("per_row", [False, True])
def test_ternary_has_three_values_a_scale(per_row: bool) -> None:
    """W_hat / gamma is exactly -1, 0 or 1, all three occur, and gamma is mean |W|."""
    weight = torch.randn(13, 7, generator=torch.Generator().manual_seed(1), requires_grad=True)
    gamma = weight.abs().mean(dim=1, keepdim=True) if per_row else weight.abs().mean()
    assert torch.equal(absmean_scale(weight, per_row=per_row), gamma)
    codes = ternary(weight, per_row=per_row) / gamma
    assert set(codes.detach().flatten().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal(codes, (weight / gamma).round().clamp(-1, 1))


def test_ternary_gradient_is_straight_through() -> None:
    """The gradient of a sum of W_hat is one for every weight, clipped ones too."""
    weight = torch.tensor([[0.01, -5.0], [0.4, 3.0]], requires_grad=True)
    (ternary(weight) * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_ternary_of_zeros_is_zero() -> None:
    """A matrix of zeros has gamma 0 and quantises to zeros, not to NaN."""
    assert torch.equal(ternary(torch.zeros(3, 3), per_row=True), torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("raw", [3.0, 1.0]),
        ("softmax_topk", [0.8310, 0.1125]),
        ("topk_softmax", [0.8808, 0.1192]),
        ("renormalised", [0.8808, 0.1192]),
        ("sigmoid", [0.9526, 0.7311]),
    ],
)
def test_gate_rules(rule: GateRule, wanted: list[float]) -> None:
    """Each rule weighs the two largest of the logits 1, 3, 0, -1 by its own formula."""
    gates, experts = choose(torch.tensor([[1.0, 3.0, 0.0, -1.0]]), 2, rule)
    assert experts.tolist() == [[1, 0]]
    torch.testing.assert_close(gates, torch.tensor([wanted]), atol=1e-4, rtol=0)


def reference(layer: ButterflyMoE, x: torch.Tensor) -> torch.Tensor:
    """The layer token by token, from matrices multiplied out: [T, d] to [T, d_out], float64."""
    config, rows = layer.config, []
    gates, experts = choose(layer.gate(x), config.top_k, config.gate)
    activate: dict[str, Any] = {
        "none": lambda v: v,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda v: torch.nn.functional.gelu(v, approximate="tanh"),
    }
    act, d, f = activate[config.activation], config.d_model, config.d_ff
    up = ternary(layer.up, per_row=config.gamma_per_row)
    for token, weights, chosen in zip(x, gates, experts, strict=True):
        y = torch.zeros(config.d_out, dtype=x.dtype)
        for weight, expert in zip(weights, chosen.tolist(), strict=True):
            turn_in = dense_rotation(config.rotation_in, layer.theta[expert])[:d, :d]
            turn_out = dense_rotation(config.rotation_out, layer.phi[expert])[:f, :f]
            hidden = up @ (turn_in @ token)
            hidden = hidden if layer.up_bias is None else hidden + layer.up_bias
            after = config.activation_after
            hidden = act(turn_out @ hidden) if after else turn_out @ act(hidden)
            if layer.down is not None:
                exact = config.down == "float"
                down = layer.down if exact else ternary(layer.down, per_row=config.gamma_per_row)
                hidden = down @ hidden
            if layer.down_bias is not None and config.down_bias == "weighted":
                hidden = hidden + layer.down_bias
            y = y + weight * hidden
        if layer.down_bias is not None and config.down_bias == "once":
            y = y + layer.down_bias
        rows.append(y)
    return torch.stack(rows)


def make(config: ButterflyConfig) -> tuple[ButterflyMoE, MaskedLoopButterflyMoE, torch.Tensor]:
    """The two forms with the same random weights and biases, and tokens for them, in float64."""
    torch.manual_seed(0)
    layer = ButterflyMoE(config).double()
    for bias in (layer.up_bias, layer.down_bias):
        if bias is not None:
            torch.nn.init.normal_(bias)
    loop = MaskedLoopButterflyMoE(config).double()
    loop.load_state_dict(layer.state_dict())
    return layer, loop, torch.randn(TOKENS, config.d_model, dtype=torch.float64)


@QUICK
@given(configs())
@torch.no_grad()
def test_loop_free_is_the_masked_loop_is_the_formula(config: ButterflyConfig) -> None:
    """Loop-free, masked loop, down after the sum, and the formula by matrices agree."""
    layer, loop, x = make(config)
    y = layer(x)
    torch.testing.assert_close(loop(x), y)
    torch.testing.assert_close(reference(layer, x), y, rtol=0, atol=1e-6)
    summed = ButterflyMoE(replace(config, down_first_sum=True)).double()
    summed.load_state_dict(layer.state_dict())
    torch.testing.assert_close(summed(x), y)


@settings(max_examples=15)
@given(configs())
def test_both_forms_have_the_same_gradients(config: ButterflyConfig) -> None:
    """Every parameter gets the same gradient from the loop-free form and from the loop."""
    layer, loop, x = make(config)
    layer(x).square().sum().backward()
    loop(x).square().sum().backward()
    wanted = dict(loop.named_parameters())
    for name, parameter in layer.named_parameters():
        if parameter.grad is None or wanted[name].grad is None:
            assert parameter.grad is None
            assert wanted[name].grad is None
            assert name.startswith("gate.")
        else:
            torch.testing.assert_close(parameter.grad, wanted[name].grad)


def test_linear_form_is_equation_3() -> None:
    """The linear form has neither activation nor W_down, and rotates in by the transpose."""
    config = linear_form(8, 12, top_k=1, experts=2, layers_in=3)
    assert (config.activation, config.down, config.transpose_in) == ("none", "absent", True)
    layer = ButterflyMoE(config)
    assert layer.down is None
    assert layer(torch.zeros(2, 3, 8)).shape == (2, 3, 12)


@pytest.mark.parametrize(
    ("choices", "error", "says"),
    [
        ({"shuffle": "perfect"}, UnknownName, "unknown shuffle 'perfect'"),
        ({"gate": "softmax"}, UnknownName, "unknown gate rule 'softmax'"),
        ({"activation": "relu"}, UnknownName, "unknown activation 'relu'"),
        ({"down": "int8"}, UnknownName, "unknown kind of W_down 'int8'"),
        ({"down_bias": "yes"}, UnknownName, "unknown bias of W_down 'yes'"),
        ({"top_k": 9}, UsageError, "top_k = 9 of 8 experts"),
        ({"layers_in": 9}, UsageError, "9 butterfly layers on width 256"),
        ({"d_model": 0}, UsageError, "a rotation of width 0"),
        ({"down": "absent", "down_bias": "once"}, UsageError, "W_down is absent"),
    ],
)
def test_impossible_configurations_are_refused(
    choices: dict[str, Any], error: type[ButterflycError], says: str
) -> None:
    """A configuration that cannot be is refused where it is made, with what to do."""
    with pytest.raises(error, match=says) as caught:
        ButterflyConfig(**choices)
    assert caught.value.help
