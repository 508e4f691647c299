"""
CS course project: character language model with ButterflyMoE layers (re-implementation of arXiv 2601.13563).

Expert (eq. 3 of the paper):  expert_i(x) = B(phi_i) W B(theta_i)^T x   with d_ff = d_model, so no down projection.
- shuffle: evens first then odds, done BEFORE the rotation in every layer (eq. 4)
- B^T on the way in, B on the way out, 6 layers in (= log2 64) and 4 layers out
- router: nn.Linear with bias, top-2 of 8, the gate is the raw logit (no softmax)
- W is loaded already ternary: int8 buffer and one scale (gamma = mean |W| of the float matrix)
- no activation in the expert; one bias after W, before B(phi), the same for all experts
- dispatch: loop over the 2 slots, pick each token's angles with theta[idx]
"""
import math

import torch
import torch.nn as nn

VOCAB = "abcdefghijklmnopqrstuvwxyz .,!?'\n"


class TernaryLinear(nn.Module):
    """y = gamma * (W_int8 @ x) + b.  Weights are in {-1, 0, 1}."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.register_buffer("weight_int8", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("gamma", torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def load_float_weight(self, W):
        gamma = W.abs().mean()
        q = torch.round(W / (gamma + 1e-8)).clamp(-1, 1)
        self.weight_int8.copy_(q.to(torch.int8))
        self.gamma.fill_(gamma.item())

    def forward(self, x):
        W = self.weight_int8.to(x.dtype)
        return (x @ W.t()) * self.gamma + self.bias


def shuffle(x):
    return torch.cat([x[:, 0::2], x[:, 1::2]], dim=1)


def unshuffle(x):
    half = x.shape[1] // 2
    y = torch.empty_like(x)
    y[:, 0::2] = x[:, :half]
    y[:, 1::2] = x[:, half:]
    return y


def givens(x, angle):
    # x: (T, d), angle: (T, d/2), rotates every pair (2j, 2j+1)
    cos = torch.cos(angle)
    sin = torch.sin(angle)
    even = x[:, 0::2]
    odd = x[:, 1::2]
    y = torch.empty_like(x)
    y[:, 0::2] = cos * even - sin * odd
    y[:, 1::2] = sin * even + cos * odd
    return y


def butterfly(x, angles):
    # angles: (T, L, d/2)
    for l in range(angles.shape[1]):
        x = shuffle(x)
        x = givens(x, angles[:, l])
    return x


def butterfly_transpose(x, angles):
    # undo the layers from last to first
    for l in reversed(range(angles.shape[1])):
        x = givens(x, -angles[:, l])
        x = unshuffle(x)
    return x


class ButterflyMoE(nn.Module):
    def __init__(self, d_model, n_experts, top_k, L_in, L_out):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(d_model, n_experts)
        self.theta = nn.Parameter(torch.zeros(n_experts, L_in, d_model // 2))
        self.phi = nn.Parameter(torch.zeros(n_experts, L_out, d_model // 2))
        self.W = TernaryLinear(d_model, d_model)

    def forward(self, x):
        B, T, D = x.shape
        x = x.reshape(B * T, D)
        scores = self.router(x)
        gates, idx = torch.topk(scores, self.top_k, dim=1)

        out = torch.zeros_like(x)
        for k in range(self.top_k):
            chosen = idx[:, k]                                  # (B*T,)
            h = butterfly_transpose(x, self.theta[chosen])
            h = self.W(h)
            h = butterfly(h, self.phi[chosen])
            out = out + gates[:, k].unsqueeze(1) * h
        return out.reshape(B, T, D)


class Block(nn.Module):
    def __init__(self, d_model, n_heads, n_experts):
        super().__init__()
        self.ln1 = nn.LayerNorm(d_model)
        self.attn = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.ln2 = nn.LayerNorm(d_model)
        self.moe = ButterflyMoE(d_model, n_experts, top_k=2, L_in=int(math.log2(d_model)), L_out=4)

    def forward(self, x, mask):
        h = self.ln1(x)
        a, _ = self.attn(h, h, h, attn_mask=mask, need_weights=False)
        x = x + a
        x = x + 0.3 * self.moe(self.ln2(x))
        return x


class CharLM(nn.Module):
    def __init__(self, vocab_size=len(VOCAB), d_model=64, n_heads=4, n_layers=2, n_experts=8, max_len=32):
        super().__init__()
        self.tok = nn.Embedding(vocab_size, d_model)
        self.pos = nn.Parameter(torch.randn(1, max_len, d_model) * 0.3)
        self.blocks = nn.ModuleList([Block(d_model, n_heads, n_experts) for _ in range(n_layers)])
        self.ln_f = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, ids):
        T = ids.shape[1]
        mask = torch.triu(torch.ones(T, T, dtype=torch.bool, device=ids.device), diagonal=1)
        x = self.tok(ids) + self.pos[:, :T]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.ln_f(x))


def encode(text):
    return [VOCAB.index(c) for c in text]


def make():
    torch.manual_seed(0)
    model = CharLM()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.1)
            elif "ln" in name:
                p.uniform_(0.7, 1.3)
            elif name.endswith("theta") or name.endswith("phi"):
                p.normal_(0, 0.5)
            elif "router" in name:
                p.normal_(0, 0.2)
        for m in model.modules():
            if isinstance(m, TernaryLinear):
                m.load_float_weight(torch.randn(m.weight_int8.shape) * 0.12)
    lines = ["to be, or not to be", "all the world's a st", "what's in a name? th"]
    ids = torch.tensor([encode(s.ljust(20)[:20]) for s in lines])
    return model.eval(), (ids,)
