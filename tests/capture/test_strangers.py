"""Models that other people wrote: every mixture is found, no lookalike is taken for one.

``pytest -m slow tests/capture/test_strangers.py --strangers-report FILE`` adds a JSON line a model.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.load import load_model
from butterflyc.compiler.capture.recognise import recognise
from butterflyc.compiler.errors import Unsupported
from butterflyc.compiler.ir.graph import Graph
from butterflyc.compiler.ir.interpret import interpret

STRANGERS = Path(__file__).resolve().parent.parent / "strangers"
MOST_ERROR = 5e-6
_SHARED = "do not share their ternary matrix"
_SUM = "nothing behind the routing is a sum of gate times a function of one activation"
_GATES = "the gates enter in front of the ternary product"
_PLACE = "gives something else at another place"
# What is not recognised in full: the verdict, and a part of the reason that is given.
TOLD = {
    "look_a_kick_drift": ("partial", "not orthogonal"),
    "look_a_rotate_then_quant": ("none", _SHARED),
    "look_a_scored_inputs": ("none", _GATES),
    "look_anglemerge": ("none", _SUM),
    "look_b_fastsincos_dit": ("refused", "Python control flow hangs on data"),
    "look_b_fold_unet": ("none", _SHARED),
    "look_b_llama_bytes": ("none", _GATES),
    "look_c_bitlinear_deepspeed": ("none", "is not linear"),
    "look_c_merged_angles_ecg": ("none", _SUM),
    "look_chain": ("none", _SUM),
    "look_chainpolicy": ("none", _SUM),
    "look_d_blended_angles": ("none", _SUM),
    "look_d_expert_step": ("none", "scales its rows by factors of its own"),
    "look_d_token_shift": ("none", "mix"),
    "look_drifted_codes": ("none", _SHARED),
    "look_e_audio_tagger_sequential_update": ("partial", "not orthogonal"),
    "look_e_lifting_audio": ("partial", "not orthogonal"),
    "look_e_llama4_vit": ("none", _GATES),
    "look_e_policy_scaled_tokens": ("none", _GATES),
    "look_e_scaled_input_audio": ("none", _GATES),
    "look_e_vmap_tabular": ("partial", "not orthogonal"),
    "look_f_chained_forecaster": ("none", "mix"),
    "look_f_forecaster_requant": ("none", "no matrix of the experts is ternary"),
    "look_f_staggered_lm": ("none", "mixes more than 16 channels"),
    "look_f_ttq_policy": ("none", "3 magnitudes in place of 0 and one scale"),
    "look_fold_quant_vit": ("none", _SHARED),
    "look_foldthenround_layer": ("none", _SHARED),
    "look_g_crossed_slots": ("none", "hangs on which others its token is sent to"),
    "look_g_flat_riffle": ("refused", "mixed by 'reshape'"),
    "look_g_gelu_midway": ("none", "the activation stands between two layers of the rotation"),
    "look_g_mesh_homogeneous": ("partial", "padded with numbers that are not zero"),
    "look_g_own_threshold": ("none", "in front of the ternary product"),
    "look_h_asr_lhuc": ("none", "scales its rows by factors of its own"),
    "look_h_bam_sensor": ("partial", "not orthogonal"),
    "look_h_dab_detr": ("none", _SUM),
    "look_h_speedrun_gpt": ("none", _SUM),
    "look_h_swing_riffs": ("none", "does not mix the same channels"),
    "look_h_tabular_gate_in": ("none", _SUM),
    "look_i_codegen_rotary": ("none", _PLACE),
    "look_i_edge_anomaly": ("partial", "not orthogonal"),
    "look_i_protein_single_track": ("none", _SUM),
    "look_i_satellite_unet": ("none", "adds something else for each expert"),
    "look_i_seasonal_patch_forecaster": ("none", _PLACE),
    "look_i_timm_vit": ("partial", "not orthogonal"),
    "look_inplace": ("partial", "not orthogonal"),
    "look_nbeats": ("none", _SUM),
    "look_quantize_rotated": ("none", _SHARED),
    "look_rotate_then_quantize": ("none", _SHARED),
    "look_scaled_input_lm": ("none", _GATES),
    "look_smear": ("none", _SUM),
    "true_c_megablocks_points": ("refused", "a number that only the data tells"),
}
FULL = ("full", "")

pytestmark = pytest.mark.slow

Record = dict[str, Any]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, so that times are of one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Record], None]:
    """Adds what was found in a model to the report that was asked for, if any."""
    path = request.config.getoption("--strangers-report")

    def add(found: Record) -> None:
        if path is not None:
            with open(path, "a") as file:
                file.write(json.dumps(found) + "\n")

    return add


def in_double(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    """What PyTorch gives in double precision."""
    wide = [x.double() if x.is_floating_point() else x.clone() for x in inputs]
    with torch.no_grad():
        outputs = copy.deepcopy(module).double()(*wide)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    return [output.numpy() for output in outputs]


def largest_error(graph: Graph, inputs: tuple[Tensor, ...], wanted: list[np.ndarray]) -> float:
    """The largest difference of an output, relative to the largest number in it."""
    outputs = interpret(graph, *(x.numpy() for x in inputs))
    pairs = zip(outputs, wanted, strict=True)
    return max(float(np.abs(now - true).max() / np.abs(true).max()) for now, true in pairs)


def found_in(path: Path) -> Record:
    """What capture and recognition make of a model: a line of the report."""
    module, inputs = load_model(f"{path}:make")
    module.eval()
    wanted = in_double(module, inputs)
    found: Record = {"file": path.stem, "verdict": "refused", "layers": [], "error": None}
    start = time.process_time()
    try:
        graph = capture(module, inputs).graph
    except Unsupported as refusal:
        return {**found, "reason": str(refusal)}
    captured = time.process_time()
    result = recognise(graph)
    recognised = time.process_time()
    layers = [layer.recognised for layer in result.layers]
    verdict = min(result.layers, key=lambda layer: layer.rank).recognised if layers else "none"
    return {
        **found,
        "verdict": verdict,
        "layers": layers,
        "reason": "; ".join(sorted({layer.reason for layer in result.layers} - {""})),
        "error": largest_error(result.graph, inputs, wanted),
        "capture_s": round(captured - start, 1),
        "recognise_s": round(recognised - captured, 1),
    }


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem) for path in sorted(STRANGERS.glob("*.py"))]
)
@pytest.mark.usefixtures("one_thread")
def test_strangers_are_told_for_what_they_are(path: Path, record: Callable[[Record], None]) -> None:
    """A true mixture is found in full, a lookalike is not, and both compute what PyTorch does."""
    found = found_in(path)
    record(found)
    verdict, reason = TOLD.get(path.stem, FULL)
    assert found["verdict"] == verdict, found["reason"]
    assert reason in found["reason"]
    if verdict != "refused":
        assert found["error"] <= MOST_ERROR
    if path.stem.startswith("look_"):
        assert "full" not in found["layers"]
