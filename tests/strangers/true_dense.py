"""Butterfly MoE, linear-operator point of view (equation 3), feature-sequence encoder.

Everything is an explicit matrix.  For each expert the orthogonal operators
    B(a) = S G(a_L) ... S G(a_1),   G = blockdiag of 2x2 rotations, S = perfect-shuffle permutation matrix (deinterleave)
are formed densely in forward; widths that are no power of two (24 -> 32, 40 -> 64) are handled by
the injection J = I[:, :d], i.e. J^T B J.  Expert: gelu(B(phi) W_hat B(theta)^T x), mapped back by a float W_down,
shared and applied once to the gated sum.  Gates: softmax over all experts, then top-2 kept as is (scattered to a dense
T x E matrix, every expert evaluated).  Per-tensor gamma.
"""
import functools
import math

import torch
from torch import nn


def next_pow2(n):
    return 1 << (n - 1).bit_length()


def shuffle_matrix(n):
    """S x = (x_0, x_2, ..., x_1, x_3, ...)"""
    perm = torch.cat([torch.arange(0, n, 2), torch.arange(1, n, 2)])
    return torch.eye(n)[perm]


def givens(angles):
    c, s = angles.cos(), angles.sin()
    R = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)  # (n/2, 2, 2)
    return torch.block_diag(*R)


def butterfly(angles, S):
    """angles (L, n/2) -> dense n x n orthogonal matrix"""
    factors = [S @ givens(a) for a in angles]
    return functools.reduce(lambda Q, A: A @ Q, factors)


class ButterflyMixture(nn.Module):
    def __init__(self, d, m, E, k, L_in, L_out):
        super().__init__()
        self.d, self.m, self.E, self.k = d, m, E, k
        nd, nm = next_pow2(d), next_pow2(m)
        self.W = nn.Parameter(torch.randn(m, d) / math.sqrt(d))
        self.theta = nn.Parameter(0.01 * torch.randn(E, L_in, nd // 2))
        self.phi = nn.Parameter(0.01 * torch.randn(E, L_out, nm // 2))
        self.Wg = nn.Parameter(torch.randn(E, d) / math.sqrt(d))
        self.Wd = nn.Parameter(torch.randn(d, m) / math.sqrt(m))
        self.b = nn.Parameter(torch.zeros(d))
        self.register_buffer("S_d", shuffle_matrix(nd))
        self.register_buffer("S_m", shuffle_matrix(nm))
        self.register_buffer("J_d", torch.eye(nd, d))
        self.register_buffer("J_m", torch.eye(nm, m))

    def W_hat(self):
        gamma = self.W.abs().mean()
        Q = gamma * torch.clamp(torch.round(self.W / (gamma + 1e-8)), -1, 1)
        return self.W + (Q - self.W).detach() if self.training else Q

    def operators(self):
        """stack of the E dense m x d matrices  J^T B(phi_i) J  W_hat  J^T B(theta_i)^T J"""
        W = self.W_hat()
        ops = []
        for i in range(self.E):
            U = self.J_m.T @ butterfly(self.phi[i], self.S_m) @ self.J_m
            V = self.J_d.T @ butterfly(self.theta[i], self.S_d).T @ self.J_d
            ops.append(U @ W @ V)
        return torch.stack(ops)

    def forward(self, x):
        A = self.operators()
        p = torch.softmax(x @ self.Wg.T, dim=-1)
        val, idx = p.topk(self.k, dim=-1)
        G = torch.zeros_like(p).scatter(-1, idx, val)
        H = nn.functional.gelu(torch.einsum("emd,btd->btem", A, x))
        return torch.einsum("bte,btem->btm", G, H) @ self.Wd.T + self.b


class Encoder(nn.Module):
    def __init__(self, n_features=12, d=24, m=40, E=5, k=2, depth=2, n_out=7):
        super().__init__()
        self.lift = nn.Linear(n_features, d)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(depth))
        self.mixtures = nn.ModuleList(ButterflyMixture(d, m, E, k, L_in=4, L_out=3) for _ in range(depth))
        self.final = nn.LayerNorm(d)
        self.head = nn.Linear(d, n_out)

    def forward(self, u):
        x = self.lift(u)
        for norm, mix in zip(self.norms, self.mixtures):
            x = x + mix(norm(x))
        return self.head(self.final(x))


def make():
    torch.manual_seed(31)
    net = Encoder()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith(("theta", "phi")):
                p.normal_(0, 0.5)
            elif name.endswith("Wg"):
                p.mul_(2.0)
            elif name.endswith(("bias", ".b")):
                p.normal_(0, 0.1)
            elif p.ndim == 1:
                p.add_(0.2 * torch.randn_like(p))
    net.eval()
    return net, (torch.randn(2, 16, 12),)
