"""The pictures are PNGs that are made again to the byte."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from butterflyc.compiler.errors import ToolMissing
from butterflyc.models.series import Outcome
from butterflyc.paper.curves import Summary, curves_picture, panels, summary
from butterflyc.paper.devices import devices, figure_6, placed_key
from butterflyc.paper.figures import (
    _device_bars,
    _energy_bars,
    devices_picture,
    energy_picture,
    memory_picture,
    similarity_picture,
)
from butterflyc.paper.similarity import Similarity
from butterflyc.paper.trained import Trained


def similarities() -> bytes:
    """Two models, of which one has a layer less."""
    few, many = Similarity((np.eye(3),)), Similarity((np.eye(3), -np.eye(3)))
    return similarity_picture({"a": many, "b": few})


def memory() -> bytes:
    """Figure 4 with two measured points."""
    return memory_picture({"figure4.8.down-ternary": 0.9, "figure4.64.down-ternary": 1.9})


def energy() -> bytes:
    """Figure 7 with what our kernels move."""
    return energy_picture({"figure7.moved": 0.6})


def experts_on_devices() -> bytes:
    """Figure 6 with placements on a board and on a CPU; without any it is another."""
    ours = {"figure6.esp32s3.flash": 181.0, "figure6.jetson-nano.ram.ours": 213295.0}
    png = devices_picture(ours)
    assert png != devices_picture({})
    return png


def curves() -> bytes:
    """Two seeds of one kind of digits, one language model."""
    curve = [{"epoch": 1, "loss": 2.0, "accuracy": 10.0}, {"epoch": 2, "loss": 1.0}]
    digits = [Outcome("butterfly", seed, 9, {"accuracy": 50.0 + seed}, curve) for seed in (0, 1)]
    text = [Outcome("dense", 0, 9, {"bits_per_byte": 2.0}, [{"epoch": 1, "loss": 3.0}])]
    return curves_picture(panels(Trained(digits=digits, text=text)))


def test_ablations_have_no_panel() -> None:
    """They are of fewer steps; without anything else there is no picture of curves."""
    ablation = Outcome("static", 0, 9, {"bits_per_byte": 2.0}, [])
    assert panels(Trained(text=[ablation])) == []


def test_seeds_are_drawn_as_their_mean_and_a_band() -> None:
    """By epoch; the last point is of the whole test set."""
    first = Outcome("dense", 0, 9, {"accuracy": 60.0}, [{"epoch": 1, "accuracy": 10.0}])
    other = Outcome("dense", 1, 9, {"accuracy": 70.0}, [{"epoch": 1, "accuracy": 40.0}])
    wanted = Summary([1, 1], [25.0, 65.0], [10.0, 60.0], [40.0, 70.0])
    assert summary([first, other], "accuracy") == wanted


def chunks(png: bytes) -> dict[str, bytes]:
    """The parts of a PNG by their names, each with the right checksum."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    found, place = {}, 8
    while place < len(png):
        (size,) = struct.unpack_from(">I", png, place)
        name, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        (checksum,) = struct.unpack_from(">I", png, place + 8 + size)
        assert checksum == zlib.crc32(name + data)
        found[name.decode()] = found.get(name.decode(), b"") + data
        place += size + 12
    return found


@pytest.mark.parametrize("draw", [memory, experts_on_devices, energy, similarities, curves])
def test_pictures(draw: Callable[[], bytes]) -> None:
    """Whole, of some size, not of one colour, without dates or versions, and the same again."""
    png = draw()
    parts = chunks(png)
    width, height = struct.unpack(">II", parts["IHDR"][:8])
    assert 400 < width < 2000
    assert 300 < height < 2000
    assert len(set(zlib.decompress(parts["IDAT"]))) > 50
    assert not {"tEXt", "iTXt", "zTXt", "tIME"} & parts.keys()
    assert draw() == png


@pytest.mark.parametrize("draw", [memory, similarities, curves])
def test_matplotlib_is_asked_for(
    draw: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib the error says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ToolMissing, match="matplotlib is not installed") as caught:
        draw()
    assert "butterflyc[train]" in str(caught.value.help)


def test_each_device_and_each_energy_that_was_measured_has_a_bar() -> None:
    """Where nothing was measured there is none; a device that holds no expert has one of none."""
    keys = [placed_key(device) for device in devices()]
    assert set(keys) <= {row.key for row in figure_6().rows}
    bare, full = (_device_bars(devices(), ours) for ours in ({}, {keys[2]: 181.0, keys[3]: 0.0}))
    assert [bar[:2] for bar in full[:-1]] == [bar[:2] for bar in bare]
    assert full[-1][2] == {2: 181.0, 3: 0.0}
    energies = [value for _, _, value in _energy_bars({"figure7.moved": 0.6})]
    assert energies[1:] == [value for _, _, value in _energy_bars({})]
    assert energies[0] == 0.6
