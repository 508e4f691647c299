"""Figures of the GPU benchmark: in turns, by name, and with the reason where there is none."""

from __future__ import annotations

import pytest
import torch

from butterflyc.bench.gpu.contender import Contender
from butterflyc.bench.gpu.measure import (
    FEWEST,
    MOST,
    Figure,
    disagreeing,
    fastest,
    interleaved,
    ratio,
    reason,
)
from butterflyc.bench.gpu.problem import Shape, draw

from .gpu_stand_ins import Scripted, Timed

DRAWS = [draw(Shape(4, 4, 3, 2), "uniform", "cpu", seed) for seed in range(2)]


def contender(name, side="ours", value=1.0, calls=1, copies=1, **kinds):
    def call(copy, went):
        if value is None:
            raise RuntimeError("out of memory\nand more lines")
        return torch.full((2, 4), value)

    return Contender(name, side, call, copies, calls, **kinds)


def test_what_fails_leaves_the_others_as_they_are():
    """One contender has no figure and a reason of one line; the others are timed a call each."""
    made = [contender("good", calls=4), contender("bad", value=None)]
    figures, left_out = interleaved(Scripted({"good": 2.0}), made, DRAWS, 1.0)
    assert left_out == {"bad": "RuntimeError: out of memory"}
    assert figures["good"].seconds == (0.5,) * FEWEST
    figures, left_out = interleaved(Scripted({}), [contender("bad", value=None)], DRAWS, 1.0)
    assert (figures, list(left_out)) == ({}, ["bad"])


def test_rounds_fit_the_time_and_leave_out_what_is_slow():
    """Fast ones get all rounds that time allows, up to the most; slow ones the fewest."""
    made = [contender("fast"), contender("also"), contender("slow")]
    device = Timed({"fast": 1e-3, "also": 2e-3, "slow": 1.0})
    figures, _ = interleaved(device, made, DRAWS, 0.03)
    assert [len(figures[name].seconds) for name in ("fast", "also", "slow")] == [10, 10, FEWEST]
    assert device.rounds[1][0] == ("fast", "also")
    figures, _ = interleaved(device, made, DRAWS, 100.0)
    assert len(figures["fast"].seconds) == MOST


def test_the_cache_is_spoilt_for_single_calls_only():
    """Rows of calls on copies of weights spoil the cache by themselves."""
    for calls in (1, 20):
        device = Scripted({})
        interleaved(device, [contender("a", calls=calls)], DRAWS, 1.0)
        assert device.rounds[0][2] is (calls == 1)


def test_each_call_takes_the_next_copy():
    """Copies and draws are taken in turns."""
    seen = []
    made = Contender("a", "ours", lambda copy, went: seen.append((copy, went is DRAWS[1])), 3, 4)
    made.all(DRAWS)
    assert seen == [(0, False), (1, True), (2, False), (0, True)]
    assert (made.how, contender("b", captured=False).how) == ("graph", "stream")


def test_results_are_compared_within_a_side():
    """Ours and eager ones must agree, and standard ones among themselves; NaN never does."""
    made = [
        contender("eager", "butterfly", 1.0),
        contender("ours"),
        contender("wrong", value=1.2),
        contender("nothing", value=float("nan")),
        contender("loop", "standard", 5.0),
        contender("tiled", "standard", 5.0),
        contender("other", "standard", 1.0),
        contender("broken", value=None),
    ]
    faults = disagreeing(made, DRAWS, "bf16")
    assert set(faults) == {"wrong", "nothing", "other", "broken"}
    assert faults["wrong"] == "differs from eager by 0.2 of 0.05 allowed"
    assert faults["other"].startswith("differs from loop")


def test_ratios_are_of_rounds_that_both_have():
    """A contender with fewer rounds is compared round by round with the first of the other."""
    slow = Figure(contender("slow"), (4.0, 6.0, 8.0))
    fast = Figure(contender("fast"), (2.0, 2.0, 2.0, 9.0))
    times, spread = ratio(slow, fast)
    assert times == pytest.approx(3.0)
    assert spread == pytest.approx(2.0)
    assert ratio(Figure(contender("once"), (3.0,)), fast) == (1.5, 0.0)


def test_a_figure_says_how_it_was_taken():
    """Quantiles are of calls in microseconds; copies, calls and rounds are beside them."""
    made = contender("a", "standard", calls=20, copies=7, note="rows=16", routed=True)
    found = Figure(made, tuple(i * 1e-6 for i in range(11))).as_dict()
    assert found == {
        "side": "standard", "how": "graph", "routed": True, "copies": 7, "calls": 20, "rounds": 11,
        "p20_us": 2.0, "p50_us": 5.0, "p80_us": 8.0, "note": "rows=16",
    }  # fmt: skip


def test_the_fastest_is_of_its_side():
    """None where a side has no figure."""
    figures = {
        "a": Figure(contender("a"), (2.0,)),
        "b": Figure(contender("b"), (1.0,)),
        "c": Figure(contender("c", "standard"), (0.5,)),
    }
    assert fastest(figures, "ours") is figures["b"]
    assert fastest(figures, "butterfly") is None
    assert reason(KeyError()) == "KeyError: "
