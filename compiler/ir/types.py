"""Types of the IR: dtype and static shape; a scale where quantised, a layout where packed."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

# How each dtype is held in NumPy. `ternary` holds -1, 0, +1; NumPy has no bfloat16, so its values
# are held in float32 and rounded by the op that makes them.
STORAGE: dict[str, np.dtype] = {
    "bool": np.dtype(np.bool_),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.float32),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "ternary": np.dtype(np.int8),
}
FLOATS = frozenset({"f16", "bf16", "f32", "f64"})
INTEGERS = frozenset({"i8", "u8", "i16", "i32", "i64"})

_BYTES = {"bool": 1, "i8": 1, "u8": 1, "i16": 2, "i32": 4, "i64": 8, "f16": 2, "bf16": 2}
_BYTES |= {"f32": 4, "f64": 8, "ternary": 1}

_TEXT = re.compile(
    r"(?P<dtype>[a-z]+\d*)\[(?P<dims>[\d, ]*)\](?: scale (?P<scale>\S+))?"
    r"(?: layout (?P<layout>\w+))?"
)


@dataclass(frozen=True, slots=True)
class Type:
    """A tensor type; ``shape`` is the logical one, also where ``layout`` says how it is packed."""

    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    layout: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in STORAGE:
            raise ValueError(f"unknown dtype '{self.dtype}'; known: {', '.join(STORAGE)}")
        if any(not isinstance(n, int) or n < 0 for n in self.shape):
            raise ValueError(f"a shape holds non-negative integers, got {self.shape}")

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Bytes of the unpacked tensor."""
        return self.size * _BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def storage(self) -> np.dtype:
        return STORAGE[self.dtype]

    def with_shape(self, *shape: int) -> Type:
        return replace(self, shape=tuple(shape))

    def with_dtype(self, dtype: str) -> Type:
        return replace(self, dtype=dtype)

    def __str__(self) -> str:
        text = f"{self.dtype}[{', '.join(map(str, self.shape))}]"
        if self.scale is not None:
            text += f" scale {self.scale!r}"
        if self.layout is not None:
            text += f" layout {self.layout}"
        return text

    @staticmethod
    def parse(text: str) -> Type:
        """The type that prints as ``text``. Raises ValueError if there is none."""
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"not a type: '{text}'")
        dims = match["dims"].strip()
        shape = tuple(int(n) for n in dims.split(",")) if dims else ()
        scale = None if match["scale"] is None else float(match["scale"])
        return Type(match["dtype"], shape, scale, match["layout"])


def type_of(array: np.ndarray) -> Type:
    """The type of a NumPy array (never `ternary` or `bf16`, which NumPy cannot tell)."""
    for name, storage in STORAGE.items():
        if storage == array.dtype and name not in ("ternary", "bf16"):
            return Type(name, tuple(array.shape))
    raise ValueError(f"no IR dtype for NumPy's {array.dtype}")
