"""``qkv_attention`` of some of its heads: what one of several threads computes.

A spec is that of all heads, with ``part_heads`` and ``first_head``, which is a number that each
call gives. Channels of other heads are not touched.
"""

from __future__ import annotations

from typing import Any

from . import attention
from .attention import Head, Index, sizes_of
from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .tir import T, function, span


def supports(spec: Spec, lanes: Lanes) -> bool:
    given = dict(spec.attributes)
    return (
        spec.op == "qkv_attention"
        and {"part_heads", "first_head"} <= given.keys()
        and attention.supports(spec, lanes)
    )


def cost(spec: Spec, lanes: Lanes) -> float:
    share = spec.attribute("part_heads") / spec.attribute("heads")
    return attention.cost(spec, lanes) * share


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    return attention.scratch(spec, lanes)


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    n = sizes_of(spec)
    types = {"qkv": spec.operands[0], "y": spec.results[0]}
    spare = scratch(spec, lanes)
    types |= dict(zip(("keys", "scores", "inverses", "values"), spare, strict=False))
    with function(name, types, spec.open) as f:
        qkv, y, *buffers = f.buffers
        with T.serial(n.batch) as b, T.serial(spec.attribute("part_heads")) as h:

            def part(number: int) -> Index:
                first = (number * n.heads + f.number(spec, "first_head") + h) * n.depth
                return lambda row, channel, count: (b, row, span(first + channel, count))

            head = Head(qkv, qkv, qkv, y, part(0), part(1), part(2), part(0))
            attention.attend(spec, lanes, head, *buffers)
    return f.result


KERNEL = Kernel(
    "attention_heads",
    ("qkv_attention",),
    supports,
    build,
    cost,
    scratch,
    numbers=("first_head",),
)
