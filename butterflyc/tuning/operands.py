"""Numbers to try a kernel on, what its op makes of them, and whether a kernel's results are that.

What a kernel is tried on has to look like what it will be called with: places that there are, codes
of the size that is said, multipliers that leave codes which are neither all 0 nor all clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np

from ..compiler.ir.ops import OPS
from ..compiler.ir.ops.elementwise import cast
from ..compiler.ir.types import FLOATS, STORAGE
from ..kernels.integer_numbers import LIMITS, OCTAVE, UNIT_BITS, exp2_table, largest_of
from ..kernels.record import Spec, Tensor

Array = np.ndarray[Any, np.dtype[Any]]
Random = np.random.Generator
# Operands drawn so far, by the names that the op gives them.
Drawn = Mapping[str, Array]
Rule = Callable[[Random, Spec, Tensor, Drawn], Array]

# Of other integers than codes: counts, places and sums, whose products are small.
SMALL = 1000
SCALE = 0.05
# The spread of codes that are made, as a part of the largest code.
SPREAD = 0.25
# Of a layer norm's result and its bias, in codes.
NORM, SHIFTED = 32, 8
# Operands whose logarithm or root is taken.
POSITIVE = frozenset({"log", "pow", "rsqrt", "sqrt"})
# Relative errors, as L2 norms. Of activations that are quantised inside a code near a tie may be
# rounded either way; what GPUs compute of halves is added up in another order before it is rounded.
TOLERANCE, OF_CODES = 1e-5, 2e-3
OF_HALVES = {"f16": 2e-3, "bf16": 1.6e-2}


def operands(spec: Spec, seed: int = 0) -> tuple[Array, ...]:
    """Arrays of the operands of ``spec``, unpacked, in their order; of a seed always the same.

    Drawn by name where the op says what they are (`RULES`), else by their types: floats of the
    standard normal distribution, codes over all their range, other integers from -1000 to 1000.
    An op that nothing is known of gets the latter for all.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, Array] = {}
    arrays = []
    for name, tensor in zip(_names(spec), spec.operands, strict=False):
        rule = RULES.get((spec.op, name)) or RULES.get(("", name), by_type)
        drawn[name] = np.ascontiguousarray(rule(rng, spec, tensor, drawn), STORAGE[tensor.dtype])
        drawn[name] = drawn[name].reshape(tensor.shape)
        arrays.append(drawn[name])
    return tuple(arrays)


