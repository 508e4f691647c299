/* The threads of bfly_run_mt. Made by butterflyc; do not edit.

   A phase is dealt out by raising `turn`, and is over when `left` is 0. Who waits for either looks
   at it for a while, since the next phase often comes at once, and then sleeps. Before it sleeps it
   says so, then looks again; the other side changes the number first and then looks for sleepers:
   so one of them sees the other. Atomics are those of GCC and Clang, as C99 has none. */
#define _POSIX_C_SOURCE 200809L
#include "bfly.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

/* How often to look before sleeping: some tens of microseconds. */
enum { LOOKS = 2000 };

struct worker {
  bfly_pool *pool;
  pthread_t thread;
  int index; /* from 1; the caller's thread is 0 */
};

struct bfly_pool {
  int threads;   /* the caller's among them */
  pid_t process; /* which they run in */
  pthread_mutex_t mutex;
  pthread_cond_t dealt, done;
  /* What to do, or to stop: written before `turn` is raised, read after. */
  void (*phase)(const void *, int);
  const void *data;
  int parts, stop;
  /* Atomic. */
  unsigned turn;
  int left, sleepers, caller_sleeps;
  struct worker workers[];
};

void bfly_pool_run(bfly_pool *pool, void (*phase)(const void *, int), const void *data, int parts);

static void pause_a_little(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || (defined(__ARM_ARCH) && __ARM_ARCH >= 7)
  __asm__ __volatile__("yield");
#endif
}

/* Thread `index` of the pool takes every so-manieth part. */
static void compute(const bfly_pool *pool, int index) {
  for (int part = index; part < pool->parts; part += pool->threads) pool->phase(pool->data, part);
}

static void await_turn(bfly_pool *pool, unsigned turn) {
  for (int i = 0; i < LOOKS; i++) {
    if (__atomic_load_n(&pool->turn, __ATOMIC_SEQ_CST) == turn) return;
    pause_a_little();
  }
  pthread_mutex_lock(&pool->mutex);
  __atomic_add_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&pool->turn, __ATOMIC_SEQ_CST) != turn)
    pthread_cond_wait(&pool->dealt, &pool->mutex);
  __atomic_sub_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
  pthread_mutex_unlock(&pool->mutex);
}

static void *work(void *argument) {
  const struct worker *const self = (const struct worker *)argument;
  bfly_pool *const pool = self->pool;
  /* No turn is raised before all workers of the one before are done, so none is missed. */
  for (unsigned turn = 1;; turn++) {
    await_turn(pool, turn);
    if (pool->stop) return NULL;
    compute(pool, self->index);
    if (__atomic_sub_fetch(&pool->left, 1, __ATOMIC_SEQ_CST) == 0 &&
        __atomic_load_n(&pool->caller_sleeps, __ATOMIC_SEQ_CST)) {
      pthread_mutex_lock(&pool->mutex);
      pthread_cond_signal(&pool->done);
      pthread_mutex_unlock(&pool->mutex);
    }
  }
}

static void next_turn(bfly_pool *pool) {
  __atomic_add_fetch(&pool->turn, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&pool->sleepers, __ATOMIC_SEQ_CST) > 0) {
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->dealt);
    pthread_mutex_unlock(&pool->mutex);
  }
}

static void await_workers(bfly_pool *pool) {
  for (int i = 0; i < LOOKS; i++) {
    if (__atomic_load_n(&pool->left, __ATOMIC_SEQ_CST) == 0) return;
    pause_a_little();
  }
  pthread_mutex_lock(&pool->mutex);
  __atomic_store_n(&pool->caller_sleeps, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&pool->left, __ATOMIC_SEQ_CST) != 0)
    pthread_cond_wait(&pool->done, &pool->mutex);
  __atomic_store_n(&pool->caller_sleeps, 0, __ATOMIC_SEQ_CST);
  pthread_mutex_unlock(&pool->mutex);
}

/* phase(data, part) for every part below `parts`; returns when all are done. */
void bfly_pool_run(bfly_pool *pool, void (*phase)(const void *, int), const void *data, int parts) {
  if (pool->threads == 1 || pool->process != getpid()) { /* a fork has no workers */
    for (int part = 0; part < parts; part++) phase(data, part);
    return;
  }
  pool->phase = phase;
  pool->data = data;
  pool->parts = parts;
  __atomic_store_n(&pool->left, pool->threads - 1, __ATOMIC_SEQ_CST);
  next_turn(pool);
  compute(pool, 0);
  await_workers(pool);
}

/* Starts workers until there are `threads`; they leave all signals to the program's own threads. */
static void start(bfly_pool *pool, int threads) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (pool->threads < threads) {
    struct worker *const worker = &pool->workers[pool->threads - 1];
    worker->pool = pool;
    worker->index = pool->threads;
    if (pthread_create(&worker->thread, NULL, work, worker) != 0) break;
    pool->threads++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

bfly_pool *bfly_pool_create(int threads) {
  if (threads < 1) return NULL;
  if (threads > BFLY_THREADS) threads = BFLY_THREADS;
  bfly_pool *const pool =
      calloc(1, sizeof *pool + (size_t)(threads - 1) * sizeof pool->workers[0]);
  if (pool == NULL) return NULL;
  pool->threads = 1;
  pool->process = getpid();
  if (pthread_mutex_init(&pool->mutex, NULL) != 0) goto no_mutex;
  if (pthread_cond_init(&pool->dealt, NULL) != 0) goto no_dealt;
  if (pthread_cond_init(&pool->done, NULL) != 0) goto no_done;
  start(pool, threads);
  if (pool->threads == threads) return pool;
  bfly_pool_destroy(pool);
  return NULL;
no_done:
  pthread_cond_destroy(&pool->dealt);
no_dealt:
  pthread_mutex_destroy(&pool->mutex);
no_mutex:
  free(pool);
  return NULL;
}

void bfly_pool_destroy(bfly_pool *pool) {
  if (pool == NULL) return;
  if (pool->process == getpid()) { /* in a fork there is nobody to wait for */
    pool->stop = 1;
    next_turn(pool);
    for (int i = 0; i < pool->threads - 1; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->dealt);
    pthread_mutex_destroy(&pool->mutex);
  }
  free(pool);
}
