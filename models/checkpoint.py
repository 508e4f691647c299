"""Checkpoints: safetensors with the configuration inside, and the models that we ship."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..compiler.errors import ButterflycError, CannotWrite, Damaged, Incompatible, UsageError
from .data import ImageSet
from .language import LanguageConfig, LanguageModel
from .ngram import Bytes
from .vit import ViT, ViTConfig

Model = ViT | LanguageModel
ModelConfig = ViTConfig | LanguageConfig
# One metadata entry, as JSON: safetensors writes several in an order that differs from run to run.
HEAD = "butterflyc.checkpoint"
VERSION = 2
DIGITS = Path(__file__).with_name("digits.safetensors")
DIGITS_STANDARD = Path(__file__).with_name("digits-standard.safetensors")
TEXT = Path(__file__).with_name("text-butterfly.safetensors")
# Of each family of models its configuration, and the oldest version that reads it.
_FAMILIES: dict[str, tuple[type[ModelConfig], int]] = {
    "vit": (ViTConfig, 1),
    "language": (LanguageConfig, 2),
}
_FAMILY_OF = {config: family for family, (config, _) in _FAMILIES.items()}
_FOREIGN = "give a .safetensors file that butterflyc's trainer or save_checkpoint wrote"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds. ``text``: windows of bytes, uint8 [N, context], by their use;
    ``notes``: figures and origin, as plain data."""

    config: ModelConfig
    weights: dict[str, Tensor]
    images: dict[str, ImageSet] = field(default_factory=dict)
    text: dict[str, Bytes] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def model(self) -> Model:
        """The module with these weights, in evaluation mode. Damaged if they do not fit."""
        config = self.config
        model = ViT(config) if isinstance(config, ViTConfig) else LanguageModel(config)
        wanted = {name: list(value.shape) for name, value in model.state_dict().items()}
        found = {name: list(value.shape) for name, value in self.weights.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise Damaged(
                    f"weight '{name}' has shape {found.get(name, 'absent')}, "
                    f"its configuration wants {wanted.get(name, 'none')}",
                    help="fetch or train the checkpoint again",
                )
        model.load_state_dict(self.weights)
        return model.eval()


def save_checkpoint(
    path: Path,
    model: Model,
    *,
    images: dict[str, ImageSet] | None = None,
    text: dict[str, Bytes] | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write ``model`` to ``path`` in one step; CannotWrite leaves nothing half-written."""
    tensors = {f"weights.{k}": v.contiguous() for k, v in model.state_dict().items()}
    for name, part in (images or {}).items():
        tensors[f"images.{name}.pixels"] = torch.from_numpy(part.images.copy())
        tensors[f"images.{name}.labels"] = torch.from_numpy(part.labels.astype(np.uint8))
    for name, windows in (text or {}).items():
        tensors[f"text.{name}"] = torch.from_numpy(windows.copy())
    family = _FAMILY_OF[type(model.config)]
    head = {
        "version": _FAMILIES[family][1],
        "family": family,
        "config": model.config.as_dict(),
        "white": {name: part.white for name, part in (images or {}).items()},
        "notes": notes or {},
        "sha256": digest(tensors),
    }
    metadata = {HEAD: json.dumps(head, sort_keys=True)}
    write_atomically(path, save(tensors, metadata=metadata))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; CannotWrite names the cause."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CannotWrite(
            f"cannot write '{path.name}': {error.strerror}",
            where=str(path),
            help="choose a folder that exists, is writable and has space left",
        ) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """All that ``path`` holds. UsageError if it is missing, Damaged if it is cut short, changed
    or no checkpoint of ours, Incompatible if a newer version wrote it."""
    if not path.is_file():
        raise UsageError(f"no checkpoint '{path}'", help="give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            head = _head(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        return _parse(head, tensors)
    except ButterflycError as error:
        error.where = error.where or str(path)
        raise
    except (SafetensorError, OSError) as error:
        raise Damaged(
            f"no readable safetensors: {error}", where=str(path), help=_FOREIGN
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(
            f"the configuration cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            help=_FOREIGN,
        ) from error


def load_checkpoint(path: Path) -> tuple[Model, ModelConfig]:
    """The module in evaluation mode, and its configuration; errors as ``read_checkpoint``."""
    found = read_checkpoint(path)
    try:
        return found.model(), found.config
    except Damaged as error:
        error.where = error.where or str(path)
        raise


def load_digits() -> ViT:
    """The shipped ButterflyViT for 8 x 8 digits; input pixels / 16, float32 [B, 1, 8, 8]."""
    model, _ = load_checkpoint(DIGITS)
    assert isinstance(model, ViT), "the digits model is a ViT"
    return model


def digits_calibration() -> ImageSet:
    """The 64 training images that ship with the digits model."""
    return _digits_images("calibration")


def digits_test() -> ImageSet:
    """The 360 images that the digits model was not trained on."""
    return _digits_images("test")


def _digits_images(name: str) -> ImageSet:
    images = read_checkpoint(DIGITS).images
    if name not in images:
        raise Damaged(f"the {name} images are missing", where=str(DIGITS), help="install again")
    return images[name]


def _head(metadata: dict[str, str]) -> dict[str, Any]:
    if HEAD not in metadata:
        raise Damaged("these safetensors are no butterflyc checkpoint", help=_FOREIGN)
    head: dict[str, Any] = json.loads(metadata[HEAD])
    if int(head["version"]) > VERSION:
        raise Incompatible(
            f"checkpoint version {head['version']}, this butterflyc reads up to {VERSION}",
            help="install a newer butterflyc",
        )
    return head


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all names and bytes: safetensors itself has no checksum."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(name.encode())
        total.update(value.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def _parse(head: dict[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    try:
        # The first version held ViTs alone, and did not say so.
        config = _FAMILIES[head.get("family", "vit")][0].from_dict(head["config"])
    except UsageError as error:
        raise Damaged(f"its configuration is not possible: {error.what}", help=_FOREIGN) from error
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise Damaged(f"weight '{name}' holds NaN or infinity", help="train or fetch it again")
    if head["sha256"] != digest(tensors):
        raise Damaged(
            "the weights or images changed since they were saved: SHA-256 differs",
            help="fetch or train the checkpoint again",
        )
    images = {
        name: ImageSet(
            tensors[f"images.{name}.pixels"].numpy(),
            tensors[f"images.{name}.labels"].numpy().astype(np.int64),
            int(white),
        )
        for name, white in head["white"].items()
    }
    text = {k.removeprefix("text."): v.numpy() for k, v in tensors.items() if k.startswith("text.")}
    return Checkpoint(config, weights, images, text, dict(head["notes"]))
