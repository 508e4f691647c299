"""Trajectory policy (returns / observations / actions -> action logits and value) with a butterfly-rotated expert layer.

form        W_down . GELU(B(phi) . (W_q . B(theta)^T x + b)), GELU exact, after the second rotation
shuffle     de-interleave before each rotation; rotations as complex multiplication by exp(i angle)
handedness  B(theta)^T in, B(phi) out
L           5 in (width 32), 2 out (hidden 128)
router      linear, sigmoid scores, selection with a correction bias, top-2 of 10, weights renormalised
biases      on the up map and on W_down (inside the expert, gate-weighted)
dispatch    sort by expert, bincount, split, scatter back by the sort order; W_down float
quantiser   trained ternary (TTQ): threshold 0.7 mean |W|, levels {-w_n, 0, +w_p} with two separate learnt scales
Not a Butterfly layer because the three levels are not symmetric: w_p differs from w_n, so the shared matrix is not gamma * {-1, 0, +1}.
"""
import torch
from torch import nn
from torch.nn import functional as F


class ComplexButterfly(nn.Module):
    def __init__(self, n_experts, n_layers, width):
        super().__init__()
        self.width, self.n_layers = width, n_layers
        self.phase = nn.Parameter(0.5 * torch.randn(n_experts, n_layers, width // 2))

    def _phasor(self, e, l):
        p = self.phase[e, l]
        return torch.polar(torch.ones_like(p), p)

    def forward(self, x, e):
        for l in range(self.n_layers):
            x = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
            z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            x = torch.view_as_real(z * self._phasor(e, l)).flatten(-2)
        return x

    def transpose(self, x, e):
        for l in range(self.n_layers - 1, -1, -1):
            z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            x = torch.view_as_real(z * self._phasor(e, l).conj()).flatten(-2)
            x = torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)
        return x


class TernaryLinear(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) / d_in ** 0.5)
        self.bias = nn.Parameter(torch.zeros(d_out))
        self.w_p = nn.Parameter(self.weight.detach().abs().mean() * 1.08)
        self.w_n = nn.Parameter(self.weight.detach().abs().mean() * 0.93)

    def codes(self):
        thr = 0.7 * self.weight.abs().mean()
        return (self.weight > thr).to(self.weight.dtype), (self.weight < -thr).to(self.weight.dtype)

    def forward(self, x):
        pos, neg = self.codes()
        w = self.w_p * pos - self.w_n * neg
        if self.training:
            w = w + (self.weight - self.weight.detach())
        return F.linear(x, w, self.bias)


class SortedMoE(nn.Module):
    def __init__(self, d_model, d_ff, n_experts=10, top_k=2):
        super().__init__()
        self.n_experts, self.top_k = n_experts, top_k
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.register_buffer("correction_bias", torch.zeros(n_experts))
        self.theta = ComplexButterfly(n_experts, 5, d_model)
        self.phi = ComplexButterfly(n_experts, 2, d_ff)
        self.up = TernaryLinear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)

    def expert(self, x, e):
        h = self.up(self.theta.transpose(x, e))
        return self.down(F.gelu(self.phi(h, e)))

    def forward(self, x):
        *lead, d = x.shape
        x = x.reshape(-1, d)
        scores = self.router(x).sigmoid()
        idx = torch.topk(scores + self.correction_bias, self.top_k, dim=-1).indices
        w = scores.gather(-1, idx)
        w = w / w.sum(-1, keepdim=True)

        flat = idx.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=self.n_experts).tolist()
        chunks = x[order // self.top_k].split(counts)
        ys = torch.cat([self.expert(c, e) for e, c in enumerate(chunks) if c.shape[0]])
        y = torch.empty_like(ys)
        y[order] = ys
        y = (y.view(-1, self.top_k, d) * w.unsqueeze(-1)).sum(1)
        return y.view(*lead, d)


class Layer(nn.Module):
    def __init__(self, d_model, d_ff, heads):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.moe = SortedMoE(d_model, d_ff)

    def attend(self, x):
        B, T, D = x.shape
        q, k, v = (t.view(B, T, self.heads, -1).transpose(1, 2) for t in self.in_proj(x).chunk(3, -1))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(o.transpose(1, 2).reshape(B, T, D))

    def forward(self, x):
        x = x + self.attend(self.n1(x))
        return x + self.moe(self.n2(x))


class TrajectoryPolicy(nn.Module):
    def __init__(self, obs_dim=9, n_actions=6, horizon=12, d_model=32, d_ff=128, depth=2):
        super().__init__()
        self.embed_rtg = nn.Linear(1, d_model)
        self.embed_obs = nn.Linear(obs_dim, d_model)
        self.embed_act = nn.Embedding(n_actions, d_model)
        self.embed_time = nn.Parameter(0.2 * torch.randn(horizon, d_model))
        self.layers = nn.ModuleList(Layer(d_model, d_ff, heads=4) for _ in range(depth))
        self.norm = nn.LayerNorm(d_model)
        self.actor = nn.Linear(d_model, n_actions)
        self.critic = nn.Linear(d_model, 1)

    def forward(self, rtg, obs, act):
        B, T, _ = obs.shape
        steps = torch.stack((self.embed_rtg(rtg), self.embed_obs(obs), self.embed_act(act)), dim=2)
        x = (steps + self.embed_time[:T, None]).flatten(1, 2)
        for layer in self.layers:
            x = layer(x)
        h = self.norm(x)[:, 1::3]
        return self.actor(h), self.critic(h).squeeze(-1)


def make():
    torch.manual_seed(105)
    model = TrajectoryPolicy()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.normal_(1, 0.2)
            if getattr(m, "bias", None) is not None and m.bias.dim() == 1:
                m.bias.normal_(0, 0.1)
            if isinstance(m, SortedMoE):
                m.router.weight.normal_(0, 0.3)
                m.correction_bias.normal_(0, 0.05)
    obs, act = torch.randn(2, 10, 9), torch.randint(0, 6, (2, 10))
    rtg = torch.linspace(2.0, 0.3, 10).view(1, 10, 1) * torch.tensor([1.0, 0.6]).view(2, 1, 1)
    return model.eval(), (rtg, obs, act)
