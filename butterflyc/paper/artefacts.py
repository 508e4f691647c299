"""What the papers' sizes come to in compiled artefacts, byte by byte.

One ButterflyMoE layer of the papers' widths is compiled for microcontrollers, in ``int8`` and by
``prefer="size"``, and what it takes is read from its artefact: scales, tables and padding too. All
seven layers take seven times as much. ButterflyMoE's layer is compiled likewise, and the models of
Table 1 as they are. Weights are random: no size depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch

from ..build import compile as compile_model
from ..compiler.ir import Graph
from ..models.butterfly import ButterflyConfig, ButterflyMoE, linear_form
from ..models.vit import ViT, butterfly_vit, dense_vit, standard_vit
from ..program import Program
from .accounting import (
    BUTTERFLY_MOE,
    BUTTERFLY_VIT,
    FLOAT_BITS,
    MB,
    MIB,
    MLPS,
    Mlp,
    millijoules,
    router_bytes,
    standard_bytes,
)
from .boards import measured_experts
from .rows import Measured
from .tables import FIGURE_4_EXPERTS, TABLE_2_EXPERTS

Progress = Callable[[str], None]
Down = Literal["float", "ternary"]
TOKENS = 65  # of an image of CIFAR-100: 8 x 8 patches and a class token
MOE_COUNTS = (8, 256)
COUNTS = sorted({*TABLE_2_EXPERTS, *FIGURE_4_EXPERTS})
SEED = 0


@dataclass(frozen=True)
class Form:
    """A layer as it is compiled: how many experts, what W_down is, how long its angles are."""

    experts: int
    down: Down = "ternary"
    angles: str = "i16"

    @property
    def config(self) -> ButterflyConfig:
        """The layer of ButterflyViT: d = 256, F = 1024, L = 2, top-2."""
        stack = BUTTERFLY_VIT
        return ButterflyConfig(
            d_model=stack.d_model,
            d_ff=stack.d_ff,
            experts=self.experts,
            layers_in=stack.layers_in,
            layers_out=stack.layers_out,
            down=self.down,
            angle_std=1.0,
        )

    def __str__(self) -> str:
        down = "int8" if self.down == "float" else self.down
        return f"{self.experts} experts, W_down {down}, {self.angles} angles"


# At 64 experts every form that the table of the whole FFN has, by the keys of its rows.
FORMS = {
    "down-ternary": Form(64),
    "down-int8": Form(64, "float"),
    "down-ternary-angles8": Form(64, angles="i8"),
    "down-int8-angles8": Form(64, "float", "i8"),
}


@dataclass(frozen=True)
class Taken:
    """Bytes of one compiled layer: its experts' constants, its router's, and what is moved.

    ``moved``: what the kernels of a forward pass of 65 tokens read and write, if each reads every
    operand and writes every result once.
    """

    experts: int
    router: int
    moved: int


def taken(config: ButterflyConfig, angles: str) -> Taken:
    """Compile a layer for 65 tokens with angles of that format, and read what it takes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        layer, tokens = ButterflyMoE(config).eval(), torch.randn(TOKENS, config.d_model)
    program = compile_model(
        layer, (tokens,), target="c99", angles=angles, prefer="size", name="ffn"
    )
    router = _weights(program)["by_layer"]["gate"]
    moved = bytes_moved(program.stages[program.manifest["stages"][-1]])
    return Taken(_weights(program)["bytes"] - router, router, moved)


def _weights(program: Program) -> dict[str, Any]:
    assert program.placement is not None, "c99 is a target with memories"
    weights: dict[str, Any] = program.placement["weights"]
    return weights


def bytes_moved(graph: Graph) -> int:
    """Bytes of the operands and results of all kernels of ``graph``, each counted once a kernel."""
    kernels = [node for node in graph.nodes if "kernel" in node.notes]
    read = chain.from_iterable(operand.types for node in kernels for operand in node.operands)
    written = chain.from_iterable(node.types for node in kernels)
    return sum(type.bytes for type in chain(read, written))


