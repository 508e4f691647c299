/* Runs the self-test of @NAME@ and prints how long an inference takes. Made by butterflyc. */
#include <stdint.h>
#include <stdio.h>

#include "esp_timer.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"

#include "@NAME@.h"
#include "@NAME@_selftest.h"

#define MICROSECONDS_BETWEEN_BREAKS 1000000

static unsigned char arena[@ARENA@] __attribute__((aligned(64)));
static int64_t last_break;

/* Called by the model after each of its steps. The task watchdog wants the idle task to run every
   few seconds, which a break of one tick allows. A task that is itself watched, through
   esp_task_wdt_add(), must call esp_task_wdt_reset() here as well. */
void @NAME@_tick(int done)
{
    (void)done;
    if (esp_timer_get_time() - last_break >= MICROSECONDS_BETWEEN_BREAKS) {
        vTaskDelay(1);
        last_break = esp_timer_get_time();
    }
}

void app_main(void)
{
    const int64_t start = last_break = esp_timer_get_time();
    const int failed = @NAME@_selftest(arena);
    const int64_t taken = (esp_timer_get_time() - start) / @UPPER@_SELFTEST_SAMPLES;
    if (failed != 0) {
        printf("@NAME@: self-test FAIL (%d)\n", failed);
        return;
    }
    printf("@NAME@: self-test PASS, %lu.%03lu ms per inference\n",
           (unsigned long)(taken / 1000), (unsigned long)(taken % 1000));
}
