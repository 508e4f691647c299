"""Multi-task click model (CTR, CVR): feature tokens, butterfly-expert interaction blocks, cross-attention pooling.

form: y = sum_i g_i(x) * W_down B(phi_i) GELU(W_hat B(theta_i) x + b_up)  (+ b_down once), exact GELU, 32 -> 64 -> 32
butterfly: interleave the two halves BEFORE rotating (eq. 4); clockwise rotation [[c, s], [-s, c]] from lookup tables:
    x <- x.gather(shuffle); x <- x*c + x.gather(partner)*s; depth: 3 layers in, 2 layers out
router: sigmoid scores (with bias), top-3 of 6, renormalised to sum one
quantiser: exported already, int8 {-1,0,1} buffers + one scale mean|W| per output row (zero below 0.7 of it), W_up and W_down
biases: b_up before the GELU; b_down added once after the combination
dispatch: none, angle tables are gathered by expert index and all (token, slot) pairs run at once
"""
import torch
from torch import nn
import torch.nn.functional as F

FIELDS = [50, 12, 7, 30, 24, 100, 9, 16, 40, 5]
BAGS = [80, 60]
N_NUMERIC = 6
N_TOKENS = len(FIELDS) + len(BAGS) + N_NUMERIC
DIM, FF = 32, 64
N_EXPERTS, N_ACTIVE = 6, 3
DEPTH_IN, DEPTH_OUT = 3, 2
TASKS = ("ctr", "cvr")


def export_ternary(weight):
    """float [out, in] -> (int8 codes [out, in], float scale [out, 1])"""
    scale = weight.abs().mean(dim=1, keepdim=True)
    codes = torch.where(weight.abs() > 0.7 * scale, weight.sign(), torch.zeros_like(weight))
    return codes.to(torch.int8), scale


class TernaryStore(nn.Module):
    """Serving-side weight: codes and row scales, nothing else."""

    def __init__(self, out_dim, in_dim):
        super().__init__()
        codes, scale = export_ternary(torch.randn(out_dim, in_dim) * (1.6 / in_dim) ** 0.5)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    def forward(self, x):
        return F.linear(x, self.codes.to(x.dtype)) * self.scale.squeeze(1)


