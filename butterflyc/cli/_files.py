"""Arrays that commands read and write: ``.npz`` files, without pickles."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from ..compiler.errors import UsageError
from ..compiler.files import write_whole


def read_arrays(path: Path) -> list[np.ndarray]:
    """The arrays of an ``.npz`` file in its order, or the one of an ``.npy`` file.

    Raises UsageError if it cannot be read, is something else, or holds objects.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return [loaded]
        with loaded:
            return [loaded[key] for key in loaded.files]
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}",
            help="give an .npz file that you can read",
        ) from error
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(
            f"{path} holds no arrays: {error}", help="write it with numpy.savez(path, x=array)"
        ) from error


def write_arrays(path: Path, names: list[str], arrays: list[np.ndarray]) -> None:
    """An ``.npz`` file, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, **dict(zip(names, arrays, strict=True)))  # type: ignore[arg-type]
    write_whole(path, [content.getvalue()])
