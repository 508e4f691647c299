# From reset to hal_start, and from an exception to hal_trap.
    .section .init, "ax"
    .global _start
_start:
    la sp, __stack_top
    # No access to what lies under the stack, not even from machine mode: an overflow traps.
    la t0, __guard
    srli t0, t0, 2
    li t1, 0x1ffff              # a naturally aligned region of 1 MiB
    or t0, t0, t1
    csrw pmpaddr0, t0
    li t0, 0x98                 # locked, no permission
    csrw pmpcfg0, t0
    la t0, exception
    csrw mtvec, t0
    la t0, __stack_bottom
    li t1, 0xa5a5a5a5
1:  sw t1, 0(t0)
    addi t0, t0, 4
    bltu t0, sp, 1b
    tail hal_start

    .balign 4
exception:
    la sp, __fault_stack
    csrr a0, mcause
    csrr a1, mepc
    tail hal_trap

# uintptr_t semihosting(int operation, const void *block): these three words, in one page.
    .text
    .option norvc
    .balign 16
    .global semihosting
semihosting:
    slli zero, zero, 0x1f
    ebreak
    srai zero, zero, 7
    ret
