"""Mixtures of experts, recurrent cells and odd models as people write them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Experts(nn.Module):
    """Tokens through the experts of their choice, in one of three styles."""

    def __init__(self, style: str, experts: int = 4, width: int = 8, hidden: int = 12) -> None:
        super().__init__()
        self.style, self.count = style, experts
        self.gate = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, hidden, width) * 0.3)
        self.down = nn.Parameter(torch.randn(experts, width, hidden) * 0.3)

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.view(-1, hidden.shape[-1])
        scores, chosen = torch.topk(F.softmax(self.gate(x), dim=-1, dtype=torch.float32), 2, dim=-1)
        scores /= scores.sum(dim=-1, keepdim=True)
        return getattr(self, self.style)(x, scores.to(x.dtype), chosen).view_as(hidden)

    def loop(self, x: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        mask = F.one_hot(chosen, num_classes=self.count).permute(2, 1, 0)
        for expert in range(self.count):
            place, token = torch.where(mask[expert])
            now = F.silu(x[token] @ self.up[expert].T) @ self.down[expert].T
            y.index_add_(0, token, now * scores[token, place, None])
        return y

    def gather(self, x: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
        h = F.silu(torch.einsum("td,tkfd->tkf", x, self.up[chosen]))
        return torch.einsum("tkf,tkdf,tk->td", h, self.down[chosen], scores)

    def ordered(self, x: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
        expert, order = chosen.flatten().sort(stable=True)
        rows = x[order // 2]
        h = F.silu(torch.bmm(self.up[expert], rows.unsqueeze(-1)))
        out = torch.bmm(self.down[expert], h).squeeze(-1)
        out = out * scores.flatten()[order].unsqueeze(-1)
        return torch.zeros_like(x).scatter_add(0, (order // 2)[:, None].expand_as(out), out)


class Capacity(nn.Module):
    """Switch-style dispatch: places in each expert's buffer by a running sum, a dense mask."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.w = nn.Linear(8, 3), nn.Parameter(torch.randn(3, 8, 8) * 0.3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.router(x).softmax(-1)
        best, index = gates.max(dim=-1)
        mask = F.one_hot(index, 3).float()
        place = (torch.cumsum(mask, dim=0) - 1.0) * mask
        mask *= torch.lt(place, 4)
        place = F.one_hot(place.sum(1).long().clamp(max=8), 9)[:, :4].float()
        dispatch = torch.einsum("te,tc->tec", mask, place)
        given = torch.einsum("tec,td->ecd", dispatch, x)
        out = torch.einsum("ecd,edf->ecf", given, self.w)
        balance = 3 * torch.sum(mask.mean(0) * gates.mean(0))
        return torch.einsum("tec,ecf->tf", dispatch * best[:, None, None], out), balance


class Recurrent(nn.Module):
    """An LSTM cell and a GRU cell in a loop of fixed length."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(6, 8), nn.GRUCell(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(x.shape[0], 8), x.new_zeros(x.shape[0], 8)
        state, out = torch.zeros(x.shape[0], 8), []
        for step in x.unbind(1):
            h, c = self.lstm(step, (h, c))
            state = self.gru(h, state)
            out.append(state)
        return torch.stack(out, 1)


class Tagger(nn.Module):
    """Embeddings, a two-layer LSTM and a GRU both ways, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.gru, self.rnn = nn.GRU(10, 4), nn.RNN(4, 3, bias=False)

    def forward(self, ids: Tensor) -> Any:
        y, (h, c) = self.lstm(self.embed(ids))
        z, last = self.gru(y.transpose(0, 1), torch.ones(1, ids.shape[0], 4))
        return self.rnn(z)[0], h, c, last


