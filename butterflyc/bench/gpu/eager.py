"""The Butterfly layer in PyTorch, and the standard mixture of the same sizes: what we are against.

Every way gets what speeds it up: ternary weights and cosines are made once, experts are added in
front of W_down where that is shared, and nothing has a bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...kernels.gpu.library import torch_dtype
from ...models.butterfly import ButterflyConfig, ButterflyMoE
from ...models.rotation import Rotation
from .contender import Contender, calls_for, copies_for
from .device import Device
from .problem import CHOSEN, Draw, Shape, Weights, tokens_of

Tensor = torch.Tensor


@dataclass(frozen=True)
class Frozen:
    """Constants of a Butterfly layer: cosines and sines [E, L n / 2] of both sides, matrices."""

    cos_in: Tensor
    sin_in: Tensor
    cos_out: Tensor
    sin_out: Tensor
    up: Tensor
    down: Tensor

    @property
    def matrices(self) -> int:
        return self.up.nbytes + self.down.nbytes

    @property
    def tables(self) -> int:
        return 2 * (self.cos_in.nbytes + self.cos_out.nbytes)

    def clone(self) -> Frozen:
        return Frozen(*(held.clone() for held in vars(self).values()))


def frozen(weights: Weights, experts: int, dtype: str, device: str) -> Frozen:
    """``weights`` of the first ``experts``, on a device."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device).to(torch_dtype(dtype))

    theta, phi = (
        torch.from_numpy(angles[:experts]).to(device).flatten(1)
        for angles in (weights.theta, weights.phi)
    )
    up = torch.from_numpy(weights.up).to(device) * weights.scale
    down = moved(torch.from_numpy(weights.down))
    cosines, sines = (theta.cos(), phi.cos()), (theta.sin(), phi.sin())
    (cos_in, cos_out), (sin_in, sin_out) = map(moved, cosines), map(moved, sines)
    return Frozen(cos_in, sin_in, cos_out, sin_out, moved(up), down)


def mixture(layer: Frozen, x: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
    """A Butterfly layer by someone who knows that W_down commutes with the sum."""
    outputs, channels = layer.up.shape

    def turned(rows: Tensor, width: int, cos: Tensor, sin: Tensor) -> Tensor:
        layers = (2, cos.shape[1] // 2)
        taken = (torch.unflatten(F.embedding(experts, table), -1, layers) for table in (cos, sin))
        return Rotation(width).apply(rows, *taken)

    rows = turned(x.unsqueeze(1), channels, layer.cos_in, layer.sin_in)  # [T, k, d]
    rows = F.gelu(F.linear(rows, layer.up))  # [T, k, F]
    rows = turned(rows, outputs, layer.cos_out, layer.sin_out)
    hidden = (rows * gates.to(rows.dtype).unsqueeze(-1)).sum(dim=1)  # [T, F]
    return F.linear(hidden, layer.down)


def as_modelled(weights: Weights, shape: Shape, dtype: str, device: str) -> ButterflyMoE:
    """The module of models/ as a user has it, with these weights."""
    config = ButterflyConfig(shape.channels, shape.outputs, shape.experts, CHOSEN)
    with torch.device("meta"):
        module = ButterflyMoE(config)
    values = {
        "theta": torch.from_numpy(weights.theta[: shape.experts]),
        "phi": torch.from_numpy(weights.phi[: shape.experts]),
        # Its scale is the mean magnitude, which two of three ternary weights have.
        "up": torch.from_numpy(weights.up) * (weights.scale / abs(weights.up).mean().item()),
        "down": torch.from_numpy(weights.down),
        "gate.weight": torch.zeros(shape.experts, shape.channels),
    }
    module.load_state_dict(values, assign=True)
    return module.to(device, torch_dtype(dtype)).eval()


def contender(
    name: str, weights: Weights, shape: Shape, dtype: str, device: Device, active: int,
    compiled: bool = False, captured: bool = True,
) -> Contender:  # fmt: skip
    """`mixture` of PyTorch's own kernels, or of those that torch.compile makes."""
    first = frozen(weights, shape.experts, dtype, device.place)
    touched = first.matrices + first.tables * min(active, shape.experts) // shape.experts
    count = copies_for(device, shape, touched, first.matrices + first.tables) if captured else 1
    layers = [first, *(first.clone() for _ in range(count - 1))]
    x = tokens_of(shape, dtype, device.place)
    function = device.optimised(mixture) if compiled else mixture

    def call(copy: int, draw: Draw) -> Tensor:
        return function(layers[copy], x, draw.gates, draw.experts)

    calls = calls_for(device, shape, count) if captured else 1
    return Contender(name, "butterfly", call, count, calls, captured)


def modelled(name: str, weights: Weights, shape: Shape, dtype: str, device: Device) -> Contender:
    """The module of models/, called as Python calls it."""
    module = as_modelled(weights, shape, dtype, device.place)
    x = tokens_of(shape, dtype, device.place)

    def call(copy: int, draw: Draw) -> Tensor:
        return module.mix(x, draw.gates.to(x.dtype), draw.experts)

    return Contender(name, "butterfly", call, 1, 1, captured=False)
