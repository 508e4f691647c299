"""Four-part chorale continuation: gated causal convolutions with ButterflyMoE feed-forwards, one softmax per voice.

Everything in the expert is an nn.Sequential of little modules, so printing the model shows the pipeline.

  form        B(phi)^T . ( W_hat . B(theta) x + b ), F = d, no W_down and no activation (eq. 3 with the transpose on the far side)
  shuffle     deinterleave ("deal" the cards into two piles) AFTER each rotation (Algorithm 1); undealt on the transposed side
  handedness  [c -s; s c] on the near side, its transpose on the far side
  L           5 near, 3 far; d = 24 zero-padded to 32 around each whole butterfly
  router      no bias, top-2 of 4, softmax over the two
  quantiser   nn.utils.parametrize: |w| > 0.7 mean|w| keeps the sign; scale mean|w| per output row; straight-through
  biases      b of the shared ternary nn.Linear (inside the expert, before B(phi)^T)
  dispatch    nn.ModuleList of deep copies with the ternary layer tied; nonzero + index_add_
"""
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import parametrize


class Ternary(nn.Module):
    """Parametrization: latent weight in, {-s, 0, s} out."""

    def forward(self, w):
        mag = w.abs()
        keep = (mag > 0.7 * mag.mean()).to(w.dtype)
        hard = torch.sign(w) * keep * mag.mean(dim=1, keepdim=True)
        return hard.detach() + (w - w.detach())


class TernaryLinear(nn.Linear):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        parametrize.register_parametrization(self, "weight", Ternary())


class Twist(nn.Module):
    def __init__(self, width, back=False):
        super().__init__()
        self.angle = nn.Parameter(torch.zeros(width // 2))
        self.back = back

    def forward(self, x):
        a = self.angle.repeat_interleave(2)
        if self.back:
            a = -a
        partner = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return x * a.cos() + partner * a.sin()

    def extra_repr(self):
        return f"{2 * self.angle.numel()}, back={self.back}"


class Deal(nn.Module):
    def forward(self, x):
        return torch.cat([x[..., ::2], x[..., 1::2]], dim=-1)


class Undeal(nn.Module):
    def forward(self, x):
        return torch.stack(x.tensor_split(2, dim=-1), dim=-1).flatten(-2)


class Keep(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        return x.narrow(-1, 0, self.n)


class Butterfly(nn.Sequential):
    def __init__(self, dim, depth, transpose=False):
        width = 1 << (dim - 1).bit_length()
        layers = []
        for _ in range(depth):
            layers += [Undeal(), Twist(width, back=True)] if transpose else [Twist(width), Deal()]
        super().__init__(nn.ConstantPad1d((0, width - dim), 0.0), *layers, Keep(dim))


class Expert(nn.Sequential):
    def __init__(self, dim, depth_near, depth_far):
        super().__init__(
            Butterfly(dim, depth_near),
            TernaryLinear(dim, dim),
            Butterfly(dim, depth_far, transpose=True),
        )

    def sibling(self):
        other = copy.deepcopy(self)
        other[1] = self[1]
        return other


class Choir(nn.Module):
    def __init__(self, dim, n_experts=4, top_k=2):
        super().__init__()
        self.top_k = top_k
        self.conductor = nn.Linear(dim, n_experts, bias=False)
        first = Expert(dim, 5, 3)
        self.singers = nn.ModuleList([first] + [first.sibling() for _ in range(n_experts - 1)])

    def forward(self, x):
        flat = x.reshape(-1, x.size(-1))
        logits = self.conductor(flat)
        best, who = logits.topk(self.top_k, dim=-1)
        weight = best.softmax(dim=-1)
        y = torch.zeros_like(flat)
        for n, singer in enumerate(self.singers):
            tok, slot = (who == n).nonzero(as_tuple=True)
            if tok.numel():
                y.index_add_(0, tok, singer(flat[tok]) * weight[tok, slot, None])
        load = F.one_hot(who, logits.size(-1)).to(x.dtype).sum(1).mean(0)
        balance = (load * logits.softmax(-1).mean(0)).sum()
        return y.reshape(x.shape), balance


class CausalGatedConv(nn.Module):
    def __init__(self, dim, kernel, dilation):
        super().__init__()
        self.left = (kernel - 1) * dilation
        self.conv = nn.Conv1d(dim, 2 * dim, kernel, dilation=dilation)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        h = self.conv(F.pad(x.transpose(1, 2), (self.left, 0)))
        return self.out(F.glu(h, dim=1).transpose(1, 2))


class Measure(nn.Module):
    def __init__(self, dim, dilation):
        super().__init__()
        self.ln_a, self.ln_b = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.conv = CausalGatedConv(dim, 3, dilation)
        self.choir = Choir(dim)

    def forward(self, x):
        x = x + self.conv(self.ln_a(x))
        y, balance = self.choir(self.ln_b(x))
        return x + y, balance


class ChoraleNet(nn.Module):
    def __init__(self, n_pitch=30, dim=24, dilations=(1, 2, 4)):
        super().__init__()
        self.voice = nn.ModuleList(nn.Embedding(n_pitch, dim) for _ in range(4))
        self.beat = nn.Embedding(4, dim)
        self.measures = nn.ModuleList(Measure(dim, d) for d in dilations)
        self.ln = nn.LayerNorm(dim)
        self.heads = nn.ModuleList(nn.Linear(dim, n_pitch) for _ in range(4))

    def forward(self, satb):                                   # (batch, beats, 4)
        x = sum(emb(satb[..., v]) for v, emb in enumerate(self.voice))
        x = x + self.beat(torch.arange(satb.size(1), device=satb.device) % 4)
        total = 0.0
        for m in self.measures:
            x, balance = m(x)
            total = total + balance
        x = self.ln(x)
        return torch.stack([head(x) for head in self.heads], dim=2), total


@torch.no_grad()
def make():
    torch.manual_seed(371)
    net = ChoraleNet()
    for m in net.modules():
        if isinstance(m, Twist):
            m.angle.normal_(0, 0.5)
        elif isinstance(m, nn.LayerNorm):
            m.weight.add_(0.2 * torch.randn_like(m.weight))
            m.bias.normal_(0, 0.1)
        elif isinstance(m, Choir):
            m.conductor.weight.normal_(0, 0.5)
        elif isinstance(m, TernaryLinear):
            m.parametrizations.weight.original.normal_(0, 24 ** -0.5)
            m.bias.normal_(0, 0.2)
    return net.eval(), (torch.randint(0, 30, (3, 16, 4)),)
