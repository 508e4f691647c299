"""The corpus: whole files, split by their names alone; and what an n-gram model makes of text."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.errors import BadInput, UsageError
from butterflyc.models import text
from butterflyc.models.ngram import NGram
from butterflyc.models.text import TextSplit, library_text


def array(content: bytes) -> text.Bytes:
    """Bytes as the models take them."""
    return np.frombuffer(content, np.uint8)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 60 small files, and of some that are left out; little text is enough."""
    monkeypatch.setattr(text, "LEAST_TRAINING_BYTES", 500)
    for folder in ("", "json", "test", "site-packages/x", "encodings"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number in range(30):
            content = f"# {folder or 'top'} {number}\n"
            (tmp_path / folder / f"m{number}.py").write_text(content)
    (tmp_path / "notes.txt").write_text("# no source\n")
    return tmp_path


def files(part: text.Bytes) -> list[bytes]:
    """The files that a text was joined from."""
    return [one for one in part.tobytes().split(b"\0") if one]


def test_files_are_split_whole(sources: Path) -> None:
    """Every source is in one part, whole; tests, others' packages and tables in neither."""
    split = library_text(sources)
    train, held_out = files(split.train), files(split.held_out)
    assert (split.files, split.held_out_files) == (len(train), len(held_out))
    wanted = {
        f"# {folder} {number}\n".encode() for folder in ("top", "json") for number in range(30)
    }
    assert Counter(train + held_out) == Counter(wanted)
    assert 1 <= len(held_out) <= 12
    assert split.held_out[0] == split.held_out[-1] == split.train[-1] == 0


def test_the_split_is_by_name(sources: Path) -> None:
    """What a file holds does not move it to the other part; the digest tells that it changed."""
    before = library_text(sources)
    held_out = files(before.held_out)[0]
    words = held_out.decode().split()
    path = sources / ("" if words[1] == "top" else words[1]) / f"m{words[2]}.py"
    path.write_text("# other\n")
    after = library_text(sources)
    assert b"# other\n" in files(after.held_out)
    assert np.array_equal(before.train, after.train)
    assert before.digest != after.digest
    assert before.digest == library_text_digest(before)


def library_text_digest(split: TextSplit) -> str:
    """The digest of an equal split."""
    return TextSplit(split.train.copy(), split.held_out.copy()).digest


def test_calibration_windows_span_the_text() -> None:
    """64 windows of the training text, the first from its start and the last to its end."""
    split = TextSplit(np.arange(200, dtype=np.uint8), array(b"\0x\0"))
    windows = split.calibration(10)
    assert windows.shape == (64, 10)
    assert windows[0].tolist() == list(range(10))
    assert windows[-1].tolist() == list(range(190, 200))


def test_too_little_text_is_refused(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with less text than wanted is refused with its path and both numbers."""
    monkeypatch.undo()
    with pytest.raises(BadInput, match="wanted 2,000,000") as caught:
        library_text(sources)
    assert caught.value.where == str(sources)
    with pytest.raises(UsageError, match="no folder"):
        library_text(sources / "none")


def test_pythons_own_library_is_enough() -> None:
    """The library of the Python that runs this has two million bytes to train on, and more."""
    split = library_text()
    assert len(split.train) >= 2_000_000
    assert 0.01 < len(split.held_out) / len(split.train) < 0.2


@settings(max_examples=10, deadline=None)
@given(st.binary(min_size=8, max_size=300), st.binary(min_size=3, max_size=3), st.integers(0, 3))
def test_probabilities_sum_to_one(seen: bytes, context: bytes, order: int) -> None:
    """Over all 256 bytes, behind contexts that occur and ones that do not."""
    model = NGram(array(seen), order)
    for before in (context, seen[:3], seen[-3:]):
        texts = [array((before + bytes([byte]))[3 - order :]) for byte in range(256)]
        total = sum(model.probabilities(one)[0] for one in texts)
        assert total == pytest.approx(1.0)


def test_bigrams_are_those_of_the_formula() -> None:
    """Order 1 on a short text is interpolated Kneser-Ney, summed by hand from its counts."""
    seen = b"abacabad"
    pairs = Counter(pairwise(seen))
    before = Counter(second for _, second in pairs)  # different bytes before each
    once = lambda counts: sum(n == 1 for n in counts.values())  # noqa: E731
    twice = lambda counts: sum(n == 2 for n in counts.values())  # noqa: E731
    d2 = once(pairs) / (once(pairs) + 2 * twice(pairs))
    d1 = once(before) / (once(before) + 2 * twice(before))
    low = {
        byte: max(before[byte] - d1, 0) / before.total() + d1 * len(before) / before.total() / 256
        for byte in range(256)
    }
    total = sum(n for (first, _), n in pairs.items() if first == ord("a"))
    followers = sum(first == ord("a") for first, _ in pairs)
    model = NGram(array(seen), 1)
    for byte in b"abcdx":
        share = max(pairs[ord("a"), byte] - d2, 0) / total
        wanted = share + d2 * followers / total * low[byte]
        assert model.probabilities(array(b"a" + bytes([byte])))[0] == pytest.approx(wanted)


def test_an_ngram_model_learns() -> None:
    """Text like what it has seen costs few bits; random bytes cost about eight."""
    sentence = array(b"for x in range(10):\n    print(x)\n" * 50)
    noise = np.random.default_rng(0).integers(0, 256, 2000).astype(np.uint8)
    model = NGram(sentence)
    assert model.bits_per_byte(sentence[:200]) < 0.5
    assert 7.5 < model.bits_per_byte(noise) < 20


@pytest.mark.parametrize(("content", "order"), [(b"abc", 3), (b"abcdefgh", 7), (b"abc", -1)])
def test_impossible_ngrams_are_refused(content: bytes, order: int) -> None:
    """Too short a text, and an order that no table holds, are refused."""
    with pytest.raises(BadInput, match="n-gram model of order"):
        NGram(array(content), order)
