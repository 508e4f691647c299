/* NAME-run: a compiled model on files of NumPy arrays (.npy).

     NAME-run [--repeat N] [--threads N] IN.npy... OUT.npy...

   An input of a port is one tensor of its shape; or several, with one more axis in front; or, where
   the samples of a batch do not depend on one another, a multiple of the batch. Each fault is one
   line on stderr, and a status of its own. */
#define _POSIX_C_SOURCE 200809L

#include <time.h>

#include "command-arrays.h"

#define MOST_PEEKS 256

struct peek {
  size_t at, bytes;
  const char *path;
  FILE *file;
};

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec * 1e-3;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

#if MODEL_THREADS > 1
typedef MODEL_POOL pool;

static pool *start(int64_t threads) {
  pool *made = threads > 1 ? MODEL_POOL_CREATE((int)threads) : NULL;
  if (threads > 1 && made == NULL) {
    fail(NO_THREADS, "the system does not start %" PRId64 " threads", threads);
  }
  return made;
}

static int compute(const void *const *in, void *const *out, void *arena, pool *threads) {
  return threads ? MODEL_RUN_MT(in, out, arena, threads) : MODEL_RUN(in, out, arena);
}

static void stop(pool *threads) {
  if (threads) MODEL_POOL_DESTROY(threads);
}
#else
typedef void pool;
static pool *start(int64_t threads) { return (void)threads, NULL; }
static int compute(const void *const *in, void *const *out, void *arena, pool *threads) {
  return (void)threads, MODEL_RUN(in, out, arena);
}
static void stop(pool *threads) { (void)threads; }
#endif

/* Every sample ``repeat`` times; once, without saying how long it took, if that is 0. */
static void run_all(const struct input *in, unsigned char **out, int64_t samples, int64_t repeat,
                    pool *threads, struct peek *peeks, int peek_count) {
  const int64_t rounds = repeat > 0 ? repeat : 1;
  unsigned char *arena = aligned(memory(MODEL_ARENA_BYTES, 1));
  double *times = memory((uint64_t)samples, (uint64_t)rounds * sizeof *times);
  const int64_t runs = samples * rounds;
  for (int64_t run = 0; run < runs; run++) {
    const void *from[MODEL_INPUTS + 1];
    void *to[MODEL_OUTPUTS + 1];
    size_t sample = (size_t)(run % samples);
    for (int i = 0; i < MODEL_INPUTS; i++) {
      from[i] = in[i].data + sample * (size_t)numbers(&inputs[i]) * inputs[i].item;
    }
    for (int i = 0; i < MODEL_OUTPUTS; i++) {
      to[i] = out[i] + sample * (size_t)numbers(&outputs[i]) * outputs[i].item;
    }
    double start = now();
    int status = compute(from, to, arena, threads);
    times[run] = now() - start;
    if (status != 0) {
      fail(MODEL_FAILED, "the model returned status %d for sample %zu", status, sample);
    }
    for (int i = 0; i < peek_count && run < samples; i++) {
      write_block(peeks[i].file, peeks[i].path, arena + peeks[i].at, peeks[i].bytes);
    }
  }
  if (repeat > 0) {
    qsort(times, (size_t)runs, sizeof *times, ascending);
    printf("median %.1f us, least %.1f us a run, of %" PRId64 " runs\n", times[runs / 2], times[0],
           runs);
  }
}

/* ---- the call ---- */

static void print_ports(const char *title, const struct port *ports, int count) {
  printf("\n%s\n", title);
  for (int i = 0; i < count; i++) {
    const char *shape = shape_text(ports[i].rank, ports[i].shape);
    printf("  %-16s %s %s", ports[i].name, ports[i].type, shape);
    if (ports[i].scale != 0) printf(", codes of %.9g; or float32", ports[i].scale);
    putchar('\n');
  }
}

static void help(void) {
  printf("usage: %s-run [--repeat N] [--threads N] IN.npy... OUT.npy...\n\n", MODEL_NAME);
  printf("%s for %s, compiled by butterflyc: arrays in, arrays out, as numpy.save writes them\n"
         "(C order, little endian).\n", MODEL_NAME, MODEL_TARGET);
  print_ports("inputs", inputs, MODEL_INPUTS);
  print_ports("outputs", outputs, MODEL_OUTPUTS);
  printf("\nAn input may have one more axis in front, of samples%s.\n",
         MODEL_SPLITS ? ",\nor a first axis that is a multiple of the one above" : "");
  printf("Inputs of codes may be float32; then outputs of codes are float32 as well.\n\n"
         "  --repeat N             run all N times, print microseconds a run\n"
         "  --threads N            compute in N threads, of %d that it was compiled for\n"
         "  --codes                outputs of codes stay codes\n"
         "  --peek AT BYTES FILE   after each run, add bytes of the working memory to FILE\n\n"
         "exit status: %d wrong call, %d cannot read, %d no .npy file, %d cut short or too long,\n"
         "%d Fortran order, %d wrong type, %d wrong shape, %d unequal samples, %d cannot write,\n"
         "%d disk full, %d the model failed, %d no memory, %d no threads\n",
         MODEL_THREADS, BAD_CALL, CANNOT_READ, NO_ARRAY, CUT_SHORT, FORTRAN_ORDER, WRONG_TYPE,
         WRONG_SHAPE, UNEQUAL_SAMPLES, CANNOT_WRITE, DISK_FULL, MODEL_FAILED, NO_MEMORY,
         NO_THREADS);
}

