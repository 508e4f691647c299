"""Inference-only ButterflyViT: loads a packed checkpoint, no float master weights anywhere.

W_up and W_down are both ternary, stored as int8 codes with a per-output-row scale; rotations are stored as cos/sin
tables.  Experts live in an nn.ModuleList and own only those tables; the int8 bank is shared and handed over at call time.
Butterfly = FFT style: no shuffle, pair distance 1, 2, 4, ... (all log2 n stages on both sides).  GELU(erf) before B(phi).
Router: linear with bias, top-2 of the logits, then softmax over the two.  Both biases are inside the expert (so b_down is
weighted by the gate).  Dispatch: assignments sorted by expert and packed in static [E, capacity, d] slabs (capacity = T,
nothing can be dropped), one expert per slab, then un-permuted.
"""
from typing import Dict

import torch
import torch.nn as nn
import torch.nn.functional as F

D_MODEL, D_FF, N_EXPERTS, TOP_K, N_HEADS, N_BLOCKS = 32, 64, 6, 2, 4, 2
IMG, PATCH, N_CLASSES = 20, 5, 10
STAGES_IN, STAGES_OUT = 5, 6


class TernaryLinear(nn.Module):
    """y = (x @ codes.T) * row_scale + bias"""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.register_buffer("codes", torch.zeros(n_out, n_in, dtype=torch.int8))
        self.register_buffer("row_scale", torch.ones(n_out))
        self.register_buffer("bias", torch.zeros(n_out))

    def forward(self, x):
        acc = torch.matmul(x, self.codes.to(x.dtype).t())
        return acc * self.row_scale + self.bias


class RotationTable(nn.Module):
    def __init__(self, width: int, stages: int):
        super().__init__()
        self.width, self.stages = width, stages
        self.register_buffer("cos", torch.ones(stages, width // 2))
        self.register_buffer("sin", torch.zeros(stages, width // 2))

    def forward(self, x):
        rows = x.shape[0]
        for s in range(self.stages):
            h = 1 << s
            groups = self.width // (2 * h)
            v = x.reshape(rows, groups, 2, h)
            c = self.cos[s].view(groups, h)
            n = self.sin[s].view(groups, h)
            lo, hi = v.select(2, 0), v.select(2, 1)
            x = torch.stack((lo * c - hi * n, lo * n + hi * c), dim=2).reshape(rows, self.width)
        return x


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.rot_in = RotationTable(D_MODEL, STAGES_IN)
        self.rot_out = RotationTable(D_FF, STAGES_OUT)

    def forward(self, x, up: TernaryLinear, down: TernaryLinear):
        return down(self.rot_out(F.gelu(up(self.rot_in(x)))))


class MoEFeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(D_MODEL, N_EXPERTS)
        self.up = TernaryLinear(D_MODEL, D_FF)
        self.down = TernaryLinear(D_FF, D_MODEL)
        self.experts = nn.ModuleList(Expert() for _ in range(N_EXPERTS))

    def forward(self, x):
        B, N, D = x.shape
        tokens = x.reshape(B * N, D)
        T = tokens.shape[0]

        logits, chosen = torch.topk(self.router(tokens), TOP_K, dim=-1)
        gates = torch.softmax(logits, dim=-1)

        # sort the T*K assignments by expert
        flat = chosen.reshape(-1)
        sorted_expert, order = torch.sort(flat, stable=True)
        src_token = torch.div(order, TOP_K, rounding_mode="floor")
        counts = (flat.unsqueeze(0) == torch.arange(N_EXPERTS, device=x.device).unsqueeze(1)).sum(1)
        starts = torch.cumsum(counts, 0) - counts
        slot = torch.arange(T * TOP_K, device=x.device) - starts[sorted_expert]

        slabs = tokens.new_zeros(N_EXPERTS, T, D)
        slabs = slabs.index_put((sorted_expert, slot), tokens[src_token])
        results = torch.stack([e(slabs[i], self.up, self.down) for i, e in enumerate(self.experts)])

        picked = results[sorted_expert, slot] * gates.reshape(-1)[order].unsqueeze(-1)
        out = torch.zeros_like(tokens).index_add(0, src_token, picked)
        return out.reshape(B, N, D)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1 = nn.LayerNorm(D_MODEL, eps=1e-6)
        self.attn = nn.MultiheadAttention(D_MODEL, N_HEADS, batch_first=True)
        self.ln2 = nn.LayerNorm(D_MODEL, eps=1e-6)
        self.moe = MoEFeedForward()

    def forward(self, x):
        y = self.ln1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.moe(self.ln2(x))


class ButterflyViTInfer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, D_MODEL, PATCH, PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, D_MODEL))
        self.pos = nn.Parameter(torch.zeros(1, (IMG // PATCH) ** 2 + 1, D_MODEL))
        self.blocks = nn.ModuleList(Block() for _ in range(N_BLOCKS))
        self.ln = nn.LayerNorm(D_MODEL, eps=1e-6)
        self.head = nn.Linear(D_MODEL, N_CLASSES)

    def forward(self, img):
        x = self.patch(img).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.pos
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.ln(x)[:, 0])


def _pack(w: torch.Tensor):
    gamma = w.abs().mean(1)
    codes = torch.clamp(torch.round(w / (gamma[:, None] + 1e-8)), -1, 1)
    return codes.to(torch.int8), gamma


def _checkpoint(reference: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """What the training job would have exported."""
    sd: Dict[str, torch.Tensor] = {}
    for name, t in reference.items():
        if name in sd:
            continue
        stem, leaf = name.rsplit(".", 1) if "." in name else ("", name)
        if leaf == "codes":
            row_gain = torch.rand(t.shape[0], 1) + 0.7
            sd[name], sd[stem + ".row_scale"] = _pack(torch.randn(t.shape) * row_gain * 1.2 / t.shape[1] ** 0.5)
        elif leaf == "cos":
            angle = torch.randn(t.shape) * 0.5
            sd[name], sd[stem + ".sin"] = angle.cos(), angle.sin()
        elif ".ln" in name or stem == "ln":
            sd[name] = torch.randn(t.shape) * 0.2 + (1.0 if leaf == "weight" else 0.0)
        elif leaf in ("bias", "in_proj_bias"):
            sd[name] = torch.randn(t.shape) * 0.2
        elif leaf in ("cls", "pos"):
            sd[name] = torch.randn(t.shape) * 0.5
        else:
            fan_in = t[0].numel()
            sd[name] = torch.randn(t.shape) * 1.3 / fan_in ** 0.5
    return sd


def make():
    torch.manual_seed(2024)
    net = ButterflyViTInfer()
    net.load_state_dict(_checkpoint(net.state_dict()), strict=True)
    net.eval().requires_grad_(False)
    return net, (torch.randn(2, 3, IMG, IMG),)
