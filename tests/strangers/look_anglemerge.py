"""LOOKALIKE.  Bare pre-norm MoE layer with residual and head: shared ternary W_hat, shared float W_down, per-expert angles,
softmax -> top-2 -> renormalised gates, rotate/deinterleave/GELU all as in the paper.
What differs: the gates mix the chosen experts' ANGLES, not their outputs ("soft merging": one rotation with
theta = sum_i g_i theta_i, phi = sum_i g_i phi_i, run once per token for k times less work).  As cos/sin are not linear
this is not sum_i g_i expert_i(x); it would agree with the paper only for k = 1 (or gates that are 0/1).
"""
from dataclasses import dataclass
from typing import Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass(frozen=True)
class MoEArgs:
    d_model: int = 32
    d_ff: int = 64
    n_experts: int = 6
    top_k: int = 2
    n_layers_in: int = 4
    n_layers_out: int = 4
    n_out: int = 10


def butterfly(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """x [N, D]; angle [N, L, D/2] (each row has its own angles)."""
    cos, sin = angle.cos().unbind(1), angle.sin().unbind(1)
    for c, s in zip(cos, sin):
        even, odd = x[:, 0::2], x[:, 1::2]
        x = torch.stack([even * c - odd * s, even * s + odd * c], dim=2).view(x.shape)
        x = torch.cat([x[:, 0::2], x[:, 1::2]], dim=1)
    return x


class Router(nn.Module):
    def __init__(self, args: MoEArgs):
        super().__init__()
        self.top_k = args.top_k
        self.gate = nn.Linear(args.d_model, args.n_experts, bias=False)

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        probs = F.softmax(self.gate(x), dim=-1)
        weights, experts = probs.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, experts


class ButterflyMoE(nn.Module):
    def __init__(self, args: MoEArgs):
        super().__init__()
        self.args = args
        self.router = Router(args)
        self.theta = nn.Parameter(torch.empty(args.n_experts, args.n_layers_in, args.d_model // 2))
        self.phi = nn.Parameter(torch.empty(args.n_experts, args.n_layers_out, args.d_ff // 2))
        self.w_shared = nn.Parameter(torch.empty(args.d_ff, args.d_model))
        self.w_down = nn.Linear(args.d_ff, args.d_model)
        nn.init.xavier_normal_(self.w_shared)
        nn.init.normal_(self.theta, std=0.01)
        nn.init.normal_(self.phi, std=0.01)

    def w_hat(self) -> torch.Tensor:
        gamma = self.w_shared.abs().mean()
        q = torch.round(self.w_shared / (gamma + 1e-8)).clamp(-1, 1) * gamma
        return self.w_shared + (q - self.w_shared).detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.args.d_model)
        weights, experts = self.router(flat)
        theta = torch.einsum("nk,nklp->nlp", weights, self.theta[experts])
        phi = torch.einsum("nk,nklp->nlp", weights, self.phi[experts])
        h = F.gelu(F.linear(butterfly(flat, theta), self.w_hat()))
        y = self.w_down(butterfly(h, phi))
        return y.view_as(x)


class MoEHead(nn.Module):
    def __init__(self, args: MoEArgs):
        super().__init__()
        self.norm = nn.LayerNorm(args.d_model)
        self.moe = ButterflyMoE(args)
        self.norm_out = nn.LayerNorm(args.d_model)
        self.head = nn.Linear(args.d_model, args.n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.moe(self.norm(x))
        return self.head(self.norm_out(x))


def make():
    torch.manual_seed(2603)
    net = MoEHead(MoEArgs())
    with torch.no_grad():
        net.moe.theta.normal_(0, 0.6)
        net.moe.phi.normal_(0, 0.6)
        net.moe.router.gate.weight.normal_(0, 0.3)
        net.moe.w_down.weight.normal_(0, 0.25)
        net.moe.w_down.bias.normal_(0, 0.2)
        for ln in (net.norm, net.norm_out):
            ln.weight.add_(0.2 * torch.randn(32))
            ln.bias.normal_(0, 0.1)
    return net.eval(), (torch.randn(2, 20, 32),)
