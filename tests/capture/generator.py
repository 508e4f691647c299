"""Random Butterfly layers in many coding styles, for capture and recognition to be tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from .generated_dispatch import DISPATCHES
from .generated_rotation import SHUFFLES, STYLES, WHOLE, WRITTEN, Rotation, padded

ROUTINGS = ("softmax", "topk_softmax", "renormalised", "sigmoid", "raw")
CHOICES = ("topk", "sort", "lowest", "argsort")
ONE_CHOICES = ("max", "argmax")
DENSE = ("scatter", "mask", "threshold", "equal", "rank")
QUANTISERS = ("absmean", "threshold", "codes_before", "codes_after", "straight", "function")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda u: u,
    "gelu": F.gelu,
    "tanh_gelu": lambda u: F.gelu(u, approximate="tanh"),
}
LAYOUTS = ("rows", "batch", "channels_first")
MARGIN = 1e-3


@dataclass(frozen=True)
class Config:
    """One layer: its sizes, its meaning, and how each part of it is written."""

    tokens: int
    width: int
    hidden: int
    experts: int
    chosen: int
    depth_in: int
    depth_out: int
    rotation_in: Rotation
    rotation_out: Rotation
    dispatch: str
    routing: str
    choice: str
    dense: str
    gate_bias: bool
    circle: str
    quantiser: str
    by_row: bool
    activation: str
    after: bool
    down: str
    late: bool
    up_bias: bool
    middle_bias: bool
    down_bias: str
    layout: str
    seed: int


class Rounded(torch.autograd.Function):
    """Ternary forward, the identity backward."""

    @staticmethod
    def forward(_: Any, w: Tensor, gamma: Tensor) -> Tensor:
        return gamma * (w / (gamma + 1e-8)).round().clamp(-1, 1)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def absmean(w: Tensor, by_row: bool) -> Tensor:
    """gamma, the mean magnitude of the matrix or of each row."""
    return w.abs().mean(1, keepdim=True) if by_row else w.abs().mean()


class Generated(nn.Module):
    """The layer that a `Config` describes. Hooks stand where a near-miss changes something."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c = c = config
        self.count = c.experts
        random = torch.Generator().manual_seed(c.seed)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=random))

        self.router = nn.Linear(c.width, c.experts, bias=c.gate_bias)
        self.router.weight = nn.Parameter(normal(c.experts, c.width).data / c.width**0.5 * 1.5)
        if c.gate_bias:
            self.router.bias = nn.Parameter(normal(c.experts).data * 0.3)
        self.theta = normal(c.experts, c.depth_in, padded(c.width) // 2)
        self.phi = normal(c.experts, c.depth_out, padded(c.hidden) // 2)
        self.up = normal(c.hidden, c.width)
        self.up_bias = normal(c.hidden) if c.up_bias else None
        self.middle_bias = normal(c.hidden) if c.middle_bias else None
        self.down = normal(c.width, c.hidden) if c.down != "absent" else None
        self.down_bias = normal(c.width) if c.down_bias != "none" else None
        self.extra = normal(c.experts, 1, 1)
        gamma = absmean(self.up.detach(), c.by_row)
        codes = (self.up.detach() / (gamma + 1e-8)).round().clamp(-1, 1)
        self.register_buffer("codes", codes.to(torch.int8))
        self.register_buffer("scale", gamma.clone())

    # --- hooks ---

    def before(self, x: Tensor, *extra: Tensor) -> Tensor:
        return x

    def between(self, x: Tensor, *extra: Tensor) -> Tensor:
        return x

    def behind(self, u: Tensor, *extra: Tensor) -> Tensor:
        return u

    def result(self, y: Tensor, *extra: Tensor) -> Tensor:
        return y

    def product(self, x: Tensor, *extra: Tensor) -> Tensor:
        return self.multiply(x)

    def times_down(self, u: Tensor, *extra: Tensor) -> Tensor:
        return F.linear(u, self.w_down())

    def unit(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, however they are parametrised."""
        if self.c.circle == "angles":
            return angles.cos(), angles.sin()
        if self.c.circle == "cayley":
            square = angles * angles
            return (1 - square) / (1 + square), 2 * angles / (1 + square)
        phase = torch.exp(1j * angles)
        return phase.real, phase.imag

    def tables(self) -> tuple[Tensor, ...]:
        """What each expert owns, the number of the expert first."""
        return self.theta, self.phi

    # --- routing ---

    def scores(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        if self.c.routing in ("softmax", "renormalised"):
            return logits.softmax(-1)
        return logits.sigmoid() if self.c.routing == "sigmoid" else logits

    def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        k = self.c.chosen
        if self.c.choice == "sort":
            values, numbers = scores.sort(-1, descending=True)
            return values[..., :k], numbers[..., :k]
        if self.c.choice == "lowest":
            values, numbers = scores.neg().sort(-1)
            return -values[..., :k], numbers[..., :k]
        if self.c.choice == "argsort":
            numbers = scores.argsort(dim=-1, descending=True)[..., :k]
            return scores.gather(-1, numbers), numbers
        if self.c.choice == "max":
            return scores.max(-1, keepdim=True)
        if self.c.choice == "argmax":
            numbers = scores.argmax(-1, keepdim=True)
            return scores.gather(-1, numbers), numbers
        if self.c.choice == "double_argmax":
            first = scores.argmax(-1, keepdim=True)
            rest = scores.masked_fill(F.one_hot(first[..., 0], self.count).bool(), float("-inf"))
            numbers = torch.cat([first, rest.argmax(-1, keepdim=True)], -1)
            return scores.gather(-1, numbers), numbers
        return scores.topk(k, dim=-1)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gates and numbers of the chosen experts, [..., k]."""
        values, experts = self.choose(self.scores(x))
        if self.c.routing == "topk_softmax":
            values = values.softmax(-1)
        if self.c.routing == "renormalised":
            values = values / values.sum(-1, keepdim=True)
        return values, experts

    def dense(self, x: Tensor) -> Tensor:
        """A gate for each expert, [..., E], zero for those not chosen."""
        if self.c.dense in ("scatter", "equal"):
            gates, experts = self.route(x)
            if self.c.dense == "scatter":
                zeros = gates.new_zeros(*gates.shape[:-1], self.count)
                return zeros.scatter(-1, experts, gates)
            mask = experts[..., None] == torch.arange(self.count)
            return (gates[..., None] * mask).sum(-2)
        scores = self.scores(x)
        values, experts = self.choose(scores)
        mask = F.one_hot(experts, self.count).sum(-2) > 0
        if self.c.dense == "threshold":
            mask = scores >= values[..., -1:]
        if self.c.dense == "rank":
            mask = scores.argsort(-1, descending=True).argsort(-1) < self.c.chosen
        if self.c.routing == "topk_softmax":
            return scores.masked_fill(~mask, float("-inf")).softmax(-1)
        gates = torch.where(mask, scores, torch.zeros_like(scores))
        return gates / gates.sum(-1, keepdim=True) if self.c.routing == "renormalised" else gates

    # --- experts ---

    def of(self, numbers: int | Tensor) -> tuple[Tensor, ...]:
        return tuple(table[numbers] for table in self.tables())

    def quantised(self, w: Tensor) -> Tensor:
        c = self.c
        if c.quantiser == "threshold":
            size = w.abs()
            mask = size > 0.7 * (size.mean(1, keepdim=True) if c.by_row else size.mean())
            total = (size * mask).sum(1, keepdim=True) if c.by_row else (size * mask).sum()
            count = mask.sum(1, keepdim=True) if c.by_row else mask.sum()
            return w.sign() * mask * (total / count)
        gamma = absmean(w, c.by_row)
        if c.quantiser == "function":
            return Rounded.apply(w, gamma)  # type: ignore[no-any-return, no-untyped-call]
        exact = gamma * (w / (gamma + 1e-8)).round().clamp(-1, 1)
        return w + (exact - w).detach() if c.quantiser == "straight" else exact

    def multiply(self, x: Tensor) -> Tensor:
        if self.c.quantiser not in ("codes_before", "codes_after"):
            return F.linear(x, self.quantised(self.up), self.up_bias)
        codes = self.codes.to(x.dtype)
        if self.c.quantiser == "codes_before":
            return F.linear(x, codes * self.scale, self.up_bias)
        u = F.linear(x, codes) * self.scale.reshape(-1)
        return u if self.up_bias is None else u + self.up_bias

    def w_down(self) -> Tensor:
        assert self.down is not None, "the layer has a W_down"
        w = self.down / self.c.hidden**0.5
        return self.quantised(w) if self.c.down == "ternary" else w

    def expert(self, x: Tensor, theta: Tensor, phi: Tensor, *extra: Tensor) -> Tensor:
        c = self.c
        x = c.rotation_in(self.before(x, *extra), *self.unit(theta))
        u = self.behind(self.product(self.between(x, *extra), *extra), *extra)
        u = u if c.after else ACTIVATIONS[c.activation](u)
        u = c.rotation_out(u, *self.unit(phi))
        u = u if self.middle_bias is None else u + self.middle_bias
        u = ACTIVATIONS[c.activation](u) if c.after else u
        if self.down is not None and not c.late:
            u = self.times_down(u, *extra)
            u = u + self.down_bias if c.down_bias == "weighted" else u
        return self.result(u, *extra)

    def finish(self, y: Tensor, gates: Tensor) -> Tensor:
        """What is done once, behind the sum over the experts."""
        if self.down is not None and self.c.late:
            y = self.times_down(y)
            if self.c.down_bias == "weighted":
                y = y + gates.sum(-1, keepdim=True) * self.down_bias
        return y + self.down_bias if self.c.down_bias == "once" else y

    def forward(self, x: Tensor) -> Tensor:
        run = DISPATCHES[self.c.dispatch]
        if self.c.layout == "channels_first":
            return run(self, x.movedim(1, -1)).movedim(-1, 1)
        return run(self, x)


# --- drawing ---


class Pick(Protocol):
    """Chooses one of several values."""

    def __call__(self, *options: Any) -> Any: ...


# Rows chosen by the data: as many as there are tokens of an expert.
SOME_ROWS = ("selected_rows", "selected_mask", "split_counts")
CUT_UNSEEN = ("one_hot", "vmapped")


def rotation(pick: Pick, width: int, every: bool, dispatch: str) -> Rotation:
    """How one side of so many channels is rotated."""
    styles = STYLES
    if dispatch in SOME_ROWS:
        # Writing slices of rows chosen by the data is refused: zeros of their shape have no mask.
        styles = tuple(style for style in styles if style != "writes")
    if dispatch in CUT_UNSEEN and padded(width) != width:
        # Deep rotations as matrices are recognised only where what is cut off them is seen.
        styles = tuple(style for style in styles if style not in WHOLE)
    return Rotation(
        style=pick(*styles),
        shuffle=pick(*SHUFFLES),
        written=pick(*WRITTEN),
        first=pick(False, True),
        transposed=pick(False, True),
        every=every,
    )


def routing(pick: Pick, chosen: int) -> dict[str, str]:
    """How experts are chosen and weighed, in words of `Config`."""
    choices = CHOICES + (ONE_CHOICES if chosen == 1 else ())
    choices += ("double_argmax",) if chosen == 2 else ()
    choice = pick(*choices)
    return {"routing": pick(*ROUTINGS), "choice": choice, "dense": pick(*DENSE)}


def config(pick: Pick, every: bool = False) -> Config:
    """Any true layer; with ``every`` one that is padded and stripped layer by layer."""
    narrow = (12, 20, 24) if every else (8, 16, 12, 20, 24, 32)
    width, hidden = pick(*narrow), pick(*narrow, 40)
    experts, dispatch = pick(*range(2, 7)), pick(*DISPATCHES)
    chosen = pick(*range(1, min(4, experts) + 1))
    down = pick("float", "ternary", "absent")
    # PyTorch has no vmap for an autograd.Function that is written so.
    quantisers = QUANTISERS[:-1] if dispatch == "vmapped" else QUANTISERS
    flags = ("gate_bias", "by_row", "after", "up_bias", "middle_bias")
    return Config(
        tokens=pick(*range(3, 10)),
        width=width,
        hidden=hidden,
        experts=experts,
        chosen=chosen,
        depth_in=pick(*range(1, padded(width).bit_length())),
        depth_out=pick(*range(1, padded(hidden).bit_length())),
        rotation_in=rotation(pick, width, every, dispatch),
        rotation_out=rotation(pick, hidden, every, dispatch),
        dispatch=dispatch,
        circle=pick("angles", "cayley", "phasor"),
        quantiser=pick(*quantisers),
        activation=pick(*ACTIVATIONS),
        down=down,
        late=down != "absent" and pick(False, True),
        down_bias="none" if down == "absent" else pick("none", "weighted", "once"),
        layout=pick(*LAYOUTS),
        seed=pick(*range(100)),
        **routing(pick, chosen),
        **{name: pick(False, True) for name in flags},
    )


@st.composite
def configs(draw: st.DrawFn, every: bool = False) -> Config:
    """What `config` may give."""
    return config(lambda *options: draw(st.sampled_from(options)), every)


def inputs(module: Generated, count: int, seed: int = 0) -> list[Tensor]:
    """Inputs on which no score is near another, so that rounding chooses no other expert.

    The last one sends all tokens to the same experts. One more is large, where that chooses none
    by a function that is the same for all large scores.
    """
    c = module.c
    lead = (2, c.tokens) if c.layout != "rows" else (c.tokens,)
    size = prod(lead)
    random = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    while len(found) < count:
        rows = torch.randn(400, c.width, generator=random)
        with torch.no_grad():
            logits = module.router(rows).sort(-1).values
        rows = rows[(logits.diff(dim=-1).abs() > MARGIN).all(-1)]
        found.append(rows[:size] if len(found) < count - 1 else rows[:1].expand(size, -1))
    if c.routing in ("raw", "topk_softmax"):
        found.append(1000 * found[0])
    found = [x.reshape(*lead, c.width) for x in found]
    return [(x.movedim(-1, 1) if c.layout == "channels_first" else x).contiguous() for x in found]
