"""Calling a compiled model from Python, wherever it runs: arrays, names, batches, codes."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .compiler.codes import decoded, encode, takes_codes
from .compiler.errors import BadInput, unknown_name
from .compiler.ir import Type


class Runner(Protocol):
    """Where a compiled model runs: this machine (`Native`), or an emulated one (`Emulated`)."""

    def many(self, samples: Sequence[tuple[np.ndarray, ...]]) -> list[tuple[np.ndarray, ...]]:
        """The outputs for each of ``samples``, all of the compiled size."""


class Callable(ABC):
    """A compiled model with a runner: ``model(*inputs)``."""

    @property
    @abstractmethod
    def manifest(self) -> Mapping[str, Any]:
        """What was compiled: see `Program`."""

    @property
    @abstractmethod
    def runner(self) -> Runner:
        """Where it runs."""

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def inputs(self) -> tuple[Type, ...]:
        return tuple(map(_type_of, self.manifest["inputs"]))

    @property
    def outputs(self) -> tuple[Type, ...]:
        return tuple(map(_type_of, self.manifest["outputs"]))

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The outputs: one, or a tuple, in the order of the manifest's ``outputs``.

        Inputs are in the order of its ``inputs``, or by their names. Raises BadInput if one does
        not fit.
        """
        values = self._in_order(inputs, named)
        tensors = [x for x in values if _is_tensor(x)]
        if tensors and len(tensors) == len(values) and self._takes(tensors):
            outputs = self._by_tensors(tensors)
            return outputs[0] if len(outputs) == 1 else outputs
        outputs = self.run(*(self._array(i, x) for i, x in enumerate(values)))
        if tensors:
            torch = sys.modules["torch"]
            outputs = tuple(torch.from_numpy(y).to(tensors[0].device) for y in outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _takes(self, tensors: Sequence[Any]) -> bool:
        """Whether the runner computes with tensors where these are, without arrays between."""
        device = getattr(self.runner, "device", None)
        return device is not None and all(x.device.type == device.type for x in tensors)

    def _by_tensors(self, tensors: Sequence[Any]) -> tuple[Any, ...]:
        runs = self._runs(tuple(tensors))
        if runs == 1:
            return self.runner.tensors(*tensors)  # type: ignore[attr-defined]
        batches = zip(*(x.chunk(runs) for x in tensors), strict=True)
        results = [self.runner.tensors(*batch) for batch in batches]  # type: ignore[attr-defined]
        return tuple(sys.modules["torch"].cat(parts) for parts in zip(*results, strict=True))

    def _in_order(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> list[Any]:
        """All inputs in their order. Raises BadInput if one is missing or one too many."""
        names = [port["name"] for port in self.manifest["inputs"]]
        for name in named:
            if name not in names:
                raise unknown_name("input", name, names)
        rest = names[len(inputs) :]
        if len(inputs) > len(names) or set(rest) != set(named):
            missing = [name for name in rest if name not in named]
            got = f"{len(inputs)} by place" + (f" and {', '.join(named)}" if named else "")
            raise BadInput(
                f"{self.name} takes {len(names)} inputs, got {got}",
                help=(f"pass {', '.join(missing)} too; " if missing else "")
                + f"inputs are tensors alone: {self._signature()}; what else forward takes was "
                "fixed when the model was compiled",
            )
        return [*inputs, *(named[name] for name in rest)]

    def _array(self, place: int, x: Any) -> np.ndarray:
        """An input as an array. Raises BadInput for what is none."""
        try:
            if _is_tensor(x):
                return x.detach().cpu().resolve_conj().resolve_neg().numpy()
            array = np.asarray(x)
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise self._no_array(place, x, f": {error}") from error
        # NumPy stacks tensors in a list: those are several inputs, and not one.
        several = isinstance(x, list | tuple) and any(map(_is_tensor, x))
        if array.dtype == object or several:
            raise self._no_array(place, x)
        return array

    def _no_array(self, place: int, x: Any, reason: str = "") -> BadInput:
        return BadInput(
            f"input {place} is a {type(x).__name__}, which is no array of numbers{reason}",
            help=f"{self.name} takes one dense tensor or array an input: {self._signature()}",
        )

    def _signature(self) -> str:
        names = (port["name"] for port in self.manifest["inputs"])
        pairs = zip(names, self.inputs, strict=True)
        return ", ".join(f"{name} {type}" for name, type in pairs) or "none"

    def run(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """All outputs as arrays. Rows beyond the compiled batch are run in turn.

        Where the program computes in codes, floats become codes and results floats again; codes
        that are given as codes give codes.
        """
        return self.run_each([inputs])[0]

    def run_each(self, samples: Sequence[tuple[np.ndarray, ...]]) -> list[tuple[np.ndarray, ...]]:
        """`run` for each of ``samples``, of which an emulator makes one lot."""
        batches = [self._split(inputs) for inputs in samples]
        results = iter(self.runner.many([part for batch in batches for part in batch]))
        found = []
        for inputs, batch in zip(samples, batches, strict=True):
            parts = [next(results) for _ in batch]
            outputs = tuple(map(_joined, zip(*parts, strict=True)))
            found.append(outputs if self._in_codes(inputs) else decoded(outputs, self.outputs))
        return found

    def _in_codes(self, inputs: tuple[np.ndarray, ...]) -> bool:
        coded = [x for x, t in zip(inputs, self.inputs, strict=True) if takes_codes(t)]
        return any(not np.issubdtype(np.asarray(x).dtype, np.floating) for x in coded)

    def _split(self, inputs: tuple[np.ndarray, ...]) -> list[tuple[np.ndarray, ...]]:
        """``inputs`` as codes, in parts of the compiled batch, which are views."""
        if len(inputs) != len(self.inputs):
            raise BadInput(f"{self.name} takes {len(self.inputs)} inputs, got {len(inputs)}")
        codes = tuple(encode(np.asarray(x), t) for x, t in zip(inputs, self.inputs, strict=True))
        runs = self._runs(codes)
        if runs == 1:
            return [codes]
        return list(zip(*(np.split(x, runs) for x in codes), strict=True))

    def _runs(self, inputs: tuple[Any, ...]) -> int:
        """How many runs of the compiled batch make up ``inputs``."""
        types = self.inputs
        if all(x.shape == t.shape for x, t in zip(inputs, types, strict=True)):
            return 1
        counts = set()
        for x, t in zip(inputs, types, strict=True):
            fits = x.ndim == t.rank >= 1 and x.shape[1:] == t.shape[1:] and len(x) > 0
            if not fits or len(x) % t.shape[0] != 0:
                raise BadInput(
                    f"an input has shape {list(x.shape)}, {self.name} was compiled for "
                    f"{list(t.shape)}",
                    help="the first axis may be any multiple of the compiled one, no other may "
                    "differ; compile again with an example of this shape",
                )
            counts.add(len(x) // t.shape[0])
        if len(counts) > 1:
            raise BadInput(f"inputs have different batch sizes: {[list(x.shape) for x in inputs]}")
        if not self.manifest["splits"]:
            raise BadInput(
                f"{self.name} was compiled for a batch of {types[0].shape[0]} and its samples "
                "depend on one another",
                help="compile it again with an example of this batch size",
            )
        return counts.pop()


def _is_tensor(x: Any) -> bool:
    """Whether it is torch's; without torch nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _type_of(port: Mapping[str, Any]) -> Type:
    return Type(port["dtype"], tuple(port["shape"]), port.get("scale"))


def _joined(parts: tuple[np.ndarray, ...]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
