"""Inline assembly, which runs nowhere here, unpacks codes as the plain form does."""

from __future__ import annotations

import re

import numpy as np
import pytest

from butterflyc.kernels.gpu.launch import Launch

from .first_form import triton_ir
from .harness import GPU, KERNELS, Call

ASSEMBLY = re.compile(r'elementwise_inline_asm "([^"]*and\.b32[^"]*)"')


def executed(text: str, packed: int) -> list[int]:
    """The registers that a few instructions of PTX give, of what is in the one behind them."""
    results = 2 if "$2" in text else 1
    registers = {f"${results}": packed}

    def value(name: str) -> int:
        return registers[name] if name.startswith("$") else int(name, 0)

    for instruction in filter(None, map(str.strip, text.split(";"))):
        name, _, operands = instruction.partition(" ")
        target, *rest = (part.strip() for part in operands.split(","))
        left, *others = map(value, rest)
        if name == "prmt.b32":
            octets = left.to_bytes(4, "little") + others[0].to_bytes(4, "little")
            chosen = [octets[others[1] >> 4 * i & 7] for i in range(4)]
            registers[target] = int.from_bytes(bytes(chosen), "little")
        elif name == "shl.b32":
            registers[target] = left << others[0] & 0xFFFFFFFF
        else:
            assert name == "and.b32"
            registers[target] = left & others[0]
    return [registers[f"${i}"] for i in range(results)]


@pytest.mark.parametrize("bits", [0, 8])
def test_codes_are_unpacked_in_order(bits):
    """Of any four bytes, member P of each group becomes the top two bits of its number."""
    kernel, call = KERNELS["gpu_decode"], Call(channels=64, outputs=64, activation_bits=bits)
    launches = [s for s in kernel.build(call.spec(), GPU, "layer").steps if isinstance(s, Launch)]
    up = next(launch for launch in launches if launch.function == "up_decode")
    texts = ASSEMBLY.findall(triton_ir(up, 90))
    assert len(texts) == 4
    dtype = np.uint8 if bits else np.uint16
    for member, text in enumerate(texts):
        for octets in np.random.default_rng(0).integers(0, 256, (99, 4)).astype(np.uint8):
            words = np.array(executed(text, int(octets.view(np.uint32)[0])), np.uint32)
            top = dtype(octets) << dtype(8 * (dtype(0).itemsize - 1) + 2 * member)
            wanted = top & dtype(0xC0 << 8 * (dtype(0).itemsize - 1))
            np.testing.assert_array_equal(words.view(dtype), wanted)
