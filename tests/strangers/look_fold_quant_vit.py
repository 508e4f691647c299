"""LOOKALIKE. ViT with butterfly experts, where the rotation is folded into the weight BEFORE ternarising.

What differs: expert i uses W_hat_i = ternary(W . B(theta_i)^T), as one would do to tame outliers before quantisation, instead
of ternary(W) . B(theta_i)^T. Only the float master W is shared; each expert has a different ternary matrix of its own,
and W_hat_i . x is not equal to any W_hat . B x. (Without the rounding it would be exactly eq. 3.)
B(phi_i), GELU, float shared W_down, softmax-then-top-k gates and the weighted sum are the paper's.
Style: rotate_every_two with repeated cos/sin, permutation-index shuffle, nonzero/index_select/index_add dispatch; no class token.
"""
import torch
from torch import nn
import torch.nn.functional as F


def rotate_every_two(x):
    x1, x2 = x[..., ::2], x[..., 1::2]
    return torch.stack((-x2, x1), dim=-1).flatten(-2)


class Butterfly(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        assert dim & (dim - 1) == 0
        self.register_buffer("perm", torch.arange(dim).view(-1, 2).t().reshape(-1))

    def forward(self, x, angles):
        cos = torch.repeat_interleave(angles.cos(), 2, dim=-1)
        sin = torch.repeat_interleave(angles.sin(), 2, dim=-1)
        for c, s in zip(cos, sin):
            x = (x * c + rotate_every_two(x) * s)[..., self.perm]
        return x


class RotatedTernaryMoE(nn.Module):
    def __init__(self, dim=32, hidden=64, experts=5, k=2, depth_in=4, depth_out=4):
        super().__init__()
        self.k = k
        self.router = nn.Linear(dim, experts)
        self.weight = nn.Parameter(torch.randn(hidden, dim) / dim ** 0.5)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.w_down = nn.Parameter(torch.randn(dim, hidden) / hidden ** 0.5)
        self.b_down = nn.Parameter(torch.zeros(dim))
        self.theta = nn.Parameter(torch.randn(experts, depth_in, dim // 2) * 0.01)
        self.phi = nn.Parameter(torch.randn(experts, depth_out, hidden // 2) * 0.01)
        self.butterfly_in = Butterfly(dim)
        self.butterfly_out = Butterfly(hidden)

    @staticmethod
    def quantize(w):
        gamma = w.abs().mean()
        w_hat = gamma * torch.clip(torch.round(w / (gamma + 1e-8)), -1, 1)
        return w + (w_hat - w).detach()

    def expert(self, e, x):
        w_hat = self.quantize(self.butterfly_in(self.weight, self.theta[e]))
        h = F.gelu(F.linear(x, w_hat, self.bias))
        return F.linear(self.butterfly_out(h, self.phi[e]), self.w_down)

    def forward(self, x):
        tokens = x.flatten(0, -2)
        probs = self.router(tokens).softmax(-1)
        gate, chosen = probs.topk(self.k, dim=-1)
        y = torch.zeros_like(tokens)
        for e in range(len(self.theta)):
            tok, slot = (chosen == e).nonzero(as_tuple=True)
            out = self.expert(e, tokens.index_select(0, tok))
            y = y.index_add(0, tok, out * gate[tok, slot].unsqueeze(1))
        return (y + self.b_down).view_as(x)


class Layer(nn.Module):
    def __init__(self, dim, heads, **moe):
        super().__init__()
        self.n1 = nn.LayerNorm(dim)
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.n2 = nn.LayerNorm(dim)
        self.ffn = RotatedTernaryMoE(dim, **moe)

    def attend(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(x).chunk(3, dim=-1))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x):
        x = x + self.attend(self.n1(x))
        return x + self.ffn(self.n2(x))


class SimpleViT(nn.Module):
    def __init__(self, image=24, patch=4, dim=32, heads=2, depth=2, classes=8):
        super().__init__()
        self.patch = patch
        self.to_tokens = nn.Linear(3 * patch * patch, dim)
        self.pos = nn.Parameter(torch.randn((image // patch) ** 2, dim) * 0.02)
        self.layers = nn.Sequential(*[Layer(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, classes)

    def forward(self, img):
        p = self.patch
        patches = F.unfold(img, kernel_size=p, stride=p).transpose(1, 2)
        x = self.layers(self.to_tokens(patches) + self.pos)
        return self.classify(self.norm(x).mean(dim=1))


def make():
    torch.manual_seed(11)
    model = SimpleViT()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "theta" in name or "phi" in name:
                p.copy_(torch.randn_like(p) * 0.5)
            elif name.endswith(("n1.weight", "n2.weight", "norm.weight")):
                p.copy_(1 + 0.25 * torch.randn_like(p))
            elif "bias" in name or "b_down" in name:
                p.copy_(0.2 * torch.randn_like(p))
            elif "router.weight" in name or name == "pos":
                p.copy_(0.3 * torch.randn_like(p))
    return model.eval(), (torch.randn(2, 3, 24, 24),)
