#ifndef KERNELS_H
#define KERNELS_H

#include <stdint.h>

#ifndef RESTRICT
#ifdef __cplusplus
#define RESTRICT __restrict
#else
#define RESTRICT restrict
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

void requantize(const int32_t *RESTRICT x,
                const int16_t *RESTRICT multiplier,
                const int8_t *RESTRICT table,
                int8_t *RESTRICT y);
void dense_pairs(const int32_t *RESTRICT x, const int32_t *RESTRICT w, int32_t *RESTRICT y);

#ifdef __cplusplus
}
#endif

#endif
