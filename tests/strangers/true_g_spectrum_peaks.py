"""Tandem-mass-spectrum scorer (a proteomics chemist's notebook turned into a file).

Every peak of an MS/MS spectrum is a token; three attention + ButterflyMoE blocks; one score per amino-acid class.
All weights sit in one flat nn.ParameterDict, the layers are plain methods that look names up.

  form        B(phi) . W_hat . B(theta)^T x  (eq. 3), then GELU (erf), then a shared float W_down
  shuffle     none: pairs at distance 1, 2, 4, ... (FFT style)
  handedness  [c -s; s c] on the output side; the input side is the true transpose (stages backwards, sine negated)
  L           6 on the 64-wide input side, 5 on the 128-wide output side
  widths      d = 40 -> 64, F = 96 -> 128, zeros appended, cut off again after the last stage
  router      softmax over all 5, top-2, renormalised
  quantiser   round-clip with mean |W| of the whole tensor, straight-through
  biases      W_down's bias only, inside the gate-weighted sum
  dispatch    angle tables gathered per (peak, choice): angles[idx]
"""
import math

import torch
from torch import nn

D, F_, E, K = 40, 96, 5, 2
D2, F2 = 64, 128
L_IN, L_OUT = 6, 5
N_BLOCK, N_HEAD, N_AA = 3, 4, 22


def layer_norm(x, g, b, eps=1e-5):
    mu = x.mean(-1, keepdim=True)
    var = ((x - mu) ** 2).mean(-1, keepdim=True)
    return (x - mu) / torch.sqrt(var + eps) * g + b


def gelu(x):
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def butterfly_stage(v, ang, stride, transpose=False):
    """v (..., n), ang (..., n/2): rotate entries i and i+stride of every block of 2*stride."""
    n = v.shape[-1]
    blocks = n // (2 * stride)
    a, b = v.reshape(*v.shape[:-1], blocks, 2, stride).unbind(-2)
    ang = ang.reshape(*ang.shape[:-1], blocks, stride)
    c, s = ang.cos(), ang.sin()
    if transpose:
        s = -s
    return torch.stack((c * a - s * b, s * a + c * b), dim=-2).reshape(v.shape)


def apply_B(v, angles):
    for l in range(angles.shape[-2]):
        v = butterfly_stage(v, angles[..., l, :], 2 ** l)
    return v


def apply_Bt(v, angles):
    for l in reversed(range(angles.shape[-2])):
        v = butterfly_stage(v, angles[..., l, :], 2 ** l, transpose=True)
    return v


def widen(v, n):
    return torch.cat([v, v.new_zeros(*v.shape[:-1], n - v.shape[-1])], dim=-1)


def ternary(w):
    gamma = w.abs().mean()
    q = gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)
    return w + (q - w).detach()


class SpectrumScorer(nn.Module):
    def __init__(self):
        super().__init__()
        p = {}

        def add(name, *shape, scale=None):
            scale = shape[-1] ** -0.5 if scale is None else scale
            p[name] = nn.Parameter(torch.randn(*shape) * scale)

        add("int_w", D, 1, scale=0.7)
        add("int_b", D, scale=0.1)
        add("prec_w", D, 2, scale=0.5)
        add("prec_b", D, scale=0.1)
        for n in range(N_BLOCK):
            for ln in ("ln1", "ln2"):
                p[f"b{n}_{ln}_g"] = nn.Parameter(1 + 0.15 * torch.randn(D))
                add(f"b{n}_{ln}_b", D, scale=0.1)
            add(f"b{n}_qkv", 3 * D, D)
            add(f"b{n}_qkv_b", 3 * D, scale=0.1)
            add(f"b{n}_o", D, D)
            add(f"b{n}_o_b", D, scale=0.1)
            add(f"b{n}_router", E, D, scale=0.35)
            add(f"b{n}_theta", E, L_IN, D2 // 2, scale=0.5)
            add(f"b{n}_phi", E, L_OUT, F2 // 2, scale=0.5)
            add(f"b{n}_W", F_, D)
            add(f"b{n}_Wdown", D, F_)
            add(f"b{n}_bdown", D, scale=0.1)
        p["out_g"] = nn.Parameter(1 + 0.15 * torch.randn(D))
        add("out_b", D, scale=0.1)
        add("head", N_AA, D)
        add("head_b", N_AA, scale=0.1)
        self.p = nn.ParameterDict(p)
        wavelengths = 80.0 * (4000.0 / 80.0) ** (torch.arange(D // 2) / (D // 2 - 1))
        self.register_buffer("freq", 2 * math.pi / wavelengths)

    def encode(self, mz, intensity, precursor):
        ph = mz[..., None] * self.freq
        peaks = torch.cat([ph.sin(), ph.cos()], -1)
        peaks = peaks + intensity.sqrt()[..., None] @ self.p["int_w"].T + self.p["int_b"]
        whole = precursor @ self.p["prec_w"].T + self.p["prec_b"]
        return torch.cat([whole[:, None], peaks], 1)

    def attend(self, x, n, is_peak):
        B, P, _ = x.shape
        qkv = x @ self.p[f"b{n}_qkv"].T + self.p[f"b{n}_qkv_b"]
        q, k, v = qkv.view(B, P, 3, N_HEAD, D // N_HEAD).permute(2, 0, 3, 1, 4)
        a = q @ k.transpose(-1, -2) / math.sqrt(D // N_HEAD)
        a = a.masked_fill(~is_peak[:, None, None, :], float("-inf")).softmax(-1)
        o = (a @ v).transpose(1, 2).reshape(B, P, D)
        return o @ self.p[f"b{n}_o"].T + self.p[f"b{n}_o_b"]

    def moe(self, x, n):
        shape = x.shape
        x = x.reshape(-1, D)
        prob = (x @ self.p[f"b{n}_router"].T).softmax(-1)
        g, idx = prob.topk(K, dim=-1)                        # (T, K)
        g = g / g.sum(-1, keepdim=True)

        theta = self.p[f"b{n}_theta"][idx]                   # (T, K, L_IN, 32)
        phi = self.p[f"b{n}_phi"][idx]                       # (T, K, L_OUT, 64)

        v = x[:, None, :].expand(-1, K, -1)
        v = apply_Bt(widen(v, D2), theta)[..., :D]
        h = v @ ternary(self.p[f"b{n}_W"]).T
        h = apply_B(widen(h, F2), phi)[..., :F_]
        out = gelu(h) @ self.p[f"b{n}_Wdown"].T + self.p[f"b{n}_bdown"]
        return (g[..., None] * out).sum(1).view(shape)

    def forward(self, mz, intensity, precursor):
        x = self.encode(mz, intensity, precursor)
        is_peak = torch.cat([torch.ones_like(mz[:, :1], dtype=torch.bool), intensity > 0], 1)
        for n in range(N_BLOCK):
            x = x + self.attend(layer_norm(x, self.p[f"b{n}_ln1_g"], self.p[f"b{n}_ln1_b"]), n, is_peak)
            x = x + self.moe(layer_norm(x, self.p[f"b{n}_ln2_g"], self.p[f"b{n}_ln2_b"]), n)
        x = layer_norm(x[:, 0], self.p["out_g"], self.p["out_b"])
        return x @ self.p["head"].T + self.p["head_b"]


def make():
    torch.manual_seed(28)
    model = SpectrumScorer()
    mz = torch.rand(2, 27).mul(1700).add(120).sort(-1).values
    intensity = torch.rand(2, 27)
    intensity[1, 22:] = 0.0
    precursor = torch.tensor([[0.84, 2.0], [1.31, 3.0]])
    return model.eval(), (mz, intensity, precursor)
