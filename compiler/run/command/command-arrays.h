/* Files of NumPy arrays (.npy), read as a model's inputs and written as its outputs.

   command-model.h, which butterflyc writes, has the model's name and the table of its ports. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MOST_AXES 64
#define MOST_HEADER (1u << 20)
#define ALIGNMENT 64

struct port {
  const char *name;
  const char *descr; /* of NumPy: "<f4" */
  const char *type;  /* for people: "float32" */
  size_t item;       /* bytes of a number */
  double scale;      /* what a code stands for; 0 if numbers stand for themselves */
  int rank;
  int64_t shape[MOST_AXES];
};

#include "command-model.h"

enum status {
  BAD_CALL = 2,
  CANNOT_READ,
  NO_ARRAY,
  CUT_SHORT,
  FORTRAN_ORDER,
  WRONG_TYPE,
  WRONG_SHAPE,
  UNEQUAL_SAMPLES,
  CANNOT_WRITE,
  DISK_FULL,
  MODEL_FAILED,
  NO_MEMORY,
  NO_THREADS
};

/* How the tensors of an input are put together. */
enum form { ONE, STACKED, BATCHED };

struct array {
  char descr[16];
  int fortran;
  int rank;
  int64_t shape[MOST_AXES];
};

/* An input as the model takes it: so many samples, one after another. */
struct input {
  unsigned char *data;
  int64_t samples;
  enum form form;
  int floats; /* for a port of codes: they came as floats */
};

static void fail(enum status status, const char *format, ...) {
  va_list words;
  va_start(words, format);
  fprintf(stderr, "%s-run: ", MODEL_NAME);
  vfprintf(stderr, format, words);
  fputc('\n', stderr);
  va_end(words);
  exit(status);
}

static void *memory(uint64_t count, uint64_t size) {
  void *block = NULL;
  if (size == 0 || count <= (SIZE_MAX - ALIGNMENT) / size) {
    block = malloc((size_t)(count * size) + ALIGNMENT);
  }
  if (block == NULL) {
    fail(NO_MEMORY, "there is no memory for %" PRIu64 " x %" PRIu64 " bytes", count, size);
  }
  return block;
}

static unsigned char *aligned(void *block) {
  return (unsigned char *)block + (ALIGNMENT - (uintptr_t)block % ALIGNMENT) % ALIGNMENT;
}

static uint64_t numbers(const struct port *port) {
  uint64_t count = 1;
  for (int i = 0; i < port->rank; i++) count *= (uint64_t)port->shape[i];
  return count;
}

/* "[1, 8, 8]"; of a shape that is too long for a line, its beginning. */
static const char *shape_text(int rank, const int64_t *shape) {
  static char texts[2][256];
  static int which;
  char *text = texts[which ^= 1];
  size_t at = 1;
  strcpy(text, "[");
  for (int i = 0; i < rank && at < sizeof texts[0] - 32; i++) {
    at += (size_t)sprintf(text + at, "%s%" PRId64, i ? ", " : "", shape[i]);
  }
  strcpy(text + at, "]");
  return text;
}

/* ---- reading ---- */

static void read_exactly(FILE *file, const char *path, void *to, size_t bytes, const char *what) {
  if (bytes == 0 || fread(to, 1, bytes, file) == bytes) return;
  if (ferror(file)) fail(CANNOT_READ, "cannot read %s: %s", path, strerror(errno));
  fail(CUT_SHORT, "%s is cut short in %s", path, what);
}

/* What stands behind 'key': in the header, which is a Python dict. */
static const char *value_of(const char *header, const char *key) {
  const char *at = strstr(header, key);
  if (at == NULL) return "";
  at += strlen(key);
  return at + strspn(at, " :");
}

static int parse_shape(const char *text, struct array *array) {
  if (*text++ != '(') return 0;
  for (;;) {
    text += strspn(text, " ,");
    if (*text == ')') return 1;
    if (*text < '0' || *text > '9' || array->rank == MOST_AXES) return 0;
    char *end;
    errno = 0;
    array->shape[array->rank++] = (int64_t)strtoll(text, &end, 10);
    if (errno != 0) return 0;
    text = end;
  }
}

