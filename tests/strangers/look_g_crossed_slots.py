"""Multivariate forecaster (TSMixer-like) whose channel mixer is a mixture of experts with complex-valued Givens butterflies.

Shuffle:     deinterleave after each rotation; undone here, since both sides use the transpose.  L_in = 4, L_out = 3.
Handedness:  B(theta)^T in, B(phi)^T out.  d = 40 and F = 80, zero-padded to 64 / 128 around each stack.
Router:      linear with bias, softmax over all seven, top-2, renormalised to sum to one.
Quantiser:   absmean per output row, straight-through, W_hat only.
Biases:      none on W_hat; W_down's is added once, after the sum.  erf GELU after B(phi)^T.
Dispatch:    angles[idx] gathered for both slots at once, weighted sum over the slot axis.
Not a Butterfly layer: with chosen experts (i, j) the sum is g_i W_down GELU(B(phi_j)^T W_hat B(theta_i)^T x) + the same with i and
j exchanged.  Each slot leaves through the output rotation of the *other* chosen expert, so what a slot computes is no function
of its expert alone.
"""
import torch
from torch import Tensor, nn
import torch.nn.functional as F


def next_pow2(n: int) -> int:
    return 2 ** (n - 1).bit_length()


def phasors(angle: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angle), angle)


def adjoint_butterfly(x: Tensor, w: Tensor) -> Tensor:
    """x [..., n], w complex [..., L, n/2].  Undoes L layers of (multiply by w, real parts first then imaginary parts)."""
    half = w.shape[-1]
    for layer in reversed(range(w.shape[-2])):
        z = torch.complex(x[..., :half], x[..., half:])
        z = z * w[..., layer, :].conj()
        x = torch.view_as_real(z).flatten(-2)
    return x


def padded(op, x: Tensor, w: Tensor) -> Tensor:
    n, full = x.shape[-1], 2 * w.shape[-1]
    return op(F.pad(x, (0, full - n)), w)[..., :n]


class RowTernary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        gamma = weight.abs().mean(dim=1, keepdim=True)
        return gamma * torch.clamp(torch.round(weight / (gamma + 1e-8)), -1.0, 1.0)

    @staticmethod
    def backward(ctx, grad):
        return grad


class PhasorExperts(nn.Module):
    def __init__(self, d: int, d_ff: int, n_experts: int = 7, l_in: int = 4, l_out: int = 3):
        super().__init__()
        self.router = nn.Linear(d, n_experts)
        self.theta = nn.Parameter(torch.empty(n_experts, l_in, next_pow2(d) // 2))
        self.phi = nn.Parameter(torch.empty(n_experts, l_out, next_pow2(d_ff) // 2))
        self.w_up = nn.Parameter(torch.empty(d_ff, d))
        self.w_down = nn.Linear(d_ff, d)

    def route(self, x: Tensor):
        prob, idx = self.router(x).softmax(dim=-1).topk(2, dim=-1)
        return prob / prob.sum(dim=-1, keepdim=True), idx

    def forward(self, x: Tensor) -> Tensor:
        gate, idx = self.route(x)  # [B, T, 2] each
        analysis = phasors(self.theta)[idx]  # [B, T, 2, L, n/2]
        synthesis = phasors(self.phi)[idx.flip(-1)]

        u = x.unsqueeze(-2).expand(*idx.shape, x.shape[-1])
        u = padded(adjoint_butterfly, u, analysis)
        u = F.linear(u, RowTernary.apply(self.w_up))
        u = F.gelu(padded(adjoint_butterfly, u, synthesis))
        return self.w_down((gate.unsqueeze(-1) * u).sum(dim=-2))


class TimeMix(nn.Module):
    def __init__(self, steps: int, hidden: int = 24):
        super().__init__()
        self.a = nn.Linear(steps, hidden)
        self.b = nn.Linear(hidden, steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x.transpose(1, 2)))).transpose(1, 2)


class MixerBlock(nn.Module):
    def __init__(self, steps: int, d: int, d_ff: int):
        super().__init__()
        self.time_norm, self.time_mix = nn.LayerNorm(d), TimeMix(steps)
        self.feat_norm, self.feat_mix = nn.LayerNorm(d), PhasorExperts(d, d_ff)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.time_mix(self.time_norm(x))
        x = x + self.feat_mix(self.feat_norm(x))
        return x


class Forecaster(nn.Module):
    def __init__(self, series: int = 9, steps: int = 26, horizon: int = 8, d: int = 40, d_ff: int = 80, depth: int = 2):
        super().__init__()
        self.lift = nn.Linear(series, d)
        self.blocks = nn.ModuleList(MixerBlock(steps, d, d_ff) for _ in range(depth))
        self.norm = nn.LayerNorm(d)
        self.to_series = nn.Linear(d, series)
        self.to_horizon = nn.Linear(steps, horizon)

    def forward(self, past: Tensor) -> Tensor:
        centre = past.mean(dim=1, keepdim=True)
        spread = past.std(dim=1, keepdim=True, correction=0) + 1e-3
        x = self.lift((past - centre) / spread)
        for block in self.blocks:
            x = block(x)
        x = self.to_series(self.norm(x))
        x = self.to_horizon(x.transpose(1, 2)).transpose(1, 2)
        return x * spread + centre


def make():
    torch.manual_seed(577)
    model = Forecaster()
    with torch.no_grad():
        for name, p in model.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if leaf in ("theta", "phi"):
                p.normal_(0.0, 0.5)
            elif "norm" in name:
                p.normal_(1.0 if leaf == "weight" else 0.0, 0.15)
            elif leaf == "bias":
                p.normal_(0.0, 0.2)
            elif leaf == "w_up":
                p.normal_(0.0, p.shape[1] ** -0.5)
            elif "router" in name:
                p.normal_(0.0, 0.3)
    t = torch.arange(26.0)[None, :, None]
    freq = 0.1 + 0.9 * torch.rand(3, 1, 9)
    past = torch.sin(freq * t + 6.0 * torch.rand(3, 1, 9)) + 0.4 * torch.randn(3, 26, 9) + 0.02 * t
    return model.eval(), (past,)
