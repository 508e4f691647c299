/* Tests of pool.c: prints "ok", or what went wrong. The argument says which. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bfly.h"

void bfly_pool_run(bfly_pool *pool, void (*phase)(const void *, int), const void *data, int parts);

#define FAIL(...) (printf(__VA_ARGS__), exit(1))
enum { PARTS = BFLY_THREADS, PHASES = 300 };

void *may_calloc(size_t count, size_t size);
int may_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes);
int may_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attributes);
int may_create(pthread_t *made, const pthread_attr_t *attributes, void *(*run)(void *), void *x);

/* Each phase adds what the parts beside it left in the phase before: plain memory, which is right
   only if a phase sees all of the one before it. */
struct ring {
  uint32_t values[2][PARTS];
  int phase;
};

static void step(const void *data, int part) {
  struct ring *const ring = (struct ring *)data;
  const uint32_t *const before = ring->values[ring->phase % 2];
  uint32_t *const after = ring->values[(ring->phase + 1) % 2];
  after[part] = before[part] * 3 + before[(part + 1) % PARTS] + before[(part + PARTS - 1) % PARTS];
}

static void go_round(bfly_pool *pool, struct ring *ring, int nap) {
  for (int part = 0; part < PARTS; part++) ring->values[0][part] = (uint32_t)part + 1;
  for (ring->phase = 0; ring->phase < PHASES; ring->phase++) {
    const struct timespec moment = {0, 1000 * 1000};
    if (nap && ring->phase % 50 == 0) nanosleep(&moment, NULL); /* workers fall asleep */
    if (pool) bfly_pool_run(pool, step, ring, PARTS);
    else for (int part = 0; part < PARTS; part++) step(ring, part);
  }
}

static void check(bfly_pool *pool, int nap) {
  struct ring wanted, found;
  go_round(NULL, &wanted, 0);
  go_round(pool, &found, nap);
  if (memcmp(wanted.values, found.values, sizeof wanted.values) != 0) FAIL("other values\n");
}

static bfly_pool *create(int threads) {
  bfly_pool *const pool = bfly_pool_create(threads);
  if (pool == NULL) FAIL("no pool of %d threads\n", threads);
  return pool;
}

static int tasks(void) {
  char line[256];
  int count = -1;
  FILE *const status = fopen("/proc/self/status", "r");
  while (status && fgets(line, sizeof line, status)) sscanf(line, "Threads: %d", &count);
  if (status) fclose(status);
  return count;
}

/* A thread that was joined may be counted for a moment more. */
static void expect_tasks(int wanted) {
  const struct timespec moment = {0, 1000 * 1000};
  for (int i = 0; i < 2000 && tasks() != wanted; i++) nanosleep(&moment, NULL);
  if (tasks() != wanted) FAIL("%d tasks, %d wanted\n", tasks(), wanted);
}

static void sizes(void) {
  bfly_pool_destroy(create(2)); /* ThreadSanitizer starts a thread of its own with the first one */
  nanosleep(&(struct timespec){0, 10 * 1000 * 1000}, NULL);
  const int others = tasks() - 1;
  for (int threads = 1; threads <= PARTS + 3; threads++) {
    bfly_pool *const pool = create(threads);
    expect_tasks(others + (threads < PARTS ? threads : PARTS));
    check(pool, 0);
    check(pool, 1);
    bfly_pool_destroy(pool);
  }
  bfly_pool_destroy(create(3)); /* before its threads had anything to do */
  bfly_pool_destroy(NULL);
  if (bfly_pool_create(0) != NULL || bfly_pool_create(-1) != NULL) FAIL("a pool of no threads\n");
}

static void *alone(void *argument) {
  bfly_pool *const pool = create(3);
  for (int i = 0; i < 5; i++) check(pool, i % 2);
  bfly_pool_destroy(pool);
  return argument;
}

static void two(void) {
  pthread_t other;
  if (pthread_create(&other, NULL, alone, NULL) != 0) FAIL("no thread\n");
  alone(NULL);
  pthread_join(other, NULL);
}

