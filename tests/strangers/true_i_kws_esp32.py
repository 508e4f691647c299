"""Keyword spotting on an ESP32-S3: MFCC frames -> strided conv -> causal depthwise blocks with butterfly experts -> 12 words.
Host-side reference of the firmware, so weights are int8 buffers with stored scales and angles are 10-bit binary angles.

form        W_down . B(phi_e) . GELU_tanh( W_hat . B(theta_e) x + b_up ) + b_down
tables      angle = code * 2 pi / 1024, one sine table in flash, cosine read a quarter turn ahead (codes are int16)
shuffle     interleave the two halves, BEFORE each rotation (equation 4)
handedness  transposed pair rotation (c, s; -s, c) on the input side, plain (c, -s; s, c) on the output side; L = 5 and 2
quantiser   none at run time: W_up ternary int8 with one gamma, W_down ternary int8 with one scale per output row
router      int8 linear, top-1 of 7, gate = sigmoid of the winning logit
biases      b_up before GELU, b_down inside the gate, both shared; dispatch: fetch the chosen expert's angle codes per frame, all frames at once
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

LUT_BITS = 10
LUT_SIZE = 1 << LUT_BITS
LUT_MASK = LUT_SIZE - 1
QUARTER = LUT_SIZE // 4


def angle_to_code(rad):
    return (torch.round(rad * LUT_SIZE / (2 * math.pi)).long() & LUT_MASK).to(torch.int16)


class Q8Linear(nn.Module):
    """int8 weight, float scale per output row, float bias"""

    def __init__(self, n_in, n_out, spread=1.0):
        super().__init__()
        w = torch.randn(n_out, n_in) * spread / math.sqrt(n_in)
        scale = w.abs().amax(1) / 127.0
        self.register_buffer("w_q", torch.round(w / scale[:, None]).clamp(-127, 127).to(torch.int8))
        self.register_buffer("w_scale", scale)
        self.register_buffer("bias", torch.randn(n_out) * 0.1)

    def forward(self, x):
        acc = x @ self.w_q.to(x.dtype).t()
        return acc * self.w_scale + self.bias


class ButterflyMoE(nn.Module):
    def __init__(self, d=32, f=64, n_experts=7, l_in=5, l_out=2):
        super().__init__()
        self.d, self.f, self.l_in, self.l_out = d, f, l_in, l_out

        w_up = torch.randn(f, d) / math.sqrt(d)
        gamma = w_up.abs().mean()
        self.register_buffer("up_t", (w_up / (gamma + 1e-8)).round().clamp(-1, 1).to(torch.int8))
        self.register_buffer("up_gamma", gamma)
        self.register_buffer("up_bias", torch.randn(f) * 0.2)

        w_dn = torch.randn(d, f) / math.sqrt(f)
        row = w_dn.abs().mean(1)
        self.register_buffer("dn_t", (w_dn / (row[:, None] + 1e-8)).round().clamp(-1, 1).to(torch.int8))
        self.register_buffer("dn_scale", row)
        self.register_buffer("dn_bias", torch.randn(d) * 0.2)

        self.register_buffer("code_in", angle_to_code(torch.randn(n_experts, l_in, d // 2) * 0.5))
        self.register_buffer("code_out", angle_to_code(torch.randn(n_experts, l_out, f // 2) * 0.5))
        self.register_buffer("sine", torch.sin(torch.arange(LUT_SIZE, dtype=torch.float64) * (2 * math.pi / LUT_SIZE)).float())
        self.router = Q8Linear(d, n_experts, spread=2.0)

    def sincos(self, code):
        i = code.long()
        return self.sine[i], self.sine[(i + QUARTER) & LUT_MASK]

    @staticmethod
    def shuffle(x):
        half = x.shape[1] // 2
        out = torch.empty_like(x)
        out[:, 0::2] = x[:, :half]
        out[:, 1::2] = x[:, half:]
        return out

    def rotate_in(self, x, code):
        for l in range(self.l_in):
            s, c = self.sincos(code[:, l])
            x = self.shuffle(x)
            y = torch.empty_like(x)
            y[:, 0::2] = c * x[:, 0::2] + s * x[:, 1::2]
            y[:, 1::2] = c * x[:, 1::2] - s * x[:, 0::2]
            x = y
        return x

    def rotate_out(self, x, code):
        for l in range(self.l_out):
            s, c = self.sincos(code[:, l])
            x = self.shuffle(x)
            y = torch.empty_like(x)
            y[:, 0::2] = c * x[:, 0::2] - s * x[:, 1::2]
            y[:, 1::2] = s * x[:, 0::2] + c * x[:, 1::2]
            x = y
        return x

    def forward(self, x):
        frames = x.reshape(-1, self.d)
        logit, e = self.router(frames).max(dim=1)
        gate = torch.sigmoid(logit)

        h = self.rotate_in(frames, self.code_in[e])
        h = (h @ self.up_t.to(h.dtype).t()) * self.up_gamma + self.up_bias
        h = F.gelu(h, approximate="tanh")
        h = self.rotate_out(h, self.code_out[e])
        y = (h @ self.dn_t.to(h.dtype).t()) * self.dn_scale + self.dn_bias
        return (y * gate[:, None]).view_as(x)


class Block(nn.Module):
    """causal depthwise conv with folded batch norm, then experts; both residual"""

    def __init__(self, d, kernel=5):
        super().__init__()
        self.kernel = kernel
        self.dw = nn.Conv1d(d, d, kernel, groups=d)
        self.register_buffer("mul", 1 + 0.2 * torch.randn(d))
        self.register_buffer("add", 0.2 * torch.randn(d))
        self.moe = ButterflyMoE(d)

    def forward(self, x):
        t = F.pad(x.transpose(1, 2), (self.kernel - 1, 0))
        t = F.relu6(self.dw(t).transpose(1, 2) * self.mul + self.add)
        x = x + t
        rms = x.pow(2).mean(-1, keepdim=True).add(1e-5).rsqrt()
        return x + self.moe(x * rms)


class KeywordSpotter(nn.Module):
    def __init__(self, n_mfcc=10, d=32, n_blocks=3, n_words=12):
        super().__init__()
        self.stem = nn.Conv1d(n_mfcc, d, 4, stride=2, padding=1)
        self.blocks = nn.Sequential(*[Block(d) for _ in range(n_blocks)])
        self.fc = Q8Linear(d, n_words)

    def forward(self, mfcc):
        x = F.relu(self.stem(mfcc.transpose(1, 2))).transpose(1, 2)
        x = self.blocks(x)
        return self.fc(x.mean(dim=1))


@torch.no_grad()
def centre_routers(model, mfcc):
    """post-training calibration: take the mean logit of every expert out of the router bias, block after block"""
    def fix(router, args, out):
        mean = out.mean(0)
        router.bias.sub_(mean)
        return out - mean

    handles = [b.moe.router.register_forward_hook(fix) for b in model.blocks]
    model(mfcc)
    for h in handles:
        h.remove()


def make():
    torch.manual_seed(202)
    model = KeywordSpotter()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Conv1d):
                m.weight.mul_(1.5)
                m.bias.normal_(0, 0.2)
    mfcc = torch.randn(2, 48, 10)
    centre_routers(model.eval(), mfcc)
    return model, (mfcc,)
