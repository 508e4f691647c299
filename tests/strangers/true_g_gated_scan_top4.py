"""Gated linear recurrence (selective scan, matrix state) over audio frames, with a Butterfly MoE as the channel mixer.

Shuffle: deinterleave (evens then odds), done *before* each rotation (eq. 4 order).
Handedness: B(theta) in, B(phi)^T out.  L_in = 2, L_out = 4.  Widths d = 32, F = 128.
Router: bias-free projection, top-4 of 8, gates are the raw logits (Algorithm 2 as printed, negative ones included).
Quantiser: ternary with the 0.7 mean|w| threshold, one scale per tensor = mean|w| of the kept entries; W_hat and W_down both.
Biases: none on W_hat, one on W_down that every expert adds (hence weighted by the gates).
Form: W_down . B(phi)^T . GELU(W_hat . B(theta) x), tanh GELU.
Dispatch: table of 2x2 matrices gathered by expert index to [..., k, L, pairs, 2, 2], ellipsis einsums, no expert loop.
"""
import torch
from torch import nn, einsum
import torch.nn.functional as F


def exists(v):
    return v is not None


def log_decay(x):
    return -F.softplus(x)


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.g


def threshold_ternary(w, ratio=0.7):
    mag = w.abs()
    keep = mag > ratio * mag.mean()
    alpha = (mag * keep).sum() / keep.sum().clamp(min=1)
    hard = alpha * torch.sign(w) * keep
    return hard.detach() + w - w.detach()


def unzip(x):
    """p q -> q p over the last axis, evens first"""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def rezip(x):
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


class Rotations(nn.Module):
    def __init__(self, num_experts, depth, dim):
        super().__init__()
        self.depth = depth
        self.angles = nn.Parameter(torch.randn(num_experts, depth, dim // 2) * 0.01)

    def matrices(self, index):
        c, s = self.angles.cos(), self.angles.sin()
        m = torch.stack((torch.stack((c, -s), dim=-1), torch.stack((s, c), dim=-1)), dim=-2)  # e l p i j
        return m[index]

    def apply_to(self, x, index):
        m = self.matrices(index)
        for layer in range(self.depth):
            pairs = unzip(x).unflatten(-1, (-1, 2))
            x = einsum("... p i j, ... p j -> ... p i", m[..., layer, :, :, :], pairs).flatten(-2)
        return x

    def apply_transposed_to(self, x, index):
        m = self.matrices(index)
        for layer in reversed(range(self.depth)):
            pairs = x.unflatten(-1, (-1, 2))
            x = rezip(einsum("... p i j, ... p i -> ... p j", m[..., layer, :, :, :], pairs).flatten(-2))
        return x


class ButterflyChannelMix(nn.Module):
    def __init__(self, dim, hidden, num_experts=8, topk=4, depths=(2, 4)):
        super().__init__()
        self.topk = topk
        self.to_logits = nn.Linear(dim, num_experts, bias=False)
        self.theta = Rotations(num_experts, depths[0], dim)
        self.phi = Rotations(num_experts, depths[1], hidden)
        self.w = nn.Parameter(torch.randn(hidden, dim) * dim**-0.5)
        self.w_down = nn.Parameter(torch.randn(dim, hidden) * hidden**-0.5)
        self.b_down = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        gates, index = self.to_logits(x).topk(self.topk, dim=-1)  # b t k
        h = x.unsqueeze(-2).expand(*gates.shape, -1)
        h = self.theta.apply_to(h, index)
        h = einsum("... d, f d -> ... f", h, threshold_ternary(self.w))
        h = F.gelu(h, approximate="tanh")
        h = self.phi.apply_transposed_to(h, index)
        y = einsum("... f, d f -> ... d", h, threshold_ternary(self.w_down)) + self.b_down
        return einsum("... k, ... k d -> ... d", gates, y)


class SelectiveScan(nn.Module):
    """S_t = exp(a_t) S_{t-1} + k_t v_t^T,  o_t = q_t S_t + D v_t"""

    def __init__(self, dim, heads=4, dim_state=8):
        super().__init__()
        self.heads, self.dim_state = heads, dim_state
        self.dim_head = dim // heads
        self.to_qk = nn.Linear(dim, 2 * heads * dim_state)
        self.to_vz = nn.Linear(dim, 2 * dim)
        self.to_dt = nn.Linear(dim, heads)
        self.skip = nn.Parameter(torch.ones(heads, 1))
        self.conv = nn.Conv1d(dim, dim, 3, groups=dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x, state=None):
        b, t, _ = x.shape
        x = F.silu(self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2))
        q, k = self.to_qk(x).unflatten(-1, (2, self.heads, self.dim_state)).unbind(dim=2)
        v, z = self.to_vz(x).chunk(2, dim=-1)
        v = v.unflatten(-1, (self.heads, self.dim_head))
        decay = log_decay(self.to_dt(x)).exp()
        if not exists(state):
            state = x.new_zeros(b, self.heads, self.dim_state, self.dim_head)
        outs = []
        for i in range(t):
            state = decay[:, i, :, None, None] * state + einsum("... n, ... p -> ... n p", k[:, i], v[:, i])
            outs.append(einsum("... n, ... n p -> ... p", q[:, i], state) + self.skip * v[:, i])
        o = torch.stack(outs, dim=1).flatten(-2)
        return self.to_out(o * F.silu(z))


class Layer(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.pre_scan, self.scan = RMSNorm(dim), SelectiveScan(dim)
        self.pre_mix, self.mix = RMSNorm(dim), ButterflyChannelMix(dim, hidden)

    def forward(self, x):
        x = x + self.scan(self.pre_scan(x))
        return x + self.mix(self.pre_mix(x))


class FrameModel(nn.Module):
    def __init__(self, dim_in=10, dim=32, hidden=128, depth=2):
        super().__init__()
        self.embed = nn.Linear(dim_in, dim)
        self.layers = nn.ModuleList([Layer(dim, hidden) for _ in range(depth)])
        self.norm = RMSNorm(dim)
        self.readout = nn.Linear(dim, dim_in)

    def forward(self, frames):
        x = self.embed(frames)
        for layer in self.layers:
            x = layer(x)
        return self.readout(self.norm(x))


def make():
    torch.manual_seed(31)
    model = FrameModel()
    with torch.no_grad():
        for name, p in model.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if leaf == "angles":
                p.normal_(0, 0.5)
            elif leaf in ("g", "skip"):
                p.normal_(1, 0.15)
            elif leaf in ("bias", "b_down"):
                p.normal_(0, 0.2)
            elif "to_logits" in name:
                p.normal_(0, 0.15)
    return model.eval(), (torch.randn(2, 21, 10),)
