/* QEMU's `sim` with -icount shift=6: an instruction lasts 64 ns, which is 2.56 ticks of the 40 MHz
   CCOUNT, so that rounding the ticks since a first reading gives the exact count. */
#include "../machine.h"

enum { SYS_EXIT = 1, SYS_WRITE = 4, STANDARD_OUTPUT = 1 };

int simcall(int operation, int a, int b, int c);

static uint32_t first;

static uint32_t ccount(void) {
    uint32_t now;
    __asm__ volatile("rsr %0, ccount" : "=r"(now) : : "memory");
    return now;
}

void machine_start(void) {
    first = ccount();
}

size_t machine_write(const void *bytes, size_t size) {
    int written = simcall(SYS_WRITE, STANDARD_OUTPUT, (int)bytes, (int)size);
    return written > 0 ? (size_t)written : 0;
}

void machine_exit(int status) {
    for (;;)
        simcall(SYS_EXIT, status, 0, 0);
}

uint64_t hal_instructions(void) {
    static uint32_t wraps, before;
    uint32_t now = ccount() - first;
    wraps += now < before;
    before = now;
    return (((uint64_t)wraps << 32 | now) * 25 + 32) >> 6;
}
