/* What compiled C asks for: Debian has no library for this ABI. */
#include <stdint.h>
#include <string.h>

/* Between the iterations of a loop that must not become a call of itself. */
#define BARRIER() __asm__ volatile("")

static int whole_words(const void *a, const void *b) {
    return (((uintptr_t)a | (uintptr_t)b) & 3) == 0;
}

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if (whole_words(to, from))
        for (; size >= 4; size -= 4, out += 4, in += 4) {
            *(uint32_t *)(void *)out = *(const uint32_t *)(const void *)in;
            BARRIER();
        }
    for (; size > 0; size--) {
        *out++ = *in++;
        BARRIER();
    }
    return to;
}

void *memmove(void *to, const void *from, size_t size) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if (out <= in || out >= in + size)
        return memcpy(to, from, size);
    while (size > 0) {
        size--;
        out[size] = in[size];
        BARRIER();
    }
    return to;
}

void *memset(void *to, int value, size_t size) {
    uint8_t *out = to;
    uint32_t word = (uint8_t)value * 0x01010101u;
    if (whole_words(to, to))
        for (; size >= 4; size -= 4, out += 4) {
            *(uint32_t *)(void *)out = word;
            BARRIER();
        }
    for (; size > 0; size--) {
        *out++ = (uint8_t)value;
        BARRIER();
    }
    return to;
}

int memcmp(const void *a, const void *b, size_t size) {
    const uint8_t *x = a, *y = b;
    for (; size > 0; size--, x++, y++) {
        if (*x != *y)
            return *x - *y;
        BARRIER();
    }
    return 0;
}

size_t strlen(const char *text) {
    size_t size = 0;
    for (; text[size] != 0; size++)
        BARRIER();
    return size;
}

void abort(void) {
    for (;;)
        __asm__ volatile("ill");
}

typedef union {
    uint64_t whole;
    struct {
        uint32_t low, high;
    } half;
} Wide;

/* From products of 32 bits, since the emulated core has no upper half of them. */
int64_t __muldi3(int64_t a, int64_t b) {
    Wide x = {(uint64_t)a}, y = {(uint64_t)b}, product;
    uint32_t a0 = x.half.low & 0xffff, a1 = x.half.low >> 16;
    uint32_t b0 = y.half.low & 0xffff, b1 = y.half.low >> 16;
    uint32_t lowest = a0 * b0;
    uint32_t middle = a1 * b0 + (lowest >> 16);
    uint32_t other = a0 * b1 + (middle & 0xffff);
    product.half.low = other << 16 | (lowest & 0xffff);
    product.half.high = a1 * b1 + (middle >> 16) + (other >> 16) + x.half.low * y.half.high +
                        x.half.high * y.half.low;
    return (int64_t)product.whole;
}

/* By shift and subtract, on halves: a shift of 64 bits may itself be a call. */
static uint64_t divide(uint64_t a, uint64_t b, uint64_t *remainder) {
    Wide quotient = {a}, rest = {0};
    for (int bit = 0; bit < 64; bit++) {
        rest.half.high = rest.half.high << 1 | rest.half.low >> 31;
        rest.half.low = rest.half.low << 1 | quotient.half.high >> 31;
        quotient.half.high = quotient.half.high << 1 | quotient.half.low >> 31;
        quotient.half.low <<= 1;
        if (rest.whole >= b) {
            rest.whole -= b;
            quotient.half.low |= 1;
        }
    }
    *remainder = rest.whole;
    return quotient.whole;
}

uint64_t __udivdi3(uint64_t a, uint64_t b) {
    uint64_t remainder;
    return divide(a, b, &remainder);
}

uint64_t __umoddi3(uint64_t a, uint64_t b) {
    uint64_t remainder;
    divide(a, b, &remainder);
    return remainder;
}

static uint64_t magnitude(int64_t a) {
    return a < 0 ? -(uint64_t)a : (uint64_t)a;
}

int64_t __divdi3(int64_t a, int64_t b) {
    uint64_t remainder, quotient = divide(magnitude(a), magnitude(b), &remainder);
    return (int64_t)((a < 0) != (b < 0) ? -quotient : quotient);
}

int64_t __moddi3(int64_t a, int64_t b) {
    uint64_t remainder;
    divide(magnitude(a), magnitude(b), &remainder);
    return (int64_t)(a < 0 ? -remainder : remainder);
}
