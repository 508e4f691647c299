/* QEMU's `virt` with -icount shift=0: an instruction is a nanosecond, and minstret counts them. */
#include "../machine.h"
#include "../semihosting.h"

void machine_start(void) {
    semihosting_start();
}

uint64_t hal_instructions(void) {
    uint32_t high, low, again;
    do
        __asm__ volatile("csrr %0, minstreth\n csrr %1, minstret\n csrr %2, minstreth"
                         : "=r"(high), "=r"(low), "=r"(again)
                         :
                         : "memory");
    while (high != again);
    return (uint64_t)high << 32 | low;
}
