"""
Swin-like classifier on channels-last maps [B, H, W, C]; the MoE runs on the map itself, never flattened to tokens.

shuffle    : deinterleave, before the rotation (the first layer already sees shuffled channels)
handedness : transposed on both sides: B(phi)^T on the hidden map, B(theta)^T on the input map
L          : 5 on the input side (24 -> 32), 1 on the hidden side (72 -> 128); zero pad / strip once around all layers
router     : 1x1 linear with bias, softmax over all, top-1, gate = that probability (Switch)
quantiser  : gamma = mean|W| per tensor, round/clip, straight-through (autograd.Function)
biases     : shared up bias before GELU, shared down bias weighted by the gate
form       : W_down . B(phi)^T . GELU( W_hat . B(theta)^T x + b1 ) + b2, W_down float, GELU erf
dispatch   : all experts on the whole map, summed with a one-hot gate map; 2x2 matrices through einsum
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class TernarySTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        gamma = w.abs().mean()
        return gamma * torch.round(w / (gamma + 1e-8)).clamp(-1, 1)

    @staticmethod
    def backward(ctx, g):
        return g


class GivensStack(nn.Module):
    """One expert's rotation of a [..., C] map."""

    def __init__(self, channels, layers):
        super().__init__()
        self.channels = channels
        self.padded = 2 ** (channels - 1).bit_length()
        self.angles = nn.ParameterList([nn.Parameter(torch.zeros(self.padded // 2)) for _ in range(layers)])
        perm = torch.arange(self.padded).view(-1, 2).t().flatten()          # 0 2 4 ... 1 3 5 ...
        self.register_buffer("unperm", torch.argsort(perm), persistent=False)

    def transposed(self, m):
        m = F.pad(m, (0, self.padded - self.channels))
        for a in reversed(list(self.angles)):
            c, s = torch.cos(a), torch.sin(a)
            R = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)   # [C/2, 2, 2]
            pairs = m.unflatten(-1, (-1, 2))
            m = torch.einsum("pij,bhwpi->bhwpj", R, pairs).flatten(-2)
            m = m[..., self.unperm]
        return m[..., : self.channels]


class MapMoE(nn.Module):
    def __init__(self, c, hidden, experts, l_in, l_out):
        super().__init__()
        self.router = nn.Linear(c, experts)
        self.up = nn.Linear(c, hidden)
        self.down = nn.Linear(hidden, c)
        self.theta = nn.ModuleList([GivensStack(c, l_in) for _ in range(experts)])
        self.phi = nn.ModuleList([GivensStack(hidden, l_out) for _ in range(experts)])

    def forward(self, m):
        prob = self.router(m).softmax(dim=-1)                                # [B, H, W, E]
        best = prob.argmax(dim=-1)
        gate = prob * F.one_hot(best, prob.shape[-1]).to(prob.dtype)
        w = TernarySTE.apply(self.up.weight)
        out = torch.zeros_like(m)
        for e, (theta, phi) in enumerate(zip(self.theta, self.phi)):
            h = F.gelu(F.linear(theta.transposed(m), w, self.up.bias))
            out = out + gate[..., e : e + 1] * self.down(phi.transposed(h))
        return out


class WindowAttention(nn.Module):
    """Attention in ws x ws windows; the shifted variant wraps around the map (toroidal, no mask)."""

    def __init__(self, c, heads, ws, shift):
        super().__init__()
        self.heads, self.ws, self.shift = heads, ws, shift
        self.qkv = nn.Linear(c, 3 * c)
        self.proj = nn.Linear(c, c)
        self.rel_bias = nn.Parameter(torch.zeros(heads, ws * ws, ws * ws))

    def forward(self, m):
        B, H, W, C = m.shape
        ws = self.ws
        if self.shift:
            m = torch.roll(m, (-self.shift, -self.shift), dims=(1, 2))
        win = m.view(B, H // ws, ws, W // ws, ws, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, ws * ws, C)
        q, k, v = self.qkv(win).view(-1, ws * ws, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        att = (q @ k.transpose(-1, -2)) * (C // self.heads) ** -0.5 + self.rel_bias
        win = (att.softmax(-1) @ v).transpose(1, 2).reshape(-1, ws * ws, C)
        m = self.proj(win).view(B, H // ws, W // ws, ws, ws, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)
        if self.shift:
            m = torch.roll(m, (self.shift, self.shift), dims=(1, 2))
        return m


class SwinMoEBlock(nn.Module):
    def __init__(self, c, heads, ws, shift, hidden, experts, l_in, l_out):
        super().__init__()
        self.norm1 = nn.LayerNorm(c)
        self.attn = WindowAttention(c, heads, ws, shift)
        self.norm2 = nn.LayerNorm(c)
        self.mlp = MapMoE(c, hidden, experts, l_in, l_out)
        self.ls1 = nn.Parameter(torch.ones(c))
        self.ls2 = nn.Parameter(torch.ones(c))

    def forward(self, m):
        m = m + self.ls1 * self.attn(self.norm1(m))
        return m + self.ls2 * self.mlp(self.norm2(m))


class WindowMapNet(nn.Module):
    def __init__(self, c=24, hidden=72, experts=6, classes=8):
        super().__init__()
        self.stem = nn.Conv2d(3, c, 4, 4)
        self.stem_norm = nn.LayerNorm(c)
        self.blocks = nn.Sequential(
            SwinMoEBlock(c, 3, 3, 0, hidden, experts, 5, 1),
            SwinMoEBlock(c, 3, 3, 1, hidden, experts, 5, 1),
        )
        self.norm = nn.LayerNorm(c)
        self.head = nn.Linear(c, classes)

    def forward(self, img):
        m = self.stem_norm(self.stem(img).permute(0, 2, 3, 1).contiguous())
        m = self.norm(self.blocks(m))
        return self.head(m.mean(dim=(1, 2)))


def make():
    torch.manual_seed(505)
    net = WindowMapNet()
    with torch.no_grad():
        for n, p in net.named_parameters():
            if ".angles." in n:
                p.normal_(0, 0.5)
            elif n.endswith("router.weight"):
                p.normal_(0, 0.5)
            elif "ls" in n.split(".")[-1] or ("norm" in n and n.endswith("weight")):
                p.normal_(1, 0.15)
            elif n.endswith("bias"):
                p.normal_(0, 0.15)
    return net.eval(), (torch.randn(2, 3, 24, 24),)
