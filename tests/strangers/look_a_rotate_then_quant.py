"""Decision-transformer style policy; butterfly experts in the spirit of rotated-weight quantisation (QuaRot).

shuffle    : none, stride-doubling pairs (1, 2, 4, ...)
handedness : the input rotation is folded into the weight from the right; plain B(phi) on the output
depth      : L_in = 6 on d = 64, L_out = 4 on F = 128
router     : softmax over all, top-2, renormalised; router bias
quantiser  : absmean per output row, round + clip - taken on W . B(theta_e), expert by expert
biases     : b_up shared, b_down shared, gate-weighted
form       : W_down . B(phi_e) . GELU_erf( Q(W B(theta_e)) x + b_up ) + b_down
dispatch   : nonzero per expert, index_add_
Not the papers' layer: each expert rotates the float weight first and quantises afterwards, so the
experts do not share one ternary matrix; Q(W B) is not Q(W) B.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def fft_butterfly(x, angles):
    """x [..., n] row vectors, angles [L, n/2]; level l pairs channels at distance 2**l."""
    n = x.shape[-1]
    lead = x.shape[:-1]
    for level, ang in enumerate(angles):
        d = 2 ** level
        v = x.reshape(*lead, n // (2 * d), 2, d)
        c = torch.cos(ang).reshape(n // (2 * d), d)
        s = torch.sin(ang).reshape(n // (2 * d), d)
        top = c * v[..., 0, :] - s * v[..., 1, :]
        bot = s * v[..., 0, :] + c * v[..., 1, :]
        x = torch.stack((top, bot), dim=-2).reshape(*lead, n)
    return x


def absmean_rows(w):
    gamma = w.abs().mean(dim=-1, keepdim=True)
    q = torch.round(w / (gamma + 1e-8)).clamp_(-1, 1) * gamma
    return w + (q - w).detach()


class RotatedExperts(nn.Module):
    def __init__(self, d, f, experts, k, l_in, l_out):
        super().__init__()
        self.k, self.experts = k, experts
        self.route = nn.Linear(d, experts)
        self.weight = nn.Parameter(torch.randn(f, d) * d ** -0.5)
        self.b_up = nn.Parameter(torch.randn(f) * 0.1)
        self.down = nn.Linear(f, d)
        self.theta = nn.Parameter(torch.randn(experts, l_in, d // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(experts, l_out, f // 2) * 0.5)

    def kernel(self, e):
        # rows of W B(theta)  ==  butterfly run on the identity, then W @ B
        eye = torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)
        rotation = fft_butterfly(eye, self.theta[e]).t()
        return absmean_rows(self.weight @ rotation)

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        prob = F.softmax(self.route(x), dim=-1)
        w, sel = prob.topk(self.k, dim=-1)
        w = w / w.sum(dim=-1, keepdim=True)
        y = torch.zeros_like(x)
        for e in range(self.experts):
            hit = (sel == e).nonzero()
            rows, slots = hit[:, 0], hit[:, 1]
            h = F.gelu(F.linear(x[rows], self.kernel(e), self.b_up))
            h = self.down(fft_butterfly(h, self.phi[e]))
            y.index_add_(0, rows, h * w[rows, slots].unsqueeze(1))
        return y.reshape(shape)


class PolicyLayer(nn.Module):
    def __init__(self, d, heads=4):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.moe = RotatedExperts(d, 128, experts=5, k=2, l_in=6, l_out=4)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, d))
        return x + self.moe(self.n2(x))


class DecisionPolicy(nn.Module):
    """(return, state, action) triples in, next-action means out."""

    def __init__(self, state_dim=11, act_dim=3, d=64, layers=2, horizon=8):
        super().__init__()
        self.embed_r = nn.Linear(1, d)
        self.embed_s = nn.Linear(state_dim, d)
        self.embed_a = nn.Linear(act_dim, d)
        self.embed_t = nn.Parameter(torch.randn(horizon, d) * 0.3)
        self.layers = nn.ModuleList(PolicyLayer(d) for _ in range(layers))
        self.norm = nn.LayerNorm(d)
        self.act = nn.Linear(d, act_dim)

    def forward(self, returns, states, actions):
        b, t, _ = states.shape
        pos = self.embed_t[:t]
        seq = torch.stack([self.embed_r(returns) + pos, self.embed_s(states) + pos, self.embed_a(actions) + pos], dim=2)
        x = seq.reshape(b, 3 * t, -1)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x).view(b, t, 3, -1)[:, :, 1]
        return torch.tanh(self.act(x))


def make():
    torch.manual_seed(21)
    policy = DecisionPolicy()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if p.ndim == 1 and name.endswith("bias"):
                p.normal_(0, 0.15)
            elif p.ndim == 1 and name.endswith("weight"):
                p.uniform_(0.7, 1.3)
            elif name.endswith("route.weight"):
                p.normal_(0, 0.25)
    inputs = (torch.randn(2, 8, 1), torch.randn(2, 8, 11), torch.randn(2, 8, 3))
    return policy.eval(), inputs
