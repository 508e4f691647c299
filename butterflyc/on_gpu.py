"""A compiled model taken to a GPU, or to what stands in for one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .compiler.errors import Incompatible, ToolMissing
from .compiler.ir import Graph
from .compiler.run.plans import PATH, unpack_plans

if TYPE_CHECKING:
    from .compiler.run.gpu import GpuModel


def loaded(
    graph: Graph,
    core: Mapping[str, Any],
    sections: Mapping[str, bytes],
    name: str,
    interpret: bool = False,
) -> GpuModel:
    """``graph`` with the plans and the code in ``sections``, ready to be called.

    Raises Incompatible if it is not for a GPU, or for another one than is here, ToolMissing without
    torch, and for the interpreter without Triton.
    """
    if PATH not in sections:
        raise Incompatible(
            f"{name} was compiled for {core['name']}, which is no GPU",
            help="leave --interpret out; --on qemu emulates ARM and microcontrollers",
        )
    if find_spec("torch") is None:
        raise ToolMissing(
            "torch is not installed, whose library computes what our kernels leave",
            help="install torch, as https://pytorch.org says for your GPU",
        )
    from .compiler.run.gpu import Driven, GpuModel, Interpreted, check_device

    plans = unpack_plans(sections[PATH])
    if interpret:
        return GpuModel(graph, plans, Interpreted(), "cpu")
    from .compiler.lower.cubin import from_files
    from .compiler.run.cuda_driver import Driver

    check_device(core["name"], name)
    return GpuModel(graph, plans, Driven(Driver(from_files(sections))), "cuda")
