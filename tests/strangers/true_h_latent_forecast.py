"""Six-hour forecast step: station/grid values cross-attend into a latent array, latents are processed, queries decode.

Processor MLP: butterfly mixture of experts, equation 3 with a shared float W_down:
    y = W_down . sum_i g_i ( B(phi_i) . W_hat . B(theta_i)^T x + c ) + e
  * B: L layers of {Givens on (2j, 2j+1); interleave the two halves}, assembled as dense operators in float64
  * handedness: transpose on the input side, forward on the output side; L_in = 6, L_out = 7 (full log2)
  * no gelu, so each expert is one F x d operator; operators of the chosen experts are gathered and applied by bmm
  * W_hat: one gamma = mean |W|, round-and-clip, straight-through
  * router: raw top-3 logits as gates (router with bias)
  * biases: c shared, inside the expert (weighted by the gate); e after W_down, added once
  * widths: d = 40 in 64, F = 80 in 128; zero-pad and strip is the leading block of each operator
"""
import math

import torch
from torch import Tensor, nn


def perfect_shuffle(n: int) -> Tensor:
    """out[2j] = in[j], out[2j+1] = in[j + n/2]; returned as source indices."""
    return torch.arange(n).reshape(2, n // 2).T.reshape(-1)


def givens_blocks(angle: Tensor) -> Tensor:
    """(...,) -> (..., 2, 2) plane rotations."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], dim=-1), torch.stack([s, c], dim=-1)], dim=-2)


def assemble(angles: Tensor) -> Tensor:
    """angles (E, L, n/2) -> orthogonal operators (E, n, n), float64."""
    E, L, half = angles.shape
    n = 2 * half
    R = givens_blocks(angles.to(torch.float64))
    src = perfect_shuffle(n)
    op = torch.eye(n, dtype=torch.float64).expand(E, n, n)
    for layer in range(L):
        op = op.reshape(E, half, 2, n)
        op = torch.matmul(R[:, layer], op).reshape(E, n, n)
        op = op[:, src, :]
    return op


class LatentExperts(nn.Module):
    def __init__(self, d: int, f: int, n_experts: int, n_active: int):
        super().__init__()
        self.d, self.f, self.n_active = d, f, n_active
        pd, pf = 2 ** math.ceil(math.log2(d)), 2 ** math.ceil(math.log2(f))
        self.theta = nn.Parameter(0.5 * torch.randn(n_experts, int(math.log2(pd)), pd // 2))
        self.phi = nn.Parameter(0.5 * torch.randn(n_experts, int(math.log2(pf)), pf // 2))
        self.W = nn.Parameter(torch.randn(f, d) * d ** -0.5)
        self.c = nn.Parameter(0.2 * torch.randn(f))
        self.W_down = nn.Parameter(torch.randn(d, f) * f ** -0.5)
        self.e = nn.Parameter(0.1 * torch.randn(d))
        self.router_w = nn.Parameter(0.25 * torch.randn(n_experts, d))
        self.router_b = nn.Parameter(0.3 * torch.randn(n_experts))

    def substrate(self) -> Tensor:
        gamma = self.W.abs().mean()
        q = (self.W / (gamma + 1e-8)).round().clamp(-1.0, 1.0) * gamma
        return (q - self.W).detach() + self.W

    def operators(self) -> Tensor:
        left = assemble(self.phi)[:, : self.f, : self.f]
        right = assemble(self.theta)[:, : self.d, : self.d]
        return left @ self.substrate().double() @ right.mT

    def forward(self, z: Tensor) -> Tensor:
        x = z.flatten(0, 1)
        logits = torch.addmm(self.router_b, x, self.router_w.T)
        g, idx = logits.topk(self.n_active, dim=1)
        ops = self.operators().to(x.dtype)
        chosen = ops[idx].flatten(0, 1)
        cols = x.repeat_interleave(self.n_active, dim=0).unsqueeze(-1)
        u = torch.bmm(chosen, cols).view(*idx.shape, self.f) + self.c
        y = torch.einsum("tk,tkf->tf", g, u) @ self.W_down.T + self.e
        return y.view_as(z)


class Attend(nn.Module):
    def __init__(self, dq: int, dkv: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_kv = nn.LayerNorm(dq), nn.LayerNorm(dkv)
        self.to_q = nn.Linear(dq, dq, bias=False)
        self.to_kv = nn.Linear(dkv, 2 * dq, bias=False)
        self.to_out = nn.Linear(dq, dq)

    def forward(self, q: Tensor, kv: Tensor) -> Tensor:
        kv = self.norm_kv(kv)
        q = self.to_q(self.norm_q(q))
        k, v = self.to_kv(kv).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        w = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        return self.to_out((w @ v).transpose(1, 2).flatten(2))


class ProcessorLayer(nn.Module):
    def __init__(self, d: int, f: int, heads: int, n_experts: int):
        super().__init__()
        self.attn = Attend(d, d, heads)
        self.norm = nn.LayerNorm(d)
        self.experts = LatentExperts(d, f, n_experts, n_active=3)

    def forward(self, z: Tensor) -> Tensor:
        z = z + self.attn(z, z)
        return z + 0.5 * self.experts(self.norm(z))


class LatentForecast(nn.Module):
    def __init__(self, n_vars=5, n_latents=24, d=40, f=80, depth=2, n_experts=9):
        super().__init__()
        n_freq = 4
        self.register_buffer("freqs", 2.0 ** torch.arange(n_freq))
        d_pos = 3 + 4 * n_freq
        self.embed = nn.Linear(n_vars + d_pos, 32)
        self.latents = nn.Parameter(torch.randn(n_latents, d))
        self.encode = Attend(d, 32, heads=2)
        self.layers = nn.ModuleList(ProcessorLayer(d, f, 4, n_experts) for _ in range(depth))
        self.query = nn.Linear(d_pos, d)
        self.decode = Attend(d, d, heads=4)
        self.head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, n_vars))

    def position(self, latlon: Tensor) -> Tensor:
        lat, lon = latlon.unbind(-1)
        xyz = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=-1)
        ph = latlon.unsqueeze(-1) * self.freqs
        return torch.cat([xyz, ph.sin().flatten(-2), ph.cos().flatten(-2)], dim=-1)

    def forward(self, state: Tensor, latlon: Tensor) -> Tensor:
        pos = self.position(latlon)
        obs = self.embed(torch.cat([state, pos], dim=-1))
        z = self.latents.expand(state.shape[0], -1, -1)
        z = z + self.encode(z, obs)
        for layer in self.layers:
            z = layer(z)
        tendency = self.head(self.decode(self.query(pos), z))
        return state + tendency


def make():
    torch.manual_seed(1979)
    model = LatentForecast()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.add_(0.2 * torch.randn_like(m.weight))
                m.bias.add_(0.2 * torch.randn_like(m.bias))
    lat = (torch.rand(2, 60) - 0.5) * math.pi
    lon = torch.rand(2, 60) * 2 * math.pi
    return model.eval(), (torch.randn(2, 60, 5), torch.stack([lat, lon], dim=-1))
