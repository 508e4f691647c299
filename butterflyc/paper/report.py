"""``butterflyc paper``: all tables and pictures, measured on a trained model, into a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..compiler.errors import BadInput, UsageError
from ..compiler.files import make_folder, write_whole
from ..models.butterfly import ButterflyConfig
from ..models.checkpoint import DIGITS, load_checkpoint, read_checkpoint
from ..models.data import ImageSet
from ..models.language import LanguageModel
from ..models.standard import StandardConfig
from ..models.vit import ViT, ViTConfig, butterfly_vit, dense_vit, standard_vit
from .contradictions import contradictions
from .curves import curves_picture, panels
from .devices import figure_6
from .figures import devices_picture, energy_picture, memory_picture, similarity_picture
from .markdown import markdown
from .outliers import outlier_table, rotated_inputs, ternary_error
from .rows import SCHEMA, Measured, Table, with_measured
from .similarity import Similarity, figure_5, similarity_of
from .tables import figure_4, figure_7, moe_150, table_1, table_2, whole_ffn
from .trained import Trained

Progress = Callable[[str], None]
PAPER_ANGLE_STD = 0.01  # of the angles before training, in both papers
SEED = 0
README, JSON = "README.md", "paper.json"


@dataclass(frozen=True)
class Report:
    """What ``build`` made. ``model``: what was measured; ``pictures``: PNGs by file name."""

    model: str
    tables: tuple[Table, ...]
    pictures: Mapping[str, bytes]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, without its pictures."""
        return {"model": self.model, "tables": [table.as_dict() for table in self.tables]}

    def files(self) -> dict[str, bytes]:
        """The content of every file of the folder, by its name."""
        document = json.dumps({"schema": SCHEMA, **self.as_dict()}, indent=1) + "\n"
        text = markdown(self.tables, self.model)
        return {README: text.encode(), JSON: document.encode(), **self.pictures}


