"""Take the chosen experts from outside, so that two computations can be compared at near-ties.

    %t = top_k(%scores) {k = 2}   %v = result(%t) {index = 0}   %e = result(%t) {index = 1}
    ->
    input %t.experts : i64[65, 2]   %v = gather(%scores, %t.experts) {axis = -1}

Where the scores of two experts differ by less than rounding, a compiled model may rightly choose
another one than PyTorch; with the choice given, the rest is comparable. Not part of a pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..compiler.ir import Graph, Node, input_node, make, rebuild


@dataclass(frozen=True)
class ForceRouting:
    """Adds one input a `top_k`, after the model's own, in the order of the graph."""

    name = "force_routing"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        chosen: dict[Node, Node] = {}

        def force(node: Node) -> Node:
            if node.op != "result" or node.operands[0].op != "top_k":
                return node
            routing = node.operands[0]
            if routing not in chosen:
                chosen[routing] = input_node(f"{routing.name}.experts", routing.types[1])
            if node["index"] == 1:
                return chosen[routing]
            values = make("gather", routing.operands[0], chosen[routing], axis=-1)
            return replace(values, name=node.name, source=node.source)

        forced = rebuild(graph, force)
        order = {node.name: i for i, node in enumerate(graph.nodes) if node.op == "top_k"}
        experts = sorted(chosen.values(), key=lambda n: order[n.name.removesuffix(".experts")])
        return replace(forced, inputs=(*forced.inputs, *experts))
