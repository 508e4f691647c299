"""The trainings that we report: which model, how long, and how fast it learns."""

from __future__ import annotations

from dataclasses import replace

from ..compiler.errors import unknown_name
from .blocks import DenseConfig, MlpConfig
from .butterfly import ButterflyConfig, linear_form
from .image_task import ImageTraining
from .language import LanguageConfig
from .standard import StandardConfig
from .text_task import TextTraining
from .vit import ViTConfig

TEXT_WIDTH = 256
KINDS: dict[str, MlpConfig] = {
    "butterfly": ButterflyConfig(),
    "standard": StandardConfig(),
    "dense": DenseConfig(),
}
# What is compared at equal steps, with three seeds each; other kinds of text are ablations.
COMPARED = tuple(KINDS)


DIGITS_KINDS = (
    "butterfly",
    "ternary-down",
    "standard",
    "dense",
    "no-smoothness",
    "papers-start",
)


def digits_recipe(kind: str = "butterfly") -> ImageTraining:
    """ViTs of 4 layers on digits at equal steps, by kind.

    ``butterfly`` made the shipped model: angles spread wide and experts heard, so both matter.
    ``standard`` and ``dense`` have the same widths, ``ternary-down`` a ternary W_down too, and
    ``no-smoothness`` is trained without the spatial term; ``papers-start`` begins as the papers'
    models, with angles of N(0, 0.01^2) and matrices as ``nn.Linear`` has them. Raises UnknownName
    for another kind.
    """
    if kind not in DIGITS_KINDS:
        raise unknown_name("kind of model of digits", kind, DIGITS_KINDS)
    layer = ButterflyConfig(
        d_model=64,
        d_ff=256,
        experts=8,
        top_k=2,
        gate="topk_softmax",
        angle_std=1.0,
        matrix_gain=2.0,
    )
    kinds: dict[str, MlpConfig] = {
        "ternary-down": replace(layer, down="ternary"),
        "papers-start": replace(layer, angle_std=0.01, matrix_gain=1.0),
        "standard": StandardConfig(d_model=64, d_ff=256, gate=layer.gate),
        "dense": DenseConfig(d_model=64, d_ff=256),
    }
    model = ViTConfig(
        image=8,
        channels=1,
        patch=1,
        classes=10,
        d_model=64,
        heads=4,
        layers=4,
        position_std=1.0,
        mlp=kinds.get(kind, layer),
    )
    return ImageTraining(
        model,
        epochs=60,
        batch=16,
        learning_rate=1.5e-3,
        angle_learning_rate=1e-2,
        smoothness_weight=0.0 if kind == "no-smoothness" else 0.005,
    )


def cifar100_recipe(mlp: MlpConfig, epochs: int = 200) -> ImageTraining:
    """The papers' models on CIFAR-100: their widths, depths and loss weights."""
    model = ViTConfig(mlp=mlp)
    return ImageTraining(model, epochs=epochs, batch=128, learning_rate=1e-3, shift=4)


TEXT_KINDS = (
    "butterfly",
    "standard",
    "dense",
    "reference",
    "linear",
    "static",
    "frozen",
    "shallow",
    "deepest",
    "ternary-down",
)


def text_recipe(kind: str = "butterfly") -> TextTraining:
    """Language models of 2 layers, by kind. Three are compared at equal steps and see 3.07 MB.

    ``butterfly``: GELU form, L = 2 on both sides, 1.13 M parameters active a byte. ``standard``
    and ``dense`` have the same widths.

    The rest see a third of that: ``reference``, which is ``butterfly`` but for this, and what
    differs from it in one choice. ``linear`` is equation 3, without activation and W_down: 0.73 M.
    ``static``: all angles zero, never trained, so that the experts are one. ``frozen``: rotations
    stay as they are drawn. ``shallow`` and ``deepest``: L = 1, and log2 of each width.
    ``ternary-down``: W_down is ternary too. Raises UnknownName for another kind.
    """
    if kind not in TEXT_KINDS:
        raise unknown_name("kind of language model", kind, TEXT_KINDS)
    layer = _text_layer()
    kinds: dict[str, MlpConfig] = {
        "standard": StandardConfig(d_model=TEXT_WIDTH, d_ff=layer.d_ff, gate=layer.gate),
        "dense": DenseConfig(d_model=TEXT_WIDTH, d_ff=layer.d_ff),
        "linear": linear_form(TEXT_WIDTH, TEXT_WIDTH, gate=layer.gate, angle_std=layer.angle_std),
        "static": replace(layer, angle_std=0.0),
        "shallow": replace(layer, layers_in=1, layers_out=1),
        "deepest": replace(layer, layers_in=8, layers_out=9),
        "ternary-down": replace(layer, down="ternary"),
    }
    model = LanguageConfig(
        context=256, d_model=TEXT_WIDTH, heads=4, layers=2, mlp=kinds.get(kind, layer)
    )
    return TextTraining(
        model,
        epochs=30 if kind in COMPARED else 10,
        batch=4,
        learning_rate=1.5e-3,
        angle_learning_rate=0.0 if kind in ("static", "frozen") else 1e-2,
        balance_weight=0.01,
        epoch_steps=100,
    )


def run_name(data: str, kind: str, seed: int) -> str:
    """What the files of a run are called: its data, its kind, and any seed but 0."""
    named = [] if (data, kind) == ("digits", "butterfly") else [kind]
    return "-".join([data, *named, *([f"seed{seed}"] if seed else [])])


def _text_layer() -> ButterflyConfig:
    return ButterflyConfig(
        d_model=TEXT_WIDTH,
        d_ff=512,
        gate="topk_softmax",
        down_first_sum=True,
        angle_std=0.5,
    )
