"""Sentence-pair encoder (BERT-like, post-LN) whose feed-forward is a frozen ternary projection shared by six named
orthogonal adapters, in the manner of OFT/BOFT fine-tuning code.

form        W_down . GELU_tanh( B(phi_e) . W_hat . B(theta_e)^T x ): equation 3 followed by the shared float W_down, GELU after B(phi)
butterfly   factors P_l^T . blockdiag(2x2 Givens) . P_l, stride-doubling pairs (1, 2, 4, ...), no other shuffle; L = 3 in, 4 out
handedness  transposed on the input, plain on the output; widths 48 -> 64 and 96 -> 128, zero-padded, expressed as the leading block
quantiser   round_clip, gamma = mean |W| per output row (frozen buffer); only bias is that of W_down, added once per token
router      softmax over all adapters, then top-2, not renormalised
dispatch    merge every adapter into a dense (F, d) weight, index by the chosen ids, bmm
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

ADAPTERS = ("law", "bio", "news", "code", "math", "chat")


class ButterflyOrthogonal(nn.Module):
    """Named orthogonal matrices over `features` channels, each a product of `n_factors` butterfly factors."""

    def __init__(self, features: int, n_factors: int):
        super().__init__()
        self.features = features
        self.size = 1 << max(1, (features - 1).bit_length())
        if n_factors > int(math.log2(self.size)):
            raise ValueError(f"n_factors={n_factors} is too large for size {self.size}")
        self.n_factors = n_factors
        self.butterfly_theta = nn.ParameterDict({})

        P = torch.zeros(n_factors, self.size, self.size)
        for level in range(n_factors):
            P[level] = self.perm2mat(self.butterfly_perm(level))
        self.register_buffer("butterfly_P", P, persistent=False)

    def butterfly_perm(self, level: int) -> torch.Tensor:
        stride = 2 ** level
        order = []
        for i in range(self.size):
            if not i & stride:
                order += [i, i + stride]
        return torch.tensor(order)

    @staticmethod
    def perm2mat(indices: torch.Tensor) -> torch.Tensor:
        n = len(indices)
        mat = torch.zeros(n, n)
        for i, idx in enumerate(indices):
            mat[i, idx] = 1
        return mat

    def update_layer(self, adapter_name: str, init_std: float = 0.5):
        self.butterfly_theta[adapter_name] = nn.Parameter(torch.randn(self.n_factors, self.size // 2) * init_std)

    def givens_batch(self, theta: torch.Tensor) -> torch.Tensor:
        c, s = theta.cos(), theta.sin()
        return torch.stack([torch.stack([c, -s], dim=-1), torch.stack([s, c], dim=-1)], dim=-2)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        orth_rotate = self.givens_batch(self.butterfly_theta[adapter_name])
        block_diagonal = torch.stack([torch.block_diag(*torch.unbind(b)) for b in orth_rotate])
        mat_batch = torch.bmm(block_diagonal, self.butterfly_P)
        mat_batch = torch.bmm(self.butterfly_P.permute(0, 2, 1), mat_batch)
        mat = mat_batch[0]
        for i in range(1, mat_batch.shape[0]):
            mat = mat_batch[i] @ mat
        return mat[: self.features, : self.features]


class ButterflyAdapterMLP(nn.Module):
    def __init__(self, hidden, intermediate, adapters=ADAPTERS, top_k=2, n_in=3, n_out=4):
        super().__init__()
        self.top_k = top_k
        self.active_adapters = list(adapters)
        self.register_buffer("base_weight", torch.randn(intermediate, hidden) / math.sqrt(hidden))
        self.rot_in = ButterflyOrthogonal(hidden, n_in)
        self.rot_out = ButterflyOrthogonal(intermediate, n_out)
        for name in self.active_adapters:
            self.rot_in.update_layer(name)
            self.rot_out.update_layer(name)
        self.adapter_router = nn.Linear(hidden, len(self.active_adapters), bias=False)
        self.output = nn.Linear(intermediate, hidden)

    def quantized_base(self):
        w = self.base_weight
        gamma = w.abs().mean(dim=1, keepdim=True)
        w_q = gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)
        return w + (w_q - w).detach()

    def merged(self):
        base = self.quantized_base()
        return torch.stack([
            self.rot_out.get_delta_weight(name) @ base @ self.rot_in.get_delta_weight(name).t()
            for name in self.active_adapters
        ])

    def forward(self, hidden_states):
        shape = hidden_states.shape
        x = hidden_states.reshape(-1, shape[-1])
        probs = F.softmax(self.adapter_router(x), dim=-1)
        weight, chosen = probs.topk(self.top_k, dim=-1)

        w_sel = self.merged()[chosen.flatten()]
        x_sel = x.repeat_interleave(self.top_k, dim=0).unsqueeze(-1)
        h = torch.bmm(w_sel, x_sel).squeeze(-1)
        h = F.gelu(h, approximate="tanh").view(x.shape[0], self.top_k, -1)
        h = torch.bmm(weight.unsqueeze(1), h).squeeze(1)
        return self.output(h).view(shape)


class SelfAttention(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads, self.head_dim = heads, hidden // heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.dense = nn.Linear(hidden, hidden)

    def transpose_for_scores(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_dim).permute(0, 2, 1, 3)

    def forward(self, x, extended_mask):
        q, k, v = (self.transpose_for_scores(f(x)) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim) + extended_mask
        ctx = (scores.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(x.shape)
        return self.dense(ctx)


class EncoderLayer(nn.Module):
    def __init__(self, hidden, intermediate, heads):
        super().__init__()
        self.attention = SelfAttention(hidden, heads)
        self.attention_norm = nn.LayerNorm(hidden, eps=1e-12)
        self.mlp = ButterflyAdapterMLP(hidden, intermediate)
        self.mlp_norm = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, x, mask):
        x = self.attention_norm(x + self.attention(x, mask))
        return self.mlp_norm(x + self.mlp(x))


class PairClassifier(nn.Module):
    def __init__(self, vocab=120, hidden=48, intermediate=96, heads=4, layers=3, max_len=32, num_labels=3):
        super().__init__()
        self.word = nn.Embedding(vocab, hidden)
        self.position = nn.Embedding(max_len, hidden)
        self.token_type = nn.Embedding(2, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.layer = nn.ModuleList([EncoderLayer(hidden, intermediate, heads) for _ in range(layers)])
        self.pooler = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, num_labels)

    def forward(self, input_ids, token_type_ids, attention_mask):
        pos = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.word(input_ids) + self.position(pos) + self.token_type(token_type_ids))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layer:
            x = layer(x, mask)
        keep = attention_mask[:, :, None].to(x.dtype)
        sentence = (torch.tanh(self.pooler(x)) * keep).sum(1) / keep.sum(1)
        return self.classifier(sentence)


def make():
    torch.manual_seed(101)
    model = PairClassifier()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.normal_(0, 0.1)
            elif "adapter_router" in name:
                p.normal_(0, 0.5)
    ids = torch.randint(0, 120, (2, 18))
    types = (torch.arange(18) >= 9).long().expand(2, 18).clone()
    mask = torch.ones(2, 18, dtype=torch.long)
    mask[1, 15:] = 0
    return model.eval(), (ids, types, mask)
