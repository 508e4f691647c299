"""``butterfly_experts``: rotate, ternary product, activation, rotate, gate and sum in one kernel.

W_hat is shared, so all (token, chosen expert) rows go through one product:

1. A chunk of tokens at a time, their rows are rotated, and quantised if there are to be codes, into
   scratch. Codes of 7 bits become tables there, where lanes have look-ups.
2. A strip of outputs at a time, the product of those rows, into a buffer of the size of a cache.
3. Then the strip's scale, bias, activation, rotation and gate; a token's rows are added in
   registers and stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

from .butterfly_experts_rows import Product, Rows
from .lanes import Lanes
from .pointwise_math import ACTIVATIONS
from .record import Kernel, Spec, Tensor
from .rotate import Rotation, rotation
from .ternary_lanes import Tables
from .ternary_pairs import PairProduct, rows_at_a_time, tables_of
from .ternary_product import (
    Sums,
    TernaryProduct,
    Write,
    float_product,
    integer_product,
    row_sums,
    start_of,
)
from .tir import T, block_sizes, function, row_blocks, span, store

OPERANDS = ("x", "blocks_in", "w", "scale", "bias", "gates", "experts", "blocks_out")
# Rows that pass through together: their sums for one strip stay in the first-level cache.
CHUNK_ROWS = 144
# Vectors of packed weights in a strip, at least.
STRIP_VECTORS = 4
# Rows and vectors of tiles that a tuner tries, beside sizes of chunks and strips.
TILE_ROWS = (2, 3, 4, 5, 6, 8)
TILE_VECTORS = (1, 2, 4)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a call: tokens, chosen experts a token, channels in and outputs."""

    tokens: int
    chosen: int
    channels: int
    outputs: int
    rotation_in: Rotation
    rotation_out: Rotation | None
    # Tokens of a chunk and outputs of a strip, at most.
    chunk: int
    strip: int
    # Of activations as codes; 0 for floats.
    bits: int
    # What multiplies them, if it is tables.
    tables: Tables | None

    @property
    def integer(self) -> bool:
        return self.bits > 0


