"""From a PyTorch module, or an exported program, to a graph of the IR."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.parameter import is_lazy

from ..errors import BadInput, ButterflycError, Unsupported
from ..ir.graph import RESULTS, Graph
from ..ir.interpret import check_input
from .arguments import WIDE, Arguments
from .calls import fixed_calls, is_known_and_pure
from .evaluating import evaluating, kept_by
from .fakes import DTYPES
from .functional import is_in_place, made_functional
from .idle import check_also_idle, check_same
from .number import NumberUsed
from .quiet import quiet_torch
from .reading import reading_numbers
from .refusals import STATE_ADVICE
from .refused_by_export import (
    first_line,
    hangs_on_data,
    refusal_of_decomposition,
    refusal_of_export,
)
from .results import (
    array_of,
    arrays_of,
    check_some,
    forward_of,
    names_of,
    places_in,
    returning_results,
)
from .share_rows import share_rows
from .some_rows import SomeRows
from .sorted_rows import unsort_rows
from .sources import clean, every_user_line, user_frame
from .structure import Place
from .vmap import check_constants, check_no_transforms, vmap_written_out
from .walk import Walk
from .written import with_constants_as_buffers

Progress = Callable[[str], None]
_MOST_ROUNDS = 4
_ASKS_FOR_ONE = re.compile(r"(Eq|Ne)\(u\d+, 1\)")  # whether a size that hangs on data is 1


@dataclass(frozen=True)
class Captured:
    """A captured model: its graph, the names of its state dict, and the program torch exported."""

    graph: Graph
    parameters: tuple[str, ...]
    program: ExportedProgram


def capture(
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | Arguments,
    *,
    name: str = "model",
    progress: Progress | None = None,
) -> Captured:
    """The graph of ``model`` in eval mode, for inputs of the shapes of ``example_inputs``.

    ``example_inputs`` are the arguments of forward: a tuple, or a dict by their names. Tensors in
    them are the inputs of the graph (order: `arguments`), what is no tensor is fixed; the order of
    its outputs: `results`. Constants keep the names of the state dict, inputs those of forward's
    arguments, and every node the line of the user's code it comes from. Raises BadInput for example
    inputs that are no float32, integer or bool tensors, for weights that hold NaN or no values, and
    for a model that fails on its example inputs; Unsupported, with every such place, for what
    cannot be compiled.
    """
    examples = Arguments.of(example_inputs)
    examples.check()
    examples = examples.copied()  # torch.export takes a tensor that is given twice for one input
    asked = writes = False
    if isinstance(model, ExportedProgram) and _is_open(model):
        model = model.module()  # traced again, for inputs of one shape
    if isinstance(model, ExportedProgram):
        places, where = places_in(model), ""
        program = _decomposed(model, progress)
    else:
        _check_kind(model)
        _check_weights({**dict(model.named_parameters()), **dict(model.named_buffers())})
        program, places, asked = _exported(model, examples, progress)
        # torch.export reads the module of an exported program, and does not call it.
        places, where = places or places_in(program), forward_of(model)
        check_no_transforms(program)
        writes = any(is_in_place(node) for node in program.graph.nodes)
        if writes and progress is not None:
            progress("making in-place calls functional")
        # What the user exported stays as it is; this program is ours to rewrite.
        if not (writes and made_functional(program)):
            program = _decomposed(program, progress)
    _check_weights({**program.constants, **program.state_dict}, set(program.state_dict))
    check_some(places, where)
    if progress is not None:
        progress(f"lowering {len(program.graph.nodes)} calls")
    graph = share_rows(Walk(program, clean(name)).graph(progress))
    graph = share_rows(unsort_rows(graph))
    _check_fit(graph, examples.tensors)
    if isinstance(model, nn.Module) and not asked:
        _check_that_it_runs(model, examples)
    if progress is not None:
        progress("comparing with the model" + (" where experts are idle" if asked else ""))
    runs: nn.Module = model.module() if isinstance(model, ExportedProgram) else model
    with evaluating(runs):
        if asked:
            check_also_idle(runs, graph, examples)
        else:
            check_same(runs, graph, examples, writes=writes)
    if names := names_of(places):
        graph = replace(graph, notes={**graph.notes, RESULTS: names})
    return Captured(graph, tuple(program.state_dict), program)


def _is_open(program: ExportedProgram) -> bool:
    """Whether a program takes inputs of more than one shape: a batch of any size, say."""
    names = set(program.graph_signature.user_inputs)
    fakes = (node.meta.get("val") for node in program.graph.nodes if node.name in names)
    sizes = (size for fake in fakes if isinstance(fake, Tensor) for size in fake.shape)
    return any(isinstance(size, torch.SymInt) for size in sizes)


def _check_kind(model: Any) -> None:
    """BadInput unless ``model`` is a module that can be traced."""
    help = "pass a torch.nn.Module, or what torch.export.export returned"
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        help = "pass the torch.nn.Module that it was made of: TorchScript cannot be traced"
    elif isinstance(model, type):
        kind = f"class ({model.__name__})"
        help = f"pass a module of the class: {model.__name__}(...)"
    elif isinstance(model, Mapping):
        help = "these are weights without code: module.load_state_dict(...), and pass the module"
    elif isinstance(model, nn.Module):
        return
    elif callable(model):
        help = "make it the forward of a torch.nn.Module, and pass the module"
    raise BadInput(f"the model is a {kind}", help=help)


def _check_fit(graph: Graph, inputs: tuple[Tensor, ...]) -> None:
    """BadInput unless the example inputs are those that a program was exported for."""
    if len(inputs) != len(graph.inputs):
        raise BadInput(
            f"{len(inputs)} example inputs for a program of {len(graph.inputs)}",
            help=f"pass {', '.join(f'{node.name}: {node.type}' for node in graph.inputs)}",
        )
    for node, value in zip(graph.inputs, inputs, strict=True):
        check_input(node, array_of(value))


def _check_weights(tensors: Mapping[str, Any], weights: set[str] | None = None) -> None:
    """Unsupported for dtypes that are not compiled yet, BadInput for NaN (in weights Inf too).

    A table in double precision is taken: what is computed from it, and from no input, is constant.
    """
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise BadInput(
                f"'{name}' has no shape yet: it belongs to a lazy module that never ran",
                help="run the model once, model(*example_inputs), and load or train its weights",
            )
    own = (t for name, t in tensors.items() if weights is None or name in weights)
    floats = [t for t in own if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]
    only_wide = bool(floats) and all(tensor.dtype in WIDE for tensor in floats)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.numel() == 0:
            continue
        if tensor.is_meta:
            raise BadInput(
                f"'{name}' is on the meta device, which holds no values",
                help="load them: module.load_state_dict(torch.load(path), assign=True)",
            )
        real = tensor.dtype.to_real()
        if real not in DTYPES or (real in WIDE and only_wide):
            raise Unsupported(
                f"'{name}' is {tensor.dtype}; models are compiled from float32",
                help="convert the model with model.float()",
            )
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        # Masks hold -inf on purpose; a weight never does.
        is_weight = isinstance(tensor, nn.Parameter)
        count = int(tensor.isnan().sum() + (tensor.isinf().sum() if is_weight else 0))
        if count:
            kind = "NaN or Inf" if is_weight else "NaN"
            raise BadInput(
                f"'{name}' holds {count} {kind} of {tensor.numel()} values",
                help="the training diverged or the checkpoint is damaged: load an earlier one",
            )


def _exported(
    model: nn.Module, examples: Arguments, progress: Progress | None
) -> tuple[ExportedProgram, list[Place], bool]:
    """The exported program, the places of its results, whether it was asked about chosen rows."""
    if progress is not None:
        progress("exporting with torch.export")
    with (
        evaluating(model),
        returning_results(model) as places,
        every_user_line(),
        vmap_written_out(),
    ):
        try:
            with quiet_torch():
                program = torch.export.export(
                    model, examples.places, dict(examples.names), strict=False
                )
            asked = _reads_numbers(program)
        except ButterflycError:
            raise
        except Exception as error:
            _check_that_it_runs(model, examples)
            if not hangs_on_data(error):
                raise refusal_of_export(error) from error
            asked = True
        if not asked:
            return program, places, False
        try:
            if progress is not None:
                progress("exporting as if every expert had tokens")
            return _exported_as_if_in_use(model, examples, progress), places, True
        except Exception as error:
            raise refusal_of_export(error) from error


def _exported_as_if_in_use(
    model: nn.Module, examples: Arguments, progress: Progress | None
) -> ExportedProgram:
    """The program as if all experts had tokens, with Python's numbers as tensors."""
    files: set[str] = set()
    least = 1
    while True:
        mode = SomeRows(least, files)
        try:
            with quiet_torch(), mode, reading_numbers(mode, files):
                program = torch.export.export(
                    model, examples.places, dict(examples.names), strict=False
                )
            if mode.unchecked and progress is not None:
                progress(f"leaving out the checks of data at {', '.join(mode.unchecked)}")
            return program
        except NumberUsed as error:
            if not error.file or error.file in files:
                raise
            files.add(error.file)
        except GuardOnDataDependentSymNode as error:
            if least == 2 or not _ASKS_FOR_ONE.search(str(error)):
                raise
            least = 2


