"""Rules for products: what is one by a constant matrix becomes `linear`, bias and all."""

from __future__ import annotations

from ..compiler.ir import Node, make
from ..compiler.ir.ops.elementwise import ACTIVATIONS
from .base import Walk, is_constant


def matmul_to_linear(node: Node, walk: Walk) -> Node | None:
    """matmul(x, constant [K, N]) -> linear(x, constant [N, K])."""
    if node.op != "matmul":
        return None
    x, matrix = node.operands
    if not is_constant(matrix) or matrix.type.rank != 2:
        return None
    transposed = walk.value(matrix).T
    type = matrix.type.with_shape(*transposed.shape)
    weight = walk.constant(transposed, matrix.name, type)
    return make("linear", x, weight, name=node.name, source=node.source)


def add_to_bias(node: Node, walk: Walk) -> Node | None:
    """linear without bias or activation, plus a constant row -> linear with bias."""
    if node.op != "add":
        return None
    for product, row in (node.operands, node.operands[::-1]):
        if product.op != "linear" or len(product.operands) != 2 or not walk.read_once(product):
            continue
        width = product.type.shape[-1]
        is_row = is_constant(row) and row.type.shape[-1:] == (width,) and row.type.size == width
        if not is_row or product["activation"] != "none" or product.types != node.types:
            continue
        value = walk.value(row).reshape(width)
        bias = walk.constant(value, row.name, row.type.with_shape(width))
        return make("linear", *product.operands, bias, name=node.name, source=product.source)
    return None


def activation_into_linear(node: Node, walk: Walk) -> Node | None:
    """activation . linear -> linear{activation}, where nothing reads it without."""
    if node.op not in ACTIVATIONS or node.operands[0].op != "linear":
        return None
    product = node.operands[0]
    if product["activation"] != "none" or not walk.read_once(product):
        return None
    operands, source = product.operands, product.source or node.source
    return make("linear", *operands, name=node.name, source=source, activation=node.op)


def patches_to_linear(node: Node, walk: Walk) -> Node | None:
    """conv2d whose windows tile the image -> reshape, transpose, linear."""
    if node.op != "conv2d" or not is_constant(node.operands[1]):
        return None
    x, kernel, *bias = node.operands
    batch, channels, height, width = x.type.shape
    outputs, _, *window = kernel.type.shape
    p, q = window
    if node["stride"] != (p, q) or any(node["padding"]) or height % p or width % q:
        return None
    rows, columns, size = height // p, width // q, channels * p * q
    weight = walk.value(kernel).reshape(outputs, size)
    matrix = walk.constant(weight, kernel.name, kernel.type.with_shape(outputs, size))
    at, name = node.source, node.name
    tiles = make("reshape", x, shape=(batch, channels, rows, p, columns, q), source=at)
    tiles = make("transpose", tiles, order=(0, 2, 4, 1, 3, 5), source=at)
    patches = make("reshape", tiles, shape=(batch, rows, columns, size), source=at)
    product = make("linear", patches, matrix, *bias, name=f"{name}.linear", source=at)
    return make("transpose", product, order=(0, 3, 1, 2), name=name, source=at)


RULES = (matmul_to_linear, add_to_bias, activation_into_linear, patches_to_linear)
