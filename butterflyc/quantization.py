"""What mode int8 costs: each value in integers against the float that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np

from .compiler.codes import decode, encode, takes_codes
from .compiler.ir import Graph, Node
from .compiler.ir.interpret import interpret
from .kernels.integer_numbers import LIMITS

Array = np.ndarray
Values = Mapping[str, Any]
MOST_SAMPLES = 16
# Ops that move values, which have the noise that these had before; and what is not computed.
_SILENT = frozenset({"constant", "reshape", "transpose", "slice", "broadcast", "shuffle"})


@dataclass
class _Sums:
    """Energies of a value and of its error, and how many numbers lay beyond the largest code."""

    signal: float = 0.0
    noise: float = 0.0
    clipped: int = 0
    count: int = 0

    def add(self, wanted: Array, found: Array, largest: float) -> None:
        wanted = wanted.astype(np.float64)
        self.signal += float(np.square(wanted).sum())
        self.noise += float(np.square(found - wanted).sum())
        self.clipped += int((np.abs(wanted) > largest).sum())
        self.count += wanted.size

    @property
    def decibels(self) -> float | None:
        """Signal to noise; None where there is no noise."""
        if self.noise == 0:
            return None
        # Of nothing but noise, less than any that is heard.
        return round(10 * log10(max(self.signal / self.noise, 1e-30)), 2)


def quantization_report(
    before: Graph, after: Graph, samples: Sequence[tuple[Array, ...]]
) -> dict[str, Any]:
    """``after`` in integers against ``before`` in floats, on up to 16 of ``samples``.

    ``nodes``: those of one name in both, worst first, with ``snr_db`` (None: no error at all) and
    ``clipped``, the share beyond the largest code. ``top1_agreement``: of rows of the first output,
    None without any; ``routing_agreement``: of tokens with the same experts, None without experts.
    A token that goes to other experts than in floats counts as noise there. ``weights``: dense ones
    with how many balanced-ternary digits they have, and what ``snr_db`` that leaves them.
    """
    chosen = samples[:: -(-len(samples) // MOST_SAMPLES)]
    pairs = list(_pairs(before, after))
    sums = {node.name: _Sums() for _, node in pairs}
    tops: list[float] = []
    routed: dict[str, list[float]] = {n.name: [] for n in after.nodes if n.op == "top_k"}
    for sample in chosen:
        real, codes = _values(before, sample), _values(after, _encoded(after, sample))
        for was, node in pairs:
            limit = (LIMITS[node.type.dtype] + 0.5) * (node.type.scale or 0)
            sums[node.name].add(real[was.name], decode(codes[node.name], node.type), limit)
        for name, shares in routed.items():
            shares.append(_same(real[name][1], codes[name][1]))
        tops += _same_tops(real[before.outputs[0].name], codes[after.outputs[0].name])
    rows = [_row(was, node, sums[node.name]) for was, node in pairs]
    rows.sort(key=lambda row: float("inf") if row["snr_db"] is None else row["snr_db"])
    routing = [{"name": name, "agreement": _mean(shares)} for name, shares in routed.items()]
    return {
        "samples": len(chosen),
        "output": after.outputs[0].name,
        "top1_agreement": _mean(tops),
        "routing_agreement": _mean([share for shares in routed.values() for share in shares]),
        "routing": routing,
        "nodes": rows,
        "weights": [_weights(node) for node in after.nodes if node.op == "integer_linear"],
    }


def _weights(node: Node) -> dict[str, Any]:
    return {
        "name": node.name.removesuffix(".sums"),
        "shape": list(node.operands[1].type.shape),
        "digits": node["planes"],
        "snr_db": node.notes.get("weight_snr"),
        "source": node.source,
    }


def _pairs(before: Graph, after: Graph) -> Sequence[tuple[Node, Node]]:
    """Nodes of one name that are computed floats in ``before``, and codes in ``after``."""
    real = {node.name: node for node in before.nodes if node.op not in _SILENT}
    found = []
    for node in after.nodes:
        was = real.get(node.name)
        if was is None or len(was.types) > 1 or len(node.types) > 1 or not was.type.is_float:
            continue
        if takes_codes(node.type) and was.type.shape == node.type.shape and was.type.size:
            found.append((was, node))
    return found


def _values(graph: Graph, inputs: tuple[Array, ...]) -> Values:
    values: dict[str, Any] = {}
    interpret(graph, *inputs, observe=lambda node, value: values.update({node.name: value}))
    return values


def _encoded(graph: Graph, sample: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(encode(x, node.type) for x, node in zip(sample, graph.inputs, strict=True))


def _row(was: Node, node: Node, sums: _Sums) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": was.op,
        "codes": node.type.dtype,
        "scale": node.type.scale,
        "snr_db": sums.decibels,
        "clipped": round(sums.clipped / sums.count, 6),
        "source": node.source,
    }


def _same(wanted: Array, found: Array) -> float:
    """The share of tokens with the same experts, in whichever order."""
    alike: Array = np.sort(wanted, axis=-1) == np.sort(found, axis=-1)
    return float(alike.all(-1).mean()) if alike.size else 1.0


def _same_tops(wanted: Array, found: Array) -> list[float]:
    """Of each row whether its largest number is at one place; none of rows of one number."""
    if wanted.ndim == 0 or wanted.shape[-1] < 2:
        return []
    same: Array = wanted.argmax(-1) == found.argmax(-1)
    return [float(each) for each in same.reshape(-1)]


def _mean(shares: Sequence[float]) -> float | None:
    return float(np.mean(shares)) if shares else None
