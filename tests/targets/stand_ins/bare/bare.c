/* What app_main wants of ESP-IDF, on a bare machine. */
#include <stdarg.h>
#include <stdio.h>

#include "esp_timer.h"
#include "freertos/task.h"
#include "hal.h"

void app_main(void);

int64_t esp_timer_get_time(void) { return (int64_t)(hal_instructions() >> 7); }

void vTaskDelay(const TickType_t ticks) { (void)ticks; }

int printf(const char *format, ...)
{
    va_list given;
    va_start(given, format);
    for (const char *at = format; *at != 0; ++at) {
        if (*at != '%') {
            hal_write(at, 1);
        } else if (*++at == 's') {
            hal_print(va_arg(given, const char *));
        } else if (*at == 'd') {
            hal_print_number(va_arg(given, int));
        } else {
            const unsigned long number = va_arg(given, unsigned long);
            if (*at == '0' && number < 100) hal_print("0");
            if (*at == '0' && number < 10) hal_print("0");
            hal_print_number((int64_t)number);
            at += *at == '0' ? 3 : 1;
        }
    }
    va_end(given);
    return 0;
}

int main(void)
{
    app_main();
    return 0;
}
