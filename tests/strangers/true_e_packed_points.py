"""
Point-cloud part segmenter: kernel attention over 3-D distances + fused butterfly MoE, everything of a MoE in one flat buffer.

form       : W_down . (B(phi)^T . GELU(W_hat . B(theta) x + b_up) + b_mid), erf GELU before B(phi); d = 32, F = 96 padded to 128
shuffle    : none, stride-doubling pairs (distance 1, 2, 4, ...)
handedness : plain on the input side, transpose (strides and signs reversed) on the output side
depth      : L = 5 in (full), L = 4 out
router     : independent sigmoids, top-3 of 8, not renormalised
quantiser  : |w| > 0.7 mean|w| -> +-1, times mean|w|, per tensor, via autograd.Function; W_down is ternary the same way
biases     : b_up after W_hat, b_mid after B(phi) (so weighted by the gate); no output bias
dispatch   : all experts on all tokens in one batch, contracted with a dense gate matrix (zero for experts not chosen)
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class TernarySTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        m = w.abs().mean()
        return torch.where(w.abs() > 0.7 * m, w.sign(), 0.0) * m

    @staticmethod
    def backward(ctx, g):
        return g


def stages(cos, sin, x, strides):
    """x: (E, T, D), cos/sin: (S, E, D/2) in the order of strides."""
    E, T, D = x.shape
    for c, s, st in zip(cos.unbind(0), sin.unbind(0), strides):
        a, b = x.view(E, T, D // (2 * st), 2, st).unbind(3)
        c = c.view(E, 1, D // (2 * st), st)
        s = s.view(E, 1, D // (2 * st), st)
        lo = torch.addcmul(a * c, s, b, value=-1)
        hi = torch.addcmul(b * c, s, a)
        x = torch.stack((lo, hi), dim=3).view(E, T, D)
    return x


class PackedButterflyMoE(nn.Module):
    def __init__(self, d, f, n_exp, k, l_in, l_out):
        super().__init__()
        self.d, self.f, self.n_exp, self.k = d, f, n_exp, k
        self.l_in, self.l_out = l_in, l_out
        self.dp = 1 << (d - 1).bit_length()
        self.fp = 1 << (f - 1).bit_length()
        self.strides_in = [1 << i for i in range(l_in)]
        self.strides_out = [1 << i for i in reversed(range(l_out))]
        self.sizes = [
            n_exp * d,                       # router
            n_exp,                           # router bias
            l_in * n_exp * self.dp // 2,     # theta
            l_out * n_exp * self.fp // 2,    # phi
            f * d,                           # W_up
            f,                               # b_up
            f,                               # b_mid
            d * f,                           # W_down
        ]
        std = [0.35, 0.1, 0.5, 0.5, d ** -0.5, 0.2, 0.2, f ** -0.5]
        self.flat = nn.Parameter(torch.cat([torch.randn(n) * s for n, s in zip(self.sizes, std)]))

    def unpack(self):
        d, f, n = self.d, self.f, self.n_exp
        wr, br, theta, phi, wu, bu, bm, wd = torch.split(self.flat, self.sizes)
        return (wr.view(n, d), br, theta.view(self.l_in, n, -1), phi.view(self.l_out, n, -1),
                wu.view(f, d), bu, bm, wd.view(d, f))

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, self.d)
        wr, br, theta, phi, wu, bu, bm, wd = self.unpack()

        score = torch.sigmoid(F.linear(x, wr, br))
        top, idx = torch.topk(score, self.k, dim=-1, sorted=False)
        gate = torch.zeros_like(score).scatter_(1, idx, top)                     # (T, E)

        h = F.pad(x, (0, self.dp - self.d)).unsqueeze(0).expand(self.n_exp, -1, -1)
        h = stages(theta.cos(), theta.sin(), h.contiguous(), self.strides_in)[..., :self.d]

        w_hat = TernarySTE.apply(wu)
        h = torch.baddbmm(bu, h, w_hat.t().expand(self.n_exp, -1, -1))
        h = F.pad(F.gelu(h), (0, self.fp - self.f))

        # transpose of the network: last stride first, opposite sign
        phi = phi.flip(0)
        h = stages(phi.cos(), -phi.sin(), h, self.strides_out)[..., :self.f] + bm

        y = torch.einsum("te,etf->tf", gate, h)
        return F.linear(y, TernarySTE.apply(wd)).view(shape)


class DistanceAttention(nn.Module):
    """softmax over q.k - softplus(rate) * |p_i - p_j|^2, fused qkv."""

    def __init__(self, d, heads):
        super().__init__()
        self.h = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)
        self.rate = nn.Parameter(torch.randn(heads))

    def forward(self, x, dist):
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.h, D // self.h).permute(2, 0, 3, 1, 4).unbind(0)
        bias = -F.softplus(self.rate).view(1, -1, 1, 1) * dist.unsqueeze(1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(y.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    def __init__(self, d, f, heads, n_exp, k, l_in, l_out):
        super().__init__()
        self.n1 = nn.LayerNorm(d)
        self.attn = DistanceAttention(d, heads)
        self.n2 = nn.LayerNorm(d)
        self.moe = PackedButterflyMoE(d, f, n_exp, k, l_in, l_out)

    def forward(self, x, dist):
        x = x + self.attn(self.n1(x), dist)
        return x + self.moe(self.n2(x))


class PointSegmenter(nn.Module):
    def __init__(self, feats=4, d=32, f=96, heads=4, n_exp=8, k=3, l_in=5, l_out=4, depth=2, parts=6):
        super().__init__()
        self.register_buffer("freq", 2.0 ** torch.arange(4))
        self.embed = nn.Linear(feats + 3 * 8, d)
        self.blocks = nn.ModuleList(Block(d, f, heads, n_exp, k, l_in, l_out) for _ in range(depth))
        self.norm = nn.LayerNorm(2 * d)
        self.head = nn.Linear(2 * d, parts)

    def forward(self, xyz, feats):
        B, N, _ = xyz.shape
        sq = xyz.square().sum(-1)
        dist = torch.baddbmm(sq.unsqueeze(2) + sq.unsqueeze(1), xyz, xyz.transpose(1, 2), alpha=-2)
        ang = (xyz.unsqueeze(-1) * self.freq).flatten(2)
        x = self.embed(torch.cat((feats, ang.sin(), ang.cos()), -1))
        for blk in self.blocks:
            x = blk(x, dist)
        pooled = x.amax(1, keepdim=True).expand(-1, N, -1)
        return self.head(self.norm(torch.cat((x, pooled), -1)))


def make():
    torch.manual_seed(83)
    m = PointSegmenter()
    with torch.no_grad():
        for mod in m.modules():
            if isinstance(mod, nn.LayerNorm):
                mod.weight.uniform_(0.6, 1.4)
                mod.bias.normal_(0, 0.1)
            elif isinstance(mod, nn.Linear):
                mod.bias.normal_(0, 0.1)
    return m.eval(), (torch.rand(2, 36, 3) * 2 - 1, torch.randn(2, 36, 4))


if __name__ == "__main__":
    m, inp = make()
    with torch.inference_mode():
        print(m(*inp).shape)
