"""Compiled code against eager PyTorch, on models drawn at random.

A compilation takes seconds, so an example here is a batch: several small layers in one module, each
on its own input, captured and compiled together.
"""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import butterflyc as bc
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE
from butterflyc.models.rotation import SHUFFLES, padded_width
from butterflyc.models.routing import GATE_RULES
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.verify import NEAR_TIE, observe, relative_errors, verify

TOKENS = 5
LAYERS_AT_ONCE = 4


@st.composite
def configs(draw: st.DrawFn) -> ButterflyConfig:
    """Any ButterflyMoE layer of small width."""
    d, f = draw(st.integers(2, 40)), draw(st.integers(2, 48))
    experts = draw(st.integers(1, 5))
    linear = draw(st.booleans())
    depth = [padded_width(n).bit_length() - 1 for n in (d, f)]
    return ButterflyConfig(
        d_model=d,
        d_ff=f,
        experts=experts,
        top_k=draw(st.integers(1, min(4, experts))),
        layers_in=draw(st.integers(1, depth[0])),
        layers_out=draw(st.integers(1, depth[1])),
        shuffle=draw(st.sampled_from(SHUFFLES)),  # type: ignore[arg-type]
        shuffle_first=draw(st.booleans()),
        transpose_in=draw(st.booleans()),
        transpose_out=draw(st.booleans()),
        activation="none" if linear else draw(st.sampled_from(["gelu", "gelu_tanh"])),
        activation_after=not linear and draw(st.booleans()),
        gate=draw(st.sampled_from(GATE_RULES)),
        gate_bias=draw(st.booleans()),
        gamma_per_row=draw(st.booleans()),
        up_bias=draw(st.booleans()),
        down="absent" if linear else draw(st.sampled_from(["float", "ternary"])),
        down_bias="none" if linear else draw(st.sampled_from(["none", "weighted", "once"])),
        down_first_sum=draw(st.booleans()),
        angle_std=0.8,
    )


class SideBySide(nn.Module):
    """Several layers, each on an input of its own: [T, d_i] to [T, out_i], joined."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([layer(part) for layer, part in zip(self.layers, x, strict=True)], dim=-1)


class FourInputs(nn.Module):
    """`SideBySide` for four inputs as plain arguments."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.inner = SideBySide(layers)

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        joined: Tensor = self.inner((a, b, c, d))
        return joined


def compiled_error(model: nn.Module, inputs: tuple[Tensor, ...], mode: str) -> float:
    """The largest error of a row of the compiled model, or 0 if its routing is a near-tie."""
    program = bc.compile(model, inputs, mode=mode)
    arrays = [x.numpy() for x in inputs]
    if observe(program.stages["capture"], *arrays).margin < NEAR_TIE:
        return 0.0
    with torch.no_grad():
        wanted = model(*inputs).numpy()
    assert program.census["recognised"] == program.census["layers"] == LAYERS_AT_ONCE
    return float(relative_errors(program.run(*arrays)[0], wanted).max())


