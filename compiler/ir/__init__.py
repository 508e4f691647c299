"""The graph IR: types, nodes, op tables, text form, verifier, interpreter."""

from .build import input_node, make, remake, result
from .graph import Attribute, Graph, Node, constant, digest_of, rebuild, topological_order
from .text import parse_graph, print_graph, print_node
from .types import Type, type_of
from .verify import verify

__all__ = [
    "Attribute",
    "Graph",
    "Node",
    "Type",
    "constant",
    "digest_of",
    "input_node",
    "make",
    "parse_graph",
    "print_graph",
    "print_node",
    "rebuild",
    "remake",
    "result",
    "topological_order",
    "type_of",
    "verify",
]
