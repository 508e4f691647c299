"""C text of every function that a kernel may call by name when it is printed as C.

A kernel calls one by ``T.call_pure_extern(dtype, name, ...)``. The text defines it for every
compiler, so a kernel for one chip's instructions can be run and checked on any other.
"""

from __future__ import annotations

from types import MappingProxyType


def _dsp(head: str, instruction: str, portable: str) -> str:
    """A function that is one instruction where the chip has it, and an expression elsewhere."""
    return f"""\
#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
static inline int32_t {head} {{ return {instruction}; }}
#else
static inline int32_t {head}
{{
    return {portable};
}}
#endif"""


def _assembly(head: str, text: str, portable: str) -> str:
    """The same for an instruction that compilers neither find nor have a name for."""
    operands = ", ".join(f'"r"({name})' for name in ("a", "b") if f"int32_t {name}" in head)
    return f"""\
#if defined(__ARM_FEATURE_DSP) && defined(__GNUC__)
static inline int32_t {head}
{{
    int32_t made;
    __asm__("{text}" : "=r"(made) : {operands});
    return made;
}}
#else
static inline int32_t {head}
{{
    return {portable};
}}
#endif"""


def _load(name: str, type: str) -> str:
    """A word from elements wherever they lie. Their order is the chip's, alike for all loads."""
    return f"""\
#include <string.h>
static inline int32_t {name}(const {type} *from)
{{
    int32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}}"""


def _saturate(bits: int) -> str:
    """The nearest number that has so many bits, with its sign."""
    limit = (1 << (bits - 1)) - 1
    low, high = -limit - 1, limit
    portable = f"a < {low} ? {low} : a > {high} ? {high} : a"
    return _dsp(f"saturate{bits}(int32_t a)", f"__ssat(a, {bits})", portable)


# c + a's low half * b's low half + a's high half * b's high half; no part may overflow.
_SMLAD = _dsp(
    "smlad(int32_t a, int32_t b, int32_t c)",
    "__smlad(a, b, c)",
    "c + (int16_t)a * (int16_t)b + (a >> 16) * (b >> 16)",
)
# Bytes 0 and 2, each as a signed 16-bit half; and bytes 1 and 3.
_SXTB16 = _dsp(
    "sxtb16(int32_t a)",
    "__sxtb16(a)",
    "(int32_t)(((uint32_t)(int8_t)(a >> 16) << 16) | (uint16_t)(int8_t)a)",
)
_SXTB16_ROR8 = _assembly(
    "sxtb16_ror8(int32_t a)",
    "sxtb16 %0, %1, ror #8",
    "(int32_t)(((uint32_t)(int8_t)(a >> 24) << 16) | (uint16_t)(int8_t)(a >> 8))",
)
# The low half of a below the low half of b; and the high half of a below that of b.
_LOW_HALVES = _assembly(
    "low_halves(int32_t a, int32_t b)",
    "pkhbt %0, %1, %2, lsl #16",
    "(int32_t)(((uint32_t)b << 16) | (uint16_t)a)",
)
_HIGH_HALVES = _assembly(
    "high_halves(int32_t a, int32_t b)",
    "pkhtb %0, %2, %1, asr #16",
    "(int32_t)(((uint32_t)b & 0xffff0000u) | ((uint32_t)a >> 16))",
)
# The bits turned right by one byte.
_ROR8 = """\
static inline int32_t ror8(int32_t a)
{
    return (int32_t)(((uint32_t)a >> 8) | ((uint32_t)a << 24));
}"""
_STRING_H = "#include <string.h>"

EXTERNS = MappingProxyType(
    {
        "smlad": _SMLAD,
        "sxtb16": _SXTB16,
        "sxtb16_ror8": _SXTB16_ROR8,
        "load4": _load("load4", "int8_t"),
        "load2": _load("load2", "int16_t"),
        "low_halves": _LOW_HALVES,
        "high_halves": _HIGH_HALVES,
        "ror8": _ROR8,
        "saturate8": _saturate(8),
        "saturate16": _saturate(16),
        "memcpy": _STRING_H,
        "memset": _STRING_H,
    }
)
