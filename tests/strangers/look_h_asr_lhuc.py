"""CTC acoustic model, a small Conformer (half-step FFN, attention, conv module, half-step FFN), both FFNs "butterfly experts".

Form       W_down . B(phi) . ( a_e * GELU( W_hat . B(theta) x + b_up ) ), tanh GELU, W_down ternary too, b_down weighted by the gate.
Rotation   pairs (2j, 2j+1), then a fixed permutation buffer that interleaves the two halves; forward on both sides; L_in 3, L_out 2.
Quantiser  round_clip, gamma = mean|W| per output row for both matrices.
Router     sigmoid scores, top-2 of 4, renormalised (DeepSeek-V3 without groups).
Dispatch   torch.vmap over the experts' parameters (dense), combined with one-hot gates by einsum.
NOT the papers' layer: every expert owns LHUC amplitudes a_e = 2 sigmoid(r_e) on its hidden units (as in speaker adaptation),
a learnt gain per channel between W_hat and B(phi), so an expert is more than its angles and its maps are not orthogonal.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def interleave_perm(n):
    return torch.arange(n).view(2, n // 2).t().reshape(-1)


def row_ternary(w):
    gamma = w.abs().mean(-1, keepdim=True)
    wq = torch.clamp(torch.round(w / (gamma + 1e-8)), -1.0, 1.0) * gamma
    return w + (wq - w).detach()


def givens_stack(x, angles, perm):
    """x: (N, D), angles: (L, D/2)"""
    for ang in angles.unbind(0):
        u, v = x.unflatten(-1, (-1, 2)).unbind(-1)
        c, s = ang.cos(), ang.sin()
        x = torch.stack((u * c - v * s, u * s + v * c), -1).flatten(-2)
        x = x[:, perm]
    return x


class ButterflyFeedForward(nn.Module):
    def __init__(self, idim, hidden_units, n_experts, topk, l_in=3, l_out=2):
        super().__init__()
        self.topk = topk
        self.n_experts = n_experts
        self.router = nn.Linear(idim, n_experts)
        self.w_up = nn.Parameter(torch.empty(hidden_units, idim))
        self.b_up = nn.Parameter(torch.empty(hidden_units))
        self.w_down = nn.Parameter(torch.empty(idim, hidden_units))
        self.b_down = nn.Parameter(torch.empty(idim))
        self.theta = nn.Parameter(torch.empty(n_experts, l_in, idim // 2))
        self.phi = nn.Parameter(torch.empty(n_experts, l_out, hidden_units // 2))
        self.lhuc = nn.Parameter(torch.empty(n_experts, hidden_units))
        self.register_buffer("perm_in", interleave_perm(idim))
        self.register_buffer("perm_out", interleave_perm(hidden_units))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.router.weight, std=0.4)
        nn.init.normal_(self.router.bias, std=0.1)
        nn.init.xavier_uniform_(self.w_up)
        nn.init.xavier_uniform_(self.w_down)
        nn.init.normal_(self.b_up, std=0.2)
        nn.init.normal_(self.b_down, std=0.2)
        nn.init.normal_(self.theta, std=0.5)
        nn.init.normal_(self.phi, std=0.5)
        nn.init.normal_(self.lhuc, std=0.5)

    def forward(self, xs):
        B, T, D = xs.shape
        x = xs.reshape(B * T, D)
        scores = self.router(x).sigmoid()
        val, idx = scores.topk(self.topk, dim=-1)
        val = val / val.sum(-1, keepdim=True)
        combine = torch.einsum("nk,nke->ne", val, F.one_hot(idx, self.n_experts).to(val.dtype))

        w_up, w_down = row_ternary(self.w_up), row_ternary(self.w_down)

        def expert(theta, phi, r):
            h = givens_stack(x, theta, self.perm_in)
            h = F.gelu(F.linear(h, w_up, self.b_up), approximate="tanh")
            h = h * (2.0 * torch.sigmoid(r))
            return F.linear(givens_stack(h, phi, self.perm_out), w_down, self.b_down)

        ys = torch.vmap(expert)(self.theta, self.phi, self.lhuc)
        return torch.einsum("ne,end->nd", combine, ys).view(B, T, D)


class RelativeBiasAttention(nn.Module):
    def __init__(self, size, heads, max_dist=16):
        super().__init__()
        self.h, self.d_k, self.max_dist = heads, size // heads, max_dist
        self.linear_qkv = nn.Linear(size, 3 * size)
        self.linear_out = nn.Linear(size, size)
        self.rel_bias = nn.Parameter(torch.randn(heads, 2 * max_dist + 1) * 0.3)

    def forward(self, x, mask):
        B, T, D = x.shape
        q, k, v = self.linear_qkv(x).view(B, T, 3, self.h, self.d_k).permute(2, 0, 3, 1, 4)
        pos = torch.arange(T, device=x.device)
        rel = (pos[None, :] - pos[:, None]).clamp(-self.max_dist, self.max_dist) + self.max_dist
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.d_k) + self.rel_bias[:, rel]
        scores = scores.masked_fill(~mask[:, None, None, :], -1e9)
        return self.linear_out((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D))


class ConvolutionModule(nn.Module):
    def __init__(self, channels, kernel_size=7):
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(channels, 2 * channels, 1)
        self.depthwise_conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.BatchNorm1d(channels)
        self.pointwise_conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x, mask):
        x = F.glu(self.pointwise_conv1(x.transpose(1, 2)), dim=1) * mask[:, None, :].to(x.dtype)
        x = F.silu(self.norm(self.depthwise_conv(x)))
        return self.pointwise_conv2(x).transpose(1, 2)


class ConformerLayer(nn.Module):
    def __init__(self, size, hidden, heads, n_experts, topk):
        super().__init__()
        self.ffn_macaron = ButterflyFeedForward(size, hidden, n_experts, topk)
        self.self_attn = RelativeBiasAttention(size, heads)
        self.conv = ConvolutionModule(size)
        self.ffn = ButterflyFeedForward(size, hidden, n_experts, topk)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(5))

    def forward(self, x, mask):
        x = x + 0.5 * self.ffn_macaron(self.norms[0](x))
        x = x + self.self_attn(self.norms[1](x), mask)
        x = x + self.conv(self.norms[2](x), mask)
        x = x + 0.5 * self.ffn(self.norms[3](x))
        return self.norms[4](x)


class ConformerCTC(nn.Module):
    def __init__(self, n_mels=20, size=32, hidden=64, heads=4, n_experts=4, topk=2, layers=1, vocab=29):
        super().__init__()
        self.subsample = nn.Conv1d(n_mels, size, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(ConformerLayer(size, hidden, heads, n_experts, topk) for _ in range(layers))
        self.ctc_lo = nn.Linear(size, vocab)

    def forward(self, feats, feat_lens):
        x = F.relu(self.subsample(feats.transpose(1, 2))).transpose(1, 2)
        lens = torch.div(feat_lens + 1, 2, rounding_mode="floor")
        mask = torch.arange(x.size(1), device=x.device)[None, :] < lens[:, None]
        for layer in self.layers:
            x = layer(x, mask)
        return self.ctc_lo(x).log_softmax(-1)


def make():
    torch.manual_seed(777)
    model = ConformerCTC()
    for m in model.modules():
        if isinstance(m, (nn.LayerNorm, nn.BatchNorm1d)):
            nn.init.uniform_(m.weight, 0.7, 1.3)
            nn.init.normal_(m.bias, std=0.1)
        if isinstance(m, nn.BatchNorm1d):
            m.running_mean.normal_(0.0, 0.2)
            m.running_var.uniform_(0.3, 1.0)
        if isinstance(m, (nn.Linear, nn.Conv1d)):
            nn.init.normal_(m.bias, std=0.1)
    feats = torch.randn(2, 44, 20).cumsum(1) * 0.3
    return model.eval(), (feats, torch.tensor([44, 35]))
