"""The tools of ARM without a board; a test that needs them is skipped, or fails in CI."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def llvm(needs_tool: Callable[..., str]) -> None:
    """LLVM's models, disassembler and assembler."""
    for tool in ("llvm-mca-19", "llvm-objdump-19", "llvm-mc-19", "llvm-nm-19"):
        needs_tool(tool)


@pytest.fixture(scope="session")
def arm(llvm: None, needs_tool: Callable[..., str]) -> None:
    """Programs for both ARM architectures, run and counted."""
    for tool in ("qemu-aarch64", "qemu-arm", "aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc"):
        needs_tool(tool)
