"""Suite ``cortex-a``: kernels on ARM cores as LLVM models them, with exact counts from QEMU."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen
class Core:
    """A core as TVM, LLVM's model and QEMU call it."""

    description: dict[str, Any]
    model: str
    emulated: str


def _core(cpu: str, model: str, emulated: str, features: tuple[str, ...]) -> Core:
    mattr = [f"+{name}" for name in features]
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": cpu, "mattr": mattr}
    return Core(target, model, emulated)


# LLVM models the Cortex-A72 as it does the A57. For the A76 it has no model of its own: that of
# the Neoverse N1, which is the same core for servers, stands in.
CORES = {
    "a53": _core("cortex-a53", "cortex-a53", "cortex-a53", ("neon",)),
    "a55": _core("cortex-a55", "cortex-a55", "max", ("neon", "dotprod")),
    "a72": _core("cortex-a72", "cortex-a72", "cortex-a72", ("neon",)),
    "a76": _core("cortex-a76", "neoverse-n1", "cortex-a76", ("neon", "dotprod")),
}
