"""The papers' arithmetic as they print it: bytes, parameters, experts that fit, energy.

Plain Python, so that every figure can be had without torch. ButterflyMoE is arXiv 2601.13563,
ButterflyViT is arXiv 2603.06746.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Literal, get_args

TERNARY_BITS = 1.58  # what both papers count a weight of W_hat as; log2(3) is 1.585
FLOAT_BITS = 32
HALF_BITS = 16
PICOJOULES_PER_BIT = 6.4  # of DRAM, ButterflyViT
MB = 10**6
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

Mlp = Literal["butterfly", "standard", "dense"]
MLPS: tuple[Mlp, ...] = get_args(Mlp)


@dataclass(frozen=True)
class Stack:
    """MoE layers of one size, ``layers`` of them; all sizes below are of the whole stack.

    ``layers_in`` and ``layers_out``: butterfly layers of B(theta) on d_model, B(phi) on d_ff.
    """

    d_model: int
    d_ff: int
    layers: int
    layers_in: int
    layers_out: int

    @property
    def weights(self) -> int:
        """The weights of one d_ff x d_model matrix a layer."""
        return self.layers * self.d_model * self.d_ff

    @property
    def angles(self) -> int:
        """The angles that one expert owns: half a padded width for each butterfly layer."""
        inside = self.layers_in * padded_width(self.d_model) // 2
        return self.layers * (inside + self.layers_out * padded_width(self.d_ff) // 2)


BUTTERFLY_VIT = Stack(d_model=256, d_ff=1024, layers=7, layers_in=2, layers_out=2)
BUTTERFLY_MOE = Stack(d_model=512, d_ff=2048, layers=1, layers_in=9, layers_out=11)


def padded_width(width: int) -> int:
    """The smallest power of two that is not below ``width``, and at least 2 (Algorithm 1)."""
    return max(2, 1 << (width - 1).bit_length())


def matrix_bytes(stack: Stack, bits: float) -> float:
    """Bytes of one shared matrix a layer, at ``bits`` a weight: W_hat or W_down."""
    return stack.weights * bits / 8


def standard_bytes(stack: Stack, experts: int, *, matrices: int = 2, bits: float = 32) -> float:
    """Bytes of StandardMoE's experts. ButterflyViT counts up and down, ButterflyMoE only up (1)."""
    return experts * matrices * matrix_bytes(stack, bits)


def router_bytes(stack: Stack, experts: int, bits: float) -> float:
    """Bytes of the routers, d_model weights an expert and layer; both papers leave them out."""
    return stack.layers * experts * stack.d_model * bits / 8


def expert_bytes(stack: Stack, angle_bits: int = FLOAT_BITS) -> float:
    """Bytes that one more Butterfly expert takes: its angles, fp32 in ButterflyViT's Table 2."""
    return stack.angles * angle_bits / 8


def butterfly_bytes(
    stack: Stack, experts: int, *, angle_bits: int = FLOAT_BITS, down_bits: float = 0
) -> float:
    """Bytes of W_hat and all angles, as both papers count; ``down_bits`` a weight count W_down too.

    Both papers leave W_down out (0): ButterflyViT's has d_model x d_ff weights a layer.
    """
    shared = matrix_bytes(stack, TERNARY_BITS) + matrix_bytes(stack, down_bits)
    return shared + experts * expert_bytes(stack, angle_bits)


def compression(
    stack: Stack,
    experts: int,
    *,
    matrices: int = 2,
    angle_bits: int = FLOAT_BITS,
    down_bits: float = 0,
) -> float:
    """Bytes of StandardMoE in fp32 over bytes of Butterfly, counted as the arguments say."""
    standard = standard_bytes(stack, experts, matrices=matrices)
    return standard / butterfly_bytes(stack, experts, angle_bits=angle_bits, down_bits=down_bits)


def equation_11_bytes(stack: Stack) -> int:
    """Bytes of an expert by ButterflyViT's eq. 11: n_l (d_model + d_ff) fp32 numbers a layer.

    Two numbers for each pair of channels, where a Givens rotation has one angle. ``layers_in`` is
    its n_l: it knows one depth for both sides.
    """
    return stack.layers * stack.layers_in * (stack.d_model + stack.d_ff) * FLOAT_BITS // 8


def limit_printed(stack: Stack) -> float:
    """The limit of many experts as the expression in ButterflyViT's Proposition 2 gives it.

    One fp32 matrix of StandardMoE over an expert of eq. 11.
    """
    return matrix_bytes(stack, FLOAT_BITS) / equation_11_bytes(stack)


def limit_by_table_2(stack: Stack) -> float:
    """The limit of many experts as Table 2 counts: two fp32 matrices over an expert's angles."""
    return 2 * matrix_bytes(stack, FLOAT_BITS) / expert_bytes(stack)


def experts_that_fit(memory: float, shared: float, each: float) -> int:
    """The most experts of ``each`` bytes beside ``shared`` ones in ``memory`` bytes; 0 if none."""
    return max(0, int((memory - shared) // each))


def millijoules(count: float, picojoules_per_bit: float = PICOJOULES_PER_BIT) -> float:
    """Energy in mJ to read ``count`` bytes once from DRAM (ButterflyViT, Figure 7)."""
    return count * 8 * picojoules_per_bit / 1e9


def picojoules_per_bit(energy: float, count: float) -> float:
    """The cost of a bit in pJ at which reading ``count`` bytes takes ``energy`` mJ."""
    return energy * 1e9 / (8 * count)


def vit_parameters(
    mlp: Mlp, stack: Stack = BUTTERFLY_VIT, *, experts: int = 8, tokens: int = 65
) -> int:
    """Trained numbers of the papers' CIFAR-100 ViT, biases included (ButterflyViT, Table 1).

    Patches of 4 x 4 pixels of 3 channels, a class token, 100 classes. Gates and Butterfly's W and
    W_down have no biases.
    """
    d, f = stack.d_model, stack.d_ff
    attention = 4 * d * d + 4 * d
    norms = 4 * d
    angles = stack.angles // stack.layers
    mlps = {
        "butterfly": experts * (d + angles) + 2 * d * f,
        "standard": experts * (d + 2 * d * f + f + d),
        "dense": 2 * d * f + f + d,
    }
    embedding = 3 * 4 * 4 * d + d + d + tokens * d
    head = 2 * d + 100 * d + 100
    return embedding + stack.layers * (norms + attention + mlps[mlp]) + head


def truncated(value: float, digits: int) -> str:
    """``value`` cut off behind so many decimals, as the MB of ButterflyViT's Table 2 are."""
    return _decimal(value, digits, ROUND_DOWN)


def rounded(value: float, digits: int = 0) -> str:
    """``value`` rounded, halves up, as the ratios of ButterflyViT's Table 2 are."""
    return _decimal(value, digits, ROUND_HALF_UP)


def _decimal(value: float, digits: int, rule: str) -> str:
    return f"{Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), rule):,}"
