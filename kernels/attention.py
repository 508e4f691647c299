"""``attention`` and ``qkv_attention``: softmax(scale * q @ k.T) @ v, head by head.

The keys of a head are transposed into panels once. A few rows of queries (a register tile) then go
all the way: scores, exponentials, product with the values; so scratch grows with the number of
keys, not with its square. The two ops differ only in where an element lies: ``Heads``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .softmax import LOWEST, exponentials
from .tile import accumulate, column_blocks, each_row_block, tiled, tiles_fit, zeros
from .tir import T, block_sizes, broadcast, function, let, mask_lanes, span, store, store_lanes

# Where n consecutive channels from `channel` of row `row` of a head lie.
Index = Callable[[Any, Any, int], tuple[Any, ...]]


@dataclass(frozen=True)
class Sizes:
    """batch x heads problems of ``queries`` x ``keys`` rows, ``depth`` and ``width`` channels."""

    batch: int
    heads: int
    queries: int
    keys: int
    # Channels of q and k, and of v.
    depth: int
    width: int


@dataclass(frozen=True)
class Head:
    """One head: the buffers, and the index of an element in each."""

    q: Any
    k: Any
    v: Any
    y: Any
    q_at: Index
    k_at: Index
    v_at: Index
    y_at: Index


def sizes_of(spec: Spec) -> Sizes:
    if spec.op == "attention":
        q, k, v = (t.shape for t in spec.operands)
        return Sizes(q[0], q[1], q[2], k[2], q[3], v[3])
    batch, rows, channels = spec.operands[0].shape
    heads = spec.attribute("heads")
    depth = channels // (3 * heads)
    return Sizes(batch, heads, rows, rows, depth, depth)


def supports(spec: Spec, lanes: Lanes) -> bool:
    tensors = (*spec.operands, *spec.results)
    return spec.op in KERNEL.ops and (
        all(t.dtype == "f32" and t.layout is None and prod(t.shape) > 0 for t in tensors)
        # The largest score is subtracted before it is scaled.
        and spec.attribute("scale") > 0
        and tiles_fit(spec, lanes, sizes_of(spec).queries)
    )


def cost(spec: Spec, lanes: Lanes) -> float:
    n = sizes_of(spec)
    pairs = n.batch * n.heads * n.queries * n.keys
    return pairs * (n.depth + n.width + 20) / lanes.float_lanes


def knobs(spec: Spec, lanes: Lanes) -> Mapping[str, tuple[int, ...]]:
    queries = block_sizes(sizes_of(spec).queries, range(1, 9))
    return {"tile_rows": queries, "tile_vectors": (1, 2, 3, 4, 6)}


def plan(spec: Spec, lanes: Lanes) -> Hashable:
    tile = tiled(spec, lanes)
    return block_sizes(sizes_of(spec).queries, [tile.tile_rows]), tile.tile_vectors


def _panel(lanes: Lanes) -> int:
    return lanes.tile_vectors * lanes.float_lanes


def _panels(outputs: int, depth: int, lanes: Lanes) -> Tensor:
    panel = _panel(lanes)
    return Tensor("f32", (-(-outputs // panel), depth, panel))


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    """Keys in panels; scores and 1 / sum of a tile's rows; values in panels where rows are odd."""
    n, lanes = sizes_of(spec), tiled(spec, lanes)
    keys = _panels(n.keys, n.depth, lanes)
    rows = min(lanes.tile_rows, n.queries)
    buffers = [keys, Tensor("f32", (rows, keys.shape[0] * keys.shape[2])), Tensor("f32", (rows,))]
    if n.width % lanes.float_lanes:
        buffers.append(_panels(n.width, n.keys, lanes))
    return tuple(buffers)


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    names = ("q", "k", "v") if spec.op == "attention" else ("qkv",)
    types = dict(zip(names, spec.operands, strict=True)) | {"y": spec.results[0]}
    spare = scratch(spec, lanes)
    types |= dict(zip(("keys", "scores", "inverses", "values"), spare, strict=False))
    with function(name, types) as f:
        count = len(names) + 1
        with _each_head(spec, f.buffers[:count]) as head:
            attend(spec, tiled(spec, lanes), head, *f.buffers[count:])
    return f.result


@contextmanager
def _each_head(spec: Spec, buffers: tuple[Any, ...]) -> Iterator[Head]:
    """Loop over the heads of every image: the body sees one of them."""
    n = sizes_of(spec)
    with T.serial(n.batch) as b, T.serial(n.heads) as h:
        if spec.op == "attention":

            def at(row: Any, channel: Any, count: int) -> tuple[Any, ...]:
                return b, h, row, span(channel, count)

            q, k, v, y = buffers
            yield Head(q, k, v, y, at, at, at, at)
            return
        qkv, y = buffers

        def part(number: int) -> Index:
            first = (number * n.heads + h) * n.depth
            return lambda row, channel, count: (b, row, span(first + channel, count))

        yield Head(qkv, qkv, qkv, y, part(0), part(1), part(2), part(0))


