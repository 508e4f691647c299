"""Sequential recommender (HSTU-like SiLU attention over an item history) with butterfly MoE feed-forwards.

  form        W_down . B(phi_i)^T . GELU_tanh(W_hat . B(theta_i) x + b_up) + b_down
  rotation    constant geometry: (lo, hi) halves are paired, turned and written interleaved
  shuffle     before the rotation (eq. 4): interleave the two halves; L_in = 3, L_out = 2
  handedness  plain on the way in, transposed on the way out (layers reversed, unshuffle after the inverse turn)
  widths      d 48 -> 64, F 96 -> 128, zero-padded once, stripped after
  quantiser   +-gamma where |w| > 0.7 gamma, else 0, gamma = mean |w| per output row; both W_hat and W_down
  router      top-3 of 12, then softmax over the three; router bias
  biases      b_up shared, b_down inside the expert (gate-weighted)
  dispatch    experts are ids: angles live in an embedding table, looked up per (user, position, slot), einsum with the gates
"""
from typing import Dict

import torch
import torch.nn.functional as F
from torch import nn


def ternarize(w: torch.Tensor, delta: float = 0.7) -> torch.Tensor:
    gamma = w.abs().mean(dim=1, keepdim=True)
    hard = torch.where(w.abs() > delta * gamma, w.sign(), torch.zeros_like(w)) * gamma
    return hard + (w - w.detach())


