"""Overlap-add speech denoiser: framed waveform -> learnt analysis transform -> FIR + butterfly MoE stages -> Wiener-like mask.

  form        B(phi_e) . W_hat . B(theta_e)^T x, no W_down and no activation inside (eq. 3, F = d = 64)
  rotation    radix-2 stages at distance 1, 2, 4, ..., each a multiplication of a + jb by a unit twiddle exp(j angle)
  shuffle     none: stride doubling in place of it; L = 6 on the output side, the first 4 strides on the input side
  handedness  input side transposed: conjugate twiddles, largest distance first; output side plain, smallest first
  quantiser   checkpoint is already ternary: int8 codes and one float scale per row in buffers
  router      sigmoid scores, top-2, used as they are; router bias
  biases      one vector added once after the experts, outside the gates
  dispatch    (token, slot) pairs sorted by expert, split by counts, results put back by index_add
"""
import math

import torch
from torch import nn


def stage(x, twiddle, stride):
    """One radix-2 stage: lines (i, i + stride) are the parts of a complex number turned by its twiddle."""
    n, d = x.shape
    grid = x.reshape(n, d // (2 * stride), 2, stride)
    z = torch.complex(grid[:, :, 0], grid[:, :, 1]) * twiddle.reshape(-1, stride)
    return torch.stack((z.real, z.imag), dim=2).reshape(n, d)


class StageBank(nn.Module):
    """E butterflies of `stages` radix-2 stages each."""

    def __init__(self, experts, n, stages):
        super().__init__()
        assert n & (n - 1) == 0
        self.strides = [1 << s for s in range(stages)]
        self.phase = nn.Parameter(torch.randn(experts, stages, n // 2) * 0.5)

    def twiddles(self, e):
        p = self.phase[e]
        return torch.polar(torch.ones_like(p), p)

    def synthesis(self, x, e):
        for w, stride in zip(self.twiddles(e), self.strides):
            x = stage(x, w, stride)
        return x

    def analysis(self, x, e):
        w = self.twiddles(e).conj()
        for s in range(len(self.strides) - 1, -1, -1):
            x = stage(x, w[s], self.strides[s])
        return x


class RotatedCodebookMix(nn.Module):
    def __init__(self, n, experts, active):
        super().__init__()
        self.active = active
        self.score = nn.Linear(n, experts)
        self.pre = StageBank(experts, n, 4)
        self.post = StageBank(experts, n, int(math.log2(n)))
        self.register_buffer("codes", torch.zeros(n, n, dtype=torch.int8))
        self.register_buffer("step", torch.ones(n))
        self.offset = nn.Parameter(torch.zeros(n))

    @torch.no_grad()
    def load(self, w):
        step = w.abs().mean(1)
        self.codes.copy_((w / (step[:, None] + 1e-8)).round().clamp_(-1, 1))
        self.step.copy_(step)

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        w, pick = torch.sigmoid(self.score(x)).topk(self.active, dim=1)

        order = pick.flatten().argsort(stable=True)
        frame = order // self.active
        counts = torch.bincount(pick.flatten(), minlength=self.score.out_features).tolist()

        kernel = self.codes.to(x.dtype) * self.step[:, None]
        chunks = []
        for e, chunk in enumerate(x[frame].split(counts)):
            if chunk.shape[0]:
                chunks.append(self.post.synthesis(self.pre.analysis(chunk, e) @ kernel.T, e))
        y = torch.cat(chunks) * w.flatten()[order, None]
        out = torch.zeros_like(x).index_add(0, frame, y)
        return (out + self.offset).reshape(shape)


class FirSection(nn.Module):
    """Causal depthwise FIR over the frames and a saturating gain."""

    def __init__(self, n, taps):
        super().__init__()
        self.taps = taps
        self.fir = nn.Conv1d(n, n, taps, groups=n)
        self.drive = nn.Parameter(torch.ones(n))

    def forward(self, x):
        h = nn.functional.pad(x.transpose(1, 2), (self.taps - 1, 0))
        h = self.fir(h).transpose(1, 2)
        return torch.tanh(self.drive * h)


class Denoiser(nn.Module):
    def __init__(self, n=64, hop=32, depth=3, experts=5, active=2, taps=5):
        super().__init__()
        self.n, self.hop = n, hop
        self.register_buffer("window", torch.hann_window(n, periodic=True).sqrt())
        self.analysis = nn.Linear(n, n)
        self.sections = nn.ModuleList([FirSection(n, taps) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.GroupNorm(4, n) for _ in range(depth)])
        self.mixes = nn.ModuleList([RotatedCodebookMix(n, experts, active) for _ in range(depth)])
        self.mask = nn.Linear(n, n // 2 + 1)

    def forward(self, wave):
        frames = wave.unfold(1, self.n, self.hop) * self.window
        spec = torch.fft.rfft(frames)
        h = self.analysis(frames)
        for fir, norm, mix in zip(self.sections, self.norms, self.mixes):
            h = h + fir(h)
            z = norm(h.reshape(-1, self.n)).reshape_as(h)
            h = h + mix(z)
        clean = torch.fft.irfft(spec * torch.sigmoid(self.mask(h)), n=self.n) * self.window
        out = nn.functional.fold(clean.transpose(1, 2), (1, wave.shape[1]), (1, self.n), stride=(1, self.hop))
        return out.reshape(wave.shape[0], wave.shape[1])


def make():
    torch.manual_seed(1965)
    net = Denoiser()
    with torch.no_grad():
        for mix in net.mixes:
            mix.load(torch.randn(64, 64) / 8)
            mix.offset.normal_(0, 0.1)
            mix.score.weight.normal_(0, 0.25)
            mix.score.bias.normal_(0, 0.1)
        for norm in net.norms:
            norm.weight.uniform_(0.7, 1.3)
            norm.bias.normal_(0, 0.1)
        for fir in net.sections:
            fir.drive.uniform_(0.6, 1.8)
            fir.fir.bias.normal_(0, 0.1)
        net.analysis.bias.normal_(0, 0.1)
        net.mask.bias.normal_(0, 0.3)
    t = torch.arange(640) / 640.0
    clean = torch.stack([torch.sin(2 * math.pi * 40 * t), torch.sin(2 * math.pi * 90 * t * t)])
    return net.eval(), (clean + 0.4 * torch.randn(2, 640),)
