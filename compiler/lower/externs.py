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
        "ror8": _ROR8,
        "memcpy": _STRING_H,
        "memset": _STRING_H,
    }
)
