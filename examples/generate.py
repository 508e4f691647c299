"""Write Python with a language model of ButterflyMoE layers, as trained on Python's own library.

python examples/generate.py --prompt "def main(" --compile
"""

import argparse
import sys
import time
from itertools import islice
from pathlib import Path

import torch

import butterflyc as bc
from butterflyc.models.checkpoint import TEXT, load_checkpoint
from butterflyc.models.generation import stream
from butterflyc.models.language import DecodeStep, LanguageModel


def compiled(model: LanguageModel) -> bc.Program:
    """One step of the model, a byte at a time with a KV cache, compiled for this machine."""
    step = DecodeStep(model).eval()
    first = torch.zeros(1, dtype=torch.int64)
    return bc.compile(step, (first, first, *step.empty()), target="host", name="step")


parser = argparse.ArgumentParser()
parser.add_argument("checkpoint", type=Path, nargs="?", default=TEXT, help="default: ours")
parser.add_argument("--prompt", default="def ")
parser.add_argument("--bytes", type=int, default=400, help="how many to write (default 400)")
parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest byte")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--no-cache", action="store_true", help="compute all bytes for each new one")
parser.add_argument("--compile", action="store_true", help="compile a step, and write with that")
chosen = parser.parse_args()

model, _ = load_checkpoint(chosen.checkpoint)
step = compiled(model) if chosen.compile else None
prompt = chosen.prompt.encode()
begun = time.monotonic()
written = stream(
    model,
    prompt,
    temperature=chosen.temperature,
    seed=chosen.seed,
    cached=not chosen.no_cache,
    step=step,
)
sys.stdout.buffer.write(prompt)
for byte in islice(written, chosen.bytes):
    sys.stdout.buffer.write(bytes([byte]))
    sys.stdout.buffer.flush()
print(f"\n{chosen.bytes / (time.monotonic() - begun):.0f} bytes/s", file=sys.stderr)
