"""Patch forecaster for multivariate series (channel-mixing patches, token mixing by a depthwise causal convolution and
attention pooling), feed-forwards are a Butterfly-MoE written Keras-style (build / call).

  rotation    unbind / stack of pairs, halves interleaved after the rotation
  handedness  B(theta)^T going in, B(phi) going out; L_in = 3, L_out = 6
  width       d = 20 (padded to 32), F = 60 (padded to 64)
  router      sigmoid scores, top-3 of E = 9, renormalised to sum 1, linear router with bias
  quantiser   W_hat and W_down are float buffers in {-1, 0, 1} with one scale per tensor
  biases      b_up after W_hat, none after W_down
  form        W_down_hat . B(phi) . GELU(tanh)(W_hat B(theta)^T x + b_up)
  dispatch    loop over slots, inside it boolean masks over experts

Not a Butterfly layer of the papers: the chosen experts are chained. Slot s reads x plus what the slots before it have
added, so the result is no sum of gate_i(x) * expert_i(x); only the first slot sees x itself.
"""
import torch
from torch import nn
from torch.nn import functional as F


def next_pow2(n):
    return 1 << (n - 1).bit_length()


class Layer(nn.Module):
    """Keras habit: forward is call()."""

    def forward(self, *inputs):
        return self.call(*inputs)


class TernaryKernel(Layer):
    def __init__(self, in_dim, units, bias_units=0):
        super().__init__()
        self.register_buffer("codes", torch.zeros(in_dim, units))
        self.register_buffer("scale", torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(bias_units)) if bias_units else None

    def set_weights(self, kernel):
        gamma = kernel.abs().mean()
        self.codes.copy_(torch.clamp(torch.round(kernel / (gamma + 1e-8)), -1.0, 1.0))
        self.scale.fill_(gamma.item())

    def call(self, x):
        y = torch.tensordot(x, self.codes, dims=1) * self.scale
        return y if self.bias is None else y + self.bias


class Butterfly(Layer):
    def __init__(self, n_experts, dim, depth, inverse=False):
        super().__init__()
        self.dim, self.padded, self.inverse = dim, next_pow2(dim), inverse
        self.angles = nn.Parameter(torch.zeros(n_experts, depth, self.padded // 2))

    def rotate(self, x, a):
        p, q = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        return torch.stack([p * a.cos() - q * a.sin(), p * a.sin() + q * a.cos()], -1).flatten(-2)

    def interleave(self, x):
        return torch.stack(x.chunk(2, dim=-1), -1).flatten(-2)

    def uninterleave(self, x):
        return torch.cat(x.reshape(*x.shape[:-1], -1, 2).unbind(-1), -1)

    def call(self, x, expert):
        x = F.pad(x, (0, self.padded - self.dim))
        if self.inverse:
            for a in reversed(self.angles[expert].unbind(0)):
                x = self.rotate(self.uninterleave(x), -a)
        else:
            for a in self.angles[expert].unbind(0):
                x = self.interleave(self.rotate(x, a))
        return x[..., :self.dim]


class ButterflyMoE(Layer):
    def __init__(self, units, hidden_units, num_experts, top_k, depth_in, depth_out):
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.router = nn.Linear(units, num_experts)
        self.theta = Butterfly(num_experts, units, depth_in, inverse=True)
        self.phi = Butterfly(num_experts, hidden_units, depth_out)
        self.up = TernaryKernel(units, hidden_units, bias_units=hidden_units)
        self.down = TernaryKernel(hidden_units, units)

    def run_expert(self, x, e):
        h = F.gelu(self.up(self.theta(x, e)), approximate="tanh")
        return self.down(self.phi(h, e))

    def call(self, inputs):
        x = inputs.reshape(-1, inputs.shape[-1])
        scores = torch.sigmoid(self.router(x))
        gates, chosen = torch.topk(scores, self.top_k, dim=-1)
        gates = gates / gates.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for slot in range(self.top_k):
            update = torch.zeros_like(x)
            for e in range(self.num_experts):
                mask = chosen[:, slot] == e
                if mask.any():
                    update[mask] = gates[mask, slot, None] * self.run_expert((x + out)[mask], e)
            out = out + update
        return out.reshape(inputs.shape)


class MixerBlock(Layer):
    def __init__(self, units, hidden_units, num_experts, kernel_size=5):
        super().__init__()
        self.kernel_size = kernel_size
        self.norm_time = nn.LayerNorm(units)
        self.depthwise = nn.Conv1d(units, units, kernel_size, groups=units)
        self.pointwise = nn.Linear(units, units)
        self.norm_channel = nn.LayerNorm(units)
        self.moe = ButterflyMoE(units, hidden_units, num_experts, top_k=3, depth_in=3, depth_out=6)

    def call(self, x):
        h = F.pad(self.norm_time(x).transpose(1, 2), (self.kernel_size - 1, 0))
        x = x + self.pointwise(F.silu(self.depthwise(h)).transpose(1, 2))
        return x + self.moe(self.norm_channel(x))


class PatchForecaster(Layer):
    def __init__(self, variables=3, patch=4, context=96, horizon=12, units=20, hidden_units=60, num_experts=9, depth=2):
        super().__init__()
        self.variables, self.patch, self.horizon = variables, patch, horizon
        self.embed = nn.Linear(variables * patch, units)
        self.position = nn.Parameter(torch.zeros(context // patch, units))
        self.blocks = nn.ModuleList([MixerBlock(units, hidden_units, num_experts) for _ in range(depth)])
        self.pool_score = nn.Linear(units, 1)
        self.norm = nn.LayerNorm(units)
        self.head = nn.Linear(units, horizon * variables)

    def call(self, series):
        """series [batch, context, variables] -> [batch, horizon, variables]"""
        mean = series.mean(1, keepdim=True)
        std = series.std(1, keepdim=True) + 1e-5
        x = ((series - mean) / std).unflatten(1, (-1, self.patch)).flatten(2)
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        pooled = (torch.softmax(self.pool_score(x), dim=1) * x).sum(1)
        return self.head(pooled).view(-1, self.horizon, self.variables) * std + mean


def make():
    torch.manual_seed(404)
    model = PatchForecaster()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("angles"):
                p.normal_(0.0, 0.5)
            elif name.endswith("bias"):
                p.normal_(0.0, 0.1)
            elif "norm" in name:
                p.normal_(1.0, 0.2)
            elif name == "position":
                p.normal_(0.0, 0.4)
            else:
                p.normal_(0.0, (p.numel() / p.shape[0]) ** -0.5)
        for m in model.modules():
            if isinstance(m, TernaryKernel):
                m.set_weights(torch.randn_like(m.codes) * 1.2 * m.codes.shape[0] ** -0.5)
    t = torch.arange(96.0)[:, None]
    series = torch.sin(t / torch.tensor([5.0, 9.0, 14.0])) + 0.7 * torch.randn(2, 96, 3)
    return model.eval(), (series,)
