"""Integer forms of what acts on each element, and of sums."""

from __future__ import annotations

import numpy as np

from ..compiler.ir import Node, make
from ..compiler.ir.ops.elementwise import ACTIVATIONS
from ..kernels.integer_numbers import LIMITS
from .quantize_codes import Quantizer, scaled


def activation(q: Quantizer, node: Node) -> Node:
    codes = q.codes(node.operands[0])
    scale = q.scale(node, "i8")
    reals = np.arange(-128, 128) * q.scale_of(codes)
    table = q.encoded(ACTIVATIONS[node.op](reals), "i8", scale, f"{node.name}.table")
    made = make("lookup", codes, table, name=node.name, source=node.source)
    return q.settled(node, scaled(made, scale))


def add(q: Quantizer, node: Node) -> Node:
    scale = q.scale(node, "i16")
    operands = [q.codes(operand, "i16", scale) for operand in node.operands]
    return scaled(make("saturating_add", *operands, name=node.name, source=node.source), scale)


def mul(q: Quantizer, node: Node) -> Node:
    a, b = (q.codes(operand, "i16") for operand in node.operands)
    product = make("integer_mul", a, b, name=f"{node.name}.product", source=node.source)
    return q.finished(node, product, q.scale_of(a) * q.scale_of(b), LIMITS["i16"] ** 2)


def total(q: Quantizer, node: Node) -> Node:
    """Sums and means along axes."""
    (x,) = node.operands
    codes = q.own(x)
    count = x.type.size // max(1, node.type.size)
    wide = make("cast", codes, name=f"{node.name}.wide", source=node.source, dtype="i32")
    sums = make(
        "sum", wide, name=f"{node.name}.sums", source=node.source,
        axes=node["axes"], keep=node["keep"],
    )  # fmt: skip
    unit = q.scale_of(codes) / (count if node.op == "mean" else 1)
    bound = LIMITS[codes.type.dtype] * count
    return q.finished(node, sums, unit, bound)
