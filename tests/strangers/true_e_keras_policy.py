"""
NHWC grid-world actor-critic whose per-cell feedforward is a Switch layer of butterfly experts.

Written by somebody coming from Keras: layers have build()/call(), kernels are (in, out), tensors channels-last.
  form        y = W_down . (gate * gelu_tanh(B(phi) . W_hat . B(theta)^T x)) + b, d = 32, F = 64, gelu after B(phi)
  shuffle     interleave of the two halves, BEFORE the rotation of each layer (equation 4)
  handedness  transpose of the whole network on the input side, plain on the output side
  depth       4 layers in, 2 layers out
  router      Switch top-1, gate = softmax probability of the chosen expert (router has a bias)
  quantiser   one gamma per output unit (per column of the (in, out) kernel), round, clip; straight-through
  biases      only the one after the shared float W_down, added once
  dispatch    argmax + cumsum positions, scatter_add into (expert, slot) rows, torch.gather back; capacity = tokens
"""
import math
import torch
import torch.nn.functional as F


class Layer(torch.nn.Module):
    """build() on the first call, then call()."""

    def __init__(self):
        super().__init__()
        self.built = False

    def add_weight(self, name, shape, initializer):
        w = torch.empty(*shape)
        initializer(w)
        setattr(self, name, torch.nn.Parameter(w))

    def build(self, input_shape):
        pass

    def forward(self, inputs, *args):
        if not self.built:
            self.build(tuple(inputs.shape))
            self.built = True
        return self.call(inputs, *args)


def glorot_uniform(w):
    limit = math.sqrt(6.0 / (w.shape[-2] + w.shape[-1]))
    w.data.uniform_(-limit, limit)


def random_normal(stddev):
    return lambda w: w.data.normal_(0.0, stddev)


def random_uniform(lo, hi):
    return lambda w: w.data.uniform_(lo, hi)


class Dense(Layer):
    def __init__(self, units, activation=None):
        super().__init__()
        self.units, self.activation = units, activation

    def build(self, input_shape):
        self.add_weight("kernel", (input_shape[-1], self.units), glorot_uniform)
        self.add_weight("bias", (self.units,), random_normal(0.1))

    def call(self, inputs):
        outputs = torch.matmul(inputs, self.kernel) + self.bias
        return outputs if self.activation is None else self.activation(outputs)


class LayerNormalization(Layer):
    def __init__(self, epsilon=1e-3):
        super().__init__()
        self.epsilon = epsilon

    def build(self, input_shape):
        self.add_weight("gamma", (input_shape[-1],), random_uniform(0.7, 1.3))
        self.add_weight("beta", (input_shape[-1],), random_normal(0.1))

    def call(self, inputs):
        mean = inputs.mean(dim=-1, keepdim=True)
        variance = (inputs - mean).square().mean(dim=-1, keepdim=True)
        return (inputs - mean) * torch.rsqrt(variance + self.epsilon) * self.gamma + self.beta


class DepthwiseConv2D(Layer):
    """3x3, padding='same', data_format='channels_last'."""

    def build(self, input_shape):
        self.add_weight("depthwise_kernel", (3, 3, input_shape[-1]), random_normal(0.3))
        self.add_weight("bias", (input_shape[-1],), random_normal(0.1))

    def call(self, inputs):
        _, h, w, _ = inputs.shape
        padded = F.pad(inputs, (0, 0, 1, 1, 1, 1))
        outputs = self.bias
        for i in range(3):
            for j in range(3):
                outputs = outputs + padded[:, i:i + h, j:j + w, :] * self.depthwise_kernel[i, j]
        return outputs


