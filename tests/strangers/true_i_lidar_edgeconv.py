"""Per-point semantic segmentation of lidar sweeps: EdgeConv on a kNN graph, butterfly mixture blocks on (B, C, N) features,
global max feature, per-point head. Everything is channel-first as in PointNet code.

form        B(phi_e) . ( W_hat . B(theta_e)^T x + b ), equation 3 with F = d and no W_down, no activation inside
shuffle     deinterleave after the rotation, as a stored index permutation
handedness  true transpose on the input side (layers backwards, unshuffle, then rotate by minus the angle), plain on the output
layers      2 on the input side, 6 on the output side; d = 40, zero-padded to 64 and stripped on either side
quantiser   sign(w) where |w| > 0.7 mean |w|, else 0, times mean |w| of the tensor; straight-through
router      1x1 conv with bias, top-2 of 5, then softmax over the two; b is shared, hence weighted by the gate
dispatch    every expert on every point, stacked on a leading axis, summed with scattered gates
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def knn(xyz, k):
    """xyz: (B, 3, N) -> neighbour indices (B, N, k)"""
    diff = xyz[:, :, :, None] - xyz[:, :, None, :]
    return diff.pow(2).sum(1).topk(k, dim=-1, largest=False)[1]


def gather_neighbours(x, idx):
    """x: (B, C, N), idx: (B, N, k) -> (B, C, N, k)"""
    B, C, N = x.shape
    flat = idx.reshape(B, 1, -1).expand(-1, C, -1)
    return x.gather(2, flat).view(B, C, N, idx.shape[-1])


class EdgeConv(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(2 * c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2))

    def forward(self, x, idx):
        nb = gather_neighbours(x, idx)
        centre = x.unsqueeze(-1).expand_as(nb)
        return self.mlp(torch.cat([centre, nb - centre], 1)).amax(-1)


class ButterflyBank(nn.Module):
    """One rotation per expert, on tensors (E, B, C, N)."""

    def __init__(self, n_experts, channels, layers):
        super().__init__()
        self.channels = channels
        self.width = 2 ** (channels - 1).bit_length()
        self.angle = nn.Parameter(0.5 * torch.randn(layers, n_experts, self.width // 2))
        perm = torch.cat([torch.arange(0, self.width, 2), torch.arange(1, self.width, 2)])
        self.register_buffer("perm", perm)
        self.register_buffer("inv_perm", perm.argsort())

    def _pad(self, x):
        fill = x.new_zeros(*x.shape[:2], self.width - self.channels, x.shape[3])
        return torch.cat([x, fill], 2)

    @staticmethod
    def _givens(x, a):
        c, s = a.cos()[:, None, :, None], a.sin()[:, None, :, None]
        u, v = x.unflatten(2, (-1, 2)).unbind(3)
        return torch.stack([c * u - s * v, s * u + c * v], 3).flatten(2, 3)

    def forward(self, x):
        x = self._pad(x)
        for a in self.angle.unbind(0):
            x = self._givens(x, a).index_select(2, self.perm)
        return x[:, :, : self.channels]

    def inverse(self, x):
        x = self._pad(x)
        for a in reversed(self.angle.unbind(0)):
            x = self._givens(x.index_select(2, self.inv_perm), -a)
        return x[:, :, : self.channels]


class TernaryPointwise(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels) / channels ** 0.5)
        self.bias = nn.Parameter(torch.zeros(channels))

    def ternary(self):
        w = self.weight
        m = w.abs().mean()
        q = torch.where(w.abs() > 0.7 * m, w.sign(), torch.zeros_like(w)) * m
        return w + (q - w).detach()

    def forward(self, x):
        return torch.einsum("oc,ebcn->ebon", self.ternary(), x) + self.bias[:, None]


class ButterflyMix(nn.Module):
    def __init__(self, channels, n_experts=5, k=2, l_in=2, l_out=6):
        super().__init__()
        self.k, self.n_experts = k, n_experts
        self.router = nn.Conv1d(channels, n_experts, 1)
        self.theta = ButterflyBank(n_experts, channels, l_in)
        self.phi = ButterflyBank(n_experts, channels, l_out)
        self.core = TernaryPointwise(channels)

    def forward(self, x):
        logits = self.router(x)                                   # (B, E, N)
        top, which = logits.topk(self.k, dim=1)
        gate = torch.zeros_like(logits).scatter(1, which, top.softmax(1))
        bank = x.unsqueeze(0).expand(self.n_experts, -1, -1, -1)  # (E, B, C, N)
        out = self.phi(self.core(self.theta.inverse(bank)))
        y = (out * gate.transpose(0, 1).unsqueeze(2)).sum(0)
        load = (gate > 0).to(x.dtype).mean((0, 2))
        importance = logits.softmax(1).mean((0, 2))
        return y, self.n_experts * (load * importance).sum()


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.edge = EdgeConv(channels, channels)
        self.bn = nn.BatchNorm1d(channels)
        self.mix = ButterflyMix(channels)
        self.bn_out = nn.BatchNorm1d(channels)

    def forward(self, x, idx):
        x = x + self.edge(x, idx)
        y, aux = self.mix(self.bn(x))
        return x + F.leaky_relu(self.bn_out(y), 0.2), aux


class LidarSeg(nn.Module):
    def __init__(self, channels=40, n_blocks=3, n_classes=6, k=8):
        super().__init__()
        self.k = k
        self.stem = nn.Sequential(nn.Conv1d(4, channels, 1), nn.BatchNorm1d(channels), nn.LeakyReLU(0.2))
        self.blocks = nn.ModuleList(Block(channels) for _ in range(n_blocks))
        self.head = nn.Sequential(
            nn.Conv1d(2 * channels, 48, 1), nn.BatchNorm1d(48), nn.LeakyReLU(0.2), nn.Conv1d(48, n_classes, 1)
        )

    def forward(self, sweep):
        pts = sweep.transpose(1, 2).contiguous()                  # (B, 4, N): x, y, z, intensity
        idx = knn(pts[:, :3], self.k)
        x, aux = self.stem(pts), 0.0
        for blk in self.blocks:
            x, a = blk(x, idx)
            aux = aux + a
        scene = x.amax(2, keepdim=True).expand_as(x)
        return self.head(torch.cat([x, scene], 1)), aux


def make():
    torch.manual_seed(404)
    net = LidarSeg()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
                m.weight.uniform_(0.7, 1.3)
                m.bias.normal_(0, 0.2)
                m.running_mean.normal_(0, 0.2)
                m.running_var.uniform_(0.5, 1.5)
            elif isinstance(m, nn.Conv1d):
                m.bias.normal_(0, 0.1)
            elif isinstance(m, TernaryPointwise):
                m.bias.normal_(0, 0.2)
            if isinstance(m, ButterflyMix):
                m.router.weight.normal_(0, 0.3)
    xyz = torch.randn(2, 40, 3) * torch.tensor([2.0, 2.0, 0.5])
    sweep = torch.cat([xyz, torch.rand(2, 40, 1)], -1)
    net.eval()
    with torch.no_grad():  # warm start of the router biases, one block after the other
        for blk in net.blocks:
            seen = []
            handle = blk.mix.router.register_forward_hook(lambda m, i, o: seen.append(o))
            net(sweep)
            handle.remove()
            blk.mix.router.bias -= seen[0].mean((0, 2)) + 0.1 * torch.randn(5)
    return net, (sweep,)
