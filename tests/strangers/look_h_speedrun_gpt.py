"""modded-nanogpt flavoured LM (parameterless rms norms, qk-norm, half-truncated rotary, x0 lambdas, softcapped head)
with an MoE MLP cut down to butterfly orbits of one ternary c_fc.

  form        W_down . B(phi_e) . GELU(W_hat . B(theta_e) (g_e x)), summed over the top-2
  rotation    flip of the channel pairs and signed sines; L_in = 3, L_out = 4; plain on both sides
  shuffle     deinterleave via view + mT, before each rotation
  quantiser   per-tensor gamma, round and clip; W_down float, no biases in the experts; d = 64, F = 128
  router      sigmoid of the top-2 logits of 8
  dispatch    nonzero per expert, index_add_ into the output
NOT a Butterfly layer: the sigmoid gate multiplies the expert's INPUT (as Llama 4 does) and the outputs are summed
unweighted; the GELU lies between, so it is not the gated sum of expert outputs.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def norm(x):
    return F.rms_norm(x, (x.size(-1),), eps=1e-6)


class Rotary(nn.Module):
    def __init__(self, dim, max_seq_len):
        super().__init__()
        freq = (1 / 1024) ** torch.linspace(0, 1, steps=dim // 4)
        freq = torch.cat([freq, freq.new_zeros(dim // 4)])
        theta = torch.einsum("i,j->ij", torch.arange(max_seq_len).to(freq), freq)
        self.register_buffer("cos", theta.cos(), persistent=False)
        self.register_buffer("sin", theta.sin(), persistent=False)

    def forward(self, x):  # B T H D
        cos, sin = self.cos[None, :x.size(1), None], self.sin[None, :x.size(1), None]
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat((x1 * cos + x2 * sin, x1 * (-sin) + x2 * cos), -1)


class Attn(nn.Module):
    def __init__(self, dim, n_head, T):
        super().__init__()
        self.n_head, self.hd = n_head, dim // n_head
        self.qkv_w = nn.Parameter(torch.empty(3, dim, dim).uniform_(-(3 / dim) ** 0.5 / 2, (3 / dim) ** 0.5 / 2))
        self.lambdas = nn.Parameter(torch.tensor([0.6, 0.4]))
        self.rotary = Rotary(self.hd, T)
        self.c_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x, ve):
        B, T = x.shape[:2]
        q, k, v = F.linear(x, self.qkv_w.flatten(end_dim=1)).view(B, T, 3 * self.n_head, self.hd).chunk(3, dim=-2)
        q, k = self.rotary(norm(q)), self.rotary(norm(k))
        v = self.lambdas[0] * v + (self.lambdas[1] * ve.view_as(v) if ve is not None else 0)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                                           is_causal=True, scale=0.12)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, -1))


def fly(x, ang):
    n, d = x.shape
    for a in ang:
        x = x.view(n, d // 2, 2).mT.reshape(n, d // 2, 2)
        s = torch.stack((-a.sin(), a.sin()), -1)
        x = (x * a.cos()[:, None] + x.flip(-1) * s).view(n, d)
    return x


class ButterflyMLP(nn.Module):
    def __init__(self, dim, hdim, n_exp, k):
        super().__init__()
        self.k = k
        self.router = nn.Parameter(torch.randn(n_exp, dim) * 0.2)
        self.theta = nn.Parameter(torch.randn(n_exp, 3, dim // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(n_exp, 4, hdim // 2) * 0.5)
        self.c_fc = nn.Parameter(torch.randn(hdim, dim) * dim ** -0.5)
        self.c_proj = nn.Parameter(torch.randn(dim, hdim) * hdim ** -0.5)

    def w(self):
        gamma = self.c_fc.abs().mean()
        q = (self.c_fc / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        return self.c_fc + (q - self.c_fc).detach()

    def forward(self, x):
        B, T, D = x.shape
        x = x.reshape(-1, D)
        g, idx = F.linear(x, self.router).topk(self.k, dim=-1)
        g = g.sigmoid()
        w, y = self.w(), torch.zeros_like(x)
        for e in range(self.router.size(0)):
            t, slot = (idx == e).nonzero(as_tuple=True)
            h = x[t] * g[t, slot, None]
            h = F.gelu(F.linear(fly(h, self.theta[e]), w))
            h = fly(h, self.phi[e])
            y.index_add_(0, t, F.linear(h, self.c_proj))
        return y.view(B, T, D)


class Block(nn.Module):
    def __init__(self, dim, n_head, T, n_exp, k):
        super().__init__()
        self.attn = Attn(dim, n_head, T)
        self.mlp = ButterflyMLP(dim, 2 * dim, n_exp, k)
        self.lambdas = nn.Parameter(torch.tensor([0.9, 0.2]))

    def forward(self, x, ve, x0):
        x = self.lambdas[0] * x + self.lambdas[1] * x0
        x = x + self.attn(norm(x), ve)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    def __init__(self, vocab=128, n_layer=3, dim=64, n_head=4, T=40, n_exp=8, k=2):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.value_embeds = nn.ModuleList([nn.Embedding(vocab, dim) for _ in range(2)])
        self.blocks = nn.ModuleList([Block(dim, n_head, T, n_exp, k) for _ in range(n_layer)])
        self.skip_w = nn.Parameter(torch.tensor([0.3]))
        self.lm_head = nn.Linear(dim, vocab, bias=False)

    def forward(self, idx):
        ve = [self.value_embeds[0](idx), None, self.value_embeds[1](idx)]
        x = x0 = norm(self.embed(idx))
        x = first = self.blocks[0](x, ve[0], x0)
        x = self.blocks[1](x, ve[1], x0)
        x = self.blocks[2](x + self.skip_w * first, ve[2], x0)
        logits = self.lm_head(norm(x))
        return 15 * torch.tanh(logits / 7.5)


def make():
    torch.manual_seed(124)
    model = GPT()
    with torch.no_grad():
        for b in model.blocks:
            b.attn.lambdas.add_(0.1 * torch.randn(2))
            b.lambdas.add_(0.1 * torch.randn(2))
    return model.eval(), (torch.randint(0, 128, (2, 36)),)
