"""GPU kernels in Triton, one file each. A file takes part by exporting KERNEL or KERNELS.

Importing a kernel imports Triton. `launch.py` is what they are described by, and imports nothing.
"""

from __future__ import annotations
