"""Checkpoints: the round trip, and every way in which a file can be wrong."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from butterflyc.compiler.errors import (
    ButterflycError,
    CannotWrite,
    Damaged,
    Incompatible,
    UsageError,
)
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.checkpoint import (
    DIGITS,
    HEAD,
    digest,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from butterflyc.models.data import ImageSet
from butterflyc.models.language import LanguageConfig, LanguageModel
from butterflyc.models.vit import ViT, ViTConfig

CONFIG = ViTConfig(
    image=8,
    channels=1,
    patch=4,
    classes=10,
    d_model=8,
    heads=2,
    layers=1,
    mlp=ButterflyConfig(d_model=8, d_ff=16, experts=3, top_k=1),
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, ViT]:
    """A small checkpoint with images and notes, and the model in it."""
    torch.manual_seed(0)
    model = ViT(CONFIG).eval()
    images = ImageSet(np.full((2, 1, 8, 8), 7, np.uint8), np.array([3, 4]), 16)
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, model, images={"test": images}, notes={"accuracy": 12.5})
    return path, model


def rewrite(path: Path, *, tensors: dict[str, Any] | None = None, **head: Any) -> None:
    """Change tensors (None removes one) and entries of the head of a checkpoint in place."""
    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()[HEAD])
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    held = {k: v for k, v in {**held, **(tensors or {})}.items() if v is not None}
    new = {**old, "sha256": digest(held), **head}
    save_file(held, path, metadata={HEAD: json.dumps(new)})


def test_round_trip(saved: tuple[Path, ViT]) -> None:
    """Configuration, weights, images and notes come back exactly; the module computes the same."""
    path, model = saved
    loaded, config = load_checkpoint(path)
    assert config == CONFIG
    assert not loaded.training
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(images), model(images))
    held = read_checkpoint(path)
    assert held.notes == {"accuracy": 12.5}
    assert held.images["test"].labels.tolist() == [3, 4]
    assert held.images["test"].images.tolist() == np.full((2, 1, 8, 8), 7).tolist()


def test_two_saves_are_byte_identical(saved: tuple[Path, ViT], tmp_path: Path) -> None:
    """The same model saved twice gives the same bytes."""
    _, model = saved
    save_checkpoint(tmp_path / "a", model)
    save_checkpoint(tmp_path / "b", model)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def head_of(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint."""
    with safe_open(path, framework="pt") as file:
        head: dict[str, Any] = json.loads(file.metadata()[HEAD])
    return head


def test_language_models_round_trip(tmp_path: Path) -> None:
    """A language model comes back with its text, as a file that older versions refuse."""
    torch.manual_seed(0)
    config = LanguageConfig(context=8, d_model=8, heads=2, layers=1, mlp=CONFIG.mlp)
    model, windows = LanguageModel(config).eval(), np.arange(16, dtype=np.uint8).reshape(2, 8)
    path = tmp_path / "lm.safetensors"
    save_checkpoint(path, model, text={"calibration": windows}, notes={"bits": 2.5})
    held = read_checkpoint(path)
    assert (held.config, held.notes, held.images) == (config, {"bits": 2.5}, {})
    assert held.text["calibration"].tolist() == windows.tolist()
    tokens = torch.from_numpy(windows.astype(np.int64))
    assert torch.equal(held.model()(tokens), model(tokens))
    assert head_of(path)["version"] == 2