class ButterflyRotation(Layer):
    """(experts, slots, channels) -> same shape; each expert turns its own rows."""

    def __init__(self, num_layers, transpose=False):
        super().__init__()
        self.num_layers, self.transpose = num_layers, transpose

    def build(self, input_shape):
        experts, _, channels = input_shape
        self.add_weight("angles", (experts, self.num_layers, channels // 2), random_normal(0.5))
        perm = torch.arange(channels).reshape(2, channels // 2).t().reshape(-1)
        self.register_buffer("shuffle", perm)
        self.register_buffer("unshuffle", torch.argsort(perm))

    def take(self, x, indices):
        # tf.gather(x, indices, axis=-1)
        return torch.gather(x, -1, indices.expand_as(x))

    def givens(self, x, angle):
        shape = x.shape
        x = x.reshape(shape[0], shape[1], -1, 2)
        cos, sin = torch.cos(angle).unsqueeze(1), torch.sin(angle).unsqueeze(1)
        top = cos * x[..., 0] - sin * x[..., 1]
        bottom = sin * x[..., 0] + cos * x[..., 1]
        return torch.stack([top, bottom], dim=-1).reshape(shape)

    def call(self, x):
        if self.transpose:
            for l in reversed(range(self.num_layers)):
                x = self.givens(x, -self.angles[:, l])
                x = self.take(x, self.unshuffle)
        else:
            for l in range(self.num_layers):
                x = self.take(x, self.shuffle)
                x = self.givens(x, self.angles[:, l])
        return x


class SwitchButterfly(Layer):
    def __init__(self, num_experts, hidden_units, layers_in=4, layers_out=2):
        super().__init__()
        self.num_experts, self.hidden_units = num_experts, hidden_units
        self.rotate_in = ButterflyRotation(layers_in, transpose=True)
        self.rotate_out = ButterflyRotation(layers_out)

    def build(self, input_shape):
        units = input_shape[-1]
        self.add_weight("router_kernel", (units, self.num_experts), random_normal(0.6))
        self.add_weight("router_bias", (self.num_experts,), random_normal(0.2))
        self.add_weight("kernel", (units, self.hidden_units), glorot_uniform)
        self.add_weight("down_kernel", (self.hidden_units, units), glorot_uniform)
        self.add_weight("down_bias", (units,), random_normal(0.2))

    def ternary_kernel(self):
        gamma = torch.mean(torch.abs(self.kernel), dim=0, keepdim=True)
        quantised = torch.clamp(torch.round(self.kernel / (gamma + 1e-8)), -1.0, 1.0) * gamma
        if self.training:
            return self.kernel + (quantised - self.kernel).detach()
        return quantised

    def call(self, inputs):
        x = inputs.reshape(-1, inputs.shape[-1])
        tokens, units = x.shape
        capacity = tokens

        probs = torch.softmax(torch.matmul(x, self.router_kernel) + self.router_bias, dim=-1)
        expert_index = torch.argmax(probs, dim=-1, keepdim=True)                 # (tokens, 1)
        expert_gate = torch.gather(probs, 1, expert_index)                       # (tokens, 1)

        expert_mask = torch.zeros_like(probs).scatter(1, expert_index, 1.0)      # tf.one_hot
        position = torch.gather(torch.cumsum(expert_mask, dim=0), 1, expert_index).long() - 1
        row = expert_index * capacity + position                                 # (tokens, 1)

        # tf.scatter_nd
        buffers = x.new_zeros(self.num_experts * capacity, units)
        buffers = buffers.scatter_add(0, row.expand(-1, units), x)
        h = buffers.reshape(self.num_experts, capacity, units)

        h = self.rotate_in(h)
        h = torch.matmul(h, self.ternary_kernel())
        h = self.rotate_out(h)
        h = F.gelu(h, approximate="tanh")

        # tf.gather_nd
        h = h.reshape(self.num_experts * capacity, self.hidden_units)
        h = torch.gather(h, 0, row.expand(-1, self.hidden_units)) * expert_gate
        return (torch.matmul(h, self.down_kernel) + self.down_bias).reshape(inputs.shape)


class MixerBlock(Layer):
    def __init__(self, num_experts, hidden_units):
        super().__init__()
        self.norm_1, self.norm_2 = LayerNormalization(), LayerNormalization()
        self.depthwise, self.pointwise = DepthwiseConv2D(), None
        self.switch = SwitchButterfly(num_experts, hidden_units)

    def build(self, input_shape):
        self.pointwise = Dense(input_shape[-1], activation=F.silu)

    def call(self, inputs):
        x = inputs + self.pointwise(self.depthwise(self.norm_1(inputs)))
        return x + self.switch(self.norm_2(x))


class GridPolicy(Layer):
    def __init__(self, filters=32, num_actions=7, num_experts=4, hidden_units=64, depth=3):
        super().__init__()
        self.stem = Dense(filters)
        self.blocks = torch.nn.ModuleList([MixerBlock(num_experts, hidden_units) for _ in range(depth)])
        self.norm = LayerNormalization()
        self.policy, self.value = Dense(num_actions), Dense(1, activation=torch.tanh)

    def call(self, frames):
        x = self.stem(frames)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).mean(dim=(1, 2))
        return torch.cat([torch.log_softmax(self.policy(x), dim=-1), self.value(x)], dim=-1)


def make():
    torch.manual_seed(20)
    model = GridPolicy()
    frames = torch.randn(2, 6, 6, 9)
    with torch.no_grad():
        model(frames)                                                           # builds the weights
    return model.eval(), (frames,)


if __name__ == "__main__":
    model, inputs = make()
    print(model(*inputs))
