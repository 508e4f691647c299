"""The ops of a Butterfly mixture-of-experts layer, on torch tensors: what no kernel serves.

Blocks are gathered for each row, so memory is that of the rows times the block size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..ir.ops.layer import TURNED
from .torch_ops_elementwise import ACTIVATIONS
from .torch_types import TORCH, held, widened

# Sums of integers are exact in float32 below this.
EXACT = 2**24


def of_held(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, computing in float32 of bf16 operands."""

    @wraps(function)
    def wrapped(*operands: Tensor, **attributes: Any) -> Any:
        return function(*map(held, operands), **attributes)

    return wrapped


def number(like: Tensor, value: float) -> Tensor:
    """``value`` as an element of ``like``: rounded before it is used, as NumPy does."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


def top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # torch.topk promises no order of equals.
    keys = x if x.is_floating_point() else x.long()
    order = torch.sort(-keys, dim=-1, stable=True).indices[..., :k]
    return x.gather(-1, order), order


def shuffle(x: Tensor, order: Tensor) -> Tensor:
    return x.index_select(-1, order.clamp(min=0)).masked_fill(order < 0, 0)


def rotate(x: Tensor, blocks: Tensor, experts: Tensor, lanes: int) -> Tensor:
    _, groups, b, _ = blocks.shape
    rows = x.expand(*experts.shape, x.shape[-1])
    parts = rows.reshape(*experts.shape, groups // lanes, b, lanes).transpose(-1, -2)
    chosen = blocks[experts.long()].reshape(*parts.shape, b).to(x.dtype)
    turned = torch.einsum("...ij,...j->...i", chosen, parts)
    return turned.transpose(-1, -2).reshape(rows.shape)


def ternary_matmul(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
    return functional.linear(x, w.to(x.dtype)) * scale.to(x.dtype)


def quantize_rows(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    most = 2 ** (bits - 1) - 1
    one = number(x, 1)
    largest = x.abs().amax(-1, keepdim=True)
    none = ~(largest > 0)
    inverse = (number(x, most) / largest).masked_fill(none, 0)
    # What NaN is as an integer differs between processors.
    codes = torch.round(x * inverse).nan_to_num(0).clamp(-most, most)
    return codes.to(torch.int8), largest * (one / number(x, most))


def ternary_dot(codes: Tensor, w: Tensor, bits: int = 8) -> Tensor:
    exact = torch.float32 if codes.shape[-1] * 128 < EXACT else torch.float64
    return functional.linear(codes.to(exact), w.to(exact)).to(torch.int32)


def dequantize(sums: Tensor, row_scale: Tensor, scale: Tensor) -> Tensor:
    return sums.to(row_scale.dtype) * (row_scale * scale.to(row_scale.dtype))


def combine(values: Tensor, gates: Tensor) -> Tensor:
    return (values * gates[..., None]).sum(-2)


def products(x: Tensor, w: Tensor, scale: Tensor, activation_bits: int) -> Tensor:
    """Rows by the ternary matrix, of codes if ``activation_bits`` says so."""
    if not activation_bits:
        return ternary_matmul(x, w, scale)
    codes, row_scale = quantize_rows(x, activation_bits)
    return dequantize(ternary_dot(codes, w), row_scale, scale)


def butterfly_experts(
    x: Tensor,
    blocks_in: Tensor,
    w: Tensor,
    scale: Tensor,
    bias: Tensor,
    gates: Tensor,
    experts: Tensor,
    blocks_out: Tensor | None = None,
    *,
    activation: str,
    activate_last: bool,
    activation_bits: int,
    lanes_in: int,
    lanes_out: int,
    biased: bool,
) -> Tensor:
    rotated = rotate(x[:, None], blocks_in, experts, lanes_in)  # [T, k, d]
    u = products(rotated, w, scale, activation_bits)
    u = u + bias.to(x.dtype) if biased else u  # [T, k, F]
    activate = ACTIVATIONS[activation]
    u = u if activate_last else activate(u)
    u = u if blocks_out is None else rotate(u, blocks_out, experts, lanes_out)
    u = activate(u) if activate_last else u
    return combine(u, gates)


def turn(x: Tensor, pairs: Tensor, order: tuple[int, ...]) -> Tensor:
    """x [..., 4 * groups] rotated by pairs [..., groups, 4, 2]."""
    channels = x.reshape(*x.shape[:-1], -1, 4).unbind(-1)
    parts = [channels[channel] for channel in order[:4]]
    for i, (a, b) in enumerate(TURNED):
        c, s = pairs[..., i, 0], pairs[..., i, 1]
        parts[a], parts[b] = c * parts[a] - s * parts[b], s * parts[a] + c * parts[b]
    renamed = [parts[order[4:].index(channel)] for channel in range(4)]
    return torch.stack(renamed, -1).flatten(-2)


def butterfly_layer(
    x: Tensor,
    pairs_in: Tensor,
    w: Tensor,
    scale: Tensor,
    bias: Tensor,
    gates: Tensor,
    experts: Tensor,
    pairs_out: Tensor,
    w_down: Tensor | None = None,
    *,
    dtype: str,
    activation: str,
    activate_last: bool,
    activation_bits: int,
    order_in: tuple[int, ...],
    order_out: tuple[int, ...],
    biased: bool,
) -> Tensor:
    def rotated(rows: Tensor, pairs: Tensor, order: tuple[int, ...]) -> Tensor:
        return turn(rows, pairs[experts.long()].to(rows.dtype), order)

    return layer(
        x,
        w,
        scale,
        bias,
        gates,
        w_down,
        lambda rows: rotated(rows, pairs_in, order_in),
        lambda u: rotated(u, pairs_out, order_out),
        dtype=dtype,
        activation=activation,
        activate_last=activate_last,
        activation_bits=activation_bits,
        biased=biased,
    )


def layer(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    bias: Tensor,
    gates: Tensor,
    w_down: Tensor | None,
    rotate_in: Callable[[Tensor], Tensor],
    rotate_out: Callable[[Tensor], Tensor],
    *,
    dtype: str,
    activation: str,
    activate_last: bool,
    activation_bits: int,
    biased: bool,
) -> Tensor:
    """A layer of any rotations: ``rotate_in`` of x [T, 1, d] gives [T, k, d]."""
    wide = widened(x).dtype

    def rounded(values: Tensor) -> Tensor:
        return values.to(TORCH[dtype]).to(wide) if dtype in ("f16", "bf16") else values

    rows = rotate_in(x.to(wide)[:, None])
    rows = rows if activation_bits else rounded(rows)
    u = products(rows, w, scale, activation_bits)
    u = u + bias.to(wide) if biased else u  # [T, k, F]
    activate = ACTIVATIONS[activation]
    u = u if activate_last else activate(u)
    u = rotate_out(u)
    u = activate(u) if activate_last else u
    y = combine(u, gates.to(wide))
    if w_down is not None:
        y = functional.linear(rounded(y)[:, : w_down.shape[1]], w_down.to(wide))
    return y


def turn_layers(x: Tensor, pairs: Tensor, partners: Tensor) -> Tensor:
    """x [..., n] rotated by pairs [..., L, n, 2] of ``partners`` [L, n]."""
    for i, partner in enumerate(partners.long()):
        x = pairs[..., i, :, 0] * x + pairs[..., i, :, 1] * x[..., partner]
    return x


def butterfly_deep_layer(
    x: Tensor,
    pairs_in: Tensor,
    w: Tensor,
    scale: Tensor,
    bias: Tensor,
    gates: Tensor,
    experts: Tensor,
    pairs_out: Tensor,
    partners_in: Tensor,
    partners_out: Tensor,
    w_down: Tensor | None = None,
    *,
    dtype: str,
    activation: str,
    activate_last: bool,
    activation_bits: int,
    biased: bool,
    kept: int,
) -> Tensor:
    def rotated(rows: Tensor, pairs: Tensor, partners: Tensor) -> Tensor:
        return turn_layers(rows, pairs[experts.long()].to(rows.dtype), partners)

    def rotated_in(rows: Tensor) -> Tensor:
        more = w.shape[1] - rows.shape[-1]
        return rotated(functional.pad(rows, (0, more)), pairs_in, partners_in)

    y = layer(
        x,
        w,
        scale,
        bias,
        gates,
        w_down,
        rotated_in,
        lambda u: rotated(u, pairs_out, partners_out),
        dtype=dtype,
        activation=activation,
        activate_last=activate_last,
        activation_bits=activation_bits,
        biased=biased,
    )
    return y if w_down is not None else y[:, :kept]


TABLE: dict[str, Callable[..., Any]] = {
    "top_k": top_k,
    "shuffle": shuffle,
    "rotate": of_held(rotate),
    "ternary_matmul": of_held(ternary_matmul),
    "quantize_rows": of_held(quantize_rows),
    "ternary_dot": ternary_dot,
    "dequantize": of_held(dequantize),
    "combine": of_held(combine),
    "butterfly_experts": of_held(butterfly_experts),
    "butterfly_layer": butterfly_layer,
    "butterfly_deep_layer": butterfly_deep_layer,
}
