/* What app_main wants of ESP-IDF, on a PC. */
#include <time.h>

#include "esp_timer.h"
#include "freertos/task.h"

void app_main(void);

int64_t esp_timer_get_time(void) { return (int64_t)clock() * 1000000 / CLOCKS_PER_SEC; }

void vTaskDelay(const TickType_t ticks) { (void)ticks; }

int main(void)
{
    app_main();
    return 0;
}
