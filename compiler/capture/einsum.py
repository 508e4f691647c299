"""Einstein sums as reorderings, one product of matrices, and sums."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ..ir.graph import Node
from .site import Site, lowers

Labels = tuple[str, ...]


@lowers("aten.einsum")
def einsum(site: Site, equation: str, operands: Sequence[Node], **_: object) -> Node:
    operands = [site.cast(x, site.out.dtype) for x in operands]
    terms, result = parse(equation, [x.type.rank for x in operands])
    once = [_diagonals(site, *pair) for pair in zip(operands, terms, strict=True)]
    operands, terms = [x for x, _ in once], [term for _, term in once]
    x, labels = operands[0], terms[0]
    for at, (other, other_labels) in enumerate(zip(operands[1:], terms[1:], strict=True), 1):
        needed = {*result, *(label for term in terms[at + 1 :] for label in term)}
        x, labels = contract(site, (x, labels), (other, other_labels), needed)
    x, labels = _sum_out(site, x, labels, set(result))
    return site.transpose(x, [labels.index(label) for label in result])


@lowers("aten.tensordot")
def tensordot(site: Site, a: Node, b: Node, of_a: Sequence[int], of_b: Sequence[int]) -> Node:
    first = [f"a{axis}" for axis in range(a.type.rank)]
    second = [f"b{axis}" for axis in range(b.type.rank)]
    for one, other in zip(of_a, of_b, strict=True):
        second[other] = first[one]
    rest = [label for label in (*first, *second) if (label in first) != (label in second)]
    y, labels = contract(site, (a, tuple(first)), (b, tuple(second)), set(rest))
    return site.transpose(y, [labels.index(label) for label in rest])


def parse(equation: str, ranks: Sequence[int]) -> tuple[list[Labels], Labels]:
    """The labels of each operand and of the result; ``...`` becomes labels of its own."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    hidden = max(
        (rank - len(text.replace("...", "")) for text, rank in zip(texts, ranks, strict=True)),
        default=0,
    )

    def labels(text: str, count: int) -> Labels:
        before, dots, after = text.partition("...")
        dotted = tuple(f".{i}" for i in range(hidden - count, hidden)) if dots else ()
        return (*before, *dotted, *after)

    terms = [
        labels(text, rank - len(text.replace("...", "")))
        for text, rank in zip(texts, ranks, strict=True)
    ]
    if arrow:
        return terms, labels(right, hidden)
    flat = [label for term in terms for label in term]
    dotted = tuple(f".{i}" for i in range(hidden)) if "..." in left else ()
    once = sorted(label for label in set(flat) if flat.count(label) == 1 and label[0] != ".")
    return terms, (*dotted, *once)


def _diagonals(site: Site, x: Node, labels: Labels) -> tuple[Node, Labels]:
    """An operand with one axis for each label: the diagonal, where two axes have the same."""
    for label in [label for i, label in enumerate(labels) if label in labels[:i]]:
        a, b = labels.index(label), labels.index(label, labels.index(label) + 1)
        rest = [axis for axis in range(len(labels)) if axis not in (a, b)]
        size = x.type.shape[a]
        x = site.transpose(x, [a, b, *rest])
        x = site.reshape(x, (size * size, *x.type.shape[2:]))
        order = site.constant(np.arange(size) * (size + 1), "i64", f"{site.name}.order")
        x, labels = site.make("take", x, order, axis=0), (label, *(labels[i] for i in rest))
    return x, labels


def contract(
    site: Site, a: tuple[Node, Labels], b: tuple[Node, Labels], needed: set[str]
) -> tuple[Node, Labels]:
    """The product of two operands, summed over what is not ``needed`` any more."""
    a, b = _squeezed(site, a, b), _squeezed(site, b, a)
    x, x_labels = _sum_out(site, *a, needed | set(b[1]))
    y, y_labels = _sum_out(site, *b, needed | set(a[1]))
    size = dict(zip((*x_labels, *y_labels), (*x.type.shape, *y.type.shape), strict=True))
    shared = [label for label in x_labels if label in y_labels]
    batch = [label for label in shared if label in needed]
    inner = [label for label in shared if label not in needed]
    rows = [label for label in x_labels if label not in shared]
    columns = [label for label in y_labels if label not in shared]
    if not inner:
        return _outer(site, (x, x_labels), (y, y_labels), (*batch, *rows, *columns))
    x = _matrix(site, (x, x_labels), (batch, rows, inner), size)
    y = _matrix(site, (y, y_labels), (batch, inner, columns), size)
    z = site.make("matmul", x, y)
    labels = (*batch, *rows, *columns)
    return site.reshape(z, [size[label] for label in labels]), labels


def _squeezed(
    site: Site, a: tuple[Node, Labels], other: tuple[Node, Labels]
) -> tuple[Node, Labels]:
    """An operand without the axes of size 1 that the other one has larger: it is no batch of it."""
    x, labels = a
    sizes = dict(zip(other[1], other[0].type.shape, strict=True))
    kept = [i for i, label in enumerate(labels) if x.type.shape[i] > 1 or sizes.get(label, 1) == 1]
    return site.reshape(x, [x.type.shape[i] for i in kept]), tuple(labels[i] for i in kept)


def _sum_out(site: Site, x: Node, labels: Labels, needed: set[str]) -> tuple[Node, Labels]:
    axes = [i for i, label in enumerate(labels) if label not in needed]
    return site.sum(x, axes), tuple(label for label in labels if label in needed)


def _outer(
    site: Site, a: tuple[Node, Labels], b: tuple[Node, Labels], labels: Labels
) -> tuple[Node, Labels]:
    """The product without a sum: elements side by side."""

    def spread(x: Node, own: Labels) -> Node:
        x = site.transpose(x, [own.index(label) for label in labels if label in own])
        sizes = iter(x.type.shape)
        return site.reshape(x, [next(sizes) if label in own else 1 for label in labels])

    return site.make("mul", spread(*a), spread(*b)), labels


def _matrix(
    site: Site, a: tuple[Node, Labels], groups: tuple[list[str], ...], size: dict[str, int]
) -> Node:
    """An operand as matrices: its axes in three groups, each group but the batch made one axis."""
    x, labels = a
    order = [label for group in groups for label in group]
    x = site.transpose(x, [labels.index(label) for label in order])
    batch, *pair = groups
    sides = [prod(size[label] for label in group) for group in pair]
    return site.reshape(x, [*(size[label] for label in batch), *sides])


@lowers("aten._trilinear")
def trilinear(
    site: Site,
    a: Node,
    b: Node,
    c: Node,
    *axes: Sequence[int],
    **_: object,
) -> Node:
    """The product of three tensors, each with new axes first, summed over the last of ``axes``."""
    *added, summed = axes[:4]
    spread = []
    for x, new in zip((a, b, c), added, strict=True):
        shape = list(x.type.shape)
        for axis in sorted(new):
            shape.insert(axis, 1)
        spread.append(site.reshape(x, shape))
    product = site.make("mul", site.make("mul", spread[0], spread[1]), spread[2])
    return site.sum(product, summed)
