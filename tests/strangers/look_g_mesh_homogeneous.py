"""Per-vertex ambient-occlusion / material predictor on a triangle mesh, umbrella smoothing + rotated-expert feed-forwards.

  form        W_down . B(phi) . GELU( W_hat . B(theta) [x; 1; 0...] )
  shuffle     interleave the two halves, AFTER each rotation
  handedness  multiplication by e^{+i a} in, e^{-i a} out (complex numbers)
  L           4 in (48 -> 64 wide), 6 out (F = 64)
  router      softmax over all 8, top-2, not renormalised, no router bias
  quantiser   round-clip by mean |W| of the whole tensor, straight-through; W_down float
  biases      none in the layer
  dispatch    all experts at once on a leading axis, gates scattered to (vertex, expert), one einsum

NOT a Butterfly layer of the papers: the input is widened with a homogeneous coordinate (the first pad channel is 1, the rest 0)
where the papers pad with zeros. Each theta_e turns that 1 into the live channels, so an expert is affine with an offset of its own,
B(theta_e) e_48, which no bias shared by all experts reproduces.
"""
from dataclasses import dataclass
from typing import Tuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MeshNetConfig:
    channels: int = 48
    hidden: int = 64
    experts: int = 8
    chosen: int = 2
    turns_in: int = 4
    turns_out: int = 6
    smoothing_steps: Tuple[int, ...] = (1, 2, 4)
    materials: int = 6


def next_pow2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def homogenize(x: Tensor, width: int) -> Tensor:
    """[x, y, z, ...] -> [x, y, z, ..., 1, 0, 0] of the given width."""
    missing = width - x.shape[-1]
    if missing == 0:
        return x
    tail = torch.eye(1, missing, dtype=x.dtype, device=x.device)
    return torch.cat([x, tail.expand(*x.shape[:-1], missing)], dim=-1)


