"""The codes of an integer graph: which scale and how many bits, constants, and other scales."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node, Type, constant, make
from ..compiler.ir.interpret import constant_value
from ..kernels.integer_numbers import LIMITS, OCTAVE, OCTAVES
from .calibration import Seen, threshold

Array = np.ndarray
# Ops that only move elements, or turn their sign: their result has the codes of their operand.
MOVES = frozenset(
    {"reshape", "transpose", "slice", "broadcast", "shuffle", "take", "gather", "neg"}
)
SUMS = frozenset({"add", "sub"})  # of 16 bits
JOINED = SUMS | {"concat", "maximum", "minimum", "where"}  # whose operands have one scale
COMPARISONS = frozenset({"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"})
RANKED = frozenset({"top_k", "argmax"})
# Curves that have a form of 16 bits, and where they are flat.
CURVES = {"sigmoid": 12.0, "tanh": 6.0}
LARGEST = 32767  # of a multiplier
MOST_SHIFT = 30


class Quantizer:
    """The integer graph as far as it is made: ``done`` has the codes of each float value."""

    def __init__(
        self,
        graph: Graph,
        seen: Mapping[Node, Seen],
        weight_snr: float,
        budgets: Mapping[Node, float],
        angles: str | None = None,
    ) -> None:
        self.graph = graph
        self.seen = seen
        self._weight_snr = weight_snr
        self._budgets = budgets
        self.angles = angles
        self.store: dict[str, Array] = dict(graph.constants)
        self.done: dict[Node, Node] = {}
        self._leaders: dict[Node, Node] = {}
        self._scales: dict[tuple[Node, str], float] = {}
        self._converted: dict[tuple[Node, str, float], Node] = {}
        self._wide: set[Node] = set()
        self._group()

    # --- which values share a scale, and which have 16 bits ---

    def _group(self) -> None:
        """Joins what is added, chosen from or concatenated, through ops that only move it."""
        wide: list[Node] = list(self.graph.outputs)
        for node in self.graph.nodes:
            if node.op in RANKED or node.op in COMPARISONS:
                wide += [operand for operand in node.operands if _is_float(operand)]
            if node.op in COMPARISONS and _is_float(node.operands[0]):
                self._join(*node.operands)
            if not _is_float(node):
                continue
            alike = node.operands if node.op in JOINED else ()
            moved = node.operands[:1] if node.op in MOVES or node.op == "result" else ()
            for operand in (*alike, *moved):
                if operand.op == "top_k" or _is_float(operand):
                    self._join(node, operand)
            wide += [node] if node.op in SUMS else node.operands if node.op == "softmax" else ()
        self._wide = {self._leader(node) for node in wide}
        for node in reversed(self.graph.nodes):
            # A curve of 16 bits is of 16 bits.
            if node.op in CURVES and self._leader(node) in self._wide:
                self._wide.add(self._leader(node.operands[0]))

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
            own = [self.seen[node]] if node in self.seen else []  # none of what is empty
            seen = own if dtype == "i8" else self._seen_in(leader)
            self._scales[key] = threshold(seen, dtype) / LIMITS[dtype]
        return self._scales[key]

    def _seen_in(self, leader: Node) -> list[Seen]:
        return [seen for node, seen in self.seen.items() if self._leader(node) is leader]

    # --- codes ---

    def budget(self, node: Node) -> float:
        """The signal to noise, in dB, that the weights of ``node`` keep."""
        return self._budgets.get(node, self._weight_snr)

    def value(self, node: Node) -> Array:
        return constant_value(self.graph.constants, node)

    def codes(self, node: Node, dtype: str = "i8", scale: float | None = None) -> Node:
        """The codes of a float value in ``dtype``, at ``scale`` if one is wanted.

        Codes of another kind than the value has are converted once, under a name of their own.
        """
        if node.op == "constant":
            value = self.value(node)
            own = float(np.abs(value).max(initial=0)) / LIMITS[dtype] or 1.0
            return self.encoded(value, dtype, own if scale is None else scale, node.name)
        found = self.done[node]
        if found.type.dtype == dtype and scale in (None, found.type.scale):
            return found
        wanted = self.scale(node, dtype) if scale is None else scale
        key = found, dtype, wanted
        if key not in self._converted:
            named = replace(node, name=f"{node.name}.{dtype}")
            made = self.requantized(named, found, self.scale_of(found), dtype, wanted)
            self._converted[key] = made
        return self._converted[key]

    def own(self, node: Node) -> Node:
        """The codes that a value has; for a constant, those that its readers agree on."""
        if node.op != "constant":
            return self.done[node]
        dtype = self.dtype(node)
        return self.codes(node, dtype, self.scale(node, dtype))

    def scale_of(self, codes: Node) -> float:
        assert codes.type.scale is not None, f"'{codes.name}' has no scale"
        return codes.type.scale

    def encoded(self, value: Array, dtype: str, scale: float, name: str) -> Node:
        limit = LIMITS[dtype]
        array = np.clip(np.rint(value / scale), -limit, limit)
        stored = Type(dtype, tuple(value.shape))
        codes = constant(self.store, array.astype(stored.storage), name, stored)
        return scaled(codes, scale)

    def constant(self, value: Any, dtype: str, name: str, most: int = 0) -> Node:
        """Whole numbers as a constant; those beyond ``most``, or the largest code, become it."""
        array = np.asarray(value)
        assert np.isfinite(array).all(), f"'{name}' is not finite"
        limit = most or LIMITS[dtype]
        type = Type(dtype, array.shape)
        kept = np.clip(array, -limit, limit).astype(type.storage)
        return constant(self.store, kept, name, type)

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
        narrow = replace(codes, name=f"{node.name}.{codes.type.dtype}")
        return self.requantized(node, narrow, self.scale_of(codes), dtype, scale)

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


def _is_float(node: Node) -> bool:
    """Whether ``node`` is one float; a choice of several results is not."""
    return len(node.types) == 1 and node.type.is_float


def scaled(node: Node, scale: float) -> Node:
    return replace(node, types=(replace(node.type, scale=float(scale)),))


def shift_for(largest: float, most: float = LARGEST) -> int:
    """The largest shift by which ``largest`` * 2**shift is within ``most``; of 0, any shift."""
    if largest <= 0:
        return MOST_SHIFT
    return max(0, min(MOST_SHIFT, math.floor(math.log2(most / largest))))


def decay_of(unit: float, most: int) -> dict[str, Any]:
    """Multiplier, cap and shift of `exp2`, for codes that stand for ``unit`` each.

    ``most``: what no code is below its row's largest by more than.
    """
    # A code of more than all octaves gives 0, by however much it is more.
    steps = min(unit * math.log2(math.e) * OCTAVE, OCTAVE * (OCTAVES + 1))
    # Behind the last octave all is 0; codes so near each other that none comes there need no cap.
    cap = most if steps * most <= OCTAVE * OCTAVES else math.ceil(OCTAVE * OCTAVES / steps)
    # The product with the cap fits 31 bits, and the multiplier 15.
    shift = min(shift_for(steps), shift_for(cap * steps, 2**30))
    return {"multiplier": min(round(steps * 2**shift), LARGEST), "cap": cap, "shift": shift}
