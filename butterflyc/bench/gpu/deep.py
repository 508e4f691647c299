"""Layers of the same sizes whose rotations have more than two layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...compiler.ir.ops import OPS
from ...kernels.record import Spec, Tensor
from .problem import Array, Shape, rounded, weights

OP = "butterfly_deep_layer"
# Layers of the rotations in front of W_hat, and behind it: any would do, kernels are told.
LAYERS = (3, 5)


def deepened(asked: Spec) -> Spec:
    """The spec of `butterfly_layer` with rotations of ``LAYERS``."""
    x, pairs, *between, _, w_down = asked.operands
    outputs, channels = between[0].shape
    partners = [
        Tensor("i32", (count, width))
        for count, width in zip(LAYERS, (channels, outputs), strict=True)
    ]
    turned = [Tensor(pairs.dtype, (pairs.shape[0], *table.shape, 2)) for table in partners]
    given = {name: value for name, value in asked.attributes if name in OPS[OP].attributes}
    attributes = OPS[OP].complete({**given, "kept": outputs})
    operands = (x, turned[0], *between, turned[1], *partners, w_down)
    return replace(asked, op=OP, operands=operands, attributes=tuple(sorted(attributes.items())))


def operands_of(shape: Shape, dtype: str, seed: int = 0) -> dict[str, Array]:
    """The constants of the op, by name, rounded to what is stored; partners are any."""
    rng = np.random.default_rng(seed)
    found = weights(shape.channels, shape.outputs, shape.experts, seed).operands(dtype)
    widths = (shape.channels, shape.outputs)
    for side, count, width in zip(("in", "out"), LAYERS, widths, strict=True):
        angles = rng.standard_normal((shape.experts, count, width // 2))
        pairs = np.empty((shape.experts, count, width, 2))
        partners = np.empty((count, width), np.int32)
        for layer in range(count):
            one, other = rng.permutation(width).reshape(2, -1)
            partners[layer, one], partners[layer, other] = other, one
            cosine, sine = np.cos(angles[:, layer]), np.sin(angles[:, layer])
            pairs[:, layer, one] = np.stack([cosine, -sine], -1)
            pairs[:, layer, other] = np.stack([cosine, sine], -1)
        found[f"pairs_{side}"] = rounded(pairs, "f32" if dtype == "f32" else "f16")
        found[f"partners_{side}"] = partners
    return found
