"""Visuomotor policy (camera image + joint state -> action chunk) with a butterfly-MoE conv trunk.

Everything stays NCHW: a pixel of the feature map is a token, the shared matrices are 1x1 convs, the Givens rotations
act on dim 1 (rotate, then deinterleave, done in one `cat`; the transposed sign convention). Norms are BatchNorm2d.
Expert = ViT form with both matrices ternary: W_down . B(phi) . GELU(W_up . B(theta) x), both convs with a bias, so the
down bias is weighted by the gate. Gates: sigmoid scores, top-k over channels, not renormalised. The feature map is tiny,
so all experts run on all pixels and a sparse gate map masks the sum (no gather / scatter on the robot's computer).
Ternary: a custom autograd.Function with a clipped straight-through gradient, gamma per tensor. d = 32, F = 64.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class RoundClipSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.round().clamp(-1.0, 1.0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x.abs() <= 1.5).to(g.dtype)


class TernaryConv1x1(nn.Conv2d):
    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out, kernel_size=1, bias=True)

    def forward(self, x):
        gamma = self.weight.abs().mean()
        w = RoundClipSTE.apply(self.weight / (gamma + 1e-8)) * gamma
        return F.conv2d(x, w, self.bias)


class ChannelButterfly(nn.Module):
    """L layers of planar rotations between neighbouring channels, then perfect shuffle."""

    def __init__(self, channels, layers):
        super().__init__()
        assert channels & (channels - 1) == 0, "use a power of two, it is a robot"
        self.q = nn.Parameter(0.01 * torch.randn(layers, channels // 2, 1, 1))

    def forward(self, x):
        for q in self.q:
            c, s = torch.cos(q), torch.sin(q)
            even, odd = x[:, 0::2], x[:, 1::2]
            x = torch.cat([c * even + s * odd, c * odd - s * even], dim=1)
        return x


class MoEConv(nn.Module):
    def __init__(self, dim, hidden, n_experts, k, l_in=3, l_out=4):
        super().__init__()
        self.k = k
        self.router = nn.Conv2d(dim, n_experts, 1)
        self.up = TernaryConv1x1(dim, hidden)
        self.down = TernaryConv1x1(hidden, dim)
        self.rot_in = nn.ModuleList(ChannelButterfly(dim, l_in) for _ in range(n_experts))
        self.rot_out = nn.ModuleList(ChannelButterfly(hidden, l_out) for _ in range(n_experts))

    def gate_map(self, x):
        score = torch.sigmoid(self.router(x))                       # B,E,H,W
        kth = score.topk(self.k, dim=1).values[:, -1:]
        return torch.where(score >= kth, score, torch.zeros_like(score))

    def forward(self, x):
        gates = self.gate_map(x)
        out = torch.zeros_like(x)
        for e, (r_in, r_out) in enumerate(zip(self.rot_in, self.rot_out)):
            h = F.gelu(self.up(r_in(x)))
            out = out + gates[:, e:e + 1] * self.down(r_out(h))
        return out


class TrunkBlock(nn.Module):
    """Depthwise 3x3 for the spatial part, butterfly MoE for the channel part."""

    def __init__(self, dim, hidden, n_experts, k):
        super().__init__()
        self.spatial = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
            nn.BatchNorm2d(dim),
            nn.SiLU(),
        )
        self.bn = nn.BatchNorm2d(dim)
        self.moe = MoEConv(dim, hidden, n_experts, k)

    def forward(self, x):
        x = x + self.spatial(x)
        return x + self.moe(self.bn(x))


class SpatialSoftArgmax(nn.Module):
    def forward(self, x):
        b, c, h, w = x.shape
        p = x.flatten(2).softmax(-1).view(b, c, h, w)
        ys = torch.linspace(-1, 1, h, dtype=x.dtype, device=x.device)
        xs = torch.linspace(-1, 1, w, dtype=x.dtype, device=x.device)
        ey = (p.sum(3) * ys).sum(-1)
        ex = (p.sum(2) * xs).sum(-1)
        return torch.cat([ex, ey], dim=1)


class Policy(nn.Module):
    def __init__(self, dim=32, hidden=64, n_experts=4, k=2, depth=2, n_joints=7, horizon=4):
        super().__init__()
        self.n_joints, self.horizon = n_joints, horizon

        def stem(i, o):
            return [nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]

        self.stem = nn.Sequential(*stem(3, 8), *stem(8, 16), *stem(16, dim))
        self.film = nn.Linear(n_joints, 2 * dim)
        self.trunk = nn.Sequential(*[TrunkBlock(dim, hidden, n_experts, k) for _ in range(depth)])
        self.keypoints = nn.Sequential(nn.BatchNorm2d(dim), SpatialSoftArgmax())
        self.head = nn.Sequential(
            nn.Linear(2 * dim + dim + n_joints, 64), nn.ReLU(), nn.Linear(64, n_joints * horizon)
        )

    def forward(self, image, joints):
        f = self.stem(image)
        scale, shift = self.film(joints)[:, :, None, None].chunk(2, dim=1)
        f = self.trunk(f * (1 + scale) + shift)
        z = torch.cat([self.keypoints(f), f.mean((2, 3)), joints], dim=1)
        return self.head(z).view(-1, self.horizon, self.n_joints)


def make():
    torch.manual_seed(7)
    net = Policy()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, ChannelButterfly):
                m.q.copy_(torch.randn_like(m.q) * 0.5)
            elif isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.6, 1.5)
                m.bias.normal_(0, 0.2)
                m.running_mean.normal_(0, 0.2)
                m.running_var.uniform_(0.4, 1.8)
            elif isinstance(m, (nn.Conv2d, nn.Linear)):
                m.weight.normal_(0, 1.2 / math.sqrt(m.weight[0].numel()))
                if m.bias is not None:
                    m.bias.normal_(0, 0.2)
    net.eval()
    return net, (torch.randn(2, 3, 40, 40), torch.randn(2, 7))


if __name__ == "__main__":
    net, args = make()
    print(net(*args))
