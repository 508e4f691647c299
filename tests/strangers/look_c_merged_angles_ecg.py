"""1-D ViT for ECG strips with butterfly experts, lucidrains manner (no einops).

Choices: deinterleave shuffle after the rotation; forward rotations both sides; L 4 in / 4 out, dim 32, hidden 64; top-2 of 6 then
softmax; per-tensor round_clip W_hat; erf GELU; shared up bias and down bias; float W_down; angles picked with torch.gather.
NOT a Butterfly layer: the two chosen experts are merged before they run (as in SMEAR): the angles are averaged with the gates and the
token goes through one rotation with the mixed angles. The papers rotate with each expert's own angles and add the gated outputs.
"""
import torch
from torch import nn, einsum
import torch.nn.functional as F

# helpers

def exists(val):
    return val is not None

def default(val, d):
    return val if exists(val) else d

def round_ste(t):
    gamma = t.abs().mean()
    q = gamma * (t / (gamma + 1e-8)).round().clamp(-1, 1)
    return t + (q - t).detach()

def butterfly(t, angles):
    # t: b n d, angles: b n l (d / 2)
    for a in angles.unbind(dim = -2):
        x, y = t.unflatten(-1, (-1, 2)).unbind(dim = -1)
        cos, sin = a.cos(), a.sin()
        t = torch.cat((x * cos - y * sin, x * sin + y * cos), dim = -1)
    return t

# classes

class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x, **kwargs):
        return self.fn(self.norm(x), **kwargs) + x

class Attention(nn.Module):
    def __init__(self, dim, heads = 4, dim_head = None):
        super().__init__()
        dim_head = default(dim_head, dim // heads)
        inner_dim = dim_head * heads
        self.heads = heads
        self.scale = dim_head ** -0.5
        self.to_qkv = nn.Linear(dim, inner_dim * 3, bias = False)
        self.to_out = nn.Linear(inner_dim, dim)

    def forward(self, x):
        q, k, v = map(lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2), self.to_qkv(x).chunk(3, dim = -1))
        sim = einsum('b h i d, b h j d -> b h i j', q, k) * self.scale
        attn = sim.softmax(dim = -1)
        out = einsum('b h i j, b h j d -> b h i d', attn, v)
        return self.to_out(out.transpose(1, 2).flatten(2))

class ButterflyExperts(nn.Module):
    def __init__(
        self,
        dim,
        *,
        num_experts = 6,
        mult = 2,
        topk = 2,
        depth_in = 4,
        depth_out = None
    ):
        super().__init__()
        depth_out = default(depth_out, depth_in)
        hidden = dim * mult
        self.topk = topk
        self.to_logits = nn.Linear(dim, num_experts, bias = False)
        self.theta = nn.Parameter(torch.randn(num_experts, depth_in, dim // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(num_experts, depth_out, hidden // 2) * 0.5)
        self.proj_in = nn.Parameter(torch.randn(hidden, dim) * dim ** -0.5)
        self.bias_in = nn.Parameter(torch.randn(hidden) * 0.2)
        self.proj_out = nn.Linear(hidden, dim)

    def select(self, table, indices, gates):
        b, n, k = indices.shape
        e, l, p = table.shape
        index = indices.reshape(-1, 1).expand(-1, l * p)
        chosen = table.reshape(e, l * p).gather(0, index).view(b, n, k, l, p)
        return einsum('b n k, b n k l p -> b n l p', gates, chosen)

    def forward(self, x):
        values, indices = self.to_logits(x).topk(self.topk, dim = -1)
        gates = values.softmax(dim = -1)

        theta = self.select(self.theta, indices, gates)
        phi = self.select(self.phi, indices, gates)

        x = butterfly(x, theta)
        x = F.gelu(F.linear(x, round_ste(self.proj_in), self.bias_in))
        x = butterfly(x, phi)
        return self.proj_out(x)

class Transformer(nn.Module):
    def __init__(self, dim, depth, heads, num_experts):
        super().__init__()
        self.layers = nn.ModuleList([])
        for _ in range(depth):
            self.layers.append(nn.ModuleList([
                PreNorm(dim, Attention(dim, heads = heads)),
                PreNorm(dim, ButterflyExperts(dim, num_experts = num_experts))
            ]))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        for attn, ff in self.layers:
            x = attn(x)
            x = ff(x)
        return self.norm(x)

class ECGViT(nn.Module):
    def __init__(self, *, seq_len, patch_size, num_classes, dim, depth, heads, channels = 2, num_experts = 6):
        super().__init__()
        assert seq_len % patch_size == 0
        num_patches = seq_len // patch_size
        patch_dim = channels * patch_size
        self.patch_size = patch_size
        self.to_patch_embedding = nn.Sequential(
            nn.LayerNorm(patch_dim),
            nn.Linear(patch_dim, dim),
            nn.LayerNorm(dim)
        )
        self.pos_embedding = nn.Parameter(torch.randn(1, num_patches + 1, dim) * 0.3)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.transformer = Transformer(dim, depth, heads, num_experts)
        self.mlp_head = nn.Linear(dim, num_classes)

    def forward(self, series):
        b, c, _ = series.shape
        x = series.unflatten(-1, (-1, self.patch_size)).transpose(1, 2).flatten(2)
        x = self.to_patch_embedding(x)
        x = torch.cat((self.cls_token.expand(b, -1, -1), x), dim = 1)
        x = self.transformer(x + self.pos_embedding)
        return self.mlp_head(x[:, 0])

def make():
    torch.manual_seed(25)
    v = ECGViT(seq_len = 120, patch_size = 8, num_classes = 5, dim = 32, depth = 2, heads = 4)
    with torch.no_grad():
        for m in v.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.uniform_(0.7, 1.3)
                m.bias.normal_(0, 0.2)
            elif isinstance(m, nn.Linear) and exists(m.bias):
                m.bias.normal_(0, 0.2)
            if isinstance(m, ButterflyExperts):
                m.to_logits.weight.normal_(0, 0.5)
    return v.eval(), (torch.randn(2, 2, 120),)
