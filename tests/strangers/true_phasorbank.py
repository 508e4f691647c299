"""Log-mel frame encoder whose feed-forward is a ButterflyMoE, written the way one writes an FFT.

Every Givens rotation is a multiplication by a unit phasor.  Input side (theta): adjacent samples form one complex
number (view_as_complex), rotate, then decimate into even|odd, log2(d) stages.  Output side (phi): in-place radix-2
stages with stride doubling, no shuffle at all, the pair being h = 1, 2, 4, ... samples apart.
Softmax over all experts, then top-k, not renormalised.  All experts are evaluated as one bank of filters and mixed
*before* the shared float W_down (it is linear, so one application is enough); its bias is therefore added once.
W_hat has a per-tensor gamma; tanh-GELU before B(phi).
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def phasor(phase):
    return torch.polar(torch.ones_like(phase), phase)


class DecimatingRotator(nn.Module):
    """rotate neighbours -> decimate by two (evens first), per stage.  (E|1, N, n) -> (E, N, n)"""

    def __init__(self, bank, n, stages):
        super().__init__()
        self.phase = nn.Parameter(torch.randn(bank, stages, n // 2) * 0.5)

    def forward(self, x):
        for w in phasor(self.phase).unbind(1):
            z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            z = z * w[:, None, :]
            x = torch.view_as_real(z).transpose(-1, -2).flatten(-2)
        return x


class InPlaceRotator(nn.Module):
    """Radix-2 signal flow graph without bit reversal: stage s couples samples 2**s apart."""

    def __init__(self, bank, n, stages):
        super().__init__()
        assert 1 << stages <= n
        self.bank, self.n, self.stages = bank, n, stages
        self.phase = nn.Parameter(torch.randn(bank, stages, n // 2) * 0.5)

    def forward(self, x):
        twiddle = phasor(self.phase)
        for s in range(self.stages):
            h = 1 << s
            v = x.reshape(*x.shape[:-1], self.n // (2 * h), 2, h)
            z = torch.complex(v[..., 0, :], v[..., 1, :])
            z = z * twiddle[:, s].view(self.bank, 1, self.n // (2 * h), h)
            x = torch.stack((z.real, z.imag), dim=-2).reshape(*x.shape)
        return x


class RotatedFilterBank(nn.Module):
    def __init__(self, d, f, bank, active):
        super().__init__()
        self.active = active
        self.selector = nn.Linear(d, bank, bias=False)
        self.pre = DecimatingRotator(bank, d, int(math.log2(d)))
        self.prototype = nn.Parameter(torch.randn(f, d) / math.sqrt(d))
        self.post = InPlaceRotator(bank, f, int(math.log2(f)))
        self.synthesis = nn.Linear(f, d)

    def quantised_prototype(self):
        w = self.prototype
        g = w.abs().mean()
        q = g * torch.clamp(torch.round(w / (g + 1e-8)), -1, 1)
        return w + (q - w).detach() if self.training else q

    def forward(self, frames):
        x = frames.flatten(0, -2)                                    # N, d
        p = self.selector(x).softmax(-1)
        top, idx = p.topk(self.active, dim=-1)
        gain = torch.zeros_like(p).scatter(-1, idx, top)             # N, E
        u = self.pre(x[None])                                        # E, N, d
        h = F.gelu(u @ self.quantised_prototype().mT, approximate="tanh")
        h = self.post(h)                                             # E, N, f
        mixed = torch.einsum("ne,enf->nf", gain, h)
        return self.synthesis(mixed).view_as(frames)


class EncoderStage(nn.Module):
    def __init__(self, d, f, heads, bank, active):
        super().__init__()
        self.ln_a = nn.LayerNorm(d)
        self.mha = nn.MultiheadAttention(d, heads, batch_first=True)
        self.ln_m = nn.LayerNorm(d)
        self.moe = RotatedFilterBank(d, f, bank, active)

    def forward(self, x):
        q = self.ln_a(x)
        x = x + self.mha(q, q, q, need_weights=False)[0]
        return x + self.moe(self.ln_m(x))


class SpectrogramEncoder(nn.Module):
    def __init__(self, mels=20, frames=40, d=32, f=64, heads=4, bank=6, active=2, depth=2, classes=12):
        super().__init__()
        self.front = nn.Conv1d(mels, d, kernel_size=3, padding=1)
        t = torch.arange(frames)[:, None]
        rate = torch.exp(torch.arange(0, d, 2) * (-math.log(10000.0) / d))
        clock = torch.view_as_real(phasor(t * rate)).flatten(-2)     # cos, sin, cos, sin, ...
        self.register_buffer("clock", clock)
        self.stages = nn.Sequential(*[EncoderStage(d, f, heads, bank, active) for _ in range(depth)])
        self.ln = nn.LayerNorm(d)
        self.readout = nn.Linear(2 * d, classes)

    def forward(self, mel):                                          # B, frames, mels
        x = F.gelu(self.front(mel.transpose(1, 2))).transpose(1, 2)
        x = self.ln(self.stages(x + self.clock))
        mu = x.mean(1)
        sd = (x - mu[:, None]).square().mean(1).add(1e-6).sqrt()
        return self.readout(torch.cat((mu, sd), -1))


def make():
    torch.manual_seed(440)
    net = SpectrogramEncoder()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if ".ln" in name or name.startswith("ln."):
                p.add_(0.25 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.copy_(0.15 * torch.randn_like(p))
            elif "selector" in name:
                p.copy_(0.5 * torch.randn_like(p))
            elif "synthesis.weight" in name:
                p.copy_(0.3 * torch.randn_like(p))
    return net.eval(), (torch.randn(2, 40, 20),)
