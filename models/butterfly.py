"""The ButterflyMoE layer: experts that share one ternary matrix and own only angles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compiler.errors import UsageError, unknown_name
from .rotation import Rotation, Shuffle
from .routing import GATE_RULES, GateRule, choose
from .ternary import ternary

Activation = Literal["gelu", "gelu_tanh", "none"]
Down = Literal["float", "ternary", "absent"]
DownBias = Literal["none", "weighted", "once"]


@dataclass(frozen=True)
class ButterflyConfig:
    """Every choice of a ButterflyMoE layer; the defaults are ButterflyViT's Algorithm 2.

    ``activation_after``: the activation comes after B(phi) and not before it.
    ``gamma_per_row``: one scale a row of W, else one for the whole of W.
    ``down_bias``: absent, weighted by the gates (inside the expert), or added once a token.
    ``down_first_sum``: sum the experts before W_down, which they share; the same function with
    1/k of the work. Off, each chosen expert has its own product, as the papers print it.
    ``angle_std``, ``matrix_gain``: spread of the angles at the start, and of both matrices against
    that of ``nn.Linear``; at 1 the experts add little to the residual stream of a small model.
    """

    d_model: int = 256
    d_ff: int = 1024
    experts: int = 8
    top_k: int = 2
    layers_in: int = 2
    layers_out: int = 2
    shuffle: Shuffle = "deinterleave"
    shuffle_first: bool = False
    transpose_in: bool = False
    transpose_out: bool = False
    activation: Activation = "gelu"
    activation_after: bool = False
    gate: GateRule = "raw"
    gate_bias: bool = False
    gamma_per_row: bool = False
    up_bias: bool = False
    down: Down = "float"
    down_bias: DownBias = "none"
    down_first_sum: bool = False
    angle_std: float = 0.01
    matrix_gain: float = 1.0

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("gate rule", self.gate, GATE_RULES),
            ("activation", self.activation, get_args(Activation)),
            ("kind of W_down", self.down, get_args(Down)),
            ("bias of W_down", self.down_bias, get_args(DownBias)),
        ):
            if name not in known:
                raise unknown_name(kind, str(name), known)
        if not 1 <= self.top_k <= self.experts:
            raise UsageError(
                f"top_k = {self.top_k} of {self.experts} experts",
                help="choose at least 1 expert a token and at most all of them",
            )
        if self.down == "absent" and self.down_bias != "none":
            raise UsageError(
                f"down_bias = '{self.down_bias}' where W_down is absent",
                help="set down_bias='none', or down='float'",
            )
        _ = self.rotation_in, self.rotation_out  # each checks its own depth and shuffle

    @property
    def rotation_in(self) -> Rotation:
        """B(theta), in front of the ternary product."""
        return Rotation(
            self.d_model, self.layers_in, self.shuffle, self.shuffle_first, self.transpose_in
        )

    @property
    def rotation_out(self) -> Rotation:
        """B(phi), behind the ternary product."""
        return Rotation(
            self.d_ff, self.layers_out, self.shuffle, self.shuffle_first, self.transpose_out
        )

    @property
    def d_out(self) -> int:
        """The width of the result: d_ff where nothing projects back down."""
        return self.d_ff if self.down == "absent" else self.d_model


def linear_form(d_model: int, d_out: int, **choices: Any) -> ButterflyConfig:
    """ButterflyMoE's equation 3: B(phi) W_hat B(theta)^T x, without activation and W_down."""
    form: dict[str, Any] = {"activation": "none", "down": "absent", "transpose_in": True}
    return ButterflyConfig(d_model=d_model, d_ff=d_out, **{**form, **choices})


