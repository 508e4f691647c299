"""How many experts fit: what is foretold is what the passes make, and what does not fit is told."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import butterflyc as bc
from butterflyc.budget import Budget, experts_that_fit, foretold, largest, memories_of
from butterflyc.compiler.errors import DoesNotFit, Unsupported, UsageError
from butterflyc.expert_model import subject_of
from butterflyc.expert_sizes import Sized, Subject
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.standard import StandardConfig
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.passes.budget import DEFAULT
from butterflyc.targets.placement import Part

SMALL = ViTConfig(
    image=8, channels=1, patch=4, classes=3, d_model=16, heads=2, layers=1,
    mlp=ButterflyConfig(16, 32, 4, 2),
)  # fmt: skip
PAIR = replace(SMALL, image=4, patch=2, layers=2)
FIRMWARE = 1 << 19  # of an ESP32's flash


@cache
def budget(target: str, **options: Any) -> Budget:
    return experts_that_fit(target, SMALL, **options)


@cache
def board(flash: int, **options: Any) -> Budget:
    """Of a board with so many bytes of flash for the model."""
    return experts_that_fit("esp32c3", SMALL, memories={"flash": FIRMWARE + flash}, **options)


@cache
def subject(target: str, mode: str) -> Subject:
    size = "1M" if target == "host" else None
    core, memory = memories_of(target, None, {}, size)
    return subject_of(PAIR, core, mode, DEFAULT, memory)


@given(st.integers(0, 3), st.integers(-1, 5000), st.integers(0, 9000))
def test_the_largest_number(least: int, most: int, guess: int) -> None:
    """It is found from any guess, and from a near one in few questions."""
    asked = []

    def fits(number: int) -> bool:
        asked.append(number)
        assert number >= least
        return number <= most

    found = largest(fits, least, max(least, guess))
    assert found == max(most, least - 1)
    if max(least, guess) == found:
        assert len(asked) == 2


# Of as many experts as a width has channels, a constant may be equal to one of that width.
others = st.integers(2, 40).filter(lambda count: count not in (PAIR.d_model, 2 * PAIR.d_model))


def parts_without_code(sized: Sized) -> list[Part]:
    """What lies in all memories and is known to the byte."""
    parts = (part for region in sized.placed.regions for part in region.parts)
    return [part for part in parts if part.what != "code"]


@pytest.mark.parametrize(
    ("target", "mode"),
    [pytest.param("esp32c3", "int8", marks=pytest.mark.slow), ("host", "f32")],
)
@settings(max_examples=4)
@given(base=st.integers(2, 20), other=others)
def test_what_passes_make_is_foretold(target: str, mode: str, base: int, other: int) -> None:
    """But for kernels that are chosen anew, which the estimate of the code counts."""
    model = subject(target, mode)
    guess, real = model.predicted(model.lowered(base), other), model.lowered(other)
    assert guess.owned == real.owned
    assert parts_without_code(guess) == parts_without_code(real)


def test_a_model_is_as_if_captured_with_other_experts() -> None:
    """Lowered with five experts, it has the parts of a model that PyTorch gave with five."""
    model = subject("esp32c3", "int8").lowered(5)
    mlp = replace(PAIR.mlp, experts=5, angle_std=1.0)  # type: ignore[type-var]
    torch.manual_seed(0)
    captured = ViT(replace(PAIR, mlp=mlp)).eval()
    for parameter in captured.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    program = bc.compile(captured, (torch.rand(1, 1, 4, 4),), target="esp32c3", name="vit")
    report = program.placement
    assert report
    assert report["weights"]["bytes"] == model.placed.weights
    assert report["arena"]["bytes"] == model.placed.arena.bytes


def test_flash_binds() -> None:
    """Shares are what placements have; the most experts leave less than one more takes."""
    found = board(80_000)
    flash, sram = (found.memory(name) for name in ("flash", "sram"))
    assert flash
    assert sram
    assert (found.checked, found.binds, found.error) == (True, ("flash",), None)
    assert 0 <= flash.left < flash.one_more
    assert flash.usable == 80_000
    assert sram.code == sram.shared == sram.experts == 0
    assert found.without_code > found.experts
    assert found.memory("psram") is None
    data = found.as_dict()
    assert data["memories"][0]["left"] == flash.left
    assert data["experts"] == found.experts


@pytest.mark.slow
def test_more_fit_by_smaller_angles_and_less_code() -> None:
    """What is advised is what a plan with it finds; one that knows the code has no estimate."""
    found, advised = board(80_000), board(80_000, advise=True)
    assert advised.experts == found.experts
    assert {"--angles i16", "--angles i8"} <= dict(advised.advice).keys()
    other = board(80_000, angles="i8")
    assert dict(advised.advice)["--angles i8"] == other.experts > found.experts
    flash = found.memory("flash")
    assert flash
    measured = board(80_000, code=flash.code // 2)
    assert found.experts < measured.experts < found.without_code == measured.without_code


@pytest.mark.slow
def test_sram_binds() -> None:
    """Scores lie in the arena, so that it grows with experts; PSRAM would take it."""
    found = experts_that_fit("esp32", SMALL, memories={"sram": "5K"}, advise=True)
    assert (found.checked, found.binds) == (True, ("sram",))
    sram = found.memory("sram")
    assert sram
    assert 0 <= sram.left < sram.one_more == 64
    assert dict(found.advice)["--psram 4M"] > 10 * found.experts


@pytest.mark.slow
def test_none_fits() -> None:
    """It is told by how much, of the fewest experts there may be."""
    found = board(10_000)
    flash = found.memory("flash")
    assert flash
    assert (found.experts, found.checked, found.fewest, found.binds) == (0, True, 2, ("flash",))
    assert found.excess == {"flash": flash.used - 10_000}
    assert isinstance(found.error, DoesNotFit)
    assert f"{found.excess['flash']:,} too many" in found.error.what
    assert "fewer experts" not in str(found.error.help)


def test_a_cpu() -> None:
    """All lies in the one memory that was given; what is too much for it is told too."""
    found = budget("cortex-a72", memory="200K")
    (share,) = found.memories
    assert share.usable == 200 << 10
    assert 0 <= share.left < 64 * 16 + share.one_more  # a panel has room for sixteen rows of scores
    assert found.checked
    none = budget("cortex-a72", memory="20K")
    assert none.experts == 0
    assert "takes" in str(none.error)
    assert none.excess["memory"] > 0


@pytest.mark.slow
def test_what_is_too_large_is_foretold() -> None:
    """Of a gigabyte of experts no model is made; the answer says of how many one was."""
    found = budget("host", memory="1G")
    assert not found.checked
    (share,) = found.memories
    assert 0 <= share.left < share.one_more + 4096
    assert found.lowered < found.experts
    assert share.experts > 1 << 29


def test_a_gpu() -> None:
    """Weights and what is alive at once are counted, and no code."""
    pytest.importorskip("triton", reason="kernels of GPUs are written in Triton")
    found = budget("cuda-sm90", memory="1M")
    (share,) = found.memories
    assert share.code == 0
    assert not found.has_code
    assert share.activations > 0
    assert found.experts > 100


@pytest.mark.parametrize(("text", "size"), [("4GiB", 1 << 32), ("2g", 1 << 31), (4096, 4096)])
def test_memory_of_a_system(text: str | int, size: int) -> None:
    """It may be given in GiB."""
    _, memory = memories_of("host", None, {}, text)
    assert memory
    assert memory.usable == size


@pytest.mark.parametrize(
    ("target", "options", "what"),
    [
        ("host", {}, "memory of host is not known"),
        ("esp32", {"memory": "4M"}, "esp32 has more than one memory: flash, sram, psram"),
        ("c99", {}, "the flash of c99 is not known"),
        ("host", {"memory": "much"}, "'much' is no size for memory"),
        ("esp32", {"angles": "f16"}, "angles as 'f16' in mode int8"),
    ],
)
def test_usage(target: str, options: dict[str, Any], what: str) -> None:
    """What cannot be asked is refused before a model is captured."""
    with pytest.raises(UsageError, match=what):
        experts_that_fit(target, SMALL, **options)


def test_other_layers() -> None:
    """Experts that share nothing are not planned for."""
    other = replace(SMALL, mlp=StandardConfig(16, 32, 4, 2))
    with pytest.raises(UsageError, match="a ViT whose MLP is a StandardConfig"):
        experts_that_fit("esp32", other)


def test_a_layer_that_is_not_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is given for a model that would be compiled as something else."""
    from butterflyc import expert_model

    lowered = expert_model.lower

    def none_found(*arguments: Any, **options: Any) -> Any:
        built = lowered(*arguments, **options)
        built.record.layers = ()
        return built

    monkeypatch.setattr(expert_model, "lower", none_found)
    with pytest.raises(Unsupported, match="0 of 1 layers were recognised"):
        experts_that_fit("esp32", SMALL)


