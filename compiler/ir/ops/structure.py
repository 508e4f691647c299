"""Ops that give a graph its ends: inputs, constants, and one result of a node that has several.

Their types come with the node, so they have no shape rule; the interpreter handles them itself.
"""

STRUCTURAL = frozenset({"input", "constant", "result"})
