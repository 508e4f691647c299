/* What a program on a bare machine may call. Its `int main(void)` returns 0 to 255. */
#ifndef HAL_H
#define HAL_H

#include <stddef.h>
#include <stdint.h>

/* Instructions executed since the start, exact: two runs give the same number. The difference of
   two calls holds a constant for the calls themselves; measure nothing once and subtract it.
   On cortex-m4 and esp32 the clock behind it is 32 bits wide: call it at least once in every
   1,300,000,000 instructions. */
uint64_t hal_instructions(void);

/* Bytes, and a text that ends in 0, to the output. All of it is out when they return. */
void hal_write(const void *bytes, size_t size);
void hal_print(const char *text);

/* A number in decimal, without a line's end. */
void hal_print_number(int64_t number);

/* Bytes of stack that were ever written to. A word that happens to hold the pattern with which
   the stack was filled counts as not written to. */
size_t hal_stack_bytes(void);

/* Ends the program as a return from main does; a status outside 0 to 255 becomes 255. */
void hal_exit(int status) __attribute__((noreturn));

#endif
