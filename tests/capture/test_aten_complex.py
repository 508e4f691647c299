"""Complex tensors become pairs of real ones, call by call, and give what PyTorch gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import ButterflycError, Unsupported

from .agreement import Function, agree, data, numbers

ROWS = torch.tensor([2, 0, 2])
MASK = torch.tensor([True, False, True, True])
SPECTRUM = torch.polar(data(3, 4).abs(), data(3, 4, seed=1))


def pairs(x: Tensor) -> Tensor:
    """[3, 8] real as [3, 4] complex."""
    return torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous())


def both(z: Tensor) -> Tensor:
    return torch.view_as_real(z.resolve_conj())


# Each on z, w: [3, 4] complex, and x: [3, 4] real.
ARITHMETIC: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "product": lambda z, w, x: z * w,
    "product with real": lambda z, w, x: x * z,
    "product with integers": lambda z, w, x: z * x.long(),
    "product with a row": lambda z, w, x: z * w[0],
    "product of matrices": lambda z, w, x: z.T @ w,
    "product of a real matrix": lambda z, w, x: x.cfloat() @ z.T,
    "product in batches": lambda z, w, x: torch.bmm(z[:, :, None], w[:, None]),
    "product with a constant": lambda z, w, x: z * SPECTRUM,
    "product with zero": lambda z, w, x: z * 0,
    "product with a number": lambda z, w, x: z * 3 * (2 - 1j) * 1j,
    "in place": lambda z, w, x: z.clone().mul_(w).add_(1),
    "sum": lambda z, w, x: z + w,
    "sum with real": lambda z, w, x: x + z,
    "sum with a number": lambda z, w, x: z + 1 + 2j,
    "sum, scaled": lambda z, w, x: torch.add(z, w, alpha=3),
    "difference": lambda z, w, x: z - w,
    "difference with real": lambda z, w, x: z - x,
    "difference from a number": lambda z, w, x: 1 - z,
    "quotient": lambda z, w, x: z / w,
    "quotient by real": lambda z, w, x: z / x.abs(),
    "quotient by a number": lambda z, w, x: z / 2 / (1 + 2j),
    "quotient of real": lambda z, w, x: x / w,
    "unit": lambda z, w, x: z / z.abs(),
    "reciprocal": lambda z, w, x: 1 / w,
    "square": lambda z, w, x: z**2 + z.square(),
    "negative": lambda z, w, x: -z,
    "conjugate": lambda z, w, x: z.conj() * w.conj().resolve_conj(),
    "conjugate, physical": lambda z, w, x: torch.conj_physical(z),
    "adjoint": lambda z, w, x: z.mH @ w,
    "exp": lambda z, w, x: torch.exp(z),
    "exp of a phase": lambda z, w, x: torch.exp(1j * x) * torch.exp(-1j * w.real),
    "polar": lambda z, w, x: torch.polar(x.abs(), w.real),
    "complex": lambda z, w, x: torch.complex(x, w.imag),
    "mean": lambda z, w, x: z.mean(-1),
    "sum over an axis": lambda z, w, x: z.sum(0, keepdim=True),
    "running sum": lambda z, w, x: z.cumsum(-1),
    "where": lambda z, w, x: torch.where(x > 0, z, w),
    "where, with a number": lambda z, w, x: torch.where(x > 0, z, 2.0),
    "masked": lambda z, w, x: z.masked_fill(x > 0, 2.0),
    "from real": lambda z, w, x: x.cfloat() + x.to(torch.complex64) * z,
    "like another": lambda z, w, x: x.type_as(z) + x.to(z),
    "zeros": lambda z, w, x: torch.zeros_like(z) + z,
    "einsum": lambda z, w, x: torch.einsum("bi,ji->bj", z, w.conj()),
    "einsum of three": lambda z, w, x: torch.einsum("bi,ji,j->bj", z, w, z[:, 0]),
    "linear": lambda z, w, x: F.linear(z, w, w[:, 0]),
    "outer": lambda z, w, x: torch.outer(z[0], w[0]),
    "dot": lambda z, w, x: torch.vdot(z[0], w[0]) + torch.dot(z[0], w[0]),
    "matrix by vector": lambda z, w, x: z.mv(w[0]),
    "product and sum": lambda z, w, x: torch.addmm(w, z[:, :3], z, alpha=2j),
    "products summed": lambda z, w, x: torch.addcmul(z, z, w, value=2),
    "running product": lambda z, w, x: z.cumprod(-1),
    "product of an axis": lambda z, w, x: z.prod(-1) + z.prod(1, keepdim=True),
    "direction": lambda z, w, x: z.sgn() + (z * 0).sgn(),
    "root": lambda z, w, x: z.sqrt(),
    "logarithm": lambda z, w, x: z.log(),
    "powers": lambda z, w, x: z**3 + w**-2 + z.pow(1),
    "turned by an angle": lambda z, w, x: torch.polar(z.abs(), z.angle() + x),
    "transform": lambda z, w, x: torch.fft.fft(z),
    "transform of real": lambda z, w, x: torch.fft.fft(x, norm="ortho"),
    "half a transform": lambda z, w, x: torch.fft.rfft(x, n=7),
    "transform, and back": lambda z, w, x: torch.fft.ifft2(torch.fft.fft2(z) * w),
}
SHAPES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reshape": lambda z, w, x: z.reshape(2, 6),
    "view": lambda z, w, x: z.view(-1),
    "view as another": lambda z, w, x: z.view_as(w),
    "flatten": lambda z, w, x: z[None].flatten(-2),
    "unflatten": lambda z, w, x: z.unflatten(-1, (2, 2)),
    "squeeze": lambda z, w, x: z.unsqueeze(-1).unsqueeze(0).squeeze(-1),
    "permute": lambda z, w, x: z.permute(1, 0),
    "transpose": lambda z, w, x: z[None].transpose(-1, -2),
    "move": lambda z, w, x: z[None].movedim(-1, 0),
    "expand": lambda z, w, x: z[:, None].expand(-1, 2, -1),
    "expand as another": lambda z, w, x: z[:1].expand_as(w),
    "repeat": lambda z, w, x: z.repeat(2, 1).repeat_interleave(2, -1),
    "slice": lambda z, w, x: z[..., ::2],
    "select": lambda z, w, x: z[..., -1],
    "split": lambda z, w, x: torch.cat(z.split(2, -1)[::-1], -1),
    "chunk": lambda z, w, x: z.chunk(2, -1)[1],
    "unbind": lambda z, w, x: z.unbind(-1)[2] * z.unbind(0)[1][0],
    "cat": lambda z, w, x: torch.cat((z, w, x), -1),
    "stack": lambda z, w, x: torch.stack((z, w.conj(), x), -1),
    "index": lambda z, w, x: z[ROWS, :, None],
    "index by a mask": lambda z, w, x: z[:, MASK],
    "index by data": lambda z, w, x: z[x.argmax(-1) % 3],
    "index select": lambda z, w, x: z.index_select(-1, ROWS),
    "gather": lambda z, w, x: z.gather(-1, x.argmax(-1, keepdim=True)),
    "take along": lambda z, w, x: torch.take_along_dim(z, x.argsort(-1), -1),
    "roll": lambda z, w, x: z.roll(1, -1).flip(0),
    "pad": lambda z, w, x: F.pad(z, (1, 2), value=3.0),
    "triangle": lambda z, w, x: z.tril(),
    "diagonal": lambda z, w, x: z.diagonal(1),
    "scatter": lambda z, w, x: z.scatter(-1, x.argmax(-1, keepdim=True), w[:, :1]),
    "shift of a spectrum": lambda z, w, x: torch.fft.fftshift(z),
    "writes": lambda z, w, x: _written(z, w),
    "writes a number": lambda z, w, x: _written(z, 1 + 2j),
    "adds rows": lambda z, w, x: z.index_add(0, ROWS, w),
    "puts rows": lambda z, w, x: z.index_put((ROWS[:2],), w[1:], accumulate=True),
}
REAL: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "parts": lambda z, w, x: z.real - w.imag + torch.real(w),
    "absolute": lambda z, w, x: (z * w).abs(),
    "absolute of real": lambda z, w, x: x.cfloat().abs(),
    "pairs": lambda z, w, x: torch.view_as_real(z).flatten(-2),
    "angle": lambda z, w, x: z.angle(),
    "angle of real": lambda z, w, x: x.angle(),
    "norm": lambda z, w, x: torch.linalg.vector_norm(z, dim=-1),
    "same": lambda z, w, x: (z == z + 0, z != w, torch.isfinite(z / w)),
    "spectrum, and back": lambda z, w, x: torch.fft.irfft(torch.fft.rfft(x) * 2, n=4),
    "odd spectrum, and back": lambda z, w, x: torch.fft.irfft2(torch.fft.rfft2(x[:, :3]), s=(3, 3)),
    "spectrum of a symmetric one": lambda z, w, x: torch.fft.hfft(z),
    "bits": lambda z, w, x: z.view(torch.float32),
    "bits and back": lambda z, w, x: z.view(torch.float32).view(torch.complex64).imag,
}


def _written(z: Tensor, value: Any) -> Tensor:
    z = z.clone()
    z[..., 0] = value[..., 1] if isinstance(value, Tensor) else value
    z[:, 1:3] = 0
    return z


@pytest.mark.parametrize("name", [*ARITHMETIC, *SHAPES])
def test_a_call_that_gives_complex_numbers(name: str) -> None:
    """Both parts of the result are those that PyTorch computes."""
    call = {**ARITHMETIC, **SHAPES}[name]

    def forward(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return both(call(pairs(a), pairs(b), x))

    agree(Function(forward), data(3, 8), data(3, 8, seed=1), data(3, 4, seed=2))


@pytest.mark.parametrize("name", REAL)
def test_a_call_that_gives_real_numbers(name: str) -> None:
    """The real result of complex tensors is the one that PyTorch computes."""

    def forward(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return REAL[name](pairs(a), pairs(b), x)

    agree(Function(forward), data(3, 8), data(3, 8, seed=1), data(3, 4, seed=2))


@pytest.mark.parametrize("name", ["plain", "conjugate", "imaginary", "expanded"])
def test_complex_constants(name: str) -> None:
    """A complex buffer is held as two real constants, also conjugated or expanded."""
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "plain": lambda z, c: z * c,
        "conjugate": lambda z, c: z * c.conj(),
        "imaginary": lambda z, c: z * c.conj().imag,
        "expanded": lambda z, c: torch.cat((z, c[:1].conj().expand(3, 4)), -1),
    }

    def forward(x: Tensor, c: Tensor) -> Tensor:
        return both(calls[name](pairs(x), c))

    agree(Function(forward, phasors=SPECTRUM.clone()), data(3, 8))


class Gathered(nn.Module):
    """Layers of rotations by the angles of each row's expert, outputs interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.angles = nn.Parameter(data(5, 3, 4))

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        angles = self.angles[expert]
        for layer in torch.polar(torch.ones_like(angles), angles).unbind(1):
            z = pairs(x) * layer
            x = torch.cat((z.real, z.imag), -1)
        return x


