"""
ECG rhythm tagger by a DSP engineer: signals stay channel-first, rotations are factored into three lifting steps.

shuffle    : deinterleave (polyphase split), after the rotation, folded into the row order of the state
handedness : B(theta) forward on the input, B(phi) transposed (inverse lifting) on the output
L          : 4 on the input side, 7 = log2(128) on the output side; 40 -> 64 and 80 -> 128 zero rows
router     : 1x1 conv with bias, top-2, gate = sigmoid of each chosen logit (not renormalised)
quantiser  : both W_hat and W_down are stored as float buffers that hold {-1,0,+1}, with one scalar scale each
biases     : down bias shared, added once per sample; none inside
form       : W_down . B(phi)^T . GELU_tanh( W_hat B(theta) x )
dispatch   : columns [C, N]; loop over experts, nonzero columns of either slot, index_add_ on the column axis
A plane rotation is exactly shear(-tan a/2) shear(sin a) shear(-tan a/2), as in lossless audio transforms.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def lift(even, odd, p, u):
    """Rotation by a, with p = tan(a/2) and u = sin(a), on two [P/2, N] polyphase halves."""
    even = even - p * odd
    odd = odd + u * even
    even = even - p * odd
    return even, odd


def unlift(even, odd, p, u):
    even = even + p * odd
    odd = odd - u * even
    even = even + p * odd
    return even, odd


def zero_rows(s, rows):
    return torch.cat([s, s.new_zeros(rows - s.shape[0], s.shape[1])], dim=0) if rows > s.shape[0] else s


def analysis(s, angles):
    # polyphase split: evens on top, odds below -> the next stage sees them as its rows
    for a in angles:
        e, o = lift(s[0::2], s[1::2], torch.tan(0.5 * a)[:, None], torch.sin(a)[:, None])
        s = torch.cat([e, o], dim=0)
    return s


def synthesis(s, angles):
    half = s.shape[0] // 2
    for a in angles.flip(0):
        e, o = unlift(s[:half], s[half:], torch.tan(0.5 * a)[:, None], torch.sin(a)[:, None])
        merged = torch.empty_like(s)
        merged[0::2] = e
        merged[1::2] = o
        s = merged
    return s


class LiftedExperts(nn.Module):
    def __init__(self, channels, width, n_experts, stages_in, stages_out, k=2):
        super().__init__()
        self.channels, self.width, self.n_experts, self.k = channels, width, n_experts, k
        self.rows_in = 1 << (channels - 1).bit_length()
        self.rows_out = 1 << (width - 1).bit_length()
        self.selector = nn.Conv1d(channels, n_experts, 1)
        self.register_buffer("up_t", torch.zeros(width, channels))
        self.register_buffer("up_scale", torch.tensor(1.0))
        self.register_buffer("down_t", torch.zeros(channels, width))
        self.register_buffer("down_scale", torch.tensor(1.0))
        self.down_bias = nn.Parameter(torch.zeros(channels))
        self.angles_in = nn.Parameter(torch.zeros(n_experts, stages_in, self.rows_in // 2))
        self.angles_out = nn.Parameter(torch.zeros(n_experts, stages_out, self.rows_out // 2))

    def forward(self, sig):                                         # [B, C, T]
        B, C, T = sig.shape
        level, which = self.selector(sig).topk(self.k, dim=1)       # [B, k, T]
        cols = sig.transpose(0, 1).reshape(C, B * T)
        which = which.transpose(0, 1).reshape(self.k, B * T)
        level = torch.sigmoid(level).transpose(0, 1).reshape(self.k, B * T)

        acc = torch.zeros_like(cols)
        for n in range(self.n_experts):
            slot, col = torch.nonzero(which == n, as_tuple=True)
            s = zero_rows(cols.index_select(1, col), self.rows_in)
            s = analysis(s, self.angles_in[n])[: self.channels]
            s = F.gelu(self.up_scale * (self.up_t @ s), approximate="tanh")
            s = synthesis(zero_rows(s, self.rows_out), self.angles_out[n])[: self.width]
            s = self.down_scale * (self.down_t @ s)
            acc.index_add_(1, col, s * level[slot, col])
        acc = acc + self.down_bias[:, None]
        return acc.view(C, B, T).transpose(0, 1)


class ChannelNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1))
        self.offset = nn.Parameter(torch.zeros(channels, 1))

    def forward(self, s):
        s = s - s.mean(1, keepdim=True)
        return s * torch.rsqrt(s.square().mean(1, keepdim=True) + 1e-5) * self.gain + self.offset


class Stage(nn.Module):
    def __init__(self, channels, width, n_experts, dilation, stages_in, stages_out):
        super().__init__()
        self.n1, self.n2 = ChannelNorm(channels), ChannelNorm(channels)
        self.fir = nn.Conv1d(channels, channels, 5, padding=2 * dilation, dilation=dilation, groups=channels)
        self.mix = nn.Conv1d(channels, channels, 1)
        self.moe = LiftedExperts(channels, width, n_experts, stages_in, stages_out)

    def forward(self, s):
        s = s + self.mix(F.softplus(self.fir(self.n1(s))))
        return s + self.moe(self.n2(s))


class RhythmTagger(nn.Module):
    def __init__(self, leads=2, channels=40, width=80, n_experts=4, n_tags=5):
        super().__init__()
        self.front = nn.Conv1d(leads, channels, 16, stride=8, padding=4)
        self.stages = nn.ModuleList([Stage(channels, width, n_experts, d, 4, 7) for d in (1, 2, 4)])
        self.norm = ChannelNorm(channels)
        self.tags = nn.Conv1d(channels, n_tags, 1)

    def forward(self, ecg):
        s = self.front(ecg)
        for st in self.stages:
            s = st(s)
        return self.tags(self.norm(s))


def _ternarise(w):
    g = w.abs().mean()
    return (w / (g + 1e-8)).round().clamp(-1, 1), g


def make():
    torch.manual_seed(606)
    net = RhythmTagger()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, LiftedExperts):
                t, g = _ternarise(torch.randn(m.width, m.channels) * m.channels ** -0.5)
                m.up_t.copy_(t)
                m.up_scale.copy_(g)
                t, g = _ternarise(torch.randn(m.channels, m.width) * m.width ** -0.5)
                m.down_t.copy_(t)
                m.down_scale.copy_(g)
                m.angles_in.normal_(0, 0.5)
                m.angles_out.normal_(0, 0.5)
                m.down_bias.normal_(0, 0.1)
                m.selector.weight.normal_(0, 0.3)
            elif isinstance(m, ChannelNorm):
                m.gain.uniform_(0.7, 1.3)
                m.offset.normal_(0, 0.1)
        for m in net.modules():
            if isinstance(m, nn.Conv1d):
                m.bias.normal_(0, 0.1)
    return net.eval(), (torch.randn(2, 2, 256),)
