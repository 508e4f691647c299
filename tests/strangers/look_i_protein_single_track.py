"""Small protein trunk (single track with a pair bias, evoformer flavour) predicting a distogram and masked residues.

The transition layers are mixtures of butterfly-rotated experts that share one ternary W_hat and one float W_down:
W_down . B(phi) . GELU(W_hat . B(theta) x + b1), B = 4 (in) / 6 (out) layers of { Givens on pairs (2j, 2j+1); deinterleave }.
c_s = 32, F = 64, 7 experts, top-2, softmax over all then renormalised over the chosen two.
Quantiser: absmean round-clip, one gamma per tensor.  erf GELU.  b_down is added once.
Dispatch: torch.where on the choice matrix of each expert, index_add back.
NOT a Butterfly layer: the residue is multiplied by its gate on the way INTO the expert and the expert's outputs are summed
unweighted; with the bias and the GELU in between, expert(g x) differs from g * expert(x).
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

RESTYPES = "ARNDCQEGHILKMFPSTWYVX-"


class Butterfly(nn.Module):
    """One table of angles for all experts; apply the rotation stack of a single expert."""

    def __init__(self, no_experts: int, c: int, no_layers: int):
        super().__init__()
        self.angles = nn.Parameter(0.5 * torch.randn(no_experts, no_layers, c // 2))

    def forward(self, s: torch.Tensor, expert: int) -> torch.Tensor:
        for t in self.angles[expert]:
            even, odd = s[..., 0::2], s[..., 1::2]
            s = torch.cat([t.cos() * even - t.sin() * odd, t.sin() * even + t.cos() * odd], dim=-1)
        return s


class ButterflyTransition(nn.Module):
    def __init__(self, c_s: int, n: int = 2, no_experts: int = 7, top_k: int = 2):
        super().__init__()
        c_hidden = n * c_s
        self.top_k, self.no_experts = top_k, no_experts
        self.layer_norm = nn.LayerNorm(c_s)
        self.linear_router = nn.Linear(c_s, no_experts)
        self.rot_in = Butterfly(no_experts, c_s, 4)
        self.rot_out = Butterfly(no_experts, c_hidden, 6)
        self.weight = nn.Parameter(torch.randn(c_hidden, c_s) / c_s ** 0.5)
        self.bias = nn.Parameter(0.3 * torch.randn(c_hidden))
        self.linear_2 = nn.Linear(c_hidden, c_s)

    def ternary(self):
        gamma = self.weight.abs().mean()
        q = (self.weight / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        return self.weight + (q - self.weight).detach() if self.training else q

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        shape = s.shape
        s = self.layer_norm(s).reshape(-1, shape[-1])
        probs = self.linear_router(s).softmax(dim=-1)
        g, pick = probs.topk(self.top_k, dim=-1)
        g = g / g.sum(dim=-1, keepdim=True)
        w = self.ternary()
        acc = s.new_zeros(s.shape[0], w.shape[0])
        for e in range(self.no_experts):
            res, slot = torch.where(pick == e)
            if res.numel() == 0:
                continue
            a = s[res] * g[res, slot].unsqueeze(-1)
            a = self.rot_in(a, e)
            a = F.gelu(F.linear(a, w, self.bias))
            acc.index_add_(0, res, self.rot_out(a, e))
        return self.linear_2(acc).reshape(shape)


class AttentionPairBias(nn.Module):
    """Gated self-attention over residues, biased by the pair representation."""

    def __init__(self, c_s: int, c_z: int, no_heads: int):
        super().__init__()
        self.h, self.c = no_heads, c_s // no_heads
        self.layer_norm_s = nn.LayerNorm(c_s)
        self.layer_norm_z = nn.LayerNorm(c_z)
        self.linear_qkv = nn.Linear(c_s, 3 * c_s)
        self.linear_b = nn.Linear(c_z, no_heads, bias=False)
        self.linear_g = nn.Linear(c_s, c_s)
        self.linear_o = nn.Linear(c_s, c_s)

    def forward(self, s, z):
        s = self.layer_norm_s(s)
        B, N, C = s.shape
        q, k, v = self.linear_qkv(s).view(B, N, 3, self.h, self.c).permute(2, 0, 3, 1, 4)
        b = self.linear_b(self.layer_norm_z(z)).permute(0, 3, 1, 2)
        a = torch.softmax(q @ k.transpose(-1, -2) * self.c ** -0.5 + b, dim=-1)
        o = (a @ v).transpose(1, 2).reshape(B, N, C)
        return self.linear_o(torch.sigmoid(self.linear_g(s)) * o)


class OuterSumUpdate(nn.Module):
    def __init__(self, c_s: int, c_z: int):
        super().__init__()
        self.left, self.right = nn.Linear(c_s, c_z), nn.Linear(c_s, c_z)
        self.out = nn.Linear(c_z, c_z)

    def forward(self, s):
        return self.out(F.relu(self.left(s)[:, :, None] + self.right(s)[:, None, :]))


class TrunkBlock(nn.Module):
    def __init__(self, c_s: int, c_z: int):
        super().__init__()
        self.attn = AttentionPairBias(c_s, c_z, no_heads=4)
        self.transition = ButterflyTransition(c_s)
        self.pair = OuterSumUpdate(c_s, c_z)

    def forward(self, s, z):
        s = s + self.attn(s, z)
        s = s + self.transition(s)
        return s, z + self.pair(s)


class ProteinTrunk(nn.Module):
    def __init__(self, c_s: int = 32, c_z: int = 12, no_blocks: int = 2, no_bins: int = 10, max_rel: int = 8):
        super().__init__()
        self.max_rel = max_rel
        self.aatype = nn.Embedding(len(RESTYPES), c_s)
        self.relpos = nn.Embedding(2 * max_rel + 1, c_z)
        self.blocks = nn.ModuleList([TrunkBlock(c_s, c_z) for _ in range(no_blocks)])
        self.norm = nn.LayerNorm(c_s)
        self.lm_head = nn.Linear(c_s, len(RESTYPES))
        self.disto_head = nn.Linear(c_z, no_bins)

    def forward(self, aatype, residue_index):
        s = self.aatype(aatype)
        rel = (residue_index[:, :, None] - residue_index[:, None, :]).clamp(-self.max_rel, self.max_rel)
        z = self.relpos(rel + self.max_rel)
        for block in self.blocks:
            s, z = block(s, z)
        disto = self.disto_head(z)
        return self.lm_head(self.norm(s)), disto + disto.transpose(1, 2)


def make():
    torch.manual_seed(2021)
    model = ProteinTrunk()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.add_(0.2 * torch.randn_like(m.weight))
                m.bias.add_(0.1 * torch.randn_like(m.bias))
            elif isinstance(m, nn.Linear) and m.bias is not None:
                m.bias.copy_(0.1 * torch.randn_like(m.bias))
            if isinstance(m, ButterflyTransition):
                m.linear_router.weight.normal_(0, 0.4)
    aatype = torch.randint(0, 20, (2, 22))
    residue_index = torch.arange(22).repeat(2, 1)
    residue_index[1, 11:] += 5
    return model.eval(), (aatype, residue_index)
