"""Recurrent actor-critic for a partially observed control task. One Butterfly-MoE block sits in front of the GRU cell and
a second one inside the recurrence; both are called once per environment step in a Python loop.

  rotation    complex numbers: a channel pair is re + i*im, a Givens rotation is a multiplication by exp(i*angle)
  shuffle     none; FFT wiring, layer l pairs channels at distance 2^l (1, 2, 4, ...)
  handedness  B(theta) going in, B(phi)^T going out; L_in = 6 (= log2 d), L_out = 3
  width       d = 64, F = d (square substrate, no W_down)
  router      raw logits of the top-2 as gates (Algorithm 2 as printed), E = 5, linear router with bias
  quantiser   TWN-like threshold, sign(w) where |w| > 0.7 mean|w|, times mean|w| of the whole tensor, straight-through
  biases      one output bias per block, added once to the mixture
  form        sum_i g_i B(phi_i)^T W_hat B(theta_i) x + b (no activation inside)
  dispatch    angle tables gathered by expert index, [envs, k, L, d/2]; the k copies run together
"""
from collections import namedtuple

import torch
from torch import nn

StepOut = namedtuple("StepOut", "logits value")


def ternarize(w, delta=0.7):
    m = w.abs().mean()
    t = torch.where(w.abs() > delta * m, w.sign() * m, torch.zeros_like(w))
    return w + (t - w).detach()


def butterfly(x, angles):
    """x [..., d], angles [..., L, d/2]; leading shapes broadcast."""
    d = x.shape[-1]
    for l in range(angles.shape[-2]):
        s = 1 << l
        x = x.reshape(*x.shape[:-1], d // (2 * s), 2, s)
        a = angles[..., l, :].reshape(*angles.shape[:-2], d // (2 * s), s)
        z = torch.complex(x[..., 0, :], x[..., 1, :]) * torch.polar(torch.ones_like(a), a)
        x = torch.stack((z.real, z.imag), dim=-2).flatten(-3)
    return x


def butterfly_t(x, angles):
    d = x.shape[-1]
    for l in reversed(range(angles.shape[-2])):
        s = 1 << l
        x = x.reshape(*x.shape[:-1], d // (2 * s), 2, s)
        a = angles[..., l, :].reshape(*angles.shape[:-2], d // (2 * s), s)
        z = torch.complex(x[..., 0, :], x[..., 1, :]) * torch.polar(torch.ones_like(a), a).conj()
        x = torch.stack((z.real, z.imag), dim=-2).flatten(-3)
    return x


class OrbitMoE(nn.Module):
    def __init__(self, dim, n_experts, k, l_in, l_out):
        super().__init__()
        self.k = k
        self.router = nn.Linear(dim, n_experts)
        self.w = nn.Parameter(torch.empty(dim, dim))
        self.theta = nn.Parameter(torch.empty(n_experts, l_in, dim // 2))
        self.phi = nn.Parameter(torch.empty(n_experts, l_out, dim // 2))
        self.bias = nn.Parameter(torch.empty(dim))

    def forward(self, x):  # x [envs, dim]
        gates, idx = self.router(x).topk(self.k, dim=-1)
        h = butterfly(x.unsqueeze(1).expand(-1, self.k, -1), self.theta[idx])
        h = h @ ternarize(self.w).t()
        h = butterfly_t(h, self.phi[idx])
        return (gates.unsqueeze(-1) * h).sum(1) + self.bias


class Torso(nn.Module):
    """Small observation encoder: proprioception and a 5x5 egocentric grid, concatenated."""

    def __init__(self, proprio, dim):
        super().__init__()
        self.proprio = proprio
        self.conv = nn.Conv2d(1, 8, 3)
        self.fc_grid = nn.Linear(8 * 9, dim)
        self.fc_prop = nn.Linear(proprio, dim)
        self.ln = nn.LayerNorm(dim)

    def forward(self, obs):
        prop, grid = obs.split([self.proprio, 25], dim=-1)
        g = torch.relu(self.conv(grid.reshape(-1, 1, 5, 5))).flatten(1)
        g = self.fc_grid(g).view(*obs.shape[:-1], -1)
        return torch.tanh(self.ln(g + self.fc_prop(prop)))


class RecurrentMoEPolicy(nn.Module):
    def __init__(self, proprio=9, dim=64, n_actions=7, n_experts=5, k=2):
        super().__init__()
        self.dim = dim
        self.torso = Torso(proprio, dim)
        self.action_emb = nn.Embedding(n_actions, dim)
        self.pre_norm = nn.LayerNorm(dim)
        self.pre_moe = OrbitMoE(dim, n_experts, k, l_in=6, l_out=3)
        self.cell = nn.GRUCell(dim, dim)
        self.core_norm = nn.LayerNorm(dim)
        self.core_moe = OrbitMoE(dim, n_experts, k, l_in=6, l_out=3)
        self.pi = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, n_actions))
        self.v = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 1))

    def initial_state(self, n_envs, like):
        return like.new_zeros(n_envs, self.dim)

    def step(self, feat, last_action, done, h):
        h = h * (1.0 - done).unsqueeze(-1)
        x = feat + self.action_emb(last_action)
        x = x + self.pre_moe(self.pre_norm(x))
        h = self.cell(x, h)
        h = h + self.core_moe(self.core_norm(h))
        return h, StepOut(self.pi(h), self.v(h).squeeze(-1))

    def forward(self, obs, last_action, done):
        """obs [n_envs, steps, ...], done marks the first step of an episode."""
        n_envs, steps = obs.shape[:2]
        feats = self.torso(obs)
        h = self.initial_state(n_envs, feats)
        logits, values = [], []
        for t in range(steps):
            h, out = self.step(feats[:, t], last_action[:, t], done[:, t], h)
            logits.append(out.logits)
            values.append(out.value)
        return torch.stack(logits, 1), torch.stack(values, 1)


def make():
    torch.manual_seed(31)
    net = RecurrentMoEPolicy()
    with torch.no_grad():
        for name, p in net.named_parameters():
            leaf = name.split(".")[-1]
            if leaf in ("theta", "phi"):
                p.normal_(0, 0.5)
            elif leaf == "bias" or leaf.startswith("bias_"):
                p.normal_(0, 0.1)
            elif "norm" in name or ".ln." in name:
                p.normal_(1, 0.2)
            elif leaf == "w":
                p.normal_(0, 0.08)
            elif "router" in name:
                p.normal_(0, 0.1)
            elif p.dim() > 1:
                p.normal_(0, p[0].numel() ** -0.5)
    obs = torch.randn(3, 14, 9 + 25)
    act = torch.randint(0, 7, (3, 14))
    done = torch.zeros(3, 14)
    done[:, 0] = 1
    done[1, 6] = 1
    return net.eval(), (obs, act, done)
