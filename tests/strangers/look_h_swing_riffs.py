"""riffgen: event-token melody generator (relative-bias attention + butterfly-ish expert MLPs), bedroom-studio edition.

Expert as in Algorithm 2: W_down . B(phi_e) . gelu( W_hat . B(theta_e) x + b1 ) + b2, shared W_hat and W_down.
  * B: Givens on (2j, 2j+1), then deinterleave; forward on both sides; L = 3 in, 4 out; d = 64, F = 128
  * quantiser: one gamma = mean |W|, round/clip, straight-through
  * router: softmax over all 5, top-2, not renormalised
  * dispatch: ModuleList of experts, boolean masks per expert and slot
  * biases: b1 before the gelu, b2 added once; gelu erf
NOT a Butterfly layer of the papers: the first rotation has "swing". Its angles are theta_e plus a shared per-pair depth
times the sine of the place in the bar, so the angles are no constants of the expert: tokens with equal features but
at different steps of the bar are rotated differently (still exactly orthogonal, still pairwise Givens).
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

STEPS_PER_BAR = 16


def unzip(x):
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)


def spin(x, angle):
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = torch.cos(angle), torch.sin(angle)
    y = torch.empty_like(x)
    y[..., 0::2] = a * c - b * s
    y[..., 1::2] = a * s + b * c
    return y


class RiffExpert(nn.Module):
    def __init__(self, d, f, n_in=3, n_out=4):
        super().__init__()
        self.theta = nn.Parameter(torch.randn(n_in, d // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(n_out, f // 2) * 0.5)

    def forward(self, x, feel, w1, b1):
        for layer in range(len(self.theta)):
            x = unzip(spin(x, self.theta[layer] + feel))
        h = F.gelu(F.linear(x, w1, b1))
        for layer in range(len(self.phi)):
            h = unzip(spin(h, self.phi[layer]))
        return h


class RiffMoE(nn.Module):
    def __init__(self, d=64, f=128, n_experts=5, k=2):
        super().__init__()
        self.k = k
        self.gate = nn.Linear(d, n_experts)
        self.w1 = nn.Parameter(torch.randn(f, d) * d ** -0.5)
        self.b1 = nn.Parameter(torch.randn(f) * 0.1)
        self.down = nn.Linear(f, d, bias=False)
        self.b2 = nn.Parameter(torch.randn(d) * 0.1)
        self.swing = nn.Parameter(torch.randn(d // 2) * 0.15)
        self.experts = nn.ModuleList([RiffExpert(d, f) for _ in range(n_experts)])
        nn.init.normal_(self.gate.weight, std=0.35)

    def ternary(self):
        g = self.w1.abs().mean()
        q = torch.clamp(torch.round(self.w1 / (g + 1e-8)), -1, 1) * g
        return self.w1 + (q - self.w1).detach()

    def forward(self, x):
        B, T, D = x.shape
        step = torch.arange(T, device=x.device).to(x.dtype) % STEPS_PER_BAR
        feel = torch.sin(2 * math.pi * step / STEPS_PER_BAR)[:, None] * self.swing
        feel = feel.expand(B, T, -1).reshape(B * T, -1)
        flat = x.reshape(B * T, D)

        probs = F.softmax(self.gate(flat), dim=-1)
        top_p, top_i = probs.topk(self.k, dim=-1)
        w1 = self.ternary()
        out = torch.zeros_like(flat)
        for slot in range(self.k):
            for e, expert in enumerate(self.experts):
                mask = top_i[:, slot] == e
                if not mask.any():
                    continue
                y = self.down(expert(flat[mask], feel[mask], w1, self.b1))
                out[mask] = out[mask] + top_p[mask, slot, None] * y
        return (out + self.b2).view(B, T, D)


class GrooveAttention(nn.Module):
    """Causal attention with a learnt bias per distance, one table a head."""

    def __init__(self, d, heads, max_len=64):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.dist = nn.Parameter(torch.randn(heads, max_len) * 0.3)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = [t.view(B, T, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)]
        i = torch.arange(T, device=x.device)
        back = (i[:, None] - i[None, :])
        att = q @ k.transpose(-1, -2) / math.sqrt(D // self.heads) + self.dist[:, back.clamp(min=0)]
        att = att.masked_fill(back < 0, float("-inf")).softmax(-1)
        return self.out((att @ v).transpose(1, 2).reshape(B, T, D))


class Layer(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.att = GrooveAttention(d, heads)
        self.moe = RiffMoE(d)

    def forward(self, x):
        x = x + self.att(self.ln1(x))
        return x + self.moe(self.ln2(x))


class RiffGen(nn.Module):
    def __init__(self, n_pitch=49, n_dur=12, d=64, layers=3):
        super().__init__()
        self.pitch, self.dur = nn.Embedding(n_pitch, d), nn.Embedding(n_dur, d)
        self.layers = nn.ModuleList([Layer(d, 4) for _ in range(layers)])
        self.ln = nn.LayerNorm(d)
        self.to_pitch, self.to_dur = nn.Linear(d, n_pitch), nn.Linear(d, n_dur)

    def forward(self, pitch, dur):
        x = self.pitch(pitch) + self.dur(dur)
        for layer in self.layers:
            x = layer(x)
        x = self.ln(x)
        return self.to_pitch(x), self.to_dur(x)


def make():
    torch.manual_seed(909)
    net = RiffGen()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if ".ln" in name or name.startswith("ln."):
                p.add_(torch.randn_like(p) * 0.15)
            elif name.endswith("bias"):
                p.copy_(torch.randn_like(p) * 0.1)
    return net.eval(), (torch.randint(0, 49, (2, 32)), torch.randint(0, 12, (2, 32)))
