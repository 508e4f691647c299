"""From the fx graph of an exported program to a graph of the IR.

What depends on no input is computed by torch itself, here and once: ternary codes must be rounded
exactly as eager rounds them. The rest is lowered call by call, by the tables `aten_*.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ..errors import InvalidGraph
from ..ir.build import input_node
from ..ir.graph import Graph, Node
from ..ir.types import FLOATS, Type
from . import families  # noqa: F401  (enters all lowerings into their table)
from .aten_complex import (
    Complex,
    has_complex,
    is_complex,
    lower_complex,
    parts_of,
    parts_with_rows,
)
from .calls import (
    CHECKS,
    FILLS,
    MOVED,
    MOVES,
    NAMELESS,
    PRODUCTS,
    SHAPED,
    is_about_sizes,
    is_check_of_constants,
    is_half,
    is_part_of_rotation,
    is_real,
    is_repeatable,
    is_wide,
)
from .chosen import Chosen, Marks, is_uniform
from .claimed import Claims, results_of_registered, what_is_marked
from .claims import MARK
from .fakes import DTYPES, UNKNOWN, Sizes, as_float32, contains_unknown, plain
from .refusals import MASK_ADVICE, STATE_ADVICE, Refusals
from .results import is_no_result, number_as_tensor
from .site import Constants, Refused, Site, lowering_of
from .sources import clean, name_of, source_of
from .stand_in import stand_in
from .written import Writes


class Walk:
    """One pass over an exported program: ``graph`` is the result, unless something was refused."""

    def __init__(self, program: ExportedProgram, name: str) -> None:
        self.program = program
        self.name = name
        self.constants = Constants()
        self.refusals = Refusals()
        self.inputs: list[Node] = []
        self.outputs: tuple[Node, ...] = ()
        self.values: dict[fx.Node, Any] = {}  # IR nodes, tuples of them, sizes
        self.marks: dict[fx.Node, Any] = {}  # which values hold rows that the data chose
        self.fixed: dict[fx.Node, Any] = {}  # tensors that depend on no input
        self.products: set[fx.Node] = set()  # what is fixed, and a product or a part of matrices
        self.narrow = False  # whether a product is taken apart, all of whose parts become float32
        self.labels: dict[fx.Node, str] = {}  # names of what is fixed
        self.claims = Claims()
        self.tensors = {**program.constants, **program.state_dict}
        self.roots = {name for name in self.tensors if not name.startswith("lifted_tensor")}
        self.sizes = Sizes()
        self.kinds = {
            spec.arg.name: spec
            for spec in program.graph_signature.input_specs
            if hasattr(spec.arg, "name")
        }

    def graph(self, progress: Callable[[str], None] | None = None) -> Graph:
        """The whole program. Raises Unsupported with everything that was refused."""
        writes = Writes.of(self.program)
        for target, value in writes.kept:
            self.refusals.add(f"writes to '{target}'", source_of(value), STATE_ADVICE)
        nodes = [node for node in self.program.graph.nodes if node in writes.needed]
        for number, node in enumerate(nodes):
            if progress is not None and number % 1000 == 999:
                progress(f"lowered {number + 1} of {len(nodes)} calls")
            try:
                self._visit(node)
            except Refused as refused:
                self.refusals.add(refused.what, source_of(node), refused.advice)
                self.values[node] = stand_in(node.meta.get("val"), self.sizes)
        self.refusals.raise_if_any()
        for key, what, source, node in results_of_registered(self.program.graph):
            self._claim(key, what, source, node)
        inputs, outputs = self.claims.noted(tuple(self.inputs), self.outputs)
        constants = self.constants.needed(outputs)
        return Graph(self.name, inputs, outputs, constants, self.claims.notes)

    def _visit(self, node: fx.Node) -> None:
        """Takes one node. Raises Refused for what has no form in the graph."""
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "get_attr":
            self.values[node] = UNKNOWN  # a submodule, for the call that runs it
        elif node.op == "call_function":
            self._call(node)
        elif node.op == "output":
            self.outputs = self._outputs(node)

    def _placeholder(self, node: fx.Node) -> None:
        spec = self.kinds[node.name]
        if spec.kind == InputKind.USER_INPUT:
            self._input(node)
            return
        tensor = self.tensors.get(spec.target or "")
        if not isinstance(tensor, Tensor):  # a token, which orders calls with effects
            self.values[node] = UNKNOWN
            return
        self.fixed[node] = tensor.detach()
        self.labels[node] = str(spec.target)

    def _input(self, node: fx.Node) -> None:
        fake = node.meta.get("val")
        type = self.sizes.type_of(fake)
        if is_complex(fake):
            advice = "pass torch.view_as_real(x), and view it as complex inside"
            self.refusals.add(f"input '{node.name}' of complex numbers", "", advice)
            self.values[node] = UNKNOWN
        elif type is not None:
            self.values[node] = input_node(node.name, type)
            self.inputs.append(self.values[node])

    def _outputs(self, node: fx.Node) -> tuple[Node, ...]:
        """The results, in order."""
        found = []
        specs = self.program.graph_signature.output_specs
        for spec, value in zip(specs, node.args[0], strict=True):  # type: ignore[arg-type]
            if spec.kind != OutputKind.USER_OUTPUT or is_no_result(value):
                continue
            if not isinstance(value, fx.Node):
                found.append(self._constant(number_as_tensor(value), "number", ""))
            elif self.marks.get(value) is not None:
                advice = "return a tensor of one shape: zeros in the rows that were not chosen"
                self.refusals.add("a result whose size the data chooses", source_of(value), advice)
            elif is_complex(value.meta.get("val")):
                advice = "return torch.view_as_real(x)"
                self.refusals.add("a result of complex numbers", source_of(value), advice)
            elif getattr(value.meta.get("val"), "dtype", None) == torch.float64:
                self.refusals.add("a result in float64", source_of(value), "return x.float()")
            else:
                result = self._operand(value)
                found.append(result)
                kept = not isinstance(result, Node) or result.type.dtype != "f32"
                if is_half(value.meta.get("val")) and not kept:
                    self.refusals.add("a result of 16 bits", source_of(value), "return x.float()")
        known = [value for value in found if value is not UNKNOWN]
        if len(known) < len(found) and not self.refusals:
            advice = "return tensors that the model computes from its inputs"
            self.refusals.add("a result that is no tensor of a fixed shape", "", advice)
        return tuple(known) if len(known) == len(found) else ()

    def _call(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            self._item(node)
            return
        target = str(node.target)
        bare = target.split(".")[1] if target.startswith("aten.") else ""
        if bare in CHECKS or is_check_of_constants(node, self.fixed):
            return
        if target == MARK:
            self._mark(node)
        elif bare in FILLS:
            self._fill(node, bare)
        elif is_repeatable(node) and all(n in self.fixed for n in node.all_input_nodes):
            self._fold(node, bare)
        elif is_about_sizes(node):
            size = self.sizes.number(node.meta.get("val"))
            self.values[node] = UNKNOWN if size is None else size
        else:
            self.values[node] = self._lower(node, target)

    def _mark(self, node: fx.Node) -> None:
        """A mark is the marked value itself, and a claim about it."""
        marked, label = node.args[0], (*node.args, node.kwargs.get("label", ""))[1]
        assert isinstance(marked, fx.Node), "a mark is on a tensor"
        self._claim(f"mark.{node.name}", what_is_marked(str(label)), source_of(node), marked)
        self.values[node] = self._operand(marked)
        if marked in self.marks:
            self.marks[node] = self.marks[marked]

    def _claim(self, key: str, what: str, source: str, node: fx.Node) -> None:
        value = self._operand(node)
        value = value.real if isinstance(value, Complex) else value
        if isinstance(value, Node):
            self.claims.add(key, what, source, value)

    def _item(self, node: fx.Node) -> None:
        source, index = node.args
        assert isinstance(source, fx.Node), "an item of what is no call"
        assert isinstance(index, int), "an item by what is no number"
        if source in self.fixed:
            self.fixed[node] = self.fixed[source][index]
            self.labels[node] = self.labels[source]
            if source in self.products:
                self.products.add(node)
        else:
            value = self.values.get(source, UNKNOWN)
            part = value[index] if isinstance(value, tuple) else UNKNOWN
            if part is None and node.users:
                what = f"{source.target}: its result {index}"
                advice = "the forward pass of a plain model does not need it"
                self.refusals.add(what, source_of(source), advice)
            self.values[node] = UNKNOWN if part is None else part
            if source in self.marks:
                self.marks[node] = self.marks[source][index]

    def _fill(self, node: fx.Node, bare: str) -> None:
        """One value everywhere: held once, and broadcast where it is read."""
        fake = node.meta["val"]
        value: Any = FILLS[bare]
        if value is None:
            value = node.args[1] if bare != "new_full" else node.args[2]
            value = self.fixed.get(value, value) if isinstance(value, fx.Node) else value
        type, chosen = self.sizes.type_of(fake), self.sizes.chosen(fake)
        if isinstance(value, fx.Node) or type is None:
            self.values[node] = self._lower(node, str(node.target))
            return
        filled = torch.as_tensor(value).to(fake.dtype).reshape(()).expand(type.shape)
        if chosen is None:
            self.fixed[node], self.labels[node] = filled, name_of(node)
        else:  # one for each row that was chosen
            self.values[node] = self._constant_of(filled, name_of(node), source_of(node))
            self.marks[node] = chosen

    def _fold(self, node: fx.Node, bare: str) -> None:
        """What depends on no input is computed by torch, exactly as eager computes it."""

        def value(arg: fx.Node) -> Any:
            return self.fixed[arg]

        args = fx.map_arg(node.args, value)
        named = fx.map_arg(node.kwargs, value)
        # A constant may be held with fewer strides than torch.export saw.
        is_view = str(node.target) in ("aten.view.default", "aten._unsafe_view.default")
        function: Any = torch.reshape if is_view else node.target
        with torch.no_grad():
            self.fixed[node] = function(*args, **named)
        self.sizes.learn(node.meta.get("val"), self.fixed[node])
        moves = bare in MOVES and not self.products.isdisjoint(node.all_input_nodes)
        if moves or bare in PRODUCTS or is_part_of_rotation(bare, args[0], self.fixed[node]):
            self.products.add(node)
        roots = {self._root(n) for n in node.all_input_nodes} - {""}
        if len(roots) != 1:
            self.labels[node] = name_of(node)
        elif bare in NAMELESS:
            self.labels[node] = next(self.labels[n] for n in node.all_input_nodes if self._root(n))
        else:
            self.labels[node] = f"{roots.pop()}.{bare.lstrip('_')}"

    def _root(self, node: fx.Node) -> str:
        """The parameter or buffer that a fixed value was made of, or nothing."""
        label = self.labels[node]
        while label:
            if label in self.roots:
                return label
            label = label.rpartition(".")[0]
        return ""

    def _operand(self, node: fx.Node) -> Any:
        """The IR value of an fx node; what is fixed becomes a constant here."""
        if node not in self.values:
            fixed = self.fixed.get(node, UNKNOWN)
            if isinstance(fixed, Tensor) and fixed.dtype.to_real() not in DTYPES:
                advice = "use float32, integers or bool"
                self.refusals.add(f"a constant of {fixed.dtype}", source_of(node), advice)
                fixed = stand_in(fixed, self.sizes)
            elif node in self.products and is_real(fixed):
                fixed = self._product(node)
            elif isinstance(fixed, Tensor):
                fixed = self._constant_of(fixed, self.labels[node], source_of(node))
            self.values[node] = fixed
        return self.values[node]

    def _product(self, node: fx.Node) -> Any:
        """A product of fixed matrices, from the matrices: recognition may look for each of them."""
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, fx.Node), "an item of what is no call"
            return self._operand(source)[index]
        before, self.narrow = self.narrow, True
        try:
            return self._lower(node, str(node.target))
        except Refused:
            return self._constant_of(self.fixed[node], self.labels[node], source_of(node))
        finally:
            self.narrow = before

    def _constant_of(self, tensor: Tensor, label: str, source: str) -> Node | Complex:
        if not tensor.is_complex():
            return self._constant(tensor, label, source)
        tensor = tensor.resolve_conj()
        real = self._constant(tensor.real, f"{label}.real", source)
        return Complex(real, self._constant(tensor.imag, f"{label}.imag", source))

    def _constant(self, tensor: Tensor, label: str, source: str) -> Node:
        dtype = "f32" if self.narrow and tensor.is_floating_point() else DTYPES[tensor.dtype]
        # Repeated axes (stride 0) are held once.
        repeated = [n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
        whole = tuple(tensor.shape)
        for axis, again in enumerate(repeated):
            tensor = tensor.narrow(axis, 0, 1) if again else tensor
        if all(n == 1 for n in tensor.shape) and any(repeated):
            tensor = tensor.reshape(())
        if dtype in ("f32", "bf16"):  # NumPy has no bfloat16
            tensor = as_float32(tensor)
        array = tensor.detach().cpu().contiguous().resolve_neg().numpy()
        node = self.constants.hold(array, dtype, clean(label), source)
        return Site("", clean(label), source, node.type, self.constants).broadcast(node, whole)

    def _lower(self, node: fx.Node, target: str) -> Any:
        source = source_of(node)
        fake = node.meta.get("val")
        lowering = lowering_of(target)
        if lowering is None:
            self.refusals.add_operator(node, target, source)
            return stand_in(fake, self.sizes)
        wide = (is_wide(operand.meta.get("val")) for operand in node.all_input_nodes)
        moves = target.split(".")[1] in MOVED and not any(wide)
        if is_half(fake) and moves and not self.narrow:
            return self._as_float32(node, target)
        args, named = (fx.map_arg(part, self._operand) for part in (node.args, node.kwargs))
        args, named = plain(args), plain(named)
        if contains_unknown(args) or contains_unknown(named):
            return UNKNOWN
        marks = Marks()
        for operand in node.all_input_nodes:
            mark = self.marks.get(operand)
            if isinstance(mark, Chosen):
                marks.update(dict.fromkeys(parts_with_rows(self.values[operand], mark), mark))
        out = self.sizes.types_of(fake)
        if self.narrow and isinstance(out, Type) and out.is_float:
            out = Type("f32", out.shape)
        site = Site(target, name_of(node), source, out, self.constants, marks)
        if isinstance(out, Type) and out.dtype in FLOATS - {"f32"}:
            raise Refused(f"{node.target} in {out.dtype}", "compute in float32")
        counts = (n.meta.get("val") for n in node.all_input_nodes)
        if site.operator not in SHAPED and any(map(self.sizes.is_padded, counts)):
            advice = "count with a sum over the mask; do not use the size of what it chose"
            raise Refused("the number of chosen rows as a value", advice)
        try:
            if is_complex(fake) or has_complex((args, named)):
                value = lower_complex(site, lowering, fake, args, named)
            else:
                value = lowering(site, *args, **named)
        except InvalidGraph:
            if not marks:
                raise
            raise Refused("rows chosen by the data, together with others", MASK_ADVICE) from None
        self.marks[node] = self._marked(fake, value, marks)
        return value

    def _as_float32(self, node: fx.Node, target: str) -> Any:
        """What only moves numbers of 16 bits, in float32, which holds each of them exactly."""
        self.narrow = True
        try:
            return self._lower(node, target)
        finally:
            self.narrow = False

    def _marked(self, fake: Any, value: Any, marks: Marks) -> Any:
        """The mark of a call's result, for each part; Refused if torch sees other rows there."""
        if isinstance(fake, tuple | list):
            return tuple(self._marked(f, v, marks) for f, v in zip(fake, value, strict=True))
        parts = parts_of(value)
        part = next((part for part in parts if part in marks), None)
        mark = None if part is None else marks[part]
        if part is None or mark is None:
            mark = self.sizes.chosen(fake)  # the same in as many rows as were chosen
            followed = mark is None or all(is_uniform(x, mark.axis) for x in parts)
        else:
            self.sizes.pad(fake, part.type, mark)
            followed = self.sizes.padded(fake) == [mark.axis]
        if not followed:
            raise Refused("rows chosen by the data in a form that is not followed", MASK_ADVICE)
        return mark
