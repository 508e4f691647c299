"""LOOKALIKE.  Bare MoE layer (norm + MoE + head), dense orthogonal matrices as in "incoherence processing".

What differs: the ternary rounding is applied AFTER the rotation.  The effective float matrix of expert e is W Q(theta_e), and
that product is what gets quantised:  W_e = ternary(W Q(theta_e)),  expert = W_down Q(phi_e) gelu(W_e x).
A Butterfly MoE has ternary(W) Q(theta_e).  The rounding does not commute with Q, so each expert has its own ternary matrix and
its own gamma, and nothing ternary is shared (only the float W is); the two coincide only at zero angles.
Everything else is standard: Q = product of Givens layers (built by scatter into a zero matrix), then the deinterleave;
GELU(erf) before Q(phi); softmax -> top-2 -> renormalise; float W_down; loop over experts with a dense gate column.
"""
import torch
import torch.nn as nn


def givens_matrix(angle):
    n = 2 * angle.numel()
    even = torch.arange(0, n, 2, device=angle.device)
    odd = even + 1
    c, s = angle.cos(), angle.sin()
    flat_index = torch.cat([even * n + even, even * n + odd, odd * n + even, odd * n + odd])
    G = torch.zeros(n * n, dtype=angle.dtype, device=angle.device)
    return G.scatter(0, flat_index, torch.cat([c, -s, s, c])).view(n, n)


def butterfly_matrix(angles):
    n = 2 * angles.shape[1]
    shuffle = torch.cat([torch.arange(0, n, 2), torch.arange(1, n, 2)]).to(angles.device)
    Q = torch.eye(n, dtype=angles.dtype, device=angles.device)
    for layer in range(angles.shape[0]):
        Q = (givens_matrix(angles[layer]) @ Q)[shuffle]
    return Q


def ternary(w):
    gamma = w.abs().mean()
    return torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1) * gamma


class ButterflyMoE(nn.Module):
    def __init__(self, dim=32, hidden=64, experts=6, topk=2, layers_in=3, layers_out=2):
        super().__init__()
        self.topk = topk
        self.weight = nn.Parameter(torch.randn(hidden, dim) * 0.25)
        self.bias = nn.Parameter(torch.randn(hidden) * 0.2)
        self.down = nn.Linear(hidden, dim)
        self.router = nn.Linear(dim, experts)
        self.theta = nn.ParameterList([nn.Parameter(0.5 * torch.randn(layers_in, dim // 2)) for _ in range(experts)])
        self.phi = nn.ParameterList([nn.Parameter(0.5 * torch.randn(layers_out, hidden // 2)) for _ in range(experts)])

    def forward(self, x):
        p = self.router(x).softmax(-1)
        val, idx = p.topk(self.topk, dim=-1)
        gate = torch.zeros_like(p).scatter(-1, idx, val / val.sum(-1, keepdim=True))
        out = torch.zeros_like(x)
        for e in range(len(self.theta)):
            w_hat = ternary(self.weight @ butterfly_matrix(self.theta[e]))
            h = nn.functional.gelu(x @ w_hat.T + self.bias)
            h = h @ butterfly_matrix(self.phi[e]).T
            out = out + gate[..., e, None] * self.down(h)
        return out


class Probe(nn.Module):
    def __init__(self, dim=32, classes=7):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.moe = ButterflyMoE(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        return self.head(x + self.moe(self.norm(x)))


def make():
    torch.manual_seed(77)
    net = Probe()
    with torch.no_grad():
        net.norm.weight.uniform_(0.6, 1.5)
        net.norm.bias.normal_(0, 0.2)
        net.moe.router.weight.normal_(0, 0.3)
        net.moe.router.bias.normal_(0, 0.3)
        net.moe.down.weight.normal_(0, 0.15)
        net.moe.down.bias.normal_(0, 0.2)
    return net.eval(), (torch.randn(40, 32),)
