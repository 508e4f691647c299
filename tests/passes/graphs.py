"""Butterfly mixtures as capture leaves them: k chains of shuffles and rotations, one an expert."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Node, Type, constant, input_node, make, result
from butterflyc.passes.base import pruned

Array = np.ndarray
some = settings(max_examples=50)  # of mixtures: each has a dozen choices and takes a while


def padded(width: int) -> int:
    """The next power of two, at least 2."""
    return max(2, 1 << (width - 1).bit_length())


@dataclass(frozen=True)
class Rotation:
    """The shape of one B(theta), as models/rotation.py has it; `stride` pairs i with i + 2**l."""

    width: int
    layers: int = 2
    shuffle: str = "deinterleave"
    shuffle_first: bool = False
    transposed: bool = False

    def steps(self) -> list[tuple[str, Any]]:
        """Orders of channels and numbers of layers, first to last, padding and stripping too."""
        n = padded(self.width)
        steps: list[tuple[str, Any]] = []
        for layer in range(self.layers):
            before, after = self._orders(n, layer)
            steps += [("shuffle", before), ("rotate", layer), ("shuffle", after)]
        if self.transposed:
            steps = [(kind, _inverse(x) if kind == "shuffle" else x) for kind, x in steps[::-1]]
        if n != self.width:
            pad = np.where(np.arange(n) < self.width, np.arange(n), -1)
            steps = [("shuffle", pad), *steps, ("shuffle", np.arange(self.width))]
        same = [kind == "shuffle" and np.array_equal(x, np.arange(n)) for kind, x in steps]
        return [step for step, skip in zip(steps, same, strict=True) if not skip]

    def _orders(self, n: int, layer: int) -> tuple[Array, Array]:
        if self.shuffle == "stride":
            # channel (block, side, offset) to (block, offset, side)
            pairs = np.arange(n).reshape(-1, 2, 1 << layer).swapaxes(1, 2).ravel()
            return pairs, _inverse(pairs)
        deinterleave = np.arange(n).reshape(-1, 2).T.ravel()
        order = deinterleave if self.shuffle == "deinterleave" else _inverse(deinterleave)
        ends = order, np.arange(n)
        return ends if self.shuffle_first else ends[::-1]

    def blocks(self, angles: Array, layer: int) -> Array:
        """Givens blocks [E, n/2, 2, 2] of ``angles`` [E, L, n/2]."""
        c, s = np.cos(angles[:, layer]), np.sin(angles[:, layer])
        blocks = np.stack((np.stack((c, -s), -1), np.stack((s, c), -1)), -2)
        return blocks.swapaxes(-1, -2) if self.transposed else blocks

    def angles(self, experts: int, rng: np.random.Generator) -> Array:
        return rng.normal(size=(experts, self.layers, padded(self.width) // 2)).astype(np.float32)


def _inverse(order: Array) -> Array:
    return np.argsort(order)


@dataclass(frozen=True)
class Mixture:
    """A Butterfly MoE layer: sizes and choices."""

    tokens: int = 3
    width: int = 8
    hidden: int = 16
    experts: int = 3
    k: int = 2
    rotation_in: Rotation = field(default_factory=lambda: Rotation(8))
    rotation_out: Rotation | None = field(default_factory=lambda: Rotation(16))
    activation: str = "gelu"
    activation_after: bool = False
    per_row: bool = False
    up_bias: bool = False
    down: str = "float"  # float, ternary, absent
    down_bias: str = "none"  # none, weighted, once
    softmax: bool = False


class Builder:
    """Makes nodes and their constants; ``rng`` None fills constants with small exact numbers."""

    def __init__(self, rng: np.random.Generator | None) -> None:
        self.rng, self.store = rng, dict[str, Array]()

    def constant(self, name: str, array: Array, dtype: str = "f32") -> Node:
        type = Type(dtype, tuple(array.shape))
        return constant(self.store, array.astype(type.storage), name, type)

    def numbers(self, name: str, *shape: int, step: float = 0.125) -> Node:
        """Floats: random, or multiples of ``step`` that any machine holds exactly."""
        if self.rng is not None:
            return self.constant(name, self.rng.normal(size=shape))
        size = int(np.prod(shape))
        return self.constant(name, (np.arange(size) * 7 % 11 - 5).reshape(shape) * step)

    def ternary(self, name: str, *shape: int) -> Node:
        codes = np.arange(np.prod(shape)) * 5 % 7 % 3 - 1
        if self.rng is not None:
            codes = self.rng.integers(-1, 2, size=shape)
        return self.constant(name, codes.reshape(shape), "ternary")

    def rotation(self, x: Node, rotation: Rotation, experts: Node, name: str, angles: Any) -> Node:
        """B(theta) as a chain; ``angles`` [E, L, n/2], or None for blocks of exact numbers."""
        for kind, step in rotation.steps():
            if kind == "shuffle":
                x = make("shuffle", x, self.constant(f"{name}.order", step, "i32"), name=name)
                continue
            label = f"{name}.blocks{step}"
            if angles is None:
                shape = (3, padded(rotation.width) // 2, 2, 2)
                blocks = self.numbers(label, *shape)
            else:
                blocks = self.constant(label, rotation.blocks(angles, step))
            x = make("rotate", x, blocks, experts, name=f"{name}.layer{step}")
        return x


def build(mixture: Mixture, rng: np.random.Generator | None = None) -> Graph:
    """The layer for an input h: f32[T, d], with its router, as a graph."""
    b, m = Builder(rng), mixture
    h = input_node("h", Type("f32", (m.tokens, m.width)))
    scores = make("linear", h, b.numbers("gate", m.experts, m.width), name="scores")
    routing = make("top_k", scores, k=m.k, name="routing")
    gates, experts = result(routing, 0, "gates"), result(routing, 1, "experts")
    if m.softmax:
        gates = make("softmax", gates, name="gates")
    angles: list[Any] = [None, None]
    if rng is not None:
        angles[0] = m.rotation_in.angles(m.experts, rng)
        angles[1] = m.rotation_out.angles(m.experts, rng) if m.rotation_out else None
    parts = _shared_constants(b, m)
    total = None
    for slot in range(m.k):
        cut = {"axis": 1, "start": slot, "stop": slot + 1}
        number = make("slice", experts, name=f"e{slot}", **cut)
        number = make("reshape", number, shape=(m.tokens,), name=f"e{slot}")
        value = _expert(b, m, h, number, parts, angles)
        value = make("mul", value, make("slice", gates, name=f"g{slot}", **cut), name=f"m{slot}")
        total = value if total is None else make("add", total, value, name="mixed")
    assert total is not None, "k is at least 1"
    if m.down_bias == "once":
        total = make("add", total, parts["down_bias"], name="mixed")
    return pruned(Graph("mixture", (h,), (total,), b.store))


def _shared_constants(b: Builder, m: Mixture) -> dict[str, Node]:
    parts = {
        "w": b.ternary("w_hat", m.hidden, m.width),
        "scale": b.numbers("gamma", m.hidden) if m.per_row else b.constant("gamma", np.array(0.5)),
        "bias": b.numbers("bias", m.hidden),
        "down_bias": b.numbers("b_down", m.width if m.down != "absent" else m.hidden),
        "down_scale": b.constant("gamma_down", np.array(0.25)),
    }
    down = b.ternary if m.down == "ternary" else b.numbers
    return parts | {"down": down("w_down", m.width, m.hidden)}


def _expert(
    b: Builder, m: Mixture, h: Node, number: Node, parts: dict[str, Node], angles: list[Any]
) -> Node:
    x = b.rotation(h, m.rotation_in, number, "theta", angles[0])
    x = make("ternary_matmul", x, parts["w"], parts["scale"], name="up")
    x = make("add", x, parts["bias"], name="up.bias") if m.up_bias else x
    if m.activation != "none" and not m.activation_after:
        x = make(m.activation, x, name="act")
    if m.rotation_out is not None:
        x = b.rotation(x, m.rotation_out, number, "phi", angles[1])
    if m.activation != "none" and m.activation_after:
        x = make(m.activation, x, name="act")
    weighted = (parts["down_bias"],) if m.down_bias == "weighted" else ()
    if m.down == "float":
        return make("linear", x, parts["down"], *weighted, name="down")
    if m.down == "ternary":
        x = make("ternary_matmul", x, parts["down"], parts["down_scale"], name="down")
    return make("add", x, *weighted, name="down") if weighted else x


@st.composite
def rotations(draw: st.DrawFn, width: int) -> Rotation:
    """Any rotation of ``width`` channels: L from 1 to log2, all shuffles, both directions."""
    layers = draw(st.integers(1, padded(width).bit_length() - 1))
    shuffle = draw(st.sampled_from(["deinterleave", "interleave", "stride"]))
    return Rotation(width, layers, shuffle, draw(st.booleans()), draw(st.booleans()))


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    """Any mixture of the papers' two forms, with every choice that they leave open."""
    width, hidden = draw(st.integers(2, 20)), draw(st.integers(2, 36))
    experts = draw(st.integers(1, 4))
    return Mixture(
        tokens=draw(st.integers(1, 4)),
        width=width,
        hidden=hidden,
        experts=experts,
        k=draw(st.integers(1, experts)),
        rotation_in=draw(rotations(width)),
        rotation_out=draw(st.none() | rotations(hidden)),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "gelu_poly", "sigmoid", "none"])),
        activation_after=draw(st.booleans()),
        per_row=draw(st.booleans()),
        up_bias=draw(st.booleans()),
        down=draw(st.sampled_from(["float", "ternary", "absent"])),
        down_bias=draw(st.sampled_from(["none", "weighted", "once"])),
        softmax=draw(st.booleans()),
    )
