/* The printf of bare.c, which knows %s, %d, %lu and %03lu. */
#ifndef STDIO_H
#define STDIO_H
int printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
#endif
