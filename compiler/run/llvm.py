"""LLVM's own tools: which version of them is used, and where it is missing."""

from __future__ import annotations

import shutil

from ..errors import ToolMissing
from .tools import version_of

# Models of cores change between versions, and figures with them: one version for all.
LLVM_VERSION = 19


def llvm_tool(name: str) -> str:
    """The command of one of LLVM's tools, such as `llvm-mca`. Raises ToolMissing."""
    command = f"{name}-{LLVM_VERSION}"
    if not shutil.which(command):
        raise ToolMissing(
            f"machine code is read and modelled by {command}, which is not installed",
            help=f"apt-get install --no-install-recommends llvm-{LLVM_VERSION}",
        )
    return command


def llvm_version() -> str:
    """The whole version of llvm-mca. Raises ToolMissing."""
    return version_of(llvm_tool("llvm-mca"))
