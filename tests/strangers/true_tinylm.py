"""Minimal character LM (tied head) with the linear ButterflyMoE of equation 3: y = gate * B(phi_i) W_hat B(theta_i)^T x.
Square W_hat (F = d = 32), no W_down, no activation, no bias.  Top-1 by argmax; gate = sigmoid of the winning logit.
B = L x {rotate (2j,2j+1), deinterleave}; B^T really runs backwards (un-shuffle, rotate by -angle, layers reversed).
Dispatch: none, every token gathers the angles of its own expert."""
import torch, torch.nn as nn, torch.nn.functional as F

D, E, L, V, T, H = 32, 4, 5, 48, 24, 2

def rot(x, a):
    c, s = a.cos(), a.sin()
    u, v = x[..., ::2], x[..., 1::2]
    return torch.stack((c * u - s * v, s * u + c * v), -1).flatten(-2)

def B(x, a):  # a: (..., L, D/2)
    for l in range(a.shape[-2]):
        x = rot(x, a[..., l, :])
        x = torch.cat((x[..., ::2], x[..., 1::2]), -1)
    return x

def Bt(x, a):
    for l in reversed(range(a.shape[-2])):
        x = torch.stack(x.chunk(2, -1), -1).flatten(-2)
        x = rot(x, -a[..., l, :])
    return x

def ternary(w):
    g = w.abs().mean()
    return w + (g * (w / (g + 1e-8)).round().clamp(-1, 1) - w).detach()

class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.randn(D, E) * 0.4)
        self.w = nn.Parameter(torch.randn(D, D) * 0.35)
        self.th = nn.Parameter(torch.randn(E, L, D // 2) * 0.5)
        self.ph = nn.Parameter(torch.randn(E, L, D // 2) * 0.5)

    def forward(self, x):
        r = x @ self.g
        i = r.argmax(-1)
        y = B(Bt(x, self.th[i]) @ ternary(self.w).T, self.ph[i])
        return r.gather(-1, i[..., None]).sigmoid() * y

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.RMSNorm(D, eps=1e-5), nn.RMSNorm(D, eps=1e-5)
        self.qkv, self.o = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.moe = MoE()

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, H, -1).permute(2, 0, 3, 1, 4)
        a = (q @ k.mT) * (D // H) ** -0.5
        a = a.masked_fill(torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1), float("-inf")).softmax(-1)
        x = x + self.o((a @ v).transpose(1, 2).reshape(b, t, D))
        return x + self.moe(self.n2(x))

class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.pos = nn.Embedding(V, D), nn.Embedding(T, D)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.norm = nn.RMSNorm(D, eps=1e-5)

    def forward(self, ids):
        x = self.tok(ids) + self.pos.weight[: ids.shape[1]]
        return self.norm(self.blocks(x)) @ self.tok.weight.T

def make():
    torch.manual_seed(7)
    m = LM()
    with torch.no_grad():
        for n in m.modules():
            if isinstance(n, nn.RMSNorm):
                n.weight.add_(torch.randn(D) * 0.25)
    return m.eval(), (torch.randint(0, V, (2, T)),)
