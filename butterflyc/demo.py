"""The main job on real input: the digits model, from its checkpoint to a verified library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bench.timing import Timings, interleave, one_core
from .build import compile
from .check import check
from .compiler.files import make_folder
from .models.checkpoint import DIGITS, read_checkpoint
from .program import Program
from .source import open_model
from .verify import Verification

Progress = Callable[[str], None]
ROUNDS = 9


@dataclass(frozen=True)
class Demo:
    """What the demo made and found. ``times_as_fast``: one image, one core, against PyTorch."""

    artefact: Path
    program: Program
    verification: Verification
    milliseconds: float
    times_as_fast: float
    spread: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "artefact": str(self.artefact),
            "target": self.program.target,
            "mode": self.program.mode,
            "census": self.program.census,
            "memory": self.program.memory,
            "milliseconds": self.milliseconds,
            "times_as_fast": self.times_as_fast,
            "spread": self.spread,
            "verification": self.verification.as_dict(),
        }


def demo(
    folder: Path,
    checkpoint: Path = DIGITS,
    *,
    mode: str = "f32",
    progress: Progress = lambda _: None,
) -> Demo:
    """Compile a checkpoint that holds test images, verify on all of them, time it beside PyTorch.

    Writes ``folder/host.bfly``. Raises what ``compile`` and ``check`` raise.
    """
    make_folder(folder)
    test = read_checkpoint(checkpoint).images["test"]
    samples, labels = test.floats(), test.labels
    module = open_model(str(checkpoint)).module
    program = compile(str(checkpoint), mode=mode, name="digits", progress=progress)
    artefact = program.save(folder / "host.bfly")
    verification = check(program, str(checkpoint), [samples], labels, progress=progress)
    times = _times(module, program, samples[:1], progress)
    ratio, spread = times.ratio("eager", "ours")
    return Demo(artefact, program, verification, 1e3 * times.median("ours"), ratio, spread)


def _times(module: Any, program: Program, image: Any, progress: Progress) -> Timings:
    """The compiled model and eager PyTorch in turns, on one image, each with its own kind."""
    import torch

    tensor = torch.from_numpy(image)
    with torch.inference_mode(), one_core():
        contenders = {"ours": lambda: program.run(image), "eager": lambda: module(tensor)}
        return interleave(contenders, ROUNDS, progress)


def train_afresh(folder: Path) -> Path:
    """The digits model, trained with the recipe of the shipped one; goes on where it was stopped.

    Needs scikit-learn, which brings the images. Returns the checkpoint.
    """
    from .models.data import digits
    from .models.image_task import ImageTask
    from .models.recipes import digits_recipe
    from .models.train import train

    begun = (folder / "digits.state").exists()
    task = ImageTask(digits_recipe(), digits(), with_images=True)
    path = train(task, folder, name="digits", resume=begun)
    assert path is not None, "training without a time limit ends with a checkpoint"
    return path
