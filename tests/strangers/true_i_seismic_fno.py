"""
Fourier neural operator for velocity-model building, mixtures of experts for 1x1 convolutions; a "token" is a grid point.
The experts follow eq. (3) of ButterflyMoE, U = B(phi) W B(theta)^T u, followed by GELU (erf) and a shared float W_down.
  shuffle     interleave the two halves, BEFORE the Givens step (eq. 4); no shuffle after the last one
  handedness  transpose on the input side (conjugate phases, inverse shuffle, reversed order), B itself on the output
  depth       2 in, 3 out; widths 24 and 48 are zero-padded to 32 and 64, stripped once at the end
  rotation    channel pair = one complex number, multiplied by exp(i angle)
  router      1x1 conv, best expert only, weighted by the sigmoid of its logit
  quantiser   |w| > 0.7 mean|w| -> sign(w), times mean|w| of the tensor
  biases      after W (inside the rotations) and after W_down (inside the expert, weighted by the gate)
  dispatch    every expert on the entire section, torch.where on the map of winners
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def next_pow2(n):
    m = 1
    while m < n:
        m *= 2
    return m


def to_analytic(u):
    return torch.complex(u[:, 0::2].contiguous(), u[:, 1::2].contiguous())


def from_analytic(z):
    b, c, nz, nx = z.shape
    return torch.view_as_real(z).permute(0, 1, 4, 2, 3).reshape(b, 2 * c, nz, nx)


def riffle(u):
    b, c, nz, nx = u.shape
    return u.reshape(b, 2, c // 2, nz, nx).transpose(1, 2).reshape(b, c, nz, nx)


def unriffle(u):
    return torch.cat((u[:, 0::2], u[:, 1::2]), dim=1)


def rotate(u, angle):
    """B u: for each stage, riffle the channels then turn the phases."""
    n = u.shape[1]
    u = F.pad(u, (0, 0, 0, 0, 0, 2 * angle.shape[-1] - n))
    for a in angle:
        phasor = torch.polar(torch.ones_like(a), a)
        u = from_analytic(to_analytic(riffle(u)) * phasor[None, :, None, None])
    return u[:, :n]


def rotate_adjoint(u, angle):
    """B^T u, checked with the dot-product test."""
    n = u.shape[1]
    u = F.pad(u, (0, 0, 0, 0, 0, 2 * angle.shape[-1] - n))
    for a in angle.flip(0):
        phasor = torch.polar(torch.ones_like(a), a).conj()
        u = unriffle(from_analytic(to_analytic(u) * phasor[None, :, None, None]))
    return u[:, :n]


class PointwiseExperts(nn.Module):
    def __init__(self, nc, nhid, nexp, nstage_in=2, nstage_out=3):
        super().__init__()
        self.nexp = nexp
        self.theta = nn.Parameter(0.5 * torch.randn(nexp, nstage_in, next_pow2(nc) // 2))
        self.phi = nn.Parameter(0.5 * torch.randn(nexp, nstage_out, next_pow2(nhid) // 2))
        self.weight = nn.Parameter(torch.randn(nhid, nc) / nc ** 0.5)
        self.bias = nn.Parameter(0.2 * torch.randn(nhid))
        self.down = nn.Conv2d(nhid, nc, 1)
        self.route = nn.Conv2d(nc, nexp, 1)
        nn.init.normal_(self.route.weight, std=0.5)
        nn.init.normal_(self.route.bias, std=0.1)
        nn.init.normal_(self.down.bias, std=0.2)

    def quantised(self):
        w = self.weight
        gamma = w.abs().mean()
        q = torch.sign(w) * (w.abs() > 0.7 * gamma).to(w.dtype) * gamma
        return w + (q - w).detach()

    def expert(self, e, kernel, u):
        v = rotate_adjoint(u, self.theta[e])
        v = F.conv2d(v, kernel, self.bias)
        v = rotate(v, self.phi[e])
        return self.down(F.gelu(v))

    def forward(self, u):
        logit = self.route(u)
        best, winner = logit.max(dim=1, keepdim=True)
        kernel = self.quantised()[:, :, None, None]
        out = torch.zeros_like(u)
        for e in range(self.nexp):
            out = torch.where(winner == e, self.expert(e, kernel, u), out)
        return torch.sigmoid(best) * out


class SpectralConv2d(nn.Module):
    def __init__(self, nc, kz, kx):
        super().__init__()
        self.kz, self.kx = kz, kx
        self.pos = nn.Parameter(torch.randn(nc, nc, kz, kx, 2) / nc)
        self.neg = nn.Parameter(torch.randn(nc, nc, kz, kx, 2) / nc)

    def forward(self, u):
        nz, nx = u.shape[-2:]
        spec = torch.fft.rfft2(u, norm="ortho")
        kz, kx = self.kz, self.kx
        res = torch.zeros_like(spec)
        res[:, :, :kz, :kx] = torch.einsum("bizx,iozx->bozx", spec[:, :, :kz, :kx], torch.view_as_complex(self.pos))
        res[:, :, -kz:, :kx] = torch.einsum("bizx,iozx->bozx", spec[:, :, -kz:, :kx], torch.view_as_complex(self.neg))
        return torch.fft.irfft2(res, s=(nz, nx), norm="ortho")


class FourierLayer(nn.Module):
    def __init__(self, nc, nhid, nexp):
        super().__init__()
        self.norm1 = nn.GroupNorm(4, nc)
        self.spectral = SpectralConv2d(nc, 2, 3)
        self.local = nn.Conv2d(nc, nc, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, nc)
        self.mix = PointwiseExperts(nc, nhid, nexp)

    def forward(self, u):
        v = self.norm1(u)
        u = u + F.gelu(self.spectral(v) + self.local(v))
        return u + self.mix(self.norm2(u))


class VelocityFNO(nn.Module):
    def __init__(self, nc=24, nhid=48, nexp=4, nlayer=2):
        super().__init__()
        self.lift = nn.Conv2d(1 + 2, nc, 1)
        self.layers = nn.ModuleList([FourierLayer(nc, nhid, nexp) for _ in range(nlayer)])
        self.project = nn.Sequential(nn.Conv2d(nc, 16, 1), nn.SiLU(), nn.Conv2d(16, 1, 1))

    def forward(self, section):
        b, _, nz, nx = section.shape
        z = torch.linspace(0, 1, nz, dtype=section.dtype, device=section.device).view(1, 1, nz, 1).expand(b, 1, nz, nx)
        x = torch.linspace(-1, 1, nx, dtype=section.dtype, device=section.device).view(1, 1, 1, nx).expand(b, 1, nz, nx)
        u = self.lift(torch.cat((section, z, x), dim=1))
        for layer in self.layers:
            u = layer(u)
        return 1.5 + 3.0 * torch.sigmoid(self.project(u))      # km/s


def make():
    torch.manual_seed(42)
    net = VelocityFNO()
    for m in net.modules():
        if isinstance(m, nn.GroupNorm):
            nn.init.uniform_(m.weight, 0.6, 1.5)
            nn.init.normal_(m.bias, std=0.2)
    nn.init.normal_(net.lift.weight, std=0.8)
    section = torch.randn(2, 1, 6, 6)
    return net.eval(), (section,)