class ButterflyMoE(nn.Module):
    """A ButterflyMoE layer without a loop over experts: each row gathers its expert's angles."""

    def __init__(self, config: ButterflyConfig) -> None:
        super().__init__()
        self.config = config
        d, f, e = config.d_model, config.d_ff, config.experts
        rotation_in, rotation_out = config.rotation_in, config.rotation_out
        self.gate = nn.Linear(d, e, bias=config.gate_bias)
        self.theta = nn.Parameter(torch.empty(e, config.layers_in, rotation_in.padded // 2))
        self.phi = nn.Parameter(torch.empty(e, config.layers_out, rotation_out.padded // 2))
        self.up = nn.Parameter(torch.empty(f, d))
        self.up_bias = nn.Parameter(torch.empty(f)) if config.up_bias else None
        has_down, has_bias = config.down != "absent", config.down_bias != "none"
        self.down = nn.Parameter(torch.empty(d, f)) if has_down else None
        self.down_bias = nn.Parameter(torch.empty(d)) if has_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Angles from N(0, angle_std^2), matrices uniform and scaled by the gain, biases zero."""
        for angles in (self.theta, self.phi):
            nn.init.normal_(angles, std=self.config.angle_std)
        for matrix in (self.up, self.down):
            if matrix is not None:
                bound = self.config.matrix_gain / math.sqrt(matrix.shape[1])
                nn.init.uniform_(matrix, -bound, bound)
        for bias in (self.up_bias, self.down_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """The mixture for x: [..., d_model], as [..., d_out]."""
        y, _ = self.with_logits(x)
        return y

    def with_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mixture [..., d_out] and the gate logits [..., E] that chose its experts."""
        logits: Tensor = self.gate(x)
        gates, experts = choose(logits.flatten(0, -2), self.config.top_k, self.config.gate)
        y = self.mix(x.flatten(0, -2), gates, experts)
        return torch.unflatten(y, 0, x.shape[:-1]), logits

    def mix(self, x: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
        """sum_i gate_i * expert_i(x) for x: [T, d], gates and experts: [T, k]; y: [T, d_out]."""
        config = self.config
        cos_in, sin_in = _gather(self.theta, experts)  # [T, k, L, d'/2]
        cos_out, sin_out = _gather(self.phi, experts)  # [T, k, L, F'/2]
        rows = config.rotation_in.apply(x.unsqueeze(1), cos_in, sin_in)  # [T, k, d]
        rows = self.between(rows, cos_out, sin_out)  # [T, k, F]
        if config.down_first_sum:
            hidden = (rows * gates.unsqueeze(-1)).sum(dim=1)  # [T, F]
            y = self.project(hidden)
            if self.down_bias is not None and config.down_bias == "weighted":
                y = y + gates.sum(dim=1, keepdim=True) * self.down_bias
        else:
            inner = self.down_bias if config.down_bias == "weighted" else None
            y = (self.project(rows, inner) * gates.unsqueeze(-1)).sum(dim=1)  # [T, d_out]
        return y if config.down_bias != "once" or self.down_bias is None else y + self.down_bias

    def between(self, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Ternary product, activation and B(phi) of rotated rows: [..., d] to [..., F]."""
        config = self.config
        up = ternary(self.up, per_row=config.gamma_per_row)  # [F, d]
        hidden = F.linear(rows, up, self.up_bias)  # [..., F]
        if not config.activation_after:
            hidden = _activate(hidden, config.activation)
        hidden = config.rotation_out.apply(hidden, cos, sin)
        return _activate(hidden, config.activation) if config.activation_after else hidden

    def project(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """W_down hidden + bias: [..., F] to [..., d_out]; hidden itself where W_down is absent."""
        if self.down is None:
            return hidden
        is_ternary = self.config.down == "ternary"
        down = ternary(self.down, per_row=self.config.gamma_per_row) if is_ternary else self.down
        return F.linear(hidden, down, bias)


class MaskedLoopButterflyMoE(ButterflyMoE):
    """Algorithm 2 as printed: one expert after the other, on the tokens that chose it.

    Computes what ``ButterflyMoE`` computes and has the same parameters: a state dict of either
    loads into the other.
    """

    def mix(self, x: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
        """sum_i gate_i * expert_i(x) for x: [T, d], gates and experts: [T, k]; y: [T, d_out]."""
        config = self.config
        inner = self.down_bias if config.down_bias == "weighted" else None
        y = x.new_zeros(x.shape[0], config.d_out)
        for expert in range(config.experts):
            chosen = experts == expert  # [T, k]
            mask = chosen.any(dim=-1)  # [T]
            if not mask.any():
                continue
            theta, phi = self.theta[expert], self.phi[expert]
            rows = config.rotation_in.apply(x[mask], theta.cos(), theta.sin())
            rows = self.project(self.between(rows, phi.cos(), phi.sin()), inner)
            y[mask] += (gates * chosen).sum(dim=-1)[mask].unsqueeze(-1) * rows
        return y if config.down_bias != "once" or self.down_bias is None else y + self.down_bias


def _gather(angles: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, k, L, n/2] of the angles [E, L, n/2] of each chosen expert."""
    # The table is small, so its cosines are taken once and not once a row.
    shape = angles.shape[1:]
    cos = torch.unflatten(F.embedding(experts, angles.cos().flatten(1)), -1, shape)
    sin = torch.unflatten(F.embedding(experts, angles.sin().flatten(1)), -1, shape)
    return cos, sin


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "none":
        return x
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
