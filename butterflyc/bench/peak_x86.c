/* What one core of an AVX2 machine can do at best, as multiply-accumulates: the yardstick for
   kernels. Each function issues `count` rounds of independent instructions and nothing else. */
#include <immintrin.h>

#define STEP(total, product)                                                                       \
  "vpmaddubsw %%ymm0, %%ymm1, %%ymm" product "\n"                                                  \
  "vpaddw %%ymm" product ", %%ymm" total ", %%ymm" total "\n"
#define FMA(total) "vfmadd231ps %%ymm0, %%ymm1, %%ymm" total "\n"

/* int8 by 2-bit codes into int16: 8 x (vpmaddubsw, vpaddw), 32 products each. */
long peak_ternary(long count) {
  for (long i = 0; i < count; i++)
    __asm__ volatile(STEP("2", "10") STEP("3", "11") STEP("4", "12") STEP("5", "13")
                     STEP("6", "10") STEP("7", "11") STEP("8", "12") STEP("9", "13") ::
                         : "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10",
                           "ymm11", "ymm12", "ymm13");
  return count * 8 * 32;
}

/* float32: 10 independent FMAs of 8 products. */
long peak_float(long count) {
  __asm__ volatile("vxorps %%ymm0, %%ymm0, %%ymm0\nvxorps %%ymm1, %%ymm1, %%ymm1\n"
                   "vxorps %%ymm2, %%ymm2, %%ymm2\nvxorps %%ymm3, %%ymm3, %%ymm3\n"
                   "vxorps %%ymm4, %%ymm4, %%ymm4\nvxorps %%ymm5, %%ymm5, %%ymm5\n"
                   "vxorps %%ymm6, %%ymm6, %%ymm6\nvxorps %%ymm7, %%ymm7, %%ymm7\n"
                   "vxorps %%ymm8, %%ymm8, %%ymm8\nvxorps %%ymm9, %%ymm9, %%ymm9\n"
                   "vxorps %%ymm10, %%ymm10, %%ymm10\nvxorps %%ymm11, %%ymm11, %%ymm11\n" ::
                       : "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8",
                         "ymm9", "ymm10", "ymm11");
  for (long i = 0; i < count; i++)
    __asm__ volatile(FMA("2") FMA("3") FMA("4") FMA("5") FMA("6") FMA("7") FMA("8") FMA("9")
                         FMA("10") FMA("11") ::
                             : "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9",
                               "ymm10", "ymm11");
  return count * 10 * 8;
}