static void forked(void) {
  bfly_pool *const pool = create(3);
  int status = 1;
  check(pool, 0);
  const pid_t child = fork();
  if (child == 0) {
    check(pool, 0); /* by this thread alone */
    bfly_pool *const own = create(2);
    check(own, 1);
    bfly_pool_destroy(own);
    bfly_pool_destroy(pool); /* waits for nobody */
    fflush(stdout);
    _exit(0);
  }
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) FAIL("the fork failed\n");
  check(pool, 1);
  bfly_pool_destroy(pool);
}

static void sleeping(void) {
  struct timespec used[2];
  const struct timespec moment = {0, 300 * 1000 * 1000};
  bfly_pool *const pool = create(4);
  check(pool, 0);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used[0]);
  nanosleep(&moment, NULL);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used[1]);
  const double spent = (double)(used[1].tv_sec - used[0].tv_sec) +
                       1e-9 * (double)(used[1].tv_nsec - used[0].tv_nsec);
  if (spent > 0.1) FAIL("idle threads computed for %g s of 0.3 s\n", spent);
  bfly_pool_destroy(pool);
}

/* What pool.c calls in the system's place: the call after `calls_left` others fails. */
static int calls_left = -1;

static int fails(void) {
  return calls_left >= 0 && calls_left-- == 0;
}

void *may_calloc(size_t count, size_t size) {
  return fails() ? NULL : calloc(count, size);
}

int may_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes) {
  return fails() ? 12 : pthread_mutex_init(mutex, attributes);
}

int may_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attributes) {
  return fails() ? 12 : pthread_cond_init(cond, attributes);
}

int may_create(pthread_t *made, const pthread_attr_t *attributes, void *(*run)(void *), void *x) {
  return fails() ? 11 : pthread_create(made, attributes, run, x);
}

/* Creating fails at each place, one after another; what was made before is undone. */
static void failing(void) {
  bfly_pool_destroy(create(2));
  nanosleep(&(struct timespec){0, 10 * 1000 * 1000}, NULL);
  const int before = tasks();
  const int places = 4 + PARTS - 1; /* memory, a mutex, two conditions, the workers */
  for (int place = 0; place < places; place++) {
    calls_left = place;
    if (bfly_pool_create(PARTS) != NULL) FAIL("made although call %d failed\n", place);
    expect_tasks(before);
  }
  calls_left = places;
  bfly_pool_destroy(create(PARTS));
}

/* With less and less memory creating fails at every place; what was made before is undone. */
static void limits(void) {
  int failed = 0, made = 0;
  const int before = tasks();
  FILE *const file = fopen("/proc/self/statm", "r");
  unsigned long pages = 0;
  if (file == NULL || fscanf(file, "%lu", &pages) != 1) FAIL("no statm\n");
  fclose(file);
  const unsigned long now = pages * (unsigned long)sysconf(_SC_PAGESIZE);
  for (unsigned long more = 0; more < 64UL << 20; more += 4UL << 20) {
    const struct rlimit limit = {now + more, RLIM_INFINITY};
    if (setrlimit(RLIMIT_AS, &limit) != 0) FAIL("no limit\n");
    bfly_pool *const pool = bfly_pool_create(PARTS);
    if (pool == NULL) failed++;
    else made++, check(pool, 0), bfly_pool_destroy(pool);
    expect_tasks(before);
  }
  if (!failed || !made) FAIL("%d failed, %d made\n", failed, made);
}

int main(int count, char **words) {
  static const struct { const char *name; void (*run)(void); } tests[] = {
      {"sizes", sizes},       {"two", two},         {"forked", forked},
      {"sleeping", sleeping}, {"failing", failing}, {"limits", limits}};
  for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++)
    if (count == 2 && strcmp(words[1], tests[i].name) == 0) {
      tests[i].run();
      printf("ok\n");
      return 0;
    }
  return 2;
}
