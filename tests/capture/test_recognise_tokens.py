"""Which token an element follows: code words, owners, rows filled up, places in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.capture.recognise_tokens import (
    NONE,
    SEVERAL,
    Owners,
    code_words,
    filled,
    places,
)


@given(st.integers(1, 300))
def test_two_code_words_together_are_no_code_word(count: int) -> None:
    """Words differ, have as many bits set, and so the union of two is none of them."""
    words = code_words(count)
    assert len({tuple(word) for word in words}) == count
    assert len(set(words.sum(1))) == 1
    assert words.any(1).all()


@given(st.integers(2, 40), st.integers(0, 2**16))
def test_owners_are_read_off_what_moves(count: int, seed: int) -> None:
    """An element is said to follow one thing, none, or several, as it does."""
    rng = np.random.default_rng(seed)
    follows = rng.random((6, count)) < 1.5 / count  # [elements, things]
    words = code_words(count)
    owners = Owners(words, (6,))
    for bit in range(words.shape[1]):
        owners.note(bit, (follows & words[:, bit]).any(1))
    wanted = [
        NONE if not row.any() else int(row.argmax()) if row.sum() == 1 else SEVERAL
        for row in follows
    ]
    assert owners.read().tolist() == wanted


def test_a_padded_row_belongs_to_its_token() -> None:
    """Zeros beside a row are given to the row's token, in whatever axis the rows lie."""
    rows = np.array([[0, 0, NONE], [1, 1, NONE]])
    assert filled(rows).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert filled(rows.T).tolist() == [[0, 1], [0, 1], [0, 1]]


def test_what_cannot_be_told_is_left() -> None:
    """Nothing is filled in where no axis holds rows, where tokens mix, or none is followed."""
    for tokens in ([[0, NONE], [NONE, 1]], [[0, SEVERAL], [NONE, 1]], [[NONE, NONE]]):
        array = np.array(tokens)
        assert filled(array).tolist() == tokens


def test_places_list_the_elements_of_each_token() -> None:
    """Elements are found token by token, in order, also where rows were sorted."""
    owners = np.array([[2, 2], [0, 0], [1, 1]])
    found = places(range(3), owners)
    assert found is not None
    assert found.tolist() == [[2, 3], [4, 5], [0, 1]]
    assert places([1], owners) is not None


def test_rows_of_unequal_length_have_no_places() -> None:
    """Tokens with different numbers of elements, with none, or mixed tokens have no rows."""
    assert places(range(2), np.array([0, 0, 1])) is None
    assert places(range(2), np.array([0, 0])) is None
    assert places(range(2), np.array([0, 1, SEVERAL])) is None
    assert places([], np.array([0, 1])) is None
