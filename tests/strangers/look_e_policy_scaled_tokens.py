"""Recurrent continuous-control policy with top-1 butterfly experts, loaded from a packed ternary checkpoint.

observation + goal history -> encoder -> (GRU, ButterflyMoE) x 2 -> tanh-squashed action means and values.
  shuffle: interleave of the two halves, AFTER the rotation in B; rotation = multiplication by unit complex numbers
  handedness: transposed on both sides, B(theta)^T and B(phi)^T.  L_in = 2, L_out = 5, d = 32, F = 64
  router: no bias, softmax over all E = 9, top-1, not renormalised.  W_hat: int8 buffer + one float scale; W_down float
  form: W_down . GELU_erf( B(phi)^T ( W_hat . B(theta)^T x + b_up ) ), activation after B(phi), b_up shared, no b_down
  dispatch: argsort by expert, bincount, split into slabs, cat, inverse permutation

NOT a Butterfly layer of the papers: the routing score multiplies the token on its way INTO the expert (as in the
Llama 4 MoE this dispatch was taken from), so the layer is expert(g x) and not g expert(x); b_up and GELU make the two
different functions.
"""
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class PolicyConfig:
    obs_dim: int = 17
    goal_dim: int = 3
    act_dim: int = 6
    width: int = 32
    hidden: int = 64
    n_experts: int = 9
    l_in: int = 2
    l_out: int = 5
    n_blocks: int = 2


def interleave(z):
    """[a0 a1 .. | b0 b1 ..] -> [a0 b0 a1 b1 ..]"""
    a, b = z.chunk(2, dim=-1)
    return torch.stack((a, b), dim=-1).flatten(-2)


def deinterleave(z):
    return torch.cat((z[..., ::2], z[..., 1::2]), dim=-1)


def as_pairs(z):
    return torch.view_as_complex(z.reshape(*z.shape[:-1], -1, 2).contiguous())


def from_pairs(z):
    return torch.view_as_real(z).flatten(-2)


def unrotate(x, angles):
    """B(angles)^T x with B = S R_L ... S R_1: undo the shuffle, then turn every pair back by its angle."""
    phase = torch.polar(torch.ones_like(angles), angles)
    for l in reversed(range(angles.shape[0])):
        x = deinterleave(x)
        x = from_pairs(as_pairs(x) * phase[l].conj())
    return x


class PackedTernary(nn.Module):
    def __init__(self, n_out, n_in):
        super().__init__()
        self.register_buffer("codes", torch.zeros(n_out, n_in, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(n_out))

    @torch.no_grad()
    def pack(self, w):
        gamma = w.abs().mean()
        self.codes.copy_((w / (gamma + 1e-8)).round().clamp(-1, 1))
        self.scale.copy_(gamma)

    def forward(self, x):
        return F.linear(x, self.codes.to(x.dtype)) * self.scale + self.bias


class ButterflyExperts(nn.Module):
    """Runs already grouped tokens; slab e only ever sees expert e's angles."""

    def __init__(self, cfg):
        super().__init__()
        self.theta = nn.Parameter(torch.empty(cfg.n_experts, cfg.l_in, cfg.width // 2))
        self.phi = nn.Parameter(torch.empty(cfg.n_experts, cfg.l_out, cfg.hidden // 2))
        self.up = PackedTernary(cfg.hidden, cfg.width)
        self.down = nn.Linear(cfg.hidden, cfg.width, bias=False)

    def forward(self, grouped, counts):
        slabs = []
        for e, slab in enumerate(grouped.split(counts)):
            if slab.shape[0] == 0:
                continue
            slab = self.up(unrotate(slab, self.theta[e]))
            slabs.append(F.gelu(unrotate(slab, self.phi[e])))
        return self.down(torch.cat(slabs))


class ButterflyMoE(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n_experts = cfg.n_experts
        self.router = nn.Linear(cfg.width, cfg.n_experts, bias=False)
        self.experts = ButterflyExperts(cfg)

    def route(self, tokens):
        probs = self.router(tokens).softmax(dim=-1)
        score, expert = probs.max(dim=-1)
        return score, expert

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        score, expert = self.route(tokens)
        order = torch.argsort(expert, stable=True)
        counts = torch.bincount(expert, minlength=self.n_experts).tolist()
        grouped = (tokens * score.unsqueeze(-1))[order]
        grouped = self.experts(grouped, counts)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel(), device=order.device)
        return grouped[inverse].reshape(x.shape)


class PolicyBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.norm_rnn = nn.LayerNorm(cfg.width)
        self.rnn = nn.GRU(cfg.width, cfg.width, batch_first=True)
        self.norm_moe = nn.LayerNorm(cfg.width)
        self.moe = ButterflyMoE(cfg)

    def forward(self, x):
        h, _ = self.rnn(self.norm_rnn(x))
        x = x + h
        return x + self.moe(self.norm_moe(x))


class Policy(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.encode_obs = nn.Linear(cfg.obs_dim, cfg.width)
        self.encode_goal = nn.Linear(cfg.goal_dim, cfg.width)
        self.blocks = nn.ModuleList(PolicyBlock(cfg) for _ in range(cfg.n_blocks))
        self.norm = nn.LayerNorm(cfg.width)
        self.actor = nn.Linear(cfg.width, cfg.act_dim)
        self.critic = nn.Linear(cfg.width, 1)

    def forward(self, obs, goal):
        x = 2 * torch.tanh(self.encode_obs(obs)) + torch.tanh(self.encode_goal(goal)).unsqueeze(1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return torch.cat((torch.tanh(self.actor(x)), self.critic(x)), dim=-1)


@torch.no_grad()
def load_fake_checkpoint(policy):
    for module in policy.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.normal_(1.0, 0.2)
            module.bias.normal_(0.0, 0.1)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0.0, 1.0 / math.sqrt(module.in_features))
            if module.bias is not None:
                module.bias.normal_(0.0, 0.1)
        elif isinstance(module, PackedTernary):
            n_out, n_in = module.codes.shape
            module.pack(torch.randn(n_out, n_in) * (2.0 / math.sqrt(n_in)))
            module.bias.normal_(0.0, 0.2)
    for block in policy.blocks:
        block.moe.experts.theta.normal_(0.0, 0.5)
        block.moe.experts.phi.normal_(0.0, 0.5)


def make():
    torch.manual_seed(1)
    cfg = PolicyConfig()
    policy = Policy(cfg)
    load_fake_checkpoint(policy)
    obs = torch.randn(3, 24, cfg.obs_dim)
    goal = torch.randn(3, cfg.goal_dim)
    return policy.eval(), (obs, goal)