static int64_t number(const char *option, const char *text, int64_t least, int64_t most) {
  char *end;
  errno = 0;
  long long value = text ? strtoll(text, &end, 10) : 0;
  if (text == NULL || end == text || *end != 0 || errno != 0 || value < least || value > most) {
    fail(BAD_CALL, "%s takes a number of %" PRId64 " to %" PRId64 ", got %s", option, least, most,
         text ? text : "nothing");
  }
  return value;
}

/* Reads the options in front of the files; the number of words that they are. */
static int options(int count, char **words, int64_t *repeat, int64_t *threads, int *codes,
                   struct peek *peeks, int *peek_count) {
  int at = 1;
  for (; at < count && words[at][0] == '-' && words[at][1] != 0; at++) {
    if (strcmp(words[at], "--") == 0) return at + 1;
    if (strcmp(words[at], "--help") == 0) {
      help();
      exit(0);
    } else if (strcmp(words[at], "--codes") == 0) {
      *codes = 1;
    } else if (strcmp(words[at], "--repeat") == 0) {
      *repeat = number("--repeat", words[at + 1], 1, 1000000000);
      at++;
    } else if (strcmp(words[at], "--threads") == 0) {
      *threads = number("--threads", words[at + 1], 1, MODEL_THREADS);
      at++;
    } else if (strcmp(words[at], "--peek") == 0) {
      if (at + 3 >= count || *peek_count == MOST_PEEKS) {
        fail(BAD_CALL, "--peek takes AT BYTES FILE, at most %d times", MOST_PEEKS);
      }
      struct peek *peek = &peeks[(*peek_count)++];
      peek->at = (size_t)number("--peek", words[at + 1], 0, MODEL_ARENA_BYTES);
      int64_t rest = (int64_t)(MODEL_ARENA_BYTES - peek->at);
      peek->bytes = (size_t)number("--peek", words[at + 2], 0, rest);
      peek->path = words[at + 3];
      peek->file = NULL;
      at += 3;
    } else {
      fail(BAD_CALL, "unknown option %s: see --help", words[at]);
    }
  }
  return at;
}

static int64_t samples_of(const struct input *in, char **paths) {
  for (int i = 1; i < MODEL_INPUTS; i++) {
    if (in[i].samples != in[0].samples || in[i].form != in[0].form) {
      fail(UNEQUAL_SAMPLES, "%s holds %" PRId64 " samples%s, %s %" PRId64 "%s", paths[0],
           in[0].samples, in[0].form == STACKED ? " by an axis of their own" : "", paths[i],
           in[i].samples, in[i].form == STACKED ? " by an axis of their own" : "");
    }
  }
  return in[0].samples;
}

int main(int count, char **words) {
  static struct peek peeks[MOST_PEEKS];
  struct input in[MODEL_INPUTS + 1] = {{NULL, 1, ONE, 0}};
  unsigned char *out[MODEL_OUTPUTS + 1];
  int64_t repeat = 0, threads = MODEL_THREADS;
  int peek_count = 0;
  int in_codes = 0; /* asked for, or since an input came as codes: outputs stay codes */
  int at = options(count, words, &repeat, &threads, &in_codes, peeks, &peek_count);
  if (count - at != MODEL_INPUTS + MODEL_OUTPUTS) {
    fail(BAD_CALL, "takes %d files to read and %d to write, got %d: see --help", MODEL_INPUTS,
         MODEL_OUTPUTS, count - at);
  }
  char **paths = words + at;
  for (int i = 0; i < MODEL_INPUTS; i++) {
    in[i] = read_input(paths[i], &inputs[i]);
    in_codes |= inputs[i].scale != 0 && !in[i].floats;
  }
  int64_t samples = samples_of(in, paths);
  for (int i = 0; i < MODEL_OUTPUTS; i++) {
    out[i] = memory((uint64_t)samples * numbers(&outputs[i]), outputs[i].item);
  }
  for (int i = 0; i < peek_count; i++) peeks[i].file = create(peeks[i].path);
  pool *several = start(threads);
  run_all(in, out, samples, repeat, several, peeks, peek_count);
  stop(several);
  for (int i = 0; i < peek_count; i++) finish(peeks[i].file, peeks[i].path);
  for (int i = 0; i < MODEL_OUTPUTS; i++) {
    const struct port *port = &outputs[i];
    uint64_t total = (uint64_t)samples * numbers(port);
    int floats = port->scale != 0 && !in_codes;
    const void *data = floats ? (void *)decode(out[i], total, port) : (void *)out[i];
    size_t item = floats ? sizeof(float) : port->item;
    const char *descr = floats ? "<f4" : port->descr;
    write_output(paths[MODEL_INPUTS + i], port, data, (size_t)total * item, descr, in);
  }
  return 0;
}