def fan_in(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """x [..., P], angles [..., L, P/2]"""
    for a in angles.unbind(-2):
        c, s = a.cos(), a.sin()
        lo, hi = x.chunk(2, dim=-1)
        x = torch.stack((c * lo - s * hi, s * lo + c * hi), dim=-1).flatten(-2)
    return x


def fan_out(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Transpose of fan_in."""
    for a in reversed(angles.unbind(-2)):
        c, s = a.cos(), a.sin()
        u, v = x.unflatten(-1, (-1, 2)).unbind(-1)
        x = torch.cat((c * u + s * v, c * v - s * u), dim=-1)
    return x


class ExpertTableFFN(nn.Module):
    def __init__(self, dim: int, hidden: int, n_experts: int, top_k: int, depth_in: int, depth_out: int):
        super().__init__()
        self.dim, self.hidden, self.top_k = dim, hidden, top_k
        self.pad_in = 2 ** (dim - 1).bit_length()
        self.pad_out = 2 ** (hidden - 1).bit_length()
        self.depth_in, self.depth_out = depth_in, depth_out
        self.router = nn.Linear(dim, n_experts)
        self.in_angles = nn.Embedding(n_experts, depth_in * self.pad_in // 2)
        self.out_angles = nn.Embedding(n_experts, depth_out * self.pad_out // 2)
        self.up = nn.Parameter(torch.randn(hidden, dim) * dim ** -0.5)
        self.up_bias = nn.Parameter(torch.randn(hidden) * 0.1)
        self.down = nn.Parameter(torch.randn(dim, hidden) * hidden ** -0.5)
        self.down_bias = nn.Parameter(torch.randn(dim) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top, ids = self.router(x).topk(self.top_k, dim=-1)                 # [B, N, K]
        gates = top.softmax(dim=-1)
        theta = self.in_angles(ids).unflatten(-1, (self.depth_in, -1))     # [B, N, K, L, P/2]
        phi = self.out_angles(ids).unflatten(-1, (self.depth_out, -1))

        h = F.pad(x, (0, self.pad_in - self.dim)).unsqueeze(2).expand(-1, -1, self.top_k, -1)
        h = fan_in(h, theta).narrow(-1, 0, self.dim)
        h = F.gelu(F.linear(h, ternarize(self.up), self.up_bias), approximate="tanh")
        h = fan_out(F.pad(h, (0, self.pad_out - self.hidden)), phi).narrow(-1, 0, self.hidden)
        h = F.linear(h, ternarize(self.down), self.down_bias)
        return torch.einsum("bnk,bnkd->bnd", gates, h)


class PointwiseAggregatedAttention(nn.Module):
    """SiLU attention with a relative time bias; no softmax."""

    def __init__(self, dim: int, heads: int, n_buckets: int):
        super().__init__()
        self.heads, self.n_buckets = heads, n_buckets
        self.uvqk = nn.Linear(dim, 4 * dim)
        self.time_bias = nn.Embedding(n_buckets, heads)
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, times: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        B, N, D = x.shape
        u, v, q, k = F.silu(self.uvqk(x)).chunk(4, dim=-1)
        q, k, v = (t.view(B, N, self.heads, -1) for t in (q, k, v))
        gap = (times[:, :, None] - times[:, None, :]).abs()
        bucket = torch.bucketize(gap, torch.tensor([1, 2, 4, 8, 16, 32, 64])).clamp(max=self.n_buckets - 1)
        score = torch.einsum("bnhd,bmhd->bhnm", q, k) + self.time_bias(bucket).permute(0, 3, 1, 2)
        score = F.silu(score) / N * allowed[:, None]
        mixed = torch.einsum("bhnm,bmhd->bnhd", score, v).reshape(B, N, D)
        return self.out(self.norm(mixed) * u)


class Recommender(nn.Module):
    def __init__(self, cfg: Dict[str, int]):
        super().__init__()
        d = cfg["dim"]
        self.items = nn.Embedding(cfg["n_items"], d, padding_idx=0)
        self.actions = nn.Embedding(cfg["n_actions"], d)
        self.positions = nn.Embedding(cfg["max_len"], d)
        self.layers = nn.ModuleList()
        for _ in range(cfg["layers"]):
            self.layers.append(nn.ModuleDict({
                "pre_att": nn.LayerNorm(d),
                "att": PointwiseAggregatedAttention(d, cfg["heads"], cfg["buckets"]),
                "pre_ffn": nn.LayerNorm(d),
                "ffn": ExpertTableFFN(d, cfg["hidden"], cfg["experts"], cfg["top_k"],
                                      cfg["depth_in"], cfg["depth_out"]),
            }))
        self.final = nn.LayerNorm(d)
        self.item_bias = nn.Embedding(cfg["n_items"], 1)

    def forward(self, history, actions, times, candidates):
        N = history.shape[1]
        valid = history.ne(0)
        x = self.items(history) + self.actions(actions) + self.positions.weight[:N]
        keep = valid.unsqueeze(-1).to(x.dtype)
        causal = torch.ones(N, N, dtype=torch.bool).tril()
        allowed = (causal & valid[:, None, :]).to(x.dtype)
        x = x * keep
        for layer in self.layers:
            x = x + layer["att"](layer["pre_att"](x), times, allowed) * keep
            x = x + layer["ffn"](layer["pre_ffn"](x)) * keep
        user = self.final(x)[:, -1]
        scores = torch.einsum("bd,bcd->bc", user, self.items(candidates))
        return scores + self.item_bias(candidates).squeeze(-1)


def make():
    torch.manual_seed(90210)
    cfg = dict(n_items=200, n_actions=4, max_len=20, dim=48, hidden=96, heads=3, buckets=8, layers=2,
               experts=12, top_k=3, depth_in=3, depth_out=2)
    model = Recommender(cfg)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "angles" in name:
                p.normal_(0, 0.5)
            elif "router.weight" in name:
                p.normal_(0, 0.25)
            elif ("norm" in name or "pre_" in name or "final" in name) and name.endswith("weight"):
                p.uniform_(0.7, 1.3)
            elif name.endswith("bias"):
                p.normal_(0, 0.1)
    B, N, C = 3, 18, 10
    history = torch.randint(1, 200, (B, N))
    history[0, :5] = 0
    history[2, :2] = 0
    actions = torch.randint(0, 4, (B, N))
    times = torch.randint(0, 12, (B, N)).cumsum(1)
    candidates = torch.randint(1, 200, (B, C))
    return model.eval(), (history, actions, times, candidates)
