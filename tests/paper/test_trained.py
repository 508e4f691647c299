"""Tables of trained models: means, leads and spreads of their outcomes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from butterflyc.models.series import Outcome
from butterflyc.paper.forms import Accuracy
from butterflyc.paper.rows import Row
from butterflyc.paper.trained import NAMES, Trained, read


def outcome(kind: str, seed: int, value: float) -> Outcome:
    """One of digits and of text at once."""
    figures = {
        "accuracy": value,
        "perplexity_per_byte": value,
        "bits_per_byte": 2.0,
        "ngram_bits_per_byte": 2.5,
    }
    return Outcome(kind, seed, 1234, figures, [])


OUTCOMES = [
    outcome("butterfly", 0, 97.0),
    outcome("butterfly", 1, 95.0),
    outcome("butterfly", 2, 99.0),
    outcome("standard", 0, 96.0),
    outcome("standard", 1, 96.0),
    outcome("reference", 0, 90.0),
]


def rows(trained: Trained) -> dict[str, Row]:
    return {row.key: row for table in trained.tables() for row in table.rows}


def test_means_and_deviations() -> None:
    """The mean over seeds is measured; the seeds and their deviation stand beside it."""
    row = rows(Trained(digits=OUTCOMES))["digits.butterfly"]
    assert row.measured == pytest.approx(97.0)
    assert row.why == "Seeds: 97, 95, 99; standard deviation 2. 1,234 parameters."


def test_leads_are_of_the_seeds_that_both_have() -> None:
    """Butterfly less StandardMoE: 1 and -1 points; seed 2 has no partner."""
    row = rows(Trained(digits=OUTCOMES))["digits.lead.standard"]
    assert row.measured == pytest.approx(0.0)
    assert row.why.startswith("Seeds: 1, -1;")


def test_text_has_an_n_gram_model_and_ablations_apart() -> None:
    """The n-gram's perplexity is a row; ablations have a table of their own."""
    found = rows(Trained(text=OUTCOMES))
    assert found["text.ngram"].measured == pytest.approx(2**2.5)
    assert found["ablations.reference"].why == "One seed. 1,234 parameters."
    assert "text.reference" not in found


def test_forms_tell_mode_w_down_and_angles() -> None:
    """In int8 a float W_down is an int8 one."""
    forms = [Accuracy("butterfly", seed, "int8", "i8", 90.0 + seed) for seed in (0, 1)]
    forms += [Accuracy("ternary-down", 0, "f32", None, 80.0)]
    found = rows(Trained(forms=forms))
    assert found["forms.butterfly.int8.i8"].what == "int8, W_down int8, i8 angles"
    assert found["forms.butterfly.int8.i8"].measured == pytest.approx(90.5)
    what = "f32, W_down ternary, angles not rounded"
    assert found["forms.ternary-down.f32.none"].what == what


def test_what_is_absent_has_no_table(tmp_path: Path) -> None:
    """An empty folder gives no table; files of outcomes are read back."""
    assert read(tmp_path).tables() == ()
    content = json.dumps([asdict(each) for each in OUTCOMES])
    (tmp_path / "digits.json").write_text(content)
    assert list(read(tmp_path).digits) == OUTCOMES


def test_shipped_outcomes_make_tables() -> None:
    """Every shipped outcome is of a kind that has a name."""
    shipped = read()
    kinds = {each.kind for each in (*shipped.digits, *shipped.text)}
    assert kinds <= set(NAMES)
    assert shipped.tables() or not kinds
