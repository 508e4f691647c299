"""C's types, constants and words, as ``emit_c`` prints them."""

from __future__ import annotations

from math import isfinite

import numpy as np

from .tir import ForbiddenInKernel

# How tightly a piece of text binds. Shifts, bit operations and logic are LOOSE and take UNARY
# operands: what gcc -Wall wants bracketed is bracketed.
LOOSE, COMPARE, SUM, PRODUCT, UNARY, ATOM = range(6)

TYPES = {
    "bool": "uint8_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "uint16": "uint16_t",
    "int32": "int32_t",
    "uint32": "uint32_t",
    "int64": "int64_t",
    "uint64": "uint64_t",
    "float32": "float",
    "float64": "double",
}
# C computes these in int.
NARROW = frozenset({"int8", "uint8", "int16", "uint16"})
SHORT_TYPES = {
    dtype: dtype.replace("uint", "u").replace("int", "i").replace("float", "f") for dtype in TYPES
}

BITS_OF_FLOATS = {"float32": 32, "float64": 64}
_SUFFIXES = {"float32": "f", "uint32": "u", "int64": "LL", "uint64": "ULL"}
# A longer decimal is printed in hexadecimal, which shows that it is exact.
_LONGEST_DECIMAL = 8

PRELUDE = """\
#include <stdint.h>

#ifndef RESTRICT
#ifdef __cplusplus
#define RESTRICT __restrict
#else
#define RESTRICT restrict
#endif
#endif
"""
OPEN_EXTERN_C = """\
#ifdef __cplusplus
extern "C" {
#endif
"""
CLOSE_EXTERN_C = """\
#ifdef __cplusplus
}
#endif
"""

_KEYWORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept
    const consteval constexpr constinit const_cast continue decltype default delete do double
    dynamic_cast else enum explicit export extern false float for friend goto if inline int long
    mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public
    register reinterpret_cast requires restrict return short signed sizeof static static_assert
    static_cast struct switch template this thread_local throw true try typedef typeid typename
    typeof union unsigned using virtual void volatile wchar_t while xor xor_eq
    main memcpy memset linux unix NULL RESTRICT
"""
# Names that no variable may have: words of C and C++, of compilers, and of what is printed here.
RESERVED = frozenset(
    {
        *_KEYWORDS.split(),
        *TYPES.values(),
        *(f"{kind}_{a}" for kind in ("min", "max") for a in SHORT_TYPES.values()),
        *(f"{a}_bits_of_{b}" for a in SHORT_TYPES.values() for b in SHORT_TYPES.values()),
    }
)


def c_type(dtype: str, kernel: str) -> str:
    """The C type; an error names the kernel that holds another."""
    if dtype not in TYPES:
        raise ForbiddenInKernel(
            f"kernel {kernel} holds a value of type {dtype}, which C has not",
            help=f"C code is scalar, built with `Lanes()`; types are {', '.join(TYPES)}",
        )
    return TYPES[dtype]


def literal(value: float, dtype: str, kernel: str) -> str:
    """A constant of this type, to the bit."""
    c_type(dtype, kernel)
    suffix = _SUFFIXES.get(dtype, "")
    if dtype in BITS_OF_FLOATS:
        exact = float(np.float32(value)) if dtype == "float32" else float(value)
        if not isfinite(exact):
            raise ForbiddenInKernel(
                f"kernel {kernel} holds the constant {value}, which C cannot write",
                help="use a large finite number in place of infinity, or a comparison",
            )
        decimal = repr(exact)
        return (decimal if len(decimal) <= _LONGEST_DECIMAL else exact.hex()) + suffix
    whole = int(value)
    if whole in (-(2**31), -(2**63)):
        # C reads -2147483648 as the minus of a number that int has not.
        return f"({whole + 1}{suffix} - 1)"
    return f"{whole}{suffix}"
