"""Patch forecaster for multivariate series with a Butterfly MoE feed-forward; everything is an einsum.

shuffle     interleave of the two halves BEFORE each rotation (eq. 4 order): channels (j, j + n/2) become pair j
handedness  input side R = [[c, s], [-s, c]], output side R = [[c, -s], [s, c]]; neither side transposed as a whole
L           4 in (d = 32), 2 out (F = 64)
router      softmax over all 8, top-3, not renormalised
quantiser   per output row, gamma = mean|w| of the row, zero where |w| <= 0.7 gamma, else sign(w) gamma; W_up and W_down both
biases      shared b_up in front of the tanh-GELU, shared b_down weighted by the gate
form        Algorithm 2
dispatch    dense matrices of all experts materialised from the angles, picked by expert id and contracted per token
"""
import torch
from torch import nn, einsum, Tensor
from torch.nn import functional as F


def rotations(a: Tensor, sgn: float) -> Tensor:
    """[e l j] -> [e l j 2 2]"""
    basis = torch.tensor([[[1., 0.], [0., 1.]], [[0., -sgn], [sgn, 0.]]], dtype=a.dtype, device=a.device)
    return einsum("pelj,pab->eljab", torch.stack([a.cos(), a.sin()]), basis)


def butterfly_matrices(a: Tensor, sgn: float) -> Tensor:
    """[e l j] -> [e n n], the operator as it acts on column vectors"""
    e, depth, j = a.shape
    r = rotations(a, sgn)
    m = torch.eye(2 * j, dtype=a.dtype, device=a.device).expand(e, -1, -1)
    for l in range(depth):
        m = einsum("ejab,ebjc->ejac", r[:, l], m.reshape(e, 2, j, 2 * j)).reshape(e, 2 * j, 2 * j)
    return m


def ternary(w: Tensor) -> Tensor:
    gamma = w.abs().mean(dim=1)
    t = torch.where(w.abs() > 0.7 * gamma[:, None], w.sign(), torch.zeros_like(w))
    return w + (einsum("o,oi->oi", gamma, t) - w).detach()


class EinMoE(nn.Module):
    def __init__(self, d: int, f: int, e: int, k: int, l_in: int, l_out: int):
        super().__init__()
        self.k = k
        self.router = nn.Parameter(torch.randn(e, d) * 0.5)
        self.up = nn.Parameter(torch.randn(f, d) * d ** -0.5)
        self.down = nn.Parameter(torch.randn(d, f) * f ** -0.5)
        self.b_up = nn.Parameter(torch.randn(f) * 0.2)
        self.b_down = nn.Parameter(torch.randn(d) * 0.2)
        self.theta = nn.Parameter(torch.randn(e, l_in, d // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(e, l_out, f // 2) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        p = einsum("bsd,ed->bse", x, self.router).softmax(-1)
        g, idx = p.topk(self.k, dim=-1)
        first = einsum("fd,edc->efc", ternary(self.up), butterfly_matrices(self.theta, -1.))
        second = einsum("df,efg->edg", ternary(self.down), butterfly_matrices(self.phi, 1.))
        h = einsum("bskfd,bsd->bskf", first[idx], x) + self.b_up
        h = F.gelu(h, approximate="tanh")
        y = einsum("bskdf,bskf->bskd", second[idx], h) + self.b_down
        return einsum("bsk,bskd->bsd", g, y)


class EinAttention(nn.Module):
    def __init__(self, d: int, h: int):
        super().__init__()
        self.wqkv = nn.Parameter(torch.randn(3, h, d // h, d) * d ** -0.5)
        self.bqkv = nn.Parameter(torch.randn(3, 1, h, 1, d // h) * 0.1)
        self.wo = nn.Parameter(torch.randn(d, h, d // h) * d ** -0.5)
        self.scale = (d // h) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = einsum("bsd,phcd->pbhsc", x, self.wqkv) + self.bqkv
        w = (einsum("bhsc,bhtc->bhst", q, k) * self.scale).softmax(-1)
        return einsum("bhst,bhtc,dhc->bsd", w, v, self.wo)


class Layer(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = EinAttention(d, 4)
        self.moe = EinMoE(d, 2 * d, e=8, k=3, l_in=4, l_out=2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.n1(x))
        return x + self.moe(self.n2(x))


class PatchForecaster(nn.Module):
    """[b t v] -> [b horizon v]; channel-independent patches, series normalised per window"""

    def __init__(self, context: int = 64, patch: int = 8, stride: int = 8, horizon: int = 12, d: int = 32, depth: int = 2):
        super().__init__()
        self.patch, self.stride = patch, stride
        n = (context - patch) // stride + 1
        self.embed = nn.Parameter(torch.randn(d, patch) * patch ** -0.5)
        self.pos = nn.Parameter(torch.randn(n, d) * 0.3)
        self.layers = nn.ModuleList(Layer(d) for _ in range(depth))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Parameter(torch.randn(horizon, n, d) * (n * d) ** -0.5)
        self.head_bias = nn.Parameter(torch.randn(horizon) * 0.1)

    def forward(self, series: Tensor) -> Tensor:
        b, t, v = series.shape
        mu = series.mean(1, keepdim=True)
        sd = series.std(1, keepdim=True) + 1e-4
        z = ((series - mu) / sd).transpose(1, 2).reshape(b * v, t)
        x = einsum("bnp,dp->bnd", z.unfold(-1, self.patch, self.stride), self.embed) + self.pos
        for layer in self.layers:
            x = layer(x)
        out = einsum("bnd,hnd->bh", self.norm(x), self.head) + self.head_bias
        return out.reshape(b, v, -1).transpose(1, 2) * sd + mu


def make():
    torch.manual_seed(22)
    net = PatchForecaster()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.uniform_(0.7, 1.3)
                m.bias.normal_(0, 0.2)
    t = torch.linspace(0, 6, 64)
    series = torch.stack([torch.sin(t * w) + 0.3 * torch.randn(64) for w in (1., 2.3, 4.1)], -1)[None]
    return net.eval(), (series.repeat(2, 1, 1) + 0.2 * torch.randn(2, 64, 3),)