def _reads_numbers(program: ExportedProgram) -> bool:
    """Whether Python numbers, or counts as long as a number that data tells, are in the program."""
    names = ("aten.item", "aten._local_scalar_dense", "aten.bincount", "aten.tensor_split.tensor")
    return any(str(node.target).startswith(names) for node in program.graph.nodes)


def _check_that_it_runs(model: nn.Module, examples: Arguments) -> None:
    """BadInput if the model fails on its example inputs; errors of ours pass through.

    Unsupported if forward leaves something behind that changes the result of a second call.
    """
    with evaluating(model):
        before = kept_by(model)
        try:
            first = _run(model, examples)
        except ButterflycError:
            raise
        except Exception as error:
            where, _ = user_frame(error.__traceback__)
            raise BadInput(
                f"the model fails on its example inputs ({examples}): "
                f"{type(error).__name__}: {first_line(error)}",
                where=where or None,
                help="pass inputs that the model runs on",
            ) from error
        now = kept_by(model)
        changed = [name for name in now if now[name] != before.get(name)]
        if changed and not _same(arrays_of(first), arrays_of(_run(model, examples))):
            raise Unsupported(
                f"forward changes '{changed[0]}', and a second call gives another result",
                where=forward_of(model) or None,
                help=STATE_ADVICE,
            )


