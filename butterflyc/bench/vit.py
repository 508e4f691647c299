"""Suite ``vit``: a whole ViT, compiled, against PyTorch's ways to run the same and rival models.

The papers' configuration: d = 256, F = 1024, 7 layers, 8 experts, top-2, 65 tokens, one image. The
weights are random but trained-like: angles from N(0, 0.5^2), so that rotations are no identity.
Every contender is warm, runs on one thread, takes the same image, and takes turns with the others.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

from ..build import compile
from ..models.blocks import DenseConfig, MlpConfig
from ..models.butterfly import ButterflyConfig
from ..models.standard import Dispatch, StandardConfig, StandardMoE
from ..models.vit import ViT, ViTConfig
from .timing import Row, Timings, interleave, one_core

ANGLE_STD = 0.5
# How many times as fast as the baseline each mode has to be.
WANTED = {
    ("a8", "Algorithm 2 as printed"): 5.0,
    ("a8", "loop-free eager"): 3.0,
    ("a8", "loop-free compiled"): 2.0,
    ("a8", "fastest StandardMoE"): 3.5,
    ("a8", "dense eager"): 1.2,
    ("a8", "dense compiled"): 1.2,
    ("f32", "loop-free eager"): 1.5,
    ("f32", "fastest StandardMoE"): 2.0,
}
DISPATCHES: tuple[Dispatch, ...] = ("loop", "sorted", "grouped")


def baselines(progress: Callable[[str], None]) -> dict[str, Callable[[], Any]]:
    """Every way to run the models in PyTorch, by name."""
    import torch

    def model(mlp: MlpConfig, masked_loop: bool = False) -> ViT:
        torch.manual_seed(0)
        return ViT(ViTConfig(mlp=mlp), masked_loop=masked_loop).eval()

    butterfly = ButterflyConfig(angle_std=ANGLE_STD)
    eager: dict[str, Any] = {
        "Algorithm 2 as printed": model(butterfly, masked_loop=True),
        "loop-free eager": model(butterfly),
        # The same function written by someone who knows that W_down commutes with the sum.
        "loop-free sum-first eager": model(replace(butterfly, down_first_sum=True)),
        "dense eager": model(DenseConfig()),
    }
    for dispatch in DISPATCHES:
        eager[f"StandardMoE {dispatch} eager"] = model(StandardConfig(dispatch=dispatch))
    runs = dict(eager)
    for name in [n for n in eager if n.endswith("eager")]:
        progress(f"torch.compile of {name.removesuffix(' eager')}")
        runs[name.replace("eager", "compiled")] = _compiled(eager[name])
    image = example()

    def call(run: Any) -> Callable[[], Any]:
        def once() -> Any:
            with torch.no_grad():
                return run(image)

        return once

    return {name: call(run) for name, run in runs.items()}


def _compiled(model: ViT) -> Any:
    """``model`` under torch.compile, as fast as inductor gets for inference.

    Freezing inlines the weights as constants. torch.compile knows grouped_mm in bfloat16 only, so
    around it, and only there, the graph breaks.
    """
    import torch

    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, StandardMoE) and module.config.dispatch == "grouped":
            module._grouped = torch.compiler.disable(module._grouped)  # type: ignore[method-assign, no-untyped-call]
    return torch.compile(model, options={"freezing": True})


def example() -> Any:
    """One image [1, 3, 32, 32]."""
    import torch

    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def suite(progress: Callable[[str], None] = lambda _: None, rounds: int = 15) -> list[Row]:
    """One row for each mode of ours and each baseline."""
    import torch

    contenders = baselines(progress)
    torch.manual_seed(0)
    source = ViT(ViTConfig(mlp=ButterflyConfig(angle_std=ANGLE_STD))).eval()
    image = example()
    modes = ("f32", "a8")
    for mode in modes:
        program = compile(source, (image,), mode=mode, name="vit", progress=progress)
        contenders[mode] = partial(program, image)
    with one_core():
        times = interleave(contenders, rounds, progress)
    return [row for mode in modes for row in _rows(mode, times)]


def _rows(mode: str, times: Timings) -> list[Row]:
    names = [name for name in times.seconds if name not in ("f32", "a8")]
    standard = [name for name in names if name.startswith("StandardMoE")]
    fastest = min(standard, key=times.median)
    rows = []
    for name in [*names, "fastest StandardMoE"]:
        against = fastest if name == "fastest StandardMoE" else name
        ratio, spread = times.ratio(against, mode)
        rows.append(
            Row(
                "vit",
                mode,
                "d=256 F=1024 7 layers 8 experts top-2 65 tokens",
                "times as fast",
                times.median(mode) * 1e3,
                f"{name} ({against})" if name != against else name,
                ratio,
                spread,
                target_ratio=WANTED.get((mode, name)),
            )
        )
    return rows
