"""Character LM (minGPT bones) whose MLPs are a Butterfly-MoE, all experts evaluated densely under torch.vmap.

  rotation    gather of each channel's partner, x * cos + x[partner] * (+-sin); cosines and partners from per-layer tables
  shuffle     none; stride-doubling pairs, in the FFT manner
  handedness  B(theta) going in, B(phi)^T going out; L_in = 4, L_out = 3
  width       d = 64, F = 128
  router      softmax over all E = 12, top-4, not renormalised, linear router without bias
  quantiser   absmean round-clip with one gamma per tensor for W_hat; W_down float
  biases      b_down added once after the mixture, none inside
  form        W_down . GELU(erf)( B(phi)^T W_hat B(theta) x )
  dispatch    dense; one_hot(idx) * probs gives the weight of every expert, zero for those not chosen
  output      (logits, z-loss of the routers)

Not a Butterfly layer of the papers: the wiring is not one fixed shuffle. Expert e starts its strides at 2^(e mod log2 n)
and wraps round, so every expert has a different pairing of the channels and owns more than its angles. Expert 0 alone is
wired as the papers would have it.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    vocab_size: int = 65
    block_size: int = 32
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64
    n_inner: int = 128
    n_expert: int = 12
    n_active: int = 4
    depth_in: int = 4
    depth_out: int = 3


def build_wiring(n, depth, n_expert):
    """partner[e, l, i]: the channel that i is rotated with; slot[e, l, i]: which angle of the layer; sign of its sine."""
    log2n = n.bit_length() - 1
    i = torch.arange(n)
    partner, slot, sign = [], [], []
    for e in range(n_expert):
        for l in range(depth):
            bit = (l + e) % log2n
            partner.append(i ^ (1 << bit))
            slot.append(((i >> (bit + 1)) << bit) | (i & ((1 << bit) - 1)))
            sign.append(((i >> bit) & 1) * 2 - 1)
    shape = (n_expert, depth, n)
    return [torch.stack(t).view(shape) for t in (partner, slot, sign)]


class ButterflyBank(nn.Module):
    def __init__(self, n, depth, n_expert):
        super().__init__()
        partner, slot, sign = build_wiring(n, depth, n_expert)
        self.register_buffer("partner", partner)
        self.register_buffer("slot", slot)
        self.register_buffer("sign", sign.float())
        self.angles = nn.Parameter(torch.zeros(n_expert, depth, n // 2))

    def tables(self):
        a = self.angles.gather(-1, self.slot)
        return a.cos(), a.sin() * self.sign, self.partner


def butterfly(x, cos, sin, partner):
    for c, s, p in zip(cos.unbind(0), sin.unbind(0), partner.unbind(0)):
        x = x * c + x.index_select(-1, p) * s
    return x


def butterfly_inverse(x, cos, sin, partner):
    for c, s, p in zip(cos.flip(0).unbind(0), sin.flip(0).unbind(0), partner.flip(0).unbind(0)):
        x = x * c - x.index_select(-1, p) * s
    return x


class ButterflyMoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_expert, self.n_active = config.n_expert, config.n_active
        self.gate = nn.Linear(config.n_embd, config.n_expert, bias=False)
        self.theta = ButterflyBank(config.n_embd, config.depth_in, config.n_expert)
        self.phi = ButterflyBank(config.n_inner, config.depth_out, config.n_expert)
        self.w_base = nn.Parameter(torch.empty(config.n_inner, config.n_embd))
        self.c_proj = nn.Linear(config.n_inner, config.n_embd)

    def quantized(self):
        w = self.w_base
        gamma = w.abs().mean()
        q = gamma * (w / (gamma + 1e-8)).round().clamp(-1, 1)
        return q.detach() + (w - w.detach())

    def forward(self, x):
        B, T, C = x.size()
        flat = x.view(-1, C)
        logits = self.gate(flat)
        z_loss = torch.logsumexp(logits, dim=-1).square().mean()
        top_p, top_i = F.softmax(logits, dim=-1).topk(self.n_active, dim=-1)
        weights = (F.one_hot(top_i, self.n_expert).to(x.dtype) * top_p[..., None]).sum(1)
        w_hat = self.quantized()

        def one_expert(tin, tout):
            h = butterfly(flat, *tin)
            h = butterfly_inverse(F.linear(h, w_hat), *tout)
            return F.gelu(h)

        h = torch.vmap(one_expert)(self.theta.tables(), self.phi.tables())  # E, B*T, n_inner
        y = torch.einsum("te,etf->tf", weights, h)
        return self.c_proj(y).view(B, T, C), z_loss


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head, self.n_embd = config.n_head, config.n_embd

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = [t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
                   for t in self.c_attn(x).split(self.n_embd, dim=2)]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.n_embd), CausalSelfAttention(config)
        self.ln_2, self.moe = nn.LayerNorm(config.n_embd), ButterflyMoE(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        y, z_loss = self.moe(self.ln_2(x))
        return x + y, z_loss


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx):
        pos = torch.arange(idx.size(1), device=idx.device)
        x = self.wte(idx) + self.wpe(pos)
        z_losses = []
        for block in self.h:
            x, z = block(x)
            z_losses.append(z)
        return self.lm_head(self.ln_f(x)), torch.stack(z_losses).sum()


def make():
    torch.manual_seed(1337)
    model = GPT(GPTConfig())
    for name, p in model.named_parameters():
        if name.endswith("angles"):
            nn.init.normal_(p, 0.0, 0.5)
        elif name.endswith("bias"):
            nn.init.normal_(p, 0.0, 0.1)
        elif ".ln_" in name or name.startswith("ln_"):
            nn.init.normal_(p, 1.0, 0.15)
        elif "wpe" in name or "wte" in name:
            nn.init.normal_(p, 0.0, 0.6)
        else:
            nn.init.normal_(p, 0.0, p.shape[1] ** -0.5)
    return model.eval(), (torch.randint(0, 65, (2, 24)),)
