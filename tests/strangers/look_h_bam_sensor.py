"""Vibration monitor for a Cortex-M target: strided conv front end, depthwise temporal mixing, expert blocks, two heads.

Expert: W_down . B(phi_e) . gelu_tanh( W_hat . B(theta_e)^T x + b_up ), W_hat and W_down shared.
  * substrate: int8 codes in {-1,0,+1} with one power-of-two scale per output row (stored as an exponent)
  * W_down: int8 ternary too, row exponents; bias added once
  * angles: int16 binary angle measure (65536 = one turn), one table per side (experts, layers, pairs)
  * B: {Givens on (2j, 2j+1); deinterleave by an index table}; transpose on the input side; L_in = 3, L_out = 4
  * router: top-1, sigmoid gate; dispatch: per-token gather of the sine/cosine tables by expert number
  * widths: d = 32, F = 64 (no padding)
NOT a Butterfly layer of the papers: sine and cosine come from the firmware's two-step parabola (error about 1e-3), so
c*c + s*s is not 1: every plane map is a rotation times its own small gain, the whole is only nearly orthogonal.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

TURN = 65536
QUARTER = 16384


def fast_sin(bam, dtype):
    """Parabolic sine on a wrapped int16 angle, one correction step."""
    u = (((bam + TURN // 2) % TURN) - TURN // 2).to(dtype) / (TURN // 2)
    y = 4.0 * u * (1.0 - u.abs())
    return 0.225 * (y * y.abs() - y) + y


def sincos(bam, dtype):
    b = bam.to(torch.int32)
    return fast_sin(b, dtype), fast_sin(b + QUARTER, dtype)


def bam_table(*shape):
    return torch.round(torch.randn(*shape) * 0.5 * TURN / (2 * math.pi)).clamp(-32768, 32767).to(torch.int16)


def ternary_rows(out_ch, in_ch):
    w = torch.randn(out_ch, in_ch) * (1.5 / math.sqrt(in_ch))
    mean = w.abs().mean(1)
    codes = torch.clamp(torch.round(w / mean[:, None]), -1, 1).to(torch.int8)
    return codes, torch.round(torch.log2(mean)).to(torch.int8)


class TernaryFC(nn.Module):
    def __init__(self, in_ch, out_ch):
        super().__init__()
        codes, exponent = ternary_rows(out_ch, in_ch)
        self.register_buffer("codes", codes)
        self.register_buffer("exponent", exponent)
        self.register_buffer("bias", 0.1 * torch.randn(out_ch))

    def forward(self, x, add_bias=True):
        acc = torch.matmul(x, self.codes.to(x.dtype).t())
        acc = torch.ldexp(acc, self.exponent.to(torch.int32)).to(x.dtype)
        return acc + self.bias if add_bias else acc


class PlaneNetwork(nn.Module):
    """Angle ROM for all experts of one side."""

    def __init__(self, experts, width, depth):
        super().__init__()
        self.depth = depth
        self.register_buffer("rom", bam_table(experts, depth, width // 2))
        order = [i for i in range(0, width, 2)] + [i for i in range(1, width, 2)]
        self.register_buffer("order", torch.tensor(order))
        inverse = [0] * width
        for dst, src in enumerate(order):
            inverse[src] = dst
        self.register_buffer("inverse", torch.tensor(inverse))

    def planes(self, x, s, c):
        p = x.reshape(x.shape[0], -1, 2)
        x0, x1 = p[:, :, 0], p[:, :, 1]
        return torch.cat(((c * x0 - s * x1).unsqueeze(2), (s * x0 + c * x1).unsqueeze(2)), 2).reshape(x.shape)

    def forward(self, x, which):
        s, c = sincos(self.rom[which], x.dtype)
        for k in range(self.depth):
            x = self.planes(x, s[:, k], c[:, k]).index_select(1, self.order)
        return x

    def backward_pass(self, x, which):
        s, c = sincos(self.rom[which], x.dtype)
        for k in range(self.depth - 1, -1, -1):
            x = self.planes(x.index_select(1, self.inverse), -s[:, k], c[:, k])
        return x


class ExpertBlock(nn.Module):
    def __init__(self, d=32, f=64, experts=8):
        super().__init__()
        self.router = nn.Linear(d, experts)
        nn.init.normal_(self.router.weight, std=0.5)
        nn.init.normal_(self.router.bias, std=0.2)
        self.net_in = PlaneNetwork(experts, d, 3)
        self.net_out = PlaneNetwork(experts, f, 4)
        self.up = TernaryFC(d, f)
        self.down = TernaryFC(f, d)

    def forward(self, x):
        frames = x.reshape(-1, x.shape[-1])
        score, which = self.router(frames).max(dim=-1)
        h = self.net_in.backward_pass(frames, which)
        h = F.gelu(self.up(h), approximate="tanh")
        h = self.net_out(h, which)
        y = self.down(h, add_bias=False) * torch.sigmoid(score).unsqueeze(1) + self.down.bias
        return y.reshape(x.shape)


class Affine(nn.Module):
    """Batch norm folded for deployment, applied after an RMS level control."""

    def __init__(self, d):
        super().__init__()
        self.register_buffer("mul", 1.0 + 0.2 * torch.randn(d))
        self.register_buffer("add", 0.2 * torch.randn(d))

    def forward(self, x):
        level = torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-5)
        return x / level * self.mul + self.add


class Stage(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.pre, self.mid = Affine(d), Affine(d)
        self.temporal = nn.Conv1d(d, d, 5, padding=4, groups=d)
        nn.init.normal_(self.temporal.bias, std=0.1)
        self.experts = ExpertBlock(d)

    def forward(self, x):
        t = self.temporal(self.pre(x).transpose(1, 2))[:, :, : x.shape[1]]
        x = x + torch.clamp(t, 0.0, 6.0).transpose(1, 2)
        return x + self.experts(self.mid(x))


class VibrationMonitor(nn.Module):
    def __init__(self, axes=3, d=32, stages=2, faults=6):
        super().__init__()
        self.front = nn.Conv1d(axes, d, 8, stride=4, padding=2)
        self.stages = nn.ModuleList([Stage(d) for _ in range(stages)])
        self.fault = nn.Linear(2 * d, faults)
        self.health = nn.Linear(2 * d, 1)
        for m in (self.front, self.fault, self.health):
            nn.init.normal_(m.bias, std=0.1)

    def forward(self, accel):
        x = self.front(accel).transpose(1, 2)
        for stage in self.stages:
            x = stage(x)
        pooled = torch.cat((x.mean(1), x.amax(1)), dim=1)
        return torch.cat((self.fault(pooled), torch.sigmoid(self.health(pooled))), dim=1)


def make():
    torch.manual_seed(32)
    net = VibrationMonitor()
    return net.eval(), (torch.randn(2, 3, 160),)
