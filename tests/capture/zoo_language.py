"""Small language models as people write them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH, HEADS, LENGTH = 13, 16, 4, 6
HEAD = WIDTH // HEADS


class NanoGPT(nn.Module):
    """nanoGPT: learned positions, a mask buffer cut to the length, a tied head, the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.ln_1, self.ln_2, self.ln_f = (nn.LayerNorm(WIDTH, bias=False) for _ in range(3))
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.c_fc, self.c_out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.register_buffer("bias", torch.tril(torch.ones(8, 8)).view(1, 1, 8, 8))
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        _, t = idx.size()
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.wte(idx) + self.wpe(pos)
        b, t, c = x.size()
        q, k, v = self.c_attn(self.ln_1(x)).split(c, dim=2)
        q, k, v = (y.view(b, t, HEADS, c // HEADS).transpose(1, 2) for y in (q, k, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        y = (F.softmax(att, dim=-1) @ v).transpose(1, 2).contiguous().view(b, t, c)
        x = x + self.c_proj(y)
        x = self.ln_f(x + self.c_out(F.gelu(self.c_fc(self.ln_2(x)))))
        return self.lm_head(x[:, [-1], :])


class HandRMSNorm(nn.Module):
    """RMSNorm written out, computed in float32 whatever the input is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)
        return y.type_as(x) * self.weight


def frequencies() -> Tensor:
    return 1.0 / (100.0 ** (torch.arange(0, HEAD, 2).float() / HEAD))


class Llama(nn.Module):
    """A LLaMA block: RMSNorm, rotary positions in one of three forms, shared keys, SwiGLU."""

    def __init__(self, rope: str = "complex", repeat: str = "expand") -> None:
        super().__init__()
        self.rope, self.repeat = rope, repeat
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.attention_norm, self.ffn_norm = HandRMSNorm(WIDTH), HandRMSNorm(WIDTH)
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.wq, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))
        self.w1, self.w3 = (nn.Linear(WIDTH, 24, bias=False) for _ in range(2))
        self.w2 = nn.Linear(24, WIDTH, bias=False)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)
        angles = torch.outer(torch.arange(2 * LENGTH), frequencies()).float()
        self.register_buffer("phases", torch.polar(torch.ones_like(angles), angles))

    def rotated(self, x: Tensor) -> Tensor:  # x: [B, T, heads, HEAD]
        t = x.shape[1]
        if self.rope == "complex":
            z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
            phases = self.phases[:t].view(1, t, 1, -1)
            return torch.view_as_real(z * phases).flatten(3).type_as(x)
        position = torch.arange(t, device=x.device).type_as(frequencies())
        angles = torch.einsum("i,j->ij", position, frequencies())
        if self.rope == "half":
            angles = torch.cat((angles, angles), dim=-1)[None, :, None, :]
            first, second = x[..., : HEAD // 2], x[..., HEAD // 2 :]
            return x * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)

    def repeated(self, x: Tensor) -> Tensor:
        if self.repeat == "interleave":
            return torch.repeat_interleave(x, 2, dim=2)
        b, t, n, d = x.shape
        return x[:, :, :, None, :].expand(b, t, n, 2, d).reshape(b, t, n * 2, d)

    def attend(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.rotated(self.wq(x).view(b, t, HEADS, HEAD))
        k, v = (w(x).view(b, t, HEADS // 2, HEAD) for w in (self.wk, self.wv))
        k = self.rotated(k)
        if self.repeat == "enable_gqa":
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            q, k, v = (y.transpose(1, 2) for y in (q, self.repeated(k), self.repeated(v)))
            mask = torch.full((t, t), torch.finfo(x.dtype).min, device=x.device)
            mask = torch.triu(mask, diagonal=1)
            scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(HEAD) + mask
            y = torch.matmul(F.softmax(scores.float(), dim=-1).type_as(q), v)
        return self.wo(y.transpose(1, 2).contiguous().view(b, t, -1))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        h = h + self.attend(self.attention_norm(h))
        y = self.ffn_norm(h)
        h = h + self.w2(F.silu(self.w1(y)) * self.w3(y))
        return self.output(self.norm(h)).float()


class PaddedLM(nn.Module):
    """A decoder with a padding mask: positions by a running sum, a mask of finfo.min, ALiBi."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(12, WIDTH)
        self.qkv, self.up = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, HEADS + 1), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        b, t = input_ids.shape
        position_ids = attention_mask.long().cumsum(-1) - 1
        position_ids.masked_fill_(attention_mask == 0, 1)
        x = self.embed(input_ids) + self.position(position_ids)
        causal = torch.tril(torch.ones((t, t), dtype=torch.bool))[None, None]
        allowed = causal & attention_mask[:, None, None, :].bool()
        bias = (1.0 - allowed.to(x.dtype)) * torch.finfo(x.dtype).min
        distance = torch.arange(t)[None, :] - torch.arange(t)[:, None]
        bias = bias + self.slopes[:, None, None] * distance[None].clamp(max=0)
        q, k, v = self.qkv(x).view(b, t, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + y.transpose(1, 2).reshape(b, t, WIDTH)
        up, gate = self.up(x).chunk(2, dim=-1)
        x = x + self.down(up * F.gelu(gate, approximate="tanh"))
        logits = 30.0 * torch.tanh(F.linear(x, self.embed.weight) / 30.0)
        last = attention_mask.sum(-1) - 1
        return logits[torch.arange(b), last], F.log_softmax(logits, dim=-1).argmax(dim=-1)


class T5(nn.Module):
    """T5's relative positions: distances in logarithmic buckets, a bias for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.embed = nn.Embedding(8, HEADS), nn.Embedding(VOCABULARY, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.wi, self.wo = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def buckets(self, relative: Tensor, buckets: int = 8, farthest: int = 20) -> Tensor:
        buckets //= 2
        side = (relative > 0).to(torch.long) * buckets
        relative, exact = torch.abs(relative), buckets // 2
        far = torch.log(relative.float() / exact) / math.log(farthest / exact)
        far = exact + (far * (buckets - exact)).to(torch.long)
        far = torch.min(far, torch.full_like(far, buckets - 1))
        return side + torch.where(relative < exact, relative, far)

    def forward(self, ids: Tensor) -> Tensor:
        b, t = ids.shape
        x = self.embed(ids)
        place = torch.arange(t)
        bias = self.bias(self.buckets(place[None, :] - place[:, None])).permute(2, 0, 1)[None]
        q, k, v = (w(x).view(b, -1, HEADS, HEAD).transpose(1, 2) for w in (self.q, self.k, self.v))
        weights = F.softmax((q @ k.transpose(3, 2) + bias).float(), dim=-1).type_as(q)
        x = x + (weights @ v).transpose(1, 2).contiguous().view(b, -1, WIDTH)
        x = x + self.wo(F.relu(self.wi(x)).square())
        return (x * WIDTH**-0.5) @ self.embed.weight.T


class EncoderDecoder(nn.Module):
    """torch's own encoder and decoder layers with causal and padding masks, sinusoid positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(encoder, 1, enable_nested_tensor=False)
        decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, 24, batch_first=True, activation="gelu")
        self.decoder = nn.TransformerDecoder(decoder, 1, norm=nn.LayerNorm(WIDTH))

    def place(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1]).unsqueeze(1) * torch.exp(torch.arange(0, WIDTH, 2) * -0.3)
        table = torch.zeros(x.shape[1], WIDTH)
        table[:, 0::2], table[:, 1::2] = torch.sin(angles), torch.cos(angles)
        return x * math.sqrt(WIDTH) + table

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        padding = source == 0
        memory = self.encoder(self.place(self.embed(source)), src_key_padding_mask=padding)
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        y = self.decoder(
            self.place(self.embed(target)), memory, tgt_mask=causal,
            memory_key_padding_mask=padding, tgt_is_causal=True,
        )  # fmt: skip
        return F.linear(y, self.embed.weight)


