"""Point-cloud set network from a molecular-dynamics habit: channel pairs are (position, momentum) and are "turned".

shuffle    : interleave the two halves after each stage
handedness : one-way stages on both sides
depth      : L_in = 5 on d = 32, L_out = 4 on F = 96 padded to 128
router     : top-3 logits then softmax, no bias
quantiser  : absmean per tensor, round + clip
biases     : b_up shared; b_down shared, added once
form       : W_down . S(phi) . GELU_tanh( W_hat . S(theta) x )
dispatch   : loop over the k slots, step tables gathered by expert index per token
Not the papers' layer: a stage is the symplectic kick-drift pair q -= h p ; p += h q with h = 2 sin(a/2)
instead of a Givens rotation. It keeps area (det = 1) and looks like a turn by a, but it is a
turn along an ellipse: S^T S is not the identity, so S(theta) is only nearly orthogonal.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def ceil_pow2(n: int) -> int:
    m = 1
    while m < n:
        m *= 2
    return m


def kick_drift(z: Tensor, step: Tensor) -> Tensor:
    """z [N, m], step [N, L, m/2]; L stages of leapfrog-like turns followed by a riffle."""
    N, m = z.shape
    for l in range(step.shape[1]):
        q, p = z.view(N, m // 2, 2).unbind(-1)
        h = step[:, l]
        q = q - h * p
        p = p + h * q
        z = torch.stack((q, p), dim=-1).view(N, 2, m // 2).transpose(1, 2).reshape(N, m)
    return z


class StepTable(nn.Module):
    def __init__(self, n_experts: int, n_stages: int, width: int):
        super().__init__()
        self.width, self.padded = width, ceil_pow2(width)
        angle = torch.randn(n_experts, n_stages, self.padded // 2, dtype=torch.float64) * 0.5
        self.angle = nn.Parameter(angle.float())

    def forward(self, z: Tensor, which: Tensor) -> Tensor:
        step = 2.0 * torch.sin(0.5 * self.angle)
        z = F.pad(z, (0, self.padded - self.width))
        return kick_drift(z, step[which])[:, : self.width]


class FlowMixture(nn.Module):
    def __init__(self, d: int, f: int, n_experts: int, k: int):
        super().__init__()
        self.k = k
        self.router = nn.Parameter(torch.randn(d, n_experts) * 0.25)
        self.W = nn.Parameter(torch.randn(f, d) * d ** -0.5)
        self.b_up = nn.Parameter(torch.randn(f) * 0.1)
        self.W_down = nn.Parameter(torch.randn(d, f) * f ** -0.5)
        self.b_down = nn.Parameter(torch.randn(d) * 0.1)
        self.flow_in = StepTable(n_experts, 5, d)
        self.flow_out = StepTable(n_experts, 4, f)

    def quantised(self) -> Tensor:
        gamma = self.W.abs().mean()
        W_hat = gamma * (self.W / (gamma + 1e-8)).round().clamp(-1, 1)
        return W_hat if not self.training else self.W + (W_hat - self.W).detach()

    def forward(self, x: Tensor) -> Tensor:
        B, N, d = x.shape
        z = x.reshape(B * N, d)
        val, idx = torch.topk(z @ self.router, self.k, dim=-1)
        gate = torch.softmax(val, dim=-1)
        W_hat = self.quantised()
        y = self.b_down.expand_as(z)
        for slot in range(self.k):
            which = idx[:, slot]
            h = self.flow_in(z, which)
            h = F.gelu(h @ W_hat.T + self.b_up, approximate="tanh")
            h = self.flow_out(h, which) @ self.W_down.T
            y = y + gate[:, slot : slot + 1] * h
        return y.reshape(B, N, d)


class PairMixing(nn.Module):
    """Kernel-weighted averaging over neighbours with learnt length scales."""

    def __init__(self, d: int, n_scales: int = 4):
        super().__init__()
        self.log_scale = nn.Parameter(torch.linspace(-1.0, 1.0, n_scales))
        self.value = nn.Linear(d, d)
        self.out = nn.Linear(d, d)
        self.n_scales = n_scales

    def forward(self, x: Tensor, r2: Tensor) -> Tensor:
        B, N, d = x.shape
        K = torch.exp(-r2[:, None] / torch.exp(self.log_scale)[None, :, None, None])
        K = K / K.sum(-1, keepdim=True)
        v = self.value(x).view(B, N, self.n_scales, -1).permute(0, 2, 1, 3)
        return self.out((K @ v).permute(0, 2, 1, 3).reshape(B, N, d))


class EnergyNet(nn.Module):
    def __init__(self, d: int = 32, f: int = 96, n_layers: int = 2):
        super().__init__()
        self.lift = nn.Linear(6, d)
        self.mix = nn.ModuleList(PairMixing(d) for _ in range(n_layers))
        self.norm_mix = nn.ModuleList(nn.LayerNorm(d) for _ in range(n_layers))
        self.moe = nn.ModuleList(FlowMixture(d, f, n_experts=7, k=3) for _ in range(n_layers))
        self.norm_moe = nn.ModuleList(nn.LayerNorm(d) for _ in range(n_layers))
        self.readout = nn.Linear(d, 1)

    def forward(self, points: Tensor) -> Tensor:
        xyz = points[..., :3]
        r2 = ((xyz[:, :, None] - xyz[:, None, :]) ** 2).sum(-1)
        x = self.lift(points)
        for mix, n1, moe, n2 in zip(self.mix, self.norm_mix, self.moe, self.norm_moe):
            x = x + mix(n1(x), r2)
            x = x + moe(n2(x))
        return self.readout(x).squeeze(-1)


def make():
    torch.manual_seed(2718)
    net = EnergyNet()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.uniform_(0.7, 1.3)
                m.bias.normal_(0, 0.1)
            elif isinstance(m, nn.Linear):
                m.bias.normal_(0, 0.2)
    return net.eval(), (torch.randn(2, 24, 6),)
