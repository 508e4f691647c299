"""C text of every function that a kernel may call by name when it is printed as C.

A kernel calls one by ``T.call_pure_extern(dtype, name, ...)``. The text defines it for every
compiler, so a kernel for one chip's instructions can be run and checked on any other.
"""

from __future__ import annotations

from types import MappingProxyType

# c + a's low half * b's low half + a's high half * b's high half; no part may overflow.
_SMLAD = """\
#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
static inline int32_t smlad(int32_t a, int32_t b, int32_t c) { return __smlad(a, b, c); }
#else
static inline int32_t smlad(int32_t a, int32_t b, int32_t c)
{
    return c + (int16_t)a * (int16_t)b + (a >> 16) * (b >> 16);
}
#endif"""

# Bytes 0 and 2, each as a signed 16-bit half.
_SXTB16 = """\
#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
static inline int32_t sxtb16(int32_t a) { return __sxtb16(a); }
#else
static inline int32_t sxtb16(int32_t a)
{
    return (int32_t)(((uint32_t)(int8_t)(a >> 16) << 16) | (uint16_t)(int8_t)a);
}
#endif"""

# Bytes 1 and 3, each as a signed 16-bit half: one instruction, which compilers do not find.
_SXTB16_ROR8 = """\
#if defined(__ARM_FEATURE_DSP) && defined(__GNUC__)
static inline int32_t sxtb16_ror8(int32_t a)
{
    int32_t b;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(b) : "r"(a));
    return b;
}
#else
static inline int32_t sxtb16_ror8(int32_t a)
{
    return (int32_t)(((uint32_t)(int8_t)(a >> 24) << 16) | (uint16_t)(int8_t)(a >> 8));
}
#endif"""

# The low half of a below the low half of b; and the high half of a below that of b.
_PKHBT = """\
#if defined(__ARM_FEATURE_DSP) && defined(__GNUC__)
static inline int32_t low_halves(int32_t a, int32_t b)
{
    int32_t c;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(c) : "r"(a), "r"(b));
    return c;
}
#else
static inline int32_t low_halves(int32_t a, int32_t b)
{
    return (int32_t)(((uint32_t)b << 16) | (uint16_t)a);
}
#endif"""
_PKHTB = """\
#if defined(__ARM_FEATURE_DSP) && defined(__GNUC__)
static inline int32_t high_halves(int32_t a, int32_t b)
{
    int32_t c;
    __asm__("pkhtb %0, %2, %1, asr #16" : "=r"(c) : "r"(a), "r"(b));
    return c;
}
#else
static inline int32_t high_halves(int32_t a, int32_t b)
{
    return (int32_t)(((uint32_t)b & 0xffff0000u) | ((uint32_t)a >> 16));
}
#endif"""

# Two 16-bit numbers, one behind the other.
_LOAD2 = """\
#include <string.h>
static inline int32_t load2(const int16_t *numbers)
{
    int32_t two;
    memcpy(&two, numbers, sizeof two);
    return two;
}"""

# Four bytes, wherever they lie; in which order does not matter where all are loaded so.
_LOAD4 = """\
#include <string.h>
static inline int32_t load4(const int8_t *bytes)
{
    int32_t four;
    memcpy(&four, bytes, sizeof four);
    return four;
}"""

# The bits turned right by one byte.
_ROR8 = """\
static inline int32_t ror8(int32_t a)
{
    return (int32_t)(((uint32_t)a >> 8) | ((uint32_t)a << 24));
}"""

_STRING_H = "#include <string.h>"


def _saturate(bits: int) -> str:
    """The nearest number that has so many bits, with its sign."""
    limit = (1 << (bits - 1)) - 1
    return f"""\
#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
static inline int32_t saturate{bits}(int32_t a) {{ return __ssat(a, {bits}); }}
#else
static inline int32_t saturate{bits}(int32_t a)
{{
    return a < {-limit - 1} ? {-limit - 1} : a > {limit} ? {limit} : a;
}}
#endif"""


EXTERNS = MappingProxyType(
    {
        "smlad": _SMLAD,
        "sxtb16": _SXTB16,
        "sxtb16_ror8": _SXTB16_ROR8,
        "load4": _LOAD4,
        "load2": _LOAD2,
        "low_halves": _PKHBT,
        "high_halves": _PKHTB,
        "ror8": _ROR8,
        "saturate8": _saturate(8),
        "saturate16": _saturate(16),
        "memcpy": _STRING_H,
        "memset": _STRING_H,
    }
)
