"""Learned simulator on a triangulated mesh (MeshGraphNets flavour): edge messages, index_add over a fixed edge list, and
a Butterfly-MoE node update. Float32 checkpoints ship the substrate already ternary.

  rotation    2x2 matrices [L, n/2, 2, 2] contracted with einsum
  shuffle     de-interleave (evens, then odds) before the rotation, through an index table
  handedness  B(theta)^T going in, B(phi)^T going out; L_in = 4, L_out = 7
  width       node latent 40 (padded to 64), F = 128
  router      argmax top-1 of E = 7, gate = sigmoid(logit), linear router with bias
  quantiser   none at run time: int8 buffer in {-1, 0, 1} and a scale per output row; W_down is a float Linear
  biases      b_up after B(phi)^T (so added to its output), shared; b_down added once, not gated
  form        g * W_down (B(phi)^T GELU(erf)(W_hat B(theta)^T x) + b_up), then + b_down
  dispatch    stable argsort by expert, bincount, split into slabs, cat, inverse permutation by scatter
"""
import torch
from torch import Tensor, nn


def grid_mesh(nx: int, ny: int, jitter: float):
    """Regular grid cut into triangles; returns node coordinates and a symmetric edge list (senders, receivers)."""
    ii, jj = torch.meshgrid(torch.arange(nx), torch.arange(ny), indexing="ij")
    pos = torch.stack([ii, jj], -1).reshape(-1, 2).float()
    pos = pos + jitter * torch.randn_like(pos)
    node = (ii * ny + jj)
    pairs = torch.cat([
        torch.stack([node[:-1].reshape(-1), node[1:].reshape(-1)]),
        torch.stack([node[:, :-1].reshape(-1), node[:, 1:].reshape(-1)]),
        torch.stack([node[:-1, :-1].reshape(-1), node[1:, 1:].reshape(-1)]),
    ], dim=1)
    return pos, torch.cat([pairs, pairs.flip(0)], dim=1)


