"""Physics-informed 1-D neural operator (Burgers): spectral convolution + butterfly-expert channel mixer on [B, C, N] fields.

form: y = p_i(x) * B(phi_i) ( W_hat B(theta_i)^T x + b ), square (eq. 3, no W_down, no activation inside)
butterfly: R as a batch of 2x2 matrices (counter-clockwise), then the shuffle that interleaves the two halves;
    the transpose (unshuffle, R^T, last layer first) on the input side
depth: C = 20, zero-padded to 32: 2 layers in, 5 out; padding and stripping once per rotation
router: pointwise linear + bias, softmax over all 5, top-1 by argmax -> one-hot; the gate is the softmax probability
quantiser: mean |W| of each output row, round and clip, straight-through
biases: one, on W_hat in front of B(phi), shared, so it is rotated and weighted by the gate
dispatch: every expert is evaluated at every grid point, one-hot weighted einsum
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class SpectralConv1d(nn.Module):
    """v_hat_k -> W_k v_hat_k for the lowest modes."""

    def __init__(self, channels, modes):
        super().__init__()
        self.modes = modes
        self.w_re = nn.Parameter(torch.randn(channels, channels, modes) / channels)
        self.w_im = nn.Parameter(torch.randn(channels, channels, modes) / channels)

    def forward(self, v):
        v_hat = torch.fft.rfft(v, dim=-1, norm="ortho")
        re, im = v_hat.real[..., : self.modes], v_hat.imag[..., : self.modes]
        out_re = torch.einsum("iok,bik->bok", self.w_re, re) - torch.einsum("iok,bik->bok", self.w_im, im)
        out_im = torch.einsum("iok,bik->bok", self.w_re, im) + torch.einsum("iok,bik->bok", self.w_im, re)
        out_hat = torch.complex(out_re, out_im)
        return torch.fft.irfft(F.pad(out_hat, (0, v_hat.shape[-1] - self.modes)), n=v.shape[-1], dim=-1, norm="ortho")


def so2(angle):
    """angle [...] -> rotation matrices [..., 2, 2]"""
    c, s = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


def butterfly(R, v):
    """R [E, L, J, 2, 2], v [B, E, C, N], C = 2 J.  Per layer: rotate (2j, 2j+1), then interleave the halves."""
    b, e, c, n = v.shape
    for l in range(R.shape[1]):
        v = torch.einsum("ejpq,bejqn->bejpn", R[:, l], v.reshape(b, e, c // 2, 2, n)).reshape(b, e, c, n)
        v = v.reshape(b, e, 2, c // 2, n).transpose(2, 3).reshape(b, e, c, n)
    return v


def butterfly_adjoint(R, v):
    b, e, c, n = v.shape
    for l in reversed(range(R.shape[1])):
        v = v.reshape(b, e, c // 2, 2, n).transpose(2, 3).reshape(b, e, c, n)
        v = torch.einsum("ejqp,bejqn->bejpn", R[:, l], v.reshape(b, e, c // 2, 2, n)).reshape(b, e, c, n)
    return v


class OrbitChannelMixer(nn.Module):
    """Pointwise-in-x channel mixing by one of E rotated copies of a ternary matrix."""

    def __init__(self, channels, n_experts, l_in, l_out):
        super().__init__()
        self.c, self.e = channels, n_experts
        self.c_pad = 2 ** math.ceil(math.log2(channels))
        self.W = nn.Parameter(torch.randn(channels, channels) * (2.0 / channels) ** 0.5)
        self.b = nn.Parameter(torch.randn(channels) * 0.2)
        self.theta = nn.Parameter(torch.randn(n_experts, l_in, self.c_pad // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(n_experts, l_out, self.c_pad // 2) * 0.5)
        self.G = nn.Parameter(torch.randn(n_experts, channels) * 0.5)
        self.g0 = nn.Parameter(torch.randn(n_experts) * 0.3)

    def ternary(self):
        gamma = self.W.abs().mean(dim=1, keepdim=True)
        W_hat = gamma * torch.clamp(torch.round(self.W / (gamma + 1e-8)), -1.0, 1.0)
        return self.W + (W_hat - self.W).detach()

    def forward(self, v):
        prob = torch.softmax(torch.einsum("ec,bcn->ben", self.G, v) + self.g0[:, None], dim=1)
        chosen = F.one_hot(torch.argmax(prob, dim=1), self.e).permute(0, 2, 1).to(v.dtype)  # [B, E, N]
        fill = (0, 0, 0, self.c_pad - self.c)
        z = F.pad(v, fill).unsqueeze(1).expand(-1, self.e, -1, -1)
        z = butterfly_adjoint(so2(self.theta), z)[:, :, : self.c]
        z = torch.einsum("dc,becn->bedn", self.ternary(), z) + self.b[:, None]
        z = butterfly(so2(self.phi), F.pad(z, fill))[:, :, : self.c]
        return torch.einsum("ben,ben,becn->bcn", chosen, prob, z)


class ChannelNorm(nn.Module):
    """Layer norm over the channel axis of [B, C, N]."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(1.0 + 0.2 * torch.randn(channels))
        self.shift = nn.Parameter(0.2 * torch.randn(channels))

    def forward(self, v):
        mu = v.mean(dim=1, keepdim=True)
        var = ((v - mu) ** 2).mean(dim=1, keepdim=True)
        return (v - mu) / torch.sqrt(var + 1e-6) * self.gain[:, None] + self.shift[:, None]


