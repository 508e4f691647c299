"""
Anomaly detector for a press line: windows of 9 sensor channels -> reconstruction and anomaly score per time step.
Gated temporal convolutions for mixing over time, mixture of rotated experts for mixing over channels.

Expert: W_down . B(phi) . GELU_tanh(W_hat . B(theta) x), 3 layers in, 4 layers out, d = 32, F = 64
  shuffle: interleave the halves after the rotation; B forward on both sides
  router: sigmoid, top-3 of 7, renormalised over the chosen
  quantiser: round/clip, one gamma per output row; W_down float, bias after W_hat only
  dispatch: torch.vmap over the experts' angle tables, dense evaluation, weights scattered into (N, E)
NOT a Butterfly layer: sine and cosine are the controller's short polynomials, cos ~ 1 - a^2/2 and sin ~ a - a^3/6,
so a pair's 2x2 map is a rotation only to a few parts in a thousand or worse (c^2 + s^2 != 1): not orthogonal.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

CHANNELS = ("force", "stroke", "oil_t", "oil_p", "acc_x", "acc_y", "acc_z", "current", "mic")


def fast_cos(a):
    return 1.0 - 0.5 * a * a


def fast_sin(a):
    return a * (1.0 - a * a / 6.0)


def turn(x, table):
    """x: (N, d), table: (L, d/2)"""
    n, d = x.shape
    for row in torch.unbind(table):
        c, s = fast_cos(row), fast_sin(row)
        p = x.reshape(n, d // 2, 2)
        lo = p[:, :, 0] * c - p[:, :, 1] * s
        hi = p[:, :, 0] * s + p[:, :, 1] * c
        x = torch.stack((lo, hi), dim=2).reshape(n, d)
        x = x.reshape(n, 2, d // 2).transpose(1, 2).reshape(n, d)
    return x


def ternarise(w):
    scale = w.abs().mean(dim=1, keepdim=True)
    q = torch.clamp(torch.round(w / (scale + 1e-8)), -1.0, 1.0) * scale
    return (q - w).detach() + w


class RegimeRouter(nn.Module):
    """Picks the operating regimes (idle, stroke, dwell, ...) that explain a time step."""

    def __init__(self, width, regimes, keep):
        super().__init__()
        self.keep = keep
        self.proj = nn.Linear(width, regimes)

    def forward(self, x):
        score = torch.sigmoid(self.proj(x))
        top, which = torch.topk(score, self.keep, dim=-1)
        top = top / top.sum(dim=-1, keepdim=True)
        return torch.zeros_like(score).scatter(-1, which, top)


class RegimeExperts(nn.Module):
    def __init__(self, width=32, hidden=64, regimes=7, keep=3, layers_in=3, layers_out=4):
        super().__init__()
        self.router = RegimeRouter(width, regimes, keep)
        self.table_in = nn.Parameter(torch.randn(regimes, layers_in, width // 2) * 0.5)
        self.table_out = nn.Parameter(torch.randn(regimes, layers_out, hidden // 2) * 0.5)
        self.w_up = nn.Parameter(torch.randn(hidden, width) / width ** 0.5)
        self.b_up = nn.Parameter(torch.randn(hidden) * 0.15)
        self.w_down = nn.Parameter(torch.randn(width, hidden) / hidden ** 0.5)

    def forward(self, x):
        shape = x.shape
        flat = x.reshape(-1, shape[-1])
        weights = self.router(flat)
        up = ternarise(self.w_up)

        def one_regime(table_in, table_out):
            h = turn(flat, table_in)
            h = F.gelu(h @ up.t() + self.b_up, approximate="tanh")
            return turn(h, table_out) @ self.w_down.t()

        every = torch.vmap(one_regime)(self.table_in, self.table_out)      # (E, N, width)
        return torch.einsum("ne,enw->nw", weights, every).reshape(shape)


class TemporalGate(nn.Module):
    def __init__(self, width, kernel, dilation):
        super().__init__()
        pad = dilation * (kernel - 1) // 2
        self.depthwise = nn.Conv1d(width, width, kernel, padding=pad, dilation=dilation, groups=width)
        self.pointwise = nn.Conv1d(width, 2 * width, 1)

    def forward(self, x):
        y = self.pointwise(self.depthwise(x.transpose(1, 2)))
        return F.glu(y, dim=1).transpose(1, 2)


class Stage(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        self.norm_t = nn.LayerNorm(width)
        self.temporal = TemporalGate(width, 5, dilation)
        self.norm_c = nn.LayerNorm(width)
        self.experts = RegimeExperts(width)

    def forward(self, x):
        x = x + self.temporal(self.norm_t(x))
        return x + self.experts(self.norm_c(x))


class PressMonitor(nn.Module):
    def __init__(self, sensors=len(CHANNELS), width=32, stages=3, bottleneck=5):
        super().__init__()
        self.register_buffer("mean", torch.zeros(sensors))
        self.register_buffer("std", torch.ones(sensors))
        self.encode = nn.Linear(sensors, bottleneck)
        self.expand = nn.Linear(bottleneck, width)
        self.stages = nn.ModuleList([Stage(width, 2 ** i) for i in range(stages)])
        self.norm = nn.LayerNorm(width)
        self.decode = nn.Linear(width, sensors)
        self.log_var = nn.Parameter(torch.zeros(sensors))

    def forward(self, window):
        z = (window - self.mean) / self.std
        x = self.expand(torch.tanh(self.encode(z)))
        for stage in self.stages:
            x = stage(x)
        rec = self.decode(self.norm(x))
        score = ((z - rec) ** 2 * torch.exp(-self.log_var)).mean(dim=-1)
        return rec * self.std + self.mean, score


def make():
    torch.manual_seed(12)
    net = PressMonitor()
    with torch.no_grad():
        net.mean.normal_(0.0, 2.0)
        net.std.uniform_(0.5, 2.0)
        net.log_var.normal_(0.0, 0.3)
        net.expand.weight.normal_(0.0, 0.7)
        for m in net.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.uniform_(0.7, 1.3)
                m.bias.normal_(0.0, 0.15)
            elif isinstance(m, (nn.Linear, nn.Conv1d)):
                m.bias.normal_(0.0, 0.1)
            if isinstance(m, RegimeRouter):
                m.proj.weight.normal_(0.0, 0.25)
    window = torch.randn(2, 32, len(CHANNELS)) * net.std + net.mean
    return net.eval(), (window,)
