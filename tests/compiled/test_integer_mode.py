"""Integer mode on this machine: the bits of the interpreter, and the accuracy of the floats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.recognise import recognise
from butterflyc.compiler.ir import Graph, verify
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.run.native import Native
from butterflyc.kernels import all_kernels
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.checkpoint import digits_calibration, digits_test, load_digits
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.passes.canonicalize import Canonicalize
from butterflyc.passes.combine_before_down import CombineBeforeDown
from butterflyc.passes.fold_permutations import FoldPermutations
from butterflyc.passes.merge_rotations import MergeRotations
from butterflyc.passes.pack_weights import PackWeights
from butterflyc.passes.plan_memory import PlanMemory
from butterflyc.passes.quantize import Quantize
from butterflyc.passes.select_kernels import SelectKernels
from butterflyc.passes.share_expert_matmul import ShareExpertMatmul
from butterflyc.targets import cpu
from butterflyc.targets.registry import load_core

Array = np.ndarray
FRONT = (
    Canonicalize(),
    MergeRotations(),
    FoldPermutations(),
    ShareExpertMatmul(),
    CombineBeforeDown(),
)


def in_integers(model: torch.nn.Module, images: Array) -> tuple[Graph, Graph]:
    """The model's graph in floats, and in integers with scales by ``images`` [N, C, H, W]."""
    graph = recognise(capture(model, (torch.from_numpy(images[:1]),)).graph).graph
    for step in FRONT:
        graph = step(graph)
    quantized = Quantize([(image[None],) for image in images])(graph)
    verify(quantized)
    return graph, quantized


def on_host(graph: Graph) -> Native:
    """The graph, compiled for this machine."""
    core, kernels = load_core("host"), all_kernels()
    lanes = cpu.machine(core).lanes
    for step in (
        SelectKernels(kernels, lanes),
        PackWeights(kernels, lanes),
        PlanMemory(kernels, lanes),
    ):
        graph = step(graph)
    library = cpu.emit(graph, core, "m")["libm.so"]
    ends = [node.type for node in graph.inputs], [node.type for node in graph.outputs]
    return Native(library, "m", *map(tuple, ends), int(graph.notes["arena_bytes"]))  # type: ignore[arg-type]


def encoded(graph: Graph, images: Array) -> Array:
    scale = graph.inputs[0].type.scale
    assert scale is not None
    return np.clip(np.rint(images / scale), -127, 127).astype(np.int8)


@st.composite
def vits(draw: st.DrawFn) -> ViTConfig:
    """Small ViTs of one block, with any depth, shuffle and gates that integer mode has."""
    layer = ButterflyConfig(
        d_model=draw(st.sampled_from([8, 12, 16])),
        d_ff=draw(st.sampled_from([16, 20, 32])),
        experts=draw(st.integers(2, 5)),
        top_k=draw(st.integers(1, 2)),
        layers_in=draw(st.integers(1, 3)),
        layers_out=draw(st.integers(1, 3)),
        transpose_in=draw(st.booleans()),
        gamma_per_row=draw(st.booleans()),
        activation_after=draw(st.booleans()),
        down=draw(st.sampled_from(["float", "ternary"])),
        angle_std=1.0,
    )
    return ViTConfig(
        image=8, channels=1, patch=4, classes=3, d_model=layer.d_model, heads=2, layers=1, mlp=layer
    )


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(vits(), st.integers(0, 99))
def test_random_models_have_the_bits_of_the_interpreter(config: ViTConfig, seed: int) -> None:
    """For fresh images, for the largest codes, and for an image of nothing."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images = rng.random((4, 1, 8, 8), np.float32)
    _, quantized = in_integers(ViT(config).eval(), images)
    native = on_host(quantized)
    fresh = encoded(quantized, rng.random((3, 1, 8, 8), np.float32))
    ends = rng.choice(np.array([-127, 0, 127], np.int8), (3, 1, 8, 8))
    for codes in (*fresh, *ends, np.zeros((1, 8, 8), np.int8)):
        (wanted,) = interpret(quantized, codes[None])
        np.testing.assert_array_equal(native(codes[None])[0], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_digits_in_integers(turned: bool) -> None:
    """All test images: the bits of the interpreter, and at most one point below float32.

    A copy has angles of N(0, 0.5), as no training made them: its results are as near.
    """
    model = load_digits()
    if turned:
        torch.manual_seed(0)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "theta" in name or "phi" in name:
                    value.normal_(0, 0.5)
    images, labels = digits_test().floats(), digits_test().labels
    graph, quantized = in_integers(model, digits_calibration().floats())
    native = on_host(quantized)
    right = {"float": 0, "integer": 0}
    for image, label in zip(images, labels, strict=True):
        codes = encoded(quantized, image[None])
        (wanted,), (found,) = interpret(quantized, codes), native(codes)
        np.testing.assert_array_equal(found, wanted)
        right["float"] += int(interpret(graph, image[None])[0].argmax() == label)
        right["integer"] += int(found.argmax() == label)
    assert right["integer"] >= right["float"] - 0.01 * len(images), right
