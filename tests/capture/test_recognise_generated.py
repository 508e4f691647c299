"""Random Butterfly layers in random coding styles: all are recognised, and compute the same."""

from __future__ import annotations

import copy

import numpy as np
import torch
from hypothesis import given, settings
from torch import Tensor

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.recognise import LayerReport, recognise
from butterflyc.compiler.ir import Graph
from butterflyc.compiler.ir.interpret import interpret

from .generator import Config, Generated, configs, inputs

CLOSE = 1e-5


def error(graph: Graph, module: Generated, x: Tensor) -> float:
    """How far the graph, run in float32, is from PyTorch in float64, of the largest element."""
    with torch.no_grad():
        want = copy.deepcopy(module).double()(x.double()).numpy()
    (got,) = interpret(graph, x.numpy())
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))


def exactly(module: Generated) -> LayerReport:
    """The report on the one layer, once the graph has computed what the module does."""
    module.eval()
    example, *others = inputs(module, 3, module.c.seed)
    result = recognise(capture(module, (example,)).graph)
    for x in (example, *others):
        assert error(result.graph, module, x) <= CLOSE
    (report,) = result.layers
    return report


@settings(max_examples=30, derandomize=True, deadline=None)
@given(configs())
def test_generated_layers_are_recognised_in_full(config: Config) -> None:
    """However a Butterfly layer is written, it is found with all experts, and computes the same."""
    report = exactly(Generated(config))
    assert (report.recognised, report.reason) == ("full", "")
    assert (report.experts_found, report.experts, report.k) == (
        config.experts,
        config.experts,
        config.chosen,
    )
