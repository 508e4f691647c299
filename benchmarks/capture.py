"""CPU seconds of capture and recognition of the paper's ViT: without an expert loop, and with one.

    python benchmarks/capture.py [loop-free|masked] ...

One thread, one model a process; a progress line for each stage. Prints one JSON line a model.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time

import torch

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.recognise import recognise
from butterflyc.models.vit import butterfly_vit

STYLES = {"loop-free": False, "masked": True}


def measure(style: str) -> None:
    """Captures and recognises one model, and prints what it took."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = butterfly_vit(masked_loop=STYLES[style]).eval()
    images = torch.randn(1, 3, 32, 32)
    start = time.process_time()

    def progress(line: str) -> None:
        print(f"{time.process_time() - start:7.1f} s  {line}", file=sys.stderr, flush=True)

    graph = capture(model, (images,), progress=progress).graph
    captured = time.process_time()
    found = recognise(graph, progress=progress)
    end = time.process_time()
    row = {
        "suite": "capture",
        "style": style,
        "nodes": len(graph.nodes),
        "capture_cpu_s": round(captured - start, 1),
        "recognise_cpu_s": round(end - captured, 1),
        "layers": [layer.recognised for layer in found.layers],
        "torch": torch.__version__,
    }
    print(json.dumps(row), flush=True)


def main(styles: list[str]) -> None:
    """Each style in a process of its own."""
    for style in styles or list(STYLES):
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(style,))
        process.start()
        process.join()


if __name__ == "__main__":
    main(sys.argv[1:])
