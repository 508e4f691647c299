"""The numbers of integer mode that its kernels and the meanings of its ops share."""

from __future__ import annotations

from math import cos, pi, sin

# The largest code: the lowest number of a type is none, so that sums of products stay bounded.
LIMITS = {"i8": 127, "i16": 32767}
# An octave of powers of two in 256 steps, 1 as 2**14. Behind 16 octaves all is 0.
OCTAVE, ONE_BITS, OCTAVES = 256, 14, 16
WORD_BITS = 32
UNIT_BITS = 15  # of a row of length 1 in a norm, and of a probability in a softmax
# A norm divides 2**29 by a row's length; attention divides 2**28 by a sum, which leaves 22 bits.
LENGTH_BITS, INVERSE_BITS, MEAN_BITS = 29, 28, 22
# The eps of a norm is a length of 15 bits, shifted; below this shift it is none beside one code.
EPS_BITS, LEAST_EPS_SHIFT = 15, -15

# Angles as codes: so many bits of them make a turn. The cosines and sines of each 256th of a turn,
# and of each 256th of that; 1 is 2**14. Between the two turns of a channel values keep 7 more bits.
TURN_BITS = {"i8": 8, "i16": 16}
PARTS, TURNED_BITS = 256, 7

# So many balanced-ternary digits a weight of 8 bits can have: five give -121..121.
MOST_PLANES = 5

# A curve of 16-bit codes: a value at each 256th code, and one behind the last.
KNOTS = 257


def exp2_table() -> list[int]:
    """2**(ONE_BITS - i / OCTAVE), rounded, for i in one octave: at most 2**14."""
    return [round(2.0 ** (ONE_BITS - i / OCTAVE)) for i in range(OCTAVE)]


def turn_table(dtype: str) -> list[list[int]]:
    """(cos, sin) in 2**-ONE_BITS of each 256th of a turn; for i16 of each 256th of that, too."""
    one = 1 << ONE_BITS
    steps = [PARTS] if dtype == "i8" else [PARTS, PARTS**2]
    angles = [2 * pi * i / parts for parts in steps for i in range(PARTS)]
    return [[round(one * cos(angle)), round(one * sin(angle))] for angle in angles]


def largest_of(planes: int) -> int:
    """The largest whole number that ``planes`` balanced-ternary digits give."""
    return (3**planes - 1) // 2


def norm_bits(width: int) -> int:
    """How many bits of each deviation of a row a norm squares, so that their sum fits 31."""
    return (30 - (width - 1).bit_length()) // 2
