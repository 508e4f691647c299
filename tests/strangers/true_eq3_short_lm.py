"""Butterfly MoE language model in one short file.

Linear form (eq. 3): expert(x) = B(phi) W_hat B(theta)^T x with F = d, so no W_down and no activation. B is 4 layers of
rotate + interleave; B^T undoes it exactly. Top-1 argmax routing with a sigmoid gate. All experts are evaluated densely
(einsum-style broadcasting) and the winner is picked with a one-hot. Detach-trick ternary weights. Tied head.
"""
import torch, torch.nn as nn, torch.nn.functional as F

V, T, D, E, L, H, N = 61, 32, 32, 4, 4, 2, 2  # vocab, context, width, experts, butterfly layers, heads, blocks

def ternary(w):
    g = w.abs().mean()
    return w + (g * (w / (g + 1e-8)).round().clamp(-1, 1) - w).detach()

def rot(x, a):  # x (..., D), a (..., D/2)
    p, q = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = a.cos(), a.sin()
    return torch.stack([c * p - s * q, s * p + c * q], -1).flatten(-2)

def B(x, a):  # a (E, L, D/2): rotate, then riffle the two halves together
    for l in range(L):
        x = rot(x, a[:, l]).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return x

def Bt(x, a):
    for l in reversed(range(L)):
        x = rot(x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2), -a[:, l])
    return x

class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(D, D) * D ** -0.5)
        self.theta = nn.Parameter(torch.randn(E, L, D // 2) * 0.7)
        self.phi = nn.Parameter(torch.randn(E, L, D // 2) * 0.7)
        self.gate = nn.Linear(D, E)

    def forward(self, x):
        z = self.gate(x)
        g = F.one_hot(z.argmax(-1), E) * z.sigmoid()
        y = B(Bt(x.unsqueeze(-2), self.theta) @ ternary(self.w).T, self.phi)  # (b, t, E, D)
        return (g.unsqueeze(-1) * y).sum(-2)

class Attn(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (H, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        a = (q @ k.transpose(-1, -2)) * (D // H) ** -0.5
        a = a.masked_fill(torch.ones_like(a[0, 0]).triu(1).bool(), float("-inf")).softmax(-1)
        return self.o((a @ v).transpose(1, 2).flatten(2))

class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.pos = nn.Embedding(V, D), nn.Embedding(T, D)
        self.n1 = nn.ModuleList(nn.LayerNorm(D) for _ in range(N))
        self.n2 = nn.ModuleList(nn.LayerNorm(D) for _ in range(N))
        self.at, self.ff = nn.ModuleList(Attn() for _ in range(N)), nn.ModuleList(MoE() for _ in range(N))
        self.nf = nn.LayerNorm(D)

    def forward(self, i):
        x = self.tok(i) + self.pos.weight[: i.shape[1]]
        for n1, at, n2, ff in zip(self.n1, self.at, self.n2, self.ff):
            x = x + at(n1(x))
            x = x + ff(n2(x))
        return self.nf(x) @ self.tok.weight.T

def make():
    torch.manual_seed(0)
    m = LM()
    for n, p in m.named_parameters():
        if n.startswith("n"): p.data += 0.2 * torch.randn_like(p)
        if "gate" in n: p.data *= 3
    return m.eval(), (torch.randint(V, (2, 24)),)