class GivensNetwork(nn.Module):
    """One bank of butterflies: angles for every expert, one wiring."""

    def __init__(self, n_experts: int, width: int, depth: int):
        super().__init__()
        self.width = width
        n = 2
        while n < width:
            n *= 2
        self.n = n
        self.angle = nn.Parameter(torch.zeros(n_experts, depth, n // 2))
        order = torch.cat([torch.arange(0, n, 2), torch.arange(1, n, 2)])
        self.register_buffer("order", order)
        self.register_buffer("unorder", torch.argsort(order))

    def blocks(self, e: int) -> Tensor:
        c, s = torch.cos(self.angle[e]), torch.sin(self.angle[e])
        return torch.stack([c, -s, s, c], dim=-1).unflatten(-1, (2, 2))

    def apply_transpose(self, x: Tensor, e: int) -> Tensor:
        if self.n != self.width:
            x = torch.cat([x, x.new_zeros(x.shape[0], self.n - self.width)], dim=-1)
        for g in self.blocks(e).flip(0):
            x = torch.einsum("jab,tja->tjb", g, x.unflatten(-1, (-1, 2))).flatten(-2)
            x = x.index_select(-1, self.unorder)
        return x.narrow(-1, 0, self.width)


class MoENodeUpdate(nn.Module):
    def __init__(self, latent: int, hidden: int, n_experts: int, depth_in: int, depth_out: int):
        super().__init__()
        self.n_experts = n_experts
        self.router = nn.Linear(latent, n_experts)
        self.rot_in = GivensNetwork(n_experts, latent, depth_in)
        self.rot_out = GivensNetwork(n_experts, hidden, depth_out)
        self.register_buffer("w_ternary", torch.zeros(hidden, latent, dtype=torch.int8))
        self.register_buffer("w_scale", torch.ones(hidden, 1))
        self.b_up = nn.Parameter(torch.zeros(hidden))
        self.down = nn.Linear(hidden, latent)

    @torch.no_grad()
    def load_dense(self, w: Tensor):
        scale = w.abs().mean(dim=1, keepdim=True)
        self.w_ternary.copy_((w / (scale + 1e-8)).round().clamp(-1, 1))
        self.w_scale.copy_(scale)

    def expert(self, x: Tensor, e: int) -> Tensor:
        z = self.rot_in.apply_transpose(x, e)
        z = (z @ self.w_ternary.to(z.dtype).t()) * self.w_scale.squeeze(1)
        return self.rot_out.apply_transpose(nn.functional.gelu(z), e) + self.b_up

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        which = torch.argmax(logits, dim=-1)
        gate = torch.sigmoid(torch.gather(logits, 1, which[:, None]))
        perm = torch.argsort(which, stable=True)
        counts = torch.bincount(which, minlength=self.n_experts).tolist()
        slabs = torch.split(x[perm], counts)
        done = torch.cat([self.expert(slab, e) for e, slab in enumerate(slabs)], dim=0)
        y = torch.zeros_like(done).scatter(0, perm[:, None].expand_as(done), done)
        return gate * (y @ self.down.weight.t()) + self.down.bias


class Processor(nn.Module):
    def __init__(self, latent: int, hidden: int, n_experts: int, depth_in: int, depth_out: int):
        super().__init__()
        self.edge_mlp = nn.Sequential(nn.Linear(3 * latent, latent), nn.SiLU(), nn.Linear(latent, latent))
        self.edge_norm = nn.LayerNorm(latent)
        self.agg = nn.Linear(2 * latent, latent)
        self.node_norm = nn.LayerNorm(latent)
        self.node_moe = MoENodeUpdate(latent, hidden, n_experts, depth_in, depth_out)

    def forward(self, v: Tensor, e: Tensor, senders: Tensor, receivers: Tensor):
        m = self.edge_mlp(torch.cat([v[senders], v[receivers], e], dim=-1))
        e = e + self.edge_norm(m)
        pooled = torch.zeros_like(v).index_add(0, receivers, e)
        v = v + self.node_moe(self.node_norm(self.agg(torch.cat([v, pooled], dim=-1))))
        return v, e


class MeshSimulator(nn.Module):
    def __init__(self, nx=7, ny=6, node_in=5, node_out=3, latent=40, hidden=128, n_experts=7, steps=3):
        super().__init__()
        pos, edges = grid_mesh(nx, ny, jitter=0.15)
        rel = pos[edges[0]] - pos[edges[1]]
        self.register_buffer("edge_index", edges)
        self.register_buffer("edge_attr", torch.cat([rel, rel.norm(dim=-1, keepdim=True)], dim=-1))
        self.node_enc = nn.Sequential(nn.Linear(node_in, latent), nn.SiLU(), nn.Linear(latent, latent))
        self.edge_enc = nn.Sequential(nn.Linear(3, latent), nn.SiLU(), nn.Linear(latent, latent))
        self.processors = nn.ModuleList([Processor(latent, hidden, n_experts, 4, 7) for _ in range(steps)])
        self.out_norm = nn.LayerNorm(latent)
        self.decode = nn.Linear(latent, node_out)

    def forward(self, state: Tensor) -> Tensor:
        """state [nodes, node_in] -> predicted change of the physical fields [nodes, node_out]."""
        senders, receivers = self.edge_index
        v, e = self.node_enc(state), self.edge_enc(self.edge_attr)
        for block in self.processors:
            v, e = block(v, e, senders, receivers)
        return self.decode(self.out_norm(v))


def make():
    torch.manual_seed(80)
    net = MeshSimulator()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("angle"):
                p.normal_(0.0, 0.5)
            elif name.endswith(("bias", "b_up")):
                p.normal_(0.0, 0.1)
            elif "norm" in name:
                p.copy_(1.0 + 0.2 * torch.randn_like(p))
            elif "router" in name:
                p.normal_(0.0, 0.3)
            elif p.dim() == 2:
                p.normal_(0.0, 1.4 * p.shape[1] ** -0.5)
        for block in net.processors:
            block.node_moe.load_dense(torch.randn(128, 40) * 0.2)
    return net.eval(), (2.0 * torch.randn(42, 5),)
