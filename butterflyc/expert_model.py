"""A ButterflyViT of random weights, captured once, to be lowered with any number of experts.

How many bytes a model takes is a matter of its sizes, so that none need be trained. No two of its
constants are alike, as in a trained one: of equal ones only one would be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from .build import Progress, lower
from .compiler.errors import Unsupported, UsageError
from .expert_sizes import LAST, Subject, images_of
from .passes.budget import SIZE, SPEED, Budgets
from .passes.select_kernels import Tuned, untuned
from .source import Source
from .targets.memories import sized
from .targets.placement import MEMORIES
from .targets.registry import Core, Memory

if TYPE_CHECKING:
    from .models.butterfly import ButterflyConfig
    from .models.vit import ViTConfig

NAME = "vit"
CAPTURED = 8  # experts, unless a token goes to more; as the papers have them


def subject_of(
    config: ViTConfig,
    core: Core,
    mode: str,
    budgets: Budgets,
    memory: Memory | None = None,
    tuned: Tuned = untuned,
    progress: Progress = lambda _: None,
) -> Subject:
    """A model of ``config``, whose number of experts does not matter, captured and lowered.

    Raises Unsupported where a layer is not recognised, or `lower` does.
    """
    source = replace(_source(config), budgets=budgets)
    built = lower(source, core, mode, NAME, progress=progress, tuned=tuned)
    whole = [layer for layer in built.layers if layer.recognised == "full"]
    if len(whole) < config.layers:
        raise Unsupported(f"{len(whole)} of {config.layers} layers were recognised in full")
    stages = built.stages
    captured, packed = stages["recognise"], stages[LAST]
    return Subject(core, mode, built.passes, budgets, tuned, captured, packed, memory)


def variants(
    subject: Subject, config: ViTConfig, progress: Progress = lambda _: None
) -> Iterator[tuple[str, Subject]]:
    """What may take less memory: the option of `plan` that asks for it, and the model by it."""
    budgets = subject.budgets
    if subject.mode == "int8":
        kinds = {None: ("i16", "i8"), "i16": ("i8",)}.get(budgets.angles, ())
        asked = [(f"--angles {kind}", replace(budgets, angles=kind)) for kind in kinds]
        if budgets.prefer == SPEED:
            asked.append(("--prefer size", replace(budgets, prefer=SIZE)))
        for option, other in asked:
            progress(f"trying {option}")
            yield option, subject.by(other)
    psram = next((m for m in subject.core.memories if m.name == "psram" and m.optional), None)
    if psram and subject.core.memory("psram") is None:
        size = f"{psram.nominal >> 20}M"
        with_psram = sized(subject.core, {"psram": size}, MEMORIES)
        yield f"--psram {size}", replace(subject, core=with_psram)
    mlp = butterfly_of(config)
    if mlp.down == "float":
        progress("trying --down ternary")
        ternary = replace(config, mlp=replace(mlp, down="ternary"))
        core, mode, memory, tuned = subject.core, subject.mode, subject.memory, subject.tuned
        yield "--down ternary", subject_of(ternary, core, mode, budgets, memory, tuned, progress)


def butterfly_of(config: ViTConfig) -> ButterflyConfig:
    """The layers with experts of ``config``. Raises UsageError if it has others."""
    from .models.butterfly import ButterflyConfig

    if not isinstance(config.mlp, ButterflyConfig):
        raise UsageError(
            f"a ViT whose MLP is a {type(config.mlp).__name__}",
            help="give one whose mlp is a ButterflyConfig: experts that share a matrix",
        )
    return config.mlp


def _source(config: ViTConfig) -> Source:
    import torch

    from .compiler.capture.arguments import Arguments
    from .models.vit import ViT

    mlp = butterfly_of(config)
    mlp = replace(mlp, angle_std=1.0, experts=max(CAPTURED, mlp.top_k))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViT(replace(config, mlp=mlp)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.min() == parameter.max():  # as norms and biases are at the start
                    parameter.add_(torch.randn_like(parameter) * 0.02)
    images = images_of((1, config.channels, config.image, config.image))
    return Source(model, Arguments.of((torch.from_numpy(images),)), images)
