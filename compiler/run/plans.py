"""How the layers of a graph are computed on a GPU, as a file: plans, with the memory they need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...kernels.gpu.launch import Launch, Plan, Step
from ...kernels.record import Tensor
from ..errors import Damaged

if TYPE_CHECKING:
    from cattrs import Converter

# The section of an artefact.
PATH = "kernels/plans.json"


@dataclass(frozen=True)
class LayerPlan:
    """The plan of one node: what its ``kernel`` is called, and its ``scratch`` tensors."""

    kernel: str
    plan: Plan
    scratch: tuple[Tensor, ...] = ()


Plans = Mapping[str, LayerPlan]


def launches_of(plans: Plans) -> tuple[Launch, ...]:
    """All launches, one of each symbol."""
    steps = (step for layer in plans.values() for step in layer.plan.steps)
    found = {step.symbol: step for step in steps if isinstance(step, Launch)}
    return tuple(found.values())


def pack_plans(plans: Plans) -> bytes:
    """``plans``, by the names of their nodes, as JSON."""
    return json.dumps(_converter().unstructure(dict(plans)), indent=1, sort_keys=True).encode()


def unpack_plans(data: bytes) -> dict[str, LayerPlan]:
    """What `pack_plans` made. Raises Damaged for anything else."""
    try:
        return _converter().structure(json.loads(data), dict[str, LayerPlan])
    except Exception as error:  # cattrs' errors have no common base
        raise Damaged(
            f"the plans of the GPU kernels cannot be read: {error}",
            help="compile the model again, or take the butterflyc that made this file",
        ) from error


def _converter() -> Converter:
    from cattrs import Converter
    from cattrs.strategies import configure_tagged_union

    converter = Converter(forbid_extra_keys=True)
    configure_tagged_union(Step, converter, tag_name="kind")
    for union in (int | float | bool | str, str | int | float, str | None):
        converter.register_structure_hook(union, _plain)
    return converter


def _plain(value: object, _: object) -> object:
    if isinstance(value, dict | list):
        raise ValueError(f"a number or a word wanted, not {value!r}")
    return value
