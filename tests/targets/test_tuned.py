"""Parameters that were measured on a GPU are found again for it, and only where they fit."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.bench.gpu.problem import Shape, spec
from butterflyc.compiler.errors import Damaged
from butterflyc.compiler.run.kernel import spec_for
from butterflyc.kernels.record import Tensor
from butterflyc.targets.tuned import (
    FOLDER,
    Entry,
    Sizes,
    Tuned,
    file_name,
    find,
    from_json,
    sizes_of,
    to_json,
)

LAYER = Shape(256, 1024, 8, 32)
H200 = "NVIDIA H200"


def tuned(device=H200, capability=90, tokens=(1, 32)):
    entries = tuple(
        Entry(sizes_of(spec(LAYER.with_tokens(t), "bf16")), "gpu_fused", {"warps": 4, "t": t}, 3.5)
        for t in tokens
    )
    return Tuned(device, capability, "3.6.0", "2.13.0", entries)


def test_sizes_are_those_of_the_call():
    """A spec's sizes say tokens, widths and mode, and not how many experts there are."""
    found = sizes_of(spec(LAYER, "f16", codes=True))
    assert found == Sizes(32, 2, 256, 1024, 256, "f16", True)
    other = Shape(256, 1024, 64, 32)
    assert sizes_of(spec(other, "bf16")) == sizes_of(spec(LAYER, "bf16"))


@given(st.lists(st.integers(1, 70000), max_size=4), st.integers(50, 120), st.text())
def test_what_is_written_is_read(tokens, capability, device):
    """A file holds every entry and what it was measured with."""
    whole = tuned(device, capability, tokens)
    assert from_json(to_json(whole), "a.json") == whole


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"schema": "other/1"}',
        to_json(tuned()).replace(b"channels", b"width"),
        json.dumps({**json.loads(to_json(tuned())), "more": 1}).encode(),
    ],
    ids=["empty", "list", "nothing", "schema", "field", "unknown"],
)
def test_other_files_are_refused_by_name(data):
    """What is no such file, or has a field too few or too many, is an error that names it."""
    with pytest.raises(Damaged, match=r"a\.json does not hold tuned parameters") as raised:
        from_json(data, "a.json")
    assert "benchmarks/gpu.py" in str(raised.value)


@pytest.mark.parametrize(
    ("tokens", "nearest"), [(1, 1), (2, 1), (8, 32), (32, 32), (100, 32), (1000, None)]
)
def test_tokens_are_rounded_to_what_was_measured(tokens, nearest):
    """The nearest number of tokens serves, if it is at most four times away."""
    choice = tuned().choice(spec(LAYER.with_tokens(tokens), "bf16"))
    assert choice == (nearest and ("gpu_fused", {"warps": 4, "t": nearest}))


def test_other_layers_get_nothing():
    """Another width, mode or op has no choice, and no place among the choices."""
    whole, asked = tuned(), spec(LAYER, "bf16")
    assert whole.choice(spec(Shape(512, 1024, 8, 32), "bf16")) is None
    assert whole.choice(spec(LAYER, "f16")) is None
    assert whole.choice(spec(LAYER, "bf16", codes=True)) is None
    other = spec_for("rotate", [Tensor("f32", (4,))] * 2, [], lanes=1)
    assert whole.choice(other) is None
    assert whole.choices([asked, other]) == {asked.digest: ("gpu_fused", {"warps": 4, "t": 32})}
    assert attrs.evolve(whole, entries=()).choice(asked) is None


def test_a_device_finds_its_file_or_that_of_its_kind(tmp_path):
    """The exact device first, then the same capability, then nothing; a line says which."""
    for each in (tuned(), tuned("NVIDIA H100 PCIe"), tuned("NVIDIA A100", 80)):
        (tmp_path / file_name(each.device)).write_bytes(to_json(each))
    found, line = find(H200, 90, tmp_path)
    assert (found, line) == (tuned(), "parameters as measured on NVIDIA H200")
    found, line = find("NVIDIA A100-SXM4", 80, tmp_path)
    assert found == tuned("NVIDIA A100", 80)
    assert line == "parameters as measured on NVIDIA A100: none are of NVIDIA A100-SXM4"
    found, line = find("Tesla T4", 75, tmp_path)
    assert found is None
    assert line == "parameters by default: none were measured on Tesla T4 or its kind"
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(Damaged, match=r"broken\.json"):
        find(H200, 90, tmp_path)


def test_files_that_are_shipped_can_be_read():
    """Every file of targets/tuned is of the device that it is named after."""
    for path in FOLDER.glob("*.json"):
        assert path.name == file_name(from_json(path.read_bytes(), path.name).device)
    assert file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3.json"
