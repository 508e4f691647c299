"""Where a model comes from: a torch module in hand, or what a command line names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .compiler.capture.load import load_model
from .compiler.errors import BadInput, ButterflycError
from .passes.budget import DEFAULT, Budgets

if TYPE_CHECKING:
    from .compiler.capture.arguments import Arguments

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A torch module or exported program, example arguments, and samples to calibrate on if known.

    ``calibration``: rows of the first input, [N, ...]. ``budgets`` are what it may lose.
    """

    module: Any
    examples: Arguments
    calibration: np.ndarray | None = None
    budgets: Budgets = DEFAULT

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The example inputs as arrays."""
        from .compiler.capture.results import array_of

        return tuple(array_of(tensor) for tensor in self.examples.tensors)

    def samples(self, progress: Progress = lambda _: None) -> list[tuple[np.ndarray, ...]]:
        """What scales are chosen by, of the examples' size: the calibration set, or the examples.

        Raises BadInput for a calibration set that does not fit the first input, or would be cut.
        """
        first, *others = self.arrays
        if self.calibration is None:
            progress("no calibration samples: the example inputs alone stand for all that may come")
            return [self.arrays]
        rows = np.asarray(self.calibration)
        fits = not others and 0 < rows.ndim == first.ndim and rows.shape[1:] == first.shape[1:]
        if not fits or not 0 < len(first) <= len(rows):
            raise BadInput(
                f"calibration samples are {list(rows.shape)}, the inputs "
                f"{', '.join(str(list(array.shape)) for array in self.arrays)}",
                help="give rows of the one input of the model, at least a batch of them",
            )
        _check_kind(rows, first.dtype)
        count = len(rows) // len(first)
        batches = np.split(rows[: count * len(first)].astype(first.dtype), count)
        return [(batch,) for batch in batches]

    def eager(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """What PyTorch computes from other inputs, all else as in the example."""
        return eager(self.module, arrays, self.examples)


def _check_kind(rows: np.ndarray, wanted: np.dtype) -> None:
    """BadInput for samples that would lose something as ``wanted``, or that are no numbers."""
    if not np.issubdtype(rows.dtype, np.number) and rows.dtype != bool:
        raise BadInput(
            f"calibration samples are {rows.dtype}, no numbers",
            help=f"give an array of {wanted}",
        )
    with np.errstate(invalid="ignore", over="ignore"):
        kept = rows.real.astype(wanted)
    flat = rows.reshape(-1)
    if np.issubdtype(wanted, np.floating):  # they may be rounded, but not become infinite
        changed = (np.isfinite(kept.reshape(-1)) != np.isfinite(flat)) | (flat.imag != 0)
    else:
        changed = kept.reshape(-1) != flat
    lost = np.flatnonzero(changed)
    if len(lost):
        raise BadInput(
            f"calibration samples are {rows.dtype}, the input {wanted}: {len(lost)} of {rows.size} "
            f"numbers would change, the first is {flat[lost[0]]}",
            help=f"give samples of {wanted}, as the model gets them",
        )


def open_model(
    model: Any,
    examples: Sequence[Any] | Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None,
) -> Source:
    """The source that ``model`` is (a module) or names (a string, see `compile`).

    Raises BadInput where example inputs are missing, and what loading raises.
    """
    import torch

    from .compiler.capture.arguments import Arguments

    calibration: list[np.ndarray] = []
    given: Any = examples
    if isinstance(model, str | Path):
        progress(f"loading {model}")

        def checkpoint(path: Path) -> tuple[Any, tuple[Any, ...]]:
            return _checkpoint(path, calibration)

        model, own = load_model(str(model), checkpoint_loader=checkpoint)
        given = examples or own
    elif examples is None and isinstance(model, torch.export.ExportedProgram):
        given = Arguments(*model.example_inputs) if model.example_inputs else None
    if given is None:
        raise BadInput(
            "a torch module needs example inputs",
            help="compile(model, (torch.randn(1, 3, 32, 32),))",
        )
    if not isinstance(given, tuple | list | Mapping | Arguments):
        raise BadInput("example inputs are a tuple of tensors", help="write (x,), not x")
    given = tuple(given) if isinstance(given, list) else given
    return Source(model, Arguments.of(given), next(iter(calibration), None))


def _checkpoint(path: Path, calibration: list[np.ndarray]) -> tuple[Any, tuple[Any, ...]]:
    """A checkpoint of models/ and one input for it; its calibration samples, if it holds any."""
    import torch

    from .models.checkpoint import read_checkpoint
    from .models.vit import ViTConfig

    found = read_checkpoint(path)
    config, samples = found.config, None
    if isinstance(config, ViTConfig):
        example = torch.zeros(1, config.channels, config.image, config.image)
        if "calibration" in found.images:
            samples = found.images["calibration"].floats()
    else:
        example = torch.zeros(1, config.context, dtype=torch.int64)
        if "calibration" in found.text:
            samples = found.text["calibration"].astype(np.int64)
    if samples is not None:
        calibration.append(samples)
        example = torch.from_numpy(samples[:1].copy())
    return found.model(), (example,)


def eager(
    module: Any, arrays: Sequence[np.ndarray], examples: Arguments | None = None
) -> tuple[np.ndarray, ...]:
    """The results that PyTorch computes, as arrays, in the order of capture.

    ``examples`` are arguments with other inputs in the place of ``arrays``; without them, the
    inputs are the arguments. Raises BadInput if the module fails.
    """
    import torch

    from .compiler.capture.arguments import Arguments
    from .compiler.capture.evaluating import evaluating
    from .compiler.capture.results import arrays_of

    # Copies: a module may write to its inputs.
    inputs = tuple(torch.from_numpy(np.array(a, order="C")) for a in arrays)
    given = Arguments(inputs) if examples is None else examples.filled(inputs)
    is_program = isinstance(module, torch.export.ExportedProgram)
    module = module.module() if is_program else module
    try:
        with nullcontext() if is_program else evaluating(module), torch.no_grad():
            returned = module(*given.places, **given.names)
    except ButterflycError:
        raise
    except Exception as error:
        raise BadInput(
            f"the model fails on inputs {given}: {type(error).__name__}: {error}",
            help="pass inputs that the model runs on",
        ) from error
    return arrays_of(returned)
