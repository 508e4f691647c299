"""Channel-independent patch forecaster (PatchTST flavour, RevIN in and out) with butterfly experts in the feed-forward.

Expert: W_down . B(phi) . GELU_tanh(W_hat . B(theta) x + b_up); d = 40 padded to 64, F = 72 padded to 128, stripped after.
Rotation on pairs (2j, 2j+1), clockwise, then the two halves are interleaved; L_in = 6, L_out = 3.
Router: top-2 of 5 logits then softmax.  Quantiser: absmean round-clip per output row; W_down float, bias inside the expert.
Dispatch: (token, slot) pairs sorted by expert, split by counts, results scattered back with index_add.
NOT a Butterfly layer: the angles of B(theta) are not the expert's alone, they drift with the patch's place in the window,
theta[e] + drift * (patch number), as a rotating seasonal phase; two equal tokens at two places get different rotations.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class ForecastConfig:
    lookback: int = 64
    horizon: int = 16
    patch_len: int = 12
    stride: int = 6
    d_model: int = 40
    d_ff: int = 72
    n_heads: int = 4
    n_layers: int = 2
    n_experts: int = 5
    top_k: int = 2
    depth_in: int = 6
    depth_out: int = 3

    @property
    def n_patches(self) -> int:
        return (self.lookback - self.patch_len) // self.stride + 1


class RevIN(nn.Module):
    def __init__(self, n_series: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.affine_weight = nn.Parameter(1 + 0.1 * torch.randn(n_series))
        self.affine_bias = nn.Parameter(0.1 * torch.randn(n_series))

    def norm(self, x):
        self_mean = x.mean(dim=1, keepdim=True)
        self_std = torch.sqrt(x.var(dim=1, keepdim=True, unbiased=False) + self.eps)
        return (x - self_mean) / self_std * self.affine_weight + self.affine_bias, (self_mean, self_std)

    def denorm(self, y, stats):
        mean, std = stats
        return (y - self.affine_bias) / (self.affine_weight + self.eps ** 2) * std + mean


def rotate_and_interleave(x, angles):
    """x: (n, width); angles: (n or 1, depth, half). Zero-padded once, stripped once."""
    n, width = x.shape
    half = angles.size(-1)
    x = F.pad(x, (0, 2 * half - width))
    for d in range(angles.size(1)):
        c, s = torch.cos(angles[:, d]), torch.sin(angles[:, d])
        a, b = x.view(n, half, 2).unbind(-1)
        x = torch.stack((c * a + s * b, c * b - s * a), dim=-1).view(n, 2, half)
        x = x.transpose(1, 2).reshape(n, 2 * half)
    return x[:, :width]


class SeasonalButterflyMoE(nn.Module):
    def __init__(self, cfg: ForecastConfig):
        super().__init__()
        self.n_experts, self.top_k = cfg.n_experts, cfg.top_k
        half_d = (1 << (cfg.d_model - 1).bit_length()) // 2
        half_f = (1 << (cfg.d_ff - 1).bit_length()) // 2
        self.gate = nn.Linear(cfg.d_model, cfg.n_experts)
        self.theta = nn.Parameter(0.5 * torch.randn(cfg.n_experts, cfg.depth_in, half_d))
        self.drift = nn.Parameter(0.06 * torch.randn(cfg.depth_in, half_d))
        self.phi = nn.Parameter(0.5 * torch.randn(cfg.n_experts, cfg.depth_out, half_f))
        self.w_up = nn.Parameter(torch.randn(cfg.d_ff, cfg.d_model) * cfg.d_model ** -0.5)
        self.b_up = nn.Parameter(0.2 * torch.randn(cfg.d_ff))
        self.proj_down = nn.Linear(cfg.d_ff, cfg.d_model)

    def w_hat(self):
        gamma = self.w_up.abs().mean(dim=-1, keepdim=True)
        q = gamma * torch.round(self.w_up / (gamma + 1e-8)).clamp(min=-1, max=1)
        return self.w_up + (q - self.w_up).detach() if self.training else q

    def forward(self, x):
        n_series, n_patches, d = x.shape
        tokens = x.reshape(-1, d)
        place = torch.arange(n_patches, device=x.device).repeat(n_series).to(x.dtype)
        logits, chosen = self.gate(tokens).topk(self.top_k, dim=-1)
        weights = torch.softmax(logits, dim=-1).flatten()
        flat = chosen.flatten()
        order = torch.argsort(flat, stable=True)
        source = torch.div(order, self.top_k, rounding_mode="floor")
        counts = torch.bincount(flat, minlength=self.n_experts).tolist()
        w = self.w_hat()

        pieces = []
        for e, (xs, ts) in enumerate(zip(tokens[source].split(counts), place[source].split(counts))):
            phase = self.theta[e] + self.drift * ts[:, None, None]
            h = rotate_and_interleave(xs, phase)
            h = F.gelu(F.linear(h, w, self.b_up), approximate="tanh")
            h = rotate_and_interleave(h, self.phi[e].unsqueeze(0))
            pieces.append(self.proj_down(h))
        y = torch.cat(pieces) * weights[order].unsqueeze(-1)
        return torch.zeros_like(tokens).index_add(0, source, y).view_as(x)


class EncoderLayer(nn.Module):
    def __init__(self, cfg: ForecastConfig):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(cfg.d_model, cfg.n_heads, batch_first=True)
        self.norm_attn = nn.LayerNorm(cfg.d_model)
        self.ff = SeasonalButterflyMoE(cfg)
        self.norm_ffn = nn.LayerNorm(cfg.d_model)

    def forward(self, x):
        x = self.norm_attn(x + self.self_attn(x, x, x, need_weights=False)[0])
        return self.norm_ffn(x + self.ff(x))


class PatchForecaster(nn.Module):
    def __init__(self, cfg: ForecastConfig, n_series: int):
        super().__init__()
        self.cfg = cfg
        self.revin = RevIN(n_series)
        self.embed = nn.Linear(cfg.patch_len, cfg.d_model)
        self.w_pos = nn.Parameter(0.3 * torch.randn(cfg.n_patches, cfg.d_model))
        self.layers = nn.ModuleList(EncoderLayer(cfg) for _ in range(cfg.n_layers))
        self.head = nn.Linear(cfg.d_model * cfg.n_patches, cfg.horizon)

    def forward(self, history):
        B, _, C = history.shape
        z, stats = self.revin.norm(history)
        z = z.transpose(1, 2).unfold(-1, self.cfg.patch_len, self.cfg.stride)
        z = self.embed(z.reshape(B * C, self.cfg.n_patches, self.cfg.patch_len)) + self.w_pos
        for layer in self.layers:
            z = layer(z)
        y = self.head(z.flatten(1)).view(B, C, self.cfg.horizon).transpose(1, 2)
        return self.revin.denorm(y, stats)


def make():
    torch.manual_seed(365)
    cfg = ForecastConfig()
    model = PatchForecaster(cfg, n_series=3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("gate.weight"):
                p.normal_(0, 0.35)
            elif "norm_" in name:
                p.add_(0.15 * torch.randn_like(p))
            elif name.endswith("bias") and "revin" not in name:
                p.normal_(0, 0.1)
    t = torch.arange(cfg.lookback).float()[None, :, None]
    period = torch.tensor([12.0, 24.0, 7.0])
    history = 3 * torch.sin(2 * torch.pi * t / period) + 0.02 * t + torch.randn(2, cfg.lookback, 3)
    return model.eval(), (history,)
