"""Neural operator for a 1-D PDE: spectral convolution (rfft) followed by a ButterflyMoE channel mixer; returns (field, z-loss).

form        ButterflyMoE equation 3, no W_down: B(phi) . (W_hat . B(theta)^T x + b), d = F = 64, no activation inside
shuffle     interleave the two halves, index map composed of two bit reversals; applied before each rotation (eq. 4)
handedness  B(theta) transposed on the way in, B(phi) plain on the way out
L           4 in, 6 out (6 = log2 d)
router      linear with bias, raw top-3 logits of 7 as gates
quantiser   round(W / gamma) clipped, one gamma = mean |W| for the tensor
biases      one shared vector right behind W_hat
dispatch    angle tables gathered per (token, slot): theta[idx] -> [T, k, L, n/2] -> blocks [T, k, L, n/2, 2, 2] (built in float64,
            cast to the working type), batched 2x2 products, einsum with the gates over k
"""
import math

import torch
from torch import nn


def bit_reversal(m):
    """Index table of length 2**m, built by m successive doublings."""
    r = torch.zeros(1, dtype=torch.long)
    for _ in range(m):
        r = torch.cat((2 * r, 2 * r + 1))
    return r


def perfect_shuffle(n):
    """p with (x[p])[2j] = x[j], (x[p])[2j+1] = x[j + n/2].

    Rotation of the index bits by one place = reversal of all m bits, then of the m-1 low ones.
    """
    m = int(math.log2(n))
    assert 1 << m == n
    low = bit_reversal(m - 1)
    return torch.cat((low, low + n // 2))[bit_reversal(m)]


class GivensCascade(nn.Module):
    """x -> G_L S ... G_2 S G_1 S x with S the perfect shuffle and G_l block diagonal, 2x2 plane rotations."""

    def __init__(self, n, depth, members):
        super().__init__()
        self.n, self.depth = n, depth
        self.angles = nn.Parameter(torch.randn(members, depth, n // 2) * 0.5)
        p = perfect_shuffle(n)
        self.register_buffer("perm", p)
        self.register_buffer("perm_inv", torch.argsort(p))

    def blocks(self, idx, dtype):
        a = self.angles.to(torch.float64)[idx]
        c, s = torch.cos(a), torch.sin(a)
        g = torch.stack((torch.stack((c, -s), -1), torch.stack((s, c), -1)), -2)
        return g.to(dtype)

    def forward(self, x, idx):
        g = self.blocks(idx, x.dtype)
        for l in range(self.depth):
            x = x[..., self.perm]
            x = torch.matmul(g[:, :, l], x.unflatten(-1, (-1, 2)).unsqueeze(-1)).squeeze(-1).flatten(-2)
        return x

    def adjoint(self, x, idx):
        g = self.blocks(idx, x.dtype)
        for l in reversed(range(self.depth)):
            x = torch.einsum("tkpji,tkpj->tkpi", g[:, :, l], x.unflatten(-1, (-1, 2))).flatten(-2)
            x = x[..., self.perm_inv]
        return x


class TernaryMatrix(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.W = nn.Parameter(torch.randn(n, n) / math.sqrt(n))

    def forward(self):
        gamma = self.W.abs().mean()
        W_hat = gamma * torch.clamp(torch.round(self.W / (gamma + 1e-8)), -1.0, 1.0)
        if not self.training:
            return W_hat
        return self.W + (W_hat - self.W).detach()


class ButterflyMixture(nn.Module):
    def __init__(self, n, members=7, k=3, depth_in=4, depth_out=6):
        super().__init__()
        self.k = k
        self.gate = nn.Linear(n, members)
        self.theta = GivensCascade(n, depth_in, members)
        self.phi = GivensCascade(n, depth_out, members)
        self.substrate = TernaryMatrix(n)
        self.b = nn.Parameter(torch.randn(n) * 0.2)

    def forward(self, u):
        shape = u.shape
        x = u.reshape(-1, shape[-1])
        logits = self.gate(x)
        g, idx = torch.topk(logits, self.k, dim=-1)
        z = self.theta.adjoint(x.unsqueeze(1).expand(-1, self.k, -1), idx)
        z = torch.einsum("mn,tkn->tkm", self.substrate(), z) + self.b
        y = torch.einsum("tk,tkm->tm", g, self.phi(z, idx))
        return y.reshape(shape), torch.logsumexp(logits, dim=-1).square().mean()


class SpectralConv1d(nn.Module):
    """Truncated Fourier multiplier; the weights are kept as real pairs."""

    def __init__(self, n, modes):
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(modes, n, n, 2) / n)

    def forward(self, u):
        u_hat = torch.fft.rfft(u, dim=1)
        w = torch.view_as_complex(self.weight)
        low = torch.einsum("bmi,mio->bmo", u_hat[:, : self.modes], w)
        out = torch.zeros_like(u_hat)
        out[:, : self.modes] = low
        return torch.fft.irfft(out, n=u.shape[1], dim=1)


class OperatorLayer(nn.Module):
    def __init__(self, n, modes):
        super().__init__()
        self.spectral = SpectralConv1d(n, modes)
        self.local = nn.Linear(n, n)
        self.norm = nn.LayerNorm(n)
        self.mix = ButterflyMixture(n)

    def forward(self, u):
        u = u + torch.tanh(self.spectral(u) + self.local(u))
        v, z = self.mix(self.norm(u))
        return u + 0.5 * v, z


class ButterflyOperator(nn.Module):
    def __init__(self, n=64, modes=6, layers=3):
        super().__init__()
        self.lift = nn.Linear(2, n)
        self.layers = nn.ModuleList([OperatorLayer(n, modes) for _ in range(layers)])
        self.project = nn.Sequential(nn.Linear(n, 32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, u0):
        B, N = u0.shape
        grid = torch.linspace(0, 1, N, device=u0.device, dtype=u0.dtype).expand(B, N)
        u = self.lift(torch.stack((u0, grid), dim=-1))
        z_loss = u.new_zeros(())
        for layer in self.layers:
            u, z = layer(u)
            z_loss = z_loss + z
        return u0 + self.project(u).squeeze(-1), z_loss / len(self.layers)


def make():
    torch.manual_seed(314)
    model = ButterflyOperator()
    with torch.no_grad():
        for layer in model.layers:
            layer.norm.weight.normal_(1.0, 0.2)
            layer.norm.bias.normal_(0.0, 0.2)
            layer.mix.gate.weight.normal_(0.0, 0.1)
            layer.mix.gate.bias.normal_(0.0, 0.1)
    s = torch.linspace(0, 2 * math.pi, 25)[:-1]
    coeff = torch.randn(3, 4, 2)
    modes = torch.stack([torch.stack((torch.sin(j * s), torch.cos(j * s))) for j in range(1, 5)])
    u0 = torch.einsum("bjc,jcn->bn", coeff, modes)
    return model.eval(), (u0,)
