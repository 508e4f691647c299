"""Repack each constant as the kernel that reads it wants it.

    %w = constant {digest = "1f.."} : ternary[1024, 256]
    ->
    %w = constant {digest = "9a.."} : ternary[1024, 256] layout ternary8x4

The logical shape stays; a constant that two kernels want differently becomes two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..compiler.ir import Graph, Node, constant, rebuild
from ..kernels.lanes import Lanes
from ..kernels.layout import pack
from ..kernels.record import Kernel
from .select_kernels import kernel_of, spec_of


@dataclass(frozen=True)
class PackWeights:
    kernels: tuple[Kernel, ...]
    lanes: Lanes

    name = "pack_weights"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        store: dict[str, np.ndarray] = dict(graph.constants)
        packed: dict[tuple[str, str], Node] = {}

        def repack(node: Node) -> Node:
            if "kernel" not in node.notes:
                return node
            kernel = kernel_of(node, self.kernels)
            operands = list(node.operands)
            for index, layout in kernel.layouts(spec_of(node), self.lanes).items():
                plain = operands[index]
                key = str(plain["digest"]), layout
                if key not in packed:
                    data = pack(layout, graph.value(plain))
                    type = replace(plain.type, layout=layout)
                    packed[key] = replace(
                        constant(store, data, plain.name, type), source=plain.source
                    )
                operands[index] = packed[key]
            return replace(node, operands=tuple(operands))

        result = rebuild(graph, repack, store)
        kept = {str(node["digest"]) for node in result.nodes if node.op == "constant"}
        return replace(result, constants={key: store[key] for key in sorted(kept)})
