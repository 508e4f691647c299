"""The shipped digits model, compiled: every test image, both modes, and with wilder angles."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.check import check
from butterflyc.compiler.ir import parse_graph
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.lower.link import c_compiler
from butterflyc.compiler.lower.link import run as run_tool
from butterflyc.models.checkpoint import digits_calibration, digits_test, load_digits
from butterflyc.models.vit import ViT
from butterflyc.program import Program
from butterflyc.source import eager
from butterflyc.verify import Verification, relative_errors, verify_stages

pytestmark = pytest.mark.slow

WILD = ("wild 0", "wild 1", "wild 2")
KINDS = ("trained", WILD[0])


@cache
def model(kind: str) -> ViT:
    """The trained model; or "wild SEED", a copy with all angles drawn from N(0, 0.5^2)."""
    found = load_digits()
    if kind != "trained":
        torch.manual_seed(int(kind.removeprefix("wild ")))
        with torch.no_grad():
            for name, parameter in found.named_parameters():
                if name.endswith((".theta", ".phi")):
                    parameter.normal_(std=0.5)
    return found


@cache
def program(kind: str, mode: str, bits: int | None = None) -> Program:
    example = (torch.zeros(1, 1, 8, 8),)
    samples = digits_calibration().floats()
    return bc.compile(
        model(kind), example, mode=mode, calibration=samples, act_bits=bits, name="digits"
    )


@cache
def outcome(kind: str, mode: str, bits: int | None = None) -> Verification:
    test = digits_test()
    return check(program(kind, mode, bits), model(kind), [test.floats()], test.labels)


@cache
def outputs(kind: str, mode: str, bits: int | None = None) -> np.ndarray:
    return program(kind, mode, bits).run(digits_test().floats())[0]


@pytest.mark.parametrize("kind", KINDS)
def test_f32_is_pytorch_on_every_image(kind: str) -> None:
    """Every expert is found; each image is within 1e-5 of eager, near-ties with routing forced."""
    found = outcome(kind, "f32")
    census = program(kind, "f32").census
    assert census == {"layers": 4, "recognised": 4, "found": 32, "choosable": 32}
    assert found.samples == 360
    assert found.passed
    assert found.max_rel <= 1e-5
    assert len(found.near_ties) <= 3
    assert found.forced_max_rel is None or found.forced_max_rel <= 1e-5


@cache
def answers(kind: str) -> np.ndarray:
    """PyTorch's logits of all test images."""
    return eager(model(kind), (digits_test().floats(),))[0]


# A wild copy is right on two images of three and has many close calls, of which one more or less is
# 0.3 %: three copies are taken together.
@pytest.mark.parametrize("kinds", [("trained",), WILD], ids=["trained", "wild"])
@pytest.mark.parametrize(("bits", "same", "error"), [(8, 0.995, 0.05), (7, 0.99, 0.1)])
def test_a8_gives_the_same_answers(
    kinds: tuple[str, ...], bits: int, same: float, error: float
) -> None:
    """Accuracy is within half a point; on 99.5 % top-1 is the same, on 99 % logits within 5 %.

    Of rows of 7 bits, top-1 on 99 %, and twice the error.
    """
    got = np.concatenate([outputs(kind, "a8", bits) for kind in kinds])
    wanted = np.concatenate([answers(kind) for kind in kinds])
    labels = np.tile(digits_test().labels, len(kinds))
    tops, wanted_tops = got.argmax(1), wanted.argmax(1)
    assert (tops == wanted_tops).mean() >= same
    assert abs((tops == labels).mean() - (wanted_tops == labels).mean()) <= 0.005
    for kind in set(kinds) & set(KINDS):
        errors = relative_errors(outputs(kind, "a8", bits), outputs(kind, "f32"))
        assert np.quantile(errors, 0.99) <= error


