"""LOOKALIKE. Patch-based long-horizon forecaster (RevIN, channel independent patches) with a "doubly residual" butterfly MoE.

Parameters, router, ternary weights and butterflies are exactly the paper's ViT form, but the k chosen experts do not
all read x: as in N-BEATS, each expert's gated output is subtracted from the input before the next expert reads it
    r_1 = x ;  o_s = gate_s * expert_s(r_s) ;  r_{s+1} = r_s - o_s ;  y = sum_s o_s
so y is NOT sum_i gate_i * expert_i(x), and the order of the experts matters (strongest gate first).
Style: complex-number rotations (view_as_complex * polar), angles gathered per token (theta[idx]), a loop over the k slots.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class RevIN(nn.Module):
    def __init__(self, n_series):
        super().__init__()
        self.w = nn.Parameter(torch.ones(n_series))
        self.b = nn.Parameter(torch.zeros(n_series))

    def norm(self, x):                                   # x: (B, T, C)
        mu = x.mean(1, keepdim=True)
        sd = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
        return (x - mu) / sd * self.w + self.b, (mu, sd)

    def denorm(self, y, stats):
        mu, sd = stats
        return (y - self.b) / self.w * sd + mu


def ternary(w):
    gamma = w.abs().mean()
    w_hat = gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)
    return w + (w_hat - w).detach() if w.requires_grad and torch.is_grad_enabled() else w_hat


def butterfly(x, ang):
    """x: (N, n), ang: (N, L, n/2). A pair of channels is one complex number, a Givens rotation is a phase."""
    phase = torch.polar(torch.ones_like(ang), ang)
    for l in range(ang.shape[1]):
        z = torch.view_as_complex(x.reshape(x.shape[0], -1, 2).contiguous()) * phase[:, l]
        x = torch.cat([z.real, z.imag], dim=-1)          # perfect shuffle: evens, then odds
    return x


class ButterflyMoE(nn.Module):
    def __init__(self, d, d_ff, n_experts, top_k, depth_in, depth_out):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(d, n_experts)
        self.w_up = nn.Parameter(torch.empty(d_ff, d))
        self.w_down = nn.Parameter(torch.empty(d, d_ff))
        self.theta = nn.Parameter(torch.empty(n_experts, depth_in, d // 2))
        self.phi = nn.Parameter(torch.empty(n_experts, depth_out, d_ff // 2))
        self.bias = nn.Parameter(torch.empty(d))
        nn.init.xavier_normal_(self.w_up)
        nn.init.xavier_normal_(self.w_down)
        nn.init.normal_(self.theta, std=0.01)
        nn.init.normal_(self.phi, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        val, idx = self.router(x).topk(self.top_k, dim=-1)
        gate = val.softmax(dim=-1)
        w_up = ternary(self.w_up)

        y = torch.zeros_like(x)
        for s in range(self.top_k):
            e = idx[:, s]
            h = F.gelu(F.linear(butterfly(x, self.theta[e]), w_up))
            h = F.linear(butterfly(h, self.phi[e]), self.w_down)
            out = gate[:, s, None] * h
            y, x = y + out, x - out
        return (y + self.bias).reshape(shape)


class EncoderLayer(nn.Module):
    def __init__(self, d, heads, **moe):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.MultiheadAttention(d, heads, batch_first=True)
        self.ff = ButterflyMoE(d, **moe)

    def forward(self, x):
        z = self.n1(x)
        x = x + self.attn(z, z, z, need_weights=False)[0]
        return x + self.ff(self.n2(x))


class Forecaster(nn.Module):
    def __init__(self, n_series=3, context=96, horizon=24, patch=16, stride=8, d=32, layers=2):
        super().__init__()
        self.patch, self.stride = patch, stride
        n = (context - patch) // stride + 1
        self.revin = RevIN(n_series)
        self.embed = nn.Linear(patch, d)
        self.pos = nn.Parameter(torch.zeros(n, d))
        self.layers = nn.ModuleList(
            EncoderLayer(d, 4, d_ff=64, n_experts=6, top_k=2, depth_in=5, depth_out=3) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(n * d, horizon)

    def forward(self, x):                                # (B, T, C) -> (B, horizon, C)
        b, _, c = x.shape
        x, stats = self.revin.norm(x)
        p = x.transpose(1, 2).unfold(-1, self.patch, self.stride)       # (B, C, n, patch)
        h = self.embed(p).flatten(0, 1) + self.pos
        for layer in self.layers:
            h = layer(h)
        y = self.head(self.norm(h).flatten(1)).view(b, c, -1).transpose(1, 2)
        return self.revin.denorm(y, stats)


def make():
    torch.manual_seed(2024)
    net = Forecaster()
    for name, p in net.named_parameters():
        if name.endswith(("theta", "phi")):
            nn.init.normal_(p, std=0.5)
        elif ".n1.weight" in name or ".n2.weight" in name or name in ("norm.weight", "revin.w"):
            nn.init.uniform_(p, 0.6, 1.5)
        elif p.dim() == 1 or name == "pos":
            nn.init.normal_(p, std=0.2)
        else:
            nn.init.normal_(p, std=1.1 / math.sqrt(p.shape[-1]))
    net.eval()
    t = torch.arange(96.0)[None, :, None]
    x = torch.sin(t * torch.tensor([0.13, 0.31, 0.07])) + 0.02 * t + 0.3 * torch.randn(2, 96, 3)
    return net, (x,)


if __name__ == "__main__":
    net, inp = make()
    print(net(*inp).shape)
