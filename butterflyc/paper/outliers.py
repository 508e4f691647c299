"""Outlier suppression: what a rotation does to the activations that enter the ternary product."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..compiler.errors import BadInput, Unsupported
from ..models.butterfly import ButterflyMoE
from ..models.routing import choose
from ..models.ternary import ternary
from .rows import Row, Table

INT8_MAX = 127


@dataclass(frozen=True)
class Outliers:
    """Of rows [N, d] of activations: how long their tails are, and what int8 makes of them.

    ``kurtosis``: the fourth standardised moment of all values, 3 for a normal distribution.
    ``peak``: the largest magnitude of a row over its root mean square, the mean of all rows.
    ``per_token``, ``per_tensor``: relative error, the norm of (x - codes * scale) over that of x,
    where the scale is the largest magnitude of a row, or of all rows, over 127.
    """

    kurtosis: float
    peak: float
    per_token: float
    per_tensor: float


@dataclass(frozen=True)
class Rotated:
    """The same rows of one layer before and after B(theta_i) of their experts."""

    before: Outliers
    after: Outliers


def outliers_in(rows: Tensor) -> Outliers:
    """The figures of rows [N, d] of float activations; rows of zeros are left out.

    BadInput where all values are the same, since these have no kurtosis.
    """
    x = rows.detach().double()
    x = x[(x != 0).any(dim=1)]
    centred = x - x.mean()
    squares = (centred**2).mean()
    if not squares > 0:
        raise BadInput(
            "these activations are all the same: they have no outliers to measure",
            help="give a trained model, and images that differ",
        )
    peaks = x.abs().amax(dim=1)
    return Outliers(
        kurtosis=float((centred**4).mean() / squares**2),
        peak=float((peaks / (x**2).mean(dim=1).sqrt()).mean()),
        per_token=_int8_error(x, peaks.unsqueeze(1) / INT8_MAX),
        per_tensor=_int8_error(x, peaks.max() / INT8_MAX),
    )


@torch.no_grad()
def rotated_inputs(
    model: nn.Module, inputs: Tensor, progress: Callable[[str], None] = lambda _: None
) -> list[Rotated]:
    """Of each Butterfly layer what enters its ternary product, without and with the rotation.

    ``inputs``: what ``model`` takes, as images float32 [B, C, H, W]. Without: the layer norm's
    result that a token brings, once for each expert it chose. With: the same rows after these
    experts' B(theta_i). Unsupported for a model without Butterfly layers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, ButterflyMoE)]
    if not layers:
        raise Unsupported(
            "a model without Butterfly layers has no rotations to measure",
            help="give a checkpoint of a ButterflyViT",
        )
    entered: list[Tensor] = []

    def keep(_: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        entered.append(given[0].flatten(0, -2))  # [T, d]

    # The gate takes the same rows as the experts, and is called as a module.
    hooks = [layer.gate.register_forward_pre_hook(keep) for layer in layers]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for number, (layer, x) in enumerate(zip(layers, entered, strict=True)):
        progress(f"measure what enters layer {number} of {len(layers)}, {len(inputs)} inputs")
        found.append(_rotate(layer, x))
    return found


def _rotate(layer: ButterflyMoE, x: Tensor) -> Rotated:
    config = layer.config
    _, experts = choose(layer.gate(x), config.top_k, config.gate)  # [T, k]
    theta = layer.theta[experts]  # [T, k, L, d'/2]
    after = config.rotation_in.apply(x.unsqueeze(1), theta.cos(), theta.sin())  # [T, k, d]
    before = x.unsqueeze(1).expand_as(after)
    return Rotated(outliers_in(before.flatten(0, 1)), outliers_in(after.flatten(0, 1)))


def _int8_error(x: Tensor, scale: Tensor) -> float:
    codes = (x / scale).round().clamp(-INT8_MAX, INT8_MAX)
    return float((codes * scale - x).norm() / x.norm())


@torch.no_grad()
def ternary_error(model: nn.Module) -> float:
    """||W - W_hat||^2 / ||W||^2 of the up-projections W of all Butterfly layers."""
    lost = kept = 0.0
    for layer in model.modules():
        if isinstance(layer, ButterflyMoE):
            up_hat = ternary(layer.up, per_row=layer.config.gamma_per_row)
            lost += float(((layer.up - up_hat) ** 2).sum())
            kept += float((layer.up**2).sum())
    return lost / kept


def outlier_table(
    layers: list[Rotated], weights: Mapping[str, float], *, key: str = "outliers", model: str = ""
) -> Table:
    """Rows of what was measured: means over ``layers``, and ternary errors of ``weights``.

    ``weights``: the errors of ``ternary_error``, "before training" and "trained". ``key`` begins
    the rows' keys, and ``model`` stands in the title.
    """
    rows = []
    for metric, (what, unit, scale, why) in METRICS.items():
        for side, name in (("before", "without rotation"), ("after", "with rotation")):
            values = [asdict(each)[side][metric] * scale for each in layers]
            spread = f"{min(values):.2f} to {max(values):.2f} by layer"
            row, mean = f"{key}.{metric}.{side}", sum(values) / len(values)
            rows.append(
                Row(row, f"{what}, {name}", unit, None, None, None, f"{why} {spread}.", mean)
            )
    printed = {"before training": "51.3", "trained": "1.43"}
    for state, value in weights.items():
        row = f"{key}.ternary.{state.replace(' ', '-')}"
        what, paper = f"ternary error of W, {state}", printed.get(state)
        rows.append(Row(row, what, "%", paper, None, None, _WEIGHTS_WHY, 100 * value))
    note = (
        "Measured on the rows that enter the ternary product of each layer: the layer norm's "
        "result of a token, once for each expert that it chose, as it is (without) and after that "
        "expert's B(theta_i) (with). Means over the layers. The papers say that trained rotations "
        "suppress outliers; figures of activations that they print are not known to us. L layers "
        "mix 2^L channels, so an outlier keeps at least 2^(-L/2) of its size: half, where L = 2."
    )
    title = "Outliers before and after the rotation"
    return Table(key, f"{title}, {model}" if model else title, note, tuple(rows))


METRICS = {
    "kurtosis": ("kurtosis", "", 1.0, "3 is a normal distribution."),
    "peak": ("peak over root mean square of a row", "", 1.0, "What a scale a row has to span."),
    "per_token": ("int8 error, a scale a row", "%", 100.0, "Relative, of the activations."),
    "per_tensor": ("int8 error, one scale", "%", 100.0, "Relative, of the activations."),
}
_WEIGHTS_WHY = (
    "||W - W_hat||^2 / ||W||^2. The author's project page gives its figures as mean squared error "
    "of weights, in a model that is not published, and does not say relative to what."
)
