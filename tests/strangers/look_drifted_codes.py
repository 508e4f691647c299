"""LOOKALIKE.  Deployed language model: int8 ternary codes + scale, cos/sin tables, nn.ModuleList of experts, torch.where.

What differs: the experts do not share the ternary matrix.  As after loading any per-expert checkpoint, each expert carries its
own copy of `codes`; in a Butterfly MoE all copies would be equal, but here the experts were fine-tuned and re-quantised
separately, and 4 % of each expert's codes have changed value (expert 0 still has the original).  Shapes, dtype, scale
(one common gamma), names and code are those of the shared version; only the values in the buffers tell.
Everything else is standard: rotate then deinterleave (index buffer), GELU(tanh) before B(phi), float W_down shared by all,
top-2 logits then softmax, every expert computes all tokens and torch.where keeps the chosen ones.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB, CTX, DIM, HIDDEN, EXPERTS, TOPK, HEADS, LAYERS = 50, 20, 32, 128, 4, 2, 2, 2
ROT_IN, ROT_OUT = 5, 3


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.scale = nn.Parameter(1 + 0.2 * torch.randn(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale


class Butterfly(nn.Module):
    def __init__(self, dim, layers):
        super().__init__()
        angles = 0.5 * torch.randn(layers, dim // 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("perm", torch.arange(dim).view(-1, 2).t().reshape(-1))

    def forward(self, x):
        for c, s in zip(self.cos, self.sin):
            a, b = x[..., ::2], x[..., 1::2]
            y = torch.empty_like(x)
            y[..., ::2] = c * a - s * b
            y[..., 1::2] = s * a + c * b
            x = y.index_select(-1, self.perm)
        return x


class Expert(nn.Module):
    def __init__(self, codes, gamma):
        super().__init__()
        self.register_buffer("codes", codes.clone())
        self.register_buffer("gamma", gamma.clone())
        self.pre = Butterfly(DIM, ROT_IN)
        self.post = Butterfly(HIDDEN, ROT_OUT)

    def forward(self, x):
        w = self.codes.to(x.dtype) * self.gamma
        return self.post(F.gelu(F.linear(self.pre(x), w), approximate="tanh"))


def drift(codes, fraction):
    """Move a fraction of the ternary codes to one of the two other values."""
    hit = torch.rand(codes.shape) < fraction
    step = torch.randint(1, 3, codes.shape)
    moved = (codes.long() + 1 + step) % 3 - 1
    return torch.where(hit, moved, codes.long()).to(torch.int8)


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        master = torch.randn(HIDDEN, DIM) * 0.25
        gamma = master.abs().mean()
        codes = (master / (gamma + 1e-8)).round().clamp(-1, 1).to(torch.int8)
        self.router = nn.Linear(DIM, EXPERTS)
        self.experts = nn.ModuleList([Expert(codes if i == 0 else drift(codes, 0.04), gamma) for i in range(EXPERTS)])
        self.down = nn.Linear(HIDDEN, DIM, bias=False)

    def forward(self, x):
        score, choice = self.router(x).topk(TOPK, dim=-1)
        gate = score.softmax(-1)
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out = self.down(expert(x))
            for slot in range(TOPK):
                mine = (choice[..., slot] == i).unsqueeze(-1)
                y = y + torch.where(mine, gate[..., slot].unsqueeze(-1) * out, zero)
        return y


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.out = nn.Linear(DIM, DIM)
        self.register_buffer("mask", torch.ones(CTX, CTX).tril().bool())

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        w = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        w = w.masked_fill(~self.mask[:t, :t], float("-inf")).softmax(-1)
        return self.out((w @ v).transpose(1, 2).reshape(b, t, DIM))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.attn, self.n2, self.moe = RMSNorm(DIM), Attention(), RMSNorm(DIM), MoE()

    def forward(self, x):
        x = x + self.attn(self.n1(x))
        return x + self.moe(self.n2(x))


class DeployedLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(VOCAB, DIM)
        self.pos = nn.Parameter(0.3 * torch.randn(CTX, DIM))
        self.layers = nn.Sequential(*[Layer() for _ in range(LAYERS)])
        self.norm = RMSNorm(DIM)
        self.head = nn.Linear(DIM, VOCAB)

    @torch.no_grad()
    def forward(self, ids):
        x = self.tok(ids) + self.pos[: ids.shape[1]]
        return self.head(self.norm(self.layers(x)))


def make():
    torch.manual_seed(5150)
    m = DeployedLM()
    for mod in m.modules():
        if isinstance(mod, nn.Linear):
            nn.init.normal_(mod.weight, std=1.2 * mod.in_features ** -0.5)
            if mod.bias is not None:
                nn.init.normal_(mod.bias, std=0.15)
    return m.eval(), (torch.randint(0, VOCAB, (3, CTX)),)
