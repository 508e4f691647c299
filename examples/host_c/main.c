/* Classifies one digit with a compiled ButterflyViT: no Python, no torch, no malloc.

     butterflyc compile models/digits.safetensors --name digits -o out
     cc -std=c99 -O2 main.c -Iout -Lout -ldigits -Wl,-rpath,out -o classify
     ./classify < image.txt        64 numbers 0..16, row by row

   In several threads: compile the model with --threads 4, and this with -DTHREADS=4.
*/
#include <stdio.h>

#include "digits.h"

#if defined(__GNUC__)
#define ALIGNED64 __attribute__((aligned(64)))
#else
#error "align the arena to 64 bytes in your compiler's way"
#endif

#ifdef THREADS
static unsigned char arena[DIGITS_MT_ARENA_BYTES] ALIGNED64;

static int predict(const float *pixels, float *logits) {
  const void *const in[1] = {pixels};
  void *const out[1] = {logits};
  digits_pool *const pool = digits_pool_create(THREADS); /* once, for any number of calls */
  const int status = digits_run_mt(in, out, arena, pool);
  digits_pool_destroy(pool);
  return status;
}
#else
static unsigned char arena[DIGITS_ARENA_BYTES] ALIGNED64;

static int predict(const float *pixels, float *logits) {
  return digits_predict(pixels, logits, arena);
}
#endif

int main(void) {
  float pixels[DIGITS_INPUT0_BYTES / sizeof(float)];
  float logits[DIGITS_OUTPUT0_BYTES / sizeof(float)];
  const int pixel_count = (int)(sizeof pixels / sizeof *pixels);
  const int class_count = (int)(sizeof logits / sizeof *logits);
  int best = 0;

  for (int i = 0; i < pixel_count; i++) {
    if (scanf("%f", &pixels[i]) != 1) {
      fprintf(stderr, "expected %d numbers, got %d\n", pixel_count, i);
      return 2;
    }
    pixels[i] /= 16.0f;
  }
  if (predict(pixels, logits) != 0) return 1;
  for (int i = 1; i < class_count; i++)
    if (logits[i] > logits[best]) best = i;
  printf("%d\n", best);
  return 0;
}
