"""Two ways in one program: the results are right, and each round has a time of both."""

from __future__ import annotations

import pytest

from butterflyc.bench.cases import dense, ternary
from butterflyc.bench.kernels import best
from butterflyc.compiler.errors import ToolFailed
from butterflyc.compiler.run.hosted import Finished
from butterflyc.compiler.run.timed_call import name_of, time_beside
from butterflyc.compiler.run.user_mode import UserMode
from butterflyc.targets.cpu import machine
from butterflyc.targets.registry import load_core

BOARD = machine(load_core("cortex-a72"))


class Broken:
    """A place where programs end badly."""

    name = "a board"

    def run(self, program, words, reads, writes):
        return Finished(3, "no room", {})


def timed(case, parameters, rounds=4, place=None):
    """The best kernel for a case, with other parameters, beside itself."""
    kernel = best(case.spec, BOARD.lanes)
    ways = (kernel, case.spec.with_parameters(parameters)), (kernel, case.spec)
    place = place or UserMode("qemu-aarch64", "cortex-a72")
    return time_beside(place, ways, case.arrays, BOARD.lanes, BOARD.target, rounds)


@pytest.mark.parametrize(
    ("case", "parameters"),
    [(dense(9, 64, 40), {"tile_rows": 1, "tile_vectors": 4}), (ternary(9, 64, 40), {})],
    ids=["linear", "ternary_dot"],
)
def test_results_and_times(arm, case, parameters):
    """Results are what the op means, weights packed in another way or not; no time is zero."""
    found = timed(case, parameters)
    case.check(found.results)
    assert found.seconds.shape == (4, 2)
    assert (found.seconds > 0).all()


def test_a_program_that_fails_is_told(arm):
    """With the place, the status and what was said."""
    with pytest.raises(ToolFailed, match="at a board ended with 3: no room"):
        timed(dense(2, 8, 8), {}, place=Broken())


def test_the_board_has_a_name(arm):
    """In an emulator, that of this machine's processor, or of the emulator."""
    assert name_of(UserMode("qemu-aarch64", "cortex-a72"), BOARD.target)
