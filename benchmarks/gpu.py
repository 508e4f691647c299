"""Checks every GPU kernel on this machine's GPU, then times Butterfly layers against mixtures.

    python benchmarks/gpu.py                 at most nine minutes; results go to benchmarks/results
    python benchmarks/gpu.py --dry-run       every step at tiny sizes on a CPU, timing nothing

Exit status 1 if a kernel was wrong or was skipped. Ctrl-C ends it early and leaves a valid file.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from butterflyc.bench.gpu.device import Clock, DeviceLost
from butterflyc.bench.gpu.session import SECONDS, Options, run
from butterflyc.cli._progress import progress
from butterflyc.compiler.errors import ButterflycError

RESULTS = Path(__file__).parent / "results"


def main(words: list[str]) -> int:
    given = arguments(words)
    options = Options(
        given.out, given.dtype, given.seconds, given.dry_run, not given.no_tune, tuple(given.skip)
    )
    clock = Clock(options.seconds)
    with progress() as report:
        try:
            return run(options, report)
        except ButterflycError as error:
            print(error, file=sys.stderr)
            return error.exit_status
        except DeviceLost as lost:
            # A GPU that a kernel left unusable can be used again by another process only.
            print(f"{lost}; starting again without it", file=sys.stderr)
            rest = ["--seconds", str(max(clock.left, 0)), "--skip", lost.kernel]
            os.execv(sys.executable, [sys.executable, __file__, *words, *rest])


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of results")
    parser.add_argument("--dtype", choices=("bf16", "f16"), default="bf16", help="of both sides")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that it may take")
    parser.add_argument("--skip", action="append", default=[], metavar="KERNEL")
    parser.add_argument("--no-tune", action="store_true", help="kernels with default parameters")
    parser.add_argument("--dry-run", action="store_true", help="rehearse it on a CPU")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