def sizes_of(spec: Spec, lanes: Lanes) -> Sizes:
    x, blocks_in, w, _, _, gates, _, *blocks_out = spec.operands
    (tokens, channels), chosen = x.shape, gates.shape[1]
    turn_out = rotation(lanes, blocks_out[0], spec.attribute("lanes_out")) if blocks_out else None
    bits = spec.attribute("activation_bits")
    tables = tables_of(spec, lanes, tokens * chosen) if bits == 7 else None
    most = rows_at_a_time(channels, tables) if tables else CHUNK_ROWS
    limit = spec.parameter("chunk_rows", most) // chosen
    chunk = max(size for _, _, size in row_blocks(tokens, max(limit, 1)))
    # Strips hold whole groups of the rotation and whole vectors of weights and of floats.
    vector = (tables or (lanes.ternary.packed if bits else lanes.ternary.floats)).outputs
    unit = lcm(vector, lanes.float_lanes, turn_out.span if turn_out else 1)
    wanted = spec.parameter("strip_vectors", STRIP_VECTORS) * vector
    return Sizes(
        tokens,
        chosen,
        channels,
        w.shape[0],
        rotation(lanes, blocks_in, spec.attribute("lanes_in")),
        turn_out,
        chunk,
        -(-wanted // unit) * unit,
        bits,
        tables,
    )


def product_of(spec: Spec, lanes: Lanes, tokens: int) -> Product:
    sizes = sizes_of(spec, lanes)
    if sizes.tables:
        return PairProduct(sizes.tables, tokens * sizes.chosen, sizes.channels)
    make = integer_product if sizes.integer else float_product
    return make(spec, lanes, tokens * sizes.chosen, sizes.channels)


def supports(spec: Spec, lanes: Lanes) -> bool:
    if spec.op != "butterfly_experts":
        return False
    x, blocks_in, w, scale, bias, gates, experts, *blocks_out = spec.operands
    floats = (x, blocks_in, scale, bias, gates, *blocks_out)
    if blocks_out:
        turn = rotation(lanes, blocks_out[0], spec.attribute("lanes_out"))
        # Activations are computed on whole vectors.
        if turn.vector != lanes.float_lanes:
            return False
    if not _possible(spec, lanes):
        return False
    wanted = layouts(spec, lanes)
    return (
        all(t.dtype == "f32" for t in floats)
        and experts.dtype in ("i32", "i64")
        and spec.attribute("activation") in ACTIVATIONS
        and all(t.layout in (None, wanted.get(i)) for i, t in enumerate(spec.operands))
        and 0 not in (*x.shape, *w.shape, *gates.shape)
    )


def _possible(spec: Spec, lanes: Lanes) -> bool:
    """Whether the parameters are sizes that there are."""
    if any(value < 1 for name, value in spec.parameters if name != "panel_rows"):
        return False
    return all(product.possible for product in _products(spec, lanes))


def _products(spec: Spec, lanes: Lanes) -> list[Product]:
    """Those of the chunks, of which there are two sizes at most."""
    sizes = sizes_of(spec, lanes)
    return [product_of(spec, lanes, n) for _, _, n in row_blocks(sizes.tokens, sizes.chunk)]


def layouts(spec: Spec, lanes: Lanes) -> Mapping[int, str]:
    sizes = sizes_of(spec, lanes)
    product = product_of(spec, lanes, sizes.chunk)
    wanted = {1: sizes.rotation_in.layout, 2: product.layout}
    return wanted | ({7: sizes.rotation_out.layout} if sizes.rotation_out else {})


def scratch_by_name(spec: Spec, lanes: Lanes) -> dict[str, Tensor]:
    sizes = sizes_of(spec, lanes)
    rows = sizes.chunk * sizes.chosen
    product = product_of(spec, lanes, sizes.chunk)
    buffers = {
        "expert_of": Tensor("i32", (rows,)),
        "panel": product.scratch(),
        "sums": Tensor(product.dtype, (rows, sizes.strip)),
    }
    if not sizes.integer:
        return buffers | {"rotated": Tensor("f32", (rows, sizes.channels))}
    return buffers | {
        "rotated": Tensor("f32", (sizes.channels,)),
        "codes": Tensor("i8", (rows, product.padded_depth)),
        "row_scale": Tensor("f32", (rows,)),
        "row_sum": Tensor("i32", (rows,)),
    }


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    return tuple(scratch_by_name(spec, lanes).values())


def cost(spec: Spec, lanes: Lanes) -> float:
    sizes = sizes_of(spec, lanes)
    rows = sizes.tokens * sizes.chosen
    parallel: float = lanes.ternary.packed.lanes if sizes.integer else lanes.float_lanes
    parallel = sizes.tables.rate if sizes.tables else parallel
    ends = 4 * sizes.channels + 40 * sizes.outputs
    return rows * (sizes.channels * sizes.outputs / parallel + ends / lanes.float_lanes)


def space(spec: Spec, lanes: Lanes) -> tuple[Mapping[str, int], ...]:
    ways: list[dict[str, int]] = [{}]
    ways += [{"chunk_rows": rows} for rows in (32, 64, 96, 192)]
    ways += [{"strip_vectors": vectors} for vectors in (2, 8)]
    if not sizes_of(spec, lanes).tables:
        ways += [{"tile_rows": rows} for rows in (2, 3, 4, 5, 6)]
    return tuple(ways)


def knobs(spec: Spec, lanes: Lanes) -> Mapping[str, tuple[int, ...]]:
    sizes = sizes_of(spec, lanes)
    rows = (8, 16, 32) if sizes.tables else (32, 64, CHUNK_ROWS)
    chunks = block_sizes(sizes.tokens, (max(most // sizes.chosen, 1) for most in rows))
    tiles = product_of(spec, lanes, sizes.tokens).knobs(sizes.outputs, TILE_ROWS, TILE_VECTORS)
    return {
        "chunk_rows": tuple(chunk * sizes.chosen for chunk in chunks),
        "strip_vectors": (2, 4, 8),
        **tiles,
    }


def plan(spec: Spec, lanes: Lanes) -> Hashable:
    sizes = replace(sizes_of(spec, lanes), tables=None)
    return sizes, tuple(p.for_outputs(sizes.strip) for p in _products(spec, lanes))


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    sizes = sizes_of(spec, lanes)
    operands = dict(zip(OPERANDS, spec.operands, strict=False))
    parameters = operands | {"y": spec.results[0]} | scratch_by_name(spec, lanes)
    with function(name, parameters) as f:
        buffers = dict(zip(parameters, f.buffers, strict=True))
        for first, count, tokens in row_blocks(sizes.tokens, sizes.chunk):
            rows = Rows(
                lanes,
                buffers,
                tokens,
                sizes.chosen,
                experts=operands["blocks_in"].shape[0],
                experts_dtype=operands["experts"].dtype,
                rotation_in=sizes.rotation_in,
                rotation_out=sizes.rotation_out,
                activation=spec.attribute("activation"),
                activate_last=spec.attribute("activate_last"),
                bits=sizes.bits,
                scale_per_output=bool(operands["scale"].shape),
                biased=spec.attribute("biased"),
            )
            with T.serial(count) as chunk:
                _chunk(rows, sizes, product_of(spec, lanes, tokens), first + chunk * tokens)
    return f.result


def _chunk(rows: Rows, sizes: Sizes, product: Product, first_token: Any) -> None:
    rows.rotate_in(first_token, product)
    emit = (
        _by_tables(rows, product) if isinstance(product, PairProduct) else _by_codes(rows, product)
    )
    for first_output, outputs in _strips(sizes):
        emit(first_output // product.outputs, outputs)
        rows.rotate_out(first_token, first_output, outputs)


# Adds up some outputs, from a vector or strip of packed weights, into the sums.
Emit = Callable[[Any, int], None]


def _by_tables(rows: Rows, product: PairProduct) -> Emit:
    """Make the tables of all rows, where a panel would lie."""
    b = rows.buffers
    product.prepare(b["panel"], _activations(rows))

    def emit(first: Any, outputs: int) -> None:
        product.emit(b["w"], b["panel"], first, outputs, _write(rows, product))

    return emit


def _by_codes(rows: Rows, product: TernaryProduct) -> Emit:
    """Of integers, add up what sums of codes start from."""
    b = rows.buffers
    if rows.integer:
        row_sums(product, _activations(rows), b["row_sum"])
        start = start_of(product, b["row_sum"])
    else:

        def start(row: Any) -> Any:
            return T.float32(0)

    def read(row: Any, output: Any, valid: int) -> Any:
        return b["sums"][row, span(output, product.width)]

    def emit(first: Any, outputs: int) -> None:
        sums = Sums(start, read, _write(rows, product))
        product.emit(b["w"], b["panel"], first, outputs, _activations(rows), sums)

    return emit


def _write(rows: Rows, product: Product) -> Write:
    def write(row: Any, output: Any, value: Any, valid: int) -> None:
        store(rows.buffers["sums"], value, row, span(output, product.width))

    return write


def _activations(rows: Rows) -> Any:
    held = rows.buffers["codes" if rows.integer else "rotated"]
    return lambda row, k, n: held[row, span(k, n)]


def _strips(sizes: Sizes) -> Iterator[tuple[Any, int]]:
    whole, rest = divmod(sizes.outputs, sizes.strip)
    if whole:
        with T.serial(whole) as strip:
            yield strip * sizes.strip, sizes.strip
    if rest:
        yield whole * sizes.strip, rest


KERNEL = Kernel(
    "butterfly_experts",
    ("butterfly_experts",),
    supports,
    build,
    cost,
    scratch,
    layouts,
    space,
    knobs,
    plan,
)
