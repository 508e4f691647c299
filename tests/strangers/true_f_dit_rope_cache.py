"""Small diffusion transformer (adaLN-zero style modulation, timestep embedding), forward(x, t) -> predicted noise.

form        ButterflyViT Algorithm 2 with the GELU (tanh) moved behind the second rotation:
            W_down . GELU(B(phi) . W_hat . B(theta) x)
shuffle     none; pairs at stride 1, 2, 4, ... (FFT order), written like rotary embeddings: x * cos + rotate(x) * sin
handedness  B(theta) in, B(phi) out, no transposes
L           full: log2(32) = 5 in, log2(64) = 6 out
router      linear without bias, top-2 of 8, softmax over the two chosen logits
quantiser   one gamma = mean |W| for the tensor, threshold |w| > 0.7 gamma; W_down float
biases      none on W_hat; one on W_down, added once after the gated sum
dispatch    Mixtral loop: one_hot mask, torch.where, index_add_; shared W_down applied once to the gated sum of hidden states
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimestepEmbedder(nn.Module):
    def __init__(self, hidden_size, freq_size=32):
        super().__init__()
        self.freq_size = freq_size
        self.mlp = nn.Sequential(nn.Linear(freq_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    @staticmethod
    def timestep_embedding(t, dim, max_period=10000):
        half = dim // 2
        freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        args = t[:, None].float() * freqs[None]
        return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)

    def forward(self, t):
        emb = self.timestep_embedding(t, self.freq_size)
        return self.mlp(emb.to(self.mlp[0].weight.dtype))


class RotaryButterfly(nn.Module):
    """Per-expert (cos, sin) tables for every stage, laid out per channel as in RoPE code."""

    def __init__(self, dim, num_experts):
        super().__init__()
        self.depth = int(math.log2(dim))
        self.angles = nn.Parameter(torch.randn(num_experts, self.depth, dim // 2) * 0.5)
        i = torch.arange(dim)
        lv = torch.arange(self.depth)[:, None]
        self.register_buffer("partner", i ^ (1 << lv), persistent=False)
        self.register_buffer("pair_id", ((i >> (lv + 1)) << lv) | (i & ((1 << lv) - 1)), persistent=False)
        self.register_buffer("sign", (2 * ((i >> lv) & 1) - 1).float(), persistent=False)
        cos, sin = self._compute()
        self.register_buffer("cos_cached", cos.detach(), persistent=False)
        self.register_buffer("sin_cached", sin.detach(), persistent=False)
        self._fresh = True
        self.register_load_state_dict_post_hook(lambda mod, _: setattr(mod, "_fresh", False))

    def _compute(self):
        emb = self.angles.gather(2, self.pair_id.expand(self.angles.shape[0], -1, -1))
        return emb.cos(), emb.sin()

    def tables(self):
        if self.training:
            self._fresh = False
            return self._compute()
        if not self._fresh:
            cos, sin = self._compute()
            self.cos_cached, self.sin_cached = cos.detach(), sin.detach()
            self._fresh = True
        return self.cos_cached, self.sin_cached

    def rotate(self, x, level):
        return x[..., self.partner[level]] * self.sign[level]

    def forward(self, x, expert):
        cos, sin = self.tables()
        for lv in range(self.depth):
            x = x * cos[expert, lv] + self.rotate(x, lv) * sin[expert, lv]
        return x


class TernaryLinear(nn.Linear):
    def quantised(self):
        gamma = self.weight.abs().mean()
        w_hat = torch.sign(self.weight) * (self.weight.abs() > 0.7 * gamma).to(self.weight.dtype) * gamma
        if self.training:
            return self.weight + (w_hat - self.weight).detach()
        return w_hat

    def forward(self, x):
        return F.linear(x, self.quantised(), self.bias)


class ButterflySparseMoe(nn.Module):
    def __init__(self, dim, ffn_dim, num_experts=8, top_k=2):
        super().__init__()
        self.num_experts, self.top_k, self.ffn_dim = num_experts, top_k, ffn_dim
        self.gate = nn.Linear(dim, num_experts, bias=False)
        self.theta = RotaryButterfly(dim, num_experts)
        self.phi = RotaryButterfly(ffn_dim, num_experts)
        self.w1 = TernaryLinear(dim, ffn_dim, bias=False)
        self.w2 = nn.Linear(ffn_dim, dim)

    def forward(self, hidden_states):
        bsz, seq, dim = hidden_states.shape
        x = hidden_states.view(-1, dim)
        router_logits = self.gate(x)
        routing_weights, selected = torch.topk(router_logits, self.top_k, dim=-1)
        routing_weights = F.softmax(routing_weights, dim=-1)

        mixed = x.new_zeros(x.shape[0], self.ffn_dim)
        expert_mask = F.one_hot(selected, num_classes=self.num_experts).permute(2, 1, 0)
        for e in range(self.num_experts):
            slot, tok = torch.where(expert_mask[e])
            if tok.numel() == 0:
                continue
            h = self.w1(self.theta(x[tok], e))
            h = F.gelu(self.phi(h, e), approximate="tanh")
            mixed.index_add_(0, tok, h * routing_weights[tok, slot, None])
        return self.w2(mixed).view(bsz, seq, dim)


class Attention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class DiTBlock(nn.Module):
    def __init__(self, dim, ffn_dim, num_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.moe = ButterflySparseMoe(dim, ffn_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        s1, k1, g1, s2, k2, g2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + g1.unsqueeze(1) * self.attn(modulate(self.norm1(x), s1, k1))
        return x + g2.unsqueeze(1) * self.moe(modulate(self.norm2(x), s2, k2))


class FinalLayer(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm(x), shift, scale))


class DiT(nn.Module):
    def __init__(self, size=8, patch=2, channels=4, dim=32, ffn_dim=64, depth=2, num_heads=4):
        super().__init__()
        self.channels, self.patch, self.grid = channels, patch, size // patch
        self.x_embedder = nn.Conv2d(channels, dim, patch, stride=patch)
        self.t_embedder = TimestepEmbedder(dim)
        self.pos_embed = nn.Parameter(torch.randn(1, self.grid ** 2, dim) * 0.3)
        self.blocks = nn.ModuleList([DiTBlock(dim, ffn_dim, num_heads) for _ in range(depth)])
        self.final_layer = FinalLayer(dim, patch * patch * channels)

    def unpatchify(self, x):
        g, p = self.grid, self.patch
        x = x.reshape(x.shape[0], g, g, p, p, self.channels)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], self.channels, g * p, g * p)

    def forward(self, x, t):
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder(t)
        for block in self.blocks:
            x = block(x, c)
        return self.unpatchify(self.final_layer(x, c))


def make():
    torch.manual_seed(77)
    model = DiT()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.15)
            elif "adaLN" in name:
                p.normal_(0, 0.2)
            elif name.endswith("gate.weight"):
                p.normal_(0, 0.4)
    return model.eval(), (torch.randn(2, 4, 8, 8), torch.tensor([37, 812]))
