"""Products on 16-bit floats, for tensor cores; everything else stays float32.

    %y = linear(%x, %w, %b) : f32[T, N]
    ->
    %x.f16 = cast(%x) {dtype = "f16"}                      %w, %b held as f16
    %y.f16 = linear(%x.f16, %w, %b) : f16[T, N]
    %y = cast(%y.f16) {dtype = "f32"}

    %y = butterfly_layer(%x, %pairs, %w, .., %pairs_out, %w_down) {dtype = "f32"}
    ->
    %y = butterfly_layer(%x, %pairs, %w, .., %pairs_out, %w_down) {dtype = "f16"}

A layer holds w_down in the dtype, and its pairs as f16, which has more digits. Other ops for
experts are left alone. A product that reads the result of another, or a move of it, reads it
without the two casts between: they would keep its value.

Some products stay float32: those that something is ranked by with no other product on the way,
which are routers, for a choice has no budget of errors; and those with a weight that is larger than
16 bits hold. A router still reads rows that products before it have rounded, so a choice that is
nearly a tie may fall the other way.

Lossy. A product is off by at most 2e-3 in f16, and 1.6e-2 in bf16, of the sum of the magnitudes of
what it adds: operands and the result are each rounded by 2**-11, or 2**-8, and sums are float32.
That of f16 holds for numbers of 6e-5 to 65504. What is smaller is off by 3e-8 itself, and rows or
results that are larger become infinite: take bf16 for a model that has such. In attention it holds
for the scores; a score that is off by e changes its weight by a factor of exp(e).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..compiler.errors import UsageError
from ..compiler.ir import Graph, Node, Type, make, remake
from ..compiler.ir.ops import OPS
from ..compiler.ir.ops.elementwise import cast
from .base import Rule, Walk, is_constant, walk_once
from .fuse_layers import LAYERS
from .quantize_codes import RANKED

HALVED = frozenset({"linear", "matmul", "attention", "qkv_attention", "conv2d"})
# Products too, in a precision of their own: what something is ranked by is not sought behind them.
_OTHERS = frozenset({"ternary_matmul", "ternary_dot", "butterfly_experts"}) | LAYERS
# Ops that move elements, and how many of their operands hold them: the first, or all.
_MOVES: dict[str, int | None] = {"concat": None, "gather": 1, "shuffle": 1, "take": 1}
_MOVES |= dict.fromkeys(("broadcast", "reshape", "slice", "transpose"), 1)
# The largest number of each dtype.
LARGEST = {"f16": 65504.0, "bf16": float(2**128 - 2**120)}


def ranked_by(graph: Graph) -> frozenset[str]:
    """The products whose results are ranked, as they are or computed with: routers."""
    found: set[str] = set()
    seen: set[Node] = set()
    stack = [operand for node in graph.nodes if node.op in RANKED for operand in node.operands]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op in HALVED | _OTHERS:
            found.add(node.name)
        else:
            stack += node.operands
    return frozenset(found)


def fits(constants: Iterable[Node], walk: Walk, dtype: str) -> bool:
    """Whether every constant is held plainly, and ``dtype`` holds its numbers."""
    return all(
        is_constant(x) and np.abs(walk.value(x)).max(initial=0) <= LARGEST[dtype] for x in constants
    )


class Halves:
    """Nodes in ``dtype``, each made once."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._made: dict[Node, Node] = {}

    def of(self, node: Node, walk: Walk) -> Node:
        """``node`` rounded to the dtype."""
        if node not in self._made:
            self._made[node] = self._half(node, walk)
        return self._made[node]

    def _half(self, node: Node, walk: Walk) -> Node:
        if node.type.dtype == self.dtype:
            return node
        if is_constant(node):
            type = Type(self.dtype, node.type.shape)
            return walk.constant(cast(walk.value(node), self.dtype), node.name, type)
        if node.op == "cast" and self._is_half(node):
            return node.operands[0]
        name = f"{node.name}.{self.dtype}"
        if self._is_half(node):
            count = _MOVES[node.op]
            moved = [self.of(x, walk) for x in node.operands[:count]]
            rest = node.operands[len(moved) :]
            return replace(remake(node, *moved, *rest), name=name)
        return make("cast", node, dtype=self.dtype, name=name, source=node.source)

    def _is_half(self, node: Node) -> bool:
        """Whether ``node`` holds numbers of the dtype only: rounding it would change nothing."""
        if node.op == "cast":
            return node.operands[0].type.dtype == self.dtype and node.type.dtype == "f32"
        if node.op not in _MOVES:
            return False
        return all(map(self._is_half, node.operands[: _MOVES[node.op]]))


def halving(dtype: str, kept: frozenset[str]) -> Rule:
    """The rule for all products but those that are called as one ``kept``."""
    halves = Halves(dtype)

    def halve(node: Node, walk: Walk) -> Node | None:
        if node.op not in HALVED or node.name in kept or node.type.dtype != "f32":
            return None
        constants = [operand for operand in node.operands if operand.op == "constant"]
        if not all(x.type.is_float for x in node.operands) or not fits(constants, walk, dtype):
            return None
        product = remake(node, *(halves.of(x, walk) for x in node.operands))
        product = replace(product, name=f"{node.name}.{dtype}")
        return make("cast", product, dtype="f32", name=node.name, source=node.source)

    return halve


def halving_layers(dtype: str) -> Rule:
    """The rule for whole layers, whose rows and results stay as they are."""
    halves, pairs = Halves(dtype), Halves("f16")

    def halve(node: Node, walk: Walk) -> Node | None:
        if node.op not in LAYERS or node["dtype"] != "f32" or node.type.dtype != "f32":
            return None
        named = dict(
            zip(OPS[node.op].operands.replace("?", "").split(), node.operands, strict=False)
        )
        turned = {name: named[name] for name in ("pairs_in", "pairs_out")}
        down = {"w_down": named["w_down"]} if "w_down" in named else {}
        if not (fits(turned.values(), walk, "f16") and fits(down.values(), walk, dtype)):
            return None
        named |= {name: pairs.of(x, walk) for name, x in turned.items()}
        named |= {name: halves.of(x, walk) for name, x in down.items()}
        halved = replace(node, operands=tuple(named.values()))
        return replace(halved, attributes={**node.attributes, "dtype": dtype})

    return halve


@dataclass(frozen=True)
class HalfProducts:
    """``dtype``: f16, or bf16, which has the range of float32 and fewer digits."""

    dtype: str = "f16"

    name = "half_products"
    exact = False

    def __post_init__(self) -> None:
        if self.dtype not in LARGEST:
            known = " or ".join(LARGEST)
            raise UsageError(f"products of {self.dtype}", help=f"half_products takes {known}")

    def __call__(self, graph: Graph) -> Graph:
        rules = halving(self.dtype, ranked_by(graph)), halving_layers(self.dtype)
        halved = walk_once(graph, *rules)
        return graph if halved is None else halved
