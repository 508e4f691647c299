"""Image sets: scikit-learn's digits, and CIFAR-100 from the user's own copy."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compiler.errors import BadInput, Damaged, ToolMissing, UsageError

DIGITS_SEED = 0
DIGITS_TEST = 360
DIGITS_CALIBRATION = 64
CIFAR_HELP = (
    "unpack cifar-100-python.tar.gz and give the folder that holds the files 'train' and 'test'"
)


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N, C, H, W], labels int64 [N], and the pixel value that stands for 1.0."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    white: int

    def floats(self) -> NDArray[np.float32]:
        """The images as the models take them: pixels / white, float32 [N, C, H, W]."""
        return self.images.astype(np.float32) / np.float32(self.white)


@dataclass(frozen=True)
class Split:
    """What is trained on and what is tested on; no image is in both."""

    train: ImageSet
    test: ImageSet

    @property
    def calibration(self) -> ImageSet:
        """The first 64 training images."""
        n = DIGITS_CALIBRATION
        return ImageSet(self.train.images[:n], self.train.labels[:n], self.train.white)


def digits() -> Split:
    """The 1797 scans of digits, 8 x 8 pixels of 0..16: 1437 to train on, 360 to test on.

    The test set is the last 360 images of the permutation with seed 0. ToolMissing without
    scikit-learn, which brings the images.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise ToolMissing(
            "the digits images come with scikit-learn, which is not installed",
            help="pip install 'butterflyc[train]'",
        ) from error
    pixels, labels = load_digits(return_X_y=True)  # float [1797, 64], int [1797]
    order = np.random.default_rng(DIGITS_SEED).permutation(len(labels))
    images = pixels.astype(np.uint8).reshape(-1, 1, 8, 8)[order]
    labels = labels.astype(np.int64)[order]
    cut = len(labels) - DIGITS_TEST
    return Split(
        ImageSet(images[:cut], labels[:cut], 16),
        ImageSet(images[cut:], labels[cut:], 16),
    )


def cifar100(folder: Path) -> Split:
    """CIFAR-100 with its 100 fine labels, from the python-pickle files in ``folder``.

    The pickles are read without running anything in them. UsageError where the files are missing,
    Damaged where they are no pickles of plain arrays, BadInput where they hold other arrays.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder '{folder}' with CIFAR-100", help=CIFAR_HELP)
    return Split(_cifar_file(folder / "train"), _cifar_file(folder / "test"))


def _cifar_file(path: Path) -> ImageSet:
    if not path.is_file():
        raise UsageError(f"no CIFAR-100 file '{path.name}'", where=str(path), help=CIFAR_HELP)
    content = read_pickle(path)
    if not isinstance(content, dict) or not {b"data", b"fine_labels"} <= content.keys():
        raise BadInput(
            "this pickle has no entries 'data' and 'fine_labels'", where=str(path), help=CIFAR_HELP
        )
    data, labels = content[b"data"], np.asarray(content[b"fine_labels"])
    if not (
        isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (3 * 32 * 32,)
    ):
        raise BadInput(
            f"'data' is {_describe(data)}, wanted uint8 [N, 3072]", where=str(path), help=CIFAR_HELP
        )
    if labels.shape != (len(data),) or labels.dtype.kind not in "iu":
        raise BadInput(
            f"'fine_labels' is {_describe(labels)}, wanted {len(data)} whole numbers",
            where=str(path),
            help=CIFAR_HELP,
        )
    if len(data) == 0 or labels.min() < 0 or labels.max() > 99:
        raise BadInput(
            f"'fine_labels' holds {len(labels)} labels, wanted at least one, all in 0..99",
            where=str(path),
            help=CIFAR_HELP,
        )
    return ImageSet(data.reshape(-1, 3, 32, 32), labels.astype(np.int64), 255)


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers and NumPy arrays; any other name in the pickle is refused."""

    # CIFAR's files were written by Python 2, when NumPy's module was still numpy.core.
    ALLOWED = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(path: Path) -> Any:
    """The content of a pickle of containers and NumPy arrays; Damaged if it is anything else."""
    try:
        return _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    # A damaged pickle may fail in any opcode, so any exception means that it cannot be read.
    except Exception as error:
        raise Damaged(
            f"cannot read this pickle: {error}",
            where=str(path),
            help="fetch the file again; only containers and NumPy arrays are accepted",
        ) from error
