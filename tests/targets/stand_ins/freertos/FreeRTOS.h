/* As in FreeRTOS, as far as a package uses it. */
#ifndef FREERTOS_H
#define FREERTOS_H
#include <stdint.h>
typedef uint32_t TickType_t;
#endif
