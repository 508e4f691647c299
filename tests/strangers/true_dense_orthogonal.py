"""Encoder with orthogonally-equivalent experts, written with explicit matrices.

Every expert is Q(phi_e) W_hat Q(theta_e)^T (eq. 3), followed by an exact GELU and the common float W_down; so the
activation comes after the output rotation.  Q is assembled in forward as a dense product of layers G(angles_l) P, with
G = block_diag of 2x2 Givens blocks and P a perfect-shuffle matrix (interleave), i.e. shuffle first, then rotate (eq. 4).
Widths 24 and 40 are embedded in R^32 and R^64: the compression J^T Q J is just the leading principal block.
Per-row gamma.  Router: softmax over all experts, the two largest kept, not renormalised; all experts are evaluated
(einsum) and mixed with the sparse gate matrix before W_down, whose bias is added once.
"""
import functools
import math

import torch
from torch import nn


def perfect_shuffle(n):
    """Permutation matrix P with (Px)[2j] = x[j], (Px)[2j+1] = x[j + n/2]."""
    P = torch.zeros(n, n)
    for j in range(n // 2):
        P[2 * j, j] = 1.0
        P[2 * j + 1, j + n // 2] = 1.0
    return P


def givens_sweep(alpha):
    """Block-diagonal matrix of the n/2 plane rotations R(alpha_j)."""
    c, s = torch.cos(alpha), torch.sin(alpha)
    R = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)  # n/2 x 2 x 2
    return torch.block_diag(*R)


def orthogonal_from_angles(angles, P):
    """Q = G_L P ... G_2 P G_1 P, angles: L x n/2."""
    factors = [givens_sweep(a) @ P for a in angles]
    return functools.reduce(lambda acc, factor: factor @ acc, factors)


def ternary(W):
    gamma = W.abs().mean(dim=1, keepdim=True)
    T = torch.clip(torch.round(W / (gamma + 1e-8)), -1.0, 1.0) * gamma
    return W + (T - W).detach()


def next_pow2(n):
    return 1 << math.ceil(math.log2(n))


class OrthogonalOrbitMoE(nn.Module):
    """x -> W_down sum_e g_e(x) gelu( Q(phi_e) (W_hat Q(theta_e)^T x + b) ) + b_down"""

    def __init__(self, d, F, n_experts, k, depth_in, depth_out):
        super().__init__()
        self.d, self.F, self.k = d, F, k
        n, m = next_pow2(d), next_pow2(F)
        self.W = nn.Parameter(torch.randn(F, d) * 1.2 / math.sqrt(d))
        self.b = nn.Parameter(torch.randn(F) * 0.2)
        self.W_down = nn.Parameter(torch.randn(d, F) / math.sqrt(F))
        self.b_down = nn.Parameter(torch.randn(d) * 0.2)
        self.W_gate = nn.Parameter(torch.randn(n_experts, d) * 1.5 / math.sqrt(d))
        self.theta = nn.Parameter(torch.randn(n_experts, depth_in, n // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(n_experts, depth_out, m // 2) * 0.5)
        self.register_buffer("P_in", perfect_shuffle(n))
        self.register_buffer("P_out", perfect_shuffle(m))

    def forward(self, x):
        d, F = self.d, self.F
        U = torch.stack([orthogonal_from_angles(t, self.P_in) for t in self.theta])[:, :d, :d]
        V = torch.stack([orthogonal_from_angles(p, self.P_out) for p in self.phi])[:, :F, :F]
        W_hat = ternary(self.W)

        prob = torch.softmax(torch.einsum("btd,ed->bte", x, self.W_gate), dim=-1)
        top, where = prob.topk(self.k, dim=-1)
        G = torch.zeros_like(prob).scatter(-1, where, top)

        z = torch.einsum("eij,bti->ebtj", U, x)                  # U_e^T x
        z = torch.einsum("fj,ebtj->ebtf", W_hat, z) + self.b
        z = torch.einsum("egf,ebtf->ebtg", V, z)                 # V_e z
        z = nn.functional.gelu(z)
        return torch.einsum("bte,ebtf,df->btd", G, z, self.W_down) + self.b_down


class SelfAttention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        p = d // heads
        self.Wq = nn.Parameter(torch.randn(heads, p, d) / math.sqrt(d))
        self.Wk = nn.Parameter(torch.randn(heads, p, d) / math.sqrt(d))
        self.Wv = nn.Parameter(torch.randn(heads, p, d) / math.sqrt(d))
        self.Wo = nn.Parameter(torch.randn(heads, d, p) / math.sqrt(d))

    def forward(self, x):
        q = torch.einsum("btd,hpd->bhtp", x, self.Wq)
        k = torch.einsum("btd,hpd->bhtp", x, self.Wk)
        v = torch.einsum("btd,hpd->bhtp", x, self.Wv)
        A = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        return torch.einsum("bhtp,hdp->btd", A @ v, self.Wo)


class Encoder(nn.Module):
    def __init__(self, d_obs=12, d=24, F=40, n_experts=5, k=2, n_blocks=2, n_out=6):
        super().__init__()
        self.lift = nn.Linear(d_obs, d)
        self.attn = nn.ModuleList([SelfAttention(d, 3) for _ in range(n_blocks)])
        self.moe = nn.ModuleList([OrthogonalOrbitMoE(d, F, n_experts, k, 3, 4) for _ in range(n_blocks)])
        self.norms = nn.ModuleList([nn.LayerNorm(d) for _ in range(2 * n_blocks + 1)])
        self.readout = nn.Linear(d, n_out)
        for ln in self.norms:
            nn.init.normal_(ln.weight, 1.0, 0.25)
            nn.init.normal_(ln.bias, 0.0, 0.15)

    def forward(self, u):
        x = self.lift(u)
        for i, (attn, moe) in enumerate(zip(self.attn, self.moe)):
            x = x + attn(self.norms[2 * i](x))
            x = x + moe(self.norms[2 * i + 1](x))
        return self.readout(self.norms[-1](x))


def make():
    torch.manual_seed(31)
    model = Encoder().eval()
    return model, (torch.randn(2, 18, 12),)
