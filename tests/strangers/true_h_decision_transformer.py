"""Decision transformer (return, state, action tokens; predicts the next action) with a butterfly-MoE feed-forward.

Form       W_down . GELU( B(phi_i) . W_hat . B(theta_i)^T x ) + b_down : GELU (erf) sits after B(phi); W_down float.
Rotation   each expert's rotation is materialised as a dense matrix once per call (rotate rows of the identity pairwise, then
           interleave the two halves). Input side uses the transpose, output side the forward one. L_in = 5, L_out = 4.
Width      d = 40 in a 64-wide butterfly: zero-padding and stripping = the top-left 40 x 40 block of the matrix. F = 64.
Quantiser  BitNet b1.58 round_clip, gamma = mean|W| of the tensor, autograd.Function as straight-through.
Router     linear without bias, gates are the raw top-2 logits of 7 experts (Algorithm 2 as printed).
Bias       b_down is inside the expert, hence weighted by the gate.
Dispatch   (token, slot) pairs sorted by expert, split by bincount, one matmul chain a slab, scattered back by inverse sort.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class DTConfig:
    state_dim: int = 11
    act_dim: int = 3
    max_ep_len: int = 200
    n_embd: int = 40
    n_inner: int = 64
    n_layer: int = 3
    n_head: int = 4
    n_experts: int = 7
    top_k: int = 2
    depth_in: int = 5
    depth_out: int = 4


class TernarySTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        gamma = w.abs().mean()
        return gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)

    @staticmethod
    def backward(ctx, grad):
        return grad


def pow2(n):
    p = 1
    while p < n:
        p *= 2
    return p


def butterfly_matrices(angles):
    """(E, L, n/2) angles -> (E, n, n) matrices M with M @ x = butterfly of the column x"""
    E, L, half = angles.shape
    n = 2 * half
    M = torch.eye(n, dtype=angles.dtype, device=angles.device).expand(E, n, n)
    c, s = angles.cos().unsqueeze(-1), angles.sin().unsqueeze(-1)
    for l in range(L):
        even, odd = M[:, 0::2], M[:, 1::2]
        M = torch.stack([c[:, l] * even - s[:, l] * odd, s[:, l] * even + c[:, l] * odd], dim=2).reshape(E, n, n)
        M = M.view(E, 2, half, n).transpose(1, 2).reshape(E, n, n)
    return M


class ButterflyMoE(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        d, f, E = cfg.n_embd, cfg.n_inner, cfg.n_experts
        self.gate = nn.Linear(d, E, bias=False)
        self.w_base = nn.Parameter(torch.randn(f, d) * d ** -0.5)
        self.c_proj = nn.Linear(f, d)
        self.theta = nn.Parameter(torch.randn(E, cfg.depth_in, pow2(d) // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(E, cfg.depth_out, pow2(f) // 2) * 0.5)

    def forward(self, x):
        B, T, d = x.shape
        k = self.cfg.top_k
        flat = x.reshape(B * T, d)
        gate, choice = self.gate(flat).topk(k, dim=-1)

        R_in = butterfly_matrices(self.theta)[:, :d, :d]
        R_out = butterfly_matrices(self.phi)
        W = TernarySTE.apply(self.w_base)

        choice = choice.reshape(-1)
        order = torch.argsort(choice, stable=True)
        counts = torch.bincount(choice, minlength=self.cfg.n_experts).tolist()
        slabs = flat[torch.div(order, k, rounding_mode="floor")].split(counts)
        done = []
        for e, h in enumerate(slabs):
            h = h @ R_in[e]
            h = h @ W.t()
            h = h @ R_out[e].t()
            done.append(self.c_proj(F.gelu(h)))
        done = torch.cat(done)

        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel(), device=order.device)
        y = done[inverse].view(B * T, k, d)
        return (y * gate.unsqueeze(-1)).sum(dim=1).view(B, T, d)


class CausalSelfAttention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n_head = cfg.n_head
        self.c_attn = nn.Linear(cfg.n_embd, 3 * cfg.n_embd)
        self.c_proj = nn.Linear(cfg.n_embd, cfg.n_embd)

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.ln_1 = nn.LayerNorm(cfg.n_embd)
        self.attn = CausalSelfAttention(cfg)
        self.ln_2 = nn.LayerNorm(cfg.n_embd)
        self.mlp = ButterflyMoE(cfg)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class DecisionTransformer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.embed_timestep = nn.Embedding(cfg.max_ep_len, cfg.n_embd)
        self.embed_return = nn.Linear(1, cfg.n_embd)
        self.embed_state = nn.Linear(cfg.state_dim, cfg.n_embd)
        self.embed_action = nn.Linear(cfg.act_dim, cfg.n_embd)
        self.embed_ln = nn.LayerNorm(cfg.n_embd)
        self.h = nn.ModuleList([Block(cfg) for _ in range(cfg.n_layer)])
        self.ln_f = nn.LayerNorm(cfg.n_embd)
        self.predict_action = nn.Sequential(nn.Linear(cfg.n_embd, cfg.act_dim), nn.Tanh())
        self.predict_return = nn.Linear(cfg.n_embd, 1)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features ** -0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.15)
            nn.init.normal_(module.bias, std=0.15)

    def forward(self, states, actions, returns_to_go, timesteps):
        B, K, _ = states.shape
        t_emb = self.embed_timestep(timesteps)
        r = self.embed_return(returns_to_go) + t_emb
        s = self.embed_state(states) + t_emb
        a = self.embed_action(actions) + t_emb
        x = torch.stack((r, s, a), dim=1).permute(0, 2, 1, 3).reshape(B, 3 * K, self.cfg.n_embd)
        x = self.embed_ln(x)
        for block in self.h:
            x = block(x)
        x = self.ln_f(x).reshape(B, K, 3, self.cfg.n_embd).permute(0, 2, 1, 3)
        return self.predict_action(x[:, 1]), self.predict_return(x[:, 2])


def make():
    torch.manual_seed(97)
    cfg = DTConfig()
    agent = DecisionTransformer(cfg)
    B, K = 2, 9
    states = torch.randn(B, K, cfg.state_dim)
    actions = torch.rand(B, K, cfg.act_dim) * 2 - 1
    returns_to_go = (torch.rand(B, K, 1) * 3).flip(1).cumsum(1).flip(1)
    timesteps = torch.randint(0, 150, (B, 1)) + torch.arange(K)
    return agent.eval(), (states, actions, returns_to_go, timesteps)
