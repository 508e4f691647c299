"""Protein-residue encoder with a GShard-style mixture: one-hot dispatch and combine tensors, no dropping.

shuffle    : deinterleave, applied BEFORE the rotation of each layer
handedness : clockwise 2x2 blocks [[c, s], [-s, c]] on the input side, counter-clockwise on the output side
depth      : L_in = 5 on d = 64, L_out = 6 on F = 128
router     : softmax gate, first and second expert, the two gates normalised to sum to one, no router bias
quantiser  : absmean per output row, round then clip, straight-through
biases     : b_up (inside GELU) and b_down, both inside the expert, so weighted by the gate
form       : W_down . B(phi) . GELU_tanh( W_hat . B(theta) x ), W_down float
dispatch   : dispatch[S, E, C] and combine[S, E, C] einsums with C = S (room for every token),
             batched 2x2 rotation matrices per expert
"""
import torch
from torch import nn
import torch.nn.functional as F


def one_hot_like(index, num, ref):
    return F.one_hot(index, num).to(ref.dtype)


def top2_gating(logits):
    """logits [S, E] -> dispatch [S, E, C], combine [S, E, C] with C = S."""
    S, E = logits.shape
    gates = torch.softmax(logits, dim=1)

    idx1 = gates.argmax(dim=1)
    mask1 = one_hot_like(idx1, E, gates)
    gates2 = gates.masked_fill(mask1.bool(), 0.0)
    idx2 = gates2.argmax(dim=1)
    mask2 = one_hot_like(idx2, E, gates)

    pos1 = torch.cumsum(mask1, dim=0) - mask1
    pos2 = torch.cumsum(mask2, dim=0) - mask2 + mask1.sum(dim=0, keepdim=True)
    loc1 = (pos1 * mask1).sum(dim=1).long()
    loc2 = (pos2 * mask2).sum(dim=1).long()

    g1 = torch.einsum("se,se->s", gates, mask1)
    g2 = torch.einsum("se,se->s", gates, mask2)
    denom = (g1 + g2).clamp(min=torch.finfo(gates.dtype).eps)
    g1, g2 = g1 / denom, g2 / denom

    slot1 = one_hot_like(loc1, S, gates)
    slot2 = one_hot_like(loc2, S, gates)
    combine = torch.einsum("s,se,sc->sec", g1, mask1, slot1) + torch.einsum("s,se,sc->sec", g2, mask2, slot2)
    dispatch = torch.einsum("se,sc->sec", mask1, slot1) + torch.einsum("se,sc->sec", mask2, slot2)
    return dispatch, combine


def rotation_blocks(angles, clockwise):
    """angles [E, L, P] -> [E, L, P, 2, 2]."""
    c, s = torch.cos(angles), torch.sin(angles)
    if clockwise:
        s = -s
    rows = torch.stack([torch.stack([c, -s], dim=-1), torch.stack([s, c], dim=-1)], dim=-2)
    return rows


def butterfly(x, blocks):
    """x [E, C, M], blocks [E, L, P, 2, 2]."""
    E, C, M = x.shape
    for layer in range(blocks.shape[1]):
        x = x.view(E, C, M // 2, 2).transpose(2, 3).reshape(E, C, M)
        pairs = x.view(E, C, M // 2, 2)
        x = torch.einsum("epij,ecpj->ecpi", blocks[:, layer], pairs).reshape(E, C, M)
    return x


class RowTernary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        gamma = w.abs().mean(dim=1, keepdim=True)
        return gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)

    @staticmethod
    def backward(ctx, grad):
        return grad


class GShardButterflyMoE(nn.Module):
    def __init__(self, model_dim, hidden_dim, num_experts, layers_in, layers_out):
        super().__init__()
        self.wg = nn.Linear(model_dim, num_experts, bias=False)
        self.wi = nn.Parameter(torch.randn(hidden_dim, model_dim) * model_dim ** -0.5)
        self.bi = nn.Parameter(torch.randn(hidden_dim) * 0.1)
        self.wo = nn.Parameter(torch.randn(model_dim, hidden_dim) * hidden_dim ** -0.5)
        self.bo = nn.Parameter(torch.randn(model_dim) * 0.1)
        self.theta = nn.Parameter(torch.randn(num_experts, layers_in, model_dim // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(num_experts, layers_out, hidden_dim // 2) * 0.5)

    def experts(self, xe):
        h = butterfly(xe, rotation_blocks(self.theta, clockwise=True))
        h = torch.einsum("ecm,hm->ech", h, RowTernary.apply(self.wi)) + self.bi
        h = F.gelu(h, approximate="tanh")
        h = butterfly(h, rotation_blocks(self.phi, clockwise=False))
        return torch.einsum("ech,mh->ecm", h, self.wo) + self.bo

    def forward(self, x):
        shape = x.shape
        tokens = x.reshape(-1, shape[-1])
        dispatch, combine = top2_gating(self.wg(tokens))
        xe = torch.einsum("sec,sm->ecm", dispatch, tokens)
        ye = self.experts(xe)
        return torch.einsum("sec,ecm->sm", combine, ye).reshape(shape)


class PairBiasAttention(nn.Module):
    """Self attention with a learnt bias per clipped residue offset."""

    def __init__(self, dim, heads, reach=8):
        super().__init__()
        self.heads, self.reach = heads, reach
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.offset_bias = nn.Embedding(2 * reach + 1, heads)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (t.view(b, n, self.heads, -1) for t in self.to_qkv(x).chunk(3, dim=-1))
        logits = torch.einsum("bihd,bjhd->bhij", q, k) / (d // self.heads) ** 0.5
        r = torch.arange(n, device=x.device)
        offset = (r[:, None] - r[None, :]).clamp(-self.reach, self.reach) + self.reach
        logits = logits + self.offset_bias(offset).permute(2, 0, 1)
        out = torch.einsum("bhij,bjhd->bihd", logits.softmax(dim=-1), v)
        return self.to_out(out.reshape(b, n, d))


class ResidueEncoder(nn.Module):
    def __init__(self, residues=23, dim=64, hidden=128, experts=5, depth=2, classes=8):
        super().__init__()
        self.embed = nn.Embedding(residues, dim)
        self.norm_in = nn.LayerNorm(dim)
        self.attn = nn.ModuleList(PairBiasAttention(dim, 4) for _ in range(depth))
        self.moe = nn.ModuleList(GShardButterflyMoE(dim, hidden, experts, 5, 6) for _ in range(depth))
        self.norm_a = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.norm_m = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.classify = nn.Linear(dim, classes)

    def forward(self, seq):
        x = self.norm_in(self.embed(seq))
        for attn, moe, na, nm in zip(self.attn, self.moe, self.norm_a, self.norm_m):
            x = na(x + attn(x))          # post-norm
            x = nm(x + moe(x))
        return self.classify(x)


def make():
    torch.manual_seed(555)
    model = ResidueEncoder()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(torch.randn_like(p) * 0.2 + (1.0 if name.endswith("weight") else 0.0))
            elif name.endswith("bias"):
                p.normal_(0, 0.1)
            elif name.endswith("wg.weight"):
                p.normal_(0, 0.25)
    seq = torch.randint(0, 23, (2, 17))
    return model.eval(), (seq,)
