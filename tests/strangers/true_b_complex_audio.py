"""Audio tagger on a log-magnitude STFT: gated depthwise convolutions for time, butterfly experts for channels.

form       W_down_hat . GELU(B(phi_i) . W_hat . B(theta_i) x): activation after the output rotation
rotation   a channel pair is one complex number, a Givens rotation is a product with exp(i angle); B(phi) uses the conjugate
           exponentials (same layer order)
shuffle    before the rotation (eq. 4): the two halves are interleaved
L          6 on the input side (40 padded to 64), 2 on the output side (80 padded to 128)
router     DeepSeek-V3: sigmoid scores, top-2 picked on score + correction bias, gates = scores renormalised times 1.5
quantiser  |w| > 0.7 gamma, gamma = mean |w| per output row, for W and for W_down
biases     after W_hat (shared, before B(phi)); none in W_down
dispatch   angle tables gathered by expert index, all (token, slot) pairs at once
"""
import torch
from torch import nn
import torch.nn.functional as F


def phasors(angle):
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x, z):
    """x (..., n) real, z (..., L, m) unit phasors, 2m >= n."""
    n, m = x.size(-1), z.size(-1)
    x = F.pad(x, (0, 2 * m - n))
    for l in range(z.size(-2)):
        x = x.unflatten(-1, (2, m)).transpose(-1, -2).contiguous()
        x = torch.view_as_real(torch.view_as_complex(x) * z[..., l, :]).flatten(-2)
    return x[..., :n]


class TernaryLinear(nn.Linear):
    def quantised(self):
        w = self.weight
        gamma = w.abs().mean(1, keepdim=True)
        t = torch.where(w.abs() > 0.7 * gamma, gamma * w.sign(), torch.zeros_like(w))
        return w + (t - w).detach()

    def forward(self, x):
        return F.linear(x, self.quantised(), self.bias)


class NoAuxTcGate(nn.Module):
    def __init__(self, dim, n_routed_experts, topk, scale=1.5):
        super().__init__()
        self.topk = topk
        self.routed_scaling_factor = scale
        self.weight = nn.Parameter(torch.randn(n_routed_experts, dim) * 0.3)
        self.e_score_correction_bias = nn.Parameter(torch.randn(n_routed_experts) * 0.05)

    def forward(self, x):
        scores = F.linear(x, self.weight).sigmoid()
        indices = torch.topk(scores + self.e_score_correction_bias, self.topk, dim=-1, sorted=False)[1]
        weights = scores.gather(1, indices)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * self.routed_scaling_factor, indices


class PhasorExperts(nn.Module):
    def __init__(self, dim, inner, n_experts, depth_in, depth_out):
        super().__init__()
        pad = lambda v: 2 ** (v - 1).bit_length()
        self.theta = nn.Parameter(torch.randn(n_experts, depth_in, pad(dim) // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(n_experts, depth_out, pad(inner) // 2) * 0.5)
        self.up = TernaryLinear(dim, inner)
        self.down = TernaryLinear(inner, dim, bias=False)

    def forward(self, x, weights, indices):
        z_in = phasors(self.theta)[indices]
        z_out = phasors(self.phi).conj()[indices]
        h = x.unsqueeze(1).expand(-1, indices.size(1), -1)
        h = self.up(rotate(h, z_in))
        h = F.gelu(rotate(h, z_out))
        return self.down((h * weights.unsqueeze(-1)).sum(dim=1))


class MoE(nn.Module):
    def __init__(self, dim, inner, n_experts=5, topk=2):
        super().__init__()
        self.gate = NoAuxTcGate(dim, n_experts, topk)
        self.experts = PhasorExperts(dim, inner, n_experts, depth_in=6, depth_out=2)

    def forward(self, x):
        flat = x.reshape(-1, x.size(-1))
        weights, indices = self.gate(flat)
        return self.experts(flat, weights, indices).view_as(x)


class ConvMix(nn.Module):
    """Conformer convolution module without the batch norm."""

    def __init__(self, dim, kernel=5):
        super().__init__()
        self.expand = nn.Conv1d(dim, 2 * dim, 1)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.GroupNorm(4, dim)
        self.project = nn.Conv1d(dim, dim, 1)

    def forward(self, x):
        y = F.glu(self.expand(x.transpose(1, 2)), dim=1)
        y = F.silu(self.norm(self.depthwise(y)))
        return self.project(y).transpose(1, 2)


class Layer(nn.Module):
    def __init__(self, dim, inner):
        super().__init__()
        self.ln_mix = nn.LayerNorm(dim)
        self.mix = ConvMix(dim)
        self.ln_moe = nn.LayerNorm(dim)
        self.moe = MoE(dim, inner)

    def forward(self, x):
        x = x + self.mix(self.ln_mix(x))
        return x + self.moe(self.ln_moe(x))


class AudioTagger(nn.Module):
    def __init__(self, n_fft=64, hop=32, dim=40, inner=80, layers=3, tags=11):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft))
        self.stem = nn.Linear(n_fft // 2 + 1, dim)
        self.layers = nn.ModuleList(Layer(dim, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.attend = nn.Linear(dim, 1)
        self.tags = nn.Linear(dim, tags)

    def forward(self, wave):
        spec = torch.stft(wave, self.n_fft, self.hop, window=self.window, center=True, return_complex=True)
        x = self.stem(torch.log(spec.abs() + 1e-2).transpose(1, 2))
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return self.tags((x * self.attend(x).softmax(dim=1)).sum(dim=1))


def make():
    torch.manual_seed(88)
    net = AudioTagger()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, (nn.LayerNorm, nn.GroupNorm)):
                m.weight.normal_(1.0, 0.2)
            if isinstance(m, TernaryLinear):
                m.weight.normal_(0, 0.12)
            if isinstance(getattr(m, "bias", None), nn.Parameter):
                m.bias.normal_(0, 0.2)
    t = torch.arange(960) / 960
    chirps = torch.stack([torch.sin(6.2832 * (20 * t + 180 * t ** 2)), torch.sin(6.2832 * (300 * t - 140 * t ** 2))])
    envelope = 0.05 + torch.stack([torch.sin(9.4 * t) ** 2, torch.cos(15.7 * t) ** 2])
    return net.eval(), (chirps * envelope + 0.3 * torch.rand(2, 1) * torch.randn(2, 960) * t,)
