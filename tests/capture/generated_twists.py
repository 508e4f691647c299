"""Near-misses: a generated layer with one change that makes it something else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .generated_rotation import MATRICES, Rotation
from .generator import Config, Generated


class Twisted(Generated):
    """A layer whose experts own a vector more, of so many numbers as `own` says."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.random = torch.Generator().manual_seed(config.seed + 1)
        self.gain = nn.Parameter(torch.rand(config.width, generator=self.random) + 0.5)
        self.extra = nn.Parameter(self.values((config.experts, 1, self.own())))

    def own(self) -> int:
        return 0

    def values(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self.random) + 0.5

    def tables(self) -> tuple[Tensor, ...]:
        return (*super().tables(), self.extra) if self.own() else super().tables()

    @staticmethod
    def fits(c: Config) -> bool:
        """Whether the change makes something else of this layer."""
        return True


class OfWidth(Twisted):
    def own(self) -> int:
        return self.c.width


class OfHidden(Twisted):
    def own(self) -> int:
        return self.c.hidden


class OneNumber(Twisted):
    def own(self) -> int:
        return 1


# --- rotations ---


class ReflectedExpert(OfWidth):
    """A channel of expert 0 has its sign turned."""

    def values(self, shape: tuple[int, ...]) -> Tensor:
        signs = torch.ones(shape)
        signs[0, 0, 0] = -1
        return signs

    def between(self, x: Tensor, *extra: Tensor) -> Tensor:
        return x * extra[0][..., 0, :]


@dataclass(frozen=True)
class Reflection(Rotation):
    """Each block has the determinant -1."""

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor, i: int) -> Tensor:
        stride = 2**i if self.shuffle == "strides" else 1
        second = (torch.arange(x.shape[-1]) & stride) != 0
        return super().turn(x, cos, sin, i) * torch.where(second, -1.0, 1.0).to(x.dtype)


class Reflections(Twisted):
    """Fixed orders and turns of both channels make the same; in matrices these are found."""

    def __init__(self, config: Config) -> None:
        super().__init__(replace(config, rotation_in=Reflection(**vars(config.rotation_in))))

    @staticmethod
    def fits(c: Config) -> bool:
        return c.rotation_in.style not in MATRICES


class OwnOrder(OfWidth):
    """Another permutation of the channels for each expert."""

    def values(self, shape: tuple[int, ...]) -> Tensor:
        orders = [torch.randperm(shape[-1], generator=self.random) for _ in range(shape[0])]
        return torch.stack(orders)[:, None].float()

    def between(self, x: Tensor, *extra: Tensor) -> Tensor:
        order = extra[0][..., 0, :].round().long()
        shape = torch.broadcast_shapes(x.shape, order.shape)
        return x.expand(shape).gather(-1, order.expand(shape))


