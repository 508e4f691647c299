"""The five facts of the design on which the compiler lives, each against plain NumPy."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Type, input_node, make
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.ops.elementwise import gelu
from butterflyc.passes.merge_rotations import MergeRotations

from .graphs import Builder, Rotation, padded, rotations

Array = np.ndarray
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def layer(x: Array, rotation: Rotation, angles: Array, number: int) -> Array:
    """Layer ``number`` of B(theta), straight from the papers: x [T, n], angles [L, n/2]."""
    c, s = np.cos(angles[number]), np.sin(angles[number])
    if rotation.shuffle == "stride":
        parts = x.reshape(len(x), -1, 2, 1 << number)
        c, s = c.reshape(-1, 1 << number), s.reshape(-1, 1 << number)
        a, b = parts[:, :, 0], parts[:, :, 1]
        return np.stack((a * c - b * s, a * s + b * c), 2).reshape(x.shape)

    def shuffle(x: Array) -> Array:
        if rotation.shuffle == "deinterleave":
            return np.concatenate((x[:, 0::2], x[:, 1::2]), 1)
        return np.stack(np.split(x, 2, 1), -1).reshape(x.shape)

    x = shuffle(x) if rotation.shuffle_first else x
    y = np.empty_like(x)
    y[:, 0::2] = x[:, 0::2] * c - x[:, 1::2] * s
    y[:, 1::2] = x[:, 0::2] * s + x[:, 1::2] * c
    return y if rotation.shuffle_first else shuffle(y)


def matrix(rotation: Rotation, angles: Array) -> Array:
    """B(theta) of one expert as a matrix [width, width], padding and stripping included."""
    x = np.eye(padded(rotation.width))
    for number in range(rotation.layers):
        x = layer(x, rotation, angles.astype(np.float64), number)
    dense = x if rotation.transposed else x.T  # the rows of x are the images of the basis
    return dense[: rotation.width, : rotation.width]


def alone(rotation: Rotation, angles: Array) -> Graph:
    """B(theta) of expert 0, in the IR, on the basis vectors."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f64", (rotation.width, rotation.width)))
    number = make("argmax", make("slice", x, axis=1, stop=1), axis=1)
    y = b.rotation(x, rotation, number, "theta", angles)
    return Graph("rotation", (x,), (y,), b.store)


@given(st.integers(2, 20).flatmap(rotations), seeds)
def test_graphs_say_what_the_papers_say(rotation: Rotation, rng: np.random.Generator) -> None:
    """The chain of shuffles and rotations of the IR is B(theta), in every form."""
    angles = rotation.angles(1, rng)
    (y,) = interpret(alone(rotation, angles), np.eye(rotation.width))
    assert np.allclose(y.T, matrix(rotation, angles[0]), atol=1e-6)


@given(st.integers(1, 5).flatmap(lambda p: rotations(1 << p)), seeds)
def test_1_rotations_are_orthogonal_blocks_between_permutations(
    rotation: Rotation, rng: np.random.Generator
) -> None:
    """L layers are one rotation by orthogonal blocks of 2**L; deinterleave needs one order."""
    angles = rotation.angles(2, rng)
    b = Builder(rng)
    x = input_node("x", Type("f64", (3, rotation.width)))
    number = make("argmax", make("slice", x, axis=1, stop=2), axis=1)
    y = b.rotation(x, rotation, number, "theta", angles)
    merged = MergeRotations(1 << rotation.layers)(Graph("g", (x,), (make("neg", y),), b.store))
    (one,) = (node for node in merged.nodes if node.op == "rotate")
    blocks = merged.value(one.operands[1]).astype(np.float64)
    assert blocks.shape[1:] == (rotation.width >> rotation.layers, *[1 << rotation.layers] * 2)
    assert np.allclose(blocks @ blocks.swapaxes(-1, -2), np.eye(1 << rotation.layers), atol=1e-5)
    shuffles = sum(node.op == "shuffle" for node in merged.nodes)
    simple = rotation.shuffle == "deinterleave" and not rotation.shuffle_first
    assert shuffles <= (1 if simple else 2)
    if simple and not rotation.transposed:
        assert one.operands[0].op == "input"


