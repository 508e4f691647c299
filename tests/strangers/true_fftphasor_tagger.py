"""Frame-level audio tagger whose FFN is a Butterfly MoE, written the way one writes an FFT.

Style: every Givens rotation is a multiplication by a unit phasor on a complex view; no shuffle, radix-2 stages with
stride doubling (decimation in time) on the input side, and the adjoint flow graph (conjugate twiddles, strides halving)
on the output side. All log2(N) stages. Per-slot gather of the expert's phases for every token, no per-expert dispatch.
Softmax -> top-2 -> renormalise; per-tensor gamma; erf GELU before B(phi); W_down float, its bias added once.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def _stage(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """One radix-2 stage: channels (n, n + stride) form one complex sample, multiplied by its twiddle."""
    m, n = x.shape
    z = x.view(m, n // (2 * stride), 2, stride).transpose(2, 3).contiguous()
    z = torch.view_as_complex(z) * w.view(m, n // (2 * stride), stride)
    return torch.view_as_real(z).transpose(2, 3).reshape(m, n)


def dit(x: Tensor, phase: Tensor) -> Tensor:
    """Forward butterfly, phase: [tokens, stages, n/2]."""
    tw = torch.polar(torch.ones_like(phase), phase)
    for s in range(phase.shape[1]):
        x = _stage(x, tw[:, s].contiguous(), 1 << s)
    return x


def dif(x: Tensor, phase: Tensor) -> Tensor:
    """Adjoint of dit with the same phases."""
    tw = torch.polar(torch.ones_like(phase), phase).conj().resolve_conj()
    for s in reversed(range(phase.shape[1])):
        x = _stage(x, tw[:, s].contiguous(), 1 << s)
    return x


class ButterflyBank(nn.Module):
    def __init__(self, n_in: int, n_hid: int, n_bank: int, n_active: int = 2):
        super().__init__()
        self.n_active = n_active
        self.proto = nn.Parameter(torch.randn(n_hid, n_in) / math.sqrt(n_in))
        self.synth = nn.Linear(n_hid, n_in, bias=False)
        self.offset = nn.Parameter(0.2 * torch.randn(n_in))
        self.router = nn.Linear(n_in, n_bank, bias=False)
        self.phase_in = nn.Parameter(0.6 * torch.randn(n_bank, int(math.log2(n_in)), n_in // 2))
        self.phase_out = nn.Parameter(0.5 * torch.randn(n_bank, int(math.log2(n_hid)), n_hid // 2))

    def ternary_proto(self) -> Tensor:
        g = self.proto.abs().mean()
        hat = g * torch.clamp(torch.round(self.proto / (g + 1e-8)), -1, 1)
        if self.training:
            hat = self.proto + (hat - self.proto).detach()
        return hat

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        p = F.softmax(self.router(x), dim=-1)
        gain, sel = p.topk(self.n_active, dim=-1)
        gain = gain / gain.sum(-1, keepdim=True)
        w = self.ternary_proto()
        y = self.offset.expand_as(x)
        for k in range(self.n_active):
            e = sel[:, k]
            u = dit(x, self.phase_in[e])
            v = dif(F.gelu(u @ w.t()), self.phase_out[e])
            y = y + gain[:, k : k + 1] * self.synth(v)
        return y.view(shape)


class Block(nn.Module):
    def __init__(self, n: int, hid: int, bank: int):
        super().__init__()
        self.pre = nn.LayerNorm(n)
        self.fir = nn.Conv1d(n, n, 5, padding=2, groups=n)  # time mixing
        self.pre_moe = nn.LayerNorm(n)
        self.moe = ButterflyBank(n, hid, bank)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.fir(self.pre(x).transpose(1, 2)).transpose(1, 2)
        return x + self.moe(self.pre_moe(x))


class Tagger(nn.Module):
    def __init__(self, mels: int = 20, n: int = 32, hid: int = 64, bank: int = 6, depth: int = 2, tags: int = 9):
        super().__init__()
        self.stem = nn.Conv1d(mels, n, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(n, hid, bank) for _ in range(depth)])
        self.norm = nn.LayerNorm(n)
        self.head = nn.Linear(n, tags)

    def forward(self, spec: Tensor) -> Tensor:  # [batch, frames, mels]
        x = self.stem(spec.transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)))


def make():
    torch.manual_seed(1207)
    net = Tagger()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.add_(0.25 * torch.randn_like(m.weight))
                m.bias.add_(0.15 * torch.randn_like(m.bias))
            if isinstance(m, ButterflyBank):
                m.router.weight.mul_(2.5)
    return net.eval(), (torch.randn(2, 24, 20),)
