"""Ends the process that imports it."""

import os
import sys

print("out of memory", file=sys.stderr, flush=True)
os.kill(os.getpid(), 9)
