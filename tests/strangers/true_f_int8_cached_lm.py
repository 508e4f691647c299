"""Decoder-only LM whose Butterfly MoE keeps int8 ternary weights + scales, filled on .eval() and after loading a checkpoint.

form        ButterflyViT Algorithm 2: W_down . (B(phi)^T . GELU(W_hat . B(theta)^T x + b_up) + b_mid), GELU tanh
shuffle     interleave the two halves after the rotation; only its transpose is ever applied, so: de-interleave, then rotate back
handedness  transposed on both sides
L           3 in (width 32), 5 out (hidden 96 zero-padded to 128 once around the layers)
router      linear without bias, softmax over all 9 experts, then top-4, not renormalised
quantiser   W_hat: round with gamma per output row; W_down: ternary too, one gamma; both int8 buffers in eval
biases      on W_hat and behind B(phi), shared by the experts; none on W_down
dispatch    loop over the 4 slots, one_hot masks, einsum to [E, T, d], W_down by torch.bmm
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


@torch.no_grad()
def ternarize(w, per_row):
    gamma = w.abs().mean(dim=1, keepdim=True) if per_row else w.abs().mean().reshape(1, 1)
    return torch.round(w / (gamma + 1e-8)).clamp_(-1, 1).to(torch.int8), gamma


class SteTernary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, per_row):
        q, gamma = ternarize(w, per_row)
        return q.to(w.dtype) * gamma

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def butterfly_t(x, cos, sin):
    """x [E, T, n], cos/sin [E, L, n/2]; static shapes only, so it fuses well."""
    E, T, n = x.shape
    L = cos.shape[1]
    for i in range(L):
        pair = x.view(E, T, n // 2, 2).transpose(-1, -2).reshape(E, T, n // 2, 2)
        a, b = pair.unbind(-1)
        c, s = cos[:, L - 1 - i].unsqueeze(1), sin[:, L - 1 - i].unsqueeze(1)
        x = torch.stack((a * c + b * s, b * c - a * s), dim=-1).view(E, T, n)
    return x


class QuantButterflyMoE(nn.Module):
    def __init__(self, dim, hidden, num_experts, top_k, layers_in, layers_out):
        super().__init__()
        self.dim, self.hidden, self.num_experts, self.top_k = dim, hidden, num_experts, top_k
        self.pad_in = 1 << (dim - 1).bit_length()
        self.pad_out = 1 << (hidden - 1).bit_length()
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.theta = nn.Parameter(torch.randn(num_experts, layers_in, self.pad_in // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(num_experts, layers_out, self.pad_out // 2) * 0.5)
        self.w_up = nn.Parameter(torch.randn(hidden, dim) * dim ** -0.5)
        self.w_down = nn.Parameter(torch.randn(dim, hidden) * hidden ** -0.5)
        self.b_up = nn.Parameter(torch.randn(hidden) * 0.1)
        self.b_mid = nn.Parameter(torch.randn(hidden) * 0.1)
        self.register_buffer("up_q", torch.zeros(hidden, dim, dtype=torch.int8), persistent=False)
        self.register_buffer("up_scale", torch.ones(hidden, 1), persistent=False)
        self.register_buffer("down_q", torch.zeros(dim, hidden, dtype=torch.int8), persistent=False)
        self.register_buffer("down_scale", torch.ones(1, 1), persistent=False)
        self.register_load_state_dict_post_hook(lambda mod, _: mod._refresh())

    def _refresh(self):
        self.up_q, self.up_scale = ternarize(self.w_up, per_row=True)
        self.down_q, self.down_scale = ternarize(self.w_down, per_row=False)

    def train(self, mode=True):
        super().train(mode)
        if not mode:
            self._refresh()
        return self

    def forward(self, x):
        if self.training:
            return self._moe(x, SteTernary.apply(self.w_up, True), SteTernary.apply(self.w_down, False))
        return self._eval_forward(x)

    @torch.no_grad()
    def _eval_forward(self, x):
        up = self.up_q.to(x.dtype) * self.up_scale
        down = self.down_q.to(x.dtype) * self.down_scale
        return self._moe(x, up, down)

    def _experts(self, x, up, down):
        x = F.pad(x, (0, self.pad_in - self.dim))
        x = butterfly_t(x, self.theta.cos(), self.theta.sin())[..., : self.dim]
        h = F.gelu(torch.matmul(x, up.t()) + self.b_up, approximate="tanh")
        h = F.pad(h, (0, self.pad_out - self.hidden))
        h = butterfly_t(h, self.phi.cos(), self.phi.sin())[..., : self.hidden] + self.b_mid
        return torch.bmm(h, down.t().unsqueeze(0).expand(self.num_experts, -1, -1))

    def _moe(self, x, up, down):
        shape = x.shape
        x = x.reshape(-1, self.dim)
        probs = self.router(x).softmax(dim=-1)
        gate, idx = probs.topk(self.top_k, dim=-1)
        out = torch.zeros_like(x)
        for s in range(self.top_k):
            mask = F.one_hot(idx[:, s], self.num_experts).to(x.dtype)
            ye = self._experts(torch.einsum("te,td->etd", mask, x), up, down)
            out = out + torch.einsum("te,etd->td", mask * gate[:, s : s + 1], ye)
        return out.view(shape)


class CausalAttention(nn.Module):
    def __init__(self, dim, n_head, n_kv):
        super().__init__()
        self.n_head, self.n_kv, self.hd = n_head, n_kv, dim // n_head
        self.wq = nn.Linear(dim, n_head * self.hd, bias=False)
        self.wkv = nn.Linear(dim, 2 * n_kv * self.hd, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        q = self.wq(x).view(B, T, self.n_head, self.hd).transpose(1, 2)
        k, v = self.wkv(x).view(B, T, 2 * self.n_kv, self.hd).transpose(1, 2).chunk(2, dim=1)
        rep = self.n_head // self.n_kv
        k, v = k.repeat_interleave(rep, dim=1), v.repeat_interleave(rep, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(B, T, C))


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.2 * torch.randn(dim))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class DecoderLayer(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.ln1 = RMSNorm(dim)
        self.attn = CausalAttention(dim, n_head=4, n_kv=2)
        self.ln2 = RMSNorm(dim)
        self.ffn = QuantButterflyMoE(dim, hidden, num_experts=9, top_k=4, layers_in=3, layers_out=5)

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class TinyLM(nn.Module):
    def __init__(self, vocab=61, ctx=24, dim=32, hidden=96, n_layer=2):
        super().__init__()
        self.tok = nn.Embedding(vocab, dim)
        self.pos = nn.Parameter(torch.randn(ctx, dim) * 0.3)
        self.layers = nn.ModuleList([DecoderLayer(dim, hidden) for _ in range(n_layer)])
        self.norm = RMSNorm(dim)

    def forward(self, tokens):
        x = self.tok(tokens) + self.pos[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.tok.weight)


def make():
    torch.manual_seed(125)
    model = TinyLM()
    with torch.no_grad():
        for layer in model.layers:
            layer.ffn.router.weight.normal_(0, 0.35)
    return model.eval(), (torch.randint(0, 61, (2, 20)),)
