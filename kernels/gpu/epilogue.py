"""Device functions: what follows the product of rotated rows, on a tile of its sums.

A tile has M rows of tokens and N outputs. With SLOTS a token has so many rows: eight tokens' first
rows, then their second rows, and so on, so that a thread that holds a product's result has rows of
one token. FRAGMENT: outputs are in the fragment order of `layout_crumbs`, for the same reason.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .common import split_members, turn


@triton.jit
def row_of(
    first: tl.tensor, T: tl.tensor, CHOSEN: tl.constexpr, SLOTS: tl.constexpr, M: tl.constexpr
) -> tl.tensor:
    """The (token, chosen expert) row of each row of a tile from token ``first``, and if it is."""
    place = tl.arange(0, M)
    token = first + place // (8 * SLOTS) * 8 + place % 8
    slot = place // 8 % SLOTS
    return token * CHOSEN + slot, (token < T) & (slot < CHOSEN)


@triton.jit
def channel_of(first: tl.tensor, FRAGMENT: tl.constexpr, N: tl.constexpr) -> tl.tensor:
    """The output in each column of a tile."""
    place = tl.arange(0, N)
    if FRAGMENT:
        place = place // 16 * 16 + place % 8 // 2 * 4 + place % 16 // 8 * 2 + place % 2
    return first + place


@triton.jit
def fragment_members(x: tl.tensor, M: tl.constexpr, N: tl.constexpr) -> tl.tensor:
    """The four members, each [M, N / 4], of groups in fragment order."""
    parts = tl.permute(tl.reshape(x, (M, N // 16, 2, 4, 2)), (0, 1, 3, 4, 2))
    low, high = tl.split(parts)
    x0, x1 = tl.split(low)
    x2, x3 = tl.split(high)
    x0, x1 = tl.reshape(x0, (M, N // 4)), tl.reshape(x1, (M, N // 4))
    x2, x3 = tl.reshape(x2, (M, N // 4)), tl.reshape(x3, (M, N // 4))
    return x0, x1, x2, x3


@triton.jit
def add_slots(x: tl.tensor, M: tl.constexpr, G: tl.constexpr) -> tl.tensor:
    """The sums [M / 2, G] of neighbouring slots."""
    one, other = tl.split(tl.permute(tl.reshape(x, (M // 16, 2, 8, G)), (0, 2, 3, 1)))
    return tl.reshape(one + other, (M // 2, G))


@triton.jit
def gated(
    x: tl.tensor, gate: tl.tensor, SLOTS: tl.constexpr, M: tl.constexpr, G: tl.constexpr
) -> tl.tensor:
    """The sums [M / SLOTS, G] over each token's rows, by their gates."""
    x = x * gate[:, None]
    if SLOTS >= 2:
        x = add_slots(x, M, G)
    if SLOTS >= 4:
        x = add_slots(x, M // 2, G)
    if SLOTS >= 8:
        x = add_slots(x, M // 4, G)
    return x


@triton.jit
def scales_of(
    row_scales: tl.tensor, row: tl.tensor, there: tl.tensor, CODES: tl.constexpr
) -> tl.tensor:
    """The scales of rows of codes; of others, ones that nothing reads."""
    if CODES:
        return tl.load(row_scales + row, mask=there, other=0.0)
    else:
        return there.to(tl.float32)


@triton.jit
def chosen_of(gates: tl.tensor, experts: tl.tensor, row: tl.tensor, there: tl.tensor) -> tl.tensor:
    """The gates of rows, and the numbers of their experts; zeros where there is no row."""
    gate = tl.load(gates + row, mask=there, other=0.0)
    return gate, tl.load(experts + row, mask=there, other=0).to(tl.int32)


@triton.jit
def activated(
    sums: tl.tensor,
    of_row: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    channel: tl.tensor,
    within: tl.tensor,
    UNIT: tl.constexpr,
    CODES: tl.constexpr,
    SCALES: tl.constexpr,
    BIASED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LAST: tl.constexpr,
    FAST: tl.constexpr,
    ASM: tl.constexpr,
) -> tl.tensor:
    """Sums [M, N] scaled, with CODES also by ``of_row`` [M]; biased; activated unless LAST."""
    if SCALES:
        factor = tl.load(scale + channel, mask=within, other=0.0)[None, :] * UNIT
    else:
        factor = tl.load(scale) * UNIT
    if CODES:
        factor = of_row[:, None] * factor
    u = sums.to(tl.float32) * factor
    if BIASED:
        u += tl.load(bias + channel, mask=within, other=0.0)[None, :]
    if not LAST:
        u = activate(u, ACTIVATION, FAST, ASM)
    return u


@triton.jit
def combined(
    sums: tl.tensor,
    of_row: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    gate: tl.tensor,
    expert: tl.tensor,
    pairs: tl.tensor,
    there: tl.tensor,
    first: tl.tensor,
    F: tl.tensor,
    UNIT: tl.constexpr,
    CODES: tl.constexpr,
    SCALES: tl.constexpr,
    BIASED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LAST: tl.constexpr,
    ORDER: tl.constexpr,
    FAST: tl.constexpr,
    ASM: tl.constexpr,
    FRAGMENT: tl.constexpr,
    SLOTS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
) -> tl.tensor:
    """Members [M / SLOTS, N / 4] of the outputs of tokens, from ``first`` on, in natural order.

    Sums times UNIT are of weights -1, 0 and 1.
    """
    channel = channel_of(first, FRAGMENT, N)
    u = activated(
        sums, of_row, scale, bias, channel, channel < F,
        UNIT, CODES, SCALES, BIASED, ACTIVATION, LAST, FAST, ASM,
    )  # fmt: skip
    if FRAGMENT:
        u0, u1, u2, u3 = fragment_members(u, M, N)
    else:
        u0, u1, u2, u3 = split_members(u, M, N // 4)
    group = first // 4 + tl.arange(0, N // 4)
    turned = there[:, None] & (group * 4 < F)[None, :]
    words = (expert[:, None] * (F // 4) + group[None, :]) * 4
    u0, u1, u2, u3 = turn(u0, u1, u2, u3, pairs, words, turned, ORDER, M, N // 4)
    if LAST:
        u0 = activate(u0, ACTIVATION, FAST, ASM)
        u1 = activate(u1, ACTIVATION, FAST, ASM)
        u2 = activate(u2, ACTIVATION, FAST, ASM)
        u3 = activate(u3, ACTIVATION, FAST, ASM)
    u0, u1 = gated(u0, gate, SLOTS, M, N // 4), gated(u1, gate, SLOTS, M, N // 4)
    u2, u3 = gated(u2, gate, SLOTS, M, N // 4), gated(u3, gate, SLOTS, M, N // 4)
    return u0, u1, u2, u3
