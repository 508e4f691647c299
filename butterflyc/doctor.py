"""What this machine has: packages, compilers, emulators; found without importing any of them."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib import metadata
from typing import Any

# Distribution, and what it is for.
PACKAGES = (
    ("butterflyc", "this program"),
    ("numpy", "run and inspect"),
    ("safetensors", "run and inspect"),
    ("torch", "compile"),
    ("apache-tvm", "compile for CPUs and microcontrollers"),
    ("apache-tvm-ffi", "compile for CPUs and microcontrollers"),
    ("networkx", "compile"),
    ("triton", "compile for NVIDIA GPUs"),
    ("torch-mlir", "show a model in MLIR"),
    ("ziglang", "link for other CPUs"),
    ("scikit-learn", "train the digits model"),
    ("matplotlib", "draw pictures"),
)
# Programs of which any one serves, and what they are for.
PROGRAMS = (
    (("cc", "gcc", "clang"), "link for this machine"),
    (("aarch64-linux-gnu-gcc",), "link for aarch64"),
    (("arm-linux-gnueabihf-gcc",), "link for armv7a"),
    (("ssh",), "run on another machine"),
    (("scp",), "run on another machine"),
    (("arm-none-eabi-gcc",), "Cortex-M firmware"),
    (("riscv64-unknown-elf-gcc", "riscv32-esp-elf-gcc"), "RISC-V firmware"),
    (("xtensa-esp-elf-gcc", "xtensa-esp32-elf-gcc", "clang-22"), "ESP32 firmware"),
    (("qemu-aarch64", "qemu-aarch64-static"), "run aarch64 here"),
    (("qemu-arm", "qemu-arm-static"), "run armv7a here"),
    (("llvm-mca-19",), "model kernels on ARM cores"),
    (("qemu-system-arm",), "run Cortex-M here"),
    (("qemu-system-riscv32",), "run ESP32-C3 code here"),
    (("qemu-system-xtensa",), "run ESP32 code here"),
)


def examine() -> dict[str, Any]:
    """Everything found or missing, as plain data."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": [_package(name, purpose) for name, purpose in PACKAGES],
        "programs": [_program(names, purpose) for names, purpose in PROGRAMS],
    }


def _package(name: str, purpose: str) -> dict[str, Any]:
    try:
        version: str | None = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = None
    return {"name": name, "for": purpose, "found": version is not None, "version": version}


def _program(names: tuple[str, ...], purpose: str) -> dict[str, Any]:
    for name in names:
        if path := shutil.which(name):
            version = _version(path)
            return {"name": name, "for": purpose, "found": True, "version": version, "path": path}
    missing = " or ".join(names)
    return {"name": missing, "for": purpose, "found": False, "version": None, "path": None}


def _version(path: str) -> str | None:
    """The first line that the program says about itself."""
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"warning: {path} --version: {error}", file=sys.stderr)
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines and done.returncode == 0 else None
