"""Fraud scoring over a card's recent transactions; scriptable code (typed forward, ModuleList, no advanced indexing).

Expert: Algorithm 2, W_down . B(phi) . GELU(W_hat . B(theta) x + b_up), erf GELU; d = 24 (padded to 32), F = 40 (padded to 64).
Weights are ternary in the checkpoint: int8 buffers with one float scale per output row, for W_hat and W_down both.
Shuffle: deinterleave (evens first, then odds) after each rotation (Algorithm 1), done with view + transpose.
Rotation: pairs (2j, 2j+1), a' = c a - s b, b' = s a + c b.  L_in = 3, L_out = 2.
Router: sigmoid of each logit, top-2 of 4, scores used as they are (no renormalisation).
Biases: b_up before the GELU; b_down added once after the experts are summed.
Dispatch: ModuleList of small modules that own only their angles; loop over experts, masked nonzero, index_select, index_add_.
"""
from typing import List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def pow2_at_least(n: int) -> int:
    p = 1
    while p < n:
        p = p * 2
    return p


class RotationStack(nn.Module):
    """Fixed number of rotation levels, each followed by an even/odd split."""

    def __init__(self, width: int, num_levels: int) -> None:
        super().__init__()
        self.width: int = width
        self.padded: int = pow2_at_least(width)
        self.num_levels: int = num_levels
        self.angles = nn.Parameter(torch.randn(num_levels, self.padded // 2) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.size(0)
        half = self.padded // 2
        extra = self.padded - self.width
        if extra > 0:
            x = torch.cat([x, torch.zeros([rows, extra], dtype=x.dtype, device=x.device)], dim=1)
        for level in range(self.num_levels):
            angle = self.angles.select(0, level).unsqueeze(0)
            cos_t = torch.cos(angle)
            sin_t = torch.sin(angle)
            pairs = x.view(rows, half, 2)
            a = pairs.select(2, 0)
            b = pairs.select(2, 1)
            new_a = cos_t * a - sin_t * b
            new_b = sin_t * a + cos_t * b
            x = torch.stack([new_a, new_b], dim=2).transpose(1, 2).contiguous().view(rows, self.padded)
        return x.narrow(1, 0, self.width)


class ExpertAngles(nn.Module):
    def __init__(self, d_model: int, d_ff: int, levels_in: int, levels_out: int) -> None:
        super().__init__()
        self.rot_in = RotationStack(d_model, levels_in)
        self.rot_out = RotationStack(d_ff, levels_out)

    def forward(self, x: Tensor, w_up: Tensor, b_up: Tensor, w_down: Tensor) -> Tensor:
        h = torch.addmm(b_up, self.rot_in(x), w_up.t())
        h = F.gelu(h)
        return torch.mm(self.rot_out(h), w_down.t())


class TernaryMatrix(nn.Module):
    trits: Tensor
    row_scale: Tensor

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        raw = torch.randn(out_features, in_features) / float(in_features) ** 0.5
        scale = raw.abs().mean(dim=1)
        trits = torch.clamp(torch.round(raw / (scale.unsqueeze(1) + 1e-8)), -1.0, 1.0)
        self.register_buffer("trits", trits.to(torch.int8))
        self.register_buffer("row_scale", scale)

    def forward(self) -> Tensor:
        return self.trits.to(self.row_scale.dtype) * self.row_scale.unsqueeze(1)


class SparseExpertLayer(nn.Module):
    def __init__(self, d_model: int, d_ff: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k: int = top_k
        self.router = nn.Linear(d_model, num_experts)
        self.up = TernaryMatrix(d_ff, d_model)
        self.down = TernaryMatrix(d_model, d_ff)
        self.b_up = nn.Parameter(torch.randn(d_ff) * 0.2)
        self.b_down = nn.Parameter(torch.randn(d_model) * 0.2)
        self.experts = nn.ModuleList([ExpertAngles(d_model, d_ff, 3, 2) for _ in range(num_experts)])

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        seq = x.size(1)
        flat = x.reshape(batch * seq, x.size(2))
        scores = torch.sigmoid(self.router(flat))
        top: Tuple[Tensor, Tensor] = torch.topk(scores, self.top_k, dim=1)
        chosen_score = top[0]
        chosen_id = top[1]
        w_up = self.up()
        w_down = self.down()
        result = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            hit = chosen_id.eq(i)
            per_token = (chosen_score * hit.to(chosen_score.dtype)).sum(dim=1)
            rows = torch.nonzero(hit.any(dim=1)).view(-1)
            if rows.numel() > 0:
                piece = expert(flat.index_select(0, rows), w_up, self.b_up, w_down)
                piece = piece * per_token.index_select(0, rows).unsqueeze(1)
                result.index_add_(0, rows, piece)
        result = result + self.b_down
        return result.view(batch, seq, -1)


class CausalAttention(nn.Module):
    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads: int = num_heads
        self.head_dim: int = d_model // num_heads
        self.q = nn.Linear(d_model, d_model)
        self.k = nn.Linear(d_model, d_model)
        self.v = nn.Linear(d_model, d_model)
        self.o = nn.Linear(d_model, d_model)

    def split(self, t: Tensor) -> Tensor:
        return t.view(t.size(0), t.size(1), self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.split(self.q(x))
        k = self.split(self.k(x))
        v = self.split(self.v(x))
        logits = torch.matmul(q, k.transpose(2, 3)) * (float(self.head_dim) ** -0.5)
        future = torch.ones([x.size(1), x.size(1)], dtype=torch.bool, device=x.device).triu(1)
        logits = logits.masked_fill(future, -1e9)
        mixed = torch.matmul(torch.softmax(logits, dim=-1), v)
        return self.o(mixed.transpose(1, 2).reshape(x.size(0), x.size(1), -1))


class ScoringBlock(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.attn = CausalAttention(d_model, 3)
        self.norm1 = nn.LayerNorm(d_model)
        self.ffn = SparseExpertLayer(d_model, d_ff, 4, 2)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.ffn(x))


class FraudScorer(nn.Module):
    def __init__(self, num_mcc: int, num_channels: int, num_numeric: int, d_model: int = 24, d_ff: int = 40) -> None:
        super().__init__()
        self.mcc = nn.Embedding(num_mcc, d_model)
        self.channel = nn.Embedding(num_channels, d_model)
        self.numeric = nn.Linear(num_numeric, d_model)
        blocks: List[nn.Module] = [ScoringBlock(d_model, d_ff) for _ in range(3)]
        self.blocks = nn.ModuleList(blocks)
        self.score = nn.Linear(d_model, 1)

    def forward(self, mcc: Tensor, channel: Tensor, amounts: Tensor) -> Tensor:
        x = self.mcc(mcc) + self.channel(channel) + self.numeric(amounts)
        for block in self.blocks:
            x = block(x)
        return self.score(x).squeeze(2)


def make() -> Tuple[nn.Module, Tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(20190611)
    model = FraudScorer(num_mcc=30, num_channels=4, num_numeric=5)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data.add_(torch.randn_like(p) * 0.1)
        elif "router.weight" in name:
            p.data.copy_(torch.randn_like(p) * 0.35)
        elif name.endswith(".bias"):
            p.data.copy_(torch.randn_like(p) * 0.1)
    inputs = (torch.randint(0, 30, (2, 18)), torch.randint(0, 4, (2, 18)), torch.randn(2, 18, 5))
    return model.eval(), inputs
