#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H

#include <stdint.h>

/* In the machine's start.s. */
uintptr_t semihosting(int operation, const void *block);

/* Opens the output. */
void semihosting_start(void);

#endif
