"""
Patch-based multivariate forecaster with a small MoE "library": Router -> Dispatcher -> ExpertBank -> Combiner.

shuffle    : interleave the two halves, before the rotation in every layer (equation 4)
handedness : B(phi) . W_hat . B(theta)^T x (equation 3: the input side is the transpose)
L          : 3 on the input side, 2 on the hidden side
router     : softmax over all experts, top-3, renormalised to sum 1
quantiser  : threshold |w| > 0.7 mean|w|, scale mean|w| (gamma), per tensor, for W_up and for W_down
biases     : up bias after B(phi); down bias inside the expert, so weighted by the gate; both shared
form       : W_down_hat . GELU( B(phi) W_hat B(theta)^T x + b1 ) + b2
dispatch   : stable sort by expert, split by counts, concatenated again, index_add on the token axis
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Tuple

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class MoEConfig:
    hidden_size: int = 32
    ffn_size: int = 128
    num_experts: int = 10
    top_k: int = 3
    depth_in: int = 3
    depth_out: int = 2
    ternary_threshold: float = 0.7


@dataclass
class RouterOutput:
    weights: torch.Tensor        # [tokens, k]
    indices: torch.Tensor        # [tokens, k]
    probs: torch.Tensor          # [tokens, experts]


@dataclass
class DispatchOutput:
    chunks: List[torch.Tensor]   # one [n_e, d] a expert
    token_ids: torch.Tensor      # [tokens * k]
    weights: torch.Tensor        # [tokens * k]
    num_tokens: int


@dataclass
class MoEOutput:
    hidden_states: torch.Tensor
    router: RouterOutput
    load: Tuple[int, ...] = field(default_factory=tuple)


class Router(nn.Module):
    def __init__(self, cfg: MoEConfig):
        super().__init__()
        self.cfg = cfg
        self.proj = nn.Linear(cfg.hidden_size, cfg.num_experts, bias=False)

    def forward(self, tokens: torch.Tensor) -> RouterOutput:
        probs = F.softmax(self.proj(tokens), dim=-1)
        weights, indices = torch.topk(probs, self.cfg.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return RouterOutput(weights=weights, indices=indices, probs=probs)


class Dispatcher(nn.Module):
    def __init__(self, cfg: MoEConfig):
        super().__init__()
        self.cfg = cfg

    def forward(self, tokens: torch.Tensor, routing: RouterOutput) -> DispatchOutput:
        flat = routing.indices.flatten()
        order = torch.argsort(flat, stable=True)
        token_ids = torch.div(order, self.cfg.top_k, rounding_mode="floor")
        counts = torch.bincount(flat, minlength=self.cfg.num_experts).tolist()
        chunks = list(torch.split(tokens[token_ids], counts, dim=0))
        return DispatchOutput(chunks, token_ids, routing.weights.flatten()[order], tokens.size(0))


class Combiner(nn.Module):
    def forward(self, expert_outputs: List[torch.Tensor], dispatch: DispatchOutput) -> torch.Tensor:
        merged = torch.cat(expert_outputs, dim=0) * dispatch.weights[:, None]
        out = merged.new_zeros(dispatch.num_tokens, merged.size(-1))
        return out.index_add(0, dispatch.token_ids, merged)


class TernaryLinear(nn.Module):
    def __init__(self, in_features: int, out_features: int, threshold: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * in_features ** -0.5)
        self.threshold = threshold

    def quantized(self) -> torch.Tensor:
        gamma = self.weight.abs().mean()
        codes = torch.sign(self.weight) * (self.weight.abs() > self.threshold * gamma).to(self.weight.dtype)
        w = codes * gamma
        return self.weight + (w - self.weight).detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.quantized())


class Butterfly(nn.Module):
    """A set of `num_experts` butterfly rotations; `apply` and `apply_transposed` take one expert's slice."""

    def __init__(self, width: int, depth: int, num_experts: int):
        super().__init__()
        self.width, self.depth = width, depth
        self.angles = nn.Parameter(torch.randn(num_experts, depth, width // 2) * 0.5)

    def apply_forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        for layer in range(self.depth):
            first, second = x.chunk(2, dim=-1)
            # after interleaving the halves, pair j is (first[j], second[j])
            a, b = first, second
            t = self.angles[expert, layer]
            x = torch.stack((a * t.cos() - b * t.sin(), a * t.sin() + b * t.cos()), dim=-1).flatten(-2)
        return x

    def apply_transposed(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        for layer in reversed(range(self.depth)):
            a, b = x.unflatten(-1, (self.width // 2, 2)).unbind(-1)
            t = self.angles[expert, layer]
            x = torch.cat((a * t.cos() + b * t.sin(), b * t.cos() - a * t.sin()), dim=-1)
        return x


class ExpertBank(nn.Module):
    def __init__(self, cfg: MoEConfig):
        super().__init__()
        self.cfg = cfg
        self.rot_in = Butterfly(cfg.hidden_size, cfg.depth_in, cfg.num_experts)
        self.rot_out = Butterfly(cfg.ffn_size, cfg.depth_out, cfg.num_experts)
        self.up = TernaryLinear(cfg.hidden_size, cfg.ffn_size, cfg.ternary_threshold)
        self.down = TernaryLinear(cfg.ffn_size, cfg.hidden_size, cfg.ternary_threshold)
        self.up_bias = nn.Parameter(torch.zeros(cfg.ffn_size))
        self.down_bias = nn.Parameter(torch.zeros(cfg.hidden_size))

    def run_expert(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        h = self.up(self.rot_in.apply_transposed(x, expert))
        h = F.gelu(self.rot_out.apply_forward(h, expert) + self.up_bias)
        return self.down(h) + self.down_bias

    def forward(self, dispatch: DispatchOutput) -> List[torch.Tensor]:
        return [self.run_expert(chunk, e) for e, chunk in enumerate(dispatch.chunks)]


class MixtureOfButterflies(nn.Module):
    def __init__(self, cfg: MoEConfig):
        super().__init__()
        self.router, self.dispatcher = Router(cfg), Dispatcher(cfg)
        self.experts, self.combiner = ExpertBank(cfg), Combiner()

    def forward(self, hidden_states: torch.Tensor) -> MoEOutput:
        tokens = hidden_states.flatten(0, -2)
        routing = self.router(tokens)
        dispatch = self.dispatcher(tokens, routing)
        mixed = self.combiner(self.experts(dispatch), dispatch)
        return MoEOutput(mixed.view_as(hidden_states), routing, tuple(c.size(0) for c in dispatch.chunks))


class ForecastBlock(nn.Module):
    def __init__(self, cfg: MoEConfig):
        super().__init__()
        d = cfg.hidden_size
        self.norm_time, self.norm_ffn = nn.LayerNorm(d), nn.LayerNorm(d)
        self.mix = nn.Conv1d(d, d, 3, padding=1, groups=4)
        self.moe = MixtureOfButterflies(cfg)

    def forward(self, x):
        x = x + F.silu(self.mix(self.norm_time(x).mT)).mT
        return x + self.moe(self.norm_ffn(x)).hidden_states


class PatchForecaster(nn.Module):
    def __init__(self, cfg: MoEConfig, channels=3, patch=8, length=96, horizon=12, num_blocks=2):
        super().__init__()
        self.patch, self.horizon = patch, horizon
        self.embed = nn.Linear(patch, cfg.hidden_size)
        self.channel_embed = nn.Embedding(channels, cfg.hidden_size)
        self.position = nn.Parameter(torch.randn(length // patch, cfg.hidden_size) * 0.2)
        self.blocks = nn.ModuleList(ForecastBlock(cfg) for _ in range(num_blocks))
        self.head = nn.Linear(cfg.hidden_size * (length // patch), horizon)

    def forward(self, series):                                   # [batch, channels, time]
        mean, std = series.mean(-1, keepdim=True), series.std(-1, keepdim=True) + 1e-5
        x = self.embed(((series - mean) / std).unfold(-1, self.patch, self.patch))
        x = x + self.position + self.channel_embed.weight[None, :, None]
        b, c = x.shape[:2]
        x = x.flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(1)).view(b, c, self.horizon) * std + mean


def make():
    torch.manual_seed(303)
    cfg = MoEConfig()
    model = PatchForecaster(cfg)
    nn.init.normal_(model.embed.weight, 0.0, 0.5)
    for name, p in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf.endswith("bias"):
            nn.init.normal_(p, 0.0, 0.15)
        elif "norm_" in name and leaf == "weight":
            nn.init.uniform_(p, 0.6, 1.4)
        elif name.endswith("router.proj.weight"):
            nn.init.normal_(p, 0.0, 0.3)
    return model.eval(), (torch.randn(2, 3, 96).cumsum(-1),)
