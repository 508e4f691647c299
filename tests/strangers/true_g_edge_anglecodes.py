"""Activity recognition from a wrist sensor, the on-device half of a federated setup.  Clients only ever exchange angle codes.

Shuffle:     the two halves are interleaved before each rotation (eq. 4 order).
Handedness:  B(phi) . W_hat . B(theta)^T x, the linear form of eq. 3; no W_down, no activation.  L_in = 5, L_out = 3.
Width:       d = F = 24, zero-padded to 32 around each stack of layers.
Router:      linear, top-3 of 12 logits, then softmax over the three.
Quantiser:   int8 {-1, 0, 1} buffer with one scale for the tensor; angles are int16 codes times a scale, one flat table per side.
Biases:      one shared, after W_hat and before the output rotation (rotated and gated with the rest).
Dispatch:    loop over slots; every token reads its expert's slice of the flat table by address arithmetic.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

ANGLE_LSB = math.pi / 32768.0


class AngleTable(nn.Module):
    """int16 codes of all experts in one vector: code[(expert * depth + layer) * half + pair]"""

    def __init__(self, n_experts, depth, width):
        super().__init__()
        self.depth, self.half = depth, width // 2
        self.stride = depth * self.half
        self.register_buffer("codes", torch.zeros(n_experts * self.stride, dtype=torch.int16))
        self.register_buffer("scale", torch.tensor(ANGLE_LSB))

    @torch.no_grad()
    def write(self, radians):
        q = torch.round(radians.reshape(-1) / self.scale).clamp(-32768, 32767)
        self.codes.copy_(q.to(torch.int16))

    def read(self, expert):
        addr = expert[:, None] * self.stride + torch.arange(self.stride, device=expert.device)
        theta = self.codes[addr].float() * self.scale
        return theta.view(-1, self.depth, self.half)


def interleave_halves(x):
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    out[..., 0::2] = x[..., :half]
    out[..., 1::2] = x[..., half:]
    return out


def undo_interleave(x):
    return torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)


def givens(x, theta, sign=1.0):
    c = torch.cos(theta).to(x.dtype)
    s = sign * torch.sin(theta).to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = c * a - s * b
    out[..., 1::2] = s * a + c * b
    return out


def butterfly(x, theta):
    for layer in range(theta.shape[1]):
        x = givens(interleave_halves(x), theta[:, layer])
    return x


def butterfly_t(x, theta):
    for layer in range(theta.shape[1] - 1, -1, -1):
        x = undo_interleave(givens(x, theta[:, layer], sign=-1.0))
    return x


class EdgeMoE(nn.Module):
    def __init__(self, dim=24, n_experts=12, k=3, depth_in=5, depth_out=3):
        super().__init__()
        self.dim, self.k = dim, k
        self.width = 2 ** math.ceil(math.log2(dim))
        self.router = nn.Linear(dim, n_experts)
        self.theta = AngleTable(n_experts, depth_in, self.width)
        self.phi = AngleTable(n_experts, depth_out, self.width)
        self.register_buffer("w_int8", torch.zeros(dim, dim, dtype=torch.int8))
        self.register_buffer("w_scale", torch.tensor(1.0))
        self.mid_bias = nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def import_weight(self, w):
        gamma = w.abs().mean()
        self.w_int8.copy_((w / (gamma + 1e-8)).round().clamp(-1, 1).to(torch.int8))
        self.w_scale.copy_(gamma)

    def one_slot(self, tok, expert):
        room = self.width - self.dim
        h = butterfly_t(F.pad(tok, (0, room)), self.theta.read(expert))[:, : self.dim]
        h = (h @ self.w_int8.to(tok.dtype).t()) * self.w_scale + self.mid_bias
        return butterfly(F.pad(h, (0, room)), self.phi.read(expert))[:, : self.dim]

    def forward(self, x):
        tok = x.reshape(-1, self.dim)
        top, expert = torch.topk(self.router(tok), self.k, dim=-1)
        gate = top.softmax(dim=-1)
        y = torch.zeros_like(tok)
        for slot in range(self.k):
            y = y + gate[:, slot : slot + 1] * self.one_slot(tok, expert[:, slot])
        return y.view_as(x)


class TemporalMix(nn.Module):
    """Two dilated depthwise convolutions and a gate; cheap enough for a microcontroller."""

    def __init__(self, dim, dilation):
        super().__init__()
        self.near = nn.Conv1d(dim, dim, 3, padding=1, groups=dim)
        self.far = nn.Conv1d(dim, dim, 3, padding=dilation, dilation=dilation, groups=dim)
        self.gate = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        z = x.transpose(1, 2)
        z = (self.near(z) + self.far(z)).transpose(1, 2)
        return self.out(z.relu() * torch.sigmoid(self.gate(x)))


class Stage(nn.Module):
    def __init__(self, dim, dilation):
        super().__init__()
        self.ln_t = nn.LayerNorm(dim)
        self.mix = TemporalMix(dim, dilation)
        self.ln_c = nn.LayerNorm(dim)
        self.moe = EdgeMoE(dim)

    def forward(self, x):
        x = x + self.mix(self.ln_t(x))
        return x + torch.relu(self.moe(self.ln_c(x)))


class WristNet(nn.Module):
    def __init__(self, channels=6, chunk=5, dim=24, classes=7):
        super().__init__()
        self.chunk = chunk
        self.inp = nn.Linear(channels * chunk, dim)
        self.stages = nn.ModuleList([Stage(dim, 2), Stage(dim, 4), Stage(dim, 8)])
        self.ln = nn.LayerNorm(dim)
        self.cls = nn.Linear(2 * dim, classes)

    def forward(self, signal):
        b, t, c = signal.shape
        x = self.inp(signal.reshape(b, t // self.chunk, self.chunk * c))
        for stage in self.stages:
            x = stage(x)
        x = self.ln(x)
        return self.cls(torch.cat([x.mean(dim=1), x.amax(dim=1)], dim=-1))


def make():
    torch.manual_seed(90210)
    net = WristNet()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if ".ln_" in name or name.startswith("ln."):
                p.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
            elif p.dim() == 1:
                p.normal_(0.0, 0.2)
            elif "router" in name:
                p.normal_(0.0, 0.35)
    for m in net.modules():
        if isinstance(m, AngleTable):
            m.write(0.5 * torch.randn(m.codes.numel()))
        elif isinstance(m, EdgeMoE):
            m.import_weight(torch.randn(m.dim, m.dim) / math.sqrt(m.dim))
    return net.eval(), (torch.randn(3, 90, 6),)