class Fixed(nn.Module):
    """Layers of rotations by constant angles, the same for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.angles = nn.Parameter(data(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in torch.exp(1j * self.angles):
            x = torch.view_as_real(pairs(x) * layer).transpose(-1, -2).flatten(-2)
        return x


class Strided(nn.Module):
    """Rotations of channels 1, 2 and 4 apart, and then back by the conjugates."""

    def __init__(self) -> None:
        super().__init__()
        self.angles = nn.Parameter(data(5, 3, 4))

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        angles = self.angles[expert]
        phasors = torch.complex(angles.cos(), angles.sin())
        for layer in range(3):
            x = self._rotated(x, phasors[:, layer], 2**layer)
        x = F.gelu(x)
        for layer in reversed(range(3)):
            x = self._rotated(x, phasors[:, layer].conj(), 2**layer)
        return x

    def _rotated(self, x: Tensor, phasors: Tensor, stride: int) -> Tensor:
        rows = x.shape[0]
        apart = x.view(rows, -1, 2, stride).transpose(-1, -2).contiguous()
        z = torch.view_as_complex(apart) * phasors.view(rows, -1, stride)
        return torch.view_as_real(z).transpose(-1, -2).reshape(rows, -1)


def test_rotations_by_angles_that_an_index_gathers() -> None:
    """The angles of each row, gathered by its expert, turn its pairs as complex products do."""
    agree(Gathered(), data(3, 8), numbers(3))


def test_rotations_by_constant_angles() -> None:
    """exp(1j * angles) of parameters is folded: the graph multiplies, and takes no cos or sin."""
    captured = agree(Fixed(), data(3, 8))
    assert not {"cos", "sin", "exp"} & {node.op for node in captured.graph.nodes}


def test_rotations_of_doubling_stride() -> None:
    """Rotations with strides that double, and back by conjugates, are what PyTorch computes."""
    agree(Strided(), data(3, 8), numbers(3))


def test_a_phase_costs_no_more_than_cos_and_sin() -> None:
    """exp(1j * x) has the two parts cos(x) and sin(x), with no product by zero or one."""
    captured = agree(Function(lambda x: both(torch.exp(1j * x))), data(3, 4))
    ops = [node.op for node in captured.graph.nodes]
    assert not {"mul", "exp"} & set(ops)
    assert ops.count("cos") == ops.count("sin") == 1


REFUSED: list[tuple[Callable[[Tensor], Tensor], str, str]] = [
    (lambda z: z.tanh().imag, "aten.tanh", "view_as_real"),
    (lambda z: (z.abs() ** z).real, "a power of complex", "products"),
    (lambda z: torch.addmm(z, z[:, :3], z, beta=2).real, "with beta", "view_as_real"),
    (lambda z: (z**0.3).real, "a power of complex numbers", "products"),
    (lambda z: (2**z).real, "a power of complex numbers", "products"),
    (lambda z: torch.sub(z, z.real, alpha=1j).real, "a complex argument", "view_as_real"),
    (lambda z: z * z, "a result of complex numbers", "view_as_real"),
]


@pytest.mark.parametrize(("call", "what", "advice"), REFUSED)
def test_refusals(call: Callable[[Tensor], Tensor], what: str, advice: str) -> None:
    """What has no form in two real parts is refused by name, with advice."""
    with pytest.raises(Unsupported) as caught:
        capture(Function(lambda x: call(pairs(x))), (data(3, 8),))
    assert what in str(caught.value)
    assert advice in str(caught.value)


def test_complex_inputs_are_refused() -> None:
    """A complex input is refused, and so is a program that was exported for one."""
    module = Function(lambda z: z.real * 2)
    with pytest.raises(ButterflycError, match="complex64"):
        capture(module, (SPECTRUM,))
    program = torch.export.export(module, (SPECTRUM,))
    with pytest.raises(Unsupported, match="complex numbers"):
        capture(program, (data(3, 4),))


def test_complex_buffers_in_double() -> None:
    """What is computed with a complex128 buffer is computed in float32."""
    module = Function(lambda x, c: (x * c.real).float(), phasors=SPECTRUM.to(torch.complex128))
    agree(module, data(3, 4))
