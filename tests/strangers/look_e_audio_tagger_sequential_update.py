"""Audio tagger with butterfly experts (thesis chapter 4 code).

log-mel like frames -> conv stem -> depthwise conv mixing + ButterflyMoE blocks -> attention pooling -> tag logits.
  shuffle: even/odd deinterleave by strided slices, BEFORE the rotation (eq. 4).  L_in = 4, L_out = 3
  handedness: plain B(theta) and plain B(phi).  d = 40 padded to 64 once, F = 64
  router: affine, top-2 of E = 5, softmax over the two.  quantiser: round-clip absmean per output row, both matrices
  form: W_down_hat . B(phi) . GELU_tanh( W_hat . B(theta) x ), no bias in W_hat, one shared output bias added once
  dispatch: python loop over experts, boolean token mask, gate read from a dense (T, E) gate matrix

NOT a Butterfly layer of the papers: the second half of a pair is computed from the already updated first half
(a = c a - s b; b = s a_new + c b), so the 2x2 map is [[c, -s], [s c, c - s^2]] with determinant c^2. It is close to a
Givens rotation for small angles but not orthogonal.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class Args:
    n_mels = 24
    dim = 40
    ff = 64
    experts = 5
    topk = 2
    n_in = 4
    n_out = 3
    blocks = 3
    kernel = 5
    tags = 7


class STE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        g = w.abs().mean(dim=1, keepdim=True)
        return g * (w / (g + 1e-8)).round().clamp(-1, 1)

    @staticmethod
    def backward(ctx, grad):
        return grad


def next_pow2(n):
    p = 1
    while p < n:
        p *= 2
    return p


class Butterfly(nn.Module):
    """L layers of (perfect shuffle, pairwise Givens rotation)."""

    def __init__(self, dim, layers):
        super().__init__()
        self.dim = dim
        self.pad = next_pow2(dim)
        self.layers = layers
        self.angle = nn.Parameter(0.5 * torch.randn(layers, self.pad // 2))

    def forward(self, x):
        # x: (n, dim)
        if self.pad != self.dim:
            x = torch.cat([x, x.new_zeros(x.size(0), self.pad - self.dim)], dim=1)
        for l in range(self.layers):
            c = torch.cos(self.angle[l])
            s = torch.sin(self.angle[l])
            # shuffle
            x = torch.cat([x[:, 0::2], x[:, 1::2]], dim=1)
            # rotate the pairs
            a = x[:, 0::2]
            b = x[:, 1::2]
            a = c * a - s * b
            b = s * a + c * b
            x = torch.stack([a, b], dim=2).reshape(x.size(0), self.pad)
        return x[:, :self.dim]


class ButterflyMoE(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.topk = args.topk
        self.E = args.experts
        self.gate = nn.Linear(args.dim, args.experts)
        self.W_up = nn.Parameter(torch.randn(args.ff, args.dim) / args.dim ** 0.5)
        self.W_down = nn.Parameter(torch.randn(args.dim, args.ff) / args.ff ** 0.5)
        self.bias = nn.Parameter(0.1 * torch.randn(args.dim))
        self.B_in = nn.ModuleList([Butterfly(args.dim, args.n_in) for _ in range(args.experts)])
        self.B_out = nn.ModuleList([Butterfly(args.ff, args.n_out) for _ in range(args.experts)])

    def gates(self, x):
        logits = self.gate(x)
        v, i = torch.topk(logits, self.topk, dim=1)
        v = torch.softmax(v, dim=1)
        return torch.zeros_like(logits).scatter(1, i, v)

    def forward(self, x):
        # x: (T, dim)
        w_up = STE.apply(self.W_up)
        w_down = STE.apply(self.W_down)
        g = self.gates(x)
        y = torch.zeros_like(x)
        for e in range(self.E):
            mask = g[:, e] > 0
            if not mask.any():
                continue
            h = self.B_in[e](x[mask])
            h = F.gelu(h @ w_up.t(), approximate='tanh')
            h = self.B_out[e](h)
            y[mask] = y[mask] + g[mask, e].unsqueeze(1) * (h @ w_down.t())
        return y + self.bias


class ConvMixer(nn.Module):
    """Depthwise conv over time, then pointwise, with a GLU."""

    def __init__(self, args):
        super().__init__()
        self.dw = nn.Conv1d(args.dim, args.dim, args.kernel, padding=args.kernel // 2, groups=args.dim)
        self.pw = nn.Conv1d(args.dim, 2 * args.dim, 1)

    def forward(self, x):
        x = self.dw(x.transpose(1, 2))
        x = F.glu(self.pw(x), dim=1)
        return x.transpose(1, 2)


class TaggerBlock(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.ln1 = nn.LayerNorm(args.dim)
        self.mix = ConvMixer(args)
        self.ln2 = nn.LayerNorm(args.dim)
        self.moe = ButterflyMoE(args)

    def forward(self, x):
        x = x + self.mix(self.ln1(x))
        n, t, d = x.shape
        x = x + self.moe(self.ln2(x).reshape(n * t, d)).reshape(n, t, d)
        return x


class AttentivePool(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x):
        w = torch.softmax(self.score(x), dim=1)
        mu = (w * x).sum(1)
        sd = ((w * x * x).sum(1) - mu * mu).clamp(min=1e-4).sqrt()
        return torch.cat([mu, sd], dim=1)


class AudioTagger(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(args.n_mels, args.dim, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv1d(args.dim, args.dim, 3, padding=1),
        )
        self.blocks = nn.ModuleList([TaggerBlock(args) for _ in range(args.blocks)])
        self.pool = AttentivePool(args.dim)
        self.norm = nn.LayerNorm(2 * args.dim)
        self.head = nn.Linear(2 * args.dim, args.tags)

    def forward(self, mel):
        # mel: (N, n_mels, frames)
        x = self.stem(mel).transpose(1, 2)
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.norm(self.pool(x)))


def make():
    torch.manual_seed(21)
    model = AudioTagger(Args())
    for m in model.modules():
        if isinstance(m, nn.LayerNorm):
            m.weight.data = 1 + 0.2 * torch.randn_like(m.weight)
            m.bias.data = 0.2 * torch.randn_like(m.bias)
        if isinstance(m, ButterflyMoE):
            m.gate.weight.data = 0.3 * torch.randn_like(m.gate.weight)
    mel = torch.randn(2, Args.n_mels, 60)
    mel = mel + torch.sin(torch.arange(60.0) / 4)
    return model.eval(), (mel,)
