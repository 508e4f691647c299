"""What a meter is asked, and what it says: a way to compute a call, and what that takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import attrs
import numpy as np

from ..bench.timing import Timings
from ..compiler.errors import ButterflycError
from ..kernels import all_kernels
from ..kernels.record import Kernel, Spec
from .operands import error_of, meaning, operands
from .search import Way

# Where what is measured is: here, unless it is said.
HERE = "native"
# Of a way and the default one in turns, where times are measured.
ROUNDS = 9


class WrongResult(ButterflycError):
    """A kernel computed something else than its op."""

    code = "BF995"


@attrs.frozen
class Reading:
    """What a way took, in the unit of the method; ``spread`` between quartiles, as a fraction."""

    value: float
    spread: float = 0.0


@attrs.frozen
class Asked:
    """To measure ``way`` for ``spec``, against the ``default`` one.

    ``reference`` is the figure of the default one, where that is known: times are told in it, since
    a machine is not as fast at one time as at another. ``rounds`` of both are timed in turns.
    """

    spec: Spec
    way: Way
    default: Way
    reference: float | None = None
    rounds: int = ROUNDS


@attrs.frozen(eq=False)
class Trying:
    """Operands drawn for a spec, and the results that every way must have."""

    spec: Spec
    arrays: tuple[np.ndarray, ...]
    wanted: tuple[np.ndarray, ...]

    def check(self, results: Sequence[np.ndarray]) -> None:
        """Raises WrongResult if these are none."""
        if error := error_of(results, self.wanted, self.spec):
            raise WrongResult(error)


@lru_cache(maxsize=4)
def trying(spec: Spec) -> Trying:
    """Operands and results for ``spec``, the same each time."""
    arrays = operands(spec)
    return Trying(spec, arrays, meaning(spec, arrays))


def told(times: Timings, reference: float | None) -> Reading:
    """What ``times`` of a ``way`` and the ``default`` one say, in the ``reference`` of the latter.

    Without one it is the best time of the default way.
    """
    if reference is None:
        return Reading(times.best("default"))
    ratio, spread = times.ratio("way", "default")
    return Reading(reference * ratio, spread / ratio)


def kernel_of(way: Way) -> Kernel:
    """The kernel of ``way``, which is one for CPUs or microcontrollers."""
    return next(kernel for kernel in all_kernels() if kernel.name == way.kernel)


class Meter(Protocol):
    """Measures kernels, one at a time. ``target`` is how records name what it measures for.

    With ``alone`` nothing else may compute meanwhile. A measurement ends within ``limit`` seconds.
    """

    target: str
    method: str
    alone: bool
    limit: float

    def features(self) -> tuple[str, ...]:
        """What figures depend on beside the target: see `trial.Task`."""

    def instrument(self) -> str:
        """What measures, with versions. Raises ToolMissing with what to install."""

    def read(self, asked: Asked) -> Reading:
        """What a way takes. Raises WrongResult, and what the tools of the meter raise."""
