/* Between hal.c and a machine's own files; programs do not include it. */
#ifndef MACHINE_H
#define MACHINE_H

#include "hal.h"

/* Each machine has these. `machine_start` runs before main. */
void machine_start(void);
size_t machine_write(const void *bytes, size_t size); /* how many were written */
void machine_exit(int status) __attribute__((noreturn));

/* The start-up code calls these: with the stack filled, or after an exception. */
void hal_start(void) __attribute__((noreturn));
void hal_trap(uint32_t cause, uint32_t address) __attribute__((noreturn));

#endif
