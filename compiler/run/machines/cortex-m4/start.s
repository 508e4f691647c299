@ From reset to hal_start, and from an exception to hal_trap.
    .syntax unified
    .cpu cortex-m4
    .thumb

    .section .init, "a"
    .word __stack_top
    .word _start
    .rept 14
    .word exception
    .endr

    .text
    .global _start
    .thumb_func
_start:
    @ Each kind of fault is told as itself, a division by zero as one.
    ldr r0, =0xe000ed24         @ SHCSR
    ldr r1, =0x00070000
    str r1, [r0]
    ldr r0, =0xe000ed14         @ CCR
    ldr r1, [r0]
    orr r1, r1, #0x10           @ DIV_0_TRP
    str r1, [r0]
    @ No access from 0x10000000 up to the stack, where QEMU would ignore an overflow.
    ldr r0, =0xe000ed94         @ MPU_CTRL, _RNR, _RBAR, _RASR
    movs r1, #0
    str r1, [r0, #4]
    ldr r1, =0x10000000
    str r1, [r0, #8]
    ldr r1, =0x10000037         @ 256 MiB, not executable either
    str r1, [r0, #12]
    movs r1, #5                 @ on, and the default map elsewhere
    str r1, [r0]
    ldr r0, =0xe000ed88         @ CPACR: the FPU is on
    ldr r1, =0x00f00000
    str r1, [r0]
    dsb
    isb
    ldr r0, =__stack_bottom
    ldr r1, =__stack_top
    ldr r2, =0xa5a5a5a5
1:  str r2, [r0], #4
    cmp r0, r1
    blo 1b
    b hal_start

    .thumb_func
exception:
    mov r2, sp
    ldr sp, =__fault_stack
    mrs r0, ipsr                @ the number of the exception
    ldr r3, =__stack_bottom
    movs r1, #0
    cmp r2, r3                  @ after a stack overflow there is no frame to read
    it hs
    ldrhs r1, [r2, #24]         @ the return address
    b hal_trap

@ uintptr_t semihosting(int operation, const void *block)
    .global semihosting
    .thumb_func
semihosting:
    bkpt 0xab
    bx lr
