"""Switch-style masked-LM encoder written the Mesh-TensorFlow / Keras way (build / call, kernels stored [in, out]).

Expert: equation 3 of ButterflyMoE, B(phi) . (W_hat . B(theta)^T x + b), square kernel (F = d_model = 64), no activation,
no W_down.  The bias b is one vector shared by all experts, so it is rotated by B(phi) and weighted by the gate.
Layer order: perfect shuffle (interleave the two halves) BEFORE the rotation, as in eq. 4; the input side is the transpose:
layers in reverse order, each: rotation by minus the angle, then the inverse shuffle.
L_in = 5, L_out = 3.  Rotation: a' = c a - s b, b' = s a + c b, on pairs (2j, 2j+1).
Router: Switch top-1, gate = softmax probability over all 5 experts; aux load-balancing loss and z-loss are returned too.
Quantiser: gamma = mean |W| of the tensor, +-gamma where |w| > 0.7 gamma, else 0; straight-through.
Dispatch: one-hot dispatch / combine tensors [group, tokens, expert, capacity]; capacity = group size, so nothing is dropped.
"""
import torch
from torch import nn

VOCAB, D_MODEL, NUM_HEADS, D_KV = 50, 64, 4, 16
NUM_EXPERTS, THETA_LAYERS, PHI_LAYERS = 5, 5, 3
NUM_BUCKETS = 8


class Layer(nn.Module):
    """keras.layers.Layer, more or less."""

    def add_weight(self, name, shape, stddev=None, ones=False):
        value = torch.ones(shape) if ones else torch.randn(shape) * (stddev if stddev is not None else 0.1)
        self.register_parameter(name, nn.Parameter(value))

    def call(self, inputs, *args):
        raise NotImplementedError

    def forward(self, inputs, *args):
        return self.call(inputs, *args)


class T5LayerNorm(Layer):
    def __init__(self):
        super().__init__()
        self.add_weight("scale", [D_MODEL], ones=True)
        self.scale.data += 0.2 * torch.randn(D_MODEL)

    def call(self, inputs):
        variance = torch.mean(torch.square(inputs), dim=-1, keepdim=True)
        return inputs * torch.rsqrt(variance + 1e-6) * self.scale


class RelativeSelfAttention(Layer):
    def __init__(self):
        super().__init__()
        for name in ("q", "k", "v"):
            self.add_weight(name, [D_MODEL, NUM_HEADS, D_KV], stddev=D_MODEL ** -0.5)
        self.add_weight("o", [NUM_HEADS, D_KV, D_MODEL], stddev=D_MODEL ** -0.5)
        self.add_weight("relative_attention_bias", [NUM_HEADS, 2 * NUM_BUCKETS + 1], stddev=0.3)

    def call(self, inputs):
        length = inputs.shape[1]
        q = torch.einsum("bld,dhk->blhk", inputs, self.q) * D_KV ** -0.5
        k = torch.einsum("bmd,dhk->bmhk", inputs, self.k)
        v = torch.einsum("bmd,dhk->bmhk", inputs, self.v)
        pos = torch.arange(length, device=inputs.device)
        rel = torch.clamp(pos[None, :] - pos[:, None], -NUM_BUCKETS, NUM_BUCKETS) + NUM_BUCKETS
        logits = torch.einsum("blhk,bmhk->bhlm", q, k) + self.relative_attention_bias[:, rel][None]
        weights = torch.softmax(logits, dim=-1)
        context = torch.einsum("bhlm,bmhk->blhk", weights, v)
        return torch.einsum("blhk,hkd->bld", context, self.o)


def interleave(x):
    first, second = torch.tensor_split(x, 2, dim=-1)
    return torch.reshape(torch.stack([first, second], dim=-1), x.shape)