@given(st.integers(1, 12), st.integers(1, 12), seeds)
def test_2_permutations_fold_into_the_matrices(f: int, d: int, rng: np.random.Generator) -> None:
    """P f(x) = f(P x) for what acts on each element, and A P^T (P x) = A x, bit for bit in A."""
    order = rng.permutation(f)
    w, down, x = rng.normal(size=(f, d)), rng.normal(size=(d, f)), rng.normal(size=(3, d))
    hidden = gelu(x @ w.T)[:, order]
    assert np.allclose(hidden, gelu(x @ w[order].T), rtol=1e-12, atol=1e-12)
    assert np.allclose(hidden @ down[:, order].T, gelu(x @ w.T) @ down.T, rtol=1e-11, atol=1e-11)


def experts_of(rng: np.random.Generator, count: int, n: int) -> Array:
    """Some orthogonal matrices [E, n, n], one an expert."""
    return np.stack([np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(count)])


sizes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(2, 8))


@given(sizes, seeds)
def test_3_one_product_serves_all_experts(
    size: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    """All (token, chosen expert) rows through one product is expert after expert on its tokens."""
    tokens, count, k, d = size
    k, f = min(k, count), d + 1
    theta, phi, w = experts_of(rng, count, d), experts_of(rng, count, f), rng.normal(size=(f, d))
    x, gates = rng.normal(size=(tokens, d)), rng.normal(size=(tokens, k))
    chosen = np.argsort(rng.random((tokens, count)), 1)[:, :k]
    loop = np.zeros((tokens, f))
    for e in range(count):
        t, slot = np.nonzero(chosen == e)
        loop[t] += gates[t, slot][:, None] * (gelu(x[t] @ theta[e].T @ w.T) @ phi[e].T)
    rows = np.einsum("tkij,tj->tki", theta[chosen], x).reshape(tokens * k, d)
    rows = gelu(rows @ w.T).reshape(tokens, k, f)
    together = np.einsum("tk,tkij,tkj->ti", gates, phi[chosen], rows)
    assert np.allclose(loop, together, rtol=1e-11, atol=1e-11)


@given(sizes, seeds, st.booleans())
def test_4_a_shared_map_comes_after_the_sum(
    size: tuple[int, int, int, int], rng: np.random.Generator, after: bool
) -> None:
    """sum g (W B u + b) = W sum g B u + b sum g, the activation before or after B."""
    tokens, _, k, f = size
    phi = np.stack([experts_of(rng, k, f) for _ in range(tokens)])
    u, gates = rng.normal(size=(tokens, k, f)), rng.normal(size=(tokens, k))
    w, bias = rng.normal(size=(f + 1, f)), rng.normal(size=f + 1)
    v = np.einsum("tkij,tkj->tki", phi, u if after else gelu(u))
    v = gelu(v) if after else v
    each = np.einsum("tk,tki->ti", gates, v @ w.T + bias)
    once = np.einsum("tk,tki->ti", gates, v) @ w.T + gates.sum(1, keepdims=True) * bias
    assert np.allclose(each, once, rtol=1e-11, atol=1e-11)


@given(st.integers(1, 4), st.integers(2, 8), seeds)
def test_5_in_the_linear_form_only_the_last_permutation_is_shared(
    k: int, d: int, rng: np.random.Generator
) -> None:
    """The permutation comes after the sum, the gates may come before W_hat."""
    theta, phi = experts_of(rng, k, d), experts_of(rng, k, d)
    w, x, gates, order = (
        rng.normal(size=(d, d)),
        rng.normal(size=d),
        rng.normal(size=k),
        rng.permutation(d),
    )
    rows = [phi[i] @ w @ theta[i].T @ x for i in range(k)]
    wanted = sum(gates[i] * rows[i][order] for i in range(k))
    assert np.allclose(wanted, sum(gates[i] * rows[i] for i in range(k))[order])
    early = sum((phi[i] @ w @ (gates[i] * (theta[i].T @ x)))[order] for i in range(k))
    assert np.allclose(wanted, early, rtol=1e-10, atol=1e-10)


def test_5_nothing_combines_before_w_hat() -> None:
    """Two experts with different phi: summing their rotated rows first gives another result."""
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    w, x = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([1.0, 2.0])
    phi, theta = (np.eye(2), turn), (np.eye(2), turn)
    right = sum(phi[i] @ w @ theta[i].T @ x for i in range(2))
    for mixed in (np.eye(2), turn, (np.eye(2) + turn) / math.sqrt(2)):
        early = mixed @ w @ sum(theta[i].T @ x for i in range(2))
        assert not np.allclose(right, early)
