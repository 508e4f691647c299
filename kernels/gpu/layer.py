"""A call of the op for a layer as its GPU kernels see it, and what their launches share.

There are two such ops, and a `Layer` is of either: `butterfly_layer`, and `butterfly_deep_layer`
with rotations of any number of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from ..lanes import Lanes
from ..record import Spec, Tensor
from .activations import NAMES
from .launch import TRITON, Argument, Gpu, Plan, Value

FIRST = "x", "pairs_in", "w", "scale", "bias", "gates", "experts", "pairs_out"
OPERANDS = (*FIRST, "w_down")
DEEP_OPERANDS = (*FIRST, "partners_in", "partners_out", "w_down")
IN_ORDER = (0, 1, 2, 3, 0, 1, 2, 3)
# One word holds a cosine and a sine.
WORDS = {"f16": "i32", "f32": "i64"}
HALVES = ("f16", "bf16")
BYTES = {"f16": 2, "bf16": 2, "f32": 4, "i8": 1, "i32": 4}
# Chosen experts whose rows a tile can add up (`epilogue.gated`).
MOST_CHOSEN = 8
# Numbers of a buffer that int32 can count, with room for a tile behind the last.
COUNTED = 2**31 - 2**20


def power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()


def divided(number: int, divisor: int) -> int:
    """How many pieces of ``divisor`` hold ``number``."""
    return -(-number // divisor)


@dataclass(frozen=True)
class Layer:
    """Sizes and choices of one call."""

    tokens: int
    chosen: int
    channels: int
    # Rows of W_hat, and how many of them are results.
    outputs: int
    kept: int
    experts: int
    # Channels of the result behind w_down; 0 without it.
    down: int
    # Of x and of the result, and of rows and of w_down.
    outer: str
    dtype: str
    codes: bool
    activation: str
    # `order_bits` of the rotation of rows, where it has groups of four.
    order_in: int
    operands: dict[str, Tensor]
    flags: dict[str, Value]

    @property
    def rows(self) -> int:
        """(token, chosen expert) rows."""
        return self.tokens * self.chosen

    @property
    def row_dtype(self) -> str:
        return "i8" if self.codes else self.dtype

    @property
    def sum_dtype(self) -> str:
        return "i32" if self.codes else "f32"

    @property
    def last(self) -> Tensor:
        """What the kernels before w_down make."""
        dtype = self.dtype if self.down else self.outer
        return Tensor(dtype, (self.tokens, self.kept))

    @property
    def last_bytes(self) -> int:
        return self.tokens * self.kept * BYTES[self.last.dtype]

    def buffer(self, name: str) -> Argument:
        """The argument that is the operand ``name``."""
        tensor = self.operands[name]
        dtype = WORDS[tensor.dtype] if name.startswith("pairs") else tensor.dtype
        return pointer(dtype, name)

    def row_scales(self, name: str) -> Argument:
        """The row scales of codes; without codes, some floats that nothing reads."""
        return pointer("f32", name if self.codes else "gates")


def pointer(dtype: str, name: str) -> Argument:
    return Argument("*" + TRITON[dtype], name)


def number(value: int) -> Argument:
    return Argument("i32", value)


def plain(value: int) -> Argument:
    """A number that one kernel serves, whether a multiple of 16 or not (`Argument`)."""
    return Argument("i32", value, plain=True)


def order_bits(order: tuple[int, ...]) -> int:
    """An order of the op as device functions have it: two bits a number (`common.turn`).

    First which channel of a group each member is, then which member each channel becomes.
    """
    places = [order[4:].index(channel) for channel in range(4)]
    return sum(number << 2 * i for i, number in enumerate((*order[:4], *places)))


def layer_of(spec: Spec) -> Layer:
    deep = spec.op == "butterfly_deep_layer"
    operands = dict(zip(DEEP_OPERANDS if deep else OPERANDS, spec.operands, strict=False))
    orders = {name: dict(spec.attributes).get(name, IN_ORDER) for name in ("order_in", "order_out")}
    (tokens, channels), chosen = operands["x"].shape, operands["gates"].shape[1]
    dtype = spec.attribute("dtype")
    down = operands["w_down"].shape[0] if "w_down" in operands else 0
    outputs = operands["w"].shape[0]
    flags: dict[str, Value] = {
        "SCALES": bool(operands["scale"].shape),
        "BIASED": bool(spec.attribute("biased")),
        "ACTIVATION": spec.attribute("activation"),
        "LAST": bool(spec.attribute("activate_last")),
        "ORDER": order_bits(orders["order_out"]),
        "FAST": dtype in HALVES,
        "ASM": True,
    }
    return Layer(
        tokens,
        chosen,
        channels,
        outputs,
        spec.attribute("kept") if deep else outputs,
        operands["pairs_in"].shape[0],
        down,
        operands["x"].dtype,
        dtype,
        spec.attribute("activation_bits") == 8,
        spec.attribute("activation"),
        order_bits(orders["order_in"]),
        operands,
        flags,
    )


def serves(spec: Spec, gpu: Gpu, layout: str, op: str = "butterfly_layer") -> bool:
    """Whether this is a call of ``op`` that kernels here compute, with such packed weights."""
    if spec.op != op:
        return False
    layer = layer_of(spec)
    tensors = layer.operands
    # Addresses inside an operand are counted in int32.
    counted = all(prod(t.shape) < COUNTED for name, t in tensors.items() if name != "x")
    return (
        layer.outer in {"f32", layer.dtype}
        and ("bf16" not in (layer.dtype, layer.outer) or gpu.has_bf16)
        and all(tensors[name].dtype in WORDS for name in ("pairs_in", "pairs_out"))
        and all(tensors[name].dtype == "f32" for name in ("scale", "bias", "gates"))
        and tensors["experts"].dtype in ("i32", "i64")
        and (not layer.down or tensors["w_down"].dtype == layer.dtype)
        and layer.activation in NAMES
        # A polynomial of its own: GELU is near enough where results are rounded more.
        and (layer.activation != "gelu_poly" or layer.dtype in HALVES)
        and tensors["w"].layout in (None, layout)
        and all(t.layout is None for name, t in tensors.items() if name != "w")
        and all(0 not in t.shape for t in tensors.values())
        and layer.rows < COUNTED
        and counted
    )


def as_launched(build: Callable[[Spec, Lanes, str], Plan]) -> Callable[[Spec, Lanes], Plan]:
    """The ``plan`` of a record: what ``build`` launches is all that parameters come to."""
    return lambda spec, gpu: build(spec, gpu, "")


Way = dict[str, int]


def way_of(spec: Spec, ways: Sequence[Way], fits: Callable[[Way], bool]) -> Way:
    """The parameters of ``spec``; those it leaves open as in the first of ``ways`` that fits."""
    base = next((way for way in ways if fits(way)), ways[-1])
    return {**base, **dict(spec.parameters)}
