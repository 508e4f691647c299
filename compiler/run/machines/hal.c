/* What all machines share: from reset to main and out again, text, and the stack's depth. */
#include "machine.h"

#define STACK_FILL 0xa5a5a5a5u /* as in every start.s */

extern uint32_t __bss_start[], __bss_end[], __stack_bottom[], __stack_top[];

int main(void);

void hal_start(void) {
    for (uint32_t *word = __bss_start; word < __bss_end; word++)
        *(volatile uint32_t *)word = 0;
    machine_start();
    hal_exit(main());
}

void hal_exit(int status) {
    machine_exit(status < 0 || status > 255 ? 255 : status);
}

void hal_write(const void *bytes, size_t size) {
    const char *next = bytes;
    while (size > 0) {
        size_t written = machine_write(next, size);
        next += written;
        size -= written;
    }
}

void hal_print(const char *text) {
    size_t size = 0;
    while (text[size] != 0)
        size++;
    hal_write(text, size);
}

void hal_print_number(int64_t number) {
    char digits[20];
    size_t at = sizeof digits;
    uint64_t rest = number < 0 ? -(uint64_t)number : (uint64_t)number;
    do {
        digits[--at] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    if (number < 0)
        hal_write("-", 1);
    hal_write(digits + at, sizeof digits - at);
}

size_t hal_stack_bytes(void) {
    const volatile uint32_t *word = __stack_bottom;
    while (word < __stack_top && *word == STACK_FILL)
        word++;
    return (size_t)(__stack_top - word) * 4;
}

/* The character 24 (cancel) tells whoever reads the output that this line is not the program's. */
void hal_trap(uint32_t cause, uint32_t address) {
    hal_print("\n\030trap ");
    hal_print_number(cause);
    hal_print(" ");
    hal_print_number(address);
    hal_print("\n");
    machine_exit(255);
}
