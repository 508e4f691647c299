"""The integer form of each op: its codes, its tables and the multipliers between scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node, Type, constant, make, remake, result
from ..compiler.ir.interpret import constant_value
from ..compiler.ir.ops.elementwise import ACTIVATIONS
from ..kernels.integer_numbers import LIMITS, OCTAVE, OCTAVES, UNIT_BITS
from .calibration import Seen, threshold

Array = np.ndarray
# Ops that only move elements: their result has the codes of their operand.
MOVES = frozenset({"reshape", "transpose", "slice", "broadcast", "shuffle"})
LARGEST = 32767  # of a multiplier
MOST_SHIFT = 30


class Quantizer:
    """The integer graph as far as it is made: ``done`` has the codes of each float value."""

    def __init__(self, graph: Graph, seen: Mapping[Node, Seen]) -> None:
        self.graph = graph
        self.seen = seen
        self.store: dict[str, Array] = dict(graph.constants)
        self.done: dict[Node, Node] = {}
        self._leaders: dict[Node, Node] = {}
        self._scales: dict[tuple[Node, str], float] = {}
        self._wide: set[Node] = set()
        self._group()

    # --- which values share a scale, and which have 16 bits ---

    def _group(self) -> None:
        """Joins what is added or concatenated, through ops that only move it."""
        wide: list[Node] = list(self.graph.outputs)
        for node in self.graph.nodes:
            if len(node.types) > 1 or not node.type.is_float:
                wide += node.operands if node.op == "top_k" else ()
                continue
            joined = node.operands if node.op in ("add", "concat") else ()
            moved = node.operands[:1] if node.op in MOVES or node.op == "result" else ()
            for operand in (*joined, *moved):
                self._join(node, operand)
            wide += [node] if node.op == "add" else node.operands if node.op == "softmax" else ()
        self._wide = {self._leader(node) for node in wide}

    def _leader(self, node: Node) -> Node:
        if node.op == "top_k":
            node = node.operands[0]  # its values are some of these
        while node in self._leaders:
            node = self._leaders[node]
        return node

    def _join(self, a: Node, b: Node) -> None:
        a, b = self._leader(a), self._leader(b)
        if a is not b:
            self._leaders[a] = b

    def dtype(self, node: Node) -> str:
        return "i16" if self._leader(node) in self._wide else "i8"

    def scale(self, node: Node, dtype: str) -> float:
        """What a code of ``node`` stands for, in codes of ``dtype``."""
        leader = self._leader(node)
        key = (leader if dtype == "i16" else node, dtype)
        if key not in self._scales:
            seen = [self.seen[node]] if dtype == "i8" else self._seen_in(leader)
            self._scales[key] = threshold(seen, dtype) / LIMITS[dtype]
        return self._scales[key]

    def _seen_in(self, leader: Node) -> list[Seen]:
        return [seen for node, seen in self.seen.items() if self._leader(node) is leader]

    # --- codes ---

    def value(self, node: Node) -> Array:
        return constant_value(self.graph.constants, node)

    def codes(self, node: Node, dtype: str = "i8", scale: float | None = None) -> Node:
        """The codes of a float value in ``dtype``, at ``scale`` if one is wanted."""
        if node.op == "constant":
            value = self.value(node)
            own = float(np.abs(value).max(initial=0)) / LIMITS[dtype] or 1.0
            return self.encoded(value, dtype, own if scale is None else scale, node.name)
        found = self.done[node]
        if found.type.dtype == dtype and scale in (None, found.type.scale):
            return found
        wanted = self.scale(node, dtype) if scale is None else scale
        return self.requantized(node, found, self.scale_of(found), dtype, wanted)

    def scale_of(self, codes: Node) -> float:
        assert codes.type.scale is not None, f"'{codes.name}' has no scale"
        return codes.type.scale

    def encoded(self, value: Array, dtype: str, scale: float, name: str) -> Node:
        limit = LIMITS[dtype]
        array = np.clip(np.rint(value / scale), -limit, limit)
        stored = Type(dtype, tuple(value.shape))
        codes = constant(self.store, array.astype(stored.storage), name, stored)
        return scaled(codes, scale)

    def constant(self, value: Any, dtype: str, name: str) -> Node:
        array = np.asarray(value)
        type = Type(dtype, array.shape)
        return constant(self.store, array.astype(type.storage), name, type)

    def finished(self, node: Node, sums: Node, unit: Any, bound: float) -> Node:
        """``sums`` in units of ``unit`` as the codes that ``node`` has."""
        dtype = self.dtype(node)
        return self.requantized(node, sums, unit, dtype, self.scale(node, dtype), bound)

    def settled(self, node: Node, codes: Node) -> Node:
        """``codes`` as they are, or wider where ``node`` is added to others."""
        dtype = self.dtype(node)
        if dtype == codes.type.dtype:
            return codes
        scale = self.scale(node, dtype)
        return self.requantized(node, codes, self.scale_of(codes), dtype, scale)

    def requantized(
        self, node: Node, x: Node, unit: Any, dtype: str, scale: float, bound: float = 0
    ) -> Node:
        """``x``, whose codes stand for ``unit`` each, in codes of ``scale``.

        ``bound``: what no code of x is beyond, where x has 32 bits.
        """
        bound = bound or LIMITS[x.type.dtype]
        factor = np.asarray(unit, np.float64) / scale
        drop = max(0, int(bound).bit_length() - 15)
        shift = shift_for(float(np.abs(factor).max()) * 2.0**drop)
        multiplier = np.rint(factor * 2.0 ** (drop + shift))
        held = self.constant(multiplier, "i16", f"{node.name}.multiplier")
        made = make(
            "requantize", x, held, name=node.name, source=node.source,
            drop=drop, shift=shift, dtype=dtype,
        )  # fmt: skip
        return scaled(made, scale)


def scaled(node: Node, scale: float) -> Node:
    return replace(node, types=(replace(node.type, scale=float(scale)),))


def shift_for(largest: float, most: float = LARGEST) -> int:
    """The largest shift by which ``largest`` * 2**shift is within ``most``; of 0, any shift."""
    if largest <= 0:
        return MOST_SHIFT
    return max(0, min(MOST_SHIFT, math.floor(math.log2(most / largest))))


def decay_of(unit: float) -> dict[str, Any]:
    """Multiplier, cap and shift of `exp2`, for codes that stand for ``unit`` each."""
    steps = unit * math.log2(math.e) * OCTAVE
    cap = math.ceil(OCTAVE * OCTAVES / steps)
    # The product with the cap fits 31 bits, and the multiplier 15.
    shift = max(0, min(shift_for(steps), 30 - (OCTAVE * OCTAVES).bit_length()))
    return {"multiplier": max(1, round(steps * 2**shift)), "cap": cap, "shift": shift}


# --- the ops ---


def linear(q: Quantizer, node: Node) -> Node:
    x, w, *bias = node.operands
    codes = q.codes(x)
    weights = q.value(w).astype(np.float64)
    by_row = np.abs(weights).max(1)
    by_row = np.where(by_row > 0, by_row, 1) / LIMITS["i8"]
    rows = np.rint(weights / by_row[:, None])
    unit = q.scale_of(codes) * by_row
    added = np.rint(q.value(bias[0]) / unit) if bias else np.zeros(len(rows))
    added = np.clip(added, -(2**30), 2**30)
    operands = [codes, q.constant(rows, "i8", w.name)]
    operands += [q.constant(added, "i32", bias[0].name)] if bias else []
    sums = make("integer_linear", *operands, name=f"{node.name}.sums", source=node.source)
    bound = (LIMITS["i8"] * np.abs(rows).sum(1) + np.abs(added)).max()
    return q.finished(node, sums, unit, bound)


def ternary_matmul(q: Quantizer, node: Node) -> Node:
    x, w, scale = node.operands
    codes = q.codes(x)
    sums = make("ternary_dot", codes, w, name=f"{node.name}.sums", source=node.source)
    bound = LIMITS["i8"] * max(1, int(np.abs(q.value(w)).sum(1).max()))
    return q.finished(node, sums, q.scale_of(codes) * q.value(scale), bound)


def activation(q: Quantizer, node: Node) -> Node:
    codes = q.codes(node.operands[0])
    scale = q.scale(node, "i8")
    reals = np.arange(-128, 128) * q.scale_of(codes)
    table = q.encoded(ACTIVATIONS[node.op](reals), "i8", scale, f"{node.name}.table")
    made = make("lookup", codes, table, name=node.name, source=node.source)
    return q.settled(node, scaled(made, scale))


def rotate(q: Quantizer, node: Node) -> Node:
    x, blocks, experts = node.operands
    codes, scale = q.codes(x), q.scale(node, "i8")
    turns = q.value(blocks).astype(np.float64) * (q.scale_of(codes) / scale)
    shift = shift_for(float(np.abs(turns).max()))
    held = q.constant(np.rint(turns * 2.0**shift), "i16", blocks.name)
    operands = codes, held, q.done[experts]
    made = make("integer_rotate", *operands, name=node.name, source=node.source, shift=shift)
    return q.settled(node, scaled(made, scale))


def combine(q: Quantizer, node: Node) -> Node:
    values, gates = q.codes(node.operands[0]), q.codes(node.operands[1], "i16")
    sums = make("integer_combine", values, gates, name=f"{node.name}.sums", source=node.source)
    bound = LIMITS["i8"] * LIMITS["i16"] * gates.type.shape[-1]
    return q.finished(node, sums, q.scale_of(values) * q.scale_of(gates), bound)


def layer_norm(q: Quantizer, node: Node) -> Node:
    x, weight, bias = node.operands
    width = x.type.shape[-1]
    scale = q.scale(node, "i8")
    gain = q.value(weight).astype(np.float64) * math.sqrt(width) / scale / 2**UNIT_BITS
    added = q.value(bias).astype(np.float64) / scale
    shift = min(shift_for(float(np.abs(gain).max())), shift_for(float(np.abs(added).max()), 2**29))
    operands = (
        q.done[x],
        q.constant(np.rint(gain * 2.0**shift), "i16", weight.name),
        q.constant(np.rint(added * 2.0**shift), "i32", bias.name),
    )
    made = make("integer_layer_norm", *operands, name=node.name, source=node.source, shift=shift)
    return q.settled(node, scaled(made, scale))


def softmax(q: Quantizer, node: Node) -> Node:
    (x,) = node.operands
    codes = q.done[x]
    decay = decay_of(q.scale_of(codes))
    made = make("integer_softmax", codes, name=node.name, source=node.source, **decay)
    return scaled(made, 2.0**-UNIT_BITS)


def attention(q: Quantizer, node: Node) -> Node:
    queries, keys, values = (q.codes(operand) for operand in node.operands)
    unit = q.scale_of(queries) * q.scale_of(keys) * node["scale"]
    made = make(
        "integer_attention", queries, keys, values, name=node.name, source=node.source,
        causal=node["causal"], **decay_of(unit),
    )  # fmt: skip
    return q.settled(node, scaled(made, q.scale_of(values)))


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
    codes = q.done[x]
    count = x.type.size // max(1, node.type.size)
    wide = make("cast", codes, name=f"{node.name}.wide", source=node.source, dtype="i32")
    sums = make(
        "sum", wide, name=f"{node.name}.sums", source=node.source,
        axes=node["axes"], keep=node["keep"],
    )  # fmt: skip
    unit = q.scale_of(codes) / (count if node.op == "mean" else 1)
    bound = LIMITS[codes.type.dtype] * count
    return q.finished(node, sums, unit, bound)


def concat(q: Quantizer, node: Node) -> Node:
    dtype = q.dtype(node)
    scale = q.scale(node, dtype)
    parts = [q.codes(operand, dtype, scale) for operand in node.operands]
    made = make("concat", *parts, name=node.name, source=node.source, axis=node["axis"])
    return scaled(made, scale)


def moved(q: Quantizer, node: Node) -> Node:
    x, *rest = node.operands
    codes = q.done.get(x, x)
    attributes: dict[str, Any] = dict(node.attributes)
    made = make(node.op, codes, *rest, name=node.name, source=node.source, **attributes)
    return made if codes.type.scale is None else scaled(made, codes.type.scale)


def top_k(q: Quantizer, node: Node) -> Node:
    codes = q.done[node.operands[0]]
    made = make("top_k", codes, name=node.name, source=node.source, k=node["k"])
    values, numbers = made.types
    return replace(made, types=(replace(values, scale=codes.type.scale), numbers))


def some(q: Quantizer, node: Node) -> Node:
    return result(q.done[node.operands[0]], int(node["index"]), node.name)


RULES: dict[str, Callable[[Quantizer, Node], Node]] = {
    **dict.fromkeys(MOVES, moved),
    **dict.fromkeys((name for name in ACTIVATIONS if name != "none"), activation),
    "add": add,
    "attention": attention,
    "combine": combine,
    "concat": concat,
    "layer_norm": layer_norm,
    "linear": linear,
    "mean": total,
    "mul": mul,
    "result": some,
    "rotate": rotate,
    "softmax": softmax,
    "sum": total,
    "ternary_matmul": ternary_matmul,
    "top_k": top_k,
}
# Operands that must be constants, from the second on; and how many numbers a row may have.
CONSTANTS = frozenset({"layer_norm", "linear", "rotate", "ternary_matmul"})
LONGEST = {"attention": 1024, "layer_norm": 4096, "softmax": 1024, "sum": 1 << 16, "mean": 1 << 16}


def as_it_is(q: Quantizer, node: Node) -> Node:
    """An op on integers alone, which are what they were."""
    return remake(node, *(q.done.get(operand, operand) for operand in node.operands))


def why_not(node: Node) -> str:
    """What of ``node`` has no integer form; "" where it has one."""
    if node.op not in RULES:
        return node.op
    x, *others = node.operands
    fixed = others[:1] if node.op == "rotate" else others
    if node.op in CONSTANTS and not all(other.op == "constant" for other in fixed):
        return f"{node.op} by what is computed"
    if node.op in ("layer_norm", "softmax", "top_k") and x.op == "constant":
        return f"{node.op} of a constant"
    if node.op == "softmax" and node["axis"] % x.type.rank != x.type.rank - 1:
        return "softmax along another axis than the last"
    if node.op == "rotate" and node["lanes"] != 1:
        return "rotate in spread order"
    if node.op in LONGEST and _row_of(node) > LONGEST[node.op]:
        return f"{node.op} of {_row_of(node)} numbers, of {LONGEST[node.op]} at most"
    return ""


def _row_of(node: Node) -> int:
    """How many numbers each result of ``node`` is computed from."""
    x = node.operands[0].type
    if node.op == "attention":
        return node.operands[1].type.shape[2]
    if node.op in ("sum", "mean"):
        return x.size // max(1, node.type.size)
    return x.shape[-1] if x.rank else 1