class Causal1d(nn.Module):
    """WaveNet: dilated convolutions padded on the left, gates, skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 4, 1)
        self.layers = nn.ModuleList(nn.Conv1d(4, 8, 2, dilation=2**i) for i in range(3))
        self.last = nn.ConvTranspose1d(4, 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x, skip = self.first(x.unsqueeze(1)), 0.0
        for i, layer in enumerate(self.layers):
            a, b = layer(F.pad(x, (2**i, 0))).tensor_split(2, dim=1)
            gated = torch.tanh(a) * torch.sigmoid(b)
            x, skip = x + gated, skip + gated
        y = self.last(F.relu(skip))
        return F.avg_pool1d(F.interpolate(y, scale_factor=1.5, mode="linear"), 2)


class Contrastive(nn.Module):
    """CLIP's head: the text's end token by argmax, normalised features, a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.image = nn.Embedding(20, 8), nn.Linear(12, 8)
        self.scale = nn.Parameter(torch.tensor(1.2))

    def forward(self, pixels: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        x = self.embed(text)
        x = x[torch.arange(x.shape[0]), text.argmax(dim=-1)]
        image = self.image(pixels.flatten(1))
        image = image / image.norm(dim=1, keepdim=True)
        x = x / x.norm(dim=1, keepdim=True)
        logits = self.scale.exp() * image @ x.t()
        return logits, logits.t(), F.cosine_similarity(image, x), torch.cdist(image, x)


class Graphs(nn.Module):
    """Message passing over given edges: gather, softmax by target, scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.att = nn.Linear(6, 8), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.lin(x)
        source, target = edges[0], edges[1]
        score = F.leaky_relu(torch.cat([x[source], x[target]], -1) @ self.att, 0.2)
        top = torch.full((x.size(0),), -1e9).scatter_reduce(0, target, score, "amax")
        score = torch.exp(score - top[target])
        total = torch.zeros(x.size(0)).scatter_add_(0, target, score)
        alpha = score / (total[target] + 1e-16)
        out = torch.zeros_like(x).index_add_(0, target, alpha[:, None] * x[source])
        mean = torch.zeros_like(x).scatter_reduce(
            0, target[:, None].expand(-1, 8), x[source], reduce="mean", include_self=False
        )
        return F.elu(out) + mean


class Statistics(nn.Module):
    """Integer and bool inputs, counts, orders, and what is written into slices."""

    def forward(self, x: Tensor, codes: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
        z = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True).clamp_min(1e-6)
        z = torch.where(keep, z, torch.zeros_like(z))
        y = torch.empty_like(x)
        y[:, ::2].copy_(z[:, 1::2])
        y[:, 1::2] = torch.flip(z[:, ::2], [1])
        y.mul_(0.5).add_(x, alpha=0.25)
        low, high = codes.remainder(3), torch.div(codes, 3, rounding_mode="floor")
        bits = (codes.unsqueeze(-1) >> torch.arange(3)) & 1
        rank = x.argsort(dim=-1).argsort(dim=-1)
        place = torch.searchsorted(x.sort(-1).values, z.contiguous())
        median, quarter = x.median(-1).values, x.kthvalue(2, dim=-1).values
        running = x.cummax(-1).values + x.clamp(0.5, 1).cumprod(-1)
        return y, low.int(), high, bits, rank, place, keep.sum(-1), median, quarter, running


class Turned(nn.Module):
    """Givens rotations as products of phases, angles read back, einsum of complex tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(4))
        self.mix = nn.Parameter(torch.randn(4, 4, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.complex(*x.chunk(2, dim=-1)) * torch.exp(1j * self.theta)
        z = torch.einsum("bi,ij->bj", z, self.mix)
        turned = torch.polar(z.abs(), z.angle() + self.theta)
        size = torch.sqrt(turned.real.square() + turned.imag.square())
        return torch.view_as_real(turned).flatten(-2), torch.atan2(turned.imag, size + turned.real)


class Quantized(nn.Module):
    """A convolutional encoder, the nearest code of a book straight through, a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.book = nn.Conv2d(1, 4, 2, stride=2), nn.Embedding(7, 4)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1), nn.Sigmoid())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(image)
        flat = z.permute(0, 2, 3, 1).reshape(-1, 4)
        book = self.book.weight
        far = flat.pow(2).sum(1, keepdim=True) + book.pow(2).sum(1) - 2 * flat @ book.t()
        code = far.argmin(1)
        one_hot = torch.zeros(code.shape[0], 7).scatter_(1, code.unsqueeze(1), 1)
        q = (one_hot @ book).view(*z.shape[:1], *z.shape[2:], 4).permute(0, 3, 1, 2)
        q = z + (q - z).detach()
        share = one_hot.mean(0)
        perplexity = torch.exp(-torch.sum(share * torch.log(share + 1e-10)))
        return self.decoder(q), code.view(z.shape[0], -1), perplexity


class Forecast(nn.Module):
    """A series normalised by itself, its moving average taken out, both parts extended."""

    def __init__(self) -> None:
        super().__init__()
        self.trend, self.season = nn.Linear(12, 4), nn.Linear(12, 4)
        self.average = nn.AvgPool1d(5, stride=1)

    def forward(self, x: Tensor) -> Tensor:  # x: [B, T, C]
        mean = x.mean(1, keepdim=True).detach()
        scale = torch.sqrt(torch.var(x, dim=1, keepdim=True, unbiased=False) + 1e-5)
        x = (x - mean) / scale
        ends = x[:, :1].repeat(1, 2, 1), x[:, -1:].repeat(1, 2, 1)
        trend = self.average(torch.cat([ends[0], x, ends[1]], dim=1).permute(0, 2, 1))
        season = x.permute(0, 2, 1) - trend
        return (self.trend(trend) + self.season(season)).permute(0, 2, 1) * scale + mean


class Pruned(nn.Module):
    """A ViT that goes on with its best tokens only, and writes them back where they were."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.block = nn.Linear(8, 1), nn.Linear(8, 8)
        self.scale, self.norm = nn.Parameter(torch.full((8,), 0.1)), nn.LayerNorm(8)
        self.grid = nn.Parameter(torch.randn(1, 8, 2, 2))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = int(x.shape[1] ** 0.5)
        grid = F.interpolate(self.grid, size=(size, size), mode="bicubic", align_corners=True)
        x = x + grid.flatten(2).transpose(1, 2)
        keep = self.score(x).squeeze(-1).topk(4, dim=1, sorted=True).indices
        place = keep.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        part = x.gather(1, place)
        q = self.norm(part)
        part = part + self.drop(self.scale * F.scaled_dot_product_attention(q, q, self.block(q)))
        return x.scatter(1, place, part), keep.sort(dim=1).values


class Gated(nn.Module):
    """gMLP's spatial gate and a Conformer's convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, 16), nn.Linear(8, 8), nn.LayerNorm(8)
        self.space = nn.Conv1d(6, 6, 1)
        self.first, self.last = nn.Conv1d(8, 16, 1), nn.Conv1d(8, 8, 1)
        self.middle = nn.Conv1d(8, 8, 5, padding="same", groups=8)
        self.batch = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.up(x)).chunk(2, dim=-1)
        x = x + self.down(u * self.space(self.norm(v)))
        y = F.glu(self.first(x.mT), dim=1)
        return x + self.last(F.silu(self.batch(self.middle(y)))).mT


class Viterbi(nn.Module):
    """The best path through scores: maxima forward, their places followed back."""

    def __init__(self) -> None:
        super().__init__()
        self.emit, self.change = nn.Linear(5, 3), nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.emit(x)
        best, places = scores[:, 0], []
        for t in range(1, scores.shape[1]):
            best, place = (best.unsqueeze(2) + self.change).max(dim=1)
            best = best + scores[:, t]
            places.append(place)
        value, tag = best.max(dim=1)
        path = [tag]
        for place in reversed(places):
            tag = place.gather(1, tag.unsqueeze(1)).squeeze(1)
            path.insert(0, tag)
        return torch.stack(path, dim=1), value


class Cayley(nn.Module):
    """Orthogonal maps by a Cayley transform and a matrix exponential; a weight given back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(6, 6) * 0.3) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skew = self.a.triu(1) - self.a.triu(1).mT
        turn = torch.linalg.solve(torch.eye(6) + skew, torch.eye(6) - skew)
        return x @ turn @ torch.matrix_exp(self.b - self.b.T), self.a
