"""The process that runs torch-mlir: ``python -m butterflyc.mlir_child MODEL DIALECT ANSWER``.

ANSWER becomes a JSON file with ``text``, with ``error`` (one of ours), or with ``refused`` (what
torch-mlir says). Only `mlir.view` starts it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from .compiler.errors import ButterflycError


def main(model: str, dialect: str, answer: str) -> None:
    end_with_parent()
    limit_memory()
    warnings.filterwarnings("ignore")
    Path(answer).write_text(json.dumps(answered(model, dialect)))


def answered(model: str, dialect: str) -> dict[str, Any]:
    """The view of ``model``, or why there is none."""
    from .compiler.capture.export import capture
    from .source import open_model

    try:
        source = open_model(model)
        program = capture(source.module, source.examples).program
    except ButterflycError as error:
        return {"error": error.as_dict()}
    import torch
    from torch_mlir import fx
    from torch_mlir.extras.fx_decomp_util import get_decomposition_table

    try:
        marks = {torch.ops.butterflyc.mark.default: lambda y, label="": y.clone()}
        program = program.run_decompositions({**get_decomposition_table(), **marks})
        # torch-mlir looks for all buffers here, also for those that are not saved.
        buffers = set(program.graph_signature.inputs_to_buffers.values())
        program.state_dict.update({k: v for k, v in program.constants.items() if k in buffers})
        module = fx.export_and_import(program, output_type=dialect, decomposition_table={})
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    # Weights are named, not shown.
    text = module.operation.get_asm(large_elements_limit=16, large_resource_limit=0)
    return {"text": text.partition("\n{-#")[0].rstrip()}


def limit_memory() -> None:
    """No more address space than the machine has memory, so that this process fails, not others."""
    bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or bytes < most:
        resource.setrlimit(resource.RLIMIT_AS, (bytes, most))


def end_with_parent() -> None:
    """On Linux, this process is killed when the one that started it ends in whatever way."""
    if sys.platform == "linux":
        of_parent_death = 1
        ctypes.CDLL(None).prctl(of_parent_death, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
