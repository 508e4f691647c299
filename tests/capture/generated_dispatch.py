"""How tokens come to their experts and back, in many coding styles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Mixture(Protocol):
    """What a dispatch is written with."""

    count: int

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def dense(self, x: Tensor) -> Tensor: ...
    def tables(self) -> tuple[Tensor, ...]: ...
    def of(self, numbers: int | Tensor) -> tuple[Tensor, ...]: ...
    def expert(self, x: Tensor, *tables: Tensor) -> Tensor: ...
    def finish(self, y: Tensor, gates: Tensor) -> Tensor: ...


Dispatch = Callable[[Mixture, Tensor], Tensor]


def masked_loop(m: Mixture, x: Tensor) -> Tensor:
    gates, experts = m.route(x)
    y = 0
    for e in range(m.count):
        weight = torch.where(experts == e, gates, 0.0).sum(-1, keepdim=True)
        y = y + weight * m.expert(x, *m.of(e))
    return m.finish(y, gates)


def product_loop(m: Mixture, x: Tensor) -> Tensor:
    """The mask times the gates, written into a sum of parts."""
    gates, experts = m.route(x)
    parts = []
    for e in range(m.count):
        weight = (gates * (experts == e).to(x.dtype)).sum(-1)
        parts.append(m.expert(x, *m.of(e)) * weight.unsqueeze(-1))
    return m.finish(torch.stack(parts).sum(0), gates)


def selected_rows(m: Mixture, x: Tensor) -> Tensor:
    gates, experts = m.route(x)
    rows, shape = x.flatten(0, -2), x.shape[:-1]
    flat, chosen = gates.flatten(0, -2), experts.flatten(0, -2)
    y = None
    for e in range(m.count):
        token, slot = torch.where(chosen == e)
        part = m.expert(rows[token], *m.of(e)) * flat[token, slot, None]
        y = x.new_zeros(len(rows), part.shape[-1]) if y is None else y
        y = y.index_add(0, token, part)
    return m.finish(y.unflatten(0, shape), gates)


def selected_mask(m: Mixture, x: Tensor) -> Tensor:
    """Rows by a boolean mask, experts without any skipped."""
    gates, experts = m.route(x)
    rows, shape = x.flatten(0, -2), x.shape[:-1]
    flat, chosen = gates.flatten(0, -2), experts.flatten(0, -2)
    y = torch.zeros_like(m.expert(rows, *m.of(0)))
    for e in range(m.count):
        mask = (chosen == e).any(-1)
        if not mask.any():
            continue
        weight = (flat * (chosen == e)).sum(-1)[mask]
        y[mask] += m.expert(rows[mask], *m.of(e)) * weight[:, None]
    return m.finish(y.unflatten(0, shape), gates)


def slot_loop(m: Mixture, x: Tensor) -> Tensor:
    gates, experts = m.route(x)
    y = 0
    for i in range(gates.shape[-1]):
        y = y + gates[..., i : i + 1] * m.expert(x, *m.of(experts[..., i]))
    return m.finish(y, gates)


def slots_times_experts(m: Mixture, x: Tensor) -> Tensor:
    gates, experts = m.route(x)
    y = 0
    for i in range(gates.shape[-1]):
        for e in range(m.count):
            weight = torch.where(experts[..., i] == e, gates[..., i], 0.0).unsqueeze(-1)
            y = y + weight * m.expert(x, *m.of(e))
    return m.finish(y, gates)


def dense_loop(m: Mixture, x: Tensor) -> Tensor:
    gates = m.dense(x)
    y = 0
    for e in range(m.count):
        y = y + gates[..., e : e + 1] * m.expert(x, *m.of(e))
    return m.finish(y, gates)


def dense_stack(m: Mixture, x: Tensor) -> Tensor:
    gates = m.dense(x)
    every = torch.stack([m.expert(x, *m.of(e)) for e in range(m.count)], dim=-2)
    return m.finish(torch.einsum("...e,...ed->...d", gates, every), gates)


def expert_axis(m: Mixture, x: Tensor) -> Tensor:
    """All experts along an axis; the chosen are gathered at the end."""
    gates, experts = m.route(x)
    every = m.expert(x.unsqueeze(-2), *m.tables())
    index = experts[..., None].expand(*experts.shape, every.shape[-1])
    return m.finish((every.gather(-2, index) * gates[..., None]).sum(-2), gates)


def experts_first(m: Mixture, x: Tensor) -> Tensor:
    gates = m.dense(x)
    rows, flat = x.flatten(0, -2), gates.flatten(0, -2)
    every = m.expert(rows, *(table[:, None] for table in m.tables()))  # [E, T, d]
    y = torch.einsum("te,etd->td", flat, every)
    return m.finish(y.unflatten(0, x.shape[:-1]), gates)


def vmapped(m: Mixture, x: Tensor) -> Tensor:
    gates = m.dense(x)
    tables = m.tables()
    every = torch.vmap(m.expert, in_dims=(None, *(0 for _ in tables)))(x, *tables)
    y = (every * gates.movedim(-1, 0).unsqueeze(-1)).sum(0)
    return m.finish(y, gates)


def gathered(m: Mixture, x: Tensor) -> Tensor:
    gates, experts = m.route(x)
    rows = x.unsqueeze(-2).expand(*experts.shape, x.shape[-1])
    return m.finish((m.expert(rows, *m.of(experts)) * gates[..., None]).sum(-2), gates)


def one_hot(m: Mixture, x: Tensor) -> Tensor:
    gates, experts = m.route(x)
    hot = F.one_hot(experts, m.count).to(x.dtype)
    own = [torch.einsum("...ke,elp->...klp", hot, table) for table in m.tables()]
    out = m.expert(x.unsqueeze(-2), *own)
    return m.finish(torch.einsum("...k,...kd->...d", gates, out), gates)


def repeated(m: Mixture, x: Tensor) -> Tensor:
    gates, experts = m.route(x)
    k = gates.shape[-1]
    rows = x.flatten(0, -2).repeat_interleave(k, 0)
    out = m.expert(rows, *m.of(experts.reshape(-1))) * gates.reshape(-1, 1)
    return m.finish(out.view(*x.shape[:-1], k, -1).sum(-2), gates)


def slabs(m: Mixture, x: Tensor) -> Tensor:
    """(Token, slot) rows sorted by expert, in slabs of one size, and put back."""
    gates, experts = m.route(x)
    rows, k = x.flatten(0, -2), gates.shape[-1]
    numbers, order = experts.flatten().sort(stable=True)
    token = order // k
    counts = F.one_hot(numbers, m.count).sum(0)
    place = torch.arange(len(rows) * k) - (counts.cumsum(0) - counts)[numbers]
    room = x.new_zeros(m.count, len(rows), x.shape[-1]).index_put((numbers, place), rows[token])
    out = m.expert(room, *(table[:, None] for table in m.tables()))
    back = out[numbers, place] * gates.flatten()[order, None]
    y = x.new_zeros(len(rows), back.shape[-1]).index_add(0, token, back)
    return m.finish(y.unflatten(0, x.shape[:-1]), gates)


def dispatch_tensors(m: Mixture, x: Tensor) -> Tensor:
    """One-hot tensors [T, E, C] carry rows to experts and back, with room for all."""
    gates, experts = m.route(x)
    rows, k = x.flatten(0, -2), gates.shape[-1]
    hot = F.one_hot(experts.flatten(0, -2), m.count)  # [T, k, E]
    place = (hot.flatten(0, 1).cumsum(0) - 1).unflatten(0, (len(rows), k))
    room = F.one_hot((place * hot).sum(-1), len(rows) * k).to(x.dtype)
    to = torch.einsum("tke,tkc->tec", hot.to(x.dtype), room)
    back = torch.einsum("tk,tke,tkc->tec", gates.flatten(0, -2), hot.to(x.dtype), room)
    sent = torch.einsum("tec,td->ecd", to, rows)
    out = m.expert(sent, *(table[:, None] for table in m.tables()))
    y = torch.einsum("tec,ecd->td", back, out)
    return m.finish(y.unflatten(0, x.shape[:-1]), gates)


def split_counts(m: Mixture, x: Tensor) -> Tensor:
    """Sorted rows, split by Python's counts of them."""
    gates, experts = m.route(x)
    rows, k = x.flatten(0, -2), gates.shape[-1]
    order = experts.flatten().argsort(stable=True)
    counts = torch.bincount(experts.flatten(), minlength=m.count).tolist()
    parts = torch.split(rows[order // k], counts)
    out = torch.cat([m.expert(part, *m.of(e)) for e, part in enumerate(parts)])
    back = out * gates.flatten()[order, None]
    y = x.new_zeros(len(rows), out.shape[-1]).index_add(0, order // k, back)
    return m.finish(y.unflatten(0, x.shape[:-1]), gates)


DISPATCHES: dict[str, Dispatch] = {
    function.__name__: function
    for function in (
        masked_loop, product_loop, selected_rows, selected_mask, slot_loop, slots_times_experts,
        dense_loop, dense_stack, expert_axis, experts_first, vmapped, gathered, one_hot, repeated,
        slabs, dispatch_tensors, split_counts,
    )
}  # fmt: skip
