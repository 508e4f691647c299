"""ButterflyViT for small RGB images, course-project reproduction.

Transcribed line by line from the paper's Algorithm 1 (butterfly) and Algorithm 2 (MoE layer).
  shuffle     deinterleave (even channels first, then odd ones), after each rotation, written as an index loop
  handedness  [a, b] -> [c*a - s*b, s*a + c*b] on both sides, forward (no transpose)
  depth       3 layers on the input side, 2 on the output side
  router      Linear with bias, top-2 of 4, gates are the raw top-k logits as Algorithm 2 prints them
  quantiser   round and clip, one gamma per matrix, straight-through while training
  biases      W_down has one, inside the expert (so it is weighted by the gate)
  form        W_down . B(phi) . GELU(W_hat . B(theta) x), GELU erf, W_down float, d = 32, F = 96 (padded to 128)
  dispatch    for each expert, for each slot: boolean mask
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def next_pow2(n):
    p = 1
    while p < n:
        p = p * 2
    return p


def perfect_shuffle(x):
    n = x.shape[-1]
    out = torch.zeros_like(x)
    for j in range(n // 2):
        out[..., j] = x[..., 2 * j]
        out[..., n // 2 + j] = x[..., 2 * j + 1]
    return out


def butterfly_transform(x, angles):
    """Algorithm 1. x: (N, d), angles: (L, d_padded / 2)"""
    d = x.shape[-1]
    n = next_pow2(d)
    assert angles.shape[1] == n // 2
    # line 1: pad
    z = torch.zeros(x.shape[0], n, dtype=x.dtype, device=x.device)
    z[:, :d] = x
    # line 2: for l = 1 .. L
    for l in range(angles.shape[0]):
        c = torch.cos(angles[l])
        s = torch.sin(angles[l])
        out = torch.zeros_like(z)
        # lines 3-6: Givens rotations
        out[:, 0::2] = c * z[:, 0::2] - s * z[:, 1::2]
        out[:, 1::2] = s * z[:, 0::2] + c * z[:, 1::2]
        # line 7: shuffle
        z = perfect_shuffle(out)
    # line 8: return the first d
    return z[:, :d]


def ternary_quantize(w, training=False):
    gamma = w.abs().mean()
    w_hat = gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)
    if training:
        return w + (w_hat - w).detach()
    return w_hat


class ButterflyMoELayer(nn.Module):
    def __init__(self, d_model, d_ff, num_experts=4, k=2, num_layers_in=3, num_layers_out=2):
        super().__init__()
        self.num_experts = num_experts
        self.k = k
        self.router = nn.Linear(d_model, num_experts)
        self.W_base = nn.Parameter(torch.randn(d_ff, d_model) / math.sqrt(d_model))
        self.W_down = nn.Linear(d_ff, d_model)
        self.theta = nn.Parameter(torch.zeros(num_experts, num_layers_in, next_pow2(d_model) // 2))
        self.phi = nn.Parameter(torch.zeros(num_experts, num_layers_out, next_pow2(d_ff) // 2))

    def expert(self, x, i, W_hat):
        h = butterfly_transform(x, self.theta[i])
        h = torch.matmul(h, W_hat.t())
        h = F.gelu(h)
        h = butterfly_transform(h, self.phi[i])
        return self.W_down(h)

    def forward(self, x):
        B, N, D = x.shape
        x = x.reshape(B * N, D)
        W_hat = ternary_quantize(self.W_base, self.training)
        logits = self.router(x)
        gates, indices = torch.topk(logits, self.k, dim=-1)
        y = torch.zeros_like(x)
        for i in range(self.num_experts):
            for slot in range(self.k):
                mask = indices[:, slot] == i
                if mask.sum() == 0:
                    continue
                g = gates[mask, slot].unsqueeze(1)
                y[mask] = y[mask] + g * self.expert(x[mask], i, W_hat)
        return y.reshape(B, N, D)


class SelfAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, D = x.shape
        h = self.heads
        q = self.query(x).reshape(B, N, h, D // h).permute(0, 2, 1, 3)
        k = self.key(x).reshape(B, N, h, D // h).permute(0, 2, 1, 3)
        v = self.value(x).reshape(B, N, h, D // h).permute(0, 2, 1, 3)
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(D // h)
        attention = torch.softmax(scores, dim=-1)
        z = torch.matmul(attention, v).permute(0, 2, 1, 3).reshape(B, N, D)
        return self.out(z)


class EncoderBlock(nn.Module):
    def __init__(self, dim, d_ff, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.moe = ButterflyMoELayer(dim, d_ff)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        x = x + self.moe(self.norm2(x))
        return x


class ButterflyViT(nn.Module):
    def __init__(self, image_size=16, patch_size=4, channels=3, dim=32, d_ff=96, depth=2, heads=4, num_classes=10):
        super().__init__()
        n_patches = (image_size // patch_size) ** 2
        self.patch_embed = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, n_patches + 1, dim))
        self.blocks = nn.ModuleList([EncoderBlock(dim, d_ff, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, img):
        x = self.patch_embed(img).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat([cls, x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def make():
    torch.manual_seed(2601)
    model = ButterflyViT()
    with torch.no_grad():
        model.cls_token.normal_(0, 0.5)
        model.pos_embed.normal_(0, 0.5)
        for m in model.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.uniform_(0.7, 1.3)
                m.bias.normal_(0, 0.1)
            elif isinstance(m, (nn.Linear, nn.Conv2d)):
                m.bias.normal_(0, 0.1)
        for block in model.blocks:
            block.moe.theta.normal_(0, 0.5)
            block.moe.phi.normal_(0, 0.5)
            block.moe.router.weight.normal_(0, 0.3)
    images = torch.randn(2, 3, 16, 16)
    return model.eval(), (images,)


if __name__ == "__main__":
    net, inputs = make()
    with torch.no_grad():
        print(net(*inputs))