def whole_bytes(mlp: Mlp) -> int:
    """Bytes of all constants of Table 1's model of that kind, compiled as the layers are."""
    models: dict[Mlp, Callable[[], ViT]] = {
        "butterfly": butterfly_vit,
        "standard": standard_vit,
        "dense": dense_vit,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model, image = models[mlp]().eval(), torch.randn(1, 3, 32, 32)
    angles = "i16" if mlp == "butterfly" else None
    program = compile_model(
        model, (image,), target="c99", angles=angles, prefer="size", name=f"vit_{mlp}"
    )
    return int(_weights(program)["bytes"])


def measured_models(progress: Progress = lambda _: None) -> Measured:
    """MB of Table 1's models as compiled, and how many times StandardMoE's is larger."""
    sizes = {}
    for mlp in MLPS:
        progress(f"compile Table 1's {mlp} model")
        sizes[mlp] = whole_bytes(mlp)
    rows = {f"table1.{mlp}.memory": size / MB for mlp, size in sizes.items()}
    for mlp, size in sizes.items():
        if mlp != "standard":
            rows[f"table1.{mlp}.compression"] = sizes["standard"] / size
    return rows


def measured_sizes(progress: Progress = lambda _: None) -> Measured:
    """All that is measured on compiled artefacts, by the keys of the report's rows."""
    parts = measured_layers, measured_models, measured_moe, measured_experts
    return {key: value for measure in parts for key, value in measure(progress).items()}


def measured_layers(progress: Progress = lambda _: None) -> Measured:
    """Bytes of compiled layers, in the units of the report's rows that they belong to."""
    forms = dict.fromkeys([*FORMS.values(), *(Form(experts) for experts in COUNTS)])
    found = {}
    for number, form in enumerate(forms, start=1):
        progress(f"compile a layer of {form} ({number} of {len(forms)})")
        found[form] = taken(form.config, form.angles)
    return {**_ratios(found), **_by_count(found), **_energies(found[Form(64)])}


def measured_moe(progress: Progress = lambda _: None) -> Measured:
    """MiB of ButterflyMoE's layer as compiled, equation 3 with 16-bit angles, and its ratio."""
    stack, rows = BUTTERFLY_MOE, {}
    for experts in MOE_COUNTS:
        progress(f"compile ButterflyMoE's layer of {experts} experts")
        config = linear_form(
            stack.d_model,
            stack.d_ff,
            experts=experts,
            layers_in=stack.layers_in,
            layers_out=stack.layers_out,
            angle_std=1.0,
        )
        size = taken(config, "i16").experts
        rows[f"moe.{experts}.butterfly"] = size / MIB
        rows[f"moe.{experts}.ratio"] = standard_bytes(stack, experts, matrices=1) / size
    return rows


def _ratios(found: Mapping[Form, Taken]) -> dict[str, float]:
    layers = BUTTERFLY_VIT.layers
    rows = {}
    for key, form in FORMS.items():
        layer, standard = found[form], standard_bytes(BUTTERFLY_VIT, form.experts)
        routers = router_bytes(BUTTERFLY_VIT, form.experts, FLOAT_BITS)
        rows[f"ffn.{key}"] = standard / (layers * layer.experts)
        whole = layers * (layer.experts + layer.router)
        rows[f"ffn.{key}.router"] = (standard + routers) / whole
    return rows


def _by_count(found: Mapping[Form, Taken]) -> dict[str, float]:
    rows = {}
    for experts in COUNTS:
        size = BUTTERFLY_VIT.layers * found[Form(experts)].experts
        if experts in TABLE_2_EXPERTS:
            rows[f"table2.{experts}.butterfly"] = size / MB
            rows[f"table2.{experts}.ratio"] = standard_bytes(BUTTERFLY_VIT, experts) / size
        if experts in FIGURE_4_EXPERTS:
            rows[f"figure4.{experts}.down-ternary"] = size / MB
    return rows


def _energies(layer: Taken) -> dict[str, float]:
    layers = BUTTERFLY_VIT.layers
    return {
        "figure7.down-ternary": millijoules(layers * layer.experts),
        "figure7.moved": millijoules(layers * layer.moved),
    }