def attend(
    spec: Spec,
    lanes: Lanes,
    head: Head,
    keys: Any,
    scores: Any,
    inverses: Any,
    values: Any | None = None,
) -> None:
    """All queries of one head."""
    n = sizes_of(spec)
    causal = dict(spec.attributes).get("causal", False)
    _fill_panels(keys, lambda key, c: head.k[head.k_at(key, c, 1)], n.keys, n.depth, lanes)
    if values is not None:
        _fill_panels(values, lambda c, key: head.v[head.v_at(key, c, 1)], n.width, n.keys, lanes)
    for row, rows in each_row_block(n.queries, lanes.tile_rows):
        _scores(lanes, n, head, keys, scores, row, rows)
        with T.serial(rows) as r:
            last = row + r if causal else None
            total = _exponentials(lanes, n.keys, spec.attribute("scale"), scores, r, last)
            store(inverses, T.float32(1) / total, r)
        _weigh(lanes, n, head, values, scores, inverses, row, rows)


def _fill_panels(
    buffer: Any, read: Callable[[Any, Any], Any], outputs: int, depth: int, lanes: Lanes
) -> None:
    """buffer[p, k, j] = read(p * panel + j, k), zero from ``outputs`` on."""
    panel = _panel(lanes)
    whole, rest = divmod(outputs, panel)

    def fill(p: Any, valid: int) -> None:
        with T.serial(depth) as k:
            for j in range(panel):
                store(buffer, read(p * panel + j, k) if j < valid else T.float32(0), p, k, j)

    if whole:
        with T.serial(whole) as p:
            fill(p, panel)
    if rest:
        fill(whole, rest)


def _scores(
    lanes: Lanes, n: Sizes, head: Head, keys: Any, scores: Any, row: Any, rows: int
) -> None:
    """scores[r, j] = q[row + r] . k[j], zero in the padding of the last panel."""
    width, vectors = lanes.float_lanes, lanes.tile_vectors
    with T.serial(-(-n.keys // _panel(lanes))) as p:
        total = zeros(lanes, rows, vectors)
        accumulate(
            lanes,
            rows,
            vectors,
            n.depth,
            lambda r, k, count: head.q[head.q_at(row + r, k, count)],
            lambda k, v: keys[p, k, span(v * width, width)],
            total,
        )
        for r in range(rows):
            for v in range(vectors):
                at = span((p * vectors + v) * width, width)
                store(scores, total[r * vectors + v], r, at)


def _exponentials(
    lanes: Lanes, keys: int, scale: float, scores: Any, row: Any, last: Any | None
) -> Any:
    """Row ``row`` of the scores becomes its exponentials; keys beyond ``last`` count nothing."""
    width = lanes.float_lanes

    def read(first: Any, valid: int) -> Any:
        value = mask_lanes(scores[row, span(first, width)], valid, width, LOWEST)
        if last is None:
            return value
        lowest = broadcast(T.float32(LOWEST), width)
        return T.Select(span(first, width) <= broadcast(last, width), value, lowest)

    def keep(value: Any, first: Any, valid: int) -> None:
        store(scores, value, row, span(first, width))

    return exponentials(lanes, keys, scale, read, keep)


def _weigh(
    lanes: Lanes,
    n: Sizes,
    head: Head,
    values: Any | None,
    scores: Any,
    inverses: Any,
    row: Any,
    rows: int,
) -> None:
    """y[row + r] = sum over keys of scores[r, key] * v[key], divided by the row's sum."""
    width, panel = lanes.float_lanes, lanes.tile_vectors
    for columns in column_blocks(n.width, lanes.tile_vectors, lanes):
        with T.serial(columns.count) as block:
            vector = columns.first + block * columns.vectors

            def weights(key: Any, v: int, vector: Any = vector) -> Any:
                if values is not None:
                    return values[vector // panel, key, span(v * width, width)]
                return head.v[head.v_at(key, (vector + v) * width, width)]

            total = zeros(lanes, rows, columns.vectors)
            accumulate(
                lanes,
                rows,
                columns.vectors,
                n.keys,
                lambda r, k, count: scores[r, span(k, count)],
                weights,
                total,
            )
            for r in range(rows):
                inverse = let(inverses[r], 1)

                def keep(value: Any, at: Any, count: int, r: int = r) -> None:
                    store(head.y, value, *head.y_at(row + r, at, count))

                for v in range(columns.vectors):
                    valid = columns.valid if v == columns.vectors - 1 else width
                    value = total[r * columns.vectors + v] * broadcast(inverse, width)
                    store_lanes(keep, value, (vector + v) * width, valid, width)


KERNEL = Kernel(
    "attention",
    ("attention", "qkv_attention"),
    supports,
    build,
    cost,
    scratch,
    knobs=knobs,
    plan=plan,
)
