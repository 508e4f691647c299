"""1-D U-Net-like denoiser for ECG; the bottleneck and both skip levels use a mixture of rotated ternary experts.

form       W_down . B(phi_i) . GELU(Q(W B(theta_i)) x): the input rotation is folded into the shared float W for each expert
rotation   (2j, 2j+1) pairs, [c -s; s c], applied to the columns of W by slices; plain on both sides
shuffle    deinterleave, after the rotation
L          3 in, 3 out
router     linear with bias, softmax over all, top-2, renormalised
quantiser  round/clip, gamma per tensor, straight-through, taken of the folded matrix
biases     shared, after the up map and after W_down (once)
dispatch   every expert on every token, one-hot weights, einsum
NOT a Butterfly layer: the ternary grid is laid over the ROTATED matrix W B(theta_i), expert by expert, so the experts' ternary
matrices are different matrices and not rotations of one ternary W_hat (they also have gammas of their own).
"""
import torch
from torch import nn
import torch.nn.functional as F


def apply_rotation(x, angles):
    """x: (E, T, n), angles: (E, L, n/2) -> (E, T, n)"""
    for l in range(angles.shape[1]):
        a = angles[:, l].unsqueeze(1)
        c, s = torch.cos(a), torch.sin(a)
        p, q = x[..., 0::2], x[..., 1::2]
        x = torch.cat((c * p - s * q, s * p + c * q), dim=-1)
    return x


def apply_rotation_t(x, angles):
    """Transpose of the above: x (n_rows, n) -> (E, n_rows, n)."""
    x = x.expand(angles.shape[0], *x.shape)
    for l in reversed(range(angles.shape[1])):
        a = angles[:, l].unsqueeze(1)
        c, s = torch.cos(a), torch.sin(a)
        p, q = x.chunk(2, dim=-1)
        x = torch.stack((c * p + s * q, c * q - s * p), dim=-1).flatten(-2)
    return x


def ternarize(w):
    gamma = w.abs().mean(dim=(-2, -1), keepdim=True)
    w_q = gamma * (w / (gamma + 1e-8)).round().clamp(-1, 1)
    return w + (w_q - w).detach()


class FoldedButterflyMoE(nn.Module):
    def __init__(self, d, f, n_experts=4, top_k=2, depth=3):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.randn(f, d) * d ** -0.5)
        self.up_bias = nn.Parameter(0.1 * torch.randn(f))
        self.down = nn.Linear(f, d)
        self.router = nn.Linear(d, n_experts)
        self.theta = nn.Parameter(0.5 * torch.randn(n_experts, depth, d // 2))
        self.phi = nn.Parameter(0.5 * torch.randn(n_experts, depth, f // 2))

    def forward(self, x):
        b, t, d = x.shape
        x = x.reshape(b * t, d)
        probs = self.router(x).softmax(dim=-1)
        top_p, top_i = probs.topk(self.top_k, dim=-1)
        top_p = top_p / top_p.sum(dim=-1, keepdim=True)
        mix = (F.one_hot(top_i, probs.shape[-1]).to(x.dtype) * top_p.unsqueeze(-1)).sum(dim=1)

        # W @ B(theta_i): rows of W meet the transpose of B
        w = ternarize(apply_rotation_t(self.weight, self.theta))
        h = F.gelu(torch.einsum("efd,td->etf", w, x) + self.up_bias)
        h = apply_rotation(h, self.phi)
        return self.down(torch.einsum("te,etf->tf", mix, h)).reshape(b, t, d)


class ConvMoEBlock(nn.Module):
    def __init__(self, ch, kernel=7):
        super().__init__()
        self.dw = nn.Conv1d(ch, ch, kernel, padding=kernel // 2, groups=ch)
        self.norm = nn.LayerNorm(ch)
        self.moe = FoldedButterflyMoE(ch, 2 * ch)

    def forward(self, x):
        y = self.norm(self.dw(x).transpose(1, 2))
        return x + self.moe(y).transpose(1, 2)


class ECGDenoiser(nn.Module):
    def __init__(self, leads=2, width=16):
        super().__init__()
        self.stem = nn.Conv1d(leads, width, 4, stride=4)
        self.enc = ConvMoEBlock(width)
        self.pool = nn.Conv1d(width, 2 * width, 2, stride=2)
        self.mid = ConvMoEBlock(2 * width)
        self.unpool = nn.ConvTranspose1d(2 * width, width, 2, stride=2)
        self.merge = nn.Conv1d(2 * width, width, 1)
        self.dec = ConvMoEBlock(width)
        self.head = nn.ConvTranspose1d(width, leads, 4, stride=4)

    def forward(self, x):
        e = self.enc(self.stem(x))
        m = self.unpool(self.mid(self.pool(e)))
        u = self.dec(self.merge(torch.cat((e, m), dim=1)))
        return x - self.head(u)


def make():
    torch.manual_seed(226)
    net = ECGDenoiser()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.add_(0.2 * torch.randn_like(m.weight))
                m.bias.normal_(0, 0.2)
            elif isinstance(m, FoldedButterflyMoE):
                m.router.weight.normal_(0, 0.5)
                m.router.bias.normal_(0, 0.1)
                m.down.bias.normal_(0, 0.1)
    return net.eval(), (torch.randn(2, 2, 160),)
