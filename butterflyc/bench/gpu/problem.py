"""What is computed at a point: one Butterfly layer, and the standard mixture of the same sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ...compiler.ir.ops import OPS
from ...compiler.ir.ops.elementwise import cast
from ...compiler.run.kernel import spec_for
from ...kernels.gpu.library import torch_dtype
from ...kernels.record import Spec, Tensor
from ...models.rotation import padded_width
from ...models.routing import GateRule, choose

Array = np.ndarray[Any, np.dtype[Any]]
Routing = Literal["uniform", "zipf", "one expert"]
CHOSEN = 2
# What the gates are of the logits, on both sides.
RULE: GateRule = "topk_softmax"
# Chance of the expert of rank r, relative to the first: r ** -ZIPF.
ZIPF = 1.0


@dataclass(frozen=True)
class Shape:
    """d, F, E and T of the papers."""

    channels: int
    outputs: int
    experts: int
    tokens: int

    def __str__(self) -> str:
        return f"d={self.channels} F={self.outputs} E={self.experts} T={self.tokens}"

    @property
    def rows(self) -> int:
        return self.tokens * CHOSEN

    def with_tokens(self, tokens: int) -> Shape:
        return replace(self, tokens=tokens)


@dataclass(frozen=True)
class Draw:
    """Where the tokens of a call go: logits [T, E], gates and experts [T, k]."""

    logits: torch.Tensor
    gates: torch.Tensor
    experts: torch.Tensor


def draw(shape: Shape, routing: Routing, device: str, seed: int) -> Draw:
    """Logits that choose experts evenly, by Zipf's law, or the last one first for every token."""
    generator = torch.Generator(device).manual_seed(seed)
    noise = torch.rand(shape.tokens, shape.experts, generator=generator, device=device)
    logits = -torch.log(-torch.log(noise.clamp(1e-7, 1 - 1e-7)))
    if routing == "zipf":
        rank = torch.arange(1, shape.experts + 1, device=device)
        # The largest of log p + Gumbel noise is a draw with chances p, without replacement.
        logits = logits - ZIPF * rank.log()
    elif routing == "one expert":
        logits[:, -1] += 1e3
    return Draw(logits, *gated(logits))


def gated(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates in float32, and the experts that they are of."""
    gates, experts = choose(logits, CHOSEN, RULE)
    return gates.float(), experts


def trailing(width: int) -> Array:
    """Which channel each output of two rotation layers, in groups of four, becomes: i64[padded].

    A layer deinterleaves behind its rotations, so after two of them members 0 to 3 of group g are
    where both deinterleaves have put them.
    """
    padded = padded_width(width)
    place = np.arange(padded)
    group, member = place // 4, place % 4
    once = member % 2 * (padded // 2) + 2 * group + member // 2
    return once // 2 + once % 2 * (padded // 2)


def pairs(angles: Array, width: int) -> Array:
    """Angles [E, 2, padded / 2] as pairs (cos, sin) [E, width / 4, 4, 2]."""
    group = np.arange(width // 4)
    half = padded_width(width) // 4
    four = (
        angles[:, 0, 2 * group],
        angles[:, 0, 2 * group + 1],
        angles[:, 1, group],
        angles[:, 1, half + group],
    )
    angle = np.stack(four, -1)
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def columns(matrix: Array) -> Array:
    """``matrix`` for rotated channels in groups of four; zero for those that are stripped."""
    width = matrix.shape[1]
    target = trailing(width)[:width]
    kept = np.where(target < width, target, 0)
    return np.where(target < width, matrix[:, kept], 0)


@dataclass(frozen=True)
class Weights:
    """One Butterfly layer: what a model holds, as NumPy, float32 but for ``up``, which is int8."""

    theta: Array
    phi: Array
    up: Array
    scale: float
    down: Array

    def operands(self, dtype: str) -> dict[str, Array]:
        """The constants of the op `butterfly_layer`, by name, rounded to what is stored."""
        halves = "f32" if dtype == "f32" else "f16"
        up, down = columns(self.up), columns(self.down)
        return {
            "pairs_in": rounded(pairs(self.theta, self.up.shape[1]), halves),
            "w": up,
            "scale": np.asarray(self.scale, np.float32),
            "bias": np.zeros(up.shape[0], np.float32),
            "pairs_out": rounded(pairs(self.phi, self.up.shape[0]), halves),
            "w_down": rounded(down, dtype),
        }


def weights(channels: int, outputs: int, experts: int, seed: int = 0) -> Weights:
    """Random ones, with angles far from none and results of about one."""
    rng = np.random.default_rng(seed)

    def angles(width: int) -> Array:
        return rng.standard_normal((experts, 2, padded_width(width) // 2), np.float32)

    return Weights(
        angles(channels),
        angles(outputs),
        rng.integers(-1, 2, (outputs, channels), np.int8),
        1.2 / channels**0.5,
        rng.standard_normal((channels, outputs), np.float32) / outputs**0.5,
    )


def rounded(array: Array, dtype: str) -> Array:
    """The nearest numbers of ``dtype``, in float32."""
    return np.asarray(cast(array.astype(np.float32), dtype), np.float32)


def spec(shape: Shape, dtype: str, codes: bool = False) -> Spec:
    """What a kernel is asked for; ``codes``: with 8-bit activations in the first product."""
    halves = "f32" if dtype == "f32" else "f16"
    d, f, e, t = shape.channels, shape.outputs, shape.experts, shape.tokens
    operands = (
        Tensor(dtype, (t, d)),
        Tensor(halves, (e, d // 4, 4, 2)),
        Tensor("ternary", (f, d)),
        Tensor("f32", ()),
        Tensor("f32", (f,)),
        Tensor("f32", (t, CHOSEN)),
        Tensor("i64", (t, CHOSEN)),
        Tensor(halves, (e, f // 4, 4, 2)),
        Tensor(dtype, (d, f)),
    )
    return spec_for(
        "butterfly_layer",
        operands,
        [Tensor(dtype, (t, d))],
        **OPS["butterfly_layer"].complete(
            {
                "dtype": dtype,
                "activation": "gelu",
                "activation_bits": 8 * codes,
                "biased": False,
            }
        ),
    )


def meaning(asked: Spec, arrays: dict[str, Array]) -> Array:
    """What the op means, by NumPy."""
    values = [arrays[name] for name in OPS[asked.op].names]
    return np.asarray(OPS[asked.op].meaning(*values, **dict(asked.attributes)), np.float64)


def tokens_of(shape: Shape, dtype: str, device: str, seed: int = 1) -> torch.Tensor:
    """x [T, d], normal."""
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(shape.tokens, shape.channels, generator=generator, device=device)
    return x.to(torch_dtype(dtype))


def difference(result: Any, wanted: Any) -> float:
    """The norm of the difference, relative to that of what is wanted; of arrays or tensors."""
    if isinstance(result, torch.Tensor):
        size = wanted.float().norm()
        return float(((result.float() - wanted.float()).norm() / size).item())
    wanted = wanted.astype(np.float64)
    return float(np.linalg.norm(result - wanted) / np.linalg.norm(wanted))
