"""What kernels are counted for: each op of integer mode, in sizes drawn at random but always alike.

Neither models nor tests have a hand in the sizes, so that what is predicted for them was not
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from butterflyc.compiler.run.kernel import spec_for
from butterflyc.kernels.integer_numbers import turn_table
from butterflyc.kernels.record import Spec, Tensor

SEED = 0
# Of each op. A kernel's work has about ten classes.
SPECS = 40
# More products would take long to count, and tell nothing new.
MOST = 1 << 19

Draw = np.random.Generator
SHIFTS = ("drop", 3), ("shift", 17)


def size(draw: Draw, low: int, high: int, multiple: int = 1) -> int:
    """Small ones as often as large ones."""
    drawn = np.exp(draw.uniform(np.log(low), np.log(high + 1)))
    return max(int(drawn) // multiple, -(-low // multiple)) * multiple


def code(draw: Draw) -> str:
    return str(draw.choice(["i8", "i16"]))


def flag(draw: Draw) -> bool:
    return bool(draw.integers(2))


def spec(op: str, operands: list[Tensor], *results: Tensor, **attributes: Any) -> Spec:
    return spec_for(op, operands, results, **attributes)


def scalar_or(draw: Draw, dtype: str, count: int) -> Tensor:
    return Tensor(dtype, (count,) if flag(draw) else ())


def rows_of(draw: Draw) -> int:
    """Mostly those of a tile, which are two and at last one; or all of a model's tokens."""
    return int(draw.choice([1, 2, 2, 3, 4, size(draw, 5, 70)]))


def linear(op: str) -> Callable[[Draw], Spec]:
    def made(draw: Draw) -> Spec:
        rows, outputs = rows_of(draw), size(draw, 2, 300)
        depth = size(draw, 8, 1100, int(draw.choice([1, 4, 8])))
        planes = int(draw.integers(1, 6))
        operands = [Tensor("i8", (rows, depth)), Tensor("i8", (outputs, depth))]
        operands.append(Tensor("i32", (outputs,)))
        if op == "integer_linear":
            operands = operands[: 2 + flag(draw)]
            return spec(op, operands, Tensor("i32", (rows, outputs)), planes=planes)
        operands.append(scalar_or(draw, "i16", outputs))
        dtype = code(draw)
        if dtype == "i16" and flag(draw):
            operands.append(Tensor("i16", (rows, outputs)))
        result = Tensor(dtype, (rows, outputs))
        return spec(op, operands, result, dtype=dtype, drop=3, shift=17, planes=planes)

    return made


def ternary(op: str) -> Callable[[Draw], Spec]:
    def made(draw: Draw) -> Spec:
        rows, outputs, depth = size(draw, 1, 9), size(draw, 6, 800), size(draw, 8, 256, 4)
        operands = [Tensor("i8", (rows, depth)), Tensor("ternary", (outputs, depth))]
        if op == "ternary_dot":
            return spec(op, operands, Tensor("i32", (rows, outputs)))
        operands.append(scalar_or(draw, "i16", outputs))
        operands += [Tensor("i8", (256,))] * flag(draw)
        return spec(op, operands, Tensor("i8", (rows, outputs)), drop=3, shift=17)

    return made


def rotate(draw: Draw) -> Spec:
    tokens, chosen, experts = size(draw, 1, 9), size(draw, 1, 4), size(draw, 2, 16)
    block = int(draw.choice([2, 4, 4, 8]))
    groups = size(draw, 2, 96)
    x = Tensor("i8", (tokens, chosen if flag(draw) else 1, groups * block))
    blocks = Tensor("i16", (experts, groups, block, block))
    where = Tensor("i64", (tokens, chosen))
    result = Tensor("i8", (tokens, chosen, groups * block))
    return spec("integer_rotate", [x, blocks, where], result, shift=15)


def turn(draw: Draw) -> Spec:
    tokens, chosen, experts = size(draw, 1, 9), size(draw, 1, 4), size(draw, 2, 16)
    groups, turns, dtype = size(draw, 2, 96), 2 + 2 * int(flag(draw)), code(draw)
    operands = [
        Tensor("i8", (tokens, chosen if flag(draw) else 1, groups * 4)),
        Tensor(dtype, (experts, groups, turns)),
        Tensor("i64", (tokens, chosen)),
        Tensor("i16", (len(turn_table(dtype)), 2)),
    ]
    result = Tensor("i8", (tokens, chosen, groups * 4))
    order = (0, 1, 2, 3, 0, 2, 1, 3)
    return spec("integer_turn", operands, result, order=order, multiplier=16384, shift=21)


