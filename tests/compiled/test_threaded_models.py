"""Whole models in several threads: the bits of one, in every mode."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import butterflyc as bc
from butterflyc.compiler.codes import encode
from butterflyc.compiler.errors import UsageError
from butterflyc.compiler.lower.link import c_compiler
from butterflyc.compiler.lower.link import run as run_tool
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE
from butterflyc.models.checkpoint import digits_calibration, digits_test, load_digits
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.program import Program
from butterflyc.verify import verify

from .test_integer_mode import in_integers, vits
from .test_random_models import LAYERS_AT_ONCE, TOKENS, FourInputs, PlainViT, configs
from .threaded import of_program

MODES = ("f32", "a8", "int8")
POOLS = (1, 2, 3, 4, 5)
SOME = settings(max_examples=4, suppress_health_check=list(HealthCheck))
PARTS = st.integers(2, 4)


def small(batch: int = 1) -> tuple[ViT, torch.Tensor]:
    """A ViT of one block for images of 8 x 8, and a batch for it."""
    torch.manual_seed(0)
    mlp = ButterflyConfig(d_model=32, d_ff=64, experts=4, angle_std=0.5)
    return ViT(ViTConfig(8, 1, 4, 10, 32, 4, 1, mlp=mlp)).eval(), torch.rand(batch, 1, 8, 8)


def samples_of(program: Program, count: int = 3, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    """Random inputs, in the codes that the program takes."""
    rng = np.random.default_rng(seed)
    return [
        tuple(encode(rng.random(t.shape, np.float32), t) for t in program.inputs)
        for _ in range(count)
    ]


@pytest.mark.parametrize("mode", MODES)
def test_a_small_vit_has_the_bits_of_one_thread(mode: str) -> None:
    """5 tokens in 4 parts, in each mode: any pool gives what one thread does, and verifies."""
    model, x = small()
    program = bc.compile(model, (x,), mode=mode, threads=4, calibration=torch.rand(4, 1, 8, 8))
    of_program(program).check(POOLS, samples_of(program))
    assert program.threads == program.manifest["threads"] == 4
    assert verify(program).passed


@pytest.mark.parametrize("mode", MODES)
def test_one_thread_is_what_it_was(mode: str) -> None:
    """threads=1 is the file that is made without it; threads=2 leaves NAME_run and its kernels."""
    model, x = small()
    images = torch.rand(4, 1, 8, 8)
    plain = bc.compile(model, (x,), mode=mode, calibration=images)
    one = bc.compile(model, (x,), mode=mode, calibration=images, threads=1)
    assert one.artefact == plain.artefact
    two = bc.compile(model, (x,), mode=mode, calibration=images, threads=2)
    before, after = (p.artefact.section("kernels/bfly.c").decode() for p in (plain, two))
    (start, *_), body = (
        after.split("/* For several threads"),
        before[before.index("int bfly_run") :],
    )
    assert body in start
    assert plain.threads == 1
    assert {"threads", "arena_mt"}.isdisjoint({**plain.manifest, **plain.memory})
    for sample in samples_of(plain):
        for a, b in zip(plain.native(*sample), of_program(two).alone(*sample), strict=True):
            np.testing.assert_array_equal(a, b)


def test_routing_is_read_after_several_threads() -> None:
    """The chosen experts lie where one thread leaves them."""
    model, x = small()
    program = bc.compile(model, (x,), threads=3)
    alone = bc.compile(model, (x,))
    for sample in samples_of(program):
        for found, wanted in zip(program.routing(*sample), alone.routing(*sample), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_images_and_their_tokens_are_dealt_out() -> None:
    """A batch of 3 images, with a convolution, in more parts than there are images."""
    torch.manual_seed(0)
    model, x = PlainViT(12, 2, 20, "silu", 4).eval(), torch.randn(3, 3, 12, 12)
    program = bc.compile(model, (x,), threads=4)
    last = program.stages["split_work"]
    assert {n.notes.get("split") for n in last.nodes if n.op == "linear"} >= {27}
    of_program(program).check(POOLS, samples_of(program))


@pytest.mark.slow
@SOME
@given(
    st.lists(configs(), min_size=LAYERS_AT_ONCE, max_size=LAYERS_AT_ONCE),
    st.integers(0, 2**16),
    st.sampled_from(["f32", "a8"]),
    PARTS,
)
def test_any_butterfly_layer(
    chosen: list[ButterflyConfig], seed: int, mode: str, parts: int
) -> None:
    """Layers of any configuration side by side."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [ButterflyMoE(config).eval() for config in chosen]
    inputs = tuple(torch.randn(TOKENS, config.d_model) for config in chosen)
    program = bc.compile(FourInputs(layers).eval(), inputs, mode=mode, threads=parts)
    of_program(program).check(POOLS, samples_of(program, seed=seed))


@pytest.mark.slow
@SOME
@given(vits(), st.integers(0, 99), PARTS)
def test_any_small_vit_in_integers(config: ViTConfig, seed: int, parts: int) -> None:
    """Integer mode, with attention head by head."""
    torch.manual_seed(seed)
    images = np.random.default_rng(seed).random((4, 1, 8, 8), np.float32)
    program = in_integers(ViT(config), images, threads=parts)
    of_program(program).check(POOLS, samples_of(program, seed=seed))


def digits(mode: str, threads: int) -> Program:
    calibration = digits_calibration().floats()
    example = (torch.zeros(1, 1, 8, 8),)
    return bc.compile(
        load_digits(), example, mode=mode, calibration=calibration, name="digits", threads=threads
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_digits_model(mode: str) -> None:
    """Thirty test images, pools of 1 to 5; more parts than heads, and than some ops have rows."""
    program = digits(mode, 5)
    images = digits_test().floats()[:30]
    samples = [(encode(image[None], program.inputs[0]),) for image in images]
    of_program(program).check(POOLS, samples)
    assert verify(program).passed


@pytest.mark.slow
def test_a_c_program_with_threads(tmp_path: Path) -> None:
    """examples/host_c built with THREADS says what the model says, with no Python in it."""
    program = digits("f32", 3)
    for section, content in program.artefact.sections.items():
        if section.startswith("kernels/"):
            (tmp_path / section.removeprefix("kernels/")).write_bytes(content)
    source = Path(__file__).parents[2] / "examples" / "host_c" / "main.c"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-DTHREADS=2", "-I.", "-L."]
    link = ["-ldigits", f"-Wl,-rpath,{tmp_path}", "-o", "classify"]
    run_tool([*c_compiler(), str(source), *flags, *link], str(tmp_path))
    test = digits_test()
    for image, pixels in zip(test.floats()[:5], test.images[:5], strict=True):
        text = " ".join(map(str, pixels.ravel()))
        done = subprocess.run(
            [tmp_path / "classify"], input=text, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == program(image[None]).argmax()


@pytest.mark.parametrize(
    ("target", "threads", "limit"), [("host", 0, "1 to 64 threads"), ("esp32", 2, "one thread")]
)
def test_threads_that_there_cannot_be(target: str, threads: int, limit: str) -> None:
    """A microcontroller has one thread, a CPU at least that."""
    with pytest.raises(UsageError, match=f"{threads} threads for {target}, which takes {limit}"):
        bc.compile(*small(), target=target, threads=threads)
