"""
Decoder-only LM, "modeling_butterfly.py" flavour; experts act on [batch, seq, k, dim] tensors.

shuffle    : interleave the two halves, after the rotation
handedness : out = B(phi) . W_hat . B(theta)^T x  (equation 3)
L          : log2(64) = 6 on the input side, 4 on the output side
router     : sigmoid scores, top-3 by score + correction bias, chosen scores renormalised
quantiser  : the checkpoint holds int8 codes in {-1,0,1} and one scale an output row (gamma per row)
biases     : one output bias shared by all experts, inside the expert (weighted by the gate)
form       : no W_down (F = d), no activation
dispatch   : angles[idx] gathered to [batch, seq, k, L, d/2]; rotary-embedding style rotation with repeat_interleave tables
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class ButterflyConfig:
    model_type = "butterfly_moe"

    def __init__(self, vocab_size=97, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                 num_experts=12, num_experts_per_tok=3, rotation_depth_in=6, rotation_depth_out=4,
                 max_position_embeddings=64, rms_norm_eps=1e-6, rope_theta=10000.0):
        self.__dict__.update({k: v for k, v in locals().items() if k != "self"})


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rotate_every_two(x):
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    return torch.stack((-x2, x1), dim=-1).flatten(-2)


def apply_rotation(x, angle, inverse=False):
    cos = torch.repeat_interleave(angle.cos(), 2, dim=-1)
    sin = torch.repeat_interleave(angle.sin(), 2, dim=-1)
    if inverse:
        sin = -sin
    return x * cos + rotate_every_two(x) * sin


def perfect_shuffle(x):
    return x.view(*x.shape[:-1], 2, x.shape[-1] // 2).transpose(-1, -2).reshape(x.shape)


def perfect_unshuffle(x):
    return x.view(*x.shape[:-1], x.shape[-1] // 2, 2).transpose(-1, -2).reshape(x.shape)


class ButterflySparseMoeBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, e = config.hidden_size, config.num_experts
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(d, e, bias=False)
        self.register_buffer("e_score_correction_bias", torch.zeros(e))
        self.register_buffer("qweight", torch.zeros(d, d, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(d, 1))
        self.bias = nn.Parameter(torch.zeros(d))
        self.theta = nn.Parameter(torch.zeros(e, config.rotation_depth_in, d // 2))
        self.phi = nn.Parameter(torch.zeros(e, config.rotation_depth_out, d // 2))

    def route(self, hidden_states):
        scores = self.gate(hidden_states).sigmoid()
        selected = torch.topk(scores + self.e_score_correction_bias, self.top_k, dim=-1, sorted=False)[1]
        weights = scores.gather(-1, selected)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20), selected

    def forward(self, hidden_states):
        weights, selected = self.route(hidden_states)                       # [b, s, k]
        theta, phi = self.theta[selected], self.phi[selected]               # [b, s, k, L, d/2]

        x = hidden_states.unsqueeze(2).expand(-1, -1, self.top_k, -1)       # [b, s, k, d]
        for layer in reversed(range(theta.shape[3])):
            x = apply_rotation(perfect_unshuffle(x.contiguous()), theta[..., layer, :], inverse=True)

        x = F.linear(x, self.qweight.to(x.dtype)) * self.scales.squeeze(-1)

        for layer in range(phi.shape[3]):
            x = perfect_shuffle(apply_rotation(x, phi[..., layer, :]))
        x = x + self.bias

        return torch.sum(x * weights.unsqueeze(-1), dim=2)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        inv_freq = config.rope_theta ** (-torch.arange(0, self.head_dim, 2).float() / self.head_dim)
        pos = torch.outer(torch.arange(config.max_position_embeddings).float(), inv_freq)
        self.register_buffer("rope_angles", pos, persistent=False)

    def forward(self, x):
        b, s, d = x.shape
        q, k, v = (p(x).view(b, s, self.num_heads, self.head_dim).transpose(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))
        angle = self.rope_angles[:s]
        q, k = apply_rotation(q, angle), apply_rotation(k, angle)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(b, s, d))


class ButterflyDecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = CausalSelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = ButterflySparseMoeBlock(config)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class ButterflyForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ButterflyDecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


@torch.no_grad()
def load_fake_checkpoint(model):
    for m in model.modules():
        if isinstance(m, ButterflySparseMoeBlock):
            d = m.gate.in_features
            w = torch.randn(d, d) / d ** 0.5
            gamma = w.abs().mean(dim=1, keepdim=True)
            m.qweight.copy_((w / (gamma + 1e-8)).round().clamp(-1, 1).to(torch.int8))
            m.scales.copy_(gamma)
            m.gate.weight.normal_(0, 0.2)
            m.e_score_correction_bias.normal_(0, 0.05)
            m.bias.normal_(0, 0.1)
            m.theta.normal_(0, 0.5)
            m.phi.normal_(0, 0.5)
        elif isinstance(m, RMSNorm):
            m.weight.uniform_(0.7, 1.4)


def make():
    torch.manual_seed(404)
    config = ButterflyConfig()
    model = ButterflyForCausalLM(config)
    load_fake_checkpoint(model)
    ids = torch.randint(0, config.vocab_size, (2, 24))
    return model.eval(), (ids,)
