"""FT-Transformer for tables with a weight-tied expert bank: one ternary W (and one W_down) for the whole depth of the network.

form        W_down . B(phi) . GELU(W_hat . B(theta) x + b_up); every depth layer owns its router and angles only
rotation    batched 2x2 matrices [c s; -s c] applied with einsum to (pairs, 2) views, same sense on both sides
shuffle     deinterleave, BEFORE each rotation (reshape to (n/2, 2), transpose)
L           5 in (24 padded to 32), 3 out (72 padded to 128)
router      top-2 logits of 4, softmax over all, renormalised over the chosen
quantiser   torch.autograd.Function, round/clip, gamma per tensor, identity backward
biases      b_up shared; b_down shared, added once after the combine; W_down is float and applied after the combine
dispatch    GShard: one_hot + cumsum positions, (token, expert, capacity) tensors and einsums; capacity = tokens, nothing dropped
"""
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class TableConfig:
    n_num: int = 9
    cardinalities: tuple = (5, 7, 4)
    units: int = 24
    inner_units: int = 72
    experts: int = 4
    chosen: int = 2
    depth: int = 3
    heads: int = 3
    in_layers: int = 5
    out_layers: int = 3
    targets: int = 2


class TernarySTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        gamma = w.abs().mean()
        return gamma * torch.round(w / (gamma + 1e-8)).clamp_(-1, 1)

    @staticmethod
    def backward(ctx, grad):
        return grad


def pow2(n):
    p = 1
    while p < n:
        p *= 2
    return p


class KernelBank(nn.Module):
    """The kernels that all MoE layers of the model look into."""

    def __init__(self, cfg):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(cfg.inner_units, cfg.units) * cfg.units ** -0.5)
        self.bias = nn.Parameter(torch.randn(cfg.inner_units) * 0.2)
        self.down_kernel = nn.Parameter(torch.randn(cfg.inner_units, cfg.units) * cfg.inner_units ** -0.5)
        self.down_bias = nn.Parameter(torch.randn(cfg.units) * 0.2)

    def up(self, x):
        return torch.matmul(x, TernarySTE.apply(self.kernel).T) + self.bias

    def down(self, x):
        return torch.matmul(x, self.down_kernel) + self.down_bias


class RotationTable(nn.Module):
    def __init__(self, experts, layers, units):
        super().__init__()
        self.units, self.padded = units, pow2(units)
        self.angles = nn.Parameter(torch.randn(layers, experts, self.padded // 2) * 0.5)

    def forward(self, x):
        """(experts, capacity, units), expert e is rotated by its own angles"""
        x = nn.functional.pad(x, [0, self.padded - self.units])
        for a in self.angles:
            mats = torch.stack([a.cos(), a.sin(), -a.sin(), a.cos()], dim=-1).unflatten(-1, (2, 2))
            x = x.reshape(*x.shape[:2], -1, 2).transpose(2, 3).flatten(2)
            x = torch.einsum("enij,ecnj->ecni", mats, x.unflatten(-1, (-1, 2))).flatten(2)
        return x[:, :, : self.units]


class TiedButterflyMoE(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.router = nn.Linear(cfg.units, cfg.experts)
        self.theta = RotationTable(cfg.experts, cfg.in_layers, cfg.units)
        self.phi = RotationTable(cfg.experts, cfg.out_layers, cfg.inner_units)

    def top2_gating(self, x):
        probs = self.router(x).softmax(-1)
        capacity = x.shape[0]
        gates, masks, rest = [], [], probs
        for _ in range(self.cfg.chosen):
            mask = nn.functional.one_hot(rest.argmax(-1), self.cfg.experts).to(x.dtype)
            gates.append((probs * mask).sum(-1))
            masks.append(mask)
            rest = rest * (1 - mask)
        denom = sum(gates)
        combine = x.new_zeros(x.shape[0], self.cfg.experts, capacity)
        used = x.new_zeros(self.cfg.experts)
        for gate, mask in zip(gates, masks):
            position = (mask.cumsum(0) - mask + used) * mask
            used = used + mask.sum(0)
            slot = nn.functional.one_hot(position.sum(-1).long(), capacity).to(x.dtype)
            combine = combine + torch.einsum("t,te,tc->tec", gate / denom, mask, slot)
        return combine, (combine > 0).to(x.dtype)

    def forward(self, x, bank):
        combine, dispatch = self.top2_gating(x)
        h = torch.einsum("tec,td->ecd", dispatch, x)
        h = nn.functional.gelu(bank.up(self.theta(h)))
        h = self.phi(h)
        return bank.down(torch.einsum("tec,ecf->tf", combine, h))


class Layer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.norm_attention = nn.LayerNorm(cfg.units)
        self.attention = nn.MultiheadAttention(cfg.units, cfg.heads, batch_first=True)
        self.norm_moe = nn.LayerNorm(cfg.units)
        self.moe = TiedButterflyMoE(cfg)

    def forward(self, inputs, bank):
        x = self.norm_attention(inputs)
        inputs = inputs + self.attention(x, x, x, need_weights=False)[0]
        x = self.norm_moe(inputs)
        return inputs + self.moe(x.reshape(-1, x.shape[-1]), bank).reshape(x.shape)


class TableModel(nn.Module):
    def __init__(self, cfg: TableConfig):
        super().__init__()
        self.cfg = cfg
        self.num_weight = nn.Parameter(torch.randn(cfg.n_num, cfg.units))
        self.num_bias = nn.Parameter(torch.randn(cfg.n_num, cfg.units) * 0.3)
        self.cat_embeddings = nn.ModuleList(nn.Embedding(c, cfg.units) for c in cfg.cardinalities)
        self.cls = nn.Parameter(torch.randn(cfg.units))
        self.bank = KernelBank(cfg)
        self.stack = nn.ModuleList(Layer(cfg) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.units)
        self.head = nn.Linear(cfg.units, cfg.targets)

    def forward(self, numeric, categorical):
        tokens = [self.cls.expand(numeric.shape[0], 1, -1)]
        tokens.append(numeric.to(self.num_weight.dtype)[:, :, None] * self.num_weight + self.num_bias)
        tokens += [emb(categorical[:, i : i + 1]) for i, emb in enumerate(self.cat_embeddings)]
        x = torch.cat(tokens, dim=1)
        for layer in self.stack:
            x = layer(x, self.bank)
        return self.head(nn.functional.relu(self.norm(x[:, 0])))


def make():
    torch.manual_seed(77)
    model = TableModel(TableConfig())
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.copy_(torch.rand_like(m.weight) * 0.8 + 0.6)
                m.bias.normal_(std=0.2)
            elif isinstance(m, TiedButterflyMoE):
                m.router.weight.normal_(std=0.4)
                m.router.bias.normal_(std=0.1)
            elif isinstance(m, nn.MultiheadAttention):
                m.in_proj_bias.normal_(std=0.1)
                m.out_proj.bias.normal_(std=0.1)
    categorical = torch.stack([torch.randint(0, c, (3,)) for c in (5, 7, 4)], dim=1)
    return model.eval(), (torch.randn(3, 9), categorical)
