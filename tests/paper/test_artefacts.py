"""Sizes of the papers' layers, read from compiled artefacts."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

import butterflyc as bc
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE
from butterflyc.paper import artefacts
from butterflyc.paper.artefacts import (
    FORMS,
    Form,
    Taken,
    bytes_moved,
    measured_layers,
    measured_models,
    measured_moe,
)
from butterflyc.paper.tables import figure_4, figure_7, moe_150, table_1, table_2, whole_ffn

# What the whole FFN has to be smaller by at 64 experts, by the keys of its rows.
WANTED = {
    "ffn.down-ternary": 490,
    "ffn.down-int8": 275,
    "ffn.down-ternary-angles8": 700,
    "ffn.down-int8-angles8": 330,
}


def test_bytes_moved_by_hand() -> None:
    """x [2, 4] and W [3, 4] in, y [2, 3] out, all float32: 32 + 48 + 24 bytes."""
    layer = torch.nn.Linear(4, 3, bias=False).eval()
    program = bc.compile(layer, (torch.zeros(2, 4),), target="host")
    graph = program.stages[program.manifest["stages"][-1]]
    assert bytes_moved(graph) == 32 + 48 + 24


def test_every_size_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured goes into rows that are there, in their units; steps are told."""
    told: list[str] = []
    monkeypatch.setattr(artefacts, "taken", lambda *_: Taken(272_832, 16_768, 1_000_000))
    measured = measured_layers(told.append)
    tables = (table_2(), whole_ffn(), figure_4(), figure_7())
    keys = {row.key for row in chain.from_iterable(table.rows for table in tables)}
    assert set(measured) <= keys
    assert measured["ffn.down-ternary"] == pytest.approx(64 * 2 * 256 * 1024 * 4 / 272_832)
    assert measured["figure4.64.down-ternary"] == pytest.approx(7 * 272_832 / 1e6)
    assert measured["figure7.moved"] == pytest.approx(7 * 1e6 * 8 * 6.4 / 1e9)
    assert told[0].startswith("compile a layer of 64 experts, W_down ternary, i16 angles (1 of")


def test_whole_models_have_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """MB of each, and StandardMoE's bytes over those of the others."""
    sizes = {"butterfly": 4_000_000, "standard": 32_000_000, "dense": 5_000_000}
    monkeypatch.setattr(artefacts, "whole_bytes", lambda mlp: sizes[mlp])
    measured = measured_models()
    assert set(measured) <= {row.key for row in table_1().rows}
    assert measured["table1.butterfly.memory"] == 4.0
    assert measured["table1.butterfly.compression"] == 8.0


def test_the_layer_of_butterfly_moe_has_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the up-projections of StandardMoE in fp32, as the paper counts."""
    monkeypatch.setattr(artefacts, "taken", lambda *_: Taken(7 << 20, 1, 1))
    measured = measured_moe()
    assert set(measured) <= {row.key for row in moe_150().rows}
    assert measured["moe.256.butterfly"] == 7.0
    assert measured["moe.256.ratio"] == pytest.approx(1024 / 7)


def test_what_a_layer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts and router apart, and together all of the weights of the artefact."""
    small = artefacts.BUTTERFLY_VIT.__class__(32, 64, 1, 2, 2)
    monkeypatch.setattr(artefacts, "BUTTERFLY_VIT", small)
    layer = artefacts.taken(Form(4).config, "i8")
    assert layer.router == 4 * 32 + 64 + 64  # weights, and biases and multipliers, padded
    torch.manual_seed(0)
    config = ButterflyConfig(d_model=32, d_ff=64, experts=4, down="ternary", angle_std=1.0)
    tokens = torch.randn(artefacts.TOKENS, 32)
    module = ButterflyMoE(config).eval()
    program = bc.compile(module, (tokens,), target="c99", angles="i8", prefer="size")
    assert program.placement is not None
    assert layer.experts + layer.router == program.placement["weights"]["bytes"]


@pytest.mark.slow
def test_a_whole_model() -> None:
    """A byte a weight and less for ternary ones: ButterflyViT's 5,661,028 numbers in 4.35 MB."""
    assert artefacts.whole_bytes("butterfly") == pytest.approx(4_346_176, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("key", WANTED)
def test_compression_of_the_whole_ffn(key: str) -> None:
    """64 experts, d = 256, F = 1024: scales, tables and padding counted, the router not."""
    form = FORMS[key.removeprefix("ffn.")]
    layer = artefacts.taken(form.config, form.angles)
    assert 64 * 2 * 256 * 1024 * 4 / layer.experts >= WANTED[key]
