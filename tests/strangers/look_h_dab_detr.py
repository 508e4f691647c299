"""Small DAB-DETR whose decoder feed-forwards are butterfly mixtures modulated by the size of the anchor box.

  form        W_down . B(m * phi_i) . GELU(W_hat . B(m * theta_i) x) + b, m a number per query
  rotation    x * cos + rotate_every_two(x) * sin, cos and sin repeated per pair; L_in = 5, L_out = 6
  shuffle     after the rotation, deinterleave by a view and transpose; plain handedness on both sides
  quantiser   per-tensor gamma, round and clip; d = 32, F = 64, no padding
  router      softmax over all 5, then top-2, not renormalised
  biases      b_down added once
  dispatch    loop over the k slots, angle tables gathered by expert index
NOT a Butterfly layer: every query scales its expert's angles by m, which is computed from the query and its current
box (as the modulated attention does), so an expert is a family of rotations steered by the input and not one fixed map.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn


def inverse_sigmoid(x, eps=1e-3):
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def gen_sineembed_for_position(pos, dim):
    n = dim // pos.shape[-1]
    freq = 20.0 ** (-torch.arange(n // 2, dtype=pos.dtype) / (n // 2))
    t = pos[..., None] * 2 * math.pi * freq
    return torch.cat((t.sin(), t.cos()), -1).flatten(-2)


class MLP(nn.Module):
    def __init__(self, input_dim, hidden_dim, output_dim, num_layers):
        super().__init__()
        h = [hidden_dim] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.Linear(n, k) for n, k in zip([input_dim] + h, h + [output_dim]))

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if i < len(self.layers) - 1 else layer(x)
        return x


def rotate_every_two(x):
    return torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)


def butterfly(x, ang):
    for l in range(ang.shape[1]):
        a = ang[:, l].repeat_interleave(2, -1)
        x = x * a.cos() + rotate_every_two(x) * a.sin()
        x = x.view(x.shape[0], -1, 2).transpose(1, 2).flatten(1)
    return x


class ModulatedButterflyFFN(nn.Module):
    def __init__(self, d_model, d_ff, num_experts, topk):
        super().__init__()
        self.topk = topk
        self.router = nn.Linear(d_model, num_experts, bias=False)
        self.theta = nn.Parameter(torch.randn(num_experts, int(math.log2(d_model)), d_model // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(num_experts, int(math.log2(d_ff)), d_ff // 2) * 0.5)
        self.weight = nn.Parameter(torch.randn(d_ff, d_model) / math.sqrt(d_model))
        self.linear2 = nn.Linear(d_ff, d_model)
        self.ref_anchor_head = MLP(d_model, d_model, 1, 2)

    def ternary(self):
        gamma = self.weight.abs().mean()
        q = gamma * (self.weight / (gamma + 1e-8)).round().clamp(-1, 1)
        return self.weight + (q - self.weight).detach()

    def forward(self, tgt, ref):
        bs, nq, d = tgt.shape
        x, box = tgt.reshape(-1, d), ref.reshape(-1, 4)
        cond = self.ref_anchor_head(x).sigmoid()
        m = 0.5 + cond * (box[:, 2:3] + box[:, 3:4])
        p, idx = self.router(x).softmax(-1).topk(self.topk, -1)
        w = self.ternary()
        out = self.linear2.bias.expand_as(x)
        for k in range(self.topk):
            h = butterfly(x, self.theta[idx[:, k]] * m[:, None])
            h = F.gelu(h @ w.t())
            h = butterfly(h, self.phi[idx[:, k]] * m[:, None])
            out = out + p[:, k, None] * (h @ self.linear2.weight.t())
        return out.view(bs, nq, d)


class EncoderLayer(nn.Module):
    def __init__(self, d, nhead, ff):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d, nhead, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d, ff), nn.Linear(ff, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, src, pos):
        q = k = src + pos
        src = self.norm1(src + self.self_attn(q, k, src, need_weights=False)[0])
        return self.norm2(src + self.linear2(F.relu(self.linear1(src))))


class DecoderLayer(nn.Module):
    def __init__(self, d, nhead, ff, num_experts, topk):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d, nhead, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(d, nhead, batch_first=True)
        self.ffn = ModulatedButterflyFFN(d, ff, num_experts, topk)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, tgt, memory, pos, query_pos, ref):
        q = k = tgt + query_pos
        tgt = self.norm1(tgt + self.self_attn(q, k, tgt, need_weights=False)[0])
        tgt = self.norm2(tgt + self.cross_attn(tgt + query_pos, memory + pos, memory, need_weights=False)[0])
        return self.norm3(tgt + self.ffn(tgt, ref))


class DABDETR(nn.Module):
    def __init__(self, d=32, nhead=4, ff=64, num_experts=5, topk=2, num_queries=18, dec=3, num_classes=7):
        super().__init__()
        self.d = d
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU())
        self.input_proj = nn.Conv2d(24, d, 1)
        self.encoder = nn.ModuleList([EncoderLayer(d, nhead, ff)])
        self.decoder = nn.ModuleList([DecoderLayer(d, nhead, ff, num_experts, topk) for _ in range(dec)])
        self.refpoint_embed = nn.Embedding(num_queries, 4)
        self.content = nn.Embedding(num_queries, d)
        self.ref_point_head = MLP(d, d, d, 2)
        self.class_embed = nn.Linear(d, num_classes + 1)
        self.bbox_embed = MLP(d, d, 4, 3)

    def forward(self, images):
        feat = self.input_proj(self.backbone(images))
        bs, _, h, w = feat.shape
        ys = (torch.arange(h, dtype=feat.dtype) + 0.5) / h
        xs = (torch.arange(w, dtype=feat.dtype) + 0.5) / w
        grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij"), -1).flatten(0, 1)
        pos = gen_sineembed_for_position(grid, self.d)[None].expand(bs, -1, -1)
        memory = feat.flatten(2).transpose(1, 2)
        for layer in self.encoder:
            memory = layer(memory, pos)
        ref = self.refpoint_embed.weight.sigmoid()[None].expand(bs, -1, -1)
        tgt = self.content.weight[None].expand(bs, -1, -1)
        for layer in self.decoder:
            query_pos = self.ref_point_head(gen_sineembed_for_position(ref, self.d))
            tgt = layer(tgt, memory, pos, query_pos, ref)
            ref = (self.bbox_embed(tgt) + inverse_sigmoid(ref)).sigmoid()
        return self.class_embed(tgt), ref


def make():
    torch.manual_seed(80)
    model = DABDETR()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "norm" in n and n.endswith("weight"):
                p.add_(0.2 * torch.randn_like(p))
            elif n.endswith("bias"):
                p.normal_(std=0.1)
            elif n.endswith("router.weight"):
                p.normal_(std=0.3)
    return model.eval(), (torch.randn(2, 3, 24, 32),)
