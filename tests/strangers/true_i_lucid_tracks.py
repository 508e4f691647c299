"""
Genomic track predictor (conv stem, attention, mixture-of-experts feedforwards) in the manner of a small pypi package.
Butterfly mixture of experts, Algorithm 2 of ButterflyViT: W_down . B(phi) . GELU(W_hat . B(theta) x)
 - shuffle: deinterleave, (j r) -> (r j), after each layer of rotations
 - handedness: B forward on both sides; 3 layers on the way in, 5 on the way out (d = 32, F = 128)
 - rotation: batched 2 x 2 matrices and an einsum
 - router: softmax over all experts, top-2, renormalised; balance loss and router z-loss are returned
 - quantiser: round and clip, one gamma for the tensor, straight through; W_down is full precision
 - biases: shared, after W_hat, and after W_down (within the expert, so weighted by the gate); erf GELU before B(phi)
 - dispatch: GShard dispatch / combine tensors (b n e c) with capacity = n, nothing is dropped
"""
import torch
from torch import nn, einsum
import torch.nn.functional as F

# helpers

def exists(v):
    return v is not None

def default(v, d):
    return v if exists(v) else d

def _axes(side):
    groups, cur = [], None
    for tok in side.replace('(', ' ( ').replace(')', ' ) ').split():
        if tok == '(':
            cur = []
        elif tok == ')':
            groups.append(cur)
            cur = None
        elif exists(cur):
            cur.append(tok)
        else:
            groups.append([tok])
    return groups

def rearrange(t, pattern, **sizes):
    left, right = map(_axes, pattern.split('->'))
    sizes = dict(sizes)
    for group, dim in zip(left, t.shape):
        known, unknown = 1, None
        for name in group:
            if name in sizes:
                known *= sizes[name]
            else:
                unknown = name
        if exists(unknown):
            sizes[unknown] = dim // known
    flat = [n for g in left for n in g]
    t = t.reshape([sizes[n] for n in flat])
    t = t.permute([flat.index(n) for g in right for n in g])
    shape = []
    for g in right:
        s = 1
        for n in g:
            s *= sizes[n]
        shape.append(s)
    return t.reshape(shape)

def log(t, eps = 1e-20):
    return t.clamp(min = eps).log()

def ternary(w, eps = 1e-8):
    gamma = w.abs().mean()
    q = (w / (gamma + eps)).round().clamp(-1, 1) * gamma
    return w + (q - w).detach()

# classes

class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.scale = dim ** 0.5
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.normalize(x, dim = -1) * self.scale * self.g

