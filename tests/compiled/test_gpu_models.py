"""The digits model and the papers' on GPUs: their kernels interpreted, beside PyTorch."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.checkpoint import digits_test
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.verify import relative_errors

from ..digits import digits_model

pytestmark = pytest.mark.slow
BATCH = 4
# Of an image whose experts are PyTorch's; others may differ by anything.
LIMITS = {"f16": 2e-3, "bf16": 2e-2, "f32": 1e-5, "i8": 1e-2}
AGREEMENT = {"f16": 0.995, "bf16": 0.97, "f32": 0.9999, "i8": 0.98}


@cache
def on_host() -> bc.Program:
    """The model as this machine computes it, of which the routing is PyTorch's."""
    return bc.compile(digits_model(False).eval(), (torch.zeros(BATCH, 1, 8, 8),))


@pytest.mark.parametrize(("mode", "images"), [("f16", 12), ("f32", 4), ("bf16", 4), ("i8", 8)])
def test_digits(mode: str, images: int) -> None:
    """Every image gets PyTorch's answer, and experts but for near-ties."""
    model, pictures = digits_model(False).eval(), digits_test().floats()[:images]
    program = bc.compile(model, (torch.zeros(BATCH, 1, 8, 8),), target="cuda-sm90", mode=mode)
    on = program.on("interpreter")
    with torch.no_grad():
        wanted = model(torch.from_numpy(pictures)).numpy()
    got = np.asarray(on(pictures))
    assert (got.argmax(-1) == wanted.argmax(-1)).all()
    assert np.quantile(relative_errors(got, wanted), 0.75) <= LIMITS[mode]
    batches = [(x,) for x in np.split(pictures, images // BATCH)]
    ours, theirs = on.routing_each(batches), [on_host().routing(*x) for x in batches]
    assert ours is not None
    same = [
        (np.sort(a, -1) == np.sort(b, -1)).all(-1).mean()
        for mine, other in zip(ours, theirs, strict=True)
        for a, b in zip(mine, other, strict=True)
    ]
    assert np.mean(same) >= AGREEMENT[mode]


def test_the_papers_model() -> None:
    """d = 256, F = 1024, 7 layers of 8 experts, 65 tokens, with weights that nothing trained."""
    torch.manual_seed(0)
    model = ViT(ViTConfig(mlp=ButterflyConfig(angle_std=0.5))).eval()
    image = torch.rand(1, 3, 32, 32)
    program = bc.compile(model, (image,), target="cuda-sm90", mode="f16")
    assert program.census["found"] == program.census["choosable"] == 56
    got = program.on("interpreter")(image)
    with torch.no_grad():
        wanted = model(image)
    assert int(got.argmax()) == int(wanted.argmax())
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 2e-2
