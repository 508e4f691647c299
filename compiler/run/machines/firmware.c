/* Runs a compiled model on each of some samples and writes what it finds, in frames: a kind and the
   bytes of payload, of 32 bits each, the payload, a CRC-32 of these. ../qemu.py reads them, and
   makes firmware-model.h and the samples, which lie one behind the other. */
#include "firmware-model.h"
#include "hal.h"

enum { SAMPLE = 0x504d4153, END = 0x20444e45 }; /* "SAMP", "END " */
enum { BYTE = 0xa7 };                           /* what no model may rely on */

typedef int (*Model)(const void *const *in, void *const *out, void *arena);

extern const unsigned char __samples[];
extern const uint32_t __sample_count[];

/* One more than there are, since there may be none. */
static const size_t input_bytes[] = {INPUT_BYTES 0}, output_bytes[] = {OUTPUT_BYTES 0};
static const void *in[MODEL_INPUTS + 1];
static void *out[MODEL_OUTPUTS + 1];
static unsigned char arena[MODEL_ARENA_BYTES + 64] __attribute__((aligned(64)));
static unsigned char outputs[TOTAL_OUTPUT_BYTES + 8] __attribute__((aligned(8)));

#ifdef MODEL_STEPS
/* The counter at the start and after each step. A 32-bit clock is also read often enough so. */
static uint64_t ticks[MODEL_STEPS + 1];

/* Not inlined: main measures what the model's calls of it cost. */
__attribute__((noinline)) void MODEL_TICK(int done) {
    ticks[done] = hal_instructions();
}
#endif

static uint32_t crc;

static void put(const void *bytes, size_t size) {
    const unsigned char *next = bytes;
    for (size_t i = 0; i < size; i++) {
        crc ^= next[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
    }
    hal_write(bytes, size);
}

static void start_frame(uint32_t kind, size_t size) {
    const uint32_t head[2] = {kind, (uint32_t)size};
    crc = 0xffffffffu;
    put(head, sizeof head);
}

static void end_frame(void) {
    const uint32_t check = ~crc;
    hal_write(&check, sizeof check);
}

static void fill(unsigned char *bytes, size_t size) {
    for (size_t i = 0; i < size; i++)
        ((volatile unsigned char *)bytes)[i] = BYTE;
}

static int nothing(const void *const *i, void *const *o, void *a) {
    (void)i, (void)o, (void)a;
    return 0;
}

/* The compiler must not know which one is called, so that both calls cost the same. */
static Model volatile model = nothing;

/* Steps are counted from where the run is, so that all of them make up the run. */
static uint64_t counted(int *status) {
#ifdef MODEL_STEPS
    MODEL_TICK(0);
    *status = model(in, out, arena);
    return hal_instructions() - ticks[0];
#else
    const uint64_t start = hal_instructions();
    *status = model(in, out, arena);
    return hal_instructions() - start;
#endif
}

/* Status, instructions of the run and bytes of stack; outputs; the counter after each step. */
static int run_sample(const unsigned char *sample, uint64_t nothing_cost) {
    unsigned char *result = outputs;
    int status;
    for (int i = 0; i < MODEL_INPUTS; sample += input_bytes[i++])
        in[i] = sample;
    for (int i = 0; i < MODEL_OUTPUTS; result += output_bytes[i++])
        out[i] = result;
    fill(arena, sizeof arena);
    fill(outputs, sizeof outputs);
    uint64_t found[3];
    found[1] = counted(&status) - nothing_cost;
    found[0] = (uint64_t)(int64_t)status;
    found[2] = hal_stack_bytes();
#ifdef MODEL_STEPS
    start_frame(SAMPLE, sizeof found + TOTAL_OUTPUT_BYTES + sizeof ticks);
#else
    start_frame(SAMPLE, sizeof found + TOTAL_OUTPUT_BYTES);
#endif
    put(found, sizeof found);
    put(outputs, TOTAL_OUTPUT_BYTES);
#ifdef MODEL_STEPS
    put(ticks, sizeof ticks);
#endif
    end_frame();
    return status;
}

int main(void) {
    uint64_t tick_cost = 0;
    int status;
    counted(&status); /* so that the next one finds all as the model will */
    const uint64_t nothing_cost = counted(&status);
#ifdef MODEL_STEPS
    MODEL_TICK(0);
    MODEL_TICK(1);
    tick_cost = ticks[1] - ticks[0];
#endif
    model = MODEL_RUN;
    for (uint32_t i = 0; i < __sample_count[0]; i++)
        if (run_sample(__samples + (size_t)i * SAMPLE_BYTES, nothing_cost) != 0)
            break;
    start_frame(END, sizeof tick_cost);
    put(&tick_cost, sizeof tick_cost);
    end_frame();
    return 0;
}
