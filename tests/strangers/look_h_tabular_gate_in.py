"""FT-Transformer for tabular competitions (numeric + categorical columns, CLS token), feed-forward = "butterfly experts".

Form       W_down . B(phi) . GELU( W_hat . B(theta) (g x) + b ) summed over the chosen experts; erf GELU, W_down float with bias added once.
Rotation   pairs (2j, 2j+1); deinterleave shuffle before each rotation; forward on both sides; L_in = 4, L_out = 6.
Width      d = 24 padded to 32, F = 48 padded to 64, stripped once at the end.
Quantiser  round_clip, gamma = mean|W| of the tensor. Router: softmax over all 6, top-2, renormalised.
Dispatch   loop over the k slots, angle tables gathered per token by expert index (theta[idx]).
NOT the papers' layer: the gate multiplies the expert's input (as a sample weight would), not its output. GELU and the bias come
after it, so expert(g x) is not g expert(x).
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

CFG = dict(
    n_num=9,
    cat_cards=[4, 7, 12, 3, 25],
    d=24,
    d_ff=48,
    n_blocks=3,
    n_heads=3,
    n_experts=6,
    k=2,
    l_in=4,
    l_out=6,
    n_freq=8,
    n_targets=3,
)


def butterfly(x, ang):
    """x: (n, w), ang: (n, layers, half) -- every row has its own angles"""
    w = x.size(1)
    half = ang.size(2)
    x = F.pad(x, [0, 2 * half - w])
    c, s = torch.cos(ang), torch.sin(ang)
    for i in range(ang.size(1)):
        x = torch.cat([x[:, 0::2], x[:, 1::2]], dim=1)
        p = x.view(-1, half, 2)
        p0, p1 = p[:, :, 0], p[:, :, 1]
        x = torch.stack([c[:, i] * p0 - s[:, i] * p1, s[:, i] * p0 + c[:, i] * p1], dim=2).flatten(1)
    return x[:, :w]


def quant(w):
    g = w.abs().mean()
    return w + (torch.clamp(torch.round(w / (g + 1e-8)), -1, 1) * g - w).detach()


class PLREmbedding(nn.Module):
    """periodic -> linear -> relu, one per numeric column"""

    def __init__(self, n, n_freq, d):
        super().__init__()
        self.freq = nn.Parameter(torch.randn(n, n_freq) * 0.3)
        self.weight = nn.Parameter(torch.randn(n, 2 * n_freq, d) / math.sqrt(2 * n_freq))
        self.bias = nn.Parameter(torch.randn(n, d) * 0.1)

    def forward(self, x):
        v = 2 * math.pi * self.freq * x[..., None]
        v = torch.cat([torch.cos(v), torch.sin(v)], -1)
        return F.relu(torch.einsum("bnf,nfd->bnd", v, self.weight) + self.bias)


class CatEmbedding(nn.Module):
    """one big table with offsets"""

    def __init__(self, cards, d):
        super().__init__()
        self.emb = nn.Embedding(sum(cards), d)
        self.bias = nn.Parameter(torch.randn(len(cards), d) * 0.1)
        self.register_buffer("offsets", torch.tensor([0] + cards[:-1]).cumsum(0))

    def forward(self, x):
        return self.emb(x + self.offsets) + self.bias


class ButterflyMoE(nn.Module):
    def __init__(self, d, d_ff, n_experts, k, l_in, l_out):
        super().__init__()
        self.k = k
        half_in = 2 ** math.ceil(math.log2(d)) // 2
        half_out = 2 ** math.ceil(math.log2(d_ff)) // 2
        self.router = nn.Linear(d, n_experts)
        self.w = nn.Parameter(torch.randn(d_ff, d) / math.sqrt(d))
        self.b = nn.Parameter(torch.randn(d_ff) * 0.2)
        self.w_down = nn.Linear(d_ff, d)
        self.theta = nn.Parameter(torch.randn(n_experts, l_in, half_in) * 0.5)
        self.phi = nn.Parameter(torch.randn(n_experts, l_out, half_out) * 0.5)

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        probs = self.router(x).softmax(-1)
        top, idx = probs.topk(self.k, dim=-1)
        top = top / top.sum(-1, keepdim=True)
        w = quant(self.w)
        out = 0
        for j in range(self.k):
            e = idx[:, j]
            h = butterfly(x * top[:, j : j + 1], self.theta[e])
            h = F.gelu(h @ w.T + self.b)
            out = out + butterfly(h, self.phi[e])
        return self.w_down(out).view(shape)


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        d = cfg["d"]
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.MultiheadAttention(d, cfg["n_heads"], batch_first=True)
        self.moe = ButterflyMoE(d, cfg["d_ff"], cfg["n_experts"], cfg["k"], cfg["l_in"], cfg["l_out"])

    def forward(self, x):
        h = self.ln1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.moe(self.ln2(x))


class TabModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        d = cfg["d"]
        self.bn = nn.BatchNorm1d(cfg["n_num"])
        self.num = PLREmbedding(cfg["n_num"], cfg["n_freq"], d)
        self.cat = CatEmbedding(cfg["cat_cards"], d)
        self.cls = nn.Parameter(torch.randn(1, 1, d) * 0.5)
        self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg["n_blocks"])])
        self.head = nn.Sequential(nn.LayerNorm(d), nn.ReLU(), nn.Linear(d, cfg["n_targets"]))

    def forward(self, x_num, x_cat):
        x = torch.cat([self.cls.expand(len(x_num), -1, -1), self.num(self.bn(x_num)), self.cat(x_cat)], 1)
        for b in self.blocks:
            x = b(x)
        return self.head(x[:, 0])


def seed_everything(seed=42):
    torch.manual_seed(seed)


def make():
    seed_everything(42)
    model = TabModel(CFG)
    for m in model.modules():
        if isinstance(m, (nn.LayerNorm, nn.BatchNorm1d)):
            m.weight.data.uniform_(0.75, 1.25)
            m.bias.data.normal_(0, 0.1)
        if isinstance(m, nn.BatchNorm1d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 1.5)
        if isinstance(m, nn.Linear):
            m.bias.data.normal_(0, 0.1)
        if isinstance(m, nn.MultiheadAttention):
            m.in_proj_bias.data.normal_(0, 0.1)
        if isinstance(m, ButterflyMoE):
            m.router.weight.data.normal_(0, 0.4)
    x_num = torch.randn(3, CFG["n_num"])
    x_cat = torch.stack([torch.randint(0, c, (3,)) for c in CFG["cat_cards"]], 1)
    return model.eval(), (x_num, x_cat)
