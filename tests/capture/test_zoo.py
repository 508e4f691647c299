"""Unrecognised models, written in the ways of many people, mean in the graph what they mean."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import butterflyc as bc
from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.source import eager

from . import zoo_language as language
from . import zoo_parts as parts
from . import zoo_video as video
from . import zoo_vision as vision
from .agreement import agree, check, data, numbers

IDS = numbers(2, 6, below=13)
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
ROWS, IMAGE = data(2, 6, 16), data(2, 3, 8, 8)
CACHE = data(2, 4, 5, 4)
EDGES = numbers(2, 12, below=5)

ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "nanogpt": (language.NanoGPT, (IDS,)),
    "llama, complex, expand": (language.Llama, (IDS,)),
    "llama, half, interleave": (lambda: language.Llama("half", "interleave"), (IDS,)),
    "llama, pairs, enable_gqa": (lambda: language.Llama("pairs", "enable_gqa"), (IDS,)),
    "padded": (language.PaddedLM, (IDS, MASK)),
    "t5": (language.T5, (IDS,)),
    "encoder and decoder": (language.EncoderDecoder, (IDS, IDS.flip(1)[:, :5])),
    "causal encoder": (language.CausalEncoder, (IDS,)),
    "bert": (language.Bert, (IDS, IDS % 2, MASK.bool())),
    "linear attention": (language.LinearAttention, (ROWS,)),
    "state space": (language.StateSpace, (ROWS[:, :4],)),
    "cache": (language.CachedDecoder, (ROWS[:, :1], torch.tensor([3]), CACHE, CACHE.flip(0))),
    "filtered": (language.Filtered, (IDS,)),
    "swin": (vision.SwinBlock, (data(2, 64, 8),)),
    "convnext": (vision.ConvNeXt, (IMAGE,)),
    "mobilenet": (vision.MobileNet, (IMAGE,)),
    "resnext": (vision.ResNeXt, (IMAGE,)),
    "unet": (vision.UNet, (IMAGE[:, :1],)),
    "super resolution": (vision.SuperResolution, (IMAGE[..., :6, :6].contiguous(),)),
    "perceiver": (vision.Perceiver, (IMAGE[..., :4, :4].contiguous(),)),
    "mixer": (vision.Mixer, (IMAGE[..., :6, :6].contiguous(),)),
    "fourier": (vision.Fourier, (data(2, 6, 6, 8),)),
    "detector": (vision.Detector, (IMAGE,)),
    "video": (video.VideoNet, (data(2, 3, 4, 16, 16),)),
    "volumes": (video.VolumeNet, (data(1, 1, 4, 8, 6),)),
    "tubelets": (video.Tubelets, (data(2, 3, 4, 8, 8),)),
    "experts in a loop": (lambda: parts.Experts("loop"), (data(2, 5, 8),)),
    "experts gathered": (lambda: parts.Experts("gather"), (data(2, 5, 8),)),
    "experts in order": (lambda: parts.Experts("ordered"), (data(2, 5, 8),)),
    "capacity": (parts.Capacity, (data(9, 8),)),
    "cells": (parts.Recurrent, (data(2, 4, 6),)),
    "tagger": (parts.Tagger, (numbers(2, 4, below=9),)),
    "causal convolutions": (parts.Causal1d, (data(2, 12),)),
    "contrastive": (parts.Contrastive, (data(3, 2, 6), numbers(3, 5, below=20))),
    "graphs": (parts.Graphs, (data(5, 6), EDGES)),
    "statistics": (parts.Statistics, (data(3, 6), numbers(3, 6, below=9), data(3, 6) > 0)),
    "quantized": (parts.Quantized, (data(2, 1, 6, 6),)),
    "forecast": (parts.Forecast, (data(2, 12, 3),)),
    "pruned": (parts.Pruned, (data(2, 9, 8),)),
    "gated": (parts.Gated, (data(2, 6, 8),)),
    "viterbi": (parts.Viterbi, (data(2, 4, 5),)),
    "cayley": (parts.Cayley, (data(3, 6),)),
    "turned": (parts.Turned, (data(3, 8),)),
}


# `make test-slow` runs every test on every model.
HEAVY = {"cells", "encoder and decoder", "experts in a loop", "mixer", "tagger"}
COMPILED = {"experts in order", "llama, pairs, enable_gqa", "turned"}


def models(chosen: Collection[str]) -> pytest.MarkDecorator:
    """A test for each model, slow unless it is ``chosen``."""
    marks = {name: () if name in chosen else (pytest.mark.slow,) for name in ZOO}
    params = [pytest.param(name, marks=marks[name]) for name in ZOO]
    return pytest.mark.parametrize("name", params)


@models(ZOO.keys() - HEAVY)
def test_interpreted(name: str) -> None:
    """The graph of a model is valid, is its own text, and computes what the model computes."""
    make, inputs = ZOO[name]
    torch.manual_seed(0)
    agree(make(), *inputs)


@models({"unet"})
def test_written_out(name: str) -> None:
    """So does the graph of its program in core ATen calls."""
    make, inputs = ZOO[name]
    torch.manual_seed(0)
    model = make().eval()
    if name == "causal encoder":
        pytest.skip("torch.export itself refuses to ask for its mask")
    with torch.no_grad():
        program = torch.export.export(model, inputs).run_decompositions()
    arrays = [x.numpy() for x in inputs]
    got = interpret(capture(program, inputs).graph, *arrays)
    for mine, theirs in zip(got, eager(model, arrays), strict=True):
        check(mine, theirs, 1e-5, "written out")


@models(COMPILED)
def test_compiled(name: str) -> None:
    """Compiled for the host, a model gives what it gives in eager mode."""
    make, inputs = ZOO[name]
    torch.manual_seed(0)
    model = make().eval()
    found = bc.compile(model, inputs, target="host")(*inputs)
    got = found if isinstance(found, tuple) else (found,)
    for mine, theirs in zip(got, eager(model, [x.numpy() for x in inputs]), strict=True):
        check(np.asarray(mine), theirs, 1e-5, "compiled")
