"""Functions under vmap, written out for the whole batch before torch.export sees them.

torch.export notes the calls of a vmapped function as if for one element, between calls that open
and close the vmap. Running that program again makes constants of tensors that live in the open
vmap only. So each vmap is first traced by itself, below vmap: what is left are calls on whole
batches, and those are what torch.export gets to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from ..errors import Unsupported
from .sources import source_of

_TRANSFORMS = "torch._functorch."
_OF_VMAP = frozenset(
    {"lazy_load_decompositions", "_vmap_increment_nesting", "_vmap_decrement_nesting"}
    | {"_add_batch_dim", "_remove_batch_dim"}
)
_VMAP_ADVICE = (
    "pass the module itself, not the exported program; or write the batch as an axis of the "
    "tensors, with einsum or an unsqueeze"
)
_DERIVATIVE_ADVICE = "write the derivative out with the operators of torch, without torch.func"


@contextmanager
def vmap_written_out() -> Iterator[None]:
    """While it lasts, torch.export sees what vmapped functions compute on the whole batch."""
    from torch._functorch import apis

    name = "vmap_impl"
    before = getattr(apis, name)

    def written_out(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_exporting() or not torch._C._is_torch_function_mode_enabled():
            return before(*args, **kwargs)  # no tracing, or inside of another vmap
        return _run_written_out(before, args, kwargs)

    setattr(apis, name, written_out)
    try:
        yield
    finally:
        setattr(apis, name, before)


def _run_written_out(
    vmap: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What ``vmap(*args, **kwargs)`` gives, by calls on whole batches."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    shape: list[pytree.TreeSpec] = []

    def flat(*tensors: Tensor) -> list[Any]:
        given = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        again, named = pytree.tree_unflatten(given, spec)
        results, out = pytree.tree_flatten(vmap(*again, **named))
        shape.append(out)
        return results

    tensors = [leaves[place] for place in places]
    results = _Replay(_traced(flat, tensors)).run(*tensors)
    return pytree.tree_unflatten(list(results), shape[-1])


def _traced(function: Callable[..., Any], tensors: list[Tensor]) -> fx.GraphModule:
    """The calls that ``function`` makes below vmap, unseen by the trace that is under way.

    Tensors that it closes over are attributes of the result, the same objects.
    """
    fake = detect_fake_mode()
    with _disable_current_modes(), torch._C.DisableTorchFunction(), fake or nullcontext():
        return make_fx(function, record_stack_traces=True)(*tensors)


class _Replay(fx.Interpreter):
    """Runs the calls again for the outer trace, which takes their source lines over."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        with preserve_node_meta():
            return super().run(*args, **kwargs)


def check_no_transforms(program: ExportedProgram) -> None:
    """Unsupported if calls that open or close a vmap or a derivative are left in the program."""
    # A derivative stands in a submodule: the part of the program that has gradients on.
    parts = (part for part in program.graph_module.modules() if isinstance(part, fx.GraphModule))
    for node in (node for part in parts for node in part.graph.nodes):
        module = getattr(node.target, "__module__", None) or ""
        if node.op == "call_function" and f"{module}.".startswith(_TRANSFORMS):
            name = getattr(node.target, "__name__", str(node.target))
            is_vmap = name in _OF_VMAP
            what = "a vmap in an exported program" if is_vmap else "a derivative of torch.func"
            raise Unsupported(
                f"{what} cannot be compiled ({name.strip('_')})",
                where=_line_near(node) or None,
                help=_VMAP_ADVICE if is_vmap else _DERIVATIVE_ADVICE,
            )


def _line_near(node: fx.Node) -> str:
    """The source line of a call, or of the next one that has any."""
    while node.op != "root":
        if node.op == "call_function" and source_of(node):
            return source_of(node)
        node = node.next
    return ""


def check_constants(program: ExportedProgram) -> None:
    """Unsupported if the program holds a constant that had values only while it was traced."""
    targets = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.target is not None and hasattr(spec.arg, "name")
    }
    for node in program.graph.nodes:
        value = program.constants.get(targets.get(node.name, ""))
        if node.op != "placeholder" or not isinstance(value, Tensor):
            continue
        if isinstance(value, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise Unsupported(
                f"torch.export lost the values of a constant of shape {list(value.shape)}",
                where=source_of(next(iter(node.users), node)) or None,
                help="make the constant outside of the transformed function, or a buffer",
            )