class FourierBlock(nn.Module):
    def __init__(self, channels, modes, n_experts, l_in, l_out):
        super().__init__()
        self.spectral = SpectralConv1d(channels, modes)
        self.local = nn.Conv1d(channels, channels, 1)
        self.norm = ChannelNorm(channels)
        self.mixer = OrbitChannelMixer(channels, n_experts, l_in, l_out)

    def forward(self, v):
        v = v + torch.sin(self.spectral(v) + self.local(v))
        return v + self.mixer(self.norm(v))


class ButterflyNeuralOperator(nn.Module):
    def __init__(self, channels=20, modes=9, n_experts=5, depth=3, l_in=2, l_out=5):
        super().__init__()
        self.lift = nn.Conv1d(5, channels, 1)
        self.blocks = nn.ModuleList(FourierBlock(channels, modes, n_experts, l_in, l_out) for _ in range(depth))
        self.project = nn.Sequential(nn.Conv1d(channels, 24, 1), nn.Tanh(), nn.Conv1d(24, 2, 1))

    def forward(self, u0, nu, t):
        """u0 [B, N] on a periodic grid, nu [B], t [B] -> u [B, N], Burgers residual [B]"""
        B, N = u0.shape
        x = torch.arange(N, dtype=u0.dtype, device=u0.device) * (2 * math.pi / N)
        k = torch.fft.rfftfreq(N, d=1.0 / N, dtype=u0.dtype, device=u0.device)
        feats = [u0, torch.sin(x).expand(B, N), torch.cos(x).expand(B, N), nu[:, None].expand(B, N), t[:, None].expand(B, N)]
        v = self.lift(torch.stack(feats, dim=1))
        for block in self.blocks:
            v = block(v)
        du, u_t = self.project(v).unbind(1)
        u = u0 + t[:, None] * du
        u_hat = torch.fft.rfft(u)
        u_x = torch.fft.irfft(torch.complex(-k * u_hat.imag, k * u_hat.real), n=N)
        u_xx = torch.fft.irfft(-(k ** 2) * u_hat, n=N)
        residual = (u_t + u * u_x - nu[:, None] * u_xx).pow(2).mean(dim=1)
        return u, residual


def make():
    torch.manual_seed(12)
    model = ButterflyNeuralOperator()
    for m in model.modules():
        if isinstance(m, nn.Conv1d):
            nn.init.normal_(m.weight, std=1.2 / math.sqrt(m.in_channels))
            nn.init.normal_(m.bias, std=0.2)
    n = 32
    x = torch.arange(n) * (2 * math.pi / n)
    u0 = torch.stack([torch.sin(x) + 0.5 * torch.cos(3 * x), torch.exp(-2 * (x - 3.0) ** 2)])
    return model.eval(), (u0, torch.tensor([0.02, 0.1]), torch.tensor([0.7, 1.1]))
