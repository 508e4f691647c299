"""Vibration-fault classifier as flashed on the gateway: 3-axis accelerometer, strided conv, GRU over frames, butterfly MoE.

form       W_down . B(phi_e) . GELU_tanh(W_up . B(theta_e) x), Algorithm 2
weights    checkpoint is ternary already: int8 {-1,0,1} code buffers and one float scale per output row, for W_up and W_down
rotation   y = x*cos + x[partner]*sin with sign folded in, partner = channel ^ 1; [c s; -s c] on the input side,
           [c -s; s c] on the output side
shuffle    index table, interleave the halves, after the rotation
L          2 in (32 wide), 1 out (192 zero-padded to 256, stripped after)
router     top-4 of 12 logits, then softmax over the four
biases     b_up and b_down shared; b_down sits inside the expert, so it is weighted by the gates
dispatch   stable sort of (token, slot) by expert, bincount, split, index_add_
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def pack_ternary(w_float):
    """Offline step of the converter: float matrix -> (int8 codes, per-row scale)."""
    scale = w_float.abs().mean(dim=1)
    code = torch.clamp(torch.round(w_float / (scale[:, None] + 1e-8)), -1, 1).to(torch.int8)
    return code, scale


class QLinear(nn.Module):
    """y = scale * (code @ x) + bias, codes kept as int8."""

    def __init__(self, n_in, n_out):
        super().__init__()
        code, scale = pack_ternary(torch.randn(n_out, n_in) * 0.8 / n_in ** 0.5)
        self.register_buffer("code", code)
        self.register_buffer("scale", scale * (0.8 + 0.4 * torch.rand(n_out)))
        self.register_buffer("bias", torch.randn(n_out) * 0.1)

    def forward(self, x):
        acc = torch.matmul(x, self.code.to(x.dtype).t())
        return acc * self.scale + self.bias


class AngleBank(nn.Module):
    """Angles of every expert for one side: [E][L][N/2]."""

    def __init__(self, n_experts, n_layers, width, direction):
        super().__init__()
        n = 1
        while n < width:
            n <<= 1
        self.width, self.n = width, n
        idx = torch.arange(n)
        half = n // 2
        self.register_buffer("angle", torch.randn(n_experts, n_layers, half) * 0.5)
        self.register_buffer("partner", idx ^ 1)
        self.register_buffer("shuffle", (idx >> 1) + (idx & 1) * half)
        self.register_buffer("sign", direction * (1 - 2 * (idx & 1)).to(torch.int8))

    def run(self, e, x):
        if self.n != self.width:
            pad = x.new_zeros(x.shape[0], self.n - self.width)
            x = torch.cat([x, pad], dim=1)
        for l in range(self.angle.shape[1]):
            a = self.angle[e, l].repeat_interleave(2)
            x = x * torch.cos(a) + x.index_select(1, self.partner) * (torch.sin(a) * self.sign)
            x = x.index_select(1, self.shuffle)
        return x.narrow(1, 0, self.width)


class SensorMoE(nn.Module):
    def __init__(self, d=32, f=192, n_experts=12, k=4):
        super().__init__()
        self.n_experts, self.k = n_experts, k
        self.register_buffer("router_w", torch.randn(d, n_experts) * 0.35)
        self.register_buffer("router_b", torch.randn(n_experts) * 0.1)
        self.up = QLinear(d, f)
        self.down = QLinear(f, d)
        self.bank_in = AngleBank(n_experts, 2, d, direction=+1)
        self.bank_out = AngleBank(n_experts, 1, f, direction=-1)

    def forward(self, x):
        # x: [n_tok][d]
        logits = torch.addmm(self.router_b, x, self.router_w)
        val, sel = torch.topk(logits, self.k, dim=1)
        gate = torch.softmax(val, dim=1).reshape(-1)
        flat = sel.reshape(-1)
        order = torch.argsort(flat, stable=True)
        token = torch.div(order, self.k, rounding_mode="floor")
        counts = torch.bincount(flat, minlength=self.n_experts).tolist()

        y = torch.zeros_like(x)
        for e, (tok, slot) in enumerate(zip(token.split(counts), order.split(counts))):
            if tok.numel() == 0:
                continue
            h = self.bank_in.run(e, x.index_select(0, tok))
            h = F.gelu(self.up(h), approximate="tanh")
            h = self.down(self.bank_out.run(e, h))
            y.index_add_(0, tok, h * gate.index_select(0, slot).unsqueeze(1))
        return y


class Stage(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.ln_a = nn.LayerNorm(d)
        self.gru = nn.GRU(d, d, batch_first=True)
        self.ln_b = nn.LayerNorm(d)
        self.moe = SensorMoE(d)

    def forward(self, x):
        r, _ = self.gru(self.ln_a(x))
        x = x + r
        y = self.moe(self.ln_b(x).flatten(0, 1))
        return x + y.view_as(x)


class VibrationNet(nn.Module):
    FRAME = 8

    def __init__(self, d=32, n_stage=2, n_fault=6):
        super().__init__()
        self.register_buffer("adc_scale", torch.tensor(1.0 / 4096))
        self.front = nn.Conv1d(3, d, self.FRAME, stride=self.FRAME)
        self.stage0 = Stage(d)
        self.stage1 = Stage(d)
        self.ln = nn.LayerNorm(d)
        self.out = nn.Linear(2 * d, n_fault)

    def forward(self, adc):
        # adc: int16 samples [batch][3][n]
        x = adc.to(self.adc_scale.dtype) * self.adc_scale
        x = self.front(x).permute(0, 2, 1)
        x = self.stage1(self.stage0(x))
        x = self.ln(x)
        feat = torch.cat([x.mean(dim=1), x.amax(dim=1)], dim=1)
        return self.out(feat)


def make():
    torch.manual_seed(0x5EED)
    net = VibrationNet()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "bias" in name:
                p.uniform_(-0.3, 0.3)
            elif ".ln" in "." + name:
                p.uniform_(0.7, 1.3)
    adc = (torch.randn(3, 3, 128) * 5000).clamp(-32768, 32767).to(torch.int16)
    return net.eval(), (adc,)
