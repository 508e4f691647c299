# From reset to hal_start, the register windows' overflow and underflow, and exceptions.
    .section .reset, "ax"
    j 1f
    .p2align 2
vectors_at: .4byte __vectors
stack_at: .4byte __stack_top
bottom_at: .4byte __stack_bottom
fill: .4byte 0xa5a5a5a5
status: .4byte 0x40020          # register windows on, user mode
start_at: .4byte hal_start
    .global _start
_start:
1:  l32r a0, vectors_at
    wsr a0, vecbase
    movi a0, 0
    wsr a0, windowbase
    rsync
    movi a0, 1
    wsr a0, windowstart
    wsr a0, cpenable            # the FPU is coprocessor 0
    rsync
    l32r a0, status
    wsr a0, ps
    rsync
    l32r a1, stack_at
    l32r a2, bottom_at
    l32r a3, fill
2:  s32i a3, a2, 0
    addi a2, a2, 4
    bltu a2, a1, 2b
    addi a1, a1, -16            # where a callee may save this frame's registers
    movi a0, 0
    l32r a4, start_at
    callx4 a4

# A window of 4, 8 or 12 registers goes to the stack, and comes back: as in the manual.
    .section .vectors, "ax"
    .org 0x000
    s32e a0, a5, -16
    s32e a1, a5, -12
    s32e a2, a5, -8
    s32e a3, a5, -4
    rfwo
    .org 0x040
    l32e a0, a5, -16
    l32e a1, a5, -12
    l32e a2, a5, -8
    l32e a3, a5, -4
    rfwu
    .org 0x080
    s32e a0, a9, -16
    l32e a0, a1, -12
    s32e a1, a9, -12
    s32e a2, a9, -8
    s32e a3, a9, -4
    s32e a4, a0, -32
    s32e a5, a0, -28
    s32e a6, a0, -24
    s32e a7, a0, -20
    rfwo
    .org 0x0c0
    l32e a0, a9, -16
    l32e a1, a9, -12
    l32e a2, a9, -8
    l32e a7, a1, -12
    l32e a3, a9, -4
    l32e a4, a7, -32
    l32e a5, a7, -28
    l32e a6, a7, -24
    l32e a7, a7, -20
    rfwu
    .org 0x100
    s32e a0, a13, -16
    l32e a0, a1, -12
    s32e a1, a13, -12
    s32e a2, a13, -8
    s32e a3, a13, -4
    s32e a4, a0, -48
    s32e a5, a0, -44
    s32e a6, a0, -40
    s32e a7, a0, -36
    s32e a8, a0, -32
    s32e a9, a0, -28
    s32e a10, a0, -24
    s32e a11, a0, -20
    rfwo
    .org 0x140
    l32e a0, a13, -16
    l32e a1, a13, -12
    l32e a2, a13, -8
    l32e a11, a1, -12
    l32e a3, a13, -4
    l32e a4, a11, -48
    l32e a5, a11, -44
    l32e a6, a11, -40
    l32e a7, a11, -36
    l32e a8, a11, -32
    l32e a9, a11, -28
    l32e a10, a11, -24
    l32e a11, a11, -20
    rfwu
    .org 0x280                  # debug
    j breakpoint
    .org 0x300                  # kernel
    j exception
    .org 0x340                  # user
    j exception
    .org 0x3c0                  # double: an exception in one of these
    j double

# What was in the registers is lost: nothing goes back from here. Renumbering them first leaves
# the special registers as they were.
    .org 0x400
    .p2align 2
fault_stack_at: .4byte __fault_stack
trap_at: .4byte hal_trap
trap_status: .4byte 0x40020
    .macro fresh_window
    movi a0, 0
    wsr a0, windowbase
    rsync
    movi a0, 1
    wsr a0, windowstart
    rsync
    l32r a1, fault_stack_at
    .endm
breakpoint:
    fresh_window
    movi a6, 64
    rsr a7, epc6
    j tell
double:
    fresh_window
    movi a6, 65
    rsr a7, depc
    j tell
exception:
    fresh_window
    rsr a6, exccause
    rsr a7, epc1
tell:
    l32r a0, trap_status
    wsr a0, ps
    rsync
    movi a0, 0
    l32r a4, trap_at
    callx4 a4

# int simcall(int operation, int a, int b, int c)
    .text
    .p2align 2
    .global simcall
simcall:
    entry a1, 32
    .byte 0x00, 0x51, 0x00      # LLVM has no name for it
    retw
