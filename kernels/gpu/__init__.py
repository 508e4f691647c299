"""GPU kernels in Triton, one file each. A file takes part by exporting KERNEL or KERNELS.

Importing a kernel imports Triton. `launch.py` is what they are described by, and imports nothing;
`library.py` executes what is no launch, `interpreted.py` whole plans on a CPU.
"""

from __future__ import annotations

from functools import cache

from .. import records_of
from ..record import Kernel


@cache
def all_kernels() -> tuple[Kernel, ...]:
    """Every kernel record in this folder, by name. Imports Triton."""
    return records_of(__name__, __path__)
