"""Channel-independent patch forecaster (PatchTST-like) whose mixer uses a linear Butterfly MoE, equation (3).

The MoE replaces only the *first* linear map of the FFN, d -> F: sum_i g_i B(phi_i) W_hat B(theta_i)^T x, no activation and no
W_down inside the expert; a bias is added once, then GELU and an ordinary linear map outside.
Signal-processing style: a channel pair is a complex number and a Givens rotation a multiplication by exp(i*angle);
the shuffle (deinterleave) comes before the rotation as in eq. (4), and the transpose runs the layers backwards with the
conjugate and the inverse shuffle.  Widths 24 -> 32 and 40 -> 64 are zero-padded.  Gates: sigmoid, selection with a balancing bias
(which does not enter the gate), renormalised.  Dispatch: sort the (token, slot) pairs by expert and split.
"""
import math

import torch
from torch import nn


class PhaseButterfly(nn.Module):
    """One bank of rotations, `n_exp` of them, for signals of length `n`."""

    def __init__(self, n_exp, n, depth):
        super().__init__()
        self.n = n
        self.N = 2 ** math.ceil(math.log2(n))
        self.depth = depth
        self.phase = nn.Parameter(torch.empty(n_exp, depth, self.N // 2).normal_(0, 0.01))

    def _pad(self, x):
        if self.N == self.n:
            return x
        return torch.cat([x, x.new_zeros(*x.shape[:-1], self.N - self.n)], -1)

    def _twiddle(self, e, l):
        ph = self.phase[e, l]
        return torch.polar(torch.ones_like(ph), ph)

    def forward(self, x, e):
        x = self._pad(x)
        for l in range(self.depth):
            x = torch.cat([x[..., 0::2], x[..., 1::2]], -1)
            z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
            x = torch.view_as_real(z * self._twiddle(e, l)).flatten(-2)
        return x[..., : self.n]

    def inverse(self, x, e):
        x = self._pad(x)
        for l in reversed(range(self.depth)):
            z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
            x = torch.view_as_real(z * self._twiddle(e, l).conj()).flatten(-2)
            lo, hi = x.chunk(2, -1)
            y = torch.empty_like(x)
            y[..., 0::2] = lo
            y[..., 1::2] = hi
            x = y
        return x[..., : self.n]


class LinearButterflyMoE(nn.Module):
    def __init__(self, d_in, d_out, n_exp=4, k=2, depth_in=5, depth_out=2):
        super().__init__()
        self.k, self.n_exp, self.d_out = k, n_exp, d_out
        self.W = nn.Parameter(torch.randn(d_out, d_in) / d_in**0.5)
        self.b = nn.Parameter(torch.zeros(d_out))
        self.theta = PhaseButterfly(n_exp, d_in, depth_in)
        self.phi = PhaseButterfly(n_exp, d_out, depth_out)
        self.route = nn.Linear(d_in, n_exp)
        self.register_buffer("balance", torch.zeros(n_exp))

    def ternary(self):
        g = self.W.abs().mean()
        t = torch.sign(self.W) * (self.W.abs() > 0.5 * (g + 1e-8))
        return self.W + (g * t - self.W).detach()

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        score = self.route(flat).sigmoid()
        top = (score + self.balance).topk(self.k, dim=-1).indices
        gate = score.gather(-1, top)
        gate = gate / gate.sum(-1, keepdim=True)

        W = self.ternary()
        order = top.flatten().argsort(stable=True)
        counts = torch.bincount(top.flatten(), minlength=self.n_exp).tolist()
        src = torch.div(order, self.k, rounding_mode="floor")

        parts = []
        for e, xe in enumerate(flat[src].split(counts)):
            xe = self.theta.inverse(xe, e)
            xe = xe @ W.T
            parts.append(self.phi(xe, e))
        sorted_out = torch.cat(parts)

        out = torch.empty_like(sorted_out)
        out[order] = sorted_out
        out = out.view(-1, self.k, self.d_out)
        y = (gate.unsqueeze(1) @ out).squeeze(1) + self.b
        return y.view(*x.shape[:-1], self.d_out)


class MixerLayer(nn.Module):
    def __init__(self, d, f, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(d, heads, batch_first=True)
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.up = LinearButterflyMoE(d, f)
        self.act = nn.GELU()
        self.down = nn.Linear(f, d)

    def forward(self, z):
        q = self.n1(z)
        z = z + self.attn(q, q, q, need_weights=False)[0]
        return z + self.down(self.act(self.up(self.n2(z))))


class Forecaster(nn.Module):
    def __init__(self, n_vars=3, lookback=96, horizon=24, patch=16, stride=8, d=24, f=40, heads=3, layers=2):
        super().__init__()
        self.patch, self.stride = patch, stride
        n_patch = (lookback - patch) // stride + 1
        self.scale = nn.Parameter(torch.ones(n_vars, 1))
        self.shift = nn.Parameter(torch.zeros(n_vars, 1))
        self.embed = nn.Linear(patch, d)
        self.pos = nn.Parameter(torch.zeros(n_patch, d))
        self.layers = nn.Sequential(*[MixerLayer(d, f, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(n_patch * d, horizon)

    def forward(self, x):  # (B, vars, lookback)
        mu = x.mean(-1, keepdim=True)
        sd = (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        x = (x - mu) / sd * self.scale + self.shift
        B, V, _ = x.shape
        p = x.unfold(-1, self.patch, self.stride)  # B V P patch
        z = self.embed(p).flatten(0, 1) + self.pos
        z = self.norm(self.layers(z))
        y = self.head(z.flatten(1)).view(B, V, -1)
        return (y - self.shift) / self.scale * sd + mu


@torch.no_grad()
def _age(model):
    """Make the weights look as they do after some training."""
    for name, p in model.named_parameters():
        if "phase" in name:
            p.normal_(0, 0.5)
        elif "scale" in name or (p.dim() == 1 and name.endswith("weight")):
            p.add_(0.2 * torch.randn_like(p))
        elif p.dim() == 1 or name in ("shift", "pos"):
            p.add_(0.15 * torch.randn_like(p))
        elif "route" in name:
            p.mul_(4)
    for m in model.modules():
        if isinstance(m, LinearButterflyMoE):
            m.balance.normal_(0, 0.1)


def make():
    torch.manual_seed(2024)
    net = Forecaster()
    _age(net)
    t = torch.arange(96.0)
    x = torch.stack([torch.sin(t / 7), torch.cos(t / 11), 0.02 * t]) + 0.4 * torch.randn(2, 3, 96)
    return net.eval(), (x,)