def uninterleave(x):
    pairs = torch.reshape(x, x.shape[:-1] + (x.shape[-1] // 2, 2))
    return torch.cat([pairs[..., 0], pairs[..., 1]], dim=-1)


def givens(x, angle):
    """x [e, g, c, m]; angle [e, m / 2]"""
    cos, sin = torch.cos(angle)[:, None, None, :], torch.sin(angle)[:, None, None, :]
    pairs = torch.reshape(x, x.shape[:-1] + (-1, 2))
    even, odd = torch.unbind(pairs, dim=-1)
    return torch.reshape(torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1), x.shape)


class Top1Gating(Layer):
    def __init__(self):
        super().__init__()
        self.add_weight("kernel", [D_MODEL, NUM_EXPERTS], stddev=0.3)

    def call(self, inputs):
        capacity = inputs.shape[1]
        logits = torch.einsum("gsm,me->gse", inputs, self.kernel)
        raw_gates = torch.softmax(logits, dim=-1)
        expert_gate, expert_index = torch.max(raw_gates, dim=-1)
        expert_mask = nn.functional.one_hot(expert_index, NUM_EXPERTS).to(inputs.dtype)
        density = torch.mean(expert_mask, dim=1)
        density_proxy = torch.mean(raw_gates, dim=1)
        aux_loss = torch.mean(density * density_proxy) * NUM_EXPERTS ** 2
        z_loss = torch.mean(torch.square(torch.logsumexp(logits, dim=-1)))
        position_in_expert = (torch.cumsum(expert_mask, dim=1) - 1.0) * expert_mask
        position = torch.sum(position_in_expert, dim=-1).long()
        slot = nn.functional.one_hot(position, capacity).to(inputs.dtype)
        dispatch = torch.einsum("gse,gsc->gsec", expert_mask, slot)
        combine = expert_gate[:, :, None, None] * dispatch
        return combine, dispatch, 1e-2 * aux_loss + 1e-3 * z_loss


class SwitchButterflyFFN(Layer):
    def __init__(self):
        super().__init__()
        self.gating = Top1Gating()
        self.add_weight("kernel", [D_MODEL, D_MODEL], stddev=D_MODEL ** -0.5)
        self.add_weight("bias", [D_MODEL], stddev=0.2)
        self.add_weight("theta", [NUM_EXPERTS, THETA_LAYERS, D_MODEL // 2], stddev=0.5)
        self.add_weight("phi", [NUM_EXPERTS, PHI_LAYERS, D_MODEL // 2], stddev=0.5)

    def ternary_kernel(self):
        gamma = torch.mean(torch.abs(self.kernel))
        keep = (torch.abs(self.kernel) > 0.7 * gamma).to(self.kernel.dtype)
        ternary = gamma * torch.sign(self.kernel) * keep
        return self.kernel + (ternary - self.kernel).detach() if self.training else ternary

    def call(self, inputs):
        combine, dispatch, loss = self.gating(inputs)
        x = torch.einsum("gsm,gsec->egcm", inputs, dispatch)
        for layer in reversed(range(THETA_LAYERS)):
            x = uninterleave(givens(x, -self.theta[:, layer]))
        x = torch.einsum("egcm,mn->egcn", x, self.ternary_kernel()) + self.bias
        for layer in range(PHI_LAYERS):
            x = givens(interleave(x), self.phi[:, layer])
        return torch.einsum("egcm,gsec->gsm", x, combine), loss


class EncoderBlock(Layer):
    def __init__(self):
        super().__init__()
        self.attention_norm = T5LayerNorm()
        self.attention = RelativeSelfAttention()
        self.ffn_norm = T5LayerNorm()
        self.ffn = SwitchButterflyFFN()

    def call(self, inputs):
        x = inputs + self.attention(self.attention_norm(inputs))
        y, loss = self.ffn(self.ffn_norm(x))
        return x + y, loss


class SwitchEncoder(Layer):
    def __init__(self, num_layers=2):
        super().__init__()
        self.add_weight("embedding", [VOCAB, D_MODEL], stddev=1.0)
        self.blocks = nn.ModuleList(EncoderBlock() for _ in range(num_layers))
        self.final_norm = T5LayerNorm()

    def call(self, token_ids):
        x = nn.functional.embedding(token_ids, self.embedding)
        losses = []
        for block in self.blocks:
            x, loss = block(x)
            losses.append(loss)
        x = self.final_norm(x) * D_MODEL ** -0.5
        return torch.einsum("bld,vd->blv", x, self.embedding), torch.stack(losses).sum()


def make():
    torch.manual_seed(1729)
    model = SwitchEncoder()
    token_ids = torch.randint(0, VOCAB, (2, 24))
    return model.eval(), (token_ids,)
