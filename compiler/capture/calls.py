"""What the walk knows of ATen calls by their bare names, before any lowering."""

from __future__ import annotations

import operator
from collections.abc import Container

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from .claims import MARK
from .refusals import OF_NO_SIZE
from .site import lowering_of

# One value everywhere; None where an argument tells which.
FILLS = {
    "zeros": 0,
    "zeros_like": 0,
    "new_zeros": 0,
    "empty": 0,
    "empty_like": 0,
    "empty_permuted": 0,
    "empty_strided": 0,
    "new_empty": 0,
    "new_empty_strided": 0,
    "ones": 1,
    "ones_like": 1,
    "new_ones": 1,
    "full": None,
    "full_like": None,
    "new_full": None,
    "fill": None,
}
# Calls that take no tensor: they are computed here.
CREATORS = frozenset({"arange", "eye", "linspace", "scalar_tensor", "tril_indices", "triu_indices"})
# Checks that torch.export leaves in the graph; with static shapes they hold.
CHECKS = frozenset(
    {
        "_assert_async",
        "_assert_scalar",
        "_assert_tensor_metadata",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    }
)
# Calls that leave a constant what it is: it keeps its parameter's name.
NAMELESS = frozenset(
    {"_to_copy", "_unsafe_view", "adjoint", "alias", "clone", "contiguous", "detach", "expand"}
    | {"flatten", "getitem", "lift_fresh_copy", "mT", "matrix_H", "movedim", "numpy_T", "permute"}
    | {"reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "swapaxes", "t", "to"}
    | {"transpose", "unbind", "unflatten", "unsqueeze", "view"}
)
# Products of matrices: a model may build each expert as one, of matrices that are worth seeing.
PRODUCTS = frozenset({"bmm", "einsum", "linear", "matmul", "mm"})
# Calls that move the elements of such products, whole.
MOVES = NAMELESS | {"cat", "index", "stack"}
# Calls that move the elements of any tensor.
MOVED = MOVES | {"embedding", "flip", "gather", "index_select", "narrow", "repeat", "roll", "take"}
# Calls that take some of the elements along an axis.
CUTS = frozenset({"narrow", "slice"})
# Calls that take sizes as sizes, and compute nothing with them.
SHAPED = frozenset({"_unsafe_view", "broadcast_to", "expand", "reshape", "unflatten", "view"})


def is_repeatable(node: fx.Node) -> bool:
    """Whether torch may run the call now: it draws no random numbers and runs no submodule."""
    if isinstance(node.target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded not in node.target.tags
    return not isinstance(node.target, torch._ops.HigherOrderOperator)


def fixed_calls(program: ExportedProgram) -> set[fx.Node]:
    """The calls that depend on no input, write nothing and may be run now."""
    inputs = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.USER_INPUT and hasattr(spec.arg, "name")
    }
    fixed: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in inputs:
            fixed.add(node)
        elif node.op == "call_function" and all(n in fixed for n in node.all_input_nodes):
            is_call = isinstance(node.target, torch._ops.OpOverload)
            if node.target is operator.getitem or (
                is_call and is_repeatable(node) and not node.target._schema.is_mutable
            ):
                fixed.add(node)
    return {node for node in fixed if node.op == "call_function"}


def is_check_of_constants(node: fx.Node, fixed: Container[fx.Node]) -> bool:
    """Whether a call only checks, in order with others, what depends on no input."""
    return str(node.target) == "with_effects" and all(
        arg in fixed for arg in node.args[2:] if isinstance(arg, fx.Node)
    )


def is_real(fixed: object) -> bool:
    """Whether what is fixed is of real numbers, which lowerings take as float32."""
    parts = fixed if isinstance(fixed, tuple | list) else (fixed,)
    return all(isinstance(part, Tensor) and part.is_floating_point() for part in parts)


def is_part_of_rotation(bare: str, whole: object, part: object) -> bool:
    """Whether a call cuts rows or columns off square matrices as wide as a padded rotation."""
    if bare not in CUTS or not isinstance(whole, Tensor) or not isinstance(part, Tensor):
        return False
    if whole.dim() < 2 or whole.shape[-1] != whole.shape[-2] or not whole.is_floating_point():
        return False
    width = whole.shape[-1]
    return width > 1 and width & (width - 1) == 0 and part.shape[-2:] != whole.shape[-2:]


def is_half(fake: object) -> bool:
    """Whether a value is a tensor of floats of 16 bits."""
    return isinstance(fake, Tensor) and fake.dtype in (torch.float16, torch.bfloat16)


def is_wide(fake: object) -> bool:
    """Whether a value is a tensor of floats of 32 bits or more, which 16 bits would round."""
    return isinstance(fake, Tensor) and fake.is_floating_point() and not is_half(fake)


def is_about_sizes(node: fx.Node) -> bool:
    """Whether a call computes with sizes, not with tensors."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).startswith("aten.sym_")
    return not isinstance(node.target, torch._ops.HigherOrderOperator)


def is_known_and_pure(node: fx.Node) -> bool:
    """Whether the walk can take a node as it is: it writes to no tensor and has a lowering."""
    if node.op != "call_function" or node.target is operator.getitem:
        return node.op != "get_attr"
    if not isinstance(node.target, torch._ops.OpOverload):
        return is_about_sizes(node)
    if node.target._schema.is_mutable:
        return False
    if is_about_sizes(node) or str(node.target) == MARK:
        return True
    bare = str(node.target).split(".")[1]
    known = bare in FILLS or bare in CHECKS or bare in CREATORS or bare in OF_NO_SIZE
    return known or lowering_of(str(node.target)) is not None
