"""One thread for work that is many small products, where threads would wait for each other."""

from __future__ import annotations

import os


def one_thread() -> None:
    """NumPy and torch compute in one thread, unless the user said otherwise.

    Works only before they are imported: they read these variables once.
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
