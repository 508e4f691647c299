/* m: x f32[1, 5, 16] -> first f32[1, 1, 16]. Made by butterflyc; do not edit. */
#ifndef BUTTERFLYC_M_H
#define BUTTERFLYC_M_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of working memory, aligned to 64; its contents need not be kept. */
#define M_ARENA_BYTES 1664
#define M_INPUT0_BYTES 320 /* x: f32[1, 5, 16] */
#define M_OUTPUT0_BYTES 64 /* first: f32[1, 1, 16] */

/* Computes out[] from in[]: dense row-major tensors in the order above.
   Returns 0, or -1 for a null pointer, or -2 for an arena that is not aligned. */
int m_run(const void *const *in, void *const *out, void *arena);
int m_predict(const float *input, float *output, void *arena);

/* m_run_mt computes what m_run does, to the bit, in up to so many threads. */
#define M_THREADS 2
/* Bytes of its working memory, aligned to 64. */
#define M_MT_ARENA_BYTES 2432

/* Threads that wait for work: m_run_mt has them compute with the thread that calls it. A pool
   serves any number of calls, one at a time. */
typedef struct m_pool m_pool;

/* A pool of `threads`, the caller's among them: 1 starts none. More than M_THREADS would have
   nothing to do, and are not started. NULL if the system gives no memory or no thread. */
m_pool *m_pool_create(int threads);

/* Ends the threads and frees the pool, which must not be at work; NULL does nothing. */
void m_pool_destroy(m_pool *pool);

/* As m_run, in an arena of M_MT_ARENA_BYTES. -1 also if there is no pool. In a process
   that was forked off the one that made the pool, the caller's thread computes alone. */
int m_run_mt(const void *const *in, void *const *out, void *arena, m_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