class PartlyRotated(Twisted):
    """Half of the pairs of each layer have no angle."""

    def unit(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        turned = torch.arange(angles.shape[-1]) >= angles.shape[-1] // 2
        return super().unit(angles * turned.to(angles.dtype))


class NearlyOrthogonal(Twisted):
    def unit(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().unit(angles)
        return cos * 1.001, sin * 0.999


class Gain(Twisted):
    def between(self, x: Tensor, *extra: Tensor) -> Tensor:
        return x * self.gain


class SoftAngles(Twisted):
    """The angles of the chosen experts mixed by their gates."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1) if self.c.layout == "channels_first" else x
        gates, experts = self.route(x)
        weight = gates[..., None, None]
        y = self.expert(x, *((table * weight).sum(-3) for table in self.of(experts)))
        y = self.finish(y, gates)
        return y.movedim(-1, 1) if self.c.layout == "channels_first" else y


# --- matrices ---


class FiveLevels(Twisted):
    def multiply(self, x: Tensor) -> Tensor:
        gamma = self.up.abs().mean()
        return F.linear(x, gamma * (self.up / gamma).round().clamp(-2, 2), self.up_bias)


class OneWeight(Twisted):
    """A weight of the ternary matrix is off by a thousandth."""

    def multiply(self, x: Tensor) -> Tensor:
        gamma = self.up.abs().mean()
        w = gamma * (self.up / gamma).round().clamp(-1, 1)
        row = (w != 0).sum(1).argmax()
        column = F.one_hot(w.abs().index_select(0, row.reshape(1)).argmax(), w.shape[1])
        one = F.one_hot(row, len(w))[:, None] * column
        return F.linear(x, w * (1 + 0.001 * one), self.up_bias)


class OwnSubstrate(OfHidden):
    """Each expert leaves out other rows of W_hat."""

    def values(self, shape: tuple[int, ...]) -> Tensor:
        kept = (torch.rand(shape, generator=self.random) < 0.7).float()
        kept[0, 0, 0], kept[1, 0, 0] = 0, 1
        return kept

    def product(self, x: Tensor, *extra: Tensor) -> Tensor:
        own = self.quantised(self.up) * extra[0][..., 0, :, None]
        return torch.einsum("...d,...fd->...f", x, own)


class OwnDown(OfHidden):
    def times_down(self, u: Tensor, *extra: Tensor) -> Tensor:
        own = self.w_down() * extra[0][..., 0, None, :]
        return torch.einsum("...f,...nf->...n", u, own)

    @staticmethod
    def fits(c: Config) -> bool:
        return c.down != "absent" and not c.late


class OwnUpBias(OfHidden):
    def behind(self, u: Tensor, *extra: Tensor) -> Tensor:
        return u + extra[0][..., 0, :]


class OwnScale(OneNumber):
    def result(self, y: Tensor, *extra: Tensor) -> Tensor:
        return y * extra[0][..., 0, :]

    @staticmethod
    def fits(c: Config) -> bool:
        # With one expert a token it may count as the gate, times a factor of each token behind.
        return c.chosen > 1


class SlightScale(OwnScale):
    """The last expert is larger by a thousandth."""

    def values(self, shape: tuple[int, ...]) -> Tensor:
        scales = torch.ones(shape)
        scales[-1] = 1.001
        return scales


class OwnBias(OneNumber):
    def result(self, y: Tensor, *extra: Tensor) -> Tensor:
        return y + extra[0][..., 0, :]


# --- what is done on the way ---


class SquashedBetween(Twisted):
    def between(self, x: Tensor, *extra: Tensor) -> Tensor:
        return torch.tanh(x)


class NormBetween(Twisted):
    def between(self, x: Tensor, *extra: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:])


class Clamped(Twisted):
    """Only of large values is it another function."""

    def behind(self, u: Tensor, *extra: Tensor) -> Tensor:
        return u.clamp(-100, 100)


class ClampedInside(Twisted):
    def between(self, x: Tensor, *extra: Tensor) -> Tensor:
        return x.clamp(-100, 100)


class ClampedResult(Twisted):
    """Only of large results is it another function."""

    def result(self, y: Tensor, *extra: Tensor) -> Tensor:
        return y.clamp(-100, 100)


class ClampedGates(Twisted):
    """Gates below a thousandth are none: a Butterfly whose gates are those."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates, experts = super().route(x)
        return torch.where(gates > 0.001, gates, torch.zeros_like(gates)), experts


class Shrunk(Twisted):
    """Only of small values is it another function."""

    def between(self, x: Tensor, *extra: Tensor) -> Tensor:
        return torch.where(x.abs() < 1e-4, torch.zeros_like(x), x)


class Mixed(Twisted):
    """Rows along the first axis are mixed: tokens or experts, as the layer is written."""

    def behind(self, u: Tensor, *extra: Tensor) -> Tensor:
        return u + u.mean(0, keepdim=True)

    @staticmethod
    def fits(c: Config) -> bool:
        return c.dispatch not in ("vmapped", "selected_mask")


class Shifted(Twisted):
    def between(self, x: Tensor, *extra: Tensor) -> Tensor:
        return torch.roll(x, 1, 0)

    @staticmethod
    def fits(c: Config) -> bool:
        return c.dispatch not in ("vmapped", "selected_mask")


# --- gates ---


class GatedInput(Twisted):
    """Gates in front; where experts are linear, that is gates behind."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1) if self.c.layout == "channels_first" else x
        gates, experts = self.route(x)
        rows = x.unsqueeze(-2) * gates[..., None]
        y = self.finish(self.expert(rows, *self.of(experts)).sum(-2), gates)
        return y.movedim(-1, 1) if self.c.layout == "channels_first" else y

    @staticmethod
    def fits(c: Config) -> bool:
        return c.activation != "none"


class Capacity(Twisted):
    """An expert serves two tokens at most, in their order: a Butterfly with odd routing."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates, experts = super().route(x)
        flat = experts.flatten(0, -2)
        served = F.one_hot(flat, self.count).sum(1).cumsum(0).gather(1, flat)
        return gates * (served <= 2).to(x.dtype).reshape(gates.shape), experts


TWISTS: dict[str, type[Twisted]] = {
    kind.__name__: kind
    for kind in (
        ReflectedExpert, Reflections, OwnOrder, PartlyRotated, NearlyOrthogonal, Gain, SoftAngles,
        FiveLevels, OneWeight, OwnSubstrate, OwnDown, OwnUpBias, OwnScale, SlightScale, OwnBias,
        SquashedBetween, NormBetween, Clamped, ClampedInside, ClampedResult, ClampedGates, Shrunk,
        Mixed, Shifted, GatedInput, Capacity,
    )
}  # fmt: skip
MAY_BE_FULL = (Capacity, ClampedGates)
