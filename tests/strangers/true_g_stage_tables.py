"""Text classifier for a small target: rotations unrolled at init into dense stage tables, weights kept as int8 codes with scales.

Shuffle:     deinterleave (evens, then odds), applied before each rotation (equation 4): stage_l = G(angle_l) P.
Handedness:  plain B(theta) on the input side, the transpose B(phi)^T on the output side (same tables read backwards).
Depth:       L_in = 2, L_out = 4;  d = 32, F = 64, no padding needed.  Tables are float buffers [E, L, n, n]; no angles are kept.
Router:      linear with bias, top-4 of 9, softmax over the four chosen logits.
Quantiser:   done offline: W_hat int8 codes {-1, 0, 1} with one absmean scale; W_down 8-bit integer codes with a scale per row.
Form:        W_down . GELU_erf(B(phi)^T . (W_hat . B(theta) x + b_mid)): the GELU after the output rotation;
             b_mid between W_hat and the rotation; W_down's bias added once after the sum over experts (so W_down is too).
Dispatch:    the tables of each token's chosen experts are gathered, [T, K, n, n], and applied by chained einsum.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


# ---------------------------------------------------------------- offline tools

def even_odd_matrix(n):
    P = torch.zeros(n, n)
    for j in range(n // 2):
        P[j, 2 * j] = 1.0
        P[n // 2 + j, 2 * j + 1] = 1.0
    return P


def block_rotation(angles):
    """n / 2 angles -> block-diagonal [n, n]."""
    blocks = [torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in angles.tolist()]
    return torch.block_diag(*blocks)


def stage_table(angles):
    """[E, L, n / 2] -> [E, L, n, n]; entry (e, l) is the whole layer l of expert e: shuffle, then rotation."""
    num_experts, num_layers, half = angles.shape
    P = even_odd_matrix(2 * half)
    table = torch.empty(num_experts, num_layers, 2 * half, 2 * half)
    for e in range(num_experts):
        for l in range(num_layers):
            table[e, l] = block_rotation(angles[e, l]) @ P
    return table


def to_ternary(w):
    scale = w.abs().mean()
    return torch.round(w / (scale + 1e-8)).clamp(-1, 1).to(torch.int8), scale


def to_int8(w):
    scale = w.abs().amax(dim=1) / 127.0
    return torch.round(w / scale[:, None]).clamp(-127, 127).to(torch.int8), scale


# ---------------------------------------------------------------- runtime

class QLinear(nn.Module):
    """int8 weight codes, float scale (one, or one a row), float bias."""

    def __init__(self, in_features, out_features, convert, bias=True):
        super().__init__()
        codes, scale = convert(torch.randn(out_features, in_features) * 1.2 / math.sqrt(in_features))
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", 0.2 * torch.randn(out_features) if bias else None)

    def forward(self, x):
        acc = torch.matmul(x, self.codes.to(x.dtype).t())
        y = acc * self.scale
        return y if self.bias is None else y + self.bias


class StagedExperts(nn.Module):
    def __init__(self, d_model, d_ff, num_experts, top_k, layers_in, layers_out):
        super().__init__()
        self.top_k, self.layers_in, self.layers_out = top_k, layers_in, layers_out
        self.register_buffer("stage_in", stage_table(0.5 * torch.randn(num_experts, layers_in, d_model // 2)))
        self.register_buffer("stage_out", stage_table(0.5 * torch.randn(num_experts, layers_out, d_ff // 2)))
        self.register_buffer("router_w", 0.5 * torch.randn(num_experts, d_model))
        self.register_buffer("router_b", 0.3 * torch.randn(num_experts))
        self.up = QLinear(d_model, d_ff, to_ternary)
        self.down = QLinear(d_ff, d_model, to_int8)

    def forward(self, x):
        """[T, d] -> [T, d]"""
        logits = torch.addmm(self.router_b, x, self.router_w.t())
        val, sel = torch.topk(logits, self.top_k, dim=1)
        gate = torch.softmax(val, dim=1)

        h = x.unsqueeze(1).expand(-1, self.top_k, -1)                              # [T, K, d]
        for l in range(self.layers_in):
            h = torch.einsum("tkij,tkj->tki", self.stage_in[sel, l], h)
        h = self.up(h)                                                             # [T, K, F]
        for l in range(self.layers_out - 1, -1, -1):
            h = torch.einsum("tkji,tkj->tki", self.stage_out[sel, l], h)
        h = torch.einsum("tk,tki->ti", gate, F.gelu(h))
        return self.down(h)


class GatedMixer(nn.Module):
    """Cheap token mixing: a centred depthwise conv over the words with a sigmoid gate."""

    def __init__(self, d_model, window=5):
        super().__init__()
        self.conv = nn.Conv1d(d_model, d_model, window, padding=window // 2, groups=d_model)
        self.proj = QLinear(d_model, 2 * d_model, to_int8)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return self.conv(value.transpose(1, 2)).transpose(1, 2) * torch.sigmoid(gate)


class Layer(nn.Module):
    def __init__(self, d_model, d_ff, **kw):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.mixer = GatedMixer(d_model)
        self.experts = StagedExperts(d_model, d_ff, **kw)

    def forward(self, x):
        x = x + self.mixer(self.n1(x))
        batch, words, d = x.shape
        return x + self.experts(self.n2(x).reshape(batch * words, d)).reshape(batch, words, d)


class TextClassifier(nn.Module):
    def __init__(self, vocab=120, max_words=24, d_model=32, d_ff=64, depth=2, classes=5, **kw):
        super().__init__()
        self.word = nn.Embedding(vocab, d_model)
        self.place = nn.Embedding(max_words, d_model)
        self.layers = nn.ModuleList(Layer(d_model, d_ff, **kw) for _ in range(depth))
        self.norm = nn.LayerNorm(d_model)
        self.score = nn.Linear(d_model, 1)
        self.head = nn.Linear(d_model, classes)

    def forward(self, ids):
        x = self.word(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        attention = torch.softmax(self.score(x).squeeze(-1), dim=1)
        return self.head(torch.einsum("bw,bwd->bd", attention, x))


def make():
    torch.manual_seed(604)
    net = TextClassifier(num_experts=9, top_k=4, layers_in=2, layers_out=4)
    for m in net.modules():
        if isinstance(m, nn.LayerNorm):
            nn.init.uniform_(m.weight, 0.7, 1.3)
            nn.init.normal_(m.bias, std=0.2)
    return net.eval(), (torch.randint(0, 120, (2, 21)),)
