"""Integer forms of what acts on each element, and of sums."""

from __future__ import annotations

import math

import numpy as np

from ..compiler.ir import Node, make
from ..compiler.ir.ops.elementwise import ACTIVATIONS
from ..kernels.integer_numbers import KNOTS, LIMITS
from .calibration import threshold
from .quantize_codes import CURVES, Quantizer, scaled


def activation(q: Quantizer, node: Node) -> Node:
    if node.op in CURVES and q.dtype(node.operands[0]) == "i16":
        return curve(q, node)
    codes = q.codes(node.operands[0])
    scale = q.scale(node, "i8")
    reals = np.arange(-128, 128) * q.scale_of(codes)
    table = q.encoded(ACTIVATIONS[node.op](reals), "i8", scale, f"{node.name}.table")
    made = make("lookup", codes, table, name=node.name, source=node.source)
    return q.settled(node, scaled(made, scale))


def curve(q: Quantizer, node: Node) -> Node:
    """A curve within -1..1 of 16-bit codes, which are cut where it is flat."""
    (x,) = node.operands
    found = q.own(x)
    own = q.scale_of(found) if found.type.dtype == "i16" else q.scale(x, "i16")
    scale = min(own, CURVES[node.op] / LIMITS["i16"])
    knots = (np.arange(KNOTS) * 256 - 2.0**15) * scale
    unit = 1 / LIMITS["i16"]
    table = q.encoded(ACTIVATIONS[node.op](knots), "i16", unit, f"{node.name}.table")
    codes = q.codes(x, "i16", scale)
    return scaled(make("interpolate", codes, table, name=node.name, source=node.source), unit)


def add(q: Quantizer, node: Node) -> Node:
    scale = q.scale(node, "i16")
    operands = [q.codes(operand, "i16", scale) for operand in node.operands]
    return scaled(make("saturating_add", *operands, name=node.name, source=node.source), scale)


def sub(q: Quantizer, node: Node) -> Node:
    """The sum with what is taken away turned: codes have no lowest number that would not turn."""
    scale = q.scale(node, "i16")
    a, b = (q.codes(operand, "i16", scale) for operand in node.operands)
    turned = make("neg", b, name=f"{node.name}.turned", source=node.source)
    return scaled(
        make("saturating_add", a, scaled(turned, scale), name=node.name, source=node.source), scale
    )


def mul(q: Quantizer, node: Node) -> Node:
    return product(q, node, *(q.codes(operand, "i16") for operand in node.operands))


def product(q: Quantizer, node: Node, a: Node, b: Node) -> Node:
    made = make("integer_mul", a, b, name=f"{node.name}.product", source=node.source)
    return q.finished(node, made, q.scale_of(a) * q.scale_of(b), LIMITS["i16"] ** 2)


def div(q: Quantizer, node: Node) -> Node:
    """A quotient of codes, shifted as far as the largest that was seen allows; by a constant, the
    product with what it is one over.
    """
    x, by = node.operands
    a = q.codes(x, "i16")
    if by.op == "constant":
        inverse = 1 / q.value(by).astype(np.float64)
        unit = float(np.abs(inverse).max(initial=0)) / LIMITS["i16"] or 1.0
        return product(q, node, a, q.encoded(inverse, "i16", unit, f"{by.name}.inverse"))
    b = q.codes(by, "i16")
    one = q.scale_of(a) / q.scale_of(b)
    wanted = threshold([q.seen[node]] if node in q.seen else [], "i16") / LIMITS["i16"]
    shift = max(0, min(15, math.floor(math.log2(one / wanted))))
    made = make("integer_divide", a, b, name=node.name, source=node.source, shift=shift)
    return scaled(made, one / 2**shift)


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