def combine(op: str) -> Callable[[Draw], Spec]:
    def made(draw: Draw) -> Spec:
        tokens, chosen, channels = size(draw, 1, 9), size(draw, 1, 4), size(draw, 8, 300)
        operands = [Tensor("i8", (tokens, chosen, channels)), Tensor("i16", (tokens, chosen))]
        if op == "integer_combine":
            return spec(op, operands, Tensor("i32", (tokens, channels)))
        operands.append(scalar_or(draw, "i16", channels))
        dtype = code(draw)
        result = Tensor(dtype, (tokens, channels))
        return spec(op, operands, result, dtype=dtype, drop=3, shift=17)

    return made


def softmax(draw: Draw) -> Spec:
    x = Tensor("i16", (size(draw, 1, 20), size(draw, 2, 80)))
    table = Tensor("i16", (256,))
    return spec("integer_softmax", [x, table], x, multiplier=9426, cap=65534, shift=19)


def attention(draw: Draw) -> Spec:
    heads, queries, keys = size(draw, 1, 3), size(draw, 1, 4), size(draw, 4, 150)
    inner, width, causal = size(draw, 4, 64, 4), size(draw, 4, 64, 4), draw.uniform() < 0.2
    queries = keys if causal else queries
    operands = [
        Tensor("i8", (1, heads, queries, inner)),
        Tensor("i8", (1, heads, keys, inner)),
        Tensor("i8", (1, heads, keys, width)),
        Tensor("i16", (256,)),
    ]
    result = Tensor("i8", (1, heads, queries, width))
    numbers = {"multiplier": 3652, "cap": 258064, "shift": 18}
    return spec("integer_attention", operands, result, causal=bool(causal), **numbers)


def layer_norm(draw: Draw) -> Spec:
    rows, width = size(draw, 1, 40), size(draw, 8, 400)
    operands = [Tensor(d, s) for d, s in (("i16", (rows, width)), ("i16", (width,)))]
    operands.append(Tensor("i32", (width,)))
    numbers = {"eps": 30775, "eps_shift": -3, "shift": 22}
    return spec("integer_layer_norm", operands, Tensor("i8", (rows, width)), **numbers)


def shape_of(draw: Draw) -> tuple[int, ...]:
    return size(draw, 1, 20), size(draw, 1, 5), size(draw, 4, 200)


def elements(op: str) -> Callable[[Draw], Spec]:
    """Two operands, of which one may be spread over the other."""

    def made(draw: Draw) -> Spec:
        shape = shape_of(draw)
        if op == "requantize":
            x, dtype = Tensor(str(draw.choice(["i8", "i16", "i32"])), shape), code(draw)
            factor = scalar_or(draw, "i16", shape[-1])
            return spec(op, [x, factor], Tensor(dtype, shape), dtype=dtype, drop=3, shift=17)
        spread = (*shape[:2], 1) if op != "saturating_add" else shape[-1:]
        operands = [Tensor("i16", shape), Tensor("i16", shape if flag(draw) else spread)]
        attributes = {"shift": 15} if op == "integer_divide" else {}
        result = Tensor("i32" if op == "integer_mul" else "i16", shape)
        return spec(op, operands, result, **attributes)

    return made


def table(op: str, dtype: str, entries: int) -> Callable[[Draw], Spec]:
    def made(draw: Draw) -> Spec:
        x = Tensor(dtype, shape_of(draw))
        return spec(op, [x, Tensor(dtype, (entries,))], x)

    return made


def top_k(draw: Draw) -> Spec:
    rows, experts = size(draw, 1, 20), size(draw, 4, 40)
    k = int(draw.integers(1, 5))
    values, places = Tensor("i16", (rows, k)), Tensor("i64", (rows, k))
    return spec("top_k", [Tensor("i16", (rows, experts))], values, places, k=k)