@pytest.mark.slow
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(st.lists(configs(), min_size=LAYERS_AT_ONCE, max_size=LAYERS_AT_ONCE), st.integers(0, 2**16))
def test_any_butterfly_layer_compiles_to_what_it_computes(
    chosen: list[ButterflyConfig], seed: int
) -> None:
    """Every configuration is recognised in full, and host f32 is within 1e-5 of eager."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [ButterflyMoE(config).eval() for config in chosen]
    for layer in layers:
        for parameter in layer.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter)
    inputs = tuple(torch.randn(TOKENS, config.d_model) for config in chosen)
    assert compiled_error(FourInputs(layers).eval(), inputs, "f32") <= 1e-5


class PlainBlock(nn.Module):
    """A post-norm transformer block unlike ours: separate q, k, v, ReLU or SiLU, learnt scale."""

    def __init__(self, width: int, heads: int, hidden: int, act: str) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), 0.7))
        self.act = {"relu": nn.ReLU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}[act]
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (
            p(x).view(b, t, self.heads, d // self.heads).transpose(1, 2)
            for p in (self.q, self.k, self.v)
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5, dim=-1)
        x = self.norm1(x + self.out((weights @ v).transpose(1, 2).reshape(b, t, d)))
        return self.norm2(x + self.scale * self.down(self.act(self.up(x))))


class PlainViT(nn.Module):
    """A ViT without experts: conv patches, mean pooling."""

    def __init__(self, width: int, heads: int, hidden: int, act: str, patch: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, (12 // patch) ** 2, width) * 0.3)
        self.blocks = nn.Sequential(*[PlainBlock(width, heads, hidden, act) for _ in range(2)])
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        y: Tensor = self.head(self.blocks(tokens).mean(dim=1))
        return y


@pytest.mark.slow
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([(12, 2), (15, 3), (32, 4), (20, 1)]),
    st.integers(5, 50),
    st.sampled_from(["relu", "silu", "tanh"]),
    st.sampled_from([2, 3, 4]),
    st.integers(1, 3),
)
def test_a_plain_vit_compiles_too(
    width: tuple[int, int], hidden: int, act: str, patch: int, batch: int
) -> None:
    """A ViT with no experts, in a style that is not ours, is within 1e-5 of eager."""
    torch.manual_seed(hidden)
    model = PlainViT(*width, hidden, act, patch).eval()
    x = torch.randn(batch, 3, 12, 12)
    program = bc.compile(model, (x,))
    with torch.no_grad():
        wanted = model(x).numpy()
    assert program.census["layers"] == 0
    assert relative_errors(program(x.numpy()), wanted).max() <= 1e-5


def test_a_small_vit_compiles_in_both_modes(tmp_path: Path) -> None:
    """A thin slice: compile, save, load, run, for f32 and a8; torch in gives torch out."""
    torch.manual_seed(0)
    mlp = ButterflyConfig(d_model=32, d_ff=64, experts=4, angle_std=0.5)
    config = ViTConfig(8, 1, 4, 10, 32, 4, 1, mlp=mlp)
    model = ViT(config).eval()
    x = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        batch = torch.rand(3, 1, 8, 8)
        wanted, many = model(x), model(batch)
    for mode, limit in (("f32", 1e-5), ("a8", 0.1)):
        program = bc.compile(model, (x,), mode=mode, name="small")
        assert program.census == {"layers": 1, "recognised": 1, "found": 4, "choosable": 4}
        loaded = bc.load(program.save(tmp_path / f"{mode}.bfly"))
        y = loaded(x)
        assert isinstance(y, torch.Tensor)
        assert relative_errors(y.numpy(), wanted.numpy()).max() <= limit
        assert relative_errors(loaded(batch.numpy()), many.numpy()).max() <= limit
        assert list(loaded.stages) == list(program.stages)
        for stage, graph in program.stages.items():
            assert loaded.stages[stage] == graph, stage
    np.testing.assert_array_equal(loaded.routing(x.numpy())[0].shape, (5, 2))


PORTABLE = """
name = "portable"
family = "cpu"
description = "any x86-64, one lane"
triple = "x86_64-linux-gnu"
cpu = "x86-64"
features = []
lanes = "scalar"
toolchain = ["cc"]
runner = "native"
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the core above is an x86-64")
@pytest.mark.parametrize("mode", ["f32", "a8"])
def test_portable_code_computes_the_same(tmp_path: Path, mode: str) -> None:
    """With scalar lanes and no vector feature a whole model is right, for a core of one's own."""
    torch.manual_seed(0)
    mlp = ButterflyConfig(d_model=32, d_ff=64, experts=4, angle_std=0.5)
    model = ViT(ViTConfig(8, 1, 4, 10, 32, 4, 1, mlp=mlp)).eval()
    x = torch.rand(1, 1, 8, 8)
    (tmp_path / "portable.toml").write_text(PORTABLE)
    program = bc.compile(
        model, (x,), target="portable", target_file=tmp_path / "portable.toml", mode=mode
    )
    assert program.manifest["cpu_features"] == []
    with torch.no_grad():
        wanted = model(x).numpy()
    assert relative_errors(program(x.numpy()), wanted).max() <= (1e-5 if mode == "f32" else 0.1)
    assert verify(program).passed
