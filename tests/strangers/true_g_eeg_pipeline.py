"""Bit-true-ish reference of an EEG event detector meant for a small FPGA (the RTL is checked against this file).

Two channel-mixing stages, each a leaky integrator over frames plus a ButterflyViT expert engine. One butterfly datapath is
time-multiplexed over all experts; each stage reads one RAM and writes the other (ping-pong), addresses come from ROMs.

  form        W_down . ( B(phi) . GELU_tanh( W_hat . B(theta) x + c ) + o )     (Algorithm 2)
  shuffle     deinterleave BEFORE each rotation, folded into the read address (rotate-left by one bit)
  handedness  clockwise [c s; -s c] on the input side, counter-clockwise on the output side
  L           5 in (d = 32), 7 out (F = 128); angles are int16 binary phase words, 2^16 to a full turn
  router      raw top-3 logits of 6 as gates, no normalisation
  quantiser   checkpoint is already ternary: two bit planes and one scale, for W_hat and for W_down
  biases      c after W_hat, o after B(phi); both one register file for all experts
  dispatch    every expert sees every frame; a clock-enable mask and a multiply-accumulate pick the chosen ones
"""
import math

import torch
from torch import nn

TURN = 1 << 16


def rotl(addr, bits):
    return ((addr << 1) | (addr >> (bits - 1))) & ((1 << bits) - 1)


class BitPlaneMAC(nn.Module):
    """Signed-select adder tree: scale * (sum of plus lanes - sum of minus lanes)."""

    def __init__(self, lanes_in, lanes_out, density=0.65):
        super().__init__()
        live = torch.rand(lanes_out, lanes_in) < density
        sign = torch.rand(lanes_out, lanes_in) < 0.5
        self.register_buffer("plus", (live & sign).to(torch.uint8))
        self.register_buffer("minus", (live & ~sign).to(torch.uint8))
        self.register_buffer("scale", torch.tensor(1.1 / math.sqrt(density * lanes_in)))

    def forward(self, x):
        up = x @ self.plus.to(x.dtype).t()
        dn = x @ self.minus.to(x.dtype).t()
        return self.scale * (up - dn)


class ButterflyEngine(nn.Module):
    def __init__(self, log2n, stages, banks, sense):
        super().__init__()
        n = 1 << log2n
        rom = torch.tensor([rotl(a, log2n) for a in range(n)])
        self.register_buffer("rd_a", rom[0::2].clone())
        self.register_buffer("rd_b", rom[1::2].clone())
        self.register_buffer("wr_a", torch.arange(0, n, 2))
        self.register_buffer("wr_b", torch.arange(1, n, 2))
        words = (0.5 * torch.randn(banks, stages, n // 2) * TURN / (2 * math.pi)).round()
        self.register_buffer("phase", words.clamp(-TURN // 2, TURN // 2 - 1).to(torch.int16))
        self.sense = sense

    def twiddle(self, bank, stage, dtype):
        rad = self.phase[bank, stage].to(dtype) * (2 * math.pi / TURN)
        return torch.cos(rad), self.sense * torch.sin(rad)

    def forward(self, x, bank):
        ram = [x.clone(), torch.empty_like(x)]
        sel = 0
        for stage in range(self.phase.shape[1]):
            ping, pong = ram[sel], ram[1 - sel]
            c, s = self.twiddle(bank, stage, x.dtype)
            a = ping.index_select(1, self.rd_a)
            b = ping.index_select(1, self.rd_b)
            pong.index_copy_(1, self.wr_a, a * c - b * s)
            pong.index_copy_(1, self.wr_b, a * s + b * c)
            sel = 1 - sel
        return ram[sel]


class ExpertEngine(nn.Module):
    def __init__(self, log2d=5, log2f=7, banks=6, active=3):
        super().__init__()
        d, f = 1 << log2d, 1 << log2f
        self.banks, self.active = banks, active
        self.router = nn.Linear(d, banks)
        self.front = ButterflyEngine(log2d, 5, banks, sense=-1.0)
        self.back = ButterflyEngine(log2f, 7, banks, sense=+1.0)
        self.mac_up = BitPlaneMAC(d, f)
        self.mac_down = BitPlaneMAC(f, d)
        self.register_buffer("c", 0.2 * torch.randn(f))
        self.register_buffer("o", 0.2 * torch.randn(f))

    @staticmethod
    def activation(u):
        return 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u * u * u)))

    def forward(self, frames):
        b, t, d = frames.shape
        x = frames.reshape(b * t, d)
        level, sel = self.router(x).topk(self.active, dim=1)
        acc = torch.zeros_like(x)
        for bank in range(self.banks):
            match = sel == bank
            enable = match.any(dim=1, keepdim=True)
            gain = torch.where(match, level, torch.zeros_like(level)).sum(dim=1, keepdim=True)
            h = self.activation(self.mac_up(self.front(x, bank)) + self.c)
            y = self.mac_down(self.back(h, bank) + self.o)
            acc = torch.where(enable, acc + gain * y, acc)
        return acc.view(b, t, d)


class LeakyIntegrator(nn.Module):
    """s[n] = p s[n-1] + (1-p) x[n], one pole per channel, then a crossbar."""

    def __init__(self, d):
        super().__init__()
        self.pole = nn.Parameter(torch.randn(d))
        self.crossbar = nn.Linear(d, d)

    def forward(self, x):
        p = torch.sigmoid(self.pole)
        state = torch.zeros_like(x[:, 0])
        trace = []
        for n in range(x.shape[1]):
            state = p * state + (1 - p) * x[:, n]
            trace.append(state)
        return self.crossbar(torch.stack(trace, dim=1))


class AGC(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.gain = nn.Parameter(1 + 0.2 * torch.randn(d))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


class Stage(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.agc1, self.agc2 = AGC(d), AGC(d)
        self.mix = LeakyIntegrator(d)
        self.engine = ExpertEngine()

    def forward(self, x):
        x = x + self.mix(self.agc1(x))
        return x + self.engine(self.agc2(x))


class EEGDetector(nn.Module):
    def __init__(self, electrodes=8, d=32, classes=4):
        super().__init__()
        self.frontend = nn.Conv1d(electrodes, d, kernel_size=16, stride=8)
        self.stages = nn.ModuleList([Stage(d), Stage(d)])
        self.agc = AGC(d)
        self.readout = nn.Linear(d, classes)

    def forward(self, samples):
        x = self.frontend(samples).transpose(1, 2)
        for stage in self.stages:
            x = stage(x)
        return self.readout(self.agc(x)).sigmoid()


def make():
    torch.manual_seed(19)
    det = EEGDetector()
    with torch.no_grad():
        det.frontend.weight.mul_(2.0)
        for st in det.stages:
            st.engine.router.weight.normal_(0, 0.25)
            st.engine.router.bias.normal_(0, 0.2)
    return det.eval(), (torch.randn(2, 8, 224),)