def cut(draw: Draw) -> Spec:
    a, b, c = shape_of(draw)
    x = Tensor(code(draw), (a, b, c))
    axis = int(draw.integers(3))
    start = int(draw.integers(x.shape[axis]))
    stop = int(draw.integers(start, x.shape[axis])) + 1
    shape = tuple(stop - start if i == axis else n for i, n in enumerate(x.shape))
    return spec("slice", [x], Tensor(x.dtype, shape), axis=axis, start=start, stop=stop, step=1)


def transpose(draw: Draw) -> Spec:
    x = Tensor(code(draw), (size(draw, 1, 8), size(draw, 1, 8), size(draw, 1, 8), size(draw, 2, 8)))
    order = tuple(int(i) for i in draw.permutation(4))
    return spec("transpose", [x], Tensor(x.dtype, tuple(x.shape[i] for i in order)), order=order)


def concat(draw: Draw) -> Spec:
    a, b, c = shape_of(draw)
    dtype, several = code(draw), int(draw.integers(2, 5))
    result = Tensor(dtype, (a, b * several, c))
    return spec("concat", [Tensor(dtype, (a, b, c))] * several, result, axis=1)


def take(draw: Draw) -> Spec:
    entries, picked, width = size(draw, 2, 60), size(draw, 1, 20), size(draw, 4, 200)
    x = Tensor(code(draw), (entries, width))
    result = Tensor(x.dtype, (picked, width))
    return spec("take", [x, Tensor("i64", (picked,))], result, axis=0)


def shuffle(draw: Draw) -> Spec:
    x = Tensor(code(draw), shape_of(draw))
    return spec("shuffle", [x, Tensor("i32", x.shape[-1:])], x)


def widen(draw: Draw) -> Spec:
    x = Tensor(code(draw), shape_of(draw))
    return spec("cast", [x], Tensor("i32", x.shape), dtype="i32")


def equal(draw: Draw) -> Spec:
    x = Tensor("i64", (size(draw, 2, 90),))
    return spec("equal", [x, Tensor("i64", ())], Tensor("bool", x.shape))


def where(draw: Draw) -> Spec:
    rows, width = size(draw, 2, 90), size(draw, 4, 100)
    x = Tensor(code(draw), (rows, width))
    return spec("where", [Tensor("bool", (rows, 1)), x, x], x)


def total(draw: Draw) -> Spec:
    shape, axis, keep = shape_of(draw), int(draw.integers(1, 3)), flag(draw)
    kept = [1 if i == axis else n for i, n in enumerate(shape) if keep or i != axis]
    result = Tensor("i32", tuple(kept))
    return spec("sum", [Tensor("i32", shape)], result, axes=(axis,), keep=keep)


OPS: dict[str, Callable[[Draw], Spec]] = {
    "integer_linear": linear("integer_linear"),
    "quantized_linear": linear("quantized_linear"),
    "ternary_dot": ternary("ternary_dot"),
    "quantized_ternary": ternary("quantized_ternary"),
    "integer_rotate": rotate,
    "integer_turn": turn,
    "integer_combine": combine("integer_combine"),
    "quantized_combine": combine("quantized_combine"),
    "integer_softmax": softmax,
    "integer_attention": attention,
    "integer_layer_norm": layer_norm,
    "requantize": elements("requantize"),
    "saturating_add": elements("saturating_add"),
    "integer_mul": elements("integer_mul"),
    "integer_divide": elements("integer_divide"),
    "lookup": table("lookup", "i8", 256),
    "interpolate": table("interpolate", "i16", 257),
    "top_k": top_k,
    "slice": cut,
    "transpose": transpose,
    "concat": concat,
    "take": take,
    "shuffle": shuffle,
    "cast": widen,
    "equal": equal,
    "where": where,
    "sum": total,
}


def elements_of(asked: Spec) -> int:
    """About how many elements a kernel loads."""
    product = asked.op.endswith(("linear", "ternary", "dot", "attention"))
    return int(np.prod(asked.results[0].shape)) * (asked.operands[1].shape[-1] if product else 1)


def specs_of(op: str) -> Iterator[Spec]:
    """What kernels of ``op`` are counted for."""
    draw = np.random.default_rng([SEED, *op.encode()])
    found = 0
    while found < SPECS:
        asked = OPS[op](draw)
        if elements_of(asked) <= MOST:
            found += 1
            yield asked
