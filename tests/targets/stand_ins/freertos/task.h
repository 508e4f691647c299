/* As in FreeRTOS, as far as a package uses it. */
#ifndef FREERTOS_TASK_H
#define FREERTOS_TASK_H
#include "freertos/FreeRTOS.h"
void vTaskDelay(const TickType_t ticks);
#endif
