"""What a compilation may spend: what it may lose, and whether flash or time is dearer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..compiler.errors import UsageError, unknown_name
from .quantize_activations import ACT_BITS, KNOWN_BITS
from .quantize_angles import KINDS, STORED
from .quantize_weights import WEIGHT_SNR

SPEED, SIZE = "speed", "size"
PREFERRED = (SPEED, SIZE)


@dataclass(frozen=True)
class Budgets:
    """``weight_snr`` is `Quantize`'s, in dB; ``act_bits`` are `QuantizeActivations`'; ``angles``
    are `QuantizeAngles`', None to leave them as they are. ``prefer`` is what kernels of integers
    are chosen by: ``speed``, or the ``size`` of their constants."""

    weight_snr: float = WEIGHT_SNR
    act_bits: int = ACT_BITS
    angles: str | None = None
    prefer: str = SPEED

    @classmethod
    def asked(cls, mode: str, **given: Any) -> Budgets:
        """Those given, by name, for ``mode``; what is None is as by default.

        Raises UsageError for one that the mode does not have, or that cannot be.
        """
        wanted = {name: value for name, value in given.items() if value is not None}
        for name, value in wanted.items():
            CHECKS[name](value, mode)
        return cls(**wanted)

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Budgets:
        """Those that a program was compiled with."""
        names = asdict(cls())
        return cls(**{n: manifest[n] for n in names if manifest.get(n) is not None})

    def said(self, mode: str) -> dict[str, Any]:
        """For a manifest: None where ``mode`` has no such budget."""
        of_integers = {"weight_snr": mode == "int8", "prefer": mode == "int8"}
        own = {**of_integers, "act_bits": mode == "a8", "angles": True}
        return {name: value if own[name] else None for name, value in asdict(self).items()}


DEFAULT = Budgets()


def _check_weights(weight_snr: float, mode: str) -> None:
    if mode != "int8":
        raise UsageError(
            f"weights keep a signal to noise of {weight_snr} dB in mode int8, this is mode {mode}",
            help="leave it out, or compile in mode int8",
        )
    if not 0 <= weight_snr < math.inf:
        raise UsageError(
            f"a signal to noise of {weight_snr} dB, of at least 0 wanted",
            help="40 is the default, of 30 most weights have 4 digits, of 20 three",
        )


def _check_activations(act_bits: int, mode: str) -> None:
    if mode != "a8":
        raise UsageError(
            f"activations are codes of {act_bits} bits in mode a8, this is mode {mode}",
            help="leave it out, or compile in mode a8",
        )
    if act_bits not in KNOWN_BITS:
        raise UsageError(
            f"activations of {act_bits} bits, of {' or '.join(map(str, KNOWN_BITS))} wanted",
            help="8 is the default; 7 lose twice as much, and are faster without dot products",
        )


def _check_angles(angles: str, mode: str) -> None:
    able = STORED if mode == "int8" else KINDS
    if angles not in able:
        raise UsageError(
            f"angles as '{angles}' in mode {mode}, of {', '.join(able)} wanted",
            help="i16 are near enough for any model; i8 take half of that, at some loss",
        )


def _check_preference(prefer: str, mode: str) -> None:
    if prefer not in PREFERRED:
        raise unknown_name("preference", prefer, PREFERRED)
    if mode != "int8" and prefer != SPEED:
        raise UsageError(
            f"kernels are chosen by their {prefer} in mode int8, this is mode {mode}",
            help="leave it out, or compile in mode int8",
        )


CHECKS: Mapping[str, Callable[[Any, str], None]] = {
    "weight_snr": _check_weights,
    "act_bits": _check_activations,
    "angles": _check_angles,
    "prefer": _check_preference,
}
