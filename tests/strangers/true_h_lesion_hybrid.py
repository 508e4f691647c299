"""2.5D lesion segmenter: ConvNeXt stage, patch merging, Swin stage, pixel-shuffle decoder; the MLPs are butterfly experts.

Feed-forward: equation 3 without W_down (F = d), expert_i = B(phi_i)^T . gelu( W_hat . B(theta_i) x + b ).
  * B: L layers of {interleave the two halves; Givens on (2j, 2j+1)}, shuffle before the rotation (equation 4)
  * handedness: forward on the input side, transpose on the output side; L = 3 / 5 by stage
  * quantiser: threshold 0.7 mean |w|, magnitude mean |w|, both per output row, straight-through
  * router: sigmoid scores, top-2, not renormalised (no router bias)
  * dispatch: loop over experts, torch.where on the index table, index_add_
  * biases: b shared before the gelu (erf); output bias shared, inside the expert sum (weighted by the gate)
  * widths: 24 -> 32 and 48 -> 64, zero-padded once around the layers; LayerScale and residual outside
  * returns (mask logits, lesion-present logit)
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def window_partition(x, ws):
    B, H, W, C = x.shape
    x = x.view(B, H // ws, ws, W // ws, ws, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, ws * ws, C)


def window_reverse(win, ws, H, W):
    C = win.shape[-1]
    x = win.view(-1, H // ws, W // ws, ws, ws, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, C)


class TernaryRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        scale = w.abs().mean(dim=1, keepdim=True)
        hot = w.abs() > 0.7 * scale
        return torch.where(hot, torch.sign(w), torch.zeros_like(w)) * scale

    @staticmethod
    def backward(ctx, g):
        return g


class ChannelButterfly(nn.Module):
    """One expert's orthogonal channel mixing: a list of per-layer angle vectors."""

    def __init__(self, dim, depth):
        super().__init__()
        self.dim = dim
        self.width = 2 ** (dim - 1).bit_length()
        self.angles = nn.ParameterList([nn.Parameter(torch.randn(self.width // 2) * 0.5) for _ in range(depth)])

    def _pad(self, x):
        return F.pad(x, [0, self.width - self.dim])

    def forward(self, x):
        x = self._pad(x)
        for a in self.angles:
            lo, hi = x.chunk(2, dim=-1)
            c, s = torch.cos(a), torch.sin(a)
            x = torch.stack([lo * c - hi * s, lo * s + hi * c], dim=-1).flatten(1)
        return x[:, : self.dim]

    def transpose(self, y):
        y = self._pad(y)
        for a in reversed(list(self.angles)):
            even, odd = y.unflatten(-1, (-1, 2)).unbind(-1)
            c, s = torch.cos(a), torch.sin(a)
            y = torch.cat([even * c + odd * s, odd * c - even * s], dim=-1)
        return y[:, : self.dim]


class MoEMlp(nn.Module):
    def __init__(self, dim, num_experts, depth, top_k=2):
        super().__init__()
        self.top_k, self.num_experts = top_k, num_experts
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.weight = nn.Parameter(torch.randn(dim, dim) * (2.0 / dim) ** 0.5)
        self.bias = nn.Parameter(torch.randn(dim) * 0.2)
        self.out_bias = nn.Parameter(torch.randn(dim) * 0.2)
        self.rot_in = nn.ModuleList([ChannelButterfly(dim, depth) for _ in range(num_experts)])
        self.rot_out = nn.ModuleList([ChannelButterfly(dim, depth) for _ in range(num_experts)])
        nn.init.normal_(self.router.weight, std=0.6)

    def forward(self, x):
        B, H, W, C = x.shape
        tokens = x.reshape(-1, C)
        scores = torch.sigmoid(self.router(tokens))
        gate, pick = scores.topk(self.top_k, dim=-1)
        w = TernaryRows.apply(self.weight)
        out = torch.zeros_like(tokens)
        for e in range(self.num_experts):
            rows, slot = torch.where(pick == e)
            if rows.numel() == 0:
                continue
            h = self.rot_in[e](tokens[rows])
            h = F.gelu(F.linear(h, w, self.bias))
            h = self.rot_out[e].transpose(h) + self.out_bias
            out.index_add_(0, rows, h * gate[rows, slot].unsqueeze(1))
        return out.view(B, H, W, C)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim, num_experts, depth):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MoEMlp(dim, num_experts, depth)
        self.gamma = nn.Parameter(0.6 + 0.2 * torch.rand(dim))

    def forward(self, x):
        y = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.gamma * self.mlp(self.norm(y))


class PatchMerging(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x))


class SwinBlock(nn.Module):
    def __init__(self, dim, heads, ws, shift, res, num_experts, depth):
        super().__init__()
        self.heads, self.ws, self.shift = heads, ws, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rel_table = nn.Parameter(torch.randn((2 * ws - 1) ** 2, heads) * 0.3)
        g = torch.stack(torch.meshgrid(torch.arange(ws), torch.arange(ws), indexing="ij")).flatten(1)
        rel = (g[:, :, None] - g[:, None, :]) + ws - 1
        self.register_buffer("rel_index", rel[0] * (2 * ws - 1) + rel[1], persistent=False)
        region = torch.zeros(1, res, res, 1)
        if shift:
            cuts = (slice(0, -ws), slice(-ws, -shift), slice(-shift, None))
            for i, a in enumerate(cuts):
                for j, b in enumerate(cuts):
                    region[:, a, b] = 3 * i + j
        r = window_partition(region, ws).squeeze(-1)
        self.register_buffer("attn_mask", (r[:, None] != r[:, :, None]).float() * -100.0, persistent=False)
        self.mlp = MoEMlp(dim, num_experts, depth)

    def attend(self, x):
        n, t, C = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        a = q @ k.transpose(-2, -1) * (C // self.heads) ** -0.5
        a = a + self.rel_table[self.rel_index].permute(2, 0, 1)
        nw = self.attn_mask.shape[0]
        a = (a.view(n // nw, nw, self.heads, t, t) + self.attn_mask[:, None]).view(n, self.heads, t, t)
        return self.proj((a.softmax(-1) @ v).transpose(1, 2).reshape(n, t, C))

    def forward(self, x):
        B, H, W, C = x.shape
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = window_reverse(self.attend(window_partition(y, self.ws)), self.ws, H, W)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class LesionNet(nn.Module):
    def __init__(self, slices=3, dim=24):
        super().__init__()
        self.stem = nn.Conv2d(slices, dim, 4, stride=4)
        self.stem_norm = nn.LayerNorm(dim)
        self.stage1 = ConvNeXtBlock(dim, num_experts=7, depth=3)
        self.merge = PatchMerging(dim)
        self.stage2 = nn.ModuleList([SwinBlock(2 * dim, 4, 2, s, 4, num_experts=4, depth=5) for s in (0, 1)])
        self.up = nn.Conv2d(2 * dim, 4 * dim, 1)
        self.seg = nn.Conv2d(2 * dim, 16, 1)
        self.cls = nn.Linear(2 * dim, 1)

    def forward(self, x):
        x = self.stem_norm(self.stem(x).permute(0, 2, 3, 1))
        skip = self.stage1(x)
        z = self.merge(skip)
        for blk in self.stage2:
            z = blk(z)
        present = self.cls(z.mean((1, 2)))
        up = F.pixel_shuffle(self.up(z.permute(0, 3, 1, 2)), 2)
        mask = F.pixel_shuffle(self.seg(torch.cat([up, skip.permute(0, 3, 1, 2)], 1)), 4)
        return mask, present


def make():
    torch.manual_seed(5)
    net = LesionNet()
    for m in net.modules():
        if isinstance(m, nn.LayerNorm):
            nn.init.normal_(m.weight, 1.0, 0.2)
            nn.init.normal_(m.bias, 0.0, 0.2)
        elif isinstance(m, (nn.Linear, nn.Conv2d)) and m.bias is not None:
            nn.init.normal_(m.bias, 0.0, 0.1)
    return net.eval(), (torch.randn(1, 3, 32, 32),)
