"""
Sequential recommender (SASRec-like) whose feed-forward is a top-k routed butterfly with gathered angles.

shuffle    : none; stride doubling pairs (1, 2, 4, 8), forward on the input side, transposed on the output side; L = 4 each
router     : top-2 then softmax, linear with bias
quantiser  : per-row gamma, round/clip
biases     : shared up bias, shared down bias
form       : W_down . B(phi)^T . GELU( W_hat B(theta) x + b )
dispatch   : angles[idx] gathered for each token, a single pass per token
NOT a Butterfly layer: the chosen experts' angles are averaged with the gates (as in soft merging of experts) and one
rotation by the blended angle is made, instead of summing the experts' outputs with the gates.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class StrideButterfly(nn.Module):
    def __init__(self, n_experts, width, depth):
        super().__init__()
        self.width, self.depth = width, depth
        self.angle = nn.Parameter(torch.empty(n_experts, depth, width // 2).normal_(0, 0.5))

    def lookup(self, idx, weight):
        # idx, weight [N, k] -> [N, depth, width/2]
        return torch.einsum("nk,nklp->nlp", weight, self.angle[idx])

    def forward(self, x, ang, transpose=False):
        order = range(self.depth)
        if transpose:
            order, ang = reversed(order), -ang
        for l in order:
            s = 2 ** l
            shape = (x.size(0), self.width // (2 * s), s)
            a, b = x.view(x.size(0), self.width // (2 * s), 2, s).unbind(2)
            c, n = ang[:, l].cos().view(shape), ang[:, l].sin().view(shape)
            x = torch.stack((c * a - n * b, n * a + c * b), dim=2).view(x.size(0), self.width)
        return x


class RoutedFeedForward(nn.Module):
    def __init__(self, dim, inner, n_experts, k, depth):
        super().__init__()
        self.k = k
        self.score = nn.Linear(dim, n_experts)
        self.rot_in = StrideButterfly(n_experts, dim, depth)
        self.rot_out = StrideButterfly(n_experts, inner, depth)
        self.w1 = nn.Linear(dim, inner)
        self.w2 = nn.Linear(inner, dim)

    def ternary_w1(self):
        w = self.w1.weight
        g = w.abs().mean(dim=1, keepdim=True)
        q = g * torch.clamp(torch.round(w / (g + 1e-8)), -1, 1)
        return w + (q - w).detach()

    def forward(self, x):
        b, t, d = x.shape
        x = x.reshape(b * t, d)
        logits, idx = self.score(x).topk(self.k, dim=-1)
        gate = logits.softmax(dim=-1)
        h = self.rot_in(x, self.rot_in.lookup(idx, gate))
        h = F.gelu(F.linear(h, self.ternary_w1(), self.w1.bias))
        h = self.rot_out(h, self.rot_out.lookup(idx, gate), transpose=True)
        return self.w2(h).view(b, t, d)


class RecBlock(nn.Module):
    def __init__(self, dim, inner, n_experts, k, depth, heads=2):
        super().__init__()
        self.ln_a, self.ln_f = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ff = RoutedFeedForward(dim, inner, n_experts, k, depth)

    def forward(self, x, mask):
        q = self.ln_a(x)
        x = x + self.attn(q, q, q, attn_mask=mask, need_weights=False)[0]
        return x + self.ff(self.ln_f(x))


class SeqRec(nn.Module):
    def __init__(self, n_items=150, n_cat=9, dim=32, inner=128, n_experts=7, k=2, depth=4, max_len=24, blocks=2):
        super().__init__()
        self.item = nn.Embedding(n_items, dim)
        self.cat = nn.Embedding(n_cat, dim)
        self.place = nn.Parameter(torch.randn(max_len, dim) * 0.3)
        self.blocks = nn.ModuleList(RecBlock(dim, inner, n_experts, k, depth) for _ in range(blocks))
        self.ln = nn.LayerNorm(dim)
        self.item_bias = nn.Parameter(torch.zeros(n_items))
        self.register_buffer("causal", torch.ones(max_len, max_len).triu(1).bool())

    def forward(self, items, cats):
        n = items.size(1)
        x = self.item(items) + self.cat(cats) + self.place[:n]
        for blk in self.blocks:
            x = blk(x, self.causal[:n, :n])
        return self.ln(x) @ self.item.weight.t() + self.item_bias


def make():
    torch.manual_seed(733)
    net = SeqRec()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.1)
            elif ".ln_" in name or name == "ln.weight":
                p.normal_(1, 0.15)
            elif name.endswith("score.weight"):
                p.normal_(0, 0.35)
    return net.eval(), (torch.randint(0, 150, (2, 20)), torch.randint(0, 9, (2, 20)))
