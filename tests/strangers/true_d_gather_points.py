"""
Point-cloud segmentation net whose channel MLPs are butterfly MoEs, tuned for few kernel launches.

shuffle    : none; FFT-style stride doubling, layer l pairs channels at distance 2**l
handedness : forward rotations on the input; transposed (layers reversed, angle negated) on the hidden side
L          : full depth on the input (log2 64 = 6), 4 on the hidden side; 48 -> 64 and 96 -> 128 zero padded once, stripped after
router     : linear with bias, top-2, softmax over the chosen two
quantiser  : gamma per output row, round and clip, straight-through
biases     : shared up bias before the hidden rotation; shared down bias added once per token
form       : W_down . GELU_tanh( B(phi)^T (W_hat B(theta) x + b) ), W_down float
dispatch   : none - cos/sin tables are gathered with the expert index, all T*k rows go through one GEMM each way
"""
import torch
import torch.nn.functional as F
from torch import nn, Tensor


def next_pow2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def fft_butterfly(x: Tensor, cos: Tensor, sin: Tensor, strides: list[int]) -> Tensor:
    """x [R, P]; cos, sin [R, L, P/2]; in layer order given by strides"""
    R, P = x.shape
    for step, s in enumerate(strides):
        v = x.view(R, P // (2 * s), 2, s)
        c = cos[:, step].view(R, P // (2 * s), s)
        n = sin[:, step].view(R, P // (2 * s), s)
        lo, hi = v[:, :, 0], v[:, :, 1]
        out = torch.empty_like(v)
        out[:, :, 0] = torch.addcmul(c * lo, n, hi, value=-1)
        out[:, :, 1] = torch.addcmul(c * hi, n, lo)
        x = out.view(R, P)
    return x


class FusedButterflyMoE(nn.Module):
    def __init__(self, dim: int, hidden: int, n_exp: int, top_k: int = 2, l_in: int = 6, l_out: int = 4):
        super().__init__()
        self.dim, self.hidden, self.top_k = dim, hidden, top_k
        self.dp, self.hp = next_pow2(dim), next_pow2(hidden)
        self.strides_in = [1 << i for i in range(l_in)]
        self.strides_out = [1 << i for i in range(l_out)]
        self.router = nn.Linear(dim, n_exp)
        self.w_up = nn.Parameter(torch.empty(hidden, dim))
        self.b_up = nn.Parameter(torch.empty(hidden))
        self.down = nn.Linear(hidden, dim)
        self.ang_in = nn.Parameter(torch.empty(n_exp, l_in * self.dp // 2))
        self.ang_out = nn.Parameter(torch.empty(n_exp, l_out * self.hp // 2))

    def ternary(self) -> Tensor:
        g = self.w_up.abs().mean(1, keepdim=True)
        q = (self.w_up / (g + 1e-8)).round().clamp(-1.0, 1.0).mul(g)
        return q if not self.training else self.w_up + (q - self.w_up).detach()

    def tables(self, ang: Tensor, L: int) -> Tensor:
        # [E, 2, L, P/2]: one gather fetches cos and sin together
        a = ang.view(ang.shape[0], L, -1)
        return torch.stack((a.cos(), a.sin()), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, self.dim)
        T, K = x.shape[0], self.top_k
        val, idx = self.router(x).topk(K, dim=-1)
        w = val.softmax(-1)
        flat = idx.reshape(-1)                                             # [T*K]

        t_in = self.tables(self.ang_in, len(self.strides_in)).index_select(0, flat)
        t_out = self.tables(self.ang_out, len(self.strides_out)).index_select(0, flat)

        rows = F.pad(x, (0, self.dp - self.dim)).repeat_interleave(K, dim=0)
        rows = fft_butterfly(rows, t_in[:, 0], t_in[:, 1], self.strides_in)[:, : self.dim]
        h = torch.addmm(self.b_up, rows, self.ternary().t())
        h = F.pad(h, (0, self.hp - self.hidden))
        # transpose: walk the layers backwards with sin negated
        h = fft_butterfly(h, t_out[:, 0].flip(1), -t_out[:, 1].flip(1), self.strides_out[::-1])[:, : self.hidden]
        h = F.gelu(h, approximate="tanh")
        # linear commutes with the weighted sum: reduce over k first, then one small GEMM
        h = torch.bmm(w.unsqueeze(1), h.reshape(T, K, self.hidden)).squeeze(1)
        return self.down(h).view(shape)


class PointBlock(nn.Module):
    def __init__(self, dim, hidden, n_exp):
        super().__init__()
        self.norm1 = nn.GroupNorm(4, dim)
        self.local = nn.Conv1d(dim, dim, 1)
        self.glob = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.moe = FusedButterflyMoE(dim, hidden, n_exp)

    def forward(self, x):                                                  # [B, N, C]
        y = self.norm1(x.transpose(1, 2))
        pooled = y.amax(-1)
        x = x + F.relu(self.local(y)).transpose(1, 2) + self.glob(pooled).unsqueeze(1)
        return x + self.moe(self.norm2(x))


class PointSeg(nn.Module):
    def __init__(self, dim=48, hidden=96, n_exp=8, depth=3, n_cls=6):
        super().__init__()
        self.register_buffer("freqs", 2.0 ** torch.arange(4))
        self.lift = nn.Linear(3 + 24 + 3, dim)
        self.blocks = nn.ModuleList([PointBlock(dim, hidden, n_exp) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.cls = nn.Linear(dim, n_cls)

    def forward(self, xyz, rgb):
        p = (xyz.unsqueeze(-1) * self.freqs).flatten(2)
        x = self.lift(torch.cat((xyz, p.sin(), p.cos(), rgb), dim=-1))
        for b in self.blocks:
            x = b(x)
        return self.cls(self.norm(x))


def make():
    torch.manual_seed(202)
    net = PointSeg()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "ang_" in name:
                p.normal_(0, 0.5)
            elif name.endswith("glob.weight"):
                p.mul_(0.2)
            elif name == "lift.weight":
                p.normal_(0, 0.5)
            elif "router.weight" in name:
                p.normal_(0, 1.5 / p.shape[1] ** 0.5)
            elif p.dim() == 1:
                p.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.12)
            elif name.endswith("w_up"):
                p.normal_(0, p.shape[1] ** -0.5)
    return net.eval(), (torch.rand(2, 36, 3) * 2 - 1, torch.rand(2, 36, 3))