def meaning(spec: Spec, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """The results of the op of ``spec`` on ``arrays``, as the interpreter defines them.

    Floats are computed in float64, unless a result is of integers: a choice among floats, or their
    codes, are those of the floats as they are. Attributes that are the kernel's alone are left out.
    """
    op = OPS[spec.op]
    known = op.complete({k: v for k, v in spec.attributes if k in op.attributes})
    if all(result.dtype in FLOATS for result in spec.results):
        arrays = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    with np.errstate(all="ignore"):
        found = op.meaning(*arrays, **known)
    several = found if isinstance(found, tuple) else (found,)
    return tuple(
        np.asarray(array) if tensor.dtype in FLOATS else np.asarray(array, STORAGE[tensor.dtype])
        for array, tensor in zip(several, spec.results, strict=True)
    )


def error_of(results: Sequence[Array], wanted: Sequence[Array], spec: Spec) -> str:
    """What is wrong with ``results``, in a sentence; nothing if they are those ``wanted``.

    Integers are to be the same. Floats may differ by 1e-5 of the norm, by 2e-3 where the op
    quantises activations or rounds them to f16, by 1.6e-2 for bf16; none may be infinite, or no
    number.
    """
    if len(results) != len(wanted):
        return f"{len(results)} results, {len(wanted)} are wanted"
    faults = (
        _fault(f"result {i}", *pair, _tolerance(spec))
        for i, pair in enumerate(zip(results, wanted, strict=True))
    )
    return next(filter(None, faults), "")


def _tolerance(spec: Spec) -> float:
    said = dict(spec.attributes)
    of_codes = OF_CODES if said.get("activation_bits") else TOLERANCE
    return max(of_codes, OF_HALVES.get(str(said.get("dtype")), 0.0))


def _fault(name: str, found: Array, wanted: Array, tolerance: float) -> str:
    if found.shape != wanted.shape:
        return f"{name} has the shape {list(found.shape)}, not {list(wanted.shape)}"
    if wanted.dtype.kind != "f":
        other = np.count_nonzero(found != wanted)
        most = np.abs(found.astype(np.int64) - wanted.astype(np.int64)).max(initial=0)
        text = f"{name} is wrong in {other} of {found.size} numbers, by {most} at most"
        return text if other else ""
    if bad := np.count_nonzero(~np.isfinite(found)):
        return f"{name} is infinite or no number in {bad} of {found.size} places"
    exact = wanted.astype(np.float64)
    error = float(np.linalg.norm(found - exact)) / (float(np.linalg.norm(exact)) or 1.0)
    text = f"{name} is off by {error:.2g} of its norm, of {tolerance:g} allowed"
    return "" if error <= tolerance else text


def _names(spec: Spec) -> chain[str]:
    """Of the operands; an op of any number of operands calls all that follow as the last one."""
    names = OPS[spec.op].names if spec.op in OPS else ()
    return chain(names, repeat(names[-1] if names else ""))


# --- by type ---


def by_type(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    dtype, shape = tensor.dtype, tensor.shape
    if dtype in FLOATS:
        normal = rng.standard_normal(shape)
        return cast(np.abs(normal) if spec.op in POSITIVE else normal, dtype)
    if dtype in ("bool", "u8"):
        return rng.integers(0, 2 if dtype == "bool" else 256, shape)
    return _within(rng, {"ternary": 1, **LIMITS}.get(dtype, SMALL), shape)


def _within(rng: Random, most: int, shape: tuple[int, ...]) -> Array:
    return rng.integers(-most, most + 1, shape)


# --- by name ---


def _codes(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """Of as many bits as the op says."""
    bits = dict(spec.attributes).get("bits", 8)
    return _within(rng, 2 ** (bits - 1) - 1, tensor.shape)


def _digits(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """Weights of as many balanced-ternary digits as the op says."""
    planes = spec.attribute("planes")
    return _within(rng, largest_of(planes) if planes else LIMITS["i8"], tensor.shape)


def _scale(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    return SCALE * rng.uniform(0.5, 1.5, tensor.shape)


def _gates(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """Shares of one, which codes of 16 bits count in 1 / 2**15."""
    shares = rng.uniform(0.1, 1, tensor.shape)
    shares /= shares.sum(-1, keepdims=True)
    return shares if tensor.dtype in FLOATS else np.floor(shares * LIMITS["i16"])


def _experts(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """Numbers below how many there are, which a rotation has the blocks or angles of."""
    named = dict(zip(_names(spec), spec.operands, strict=False))
    first = next(named[name] for name in ("blocks_in", "blocks", "pairs_in") if name in named)
    return rng.integers(0, first.shape[0], tensor.shape)


def _blocks(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """Orthogonal ones; as integers so many that few rotated codes are clipped."""
    blocks = np.linalg.qr(rng.standard_normal(tensor.shape))[0]
    if tensor.dtype in FLOATS:
        return blocks
    one = min(max(2.0 ** (spec.attribute("shift") - 1), 1), LIMITS["i16"])
    return np.rint(blocks * one)


def _pairs(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """(cos, sin) of any angles."""
    angles = rng.uniform(-np.pi, np.pi, tensor.shape[:-1])
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def _pairs_of_partners(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """(c, s) of each channel i, which becomes c * x[i] + s * x[partner]: of turns, as `_partners`
    pairs channels; 1 and 0 where one is alone."""
    partners = _partners(rng, spec, Tensor("i32", tensor.shape[1:3]), drawn)
    channel, layer = np.arange(tensor.shape[2]), np.arange(tensor.shape[1])[:, None]
    turned = _pairs(rng, spec, tensor, drawn)[:, layer, np.minimum(channel, partners)]
    sign = np.sign(channel - partners)
    return np.stack([np.where(sign, turned[..., 0], 1.0), sign * turned[..., 1]], -1)


def _partners(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """In layer l those 2**l apart, as long as there are so many channels."""
    layers, width = tensor.shape
    bits = max((width - 1).bit_length(), 1)
    channel = np.arange(width)
    partners = channel ^ (1 << np.arange(layers) % bits)[:, None]
    return np.where(partners < width, partners, channel)


def _places(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """Along the axis that they are places of."""
    axis = dict(spec.attributes).get("axis", -1)
    return rng.integers(0, spec.operands[0].shape[axis], tensor.shape)


def _octave(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    return np.array(exp2_table())


def _exponents(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """Numbers of which the largest and the smallest are some octaves apart."""
    most = 2 * OCTAVE * 2 ** spec.attribute("shift") // max(spec.attribute("multiplier"), 1)
    return _within(rng, min(max(most, 1), LIMITS.get(tensor.dtype, 1 << 24)), tensor.shape)


def _gain(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """Such that a row of length 1, which is 2**15, becomes codes of the size of `NORM`."""
    one = NORM * 2.0 ** (spec.attribute("shift") - UNIT_BITS) * np.sqrt(tensor.shape[-1])
    return np.clip(np.rint(one * rng.uniform(0.5, 1.5, tensor.shape)), 1, LIMITS["i16"])


def _shifted(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    some = SHIFTED * 2.0 ** spec.attribute("shift") * rng.standard_normal(tensor.shape)
    return np.clip(np.rint(some), -(2**29), 2**29)


def _bias(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """About as large as the sums that it is added to."""
    return np.rint(_products(drawn).std() * rng.standard_normal(tensor.shape))


def _sums(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """What is to become codes: sums with as many bits as are dropped, and 14 more."""
    wide = tensor.dtype == "i32"
    most = 2 ** min(14 + spec.attribute("drop"), 29) if wide else LIMITS[tensor.dtype]
    return _within(rng, most, tensor.shape)


def _multiplier(rng: Random, spec: Spec, tensor: Tensor, drawn: Drawn) -> Array:
    """Makes the sums codes that spread over their range, of which few are clipped."""
    sums = _products(drawn)
    drop, shift = spec.attribute("drop"), spec.attribute("shift")
    wanted = SPREAD * LIMITS[spec.results[0].dtype] * 2.0 ** (drop + shift) / max(sums.std(), 1)
    # The product by what is left of the largest sum fits 32 bits.
    most = (2.0**31 - 2.0**shift) / (np.abs(sums).max(initial=0) / 2.0**drop + 1)
    shares = rng.uniform(0.5, 1, tensor.shape)
    return np.clip(np.rint(wanted * shares), 1, max(1, min(LIMITS["i16"], int(most))))


def _products(drawn: Drawn) -> Array:
    """The sums that an op of integer mode makes of what is drawn, which float64 holds exactly."""
    wide = {name: array.astype(np.float64) for name, array in drawn.items()}
    if "gates" in wide:
        return (wide["values"] * wide["gates"][..., None]).sum(-2)
    rows = wide["codes" if "codes" in wide else "x"]
    if "w" not in wide:
        return rows
    return rows @ wide["w"].T + wide.get("bias", 0)


# By op and operand; of no op: of every op that calls an operand so.
RULES: Mapping[tuple[str, str], Rule] = {
    ("", "scale"): _scale,
    ("", "row_scale"): _scale,
    ("", "gates"): _gates,
    ("", "experts"): _experts,
    ("", "blocks"): _blocks,
    ("", "blocks_in"): _blocks,
    ("", "blocks_out"): _blocks,
    ("", "pairs_in"): _pairs,
    ("", "pairs_out"): _pairs,
    ("butterfly_deep_layer", "pairs_in"): _pairs_of_partners,
    ("butterfly_deep_layer", "pairs_out"): _pairs_of_partners,
    ("butterfly_deep_layer", "partners_in"): _partners,
    ("butterfly_deep_layer", "partners_out"): _partners,
    ("", "octave"): _octave,
    ("", "multiplier"): _multiplier,
    ("", "codes"): _codes,
    ("integer_linear", "w"): _digits,
    ("integer_linear", "bias"): _bias,
    ("quantized_linear", "w"): _digits,
    ("quantized_linear", "bias"): _bias,
    ("integer_layer_norm", "gain"): _gain,
    ("integer_layer_norm", "bias"): _shifted,
    ("integer_softmax", "x"): _exponents,
    ("requantize", "x"): _sums,
    ("shuffle", "order"): _places,
    ("take", "index"): _places,
    ("gather", "index"): _places,
}
