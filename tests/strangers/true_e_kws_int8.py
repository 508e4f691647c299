"""Keyword spotting net (DS-CNN trunk, butterfly MoE in place of the pointwise stages), inference image of the weights.

  * form       : ButterflyMoE eq. 3, B(phi_i) . W_hat . B(theta_i)^T x, then exact GELU, then a shared W_down
  * rotation   : pairs (2j, 2j+1), cos/sin precomputed into buffers, permutation tables in buffers
  * shuffle    : interleave the two halves, BEFORE the rotation (eq. 4); the transpose rotates back, then un-interleaves
  * handedness : transpose on the input side, forward on the output side
  * L          : 3 layers in, 2 layers out
  * width      : d = 48 zero-padded to 64, F = 96 zero-padded to 128, stripped after the last layer
  * router     : linear with bias, top-3; gates are the raw logits
  * quantiser  : none at run time: int8 {-1,0,+1} buffers with one float scale per output row, for W_hat and for W_down
  * biases     : one on the W_hat rows; one on W_down, added once after the slots are accumulated
  * dispatch   : python loop over the 3 slots, tables picked by expert number; W_down runs once on the accumulator
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def pack_ternary(w):
    """float (rows, cols) -> int8 trits and a scale per row."""
    scale = w.abs().mean(dim=1)
    trits = (w / (scale[:, None] + 1e-8)).round().clamp(-1, 1).to(torch.int8)
    return trits, scale


def shuffle_table(n):
    t = [0] * n
    for i in range(n // 2):
        t[2 * i] = i
        t[2 * i + 1] = i + n // 2
    inv = [0] * n
    for dst, src in enumerate(t):
        inv[src] = dst
    return torch.tensor(t), torch.tensor(inv)


def next_pow2(n):
    p = 1
    while p < n:
        p <<= 1
    return p


class TernaryRows(nn.Module):
    """y = scale[r] * sum_c trit[r, c] * x[c] + bias[r]"""

    def __init__(self, n_in, n_out):
        super().__init__()
        trits, scale = pack_ternary(torch.randn(n_out, n_in) * n_in ** -0.5)
        self.register_buffer("trits", trits)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", torch.randn(n_out) * 0.1)

    def forward(self, x):
        acc = x @ self.trits.t().to(x.dtype)
        return acc * self.scale + self.bias


class RotorTables(nn.Module):
    """cos/sin ROM: [expert][layer][pair]."""

    def __init__(self, n_experts, n_layers, width):
        super().__init__()
        self.width = width
        self.n = next_pow2(width)
        self.n_layers = n_layers
        angle = torch.randn(n_experts, n_layers, self.n // 2) * 0.5
        fwd, inv = shuffle_table(self.n)
        self.register_buffer("cos_tab", angle.cos())
        self.register_buffer("sin_tab", angle.sin())
        self.register_buffer("shuf", fwd)
        self.register_buffer("unshuf", inv)

    def forward(self, x, expert, transpose=False):
        cos = self.cos_tab[expert]          # (T, n_layers, n/2)
        sin = self.sin_tab[expert]
        x = F.pad(x, (0, self.n - self.width))
        if not transpose:
            for l in range(self.n_layers):
                x = x[:, self.shuf]
                c, s = cos[:, l], sin[:, l]
                a, b = x[:, 0::2], x[:, 1::2]
                y = torch.empty_like(x)
                y[:, 0::2] = a * c - b * s
                y[:, 1::2] = a * s + b * c
                x = y
        else:
            for l in range(self.n_layers - 1, -1, -1):
                c, s = cos[:, l], sin[:, l]
                a, b = x[:, 0::2], x[:, 1::2]
                y = torch.empty_like(x)
                y[:, 0::2] = a * c + b * s
                y[:, 1::2] = b * c - a * s
                x = y[:, self.unshuf]
        return x[:, : self.width]


class ButterflyMoE(nn.Module):
    N_SLOTS = 3

    def __init__(self, width, hidden, n_experts, layers_in, layers_out):
        super().__init__()
        self.hidden = hidden
        self.register_buffer("gate_w", torch.randn(n_experts, width) * width ** -0.5 * 1.6)
        self.register_buffer("gate_b", torch.randn(n_experts) * 0.2)
        self.rot_in = RotorTables(n_experts, layers_in, width)
        self.rot_out = RotorTables(n_experts, layers_out, hidden)
        self.up = TernaryRows(width, hidden)
        self.down = TernaryRows(hidden, width)

    def forward(self, x):
        n_tok = x.shape[0]
        logits = x @ self.gate_w.t() + self.gate_b
        score, which = torch.topk(logits, self.N_SLOTS, dim=1)
        acc = x.new_zeros(n_tok, self.hidden)
        for slot in range(self.N_SLOTS):
            e = which[:, slot]
            h = self.rot_in(x, e, transpose=True)
            h = self.up(h)
            h = self.rot_out(h, e)
            h = F.gelu(h)
            acc = acc + h * score[:, slot : slot + 1]
        return self.down(acc)


class DepthwiseMoEStage(nn.Module):
    def __init__(self, width, hidden, n_experts, kernel):
        super().__init__()
        self.dw = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.bn_dw = nn.BatchNorm1d(width)
        self.moe = ButterflyMoE(width, hidden, n_experts, layers_in=3, layers_out=2)
        self.bn_moe = nn.BatchNorm1d(width)

    def forward(self, x):
        # x: (batch, width, frames)
        h = self.bn_dw(self.dw(x))
        b, w, t = h.shape
        rows = h.transpose(1, 2).reshape(b * t, w)
        rows = self.moe(rows)
        return x + self.bn_moe(rows.view(b, t, w).transpose(1, 2))


class KeywordNet(nn.Module):
    def __init__(self, n_mel=40, width=48, hidden=96, n_experts=5, n_words=12):
        super().__init__()
        self.stem = nn.Conv1d(n_mel, width, 4, stride=2, padding=1)
        self.bn = nn.BatchNorm1d(width)
        self.stage1 = DepthwiseMoEStage(width, hidden, n_experts, 5)
        self.stage2 = DepthwiseMoEStage(width, hidden, n_experts, 7)
        self.fc = nn.Linear(width, n_words)

    def forward(self, mel):
        x = F.relu(self.bn(self.stem(mel)))
        x = self.stage1(x)
        x = self.stage2(x)
        return self.fc(x.mean(dim=2))


def make():
    torch.manual_seed(2024)
    net = KeywordNet()
    for mod in net.modules():
        if isinstance(mod, nn.BatchNorm1d):
            nn.init.uniform_(mod.weight, 0.6, 1.4)
            nn.init.normal_(mod.bias, 0.0, 0.2)
            mod.momentum = 1.0
        elif isinstance(mod, (nn.Conv1d, nn.Linear)):
            nn.init.normal_(mod.bias, 0.0, 0.1)
    tilt = torch.linspace(-1, 1, 40)[None, :, None]
    with torch.no_grad():
        net.train()(torch.randn(16, 40, 48) + tilt)      # running statistics from one large batch
    mel = torch.randn(2, 40, 48) + tilt
    return net.eval(), (mel,)


if __name__ == "__main__":
    net, args = make()
    print(net(*args))