class CausalEncoder(nn.Module):
    """torch's encoder as a language model: a mask without a word on what kind it is, padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, ids: Tensor) -> Tensor:
        mask = torch.triu(torch.ones(ids.shape[1], ids.shape[1]), diagonal=1).bool()
        padding = ids == VOCABULARY - 1
        return self.head(self.encoder(self.embed(ids), mask=mask, src_key_padding_mask=padding))


class Bert(nn.Module):
    """A post-norm encoder with segments, an extended mask, a pooled and a masked-word output."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(8, WIDTH)
        self.kinds, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, activation="gelu")
        self.pooler = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("position_ids", torch.arange(8).expand((1, -1)))

    def forward(self, ids: Tensor, kinds: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        x = self.words(ids) + self.places(self.position_ids[:, : ids.size(1)]) + self.kinds(kinds)
        x = self.norm(x).transpose(0, 1)
        x = self.layer(x, src_key_padding_mask=~mask).transpose(0, 1)
        weights = mask.unsqueeze(-1).expand(x.size()).float()
        mean = torch.sum(x * weights, 1) / torch.clamp(weights.sum(1), min=1e-9)
        return F.normalize(mean, p=2, dim=1), torch.tanh(self.pooler(x[:, 0])), x


class LinearAttention(nn.Module):
    """Attention without a softmax: elu features, running sums of outer products, token shift."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mix = nn.Parameter(torch.rand(WIDTH))
        self.shift = nn.ZeroPad2d((0, 0, 1, -1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.lerp(x, self.shift(x), self.mix)
        q, k, v = (w(x).unflatten(-1, (HEADS, HEAD)) for w in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        state = torch.cumsum(torch.einsum("bthd,bthe->bthde", k, v), dim=1)
        total = torch.einsum("bthd,bthd->bth", q, k.cumsum(dim=1)).unsqueeze(-1)
        return (torch.einsum("bthd,bthde->bthe", q, state) / (total + 1e-6)).flatten(2)


class StateSpace(nn.Module):
    """A gated state space block: causal depthwise convolution, a scan written as a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.conv1d = nn.Conv1d(2 * WIDTH, 2 * WIDTH, 3, groups=2 * WIDTH, padding=2)
        self.x_proj = nn.Linear(2 * WIDTH, 1 + 4 + 4, bias=False)
        self.dt_proj = nn.Linear(1, 2 * WIDTH)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, 5).float()).repeat(2 * WIDTH, 1))
        self.D = nn.Parameter(torch.ones(2 * WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv1d(u.transpose(1, 2))[..., :t].transpose(1, 2))
        delta, B, C = self.x_proj(u).split([1, 4, 4], dim=-1)
        delta = F.softplus(self.dt_proj(delta))
        A = -torch.exp(self.A_log)
        decay = torch.exp(torch.einsum("btd,dn->btdn", delta, A))
        step = torch.einsum("btd,btn,btd->btdn", delta, B, u)
        state, steps = torch.zeros(b, 2 * WIDTH, 4), []
        for i in range(t):
            state = decay[:, i] * state + step[:, i]
            steps.append(torch.einsum("bdn,bn->bd", state, C[:, i]))
        y = torch.stack(steps, dim=1) + u * self.D
        return self.out_proj(y * F.silu(z))


class CachedDecoder(nn.Module):
    """One step with a cache: keys written into place, the cache given back."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, place: Tensor, keys: Tensor, values: Tensor) -> Any:
        b = x.shape[0]
        q, k, v = self.qkv(x).view(b, 1, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        keys = keys.index_copy(2, place, k)
        values = values.clone()
        values[:, :, place] = v
        mask = torch.arange(keys.shape[2])[None, :] <= place[:, None]
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return y.transpose(1, 2).reshape(b, 1, WIDTH), keys, values


class Filtered(nn.Module):
    """Logits kept by top-k and top-p, a penalty for repeated tokens, the choice of the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(VOCABULARY, WIDTH, mode="mean")
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.embed(ids))
        score = torch.gather(logits, 1, ids)
        score = torch.where(score < 0, score * 1.2, score / 1.2)
        logits = logits.scatter(1, ids, score)
        kept, _ = torch.topk(logits, 7)
        logits = torch.where(logits < kept[:, [-1]], torch.tensor(-torch.inf), logits)
        ordered, order = torch.sort(logits, descending=True)
        remove = ordered.softmax(dim=-1).cumsum(dim=-1) > 0.8
        remove[..., 1:] = remove[..., :-1].clone()
        remove[..., 0] = 0
        remove = remove.scatter(1, order, remove)
        probabilities = F.softmax(logits.masked_fill(remove, -float("inf")), dim=-1)
        return probabilities, torch.argmax(probabilities, dim=-1, keepdim=True)
