"""Routing by Python: loops, lists and ifs over numbers that only the data tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import Unsupported

from .mixture import EXPERTS, TOKENS, WIDTH, K, Mixture, agree_on_all_inputs, inputs


def skip_by_sum(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for e in range(EXPERTS):
        mask = (index == e).any(-1)
        if mask.sum() == 0:
            continue
        gate = (weight * (index == e)).sum(-1)[mask]
        y[mask] += m.experts[e](x[mask]) * gate.unsqueeze(-1)
    return y


def skip_by_any(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for e in range(EXPERTS):
        mask = index == e
        if not mask.any():
            continue
        token, slot = torch.where(mask)
        y.index_add_(0, token, m.experts[e](x[token]) * weight[token, slot, None])
    return y


def skip_by_numel(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for e in range(EXPERTS):
        rows, slot = (index == e).nonzero(as_tuple=True)
        if rows.numel() == 0:
            continue
        y.index_add_(0, rows, m.experts[e](x[rows]) * weight[rows, slot].unsqueeze(1))
    return y


def skip_by_length(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    flat, gate, token = index.reshape(-1), weight.reshape(-1), torch.arange(TOKENS * K) // K
    y = torch.zeros_like(x)
    for e in range(EXPERTS):
        rows = (flat == e).nonzero().squeeze(-1)
        if len(rows) == 0:
            continue
        y.index_add_(0, token[rows], m.experts[e](x[token[rows]]) * gate[rows].unsqueeze(1))
    return y


def over_unique(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for e in index.unique():
        token, slot = torch.where(index == e)
        y[token] += m.experts[int(e)](x[token]) * weight[token, slot, None]
    return y


def over_unique_list(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for e in torch.unique(index).tolist():
        token, slot = torch.where(index == e)
        y[token] += m.experts[e](x[token]) * weight[token, slot, None]
    return y


def split_list(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)
    token = order // K
    counts = torch.bincount(flat, minlength=EXPERTS).tolist()
    parts = []
    for expert, rows in zip(m.experts, torch.split(x[token], counts), strict=True):
        if rows.shape[0] == 0:
            continue
        parts.append(expert(rows))
    values = torch.cat(parts) * weight.flatten()[order, None]
    return torch.zeros_like(x).index_add_(0, token, values)


def split_back(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order = index.flatten().argsort()
    counts = torch.bincount(index.flatten(), minlength=EXPERTS).tolist()
    parts = x[order // K].split(counts)
    done = torch.cat([m.experts[e](part) for e, part in enumerate(parts)])
    back = torch.empty_like(done)
    back[order] = done
    return (back.view(TOKENS, K, WIDTH) * weight.unsqueeze(-1)).sum(1)


def split_inverse(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    flat, order = index.flatten().sort()
    counts = F.one_hot(flat, EXPERTS).sum(0).tolist()
    parts = x.repeat_interleave(K, 0)[order].split(counts)
    done = torch.cat([expert(part) for expert, part in zip(m.experts, parts, strict=True)])
    back = done[order.argsort()].view(TOKENS, K, WIDTH)
    return torch.einsum("tkd,tk->td", back, weight)


def slices_of_each(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order = index.flatten().argsort(stable=True)
    ends = torch.bincount(index.flatten(), minlength=EXPERTS).cumsum(0).tolist()
    y, start = torch.zeros_like(x), 0
    for e, end in enumerate(ends):
        if start == end:
            continue
        pairs = order[start:end]
        token = pairs // K
        y.index_add_(0, token, m.experts[e](x[token]) * weight.flatten()[pairs].unsqueeze(1))
        start = end
    return y


def moe_infer(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """As DeepSeek's models do."""
    counts = index.new_zeros((index.shape[0], EXPERTS))
    counts.scatter_(1, index, 1)
    each = counts.sum(dim=0)
    order = index.view(-1).argsort()
    rows = x[order // index.shape[1]]
    each = each.cpu().numpy()
    outputs, start = [], 0
    for i, number in enumerate(each):
        end = start + number
        if number == 0:
            continue
        outputs.append(m.experts[i](rows[start:end]))
        start = end
    outs = torch.cat(outputs, dim=0) if len(outputs) else rows.new_empty(0)
    new_x = torch.empty_like(outs)
    new_x[order] = outs
    weighted = new_x.view(*index.shape, -1).mul_(weight.unsqueeze(dim=-1))
    return weighted.sum(dim=1).type(new_x.dtype)


def moe_infer_ends(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """As DeepSeek's first models do."""
    flat, gate = index.view(-1), weight.view(-1, 1)
    y = torch.zeros_like(x)
    order = flat.argsort()
    ends = flat.bincount().cpu().numpy().cumsum(0)
    token = order // K
    for i, end in enumerate(ends):
        start = 0 if i == 0 else ends[i - 1]
        if start == end:
            continue
        rows = token[start:end]
        out = m.experts[i](x[rows])
        out.mul_(gate[order[start:end]])
        y.scatter_add_(0, rows.view(-1, 1).repeat(1, x.shape[-1]), out)
    return y


def slices_by_tensors(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order = index.flatten().argsort()
    counts = torch.bincount(index.flatten(), minlength=EXPERTS)
    starts = counts.cumsum(0) - counts
    rows = x[order // K]
    out = torch.zeros_like(rows)
    for e in range(EXPERTS):
        start, stop = starts[e], starts[e] + counts[e]
        if counts[e] > 0:
            out[start:stop] = m.experts[e](rows[start:stop])
    y = torch.zeros_like(x)
    return y.index_add(0, order // K, out * weight.flatten()[order, None])


def numpy_counts(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order = index.flatten().argsort()
    counts = np.bincount(index.flatten().numpy(), minlength=EXPERTS)
    ends = np.cumsum(counts)
    rows = x[order // K]
    out = torch.zeros_like(rows)
    for e, (end, count) in enumerate(zip(ends, counts, strict=True)):
        if count:
            out[end - count : end] = m.experts[e](rows[end - count : end])
    y = torch.zeros_like(x)
    return y.index_add(0, order // K, out * weight.flatten()[order, None])


def each_count_alone(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    flat = index.flatten()
    order = flat.argsort()
    counts = [(flat == e).sum().item() for e in range(EXPERTS)]
    parts = torch.split(x[order // K], counts)
    done = torch.cat([expert(part) for expert, part in zip(m.experts, parts, strict=True)])
    return torch.zeros_like(x).index_add(0, order // K, done * weight.flatten()[order, None])


def token_by_token(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for t in range(TOKENS):
        for s in range(K):
            e = int(index[t, s])
            y[t] += weight[t, s] * m.experts[e](x[t])
    return y


def token_by_item(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    rows = []
    for t in range(TOKENS):
        row = torch.zeros(WIDTH)
        for s in range(K):
            row = row + float(weight[t, s]) * m.experts[index[t, s].item()](x[t])
        rows.append(row)
    return torch.stack(rows)


def token_by_list(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for t, chosen in enumerate(index.tolist()):
        for s, e in enumerate(chosen):
            y[t] += weight[t, s] * m.experts[e](x[t : t + 1])[0] * m.scales[e]
    return y


def lists_of_rows(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for e in range(EXPERTS):
        slot, token = torch.where(F.one_hot(index, EXPERTS).permute(2, 1, 0)[e])
        tokens, slots = token.tolist(), slot.tolist()
        if not tokens or len(slots) == 0:
            continue
        part = m.experts[e](x[None, tokens].reshape(-1, WIDTH))
        y.index_add_(0, token, part * weight[tokens, slots, None])
    return y


def views_of_a_length(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order = index.flatten().argsort(stable=True)
    parts = x[order // K].split(torch.bincount(index.flatten(), minlength=EXPERTS).tolist())
    done = [m.experts[e](p.view(len(p), 2, -1).flatten(1)) for e, p in enumerate(parts) if len(p)]
    weighted = torch.cat(done) * weight.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, order // K, weighted)


def below_a_number(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order = index[:, 0].argsort()
    y = torch.zeros_like(x)
    for e in range(EXPERTS):
        start, count = (index[:, 0] < e).sum().item(), (index[:, 0] == e).sum().item()
        place = torch.arange(TOKENS)
        mask = (place >= start) & (place < start + count)
        y = y.index_add(0, order, m.experts[e](x[order]) * mask[:, None])
    return y


FORMS = [
    skip_by_sum, skip_by_any, skip_by_numel, skip_by_length, over_unique, over_unique_list,
    split_list, split_back, split_inverse, slices_of_each, moe_infer, moe_infer_ends,
    slices_by_tensors, numpy_counts, each_count_alone, token_by_token, token_by_item, token_by_list,
    lists_of_rows, views_of_a_length, below_a_number,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_routing_in_python_is_captured(form: Callable[..., Tensor]) -> None:
    """The graph agrees with the model in double precision, whichever experts are idle."""
    agree_on_all_inputs(form)


def in_another_order(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order = index.flatten().argsort()
    parts = x[order // K].split(torch.bincount(index.flatten(), minlength=EXPERTS).tolist())
    done = torch.cat([m.experts[e](parts[e]) for e in reversed(range(EXPERTS))])
    done = done * weight.flatten()[order, None]  # not in the order of its rows
    return torch.zeros_like(x).index_add(0, order // K, done)


def of_another_choice(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order = index.flatten().argsort()
    counts = (m.router(x) > 0.5).sum(0).tolist()
    parts = x[order // K].split([*counts, TOKENS * K - sum(counts)])  # split
    return torch.stack([part.sum(0) for part in parts])


def up_to_a_capacity(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y, start = torch.zeros_like(x), 0
    order = index.flatten().argsort(stable=True)
    for e, count in enumerate(torch.bincount(index.flatten(), minlength=EXPERTS).tolist()):
        rows = order[start : start + min(count, 3)] // K  # capacity
        y = y.index_add(0, rows, m.experts[e](x[rows]))
        start += count
    return y


def row_by_row(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for e, count in enumerate(torch.bincount(index.flatten(), minlength=EXPERTS).tolist()):
        for _ in range(count):  # as often as there are rows
            y = y + m.experts[e](x)
    return y


def only_one_expert(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return m.experts[0](x) if index[0, 0].item() == 0 else x  # branch


def by_a_dictionary(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    experts = {str(e): expert for e, expert in enumerate(m.experts)}
    return experts[str(int(index[0, 0]))](x)  # dictionary


def by_a_list(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return list(m.experts)[int(index[0, 0])](x)  # list


def by_another_number(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return m.experts[int(index[0, 0]) - 1](x)  # one before


def rows_by_another_number(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return x * m.scales[int(index[0, 0]) - 1]  # one before, as a row


def written_through(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order, y = index.flatten().argsort(), x.repeat_interleave(K, 0)
    counts = torch.bincount(index.flatten(), minlength=EXPERTS).tolist()
    for part in y.split(counts):
        part.mul_(2)  # through a view
    return y[order]


def zeros_of_a_size(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    count = (index == 0).sum().item()
    return x + torch.zeros(count, WIDTH).sum()  # size


def by_numpy(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return x * float(np.median(index.flatten().numpy()))  # numpy


def by_numpy_method(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return x * index.flatten().numpy().mean()  # method


def over_a_list(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    for token in torch.where(index == 0)[0].tolist():  # row by row
        x = x + x[token]
    return x


def mean_by_length(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    rows = x[index[:, 0] == 0]
    return x + rows.sum(0) / len(rows)  # number of rows


def counts_in_use(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return x * len(index.unique().tolist())


REFUSED: list[tuple[Callable[..., Tensor], str, str]] = [
    (in_another_order, "together with others", "# not in the order"),
    (of_another_choice, "a place between rows", "# split"),
    (up_to_a_capacity, "a condition", "# capacity"),
    (row_by_row, "a size or the place in a list", "# as often"),
    (only_one_expert, "a condition", "# branch"),
    (by_a_dictionary, "text", "# dictionary"),
    (by_a_list, "a size or the place in a list", "# list"),
    (by_another_number, "the place in a list", "# one before"),
    (rows_by_another_number, "the place of a row", "# one before, as a row"),
    (written_through, "a slice that is written to", "# through a view"),
    (zeros_of_a_size, r"zeros\(\)", "# size"),
    (by_numpy, "numpy.median", "# numpy"),
    (by_numpy_method, "'mean'", "# method"),
    (over_a_list, "the length of a list", "# row by row"),
    (mean_by_length, "the number of chosen rows", "# number of rows"),
    (counts_in_use, "differs by", ""),
]


@pytest.mark.parametrize(("form", "what", "line"), REFUSED)
def test_routing_in_python_is_refused(form: Callable[..., Tensor], what: str, line: str) -> None:
    """What no graph of one shape can do is refused at its line, with a way out."""
    with pytest.raises(Unsupported, match=what) as caught:
        capture(Mixture(form), (inputs()[0],))
    assert caught.value.help
    if line:
        lines = Path(__file__).read_text().splitlines()
        number = next(n for n, text in enumerate(lines, 1) if line in text)
        assert caught.value.where == f"test_export_counts.py:{number}"