def test_files_of_the_first_version_are_read(saved: tuple[Path, ViT]) -> None:
    """ViTs are written as the first version does; without the word, a file holds a ViT."""
    path, model = saved
    assert head_of(path)["version"] == 1
    assert "family" not in head_of(DIGITS)
    rewrite(path, family="vit")
    with_word = load_checkpoint(path)[0]
    with safe_open(path, framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    head = {key: value for key, value in head_of(path).items() if key != "family"}
    save_file(held, path, metadata={HEAD: json.dumps(head)})
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(load_checkpoint(path)[0](images), model(images))
    assert torch.equal(with_word(images), model(images))


def test_every_cut_is_damaged(saved: tuple[Path, ViT]) -> None:
    """A file cut anywhere is damaged, and the error names it."""
    path, _ = saved
    content = path.read_bytes()
    for end in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(Damaged) as caught:
            load_checkpoint(path)
        assert caught.value.where == str(path)


def test_flipped_header_bytes_end_in_our_errors(saved: tuple[Path, ViT]) -> None:
    """A flipped byte in the header gives one of our errors or a valid model, never a crash."""
    path, _ = saved
    content = path.read_bytes()
    for position in range(0, 1500, 13):
        changed = bytearray(content)
        changed[position] ^= 0x11
        path.write_bytes(bytes(changed))
        # A flip inside a free number or text leaves another valid model: nothing to refuse.
        with suppress(ButterflycError):
            load_checkpoint(path)


def test_every_flipped_bit_of_the_data_is_damaged(saved: tuple[Path, ViT]) -> None:
    """A flipped bit in any weight or pixel is damaged: the checksum sees what the shapes do not."""
    path, _ = saved
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for position in range(start, len(content), 211):
        changed = bytearray(content)
        changed[position] ^= 0x01
        path.write_bytes(bytes(changed))
        with pytest.raises(Damaged, match=r"SHA-256 differs|holds NaN"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("head", "error", "says"),
    [
        ({"version": 99}, Incompatible, "version 99"),
        ({"version": "x"}, Damaged, "cannot be read"),
        ({"config": 3}, Damaged, "cannot be read"),
        ({"config": {}}, Damaged, "cannot be read"),
        ({"config": {**CONFIG.as_dict(), "heads": 3}}, Damaged, "not possible"),
        ({"config": {**CONFIG.as_dict(), "colour": 3}}, Damaged, "cannot be read"),
        ({"family": "language"}, Damaged, "cannot be read"),
        ({"family": "none"}, Damaged, "cannot be read"),
        ({"white": {"train": 16}}, Damaged, "cannot be read"),
    ],
)
def test_wrong_heads(
    saved: tuple[Path, ViT], head: dict[str, Any], error: type[ButterflycError], says: str
) -> None:
    """Metadata of another format, version or configuration is refused with the reason."""
    path, _ = saved
    rewrite(path, **head)
    with pytest.raises(error, match=says) as caught:
        load_checkpoint(path)
    assert caught.value.where == str(path)
    assert caught.value.help


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"weights.norm.weight": None}, "'norm.weight' has shape absent"),
        ({"weights.norm.weight": torch.zeros(3)}, r"'norm.weight' has shape \[3\]"),
        ({"weights.spare": torch.zeros(3)}, "'spare' has shape"),
        ({"weights.norm.weight": torch.full((8,), float("nan"))}, "holds NaN"),
    ],
)
def test_wrong_weights(saved: tuple[Path, ViT], tensors: dict[str, Any], says: str) -> None:
    """A weight that is missing, misshapen, unknown or NaN is named."""
    path, _ = saved
    rewrite(path, tensors=tensors)
    with pytest.raises(Damaged, match=says) as caught:
        load_checkpoint(path)
    assert caught.value.where == str(path)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    """Safetensors of another program are damaged for us; a missing file is a usage error."""
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(Damaged, match="no butterflyc checkpoint"):
        load_checkpoint(tmp_path / "foreign.safetensors")
    with pytest.raises(UsageError, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_an_unwritable_place_leaves_nothing(tmp_path: Path) -> None:
    """A failed save raises CannotWrite and leaves no file behind, not even the temporary one."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(CannotWrite, match="cannot write 'taken'"):
        save_checkpoint(tmp_path / "taken", ViT(CONFIG))
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(CannotWrite):
        save_checkpoint(tmp_path / "no" / "folder", ViT(replace(CONFIG, layers=0)))
