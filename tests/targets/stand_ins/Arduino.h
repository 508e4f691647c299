// What the sketch of a package calls, as far as it calls it, on a PC.
#ifndef ARDUINO_H
#define ARDUINO_H

#include <cstdio>
#include <ctime>

inline unsigned long millis() { return (unsigned long)(std::clock() / (CLOCKS_PER_SEC / 1000)); }
inline void delay(unsigned long) {}

struct SerialLine {
  void begin(unsigned long) {}
  explicit operator bool() const { return true; }
  void print(const char *text) { std::fputs(text, stdout); }
  void print(int number) { std::printf("%d", number); }
  void print(unsigned long number) { std::printf("%lu", number); }
  void println(const char *text) { std::puts(text); }
};
extern SerialLine Serial;

void setup();
void loop();

#endif
