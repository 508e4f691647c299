"""Entity-set policy/value network (multi-particle control) whose feed-forwards are orbits of one ternary operator.

form       equation (3) followed by the shared W_down: W_down ( sum gate_i B(phi_i) . W_hat . B(theta_i)^T x ) + b, no activation
rotation   dense: every layer is assembled as an n x n matrix P @ G(angle), the layers are multiplied up in double precision, and
           the operator B(phi) W_hat B(theta)^T of every expert is formed explicitly in forward
shuffle    deinterleave, after the rotation, as a permutation matrix P
L          4 on the 16-wide side, 5 on the 32-wide side
router     softmax over all, top-1, gate = its probability
quantiser  round/clip, gamma over the tensor
biases     one after W_down, added once
dispatch   operators gathered by the chosen expert and applied with bmm
"""
import math

import torch
from torch import nn
from torch.nn import functional as F


def perfect_shuffle_matrix(n):
    P = torch.zeros(n, n, dtype=torch.float64)
    order = torch.cat((torch.arange(0, n, 2), torch.arange(1, n, 2)))
    P[torch.arange(n), order] = 1.0
    return P


def givens_block_diagonal(alpha):
    """alpha (..., n/2) -> (..., n, n) with 2x2 rotations on the diagonal."""
    n = 2 * alpha.shape[-1]
    j = torch.arange(0, n, 2, device=alpha.device)
    G = alpha.new_zeros(*alpha.shape[:-1], n, n)
    G[..., j, j] = torch.cos(alpha)
    G[..., j, j + 1] = -torch.sin(alpha)
    G[..., j + 1, j] = torch.sin(alpha)
    G[..., j + 1, j + 1] = torch.cos(alpha)
    return G


def orthogonal_from_angles(alpha, P):
    """alpha (E, L, n/2) -> (E, n, n): product of the L layers, the first layer rightmost."""
    layers = P @ givens_block_diagonal(alpha)
    Q = layers[:, 0]
    for ell in range(1, layers.shape[1]):
        Q = layers[:, ell] @ Q
    return Q


class OrbitFeedForward(nn.Module):
    def __init__(self, d, f, n_experts):
        super().__init__()
        self.W = nn.Parameter(torch.randn(f, d) / math.sqrt(d))
        self.theta = nn.Parameter(0.5 * torch.randn(n_experts, int(math.log2(d)), d // 2))
        self.phi = nn.Parameter(0.5 * torch.randn(n_experts, int(math.log2(f)), f // 2))
        self.router = nn.Linear(d, n_experts)
        self.down = nn.Linear(f, d)
        self.register_buffer("P_in", perfect_shuffle_matrix(d), persistent=False)
        self.register_buffer("P_out", perfect_shuffle_matrix(f), persistent=False)

    def operators(self):
        gamma = self.W.abs().mean()
        T = torch.clamp(torch.round(self.W / (gamma + 1e-8)), -1.0, 1.0) * gamma
        T = self.W + (T - self.W).detach()
        U = orthogonal_from_angles(self.phi.double(), self.P_out)
        V = orthogonal_from_angles(self.theta.double(), self.P_in)
        return (U @ T.double() @ V.mT).to(self.W.dtype)

    def forward(self, x):
        u = x.reshape(-1, x.shape[-1])
        prob, which = F.softmax(self.router(u), dim=-1).max(dim=-1)
        A = self.operators()[which]
        v = torch.bmm(A, u.unsqueeze(-1)).squeeze(-1)
        return self.down(prob.unsqueeze(-1) * v).reshape(x.shape)


class InteractionBlock(nn.Module):
    def __init__(self, d, f, heads, n_experts):
        super().__init__()
        self.pre = nn.LayerNorm(d)
        self.inter = nn.MultiheadAttention(d, heads, batch_first=True)
        self.mid = nn.LayerNorm(d)
        self.ff = OrbitFeedForward(d, f, n_experts)

    def forward(self, x, bias):
        z = self.pre(x)
        x = x + self.inter(z, z, z, attn_mask=bias, need_weights=False)[0]
        return x + self.ff(self.mid(x))


class ParticlePolicy(nn.Module):
    def __init__(self, obs=6, d=16, f=32, heads=2, n_experts=3, depth=3, act=2):
        super().__init__()
        self.heads = heads
        self.encode = nn.Sequential(nn.Linear(obs, 24), nn.Tanh(), nn.Linear(24, d))
        self.blocks = nn.ModuleList(InteractionBlock(d, f, heads, n_experts) for _ in range(depth))
        self.final = nn.LayerNorm(d)
        self.mean = nn.Linear(d, act)
        self.log_std = nn.Parameter(torch.zeros(act))
        self.value = nn.Linear(d, 1)

    def forward(self, obs):
        """(B, N, 6) positions, velocities, goal -> (B, N, 2*act + 1)"""
        pos = obs[..., :2]
        r2 = (pos.unsqueeze(2) - pos.unsqueeze(1)).square().sum(-1)
        bias = (-0.5 * r2).repeat_interleave(self.heads, dim=0)
        h = self.encode(obs)
        for block in self.blocks:
            h = block(h, bias)
        h = self.final(h)
        v = self.value(h).mean(dim=1, keepdim=True).expand(-1, h.shape[1], -1)
        return torch.cat((torch.tanh(self.mean(h)), self.log_std.expand_as(self.mean(h)), v), dim=-1)


def make():
    torch.manual_seed(178)
    net = ParticlePolicy()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "bias" in name or name == "log_std":
                p.copy_(0.2 * torch.randn_like(p))
            elif name.split(".")[-2] in ("pre", "mid", "final"):
                p.copy_(1 + 0.25 * torch.randn_like(p))
            elif "router.weight" in name:
                p.copy_(0.9 * torch.randn_like(p))
    return net.eval(), (torch.randn(3, 14, 6),)
