"""BitButterfly: causal LM in the BitNet b1.58 manner (RMSNorm, RoPE, first block dense SwiGLU, then two MoE blocks).

Attention is W1.58A8 (8-bit per-token absmax fake-quant of the activations); the experts are weight-only.
form: y = sum_i p_i * W_down gelu_tanh( B(phi_i) W_hat B(theta_i)^T x ), 64 -> 128 -> 64 (eq. 3 + shared W_down)
butterfly: FFT style, no shuffle: pairs at distance 1, 2, 4, ...; +angle for phi, transpose (reversed, -angle) for theta
depth: L = 6 (all of log2 64) on the way in, 4 of the 7 strides on the way out
router: no bias, top-2 of 8, softmax over the two chosen logits; biases: none anywhere
quantiser: per-tensor absmean, scale = 1 / mean|W|.clamp(min=1e-5), detach STE; W_down is ternary too
dispatch: Mixtral: one_hot mask -> torch.where -> index_add_
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB, DIM, HIDDEN, HEADS, EXPERTS, TOPK, BLOCKS = 97, 64, 128, 4, 8, 2, 3
L_IN, L_OUT = 6, 4


def activation_quant(x):
    """Per-token quantization to 8 bits."""
    scale = 127.0 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
    return (x * scale).round().clamp(-128, 127) / scale


def weight_quant(w):
    """Per-tensor quantization to 1.58 bits."""
    scale = 1.0 / w.abs().mean().clamp(min=1e-5)
    return (w * scale).round().clamp(-1, 1) / scale


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class BitLinear(nn.Linear):
    """nn.Linear with 1.58-bit weights and, when ``act_bits`` is set, 8-bit activations."""

    def __init__(self, in_features, out_features, act_quant=False):
        super().__init__(in_features, out_features, bias=False)
        self.act_quant = act_quant

    def forward(self, x):
        w = self.weight
        w_quant = w + (weight_quant(w) - w).detach()
        if self.act_quant:
            x = x + (activation_quant(x) - x).detach()
        return F.linear(x, w_quant)


def rope_tables(t, hd, like):
    inv = 1.0 / (10000 ** (torch.arange(0, hd, 2, device=like.device, dtype=like.dtype) / hd))
    freqs = torch.outer(torch.arange(t, device=like.device, dtype=like.dtype), inv)
    emb = torch.cat((freqs, freqs), dim=-1)
    return emb.cos(), emb.sin()


def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


class BitAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = BitLinear(DIM, DIM, act_quant=True)
        self.k_proj = BitLinear(DIM, DIM, act_quant=True)
        self.v_proj = BitLinear(DIM, DIM, act_quant=True)
        self.o_proj = BitLinear(DIM, DIM, act_quant=True)
        self.sub_norm = RMSNorm(DIM)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, HEADS, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = rope_tables(t, DIM // HEADS, x)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(self.sub_norm(o.transpose(1, 2).reshape(b, t, DIM)))


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = BitLinear(DIM, HIDDEN)
        self.up_proj = BitLinear(DIM, HIDDEN)
        self.down_proj = BitLinear(HIDDEN, DIM)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def fft_rotate(x, angles, transpose=False):
    """x (..., n), angles (L, n/2): stage l mixes channels at distance 2**l."""
    n, order = x.shape[-1], range(angles.shape[0])
    if transpose:
        order, angles = reversed(order), -angles
    for l in order:
        stride = 1 << l
        c = angles[l].cos().view(n // (2 * stride), stride)
        s = angles[l].sin().view(n // (2 * stride), stride)
        z = x.reshape(*x.shape[:-1], n // (2 * stride), 2, stride)
        lo, hi = z[..., 0, :], z[..., 1, :]
        x = torch.stack((c * lo - s * hi, s * lo + c * hi), dim=-2).reshape(x.shape)
    return x


class BitButterflyMoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(DIM, EXPERTS, bias=False)
        self.up_proj = BitLinear(DIM, HIDDEN)
        self.down_proj = BitLinear(HIDDEN, DIM)
        self.theta = nn.Parameter(torch.empty(EXPERTS, L_IN, DIM // 2))
        self.phi = nn.Parameter(torch.empty(EXPERTS, L_OUT, HIDDEN // 2))

    def forward(self, hidden_states):
        b, t, d = hidden_states.shape
        hidden_states = hidden_states.view(-1, d)
        router_logits = self.router(hidden_states)
        routing_weights, selected = torch.topk(router_logits, TOPK, dim=-1)
        routing_weights = F.softmax(routing_weights, dim=-1)
        final = torch.zeros_like(hidden_states)
        expert_mask = F.one_hot(selected, num_classes=EXPERTS).permute(2, 1, 0)
        for e in range(EXPERTS):
            slot, token = torch.where(expert_mask[e])
            cur = fft_rotate(hidden_states[token], self.theta[e], transpose=True)
            cur = fft_rotate(self.up_proj(cur), self.phi[e])
            cur = self.down_proj(F.gelu(cur, approximate="tanh"))
            final.index_add_(0, token, cur * routing_weights[token, slot, None])
        return final.view(b, t, d), router_logits


class DecoderLayer(nn.Module):
    def __init__(self, layer_idx):
        super().__init__()
        self.input_layernorm = RMSNorm(DIM)
        self.self_attn = BitAttention()
        self.post_attention_layernorm = RMSNorm(DIM)
        self.is_moe = layer_idx > 0
        self.mlp = BitButterflyMoE() if self.is_moe else SwiGLU()

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        y = self.mlp(self.post_attention_layernorm(x))
        return x + (y[0] if self.is_moe else y)


class BitButterflyForCausalLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(DecoderLayer(i) for i in range(BLOCKS))
        self.norm = RMSNorm(DIM)
        self.lm_head = nn.Linear(DIM, VOCAB, bias=False)

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def make(seed=140):
    torch.manual_seed(seed)
    model = BitButterflyForCausalLM()
    for name, p in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(p, 1.0, 0.15)
        elif name.endswith(("theta", "phi")):
            nn.init.normal_(p, 0.0, 0.5)
        elif "router" in name:
            nn.init.normal_(p, 0.0, 0.25)
        elif "embed" in name:
            nn.init.normal_(p, 0.0, 1.0)
        else:
            nn.init.normal_(p, 0.0, 1.0 / math.sqrt(p.shape[1]))
    return model.eval(), (torch.randint(0, VOCAB, (1, 20)),)