def compiled(experts: int, flash: int) -> bc.Program:
    """The small model with so many experts, compiled for a board with so much flash for it."""
    rng = np.random.default_rng(1)
    mlp = replace(SMALL.mlp, experts=experts, angle_std=1.0)  # type: ignore[type-var]
    torch.manual_seed(1)
    model = ViT(replace(SMALL, mlp=mlp)).eval()
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.from_numpy(rng.normal(size=parameter.shape)).float()
    images = torch.from_numpy(rng.random((1, 1, 8, 8), np.float32))
    memories = {"flash": FIRMWARE + flash}
    return bc.compile(model, (images,), target="esp32s3", memories=memories, name="vit")


@pytest.mark.slow
def test_that_many_compile_and_one_more_does_not() -> None:
    """With the code as it was measured; and with none at all, which `compile` refuses at once."""
    flash = 60_000
    code = compiled(4, 1 << 20).placement["code"]["bytes"]  # type: ignore[index]
    found = experts_that_fit("esp32s3", SMALL, memories={"flash": FIRMWARE + flash}, code=code)
    assert found.checked
    program = compiled(found.experts, flash)
    placement, share = program.placement, found.memory("flash")
    assert placement
    assert share
    assert placement["weights"]["bytes"] == share.shared + share.experts
    with pytest.raises(DoesNotFit, match="flash needs"):
        compiled(found.experts + 1, flash)
    with pytest.raises(DoesNotFit, match="flash needs"):
        compiled(found.without_code + 1, flash)


def test_foretold_from_any_model() -> None:
    """The most experts do not depend on what they were foretold from."""
    model = subject("esp32c3", "int8")
    assert foretold(model, model.lowered(2), 2) == foretold(model, model.lowered(30), 2)
