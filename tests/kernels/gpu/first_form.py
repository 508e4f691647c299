"""The first form of launches for a GPU that is not here."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from butterflyc.kernels.gpu.launch import Launch


def _source(launch: Launch) -> ASTSource:
    module = import_module(f"butterflyc.kernels.gpu.{launch.module}")
    kernel = getattr(module, launch.function)
    signature = {name: argument.type for name, argument in launch.arguments}
    signature |= {name: "constexpr" for name, _ in launch.constants}
    assert list(signature) == kernel.arg_names
    aligned = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, argument in launch.arguments
        if argument.is_buffer or argument.value % 16 == 0
    }
    return ASTSource(kernel, signature, dict(launch.constants), aligned)


def _options(launch: Launch) -> dict[str, Any]:
    return {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}


def triton_ir(launch: Launch, capability: int) -> str:
    """The first form that Triton gives a kernel: takes a moment, and refuses what is not Triton."""
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    options = backend.parse_options(_options(launch))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(options)
    modules = backend.get_module_map()
    return str(_source(launch).make_ir(target, options, functions, modules, context))