def build(
    checkpoint: Path = DIGITS,
    *,
    standard: Path | None = None,
    text: Path | None = None,
    measured: Measured | None = None,
    trained: Trained | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """All tables and pictures, with what can be measured on ``checkpoint``, a ButterflyViT.

    ``checkpoint`` holds the test images that outliers are measured on. ``standard``: a checkpoint
    of a StandardMoE ViT, to compare its experts. ``text``: one of a Butterfly language model, whose
    experts and activations are measured as well. ``measured``: more measurements, by the keys of
    their rows. ``trained``: outcomes of trained models, for their tables and curves. Raises
    ToolMissing without matplotlib, UnknownName for a key that no row has, BadInput for a checkpoint
    of another kind or without images, and what ``read_checkpoint`` does.
    """
    model, images = _read(checkpoint)
    beside = _read_standard(standard) if standard else None
    language = _read_text(text) if text else None
    trained = trained or Trained()
    everything = {**_parameters(), **(measured or {})}
    progress("draw what needs no model")
    pictures = {
        "memory.png": memory_picture(everything),
        "devices.png": devices_picture(everything),
        "energy.png": energy_picture(everything),
    }
    if drawn := panels(trained):
        pictures["curves.png"] = curves_picture(drawn)
    progress("compare experts")
    name = "digits" if checkpoint == DIGITS else checkpoint.stem
    alike = _similarities(name, model, beside)
    if language:
        alike["text, trained"] = similarity_of(language[0])
    pictures["similarity.png"] = similarity_picture(alike)
    outliers = [_outliers(model, torch.from_numpy(images.floats()), progress)]
    if language:
        outliers.append(_outliers(*language, progress, key="outliers-text", name="text"))
    tables = (
        table_1(),
        table_2(),
        whole_ffn(),
        moe_150(),
        figure_4(),
        figure_5(alike),
        figure_6(),
        figure_7(),
        *outliers,
        *trained.tables(),
        contradictions(),
    )
    sentence = _sentence(name, model) + (", and of a language model" if language else "")
    return Report(sentence, with_measured(tables, everything), pictures)


def check_folder(folder: Path, force: bool) -> None:
    """Raises UsageError if ``folder`` is no folder, or holds anything, unless by ``force``."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", help="name a folder")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} is not empty",
            help="choose another folder, or overwrite its report with --force",
        )


def write(report: Report, folder: Path, *, force: bool = False) -> list[Path]:
    """Writes the report's files, each whole or not at all, and returns their paths.

    Other files of the folder stay. Raises what ``check_folder`` does, and CannotWrite.
    """
    check_folder(folder, force)
    make_folder(folder)
    paths = []
    for name, content in report.files().items():
        write_whole(folder / name, [content])
        paths.append(folder / name)
    return paths


def _read(path: Path) -> tuple[ViT, ImageSet]:
    """A trained ButterflyViT, and its test images."""
    found = read_checkpoint(path)
    model = found.model()
    if not isinstance(model, ViT) or not isinstance(model.config.mlp, ButterflyConfig):
        raise BadInput(
            "this checkpoint is not of a ButterflyViT",
            where=str(path),
            help="give a StandardMoE ViT as --standard",
        )
    if "test" not in found.images:
        raise BadInput(
            "this checkpoint has no test images to measure activations on",
            where=str(path),
            help="save it with images={'test': ...}, as `save_checkpoint` takes them",
        )
    return model, found.images["test"]


def _read_standard(path: Path) -> ViT:
    model, _ = load_checkpoint(path)
    if not isinstance(model, ViT) or not isinstance(model.config.mlp, StandardConfig):
        raise BadInput(
            "this checkpoint is not of a StandardMoE ViT",
            where=str(path),
            help="save a ViT whose mlp is a StandardConfig",
        )
    return model


def _read_text(path: Path) -> tuple[LanguageModel, torch.Tensor]:
    """A trained language model with Butterfly layers, and windows of its text."""
    found = read_checkpoint(path)
    model = found.model()
    if not isinstance(model, LanguageModel) or not isinstance(model.config.mlp, ButterflyConfig):
        raise BadInput(
            "this checkpoint is not of a Butterfly language model",
            where=str(path),
            help="give one that `python -m butterflyc.models.train text` wrote",
        )
    return model, torch.from_numpy(found.text["calibration"].astype(np.int64))


def _outliers(
    model: ViT | LanguageModel,
    inputs: torch.Tensor,
    progress: Progress,
    *,
    key: str = "outliers",
    name: str = "",
) -> Table:
    progress(f"run {len(inputs)} inputs")
    rotated = rotated_inputs(model, inputs, progress)
    weights = {
        "before training": ternary_error(_untrained(model)),
        "trained": ternary_error(model),
    }
    return outlier_table(rotated, weights, key=key, model=name)


def _similarities(name: str, model: ViT, beside: ViT | None) -> dict[str, Similarity]:
    """Of the trained model, of its start, of the papers' start, and of StandardMoE if given."""
    alike = {
        f"{name}, trained": similarity_of(model),
        f"{name}, before training": similarity_of(_untrained(model)),
        f"{name}, the papers' start": similarity_of(_untrained(model, PAPER_ANGLE_STD)),
    }
    if beside is not None:
        alike["StandardMoE"] = similarity_of(beside)
    return alike


def _untrained(model: ViT | LanguageModel, angle_std: float | None = None) -> ViT | LanguageModel:
    """One of the same configuration with fresh weights; they do not touch torch's own seed."""
    config, mlp = model.config, model.config.mlp
    if angle_std is not None and isinstance(mlp, ButterflyConfig):
        config = replace(config, mlp=replace(mlp, angle_std=angle_std))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        fresh = ViT(config) if isinstance(config, ViTConfig) else LanguageModel(config)
        return fresh.eval()


def _parameters() -> dict[str, float]:
    """The parameters of our modules of Table 1, counted without making their weights."""
    with torch.device("meta"):
        models = {"butterfly": butterfly_vit(), "standard": standard_vit(), "dense": dense_vit()}
    return {
        f"table1.{kind}.parameters": sum(each.numel() for each in model.parameters())
        for kind, model in models.items()
    }


def _sentence(name: str, model: ViT) -> str:
    mlp = model.config.mlp
    assert isinstance(mlp, ButterflyConfig), "a checkpoint that _read let through"
    return (
        f"the trained ButterflyViT `{name}` (d = {mlp.d_model}, F = {mlp.d_ff}, "
        f"{model.config.layers} layers of {mlp.experts} experts)"
    )