def spin(x: Tensor, angles: Tensor, conj: bool = False) -> Tensor:
    """x (E or 1, V, n), angles (E, L, n/2)."""
    phasors = torch.complex(angles.cos(), angles.sin())
    if conj:
        phasors = phasors.conj()
    n = x.shape[-1]
    for l in range(angles.shape[1]):
        z = torch.view_as_complex(x.reshape(*x.shape[:-1], n // 2, 2).contiguous())
        x = torch.view_as_real(z * phasors[:, l].unsqueeze(1)).flatten(-2)
        x = x.unflatten(-1, (2, n // 2)).transpose(-1, -2).flatten(-2)
    return x


class RotatedExperts(nn.Module):
    def __init__(self, cfg: MeshNetConfig):
        super().__init__()
        self.cfg = cfg
        self.width = next_pow2(cfg.channels)
        self.theta = nn.Parameter(torch.randn(cfg.experts, cfg.turns_in, self.width // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(cfg.experts, cfg.turns_out, cfg.hidden // 2) * 0.5)
        self.w = nn.Parameter(torch.randn(cfg.hidden, cfg.channels) * cfg.channels ** -0.5)
        self.w_down = nn.Parameter(torch.randn(cfg.channels, cfg.hidden) * cfg.hidden ** -0.5)
        self.router = nn.Parameter(torch.randn(cfg.channels, cfg.experts) * 0.3)

    def ternary(self) -> Tensor:
        gamma = self.w.abs().mean()
        q = torch.round(self.w / (gamma + 1e-8)).clamp(-1, 1) * gamma
        return self.w + (q - self.w).detach()

    def forward(self, x: Tensor) -> Tensor:                     # (V, C)
        probs = torch.softmax(x @ self.router, dim=-1)
        top, which = torch.topk(probs, self.cfg.chosen, dim=-1)
        gates = torch.zeros_like(probs).scatter(-1, which, top)

        h = spin(homogenize(x, self.width).unsqueeze(0), self.theta)[..., : self.cfg.channels]
        h = nn.functional.gelu(torch.einsum("evc,hc->evh", h, self.ternary()))
        h = spin(h, self.phi, conj=True)
        return torch.einsum("ve,evh,ch->vc", gates, h, self.w_down)


class Umbrella(nn.Module):
    """x <- x + lambda * (mean of neighbours - x), repeated; then a linear map of both the smooth and the detail part."""

    def __init__(self, channels: int, steps: int):
        super().__init__()
        self.steps = steps
        self.lam = nn.Parameter(torch.full((channels,), 0.5) + 0.1 * torch.randn(channels))
        self.mix = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor, laplacian: Tensor) -> Tensor:
        smooth = x
        for _ in range(self.steps):
            smooth = smooth + self.lam * (laplacian @ smooth - smooth)
        return self.mix(torch.cat([smooth, x - smooth], dim=-1))


class MeshBlock(nn.Module):
    def __init__(self, cfg: MeshNetConfig, steps: int):
        super().__init__()
        self.n1 = nn.LayerNorm(cfg.channels)
        self.umbrella = Umbrella(cfg.channels, steps)
        self.n2 = nn.LayerNorm(cfg.channels)
        self.experts = RotatedExperts(cfg)

    def forward(self, x: Tensor, laplacian: Tensor) -> Tensor:
        x = x + self.umbrella(self.n1(x), laplacian)
        return x + self.experts(self.n2(x))


class MeshNet(nn.Module):
    def __init__(self, cfg: MeshNetConfig = MeshNetConfig()):
        super().__init__()
        self.lift = nn.Linear(6, cfg.channels)
        self.blocks = nn.ModuleList(MeshBlock(cfg, s) for s in cfg.smoothing_steps)
        self.norm = nn.LayerNorm(cfg.channels)
        self.material = nn.Linear(cfg.channels, cfg.materials)
        self.occlusion = nn.Linear(cfg.channels, 1)

    @staticmethod
    def neighbour_mean(verts: Tensor, faces: Tensor) -> Tensor:
        n = verts.shape[0]
        edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        adj = verts.new_zeros(n, n)
        adj[edges[:, 0], edges[:, 1]] = 1.0
        adj[edges[:, 1], edges[:, 0]] = 1.0
        return adj / adj.sum(-1, keepdim=True).clamp(min=1.0)

    @staticmethod
    def vertex_normals(verts: Tensor, faces: Tensor) -> Tensor:
        a, b, c = verts[faces].unbind(1)
        face_n = torch.linalg.cross(b - a, c - a)
        acc = torch.zeros_like(verts)
        for corner in range(3):
            acc = acc.index_add(0, faces[:, corner], face_n)
        return nn.functional.normalize(acc, dim=-1)

    def forward(self, verts: Tensor, faces: Tensor) -> Tuple[Tensor, Tensor]:
        laplacian = self.neighbour_mean(verts, faces)
        x = self.lift(torch.cat([verts, self.vertex_normals(verts, faces)], dim=-1))
        for block in self.blocks:
            x = block(x, laplacian)
        x = self.norm(x)
        return self.material(x), torch.sigmoid(self.occlusion(x)).squeeze(-1)


def height_field(side: int) -> Tuple[Tensor, Tensor]:
    u, v = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    z = 0.4 * torch.sin(4 * u) * torch.cos(3 * v) + 0.1 * torch.randn(side, side)
    verts = torch.stack([u, v, z], dim=-1).reshape(-1, 3)
    q = torch.arange(side * side).view(side, side)
    p00, p01, p10, p11 = q[:-1, :-1], q[:-1, 1:], q[1:, :-1], q[1:, 1:]
    faces = torch.cat([torch.stack([p00, p10, p01], -1), torch.stack([p01, p10, p11], -1)]).reshape(-1, 3)
    return verts, faces


def make():
    torch.manual_seed(29)
    net = MeshNet()
    with torch.no_grad():
        net.lift.weight.mul_(2.0)
        for m in net.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.add_(0.2 * torch.randn_like(m.weight))
                m.bias.normal_(0, 0.15)
    return net.eval(), height_field(8)
