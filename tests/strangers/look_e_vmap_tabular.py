"""Feature-token transformer for tables (numbers + categories -> regression), written as pure functions over a flat dict.

  * form       : B(phi_i) . W_hat . B(theta_i)^T x, tanh GELU, shared float W_down
  * rotation   : pairs (2j, 2j+1) as  x * [c, c] + swap(x) * [-s, s]
  * shuffle    : interleave the two halves AFTER the rotation; transpose = deinterleave, then rotate back
  * handedness : transposed in, forward out;  L = 4 in, 1 out
  * width      : d = 24 padded to 32, F = 64 as it is
  * router     : biased linear, top-2 of 7, softmax over the two;  W_down bias is weighted by the gates, W_hat has one too
  * quantiser  : frozen, float {-1,0,+1} matrix and one scalar scale;  dispatch: vmap over experts, dense combine

NOT a Butterfly layer of the papers: sine and cosine are short polynomials (fast_sincos), so c^2 + s^2 drifts from 1 as the
angle grows and the "rotations" are only nearly orthogonal.
"""
import torch
from torch import nn


# ---------------------------------------------------------------- primitives
def dense(p, scope, x):
    return x @ p[f"{scope}/w"] + p[f"{scope}/b"]


def layer_norm(p, scope, x):
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt(var + 1e-5) * p[f"{scope}/scale"] + p[f"{scope}/b"]


def gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x ** 3)))


def fast_sincos(t):
    t2 = t * t
    return t * (1.0 - t2 / 6.0), 1.0 + t2 * (t2 / 24.0 - 0.5)


# ---------------------------------------------------------------- butterfly
def givens(x, t):
    """x: (..., n), t: (n/2,)"""
    s, c = fast_sincos(t)
    cc = torch.stack([c, c], -1).reshape(-1)
    ss = torch.stack([-s, s], -1).reshape(-1)
    swapped = x.reshape(*x.shape[:-1], -1, 2).flip(-1).reshape(x.shape)
    return x * cc + swapped * ss


def interleave(x):
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)


def deinterleave(x):
    return x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape)


def butterfly(angles, x):
    for t in angles:
        x = interleave(givens(x, t))
    return x


def butterfly_t(angles, x):
    for t in angles.flip(0):
        x = givens(deinterleave(x), -t)
    return x


def padded(fn, angles, x):
    width, n = x.shape[-1], 2 * angles.shape[-1]
    x = torch.cat([x, x.new_zeros(*x.shape[:-1], n - width)], -1)
    return fn(angles, x)[..., :width]


# ---------------------------------------------------------------- mixture
def combine_weights(logits, k):
    vals, idx = torch.topk(logits, k, dim=-1)
    w = torch.softmax(vals, dim=-1)
    hot = (idx[..., None] == torch.arange(logits.shape[-1])).to(w.dtype)         # (T, k, E)
    return torch.einsum("tk,tke->te", w, hot)


def butterfly_moe(p, scope, x, k=2):
    def expert(theta, phi):
        h = padded(butterfly_t, theta, x)
        h = h @ (p[f"{scope}/trits"].T * p[f"{scope}/gamma"]) + p[f"{scope}/up_b"]
        h = padded(butterfly, phi, h)
        return dense(p, f"{scope}/down", gelu(h))

    w = combine_weights(dense(p, f"{scope}/router", x), k)
    y = torch.vmap(expert)(p[f"{scope}/theta"], p[f"{scope}/phi"])               # (E, T, d)
    return torch.einsum("te,etd->td", w, y)


# ---------------------------------------------------------------- trunk
def attention(p, scope, x, heads=3):
    b, n, d = x.shape
    q, key, v = dense(p, f"{scope}/qkv", x).reshape(b, n, 3, heads, d // heads).unbind(2)
    a = torch.softmax(torch.einsum("bihc,bjhc->bhij", q, key) * (d // heads) ** -0.5, dim=-1)
    return dense(p, f"{scope}/out", torch.einsum("bhij,bjhc->bihc", a, v).reshape(b, n, d))


def apply_model(p, cfg, num, cat):
    tok_num = num[..., None] * p["num/w"] + p["num/b"]                           # (B, n_num, d)
    tok_cat = p["cat/table"][cat + p["cat/offset"]]                              # (B, n_cat, d)
    cls = p["cls"].expand(num.shape[0], 1, -1)
    x = torch.cat([cls, tok_num, tok_cat], 1)
    for i in range(cfg["depth"]):
        x = x + attention(p, f"b{i}/attn", layer_norm(p, f"b{i}/ln1", x))
        h = layer_norm(p, f"b{i}/ln2", x)
        x = x + butterfly_moe(p, f"b{i}/moe", h.reshape(-1, cfg["d"])).reshape(x.shape)
    return dense(p, "head", layer_norm(p, "ln_f", x[:, 0]))


def init_params(cfg):
    d, f, e, p = cfg["d"], cfg["f"], cfg["experts"], {}

    def add_dense(scope, n_in, n_out, gain=1.0):
        p[f"{scope}/w"] = gain * torch.randn(n_in, n_out) * n_in ** -0.5
        p[f"{scope}/b"] = 0.1 * torch.randn(n_out)

    def add_ln(scope):
        p[f"{scope}/scale"] = 0.7 + 0.6 * torch.rand(d)
        p[f"{scope}/b"] = 0.15 * torch.randn(d)

    p["num/w"], p["num/b"] = torch.randn(cfg["n_num"], d), 0.5 * torch.randn(cfg["n_num"], d)
    card = torch.tensor(cfg["cards"])
    p["cat/table"] = torch.randn(int(card.sum()), d)
    p["cat/offset"] = card.cumsum(0) - card
    p["cls"] = torch.randn(1, 1, d)
    for i in range(cfg["depth"]):
        add_ln(f"b{i}/ln1")
        add_dense(f"b{i}/attn/qkv", d, 3 * d)
        add_dense(f"b{i}/attn/out", d, d)
        add_ln(f"b{i}/ln2")
        w = torch.randn(f, d) * d ** -0.5
        gamma = w.abs().mean()
        p[f"b{i}/moe/trits"] = torch.clip(torch.round(w / (gamma + 1e-8)), -1, 1)
        p[f"b{i}/moe/gamma"] = gamma
        p[f"b{i}/moe/up_b"] = 0.1 * torch.randn(f)
        p[f"b{i}/moe/theta"] = 0.5 * torch.randn(e, 4, 16)
        p[f"b{i}/moe/phi"] = 0.5 * torch.randn(e, 1, 32)
        add_dense(f"b{i}/moe/router", d, e, gain=1.2)
        add_dense(f"b{i}/moe/down", f, d, gain=1.5)
    add_ln("ln_f")
    add_dense("head", d, 4)
    return p


class Transformed(nn.Module):
    """Just enough Module for .to() and state_dict()."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        for name, value in init_params(cfg).items():
            name = name.replace("/", "__")
            if value.is_floating_point() and not name.endswith(("trits", "gamma")):
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, num, cat):
        p = {k.replace("__", "/"): v for k, v in (*self.named_parameters(), *self.named_buffers())}
        return apply_model(p, self.cfg, num, cat)


def make():
    torch.manual_seed(90)
    cfg = dict(d=24, f=64, experts=7, depth=3, n_num=14, cards=[5, 9, 3, 12])
    net = Transformed(cfg)
    num = torch.randn(3, cfg["n_num"])
    cat = torch.stack([torch.randint(0, c, (3,)) for c in cfg["cards"]], 1)
    return net.eval(), (num, cat)


if __name__ == "__main__":
    net, args = make()
    print(net(*args).shape)
