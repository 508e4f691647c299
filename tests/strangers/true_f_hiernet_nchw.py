"""Two-stage image classifier in NCHW: ConvNeXt depthwise mixing, (shifted) window attention, Butterfly MoE in both stages.

form        ButterflyViT Algorithm 2: W_down . B(phi)^T . GELU(W_hat . B(theta) x), GELU exact (erf), both linear maps 1x1 convs
shuffle     de-interleave (evens, then odds) on the channel axis, after the rotation
handedness  B(theta) on the way in, transpose of B(phi) on the way out
L           2 in, 3 out; widths 24 and 48 (hidden 48 and 96), zero-padded to 32/64/128 once around the layers
router      1x1 conv, top-1, gate = sigmoid(logit); 4 experts in stage 1, 6 in stage 2
quantiser   round(W / gamma), gamma = mean |W| per output channel; W_down float
biases      on W_hat and on W_down, both inside the expert (so weighted by the gate)
dispatch    all experts on the whole map, torch.where by the winner's index
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class LayerNorm2d(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x):
        mu = x.mean(1, keepdim=True)
        var = (x - mu).pow(2).mean(1, keepdim=True)
        x = (x - mu) / torch.sqrt(var + self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def window_partition(x, ws):
    B, C, H, W = x.shape
    x = x.view(B, C, H // ws, ws, W // ws, ws)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, ws * ws, C)


def window_reverse(win, ws, B, H, W):
    x = win.view(B, H // ws, W // ws, ws, ws, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, H, W)


class WindowAttention(nn.Module):
    def __init__(self, dim, heads, ws, shift=0):
        super().__init__()
        self.heads, self.ws, self.shift = heads, ws, shift
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_bias = nn.Parameter(torch.randn(heads, (2 * ws - 1) ** 2) * 0.3)
        yx = torch.stack(torch.meshgrid(torch.arange(ws), torch.arange(ws), indexing="ij")).flatten(1)
        rel = yx[:, :, None] - yx[:, None, :] + ws - 1
        self.register_buffer("rel_index", rel[0] * (2 * ws - 1) + rel[1], persistent=False)

    def forward(self, x):
        B, C, H, W = x.shape
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(2, 3))
        win = window_partition(x, self.ws)
        N, S, _ = win.shape
        q, k, v = self.qkv(win).view(N, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        att = (q * self.scale) @ k.transpose(-2, -1) + self.rel_bias[:, self.rel_index]
        out = (att.softmax(-1) @ v).transpose(1, 2).reshape(N, S, C)
        x = window_reverse(self.proj(out), self.ws, B, H, W)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), dims=(2, 3))
        return x


class ChannelButterfly(nn.Module):
    """One angle table per expert; works on dim=1 of an NCHW map."""

    def __init__(self, dim, num_experts, depth):
        super().__init__()
        self.dim = dim
        self.width = 1 << (dim - 1).bit_length()
        self.angle = nn.Parameter(torch.randn(num_experts, depth, self.width // 2) * 0.5)

    def _pad(self, x):
        return F.pad(x, (0, 0, 0, 0, 0, self.width - self.dim))

    def forward(self, x, e):
        x = self._pad(x)
        for a in self.angle[e].unbind(0):
            c, s = a.cos().view(1, -1, 1, 1), a.sin().view(1, -1, 1, 1)
            ev, od = x[:, 0::2], x[:, 1::2]
            x = torch.cat([c * ev - s * od, s * ev + c * od], dim=1)
        return x[:, : self.dim]

    def inverse(self, x, e):
        x = self._pad(x)
        for a in self.angle[e].flip(0).unbind(0):
            c, s = a.cos().view(1, -1, 1, 1), a.sin().view(1, -1, 1, 1)
            p, q = x[:, : self.width // 2], x[:, self.width // 2 :]
            x = torch.stack([c * p + s * q, c * q - s * p], dim=2).flatten(1, 2)
        return x[:, : self.dim]


class TernaryConv1x1(nn.Conv2d):
    def __init__(self, cin, cout):
        super().__init__(cin, cout, 1)

    def forward(self, x):
        w = self.weight
        gamma = w.abs().mean(dim=(1, 2, 3), keepdim=True)
        wq = (w / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        return F.conv2d(x, w + (wq - w).detach(), self.bias)


class ButterflyMoE2d(nn.Module):
    def __init__(self, dim, hidden, num_experts):
        super().__init__()
        self.num_experts = num_experts
        self.router = nn.Conv2d(dim, num_experts, 1)
        self.rot_in = ChannelButterfly(dim, num_experts, depth=2)
        self.rot_out = ChannelButterfly(hidden, num_experts, depth=3)
        self.pw_up = TernaryConv1x1(dim, hidden)
        self.pw_down = nn.Conv2d(hidden, dim, 1)

    def forward(self, x):
        logit, winner = self.router(x).max(dim=1, keepdim=True)
        gate = torch.sigmoid(logit)
        out = torch.zeros_like(x)
        for e in range(self.num_experts):
            h = F.gelu(self.pw_up(self.rot_in(x, e)))
            y = self.pw_down(self.rot_out.inverse(h, e))
            out = torch.where(winner == e, y, out)
        return out * gate


class Block(nn.Module):
    def __init__(self, dim, hidden, num_experts, heads, ws, shift):
        super().__init__()
        self.dw = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = LayerNorm2d(dim)
        self.attn = WindowAttention(dim, heads, ws, shift)
        self.norm2 = LayerNorm2d(dim)
        self.moe = ButterflyMoE2d(dim, hidden, num_experts)
        self.ls = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x):
        x = x + self.dw(x)
        x = x + self.attn(self.norm1(x))
        return x + self.ls * self.moe(self.norm2(x))


class HierNet(nn.Module):
    def __init__(self, num_classes=11):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 4, stride=4), LayerNorm2d(24))
        self.stage1 = nn.Sequential(Block(24, 48, 4, heads=3, ws=3, shift=0))
        self.down = nn.Sequential(LayerNorm2d(24), nn.Conv2d(24, 48, 2, stride=2))
        self.stage2 = nn.Sequential(Block(48, 96, 6, heads=4, ws=3, shift=1), Block(48, 96, 6, heads=4, ws=3, shift=0))
        self.norm = LayerNorm2d(48)
        self.head = nn.Linear(48, num_classes)

    def forward(self, img):
        x = self.stage2(self.down(self.stage1(self.stem(img))))
        return self.head(self.norm(x).mean(dim=(2, 3)))


@torch.no_grad()
def _perturb(model):
    for m in model.modules():
        if isinstance(m, LayerNorm2d):
            m.weight.normal_(1, 0.15)
        if isinstance(m, Block):
            m.ls.normal_(1, 0.15)
        if isinstance(m, ButterflyMoE2d):
            m.router.weight.normal_(0, 0.4)
        if getattr(m, "bias", None) is not None:
            m.bias.normal_(0, 0.1)


def make():
    torch.manual_seed(21)
    model = HierNet()
    _perturb(model)
    return model.eval(), (torch.randn(2, 3, 24, 24),)
