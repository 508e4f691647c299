// Runs the self-test of @NAME@ and prints how long an inference takes. Made by butterflyc.
#include <@NAME@.h>
#include <@NAME@_selftest.h>

static unsigned char arena[@ARENA@] __attribute__((aligned(64)));
static unsigned long lastBreak;

// Called by the model after each of its steps: a pause of 1 ms in a second lets the board do what
// else it must, such as feed its watchdog.
extern "C" void @NAME@_tick(int done) {
  (void)done;
  if (millis() - lastBreak >= 1000) {
    delay(1);
    lastBreak = millis();
  }
}

void setup() {
  Serial.begin(115200);
  while (!Serial && millis() < 5000) {
    delay(10);
  }
}

void loop() {
  lastBreak = millis();
  const unsigned long start = millis();
  const int failed = @NAME@_selftest(arena);
  const unsigned long taken = millis() - start;
  if (failed != 0) {
    Serial.print("@NAME@: self-test FAIL (");
    Serial.print(failed);
    Serial.println(")");
  } else {
    Serial.print("@NAME@: self-test PASS, ");
    Serial.print(taken / @UPPER@_SELFTEST_SAMPLES);
    Serial.println(" ms per inference");
  }
  delay(5000);
}
