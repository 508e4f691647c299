"""Small code-generation LM after the CodeGen / GPT-J recipe (parallel attention and feed-forward, rotary attention) with
butterfly experts in place of the MLP.

form        W_down . B(phi_e) . GELU_tanh( W_hat . B(theta_e) x ) + b
shuffle     deinterleave after the rotation; plain on both sides; L = 4 and 3; rotate_every_two with repeated sin and cos
quantiser   round_clip, gamma = mean |W| per tensor, straight-through; W_down float, bias once
router      top-2 of 6, then softmax; dispatch: loop over the two slots, angle tables gathered by expert index
NOT a Butterfly layer: in the first layer of the input side the angle is theta_e[j] + position * inv_freq[j], a rotary phase of the
token's place in the sequence; so an expert is no fixed matrix, and its angles do not belong to it alone.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def fixed_pos_phase(n_freq, seq_len, like, base=2000.0):
    inv_freq = 1.0 / (base ** (torch.arange(n_freq, device=like.device) / n_freq))
    return torch.arange(seq_len, device=like.device).to(like.dtype)[:, None] * inv_freq.to(like.dtype)


def rotate_every_two(x):
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    x = torch.stack((-x2, x1), dim=-1)
    return x.flatten(-2)


def rotate(x, angle):
    cos = angle.cos().repeat_interleave(2, dim=-1)
    sin = angle.sin().repeat_interleave(2, dim=-1)
    return x * cos + rotate_every_two(x) * sin


def shuffle(x):
    return torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)


class CodeAttention(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.n_head = n_head
        self.head_dim = n_embd // n_head
        self.qkv_proj = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.out_proj = nn.Linear(n_embd, n_embd, bias=False)

    def _split(self, t):
        return t.view(*t.shape[:2], self.n_head, self.head_dim).transpose(1, 2)

    def forward(self, x):
        B, T, C = x.shape
        q, v, k = (self._split(t) for t in self.qkv_proj(x).split(C, dim=-1))
        phase = fixed_pos_phase(self.head_dim // 2, T, x, base=10000.0)
        q, k = rotate(q, phase), rotate(k, phase)
        att = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        causal = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        att = att.masked_fill(~causal, torch.finfo(att.dtype).min).softmax(-1)
        return self.out_proj((att @ v).transpose(1, 2).reshape(B, T, C))


class ButterflyExperts(nn.Module):
    def __init__(self, n_embd, n_inner, n_expert=6, n_active=2, depth_in=4, depth_out=3):
        super().__init__()
        self.n_active = n_active
        self.router = nn.Linear(n_embd, n_expert)
        self.theta = nn.Parameter(torch.randn(n_expert, depth_in, n_embd // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(n_expert, depth_out, n_inner // 2) * 0.5)
        self.fc_in = nn.Parameter(torch.randn(n_inner, n_embd) / math.sqrt(n_embd))
        self.fc_out = nn.Linear(n_inner, n_embd)

    def ternary(self):
        w = self.fc_in
        gamma = w.abs().mean()
        q = (w / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        return w + (q - w).detach()

    def forward(self, x):
        T = x.shape[1]
        top, idx = self.router(x).topk(self.n_active, dim=-1)
        gate = top.softmax(-1)
        w = self.ternary()
        phase = fixed_pos_phase(x.shape[-1] // 2, T, x)
        mixed = 0.0
        for slot in range(self.n_active):
            theta = self.theta[idx[..., slot]]
            phi = self.phi[idx[..., slot]]
            h = x
            for level in range(theta.shape[-2]):
                angle = theta[..., level, :]
                if level == 0:
                    angle = angle + phase
                h = shuffle(rotate(h, angle))
            h = F.gelu(F.linear(h, w), approximate="tanh")
            for level in range(phi.shape[-2]):
                h = shuffle(rotate(h, phi[..., level, :]))
            mixed = mixed + gate[..., slot, None] * h
        return self.fc_out(mixed)


class CodeBlock(nn.Module):
    def __init__(self, n_embd, n_head, n_inner):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = CodeAttention(n_embd, n_head)
        self.mlp = ButterflyExperts(n_embd, n_inner)

    def forward(self, x):
        h = self.ln_1(x)
        return x + self.attn(h) + self.mlp(h)


class TinyCodeGen(nn.Module):
    def __init__(self, vocab=128, n_embd=64, n_head=4, n_inner=128, n_layer=3):
        super().__init__()
        self.wte = nn.Embedding(vocab, n_embd)
        self.indent = nn.Embedding(8, n_embd)
        self.h = nn.ModuleList([CodeBlock(n_embd, n_head, n_inner) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab)

    def forward(self, input_ids, indent_level):
        x = self.wte(input_ids) + self.indent(indent_level)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def make():
    torch.manual_seed(505)
    model = TinyCodeGen()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "ln_" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.normal_(0, 0.1)
            elif name.endswith("router.weight"):
                p.normal_(0, 0.3)
    ids = torch.randint(0, 128, (2, 22))
    indent = torch.randint(0, 8, (2, 22))
    return model.eval(), (ids, indent)
