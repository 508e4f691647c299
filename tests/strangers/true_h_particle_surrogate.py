"""Mesh-free (SPH-like) surrogate of a 2-D flow: particles exchange messages over an edge list, node update is a butterfly MoE.

Form       ButterflyMoE equation 3, square:  y_i = B(phi_i) [ W_hat B(theta_i)^T x + b ],  F = d = 32, no GELU, no W_down.
Rotation   in the complex plane: pair (p, q) -> (p + iq) e^{i angle}. No shuffle; distance between partners 1, 2, 4, ...
           Input side is the adjoint (conjugate phases, levels in reverse), output side is forward. L_theta = 5, L_phi = 4.
Bias       b, shared by all experts, after W_hat and before B(phi): so it is rotated and weighted by the gate.
Quantiser  one gamma = mean|w| per output row; a weight survives when |w| > 0.7 gamma, value sign(w) gamma.
Router     sigmoid scores (linear with bias), top-3 of 6, not normalised.
Dispatch   dense: all experts evaluated on all particles as a leading axis, contracted with a sparse weight matrix (einsum).
"""
import math

import torch
from torch import nn

N_PARTICLES = 56
H_SMOOTH = 0.28


def wendland_c2(r, h):
    """Wendland C2 kernel in 2-D with support h."""
    q = (r / h).clamp(max=1.0)
    return 7.0 / (math.pi * h * h) * (1.0 - q) ** 4 * (1.0 + 4.0 * q)


def radius_graph(pos, h):
    dist = torch.cdist(pos, pos)
    near = (dist < h) & ~torch.eye(len(pos), dtype=torch.bool)
    dst, src = near.nonzero(as_tuple=True)
    return torch.stack((src, dst))


def givens_cascade(x, angle, adjoint=False):
    """x (E, N, d), angle (E, L, d/2). Level l couples components whose index differs in bit l."""
    n_exp, n_lev, half = angle.shape
    phase = torch.polar(torch.ones_like(angle), angle)
    levels = list(range(n_lev))
    if adjoint:
        phase = phase.conj()
        levels.reverse()
    for lev in levels:
        s = 2 ** lev
        v = x.reshape(n_exp, -1, half // s, 2, s)
        z = torch.complex(v[..., 0, :], v[..., 1, :])
        z = z * phase[:, lev].reshape(n_exp, 1, half // s, s)
        x = torch.stack((z.real, z.imag), dim=-2).reshape(n_exp, -1, 2 * half)
    return x


class Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        gamma = w.abs().mean(dim=1, keepdim=True)
        return torch.sign(w) * (w.abs() > 0.7 * gamma) * gamma

    @staticmethod
    def backward(ctx, g):
        return g


class ClosureExperts(nn.Module):
    """Mixture of closures that share one ternary operator, seen from different frames."""

    def __init__(self, d, n_experts, k, lev_theta, lev_phi):
        super().__init__()
        self.k = k
        self.A = nn.Parameter(torch.randn(d, d) / math.sqrt(d))
        self.b = nn.Parameter(0.2 * torch.randn(d))
        self.theta = nn.Parameter(0.5 * torch.randn(n_experts, lev_theta, d // 2))
        self.phi = nn.Parameter(0.5 * torch.randn(n_experts, lev_phi, d // 2))
        self.Wr = nn.Parameter(0.4 * torch.randn(n_experts, d))
        self.br = nn.Parameter(0.3 * torch.randn(n_experts))

    def weights(self, x):
        score = torch.sigmoid(torch.einsum("nd,ed->ne", x, self.Wr) + self.br)
        val, idx = torch.topk(score, self.k, dim=1)
        return torch.zeros_like(score).scatter(1, idx, val)

    def forward(self, x):
        w = self.weights(x)
        u = x.unsqueeze(0).expand(self.theta.shape[0], -1, -1)
        u = givens_cascade(u, self.theta, adjoint=True)
        u = torch.einsum("fd,end->enf", Ternary.apply(self.A), u) + self.b
        u = givens_cascade(u, self.phi)
        return torch.einsum("ne,enf->nf", w, u)


class Interaction(nn.Module):
    """Pairwise part: kernel-weighted messages, summed at the receiving particle."""

    def __init__(self, d, d_edge):
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(2 * d + d_edge, d), nn.Tanh(), nn.Linear(d, d))

    def forward(self, x, edge_attr, kernel, src, dst):
        m = self.edge(torch.cat((x[src], x[dst], edge_attr), dim=1)) * kernel[:, None]
        return torch.zeros_like(x).index_add(0, dst, m)


class Step(nn.Module):
    def __init__(self, d, **moe):
        super().__init__()
        self.n1 = nn.LayerNorm(d)
        self.n2 = nn.LayerNorm(d)
        self.interaction = Interaction(d, 3)
        self.closure = ClosureExperts(d, **moe)

    def forward(self, x, edge_attr, kernel, src, dst):
        x = x + self.interaction(self.n1(x), edge_attr, kernel, src, dst)
        return x + torch.tanh(self.closure(self.n2(x)))


class ParticleSurrogate(nn.Module):
    """(positions, velocities, edges) -> accelerations and pressure of every particle."""

    def __init__(self, d=32, n_steps=3, n_experts=6, k=3, lev_theta=5, lev_phi=4, h=H_SMOOTH):
        super().__init__()
        self.h = h
        self.lift = nn.Linear(5, d)
        self.steps = nn.ModuleList(
            Step(d, n_experts=n_experts, k=k, lev_theta=lev_theta, lev_phi=lev_phi) for _ in range(n_steps)
        )
        self.readout = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d), nn.SiLU(), nn.Linear(d, 3))

    def forward(self, pos, vel, edges):
        src, dst = edges[0], edges[1]
        rel = (pos[src] - pos[dst]) / self.h
        r = torch.linalg.vector_norm(rel, dim=1)
        kernel = wendland_c2(r * self.h, self.h)
        density = torch.zeros_like(pos[:, 0]).index_add(0, dst, kernel)
        density = (density + wendland_c2(torch.zeros_like(density), self.h)) / N_PARTICLES
        kernel = kernel / (N_PARTICLES * density[dst])

        edge_attr = torch.cat((rel, r[:, None]), dim=1)
        speed2 = (vel * vel).sum(dim=1, keepdim=True)
        wall = torch.minimum(pos, 1.0 - pos).amin(dim=1, keepdim=True)
        x = self.lift(torch.cat((vel, speed2, wall, density[:, None]), dim=1))
        for step in self.steps:
            x = step(x, edge_attr, kernel, src, dst)
        return self.readout(x)


def taylor_green(pos):
    x, y = 2 * math.pi * pos[:, 0], 2 * math.pi * pos[:, 1]
    return torch.stack((torch.cos(x) * torch.sin(y), -torch.sin(x) * torch.cos(y)), dim=1)


def make():
    torch.manual_seed(10)
    net = ParticleSurrogate()
    for mod in net.modules():
        if isinstance(mod, nn.LayerNorm):
            nn.init.uniform_(mod.weight, 0.6, 1.4)
            nn.init.normal_(mod.bias, std=0.2)
        elif isinstance(mod, nn.Linear):
            nn.init.normal_(mod.bias, std=0.2)
    nn.init.normal_(net.lift.weight, std=1.5)
    nn.init.normal_(net.lift.bias, std=0.1)
    pos = torch.rand(N_PARTICLES, 2)
    vel = taylor_green(pos) + 0.1 * torch.randn(N_PARTICLES, 2)
    return net.eval(), (pos, vel, radius_graph(pos, H_SMOOTH))
