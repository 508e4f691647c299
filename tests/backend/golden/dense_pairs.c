#include <stdint.h>

#ifndef RESTRICT
#ifdef __cplusplus
#define RESTRICT __restrict
#else
#define RESTRICT restrict
#endif
#endif

#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
static inline int32_t smlad(int32_t a, int32_t b, int32_t c) { return __smlad(a, b, c); }
#else
static inline int32_t smlad(int32_t a, int32_t b, int32_t c)
{
    return c + (int16_t)a * (int16_t)b + (a >> 16) * (b >> 16);
}
#endif

#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
static inline int32_t sxtb16(int32_t a) { return __sxtb16(a); }
#else
static inline int32_t sxtb16(int32_t a)
{
    return (int32_t)(((uint32_t)(int8_t)(a >> 16) << 16) | (uint16_t)(int8_t)a);
}
#endif

static inline int32_t ror8(int32_t a)
{
    return (int32_t)(((uint32_t)a >> 8) | ((uint32_t)a << 24));
}

#ifdef __cplusplus
extern "C" {
#endif

/* x[2][2], w[4][2], y[4] */
void dense_pairs(const int32_t *RESTRICT x, const int32_t *RESTRICT w, int32_t *RESTRICT y)
{
    for (int32_t n = 0; n < 4; ++n) {
        int32_t total = 0;
        for (int32_t k = 0; k < 2; ++k) {
            const int32_t four = w[n * 2 + k];
            total = smlad(x[k * 2 + 1], sxtb16(ror8(four)), smlad(x[k * 2], sxtb16(four), total));
        }
        y[n] = total;
    }
}

#ifdef __cplusplus
}
#endif