static int parse_header(const char *header, struct array *array) {
  const char *descr = value_of(header, "'descr'");
  const char *order = value_of(header, "'fortran_order'");
  if (*descr == '[') { /* a record of several fields */
    strcpy(array->descr, "a record");
  } else {
    size_t length = *descr == '\'' ? strcspn(descr + 1, "'") : sizeof array->descr;
    if (length >= sizeof array->descr) return 0;
    memcpy(array->descr, descr + 1, length);
  }
  array->fortran = strncmp(order, "True", 4) == 0;
  if (!array->fortran && strncmp(order, "False", 5) != 0) return 0;
  return parse_shape(value_of(header, "'shape'"), array);
}

static struct array read_header(FILE *file, const char *path) {
  struct array array = {{0}, 0, 0, {0}};
  unsigned char magic[8], size[4] = {0};
  size_t got = fread(magic, 1, sizeof magic, file);
  if (ferror(file)) fail(CANNOT_READ, "cannot read %s: %s", path, strerror(errno));
  if (got < sizeof magic || memcmp(magic, "\x93NUMPY", 6) != 0) {
    fail(NO_ARRAY, "%s is no .npy file: write it with numpy.save", path);
  }
  if (magic[6] < 1 || magic[6] > 3) {
    fail(NO_ARRAY, "%s has version %d of the .npy format, 1 to 3 are known", path, magic[6]);
  }
  read_exactly(file, path, size, magic[6] == 1 ? 2 : 4, "its header");
  uint32_t length = size[0] | (uint32_t)size[1] << 8;
  length |= (uint32_t)size[2] << 16 | (uint32_t)size[3] << 24;
  if (length > MOST_HEADER) fail(NO_ARRAY, "%s has a header of %" PRIu32 " bytes", path, length);
  char *header = memory(length + 1, 1);
  read_exactly(file, path, header, length, "its header");
  header[length] = 0;
  if (!parse_header(header, &array)) {
    fail(NO_ARRAY, "%s has a header that is none of NumPy's", path);
  }
  free(header);
  return array;
}

/* Whether ``tail`` axes at the end are those of the port. */
static int same_end(const struct array *array, const struct port *port, int tail) {
  const int64_t *end = array->shape + (array->rank - tail);
  const int64_t *wanted = port->shape + (port->rank - tail);
  return memcmp(end, wanted, (size_t)tail * sizeof *end) == 0;
}

static void find_form(const struct array *array, const struct port *port, const char *path,
                      struct input *input) {
  int rank = port->rank;
  int64_t first = array->rank ? array->shape[0] : 0, batch = rank ? port->shape[0] : 0;
  input->samples = 1;
  input->form = ONE;
  if (array->rank == rank && same_end(array, port, rank)) return;
  if (array->rank == rank + 1 && same_end(array, port, rank) && first > 0) {
    input->form = STACKED;
    input->samples = first;
    return;
  }
  if (MODEL_SPLITS && array->rank == rank && batch > 0 && first > 0 && first % batch == 0 &&
      same_end(array, port, rank - 1)) {
    input->form = BATCHED;
    input->samples = first / batch;
    return;
  }
  fail(WRONG_SHAPE, "%s has shape %s, input %s takes %s, or one more axis in front%s", path,
       shape_text(array->rank, array->shape), port->name, shape_text(rank, port->shape),
       MODEL_SPLITS ? ", or a first axis that is a multiple of it" : "");
}

/* One byte has no order, and NumPy writes "|i1" for it. */
static int same_type(const char *descr, const struct port *port) {
  int skipped = port->item == 1 && strchr("|<=>", descr[0]) != NULL;
  return strcmp(descr + skipped, port->descr + skipped) == 0;
}

/* The nearest code, halves to even; the ends for what lies beyond them, 0 for what is no number. */
static int code_of(double real, double scale, int limit) {
  double value = real / scale;
  if (value != value) return 0;
  if (value >= limit) return limit;
  if (value <= -limit) return -limit;
  int low = (int)value - (value < (int)value);
  double above = value - low;
  return low + (above > 0.5 || (above == 0.5 && low % 2 != 0));
}

static void encode(const float *reals, unsigned char *codes, uint64_t count,
                   const struct port *port) {
  for (uint64_t i = 0; i < count; i++) {
    int code = code_of(reals[i], port->scale, port->item == 1 ? INT8_MAX : INT16_MAX);
    int8_t narrow = (int8_t)code;
    int16_t wide = (int16_t)code;
    memcpy(codes + i * port->item, port->item == 1 ? (void *)&narrow : (void *)&wide, port->item);
  }
}

