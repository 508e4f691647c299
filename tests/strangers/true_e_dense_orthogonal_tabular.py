"""Tabular regression transformer whose channel mixing is a mixture of orthogonal conjugations of one ternary matrix.

Every butterfly is assembled as an explicit element of SO(n):   B = M_L ... M_2 M_1,   M_l = G(theta_l) P,
G = cos (x) I + sin (x) J (Kronecker), P a permutation matrix; the experts are  x -> B(phi) (S B(theta)^T x + b).
  shuffle     P interleaves the two halves, applied before the rotations (equation 4)
  handedness  G rotates by +theta; the right factor enters transposed (so its permutations run backwards), the left one as is
  depth       6 = log2(64) factors on the right, 3 on the left
  router      softmax over all 6 experts, the 3 largest kept without renormalisation, no bias
  quantiser   S: one gamma per row, ternary by the half-gamma rule (= round and clip)
  biases      one shared b between S and B(phi), hence rotated by the expert and weighted by its gate
  form        equation 3, no W_down, no nonlinearity, F = d = 40; embedded in R^64 by zero padding, compressed back to R^40
  dispatch    every B is formed for all experts, the chosen ones gathered per token, bmm
"""
import math

import torch
from torch import nn, Tensor


class OrthogonalFactor(nn.Module):
    """A family of E products of L sparse rotations, returned as dense (E, d, d) compressions of elements of SO(n)."""

    def __init__(self, count: int, depth: int, dim: int):
        super().__init__()
        self.dim = dim
        self.n = 2 ** math.ceil(math.log2(dim))
        self.angles = nn.Parameter(torch.randn(count, depth, self.n // 2) * 0.5)
        sigma = torch.arange(self.n).reshape(2, self.n // 2).T.reshape(-1)
        self.register_buffer("P", torch.eye(self.n)[sigma])
        self.register_buffer("J", torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
        self.register_buffer("I", torch.eye(2))

    def givens(self, t: Tensor) -> Tensor:
        C, S = torch.diag_embed(torch.cos(t)), torch.diag_embed(torch.sin(t))
        return torch.kron(C, self.I) + torch.kron(S, self.J)

    def full(self) -> Tensor:
        B = torch.eye(self.n, dtype=self.P.dtype, device=self.P.device).expand(self.angles.shape[0], -1, -1)
        for l in range(self.angles.shape[1]):
            B = self.givens(self.angles[:, l]) @ self.P @ B
        return B

    def forward(self) -> Tensor:
        return self.full()[:, : self.dim, : self.dim]


def ternary(W: Tensor) -> Tensor:
    gamma = W.abs().mean(dim=1, keepdim=True)
    support = W.abs() > 0.5 * (gamma + 1e-8)
    S = gamma * torch.sign(W) * support
    return W + (S - W).detach() if torch.is_grad_enabled() and W.requires_grad else S


class ConjugatedMixture(nn.Module):
    def __init__(self, dim: int, experts: int = 6, chosen: int = 3, depth_right: int = 6, depth_left: int = 3):
        super().__init__()
        self.chosen = chosen
        self.W = nn.Parameter(torch.randn(dim, dim) / math.sqrt(dim))
        self.b = nn.Parameter(0.1 * torch.randn(dim))
        self.U = OrthogonalFactor(experts, depth_left, dim)
        self.V = OrthogonalFactor(experts, depth_right, dim)
        self.R = nn.Parameter(torch.randn(experts, dim) * 0.35)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        X = x.reshape(-1, shape[-1])                              # (T, d)
        p = torch.softmax(X @ self.R.mT, dim=-1)
        p, which = p.topk(self.chosen, dim=-1)                    # (T, k)

        S, U, Vt = ternary(self.W), self.U(), self.V().mT
        j = which.reshape(-1)                                     # (T k,)
        z = X.repeat_interleave(self.chosen, dim=0).unsqueeze(-1)     # (T k, d, 1)
        z = torch.bmm(Vt[j], z)
        z = S @ z + self.b[:, None]
        z = torch.bmm(U[j], z)
        Z = z.reshape(X.shape[0], self.chosen, -1)                # (T, k, d)
        return torch.bmm(p.unsqueeze(1), Z).reshape(shape)


class BilinearAttention(nn.Module):
    """softmax(X A_h X^T) X C_h summed over heads, with A_h and C_h of rank r."""

    def __init__(self, dim: int, heads: int = 4, rank: int = 10):
        super().__init__()
        s = dim ** -0.5
        self.Aq = nn.Parameter(torch.randn(heads, dim, rank) * s)
        self.Ak = nn.Parameter(torch.randn(heads, dim, rank) * s)
        self.Cv = nn.Parameter(torch.randn(heads, dim, rank) * s)
        self.Co = nn.Parameter(torch.randn(heads, rank, dim) * (heads * rank) ** -0.5)

    def forward(self, X: Tensor) -> Tensor:
        X = X.unsqueeze(1)
        G = (X @ self.Aq) @ (X @ self.Ak).mT / math.sqrt(self.Aq.shape[-1])
        return (torch.softmax(G, dim=-1) @ (X @ self.Cv) @ self.Co).sum(dim=1)


class Layer(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.ln_a, self.ln_m = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mixture = BilinearAttention(dim), ConjugatedMixture(dim)

    def forward(self, X: Tensor) -> Tensor:
        X = X + self.attention(self.ln_a(X))
        return X + self.mixture(self.ln_m(X))


class TabularRegressor(nn.Module):
    """Numerical columns enter as x_j u_j + v_j, categorical ones through one table with offsets, plus one readout token."""

    def __init__(self, numeric: int = 9, cardinalities=(3, 7, 4), dim: int = 40, layers: int = 3, targets: int = 2):
        super().__init__()
        self.u = nn.Parameter(torch.randn(numeric, dim))
        self.v = nn.Parameter(torch.randn(numeric, dim) * 0.3)
        offsets = torch.tensor([0, *cardinalities[:-1]]).cumsum(0)
        self.register_buffer("offsets", offsets)
        self.table = nn.Embedding(sum(cardinalities), dim)
        self.readout = nn.Parameter(torch.randn(dim))
        self.layers = nn.ModuleList(Layer(dim) for _ in range(layers))
        self.ln = nn.LayerNorm(dim)
        self.fit = nn.Linear(dim, targets)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        N = numeric.unsqueeze(-1) * self.u + self.v
        C = self.table(categorical + self.offsets)
        r = self.readout.expand(numeric.shape[0], 1, -1)
        X = torch.cat((r, N, C), dim=1)
        for layer in self.layers:
            X = layer(X)
        return self.fit(self.ln(X[:, 0]))


def make():
    torch.manual_seed(40)
    net = TabularRegressor()
    for m in net.modules():
        if isinstance(m, nn.LayerNorm):
            nn.init.normal_(m.weight, 1.0, 0.15)
            nn.init.normal_(m.bias, 0.0, 0.1)
    nn.init.normal_(net.fit.bias, 0.0, 0.2)
    numeric = torch.randn(3, 9)
    categorical = torch.stack([torch.randint(0, c, (3,)) for c in (3, 7, 4)], dim=1)
    return net.eval(), (numeric, categorical)


if __name__ == "__main__":
    net, args = make()
    B = net.layers[0].mixture.V.full()
    print("orthogonality defect", float((B @ B.mT - torch.eye(B.shape[-1])).abs().max().detach()))
    print(net(*args))
