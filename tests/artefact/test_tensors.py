"""Arrays come back from safetensors bytes as they went in, and the bytes depend on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from butterflyc.compiler.errors import BadInput, Damaged
from butterflyc.compiler.tensors import pack_arrays, unpack_arrays

ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    hnp.arrays(
        hnp.boolean_dtypes()
        | hnp.integer_dtypes(endianness="<")
        | hnp.unsigned_integer_dtypes(endianness="<")
        | hnp.floating_dtypes(endianness="<", sizes=(16, 32, 64)),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
    ),
    max_size=4,
)


@given(arrays=ARRAYS)
def test_round_trip(arrays: dict[str, Any]) -> None:
    """Names, shapes, dtypes and every bit come back."""
    back = unpack_arrays(pack_arrays(arrays))
    assert sorted(back) == sorted(arrays)
    for name, array in arrays.items():
        assert (back[name].shape, back[name].dtype) == (array.shape, array.dtype)
        assert back[name].tobytes() == array.tobytes()


@given(arrays=ARRAYS)
def test_same_arrays_same_bytes(arrays: dict[str, Any]) -> None:
    """Neither the order of names nor of memory shows in the bytes."""
    other = {name: np.array(array, order="F") for name, array in reversed(arrays.items())}
    assert pack_arrays(other) == pack_arrays(arrays)


def test_strides_and_byte_order_do_not_show() -> None:
    """A view with a step, and an array of the other byte order, are stored by their values."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    plain = pack_arrays({"a": array[::2, ::-1].copy()})
    assert pack_arrays({"a": array[::2, ::-1]}) == plain
    assert pack_arrays({"a": array[::2, ::-1].astype(">f4")}) == plain


@pytest.mark.parametrize("array", [np.array([None]), np.array("text"), np.array(1j)])
def test_what_cannot_be_stored_is_refused(array: Any) -> None:
    """Objects (which would need a pickle), text and complex numbers are refused by name."""
    with pytest.raises(BadInput, match="array 'a' holds"):
        pack_arrays({"a": array})


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
def test_cut_bytes_are_damaged(keep: int) -> None:
    """Bytes that end too early are called damaged, with the place given."""
    data = pack_arrays({"a": np.zeros(4, np.float32)})[:keep]
    with pytest.raises(Damaged) as caught:
        unpack_arrays(data, where="golden.safetensors")
    assert caught.value.where == "golden.safetensors"