def _run(model: nn.Module, examples: Arguments) -> Any:
    given = examples.copied()
    return model(*given.places, **given.names)


def _same(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and np.allclose(a, b, equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )


def _decomposed(program: ExportedProgram, progress: Progress | None) -> ExportedProgram:
    """In-place calls made functional, unknown calls written out as known ones where torch can.

    Linear, softmax, layer_norm and the like stay whole. A program of known calls that write nothing
    is taken as it is, which saves half the time.
    """
    check_no_transforms(program)
    strange: set[Any] | None = None
    for _ in range(_MOST_ROUNDS):
        fixed = fixed_calls(program)  # computed by torch itself, whatever they are
        calls = (node for node in program.graph.nodes if node not in fixed)
        odd = [node for node in calls if not is_known_and_pure(node)]
        before, strange = strange, {node.target for node in odd if node.op == "call_function"}
        if not odd or strange == before:
            break
        if progress is not None:
            progress("making in-place calls functional")
        known = torch.export.default_decompositions()
        # In-place calls become their functional forms by themselves, whole.
        table = {
            target: known[target]
            for target in strange
            if isinstance(target, torch._ops.OpOverload)
            and target in known
            and not target._schema.is_mutable
        }
        if any(is_in_place(node) for node in odd):
            program = with_constants_as_buffers(program)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.", FutureWarning)
            try:
                program = program.run_decompositions(table)
            except Exception as error:
                raise refusal_of_decomposition(odd, error) from error
    check_constants(program)
    return program