static struct input read_input(const char *path, const struct port *port) {
  struct input input;
  FILE *file = fopen(path, "rb");
  if (file == NULL) fail(CANNOT_READ, "cannot read %s: %s", path, strerror(errno));
  struct array array = read_header(file, path);
  input.floats = port->scale != 0 && strcmp(array.descr, "<f4") == 0;
  if (!input.floats && !same_type(array.descr, port)) {
    fail(WRONG_TYPE, "%s holds %s, input %s takes %s (%s)%s", path, array.descr, port->name,
         port->descr, port->type, port->scale != 0 ? " or <f4 (float32)" : "");
  }
  if (array.fortran && array.rank > 1) {
    fail(FORTRAN_ORDER, "%s is in Fortran order: save numpy.ascontiguousarray(x)", path);
  }
  find_form(&array, port, path, &input);
  uint64_t count = numbers(port), item = input.floats ? sizeof(float) : port->item;
  if (count != 0 && (uint64_t)input.samples > UINT64_MAX / 16 / count) {
    fail(NO_MEMORY, "%s says that it holds %" PRId64 " samples", path, input.samples);
  }
  count *= (uint64_t)input.samples;
  input.data = memory(count, item);
  read_exactly(file, path, input.data, (size_t)(count * item), "its numbers");
  if (fgetc(file) != EOF) fail(CUT_SHORT, "%s goes on behind its numbers", path);
  fclose(file);
  if (input.floats) {
    unsigned char *codes = memory(count, port->item);
    encode((const float *)(void *)input.data, codes, count, port);
    free(input.data);
    input.data = codes;
  }
  return input;
}

/* ---- writing ---- */

/* A regular file is not left behind half written; a device is not ours to remove. */
static void cannot_write(const char *path, int error) {
  struct stat about;
  if (stat(path, &about) == 0 && S_ISREG(about.st_mode)) remove(path);
  if (error == ENOSPC) fail(DISK_FULL, "cannot write %s: the disk is full", path);
  fail(CANNOT_WRITE, "cannot write %s: %s", path, strerror(error));
}

static FILE *create(const char *path) {
  FILE *file = fopen(path, "wb");
  if (file == NULL) fail(CANNOT_WRITE, "cannot write %s: %s", path, strerror(errno));
  return file;
}

static void write_block(FILE *file, const char *path, const void *block, size_t bytes) {
  if (bytes > 0 && fwrite(block, 1, bytes, file) != bytes) cannot_write(path, errno);
}

static void finish(FILE *file, const char *path) {
  if (fflush(file) != 0 || fclose(file) != 0) cannot_write(path, errno);
}

static void write_output(const char *path, const struct port *port, const void *data, size_t bytes,
                         const char *descr, const struct input *like) {
  char header[64 + 24 * MOST_AXES];
  size_t at = (size_t)sprintf(header, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
  if (like->form == STACKED) at += (size_t)sprintf(header + at, "%" PRId64 ", ", like->samples);
  for (int i = 0; i < port->rank; i++) {
    int64_t length = port->shape[i] * (i == 0 && like->form == BATCHED ? like->samples : 1);
    at += (size_t)sprintf(header + at, "%" PRId64 ", ", length);
  }
  at += (size_t)sprintf(header + at, "), }");
  /* NumPy starts the numbers at a multiple of 64, behind a line's end. */
  size_t length = (10 + at + 1 + 63) / 64 * 64 - 10;
  unsigned char start[10] = "\x93NUMPY\1\0";
  start[8] = (unsigned char)(length % 256);
  start[9] = (unsigned char)(length / 256);
  FILE *file = create(path);
  write_block(file, path, start, sizeof start);
  write_block(file, path, header, at);
  for (; at < length - 1; at++) write_block(file, path, " ", 1);
  write_block(file, path, "\n", 1);
  write_block(file, path, data, bytes);
  finish(file, path);
}

static float *decode(const unsigned char *codes, uint64_t count, const struct port *port) {
  float *reals = memory(count, sizeof *reals);
  for (uint64_t i = 0; i < count; i++) {
    int8_t narrow = 0;
    int16_t wide = 0;
    memcpy(port->item == 1 ? (void *)&narrow : (void *)&wide, codes + i * port->item, port->item);
    reals[i] = (float)((port->item == 1 ? narrow : wide) * port->scale);
  }
  return reals;
}