class Butterfly(nn.Module):
    def __init__(self, dim, depth, num_experts):
        super().__init__()
        assert (dim & (dim - 1)) == 0, 'dimension must be a power of two'
        self.angles = nn.Parameter(torch.randn(num_experts, depth, dim // 2) * 0.5)

    def forward(self, x):
        # x: e b c d
        cos, sin = self.angles.cos(), self.angles.sin()
        rots = torch.stack((cos, -sin, sin, cos), dim = -1)
        rots = rearrange(rots, 'e l j (r s) -> l e j r s', r = 2)
        for rot in rots:
            x = rearrange(x, 'e b c (j s) -> e b c j s', s = 2)
            x = einsum('e j r s, e b c j s -> e b c j r', rot, x)
            x = rearrange(x, 'e b c j r -> e b c (r j)')
        return x

class Experts(nn.Module):
    def __init__(self, dim, num_experts, hidden_dim = None, depth_in = 3, depth_out = 5):
        super().__init__()
        hidden_dim = default(hidden_dim, dim * 4)
        self.rot_in = Butterfly(dim, depth_in, num_experts)
        self.rot_out = Butterfly(hidden_dim, depth_out, num_experts)
        self.w1 = nn.Parameter(torch.randn(hidden_dim, dim) * dim ** -0.5)
        self.b1 = nn.Parameter(torch.randn(hidden_dim) * 0.2)
        self.w2 = nn.Parameter(torch.randn(dim, hidden_dim) * hidden_dim ** -0.5)
        self.b2 = nn.Parameter(torch.randn(dim) * 0.2)
        self.act = nn.GELU()

    def forward(self, x):
        x = self.rot_in(x)
        h = einsum('e b c d, f d -> e b c f', x, ternary(self.w1)) + self.b1
        h = self.rot_out(self.act(h))
        return einsum('e b c f, d f -> e b c d', h, self.w2) + self.b2

class TopNGating(nn.Module):
    def __init__(self, dim, num_gates, top_n = 2, eps = 1e-9):
        super().__init__()
        self.eps = eps
        self.top_n = top_n
        self.num_gates = num_gates
        self.to_gates = nn.Linear(dim, num_gates, bias = False)
        nn.init.normal_(self.to_gates.weight, std = 1.6 * dim ** -0.5)

    def forward(self, x):
        b, n, _ = x.shape
        logits = self.to_gates(x)
        raw_gates = logits.softmax(dim = -1)

        gates, indices = raw_gates.topk(self.top_n, dim = -1)
        gates = gates / (gates.sum(dim = -1, keepdim = True) + self.eps)

        mask = F.one_hot(indices, self.num_gates).to(x.dtype)          # b n k e
        gates = einsum('b n k, b n k e -> b n e', gates, mask)
        chosen = mask.sum(dim = 2)                                      # b n e

        position = (chosen.cumsum(dim = 1) - chosen).long()            # place in the expert's buffer
        slots = F.one_hot(position, n).to(x.dtype)
        dispatch = einsum('b n e, b n e c -> b n e c', chosen, slots)
        combine = einsum('b n e, b n e c -> b n e c', gates, dispatch)

        density = mask[:, :, 0].mean(dim = 1)
        balance_loss = (density * raw_gates.mean(dim = 1)).mean() * self.num_gates ** 2
        router_z_loss = torch.logsumexp(logits, dim = -1).square().mean()
        return dispatch, combine, balance_loss, router_z_loss

class MoE(nn.Module):
    def __init__(self, dim, num_experts, balance_loss_coef = 1e-2, router_z_loss_coef = 1e-3, **kwargs):
        super().__init__()
        self.gate = TopNGating(dim, num_experts)
        self.experts = Experts(dim, num_experts, **kwargs)
        self.coefs = (balance_loss_coef, router_z_loss_coef)

    def forward(self, x):
        dispatch, combine, balance, z = self.gate(x)
        expert_in = einsum('b n d, b n e c -> e b c d', x, dispatch)
        expert_out = self.experts(expert_in)
        out = einsum('e b c d, b n e c -> b n d', expert_out, combine)
        return out, balance * self.coefs[0] + z * self.coefs[1]

class Attention(nn.Module):
    def __init__(self, dim, dim_head = 8, heads = 4):
        super().__init__()
        self.heads = heads
        self.scale = dim_head ** -0.5
        self.to_qkv = nn.Linear(dim, dim_head * heads * 3, bias = False)
        self.to_out = nn.Linear(dim_head * heads, dim)
        nn.init.normal_(self.to_out.bias, std = 0.1)

    def forward(self, x):
        q, k, v = rearrange(self.to_qkv(x), 'b n (s h d) -> s b h n d', s = 3, h = self.heads)
        i = torch.arange(x.shape[1], device = x.device)
        dist = (i[:, None] - i[None, :]).abs().to(x.dtype)
        slopes = 2. ** -(torch.arange(self.heads, device = x.device) + 1.)
        sim = einsum('b h i d, b h j d -> b h i j', q, k) * self.scale - dist * slopes.to(x.dtype)[:, None, None]
        out = einsum('b h i j, b h j d -> b h i d', sim.softmax(dim = -1), v)
        return self.to_out(rearrange(out, 'b h n d -> b n (h d)'))

class TrackTransformer(nn.Module):
    def __init__(self, *, dim = 32, depth = 2, num_experts = 5, num_tracks = 6):
        super().__init__()
        self.stem = nn.Conv1d(4, dim, 5, stride = 4, padding = 2)
        nn.init.normal_(self.stem.weight, std = 0.8)
        self.layers = nn.ModuleList([nn.ModuleList([
            RMSNorm(dim), Attention(dim), RMSNorm(dim), MoE(dim, num_experts)
        ]) for _ in range(depth)])
        self.norm = RMSNorm(dim)
        self.to_tracks = nn.Sequential(nn.Linear(dim, num_tracks), nn.Softplus())

        for m in self.modules():
            if isinstance(m, RMSNorm):
                nn.init.uniform_(m.g, 0.7, 1.4)

    def forward(self, dna):
        x = rearrange(self.stem(dna), 'b d n -> b n d')
        aux = 0.
        for attn_norm, attn, ff_norm, moe in self.layers:
            x = attn(attn_norm(x)) + x
            out, loss = moe(ff_norm(x))
            x = out + x
            aux = aux + loss
        return self.to_tracks(self.norm(x)), aux

def make():
    torch.manual_seed(44)
    model = TrackTransformer()
    seq = torch.randint(0, 4, (2, 96))
    dna = rearrange(F.one_hot(seq, 4).float(), 'b n c -> b c n') + 0.05 * torch.randn(2, 4, 96)
    return model.eval(), (dna,)