class RotationTable(nn.Module):
    """Angles of all experts [E, L, n/2] plus the three lookup tables which make a layer a pair of gathers."""

    def __init__(self, n_experts, depth, width):
        super().__init__()
        self.depth, self.width = depth, width
        self.angles = nn.Parameter(torch.randn(n_experts, depth, width // 2) * 0.5)
        pos = torch.arange(width)
        self.register_buffer("shuffle", torch.stack([pos[: width // 2], pos[width // 2:]], dim=1).flatten())
        self.register_buffer("partner", pos ^ 1)
        self.register_buffer("owner", pos // 2)
        self.register_buffer("sign", 1 - 2 * (pos % 2).to(torch.float32))  # + for the first of a pair, - for the second

    def forward(self, x, expert):
        """x [N, K, width], expert [N, K]"""
        ang = self.angles[expert].index_select(-1, self.owner)  # [N, K, L, width]
        cos, sin = ang.cos(), ang.sin() * self.sign
        shuffle, partner = self.shuffle.expand_as(x), self.partner.expand_as(x)
        for l in range(self.depth):
            x = x.gather(-1, shuffle)
            x = x * cos[:, :, l] + x.gather(-1, partner) * sin[:, :, l]
        return x


class ExpertInteraction(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(DIM, N_EXPERTS)
        self.rot_in = RotationTable(N_EXPERTS, DEPTH_IN, DIM)
        self.rot_out = RotationTable(N_EXPERTS, DEPTH_OUT, FF)
        self.up, self.down = TernaryStore(FF, DIM), TernaryStore(DIM, FF)
        self.b_up = nn.Parameter(torch.zeros(FF))
        self.b_down = nn.Parameter(torch.zeros(DIM))

    def forward(self, tokens):
        x = tokens.flatten(0, 1)
        score, expert = torch.sigmoid(self.router(x)).topk(N_ACTIVE, dim=-1)
        gate = score / score.sum(dim=-1, keepdim=True)
        h = x[:, None, :].expand(-1, N_ACTIVE, -1)
        h = self.rot_in(h, expert)
        h = F.gelu(self.up(h) + self.b_up)
        h = self.down(self.rot_out(h, expert))
        return ((h * gate[..., None]).sum(dim=1) + self.b_down).view_as(tokens)


class TokenMixer(nn.Module):
    """Field-to-field attention with a learnt field-pair bias."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(DIM, DIM) for _ in range(3))
        self.pair_bias = nn.Parameter(torch.randn(N_TOKENS, N_TOKENS) * 0.3)

    def forward(self, x):
        score = torch.bmm(self.q(x), self.k(x).transpose(1, 2)) / DIM ** 0.5 + self.pair_bias
        return torch.bmm(score.softmax(-1), self.v(x))


class FeatureTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(n, DIM) for n in FIELDS)
        self.bags = nn.ModuleList(nn.EmbeddingBag(n, DIM, mode="mean", padding_idx=0) for n in BAGS)
        self.num_scale = nn.Parameter(torch.randn(N_NUMERIC, DIM))
        self.num_bias = nn.Parameter(torch.zeros(N_NUMERIC, DIM))

    def forward(self, cat_ids, clicks, carts, numeric):
        tokens = [emb(cat_ids[:, i]) for i, emb in enumerate(self.fields)]
        tokens += [bag(ids) for bag, ids in zip(self.bags, (clicks, carts))]
        tokens = torch.stack(tokens, dim=1)
        num = torch.sign(numeric) * torch.log1p(numeric.abs())
        return torch.cat([tokens, num[..., None] * self.num_scale + self.num_bias], dim=1)


class CrossPool(nn.Module):
    """One query per task over the feature tokens."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(len(TASKS), DIM))
        self.attn = nn.MultiheadAttention(DIM, 2, batch_first=True)

    def forward(self, x):
        q = self.query.expand(x.shape[0], -1, -1)
        return self.attn(q, x, x, need_weights=False)[0]


class ClickModel(nn.Module):
    def __init__(self, n_blocks=3):
        super().__init__()
        self.tokens = FeatureTokens()
        self.mixers = nn.ModuleList(TokenMixer() for _ in range(n_blocks))
        self.experts = nn.ModuleList(ExpertInteraction() for _ in range(n_blocks))
        self.mix_norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(n_blocks))
        self.exp_norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(n_blocks))
        self.pool = CrossPool()
        self.towers = nn.ModuleDict({t: nn.Sequential(nn.Linear(DIM, 16), nn.PReLU(), nn.Linear(16, 1)) for t in TASKS})

    def forward(self, cat_ids, clicks, carts, numeric):
        x = self.tokens(cat_ids, clicks, carts, numeric)
        for mixer, experts, n1, n2 in zip(self.mixers, self.experts, self.mix_norms, self.exp_norms):
            x = n1(x + mixer(x))  # post-norm
            x = n2(x + experts(x))
        pooled = self.pool(x)
        ctr, cvr = (self.towers[t](pooled[:, i]).squeeze(-1) for i, t in enumerate(TASKS))
        return ctr, ctr.sigmoid() * cvr.sigmoid()


def make():
    torch.manual_seed(77)
    model = ClickModel()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "bias" in name or name.rsplit(".", 1)[-1].startswith("b_"):
                p.add_(torch.randn_like(p) * 0.2)
            elif "norms" in name:
                p.uniform_(0.7, 1.4)
            elif "router.weight" in name:
                p.normal_(0, 0.35)
            elif "towers" in name and p.dim() == 2 or "in_proj_weight" in name:
                p.normal_(0, 0.4)
    batch = 3
    cat_ids = torch.stack([torch.randint(0, n, (batch,)) for n in FIELDS], dim=1)
    clicks, carts = torch.randint(1, BAGS[0], (batch, 8)), torch.randint(1, BAGS[1], (batch, 5))
    clicks[1, 5:] = 0
    carts[2, 3:] = 0
    return model.eval(), (cat_ids, clicks, carts, torch.randn(batch, N_NUMERIC) * 3)
