#include <stdint.h>

#ifndef RESTRICT
#ifdef __cplusplus
#define RESTRICT __restrict
#else
#define RESTRICT restrict
#endif
#endif

static inline int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

static inline int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }

#ifdef __cplusplus
extern "C" {
#endif

/* x[3][10], multiplier[3], table[256], y[3][10] */
void requantize(const int32_t *RESTRICT x,
                const int16_t *RESTRICT multiplier,
                const int8_t *RESTRICT table,
                int8_t *RESTRICT y)
{
    const int8_t *const table_128 = table + 128;
    for (int32_t row = 0; row < 3; ++row) {
        int32_t total = 0;
        for (int32_t k = 0; k < 10; ++k) {
            total = total + x[row * 10 + k];
        }
        if (total < 0) {
            for (int32_t k = 0; k < 10; ++k) {
                y[row * 10 + k] = 0;
            }
        } else {
            const int32_t scale = (int32_t)multiplier[row];
            for (int32_t k = 0; k < 10; ++k) {
                const int32_t scaled = (x[row * 10 + k] * scale + 256) >> 9;
                y[row * 10 + k] = table_128[(int8_t)max_i32(min_i32(scaled, 127), -127)];
            }
        }
    }
}

#ifdef __cplusplus
}
#endif