def test_a8_of_seven_bits_is_what_the_interpreter_says() -> None:
    """The compiled model of 7 bits is within 2e-3 of the interpreter on every image."""
    assert outcome("trained", "a8", 7).max_rel <= 2e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a8_is_what_the_interpreter_says(kind: str) -> None:
    """The compiled a8 model is within 2e-3 of the interpreter on every image, 1e-5 on 90 %.

    Of a wild copy the latter is not asked: see below.
    """
    found = outcome(kind, "a8")
    assert found.max_rel <= 2e-3
    assert found.rel_p90 <= 1e-5 or kind != "trained"


def test_a8_is_as_near_to_exact_sums_as_the_interpreter_is() -> None:
    """Of a wild copy as many images are within 1e-5 of double precision as the interpreter's own.

    A sum in another order may round a code the other way, which moves an image by up to 1e-3. About
    a tenth of them have such a code, and which do differs from one machine's library to the next.
    """
    images, graph = digits_test().floats(), program(WILD[0], "a8").stages["fuse_experts"]

    def interpreted(precision: str | None) -> np.ndarray:
        return np.concatenate([interpret(graph, x[None], precision=precision)[0] for x in images])

    exact = interpreted("f64")
    ours, its = (
        (relative_errors(found, exact) <= 1e-5).mean()
        for found in (outputs(WILD[0], "a8"), interpreted(None))
    )
    assert ours >= its - 0.02


def test_the_model_has_learnt_its_task() -> None:
    """The compiled model's accuracy is PyTorch's, and at least 96 %."""
    found = outcome("trained", "f32")
    assert found.accuracy is not None
    assert found.accuracy == found.model_accuracy
    assert found.accuracy >= 0.96


@pytest.mark.parametrize("mode", ["f32", "a8"])
def test_every_stage_is_its_text_and_means_what_the_last_one_meant(mode: str) -> None:
    """Each stage parses back to itself, and interpreted agrees with the stage before."""
    compiled = program("trained", mode)
    for stage, graph in compiled.stages.items():
        assert parse_graph(str(graph)) == graph, stage
    samples = [(image[None],) for image in digits_test().floats()[:3]]
    for report in verify_stages(compiled.stages, samples, {"quantize_activations": 0.05}):
        assert report.passed, report


def test_a_batch_is_split() -> None:
    """Many images at once give what each gives alone, as torch tensors if torch came in."""
    images = torch.from_numpy(digits_test().floats()[:5])
    together = program("trained", "f32")(images)
    alone = torch.cat([program("trained", "f32")(image[None]) for image in images])
    assert torch.equal(together, alone)
    wanted = eager(model("trained"), (images.numpy(),))[0]
    assert relative_errors(together.numpy(), wanted).max() <= 1e-5


def test_the_c_example_classifies(tmp_path: Path) -> None:
    """examples/host_c builds without warnings and says what PyTorch says, with no Python in it."""
    for section, content in program("trained", "f32").artefact.sections.items():
        if section.startswith("kernels/"):
            (tmp_path / section.removeprefix("kernels/")).write_bytes(content)
    source = Path(__file__).parents[2] / "examples" / "host_c" / "main.c"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-I.", "-L.", "-ldigits"]
    link = [f"-Wl,-rpath,{tmp_path}", "-o", "classify"]
    run_tool([*c_compiler(), str(source), *flags, *link], str(tmp_path))
    test = digits_test()
    for image, logits in zip(test.images[:5], answers("trained")[:5], strict=True):
        pixels = " ".join(map(str, image.ravel()))
        done = subprocess.run(
            [tmp_path / "classify"], input=pixels, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == logits.argmax()
    short = subprocess.run([tmp_path / "classify"], input="1 2", capture_output=True, text=True)
    assert short.returncode == 2


def test_two_compilations_are_byte_identical() -> None:
    """Compiling again gives the same file."""
    again = bc.compile(
        model("trained"),
        (torch.zeros(1, 1, 8, 8),),
        calibration=digits_calibration().floats(),
        name="digits",
    )
    first = program("trained", "f32").artefact
    assert again.artefact.sections == first.sections
    assert again.artefact.manifest == first.manifest
