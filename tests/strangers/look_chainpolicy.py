"""LOOKALIKE.  Visuomotor policy (conv stem + BatchNorm, proprioception token) with a Butterfly MoE in every block.

Differs in exactly one respect: the chosen experts are applied one after the other ("chain of experts"), not in parallel.
The loop over the k slots computes z <- z + g_s * expert_s(z), so the second expert sees the first one's output,
while the paper has z = x + sum_s g_s * expert_s(x).  With k = 1 both would be the same; here k = 2 (and 3 in block 2).
Routing is still done once, from the block's input.  All else is by the book: shared ternary W_hat, shared W_down, angles per
expert, gathered per token, deinterleave after the rotation, GELU before B(phi), softmax over the top-k logits.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def rotate(x, ang):
    # x: (N, C)   ang: (N, L, C/2), one set of angles per token
    for l in range(ang.size(1)):
        c, s = ang[:, l].cos(), ang[:, l].sin()
        a, b = x[:, 0::2], x[:, 1::2]
        x = torch.stack((c * a - s * b, s * a + c * b), 2).flatten(1)
        x = torch.cat((x[:, 0::2], x[:, 1::2]), 1)
    return x


class TernarySTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        g = w.abs().mean()
        return torch.clamp(torch.round(w / (g + 1e-8)), -1, 1) * g

    @staticmethod
    def backward(ctx, grad):
        return grad


class ButterflyMoE(nn.Module):
    def __init__(self, dim, hidden, n_experts, k, l_in=3, l_out=2):
        super().__init__()
        self.k = k
        self.router = nn.Linear(dim, n_experts)
        self.weight = nn.Parameter(torch.randn(hidden, dim) * 0.15)
        self.bias = nn.Parameter(torch.randn(hidden) * 0.2)
        self.w_down = nn.Linear(hidden, dim)
        self.theta = nn.Parameter(torch.randn(n_experts, l_in, dim // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(n_experts, l_out, hidden // 2) * 0.5)

    def expert(self, x, w, i):
        h = rotate(x, self.theta[i])
        h = F.gelu(F.linear(h, w, self.bias))
        h = rotate(h, self.phi[i])
        return self.w_down(h)

    def forward(self, x):
        shape = x.shape
        z = x.flatten(0, -2)
        logits, idx = self.router(z).topk(self.k, dim=-1)
        gate = logits.softmax(-1)
        w = TernarySTE.apply(self.weight)
        for s in range(self.k):
            z = z + gate[:, s : s + 1] * self.expert(z, w, idx[:, s])
        return z.view(shape)


class TokenBN(nn.BatchNorm1d):
    def forward(self, x):  # (B, T, C)
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, dim, hidden, n_experts, k):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bn1 = TokenBN(dim)
        self.moe = ButterflyMoE(dim, hidden, n_experts, k)
        self.bn2 = TokenBN(dim)

    def forward(self, x):
        q, k, v = [t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)]
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.bn1(x + self.proj(a))
        return self.bn2(self.moe(x))


def conv_bn(i, o, stride):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class Policy(nn.Module):
    def __init__(self, dim=32, hidden=64, n_joints=7, chunk=4):
        super().__init__()
        self.n_joints, self.chunk = n_joints, chunk
        self.stem = nn.Sequential(conv_bn(3, 16, 2), conv_bn(16, 24, 2), nn.Conv2d(24, dim, 3, 1, 1))
        self.proprio = nn.Sequential(nn.Linear(n_joints, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.pos = nn.Parameter(torch.randn(1, 37, dim) * 0.3)
        self.blocks = nn.ModuleList([Block(dim, hidden, 4, k=2), Block(dim, hidden, 6, k=3)])
        self.head = nn.Linear(dim, chunk * n_joints)

    def forward(self, image, joints):
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.proprio(joints).unsqueeze(1), x], 1) + self.pos
        for blk in self.blocks:
            x = blk(x)
        return torch.tanh(self.head(x[:, 0] + x.mean(1))).view(-1, self.chunk, self.n_joints)


def make():
    torch.manual_seed(42)
    net = Policy()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.running_mean.normal_(0, 0.2)
                m.running_var.uniform_(0.5, 1.5)
                m.weight.normal_(1, 0.2)
                m.bias.normal_(0, 0.1)
            elif isinstance(m, ButterflyMoE):
                m.router.weight.mul_(3)
                m.w_down.weight.mul_(2.5)
    return net.eval(), (torch.randn(2, 3, 24, 24), torch.randn(2, 7))
