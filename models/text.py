"""Text that every machine has: the sources of Python's own library, split by file."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..compiler.errors import BadInput, UsageError
from .ngram import Bytes

# Files of others, tests, and tables of character codes.
LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"})
LEAST_TRAINING_BYTES = 2_000_000
# One file in 16 is held out.
HELD_OUT_OF = 16
CALIBRATION_WINDOWS = 64


@dataclass(frozen=True)
class TextSplit:
    """What is trained on and what is tested on, uint8 [N] each; no file is in both.

    ``held_out`` begins with the byte 0 that ends the file before, as all files end with one.
    """

    train: Bytes
    held_out: Bytes
    files: int = 1
    held_out_files: int = 1

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: figures on texts of another digest are of another corpus."""
        return hashlib.sha256(self.train.tobytes() + self.held_out.tobytes()).hexdigest()

    def calibration(self, context: int) -> Bytes:
        """64 windows of the training text, evenly spaced: [64, context]."""
        starts = np.linspace(0, len(self.train) - context, CALIBRATION_WINDOWS).astype(np.int64)
        return self.train[starts[:, None] + np.arange(context)]


def library_text(folder: Path | None = None) -> TextSplit:
    """All Python sources below ``folder``, Python's own library where it is None, with their
    documentation strings; other people's packages and tests are left out.

    A file is held out by the SHA-256 of its path in the folder, so that the split is the same on
    every machine with that Python. Files stand in the order of these digests, each with a byte 0
    behind it. UsageError for no folder, BadInput where it holds too little text.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise UsageError(
            f"no folder '{root}' of Python sources", help="give a folder that holds *.py files"
        )
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    for digest, path in sorted((_digest(path, root), path) for path in _sources(root)):
        parts[int(digest, 16) % HELD_OUT_OF == 0].append(path.read_bytes() + b"\0")
    train, held_out = (np.frombuffer(b"".join(parts[part]), np.uint8) for part in (False, True))
    if len(train) < LEAST_TRAINING_BYTES or not len(held_out):
        raise BadInput(
            f"{len(train):,} bytes of Python sources to train on and {len(held_out):,} held out, "
            f"wanted {LEAST_TRAINING_BYTES:,} and some",
            where=str(root),
            help="install Python with the sources of its library, or give another folder",
        )
    start = np.zeros(1, np.uint8)
    both = len(parts[False]), len(parts[True])
    return TextSplit(train, np.concatenate((start, held_out)), *both)


def _sources(root: Path) -> list[Path]:
    return [
        path
        for path in root.rglob("*.py")
        if path.is_file() and LEFT_OUT.isdisjoint(path.relative_to(root).parts)
    ]


def _digest(path: Path, root: Path) -> str:
    return hashlib.sha256(path.relative_to(root).as_posix().encode()).hexdigest()
