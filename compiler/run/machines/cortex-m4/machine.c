/* QEMU's `mps2-an386` with -icount shift=7: an instruction lasts 128 ns, which is 3.2 ticks of
   the 25 MHz timer, so that rounding gives the exact count. */
#include "../machine.h"
#include "../semihosting.h"

enum { CONTROL, VALUE, RELOAD };

static volatile uint32_t *const timer = (volatile uint32_t *)0x40000000;

void machine_start(void) {
    timer[RELOAD] = 0xffffffffu;
    timer[VALUE] = 0xffffffffu;
    timer[CONTROL] = 1;
    semihosting_start();
}

uint64_t hal_instructions(void) {
    static uint32_t wraps, before;
    uint32_t now = 0xffffffffu - timer[VALUE];
    wraps += now < before;
    before = now;
    return (((uint64_t)wraps << 32 | now) * 5 + 8) >> 4;
}
