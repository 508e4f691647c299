"""Write Python with a language model of ButterflyMoE layers, as trained on Python's own library.

python -m butterflyc.models.train text -o runs
python examples/generate.py runs/text-butterfly.safetensors --prompt "def main(" --temperature 0.5
"""

import argparse
import sys
import time
from pathlib import Path

from butterflyc.models.checkpoint import load_checkpoint
from butterflyc.models.generation import stream

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint", type=Path)
parser.add_argument("--prompt", default="def ")
parser.add_argument("--bytes", type=int, default=400, help="how many to write (default 400)")
parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest byte")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--no-cache", action="store_true", help="compute all bytes for each new one")
chosen = parser.parse_args()

model, _ = load_checkpoint(chosen.checkpoint)
prompt = chosen.prompt.encode()
begun = time.monotonic()
written = stream(
    model,
    prompt,
    temperature=chosen.temperature,
    seed=chosen.seed,
    cached=not chosen.no_cache,
)
sys.stdout.buffer.write(prompt)
for _, byte in zip(range(chosen.bytes), written, strict=False):
    sys.stdout.buffer.write(bytes([byte]))
    sys.stdout.buffer.flush()
seconds = time.monotonic() - begun
print(f"\n{chosen.bytes / seconds:.0f} bytes/s", file=sys.stderr)
