"""The products that instructions of aarch64 compute, and where in a function they are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .machine_code import Block, Function

# What an instruction adds to sums, by its name and the form of its first operand: the kind of
# products, and how many. A look-up is two for each byte: it finds the sum of the products of two
# ternary weights.
PRODUCTS: dict[tuple[str, str], tuple[str, int]] = {
    **{(name, "4s"): ("dot", 16) for name in ("sdot", "udot", "usdot")},
    **{(name, "2s"): ("dot", 8) for name in ("sdot", "udot", "usdot")},
    **{(name, "8h"): ("long", 8) for name in ("smlal", "smlal2", "smull", "smull2")},
    **{(name, "4s"): ("long", 4) for name in ("smlal", "smlal2", "smull", "smull2")},
    **{(name, "16b"): ("byte", 16) for name in ("mul", "mla")},
    **{(name, "8b"): ("byte", 8) for name in ("mul", "mla")},
    **{(name, "8h"): ("half", 8) for name in ("mul", "mla")},
    **{(name, "4s"): ("word", 4) for name in ("mul", "mla")},
    ("tbl", "16b"): ("look-up", 32),
    ("tbl", "8b"): ("look-up", 16),
    ("fmla", "4s"): ("float", 4),
    ("fmla", "2s"): ("float", 2),
    ("fmadd", "s"): ("float", 1),
}
FLOAT = "float"


def products_of(block: Block) -> dict[str, int]:
    """Products of one execution of ``block``, by kind.

    Look-ups beside multiplications of bytes are not counted: there they unpack weights.
    """
    found: dict[str, int] = {}
    for instruction in block.instructions:
        name, _, operands = instruction.text.partition(" ")
        first = operands.partition(",")[0]
        form = first.partition(".")[2] or first[:1]
        if (name, form) in PRODUCTS:
            kind, count = PRODUCTS[name, form]
            found[kind] = found.get(kind, 0) + count
    if found.keys() & {"dot", "long", "byte"}:
        found.pop("look-up", None)
    return found


def main_products(block: Block, floats: bool) -> int:
    """Products of floats of one execution of ``block``, or all others."""
    return sum(n for kind, n in products_of(block).items() if (kind == FLOAT) == floats)


def regions(function: Function, floats: bool = False) -> Mapping[int, str]:
    """For each block whether it is ``before`` the products, of the ``product``, or ``behind``.

    Of the product are the loops with products, and loops around them so far as no other loops stand
    behind those: tiles are unpacked for a product, and sums stored for it. What else is come to
    from a product, without going around a loop that holds both, is behind.
    """
    flow = function.flow
    back = function.back_edges
    onward = {a: [b for b in flow.successors(a) if (a, b) not in back] for a in flow}
    backward = {b: [a for a in flow.predecessors(b) if (a, b) not in back] for b in flow}
    product = {a for a, block in function.blocks.items() if main_products(block, floats)}
    for loop in function.loops:
        if product & loop.blocks:
            later = _reached(product & loop.blocks, onward) & loop.blocks - product
            if not any(other.blocks <= later for other in function.loops):
                product |= loop.blocks
    behind, before = _reached(product, onward), _reached(product, backward)
    product |= behind & before
    return {
        a: "product" if a in product else "behind" if a in behind else "before"
        for a in function.blocks
    }


def _reached(start: set[int], edges: Mapping[int, Sequence[int]]) -> set[int]:
    """All blocks that ``edges`` lead to from ``start``, which is among them."""
    found, waiting = set(start), list(start)
    while waiting:
        for block in edges[waiting.pop()]:
            if block not in found:
                found.add(block)
                waiting.append(block)
    return found
