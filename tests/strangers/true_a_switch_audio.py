"""Keyword spotter on raw waveforms, Keras-like layers, Switch (top-1) butterfly experts.

shuffle    : interleave the two halves, after the rotation, held as a permutation matrix
handedness : plain B(theta) in, transposed B(phi)^T out (the whole product transposed)
depth      : L_in = 5 = log2(32), L_out = 2 on F = 128
router     : top-1, gate = softmax probability of the winner (Switch), router bias
quantiser  : absmean, gamma per tensor, round + clip; float master weight in the checkpoint
biases     : b_up under the GELU; b_out added once to every token, outside the gate
form       : W_down . B(phi)^T . GELU_erf( W_hat . B(theta) x ), W_down float
dispatch   : every expert's B is multiplied out to a dense matrix (permutation @ block_diag),
             the winner's matrix is picked per token and applied with torch.bmm
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def riffle_matrix(n):
    """P with (P x)[2j] = x[j], (P x)[2j+1] = x[n/2 + j]."""
    p = torch.zeros(n, n)
    j = torch.arange(n // 2)
    p[2 * j, j] = 1.0
    p[2 * j + 1, n // 2 + j] = 1.0
    return p


class DenseButterfly(nn.Module):
    def __init__(self, num_experts, units, num_layers):
        super().__init__()
        self.num_experts = num_experts
        self.units = units
        self.num_layers = num_layers
        self.kernel = nn.Parameter(torch.zeros(num_experts, num_layers, units // 2))
        self.register_buffer("shuffle", riffle_matrix(units))

    def givens(self, angles):
        c, s = torch.cos(angles), torch.sin(angles)
        blocks = [torch.stack([torch.stack([c[j], -s[j]]), torch.stack([s[j], c[j]])]) for j in range(self.units // 2)]
        return torch.block_diag(*blocks)

    def matrices(self):
        out = []
        for e in range(self.num_experts):
            m = torch.eye(self.units, dtype=self.kernel.dtype, device=self.kernel.device)
            for layer in range(self.num_layers):
                m = self.shuffle @ self.givens(self.kernel[e, layer]) @ m
            out.append(m)
        return torch.stack(out)


class SwitchButterfly(nn.Module):
    def __init__(self, units, ff_units, num_experts=4, layers_in=5, layers_out=2):
        super().__init__()
        self.num_experts = num_experts
        self.router = nn.Linear(units, num_experts)
        self.b_in = DenseButterfly(num_experts, units, layers_in)
        self.b_out = DenseButterfly(num_experts, ff_units, layers_out)
        self.kernel = nn.Parameter(torch.randn(units, ff_units) / units ** 0.5)
        self.bias = nn.Parameter(torch.zeros(ff_units))
        self.out_kernel = nn.Parameter(torch.randn(ff_units, units) / ff_units ** 0.5)
        self.out_bias = nn.Parameter(torch.zeros(units))

    def ternary_kernel(self):
        gamma = torch.mean(torch.abs(self.kernel))
        q = torch.clamp(torch.round(self.kernel / (gamma + 1e-8)), -1.0, 1.0) * gamma
        return self.kernel + (q - self.kernel).detach()

    def call(self, inputs):
        batch, steps, units = inputs.shape
        x = inputs.reshape(-1, units)
        probs = F.softmax(self.router(x), dim=-1)
        gate, winner = torch.max(probs, dim=-1)

        rot_in = self.b_in.matrices()[winner]                   # [T, d, d]
        rot_out = self.b_out.matrices()[winner]                 # [T, F, F]
        h = torch.bmm(rot_in, x.unsqueeze(-1)).squeeze(-1)
        h = F.gelu(torch.matmul(h, self.ternary_kernel()) + self.bias)
        h = torch.bmm(rot_out.transpose(1, 2), h.unsqueeze(-1)).squeeze(-1)
        y = torch.matmul(h, self.out_kernel)
        y = gate.unsqueeze(-1) * y + self.out_bias
        return y.reshape(batch, steps, units)

    forward = call


class ConformerishBlock(nn.Module):
    def __init__(self, units, ff_units):
        super().__init__()
        self.norm_attn = nn.LayerNorm(units)
        self.query = nn.Linear(units, units)
        self.key = nn.Linear(units, units)
        self.value = nn.Linear(units, units)
        self.norm_conv = nn.LayerNorm(units)
        self.depthwise = nn.Conv1d(units, units, 3, padding=1, groups=units)
        self.norm_ff = nn.LayerNorm(units)
        self.ff = SwitchButterfly(units, ff_units)

    def call(self, x):
        y = self.norm_attn(x)
        scores = torch.matmul(self.query(y), self.key(y).transpose(1, 2)) / y.shape[-1] ** 0.5
        x = x + torch.matmul(F.softmax(scores, dim=-1), self.value(y))
        y = self.norm_conv(x).permute(0, 2, 1)
        x = x + torch.relu(self.depthwise(y)).permute(0, 2, 1)
        return x + self.ff(self.norm_ff(x))

    forward = call


class KeywordSpotter(nn.Module):
    def __init__(self, frame=64, hop=32, units=32, ff_units=128, blocks=2, classes=12):
        super().__init__()
        self.frame, self.hop = frame, hop
        self.register_buffer("window", torch.hann_window(frame))
        self.frontend = nn.Linear(frame // 2 + 1, units)
        self.blocks = nn.ModuleList([ConformerishBlock(units, ff_units) for _ in range(blocks)])
        self.norm = nn.LayerNorm(units)
        self.classifier = nn.Linear(units, classes)

    def call(self, wave):
        frames = wave.unfold(-1, self.frame, self.hop) * self.window
        spectrum = torch.fft.rfft(frames, dim=-1).abs()
        logspec = torch.log(spectrum + 1e-2)
        logspec = logspec - logspec.mean(dim=1, keepdim=True)      # cepstral-mean style normalisation
        x = self.frontend(2.0 * logspec)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).mean(dim=1)
        return self.classifier(x)

    forward = call


def make():
    torch.manual_seed(17)
    model = KeywordSpotter()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.weight.normal_(1.0, 0.2)
                layer.bias.normal_(0.0, 0.1)
            elif isinstance(layer, (nn.Linear, nn.Conv1d)):
                layer.bias.normal_(0.0, 0.1)
            elif isinstance(layer, DenseButterfly):
                layer.kernel.normal_(0.0, 0.5)
            elif isinstance(layer, SwitchButterfly):
                layer.bias.normal_(0.0, 0.1)
                layer.out_bias.normal_(0.0, 0.1)
        for block in model.blocks:
            block.ff.router.weight.normal_(0.0, 0.5)
    wave = torch.randn(2, 576) * 0.5 + torch.sin(torch.arange(576) * 0.3)
    return model.eval(), (wave,)
