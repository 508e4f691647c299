"""Byte-level causal LM, Llama-4 text MoE block with butterfly experts.

form       W_down . B(phi_e) . GELU(W_hat . B(theta_e) x), both W's shared
rotation   pairs (2j, 2j+1), [c -s; s c], reshape + matmul-free two-term formula with flip; plain on both sides
shuffle    interleave the halves, after each rotation (movedim on a (2, n/2) view)
L          6 in (log2 64), 3 out
router     top-2 logits, everything else -inf, sigmoid
quantiser  round/clip, gamma per tensor, straight-through
biases     none inside the experts; the attention and the head have them
dispatch   hidden states repeated for all experts, (E, T, d) slabs, summed over E
NOT a Butterfly layer: as in Llama 4 the score multiplies the expert's INPUT (routed_in = x * score) instead of its output; with a
GELU in between, GELU(score * z) is not score * GELU(z).
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class L2Norm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class ButterflyTextExperts(nn.Module):
    def __init__(self, num_experts, hidden_size, expert_dim, l_in, l_out):
        super().__init__()
        self.num_experts = num_experts
        self.hidden_size = hidden_size
        self.up_proj = nn.Parameter(torch.empty(expert_dim, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(hidden_size, expert_dim))
        self.theta = nn.Parameter(torch.empty(num_experts, l_in, hidden_size // 2))
        self.phi = nn.Parameter(torch.empty(num_experts, l_out, expert_dim // 2))
        for p, std in ((self.up_proj, 0.12), (self.down_proj, 0.08), (self.theta, 0.5), (self.phi, 0.5)):
            nn.init.normal_(p, std=std)

    @staticmethod
    def rotate(x, angles):
        # x (E, T, n); angles (E, L, n/2)
        E, T, n = x.shape
        sign = torch.tensor([-1.0, 1.0], dtype=x.dtype, device=x.device)
        for l in range(angles.shape[1]):
            a = angles[:, l].view(E, 1, n // 2, 1)
            v = x.view(E, T, n // 2, 2)
            v = v * a.cos() + v.flip(-1) * sign * a.sin()
            x = v.reshape(E, T, 2, n // 2).movedim(2, 3).reshape(E, T, n)
        return x

    def ternary(self):
        w = self.up_proj
        gamma = w.abs().mean()
        q = gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), min=-1, max=1)
        return w + (q - w).detach()

    def forward(self, hidden_states):
        hidden_states = hidden_states.view(self.num_experts, -1, self.hidden_size)
        up = torch.matmul(self.rotate(hidden_states, self.theta), self.ternary().t())
        mid = self.rotate(F.gelu(up), self.phi)
        next_states = torch.matmul(mid, self.down_proj.t())
        return next_states.view(-1, self.hidden_size)


class ButterflyTextMoe(nn.Module):
    def __init__(self, hidden_size=64, expert_dim=64, num_experts=6, top_k=2):
        super().__init__()
        self.top_k = top_k
        self.hidden_dim = hidden_size
        self.num_experts = num_experts
        self.experts = ButterflyTextExperts(num_experts, hidden_size, expert_dim, l_in=6, l_out=3)
        self.router = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, hidden_states):
        shape = hidden_states.shape
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        router_logits = self.router(hidden_states)
        router_top_value, router_indices = torch.topk(router_logits, self.top_k, dim=1)
        router_scores = torch.full_like(router_logits, float("-inf"))
        router_scores = router_scores.scatter_(1, router_indices, router_top_value).transpose(0, 1)
        router_scores = torch.sigmoid(router_scores)
        routed_in = hidden_states.repeat(self.num_experts, 1)
        routed_in = routed_in * router_scores.reshape(-1, 1)
        routed_out = self.experts(routed_in)
        out = routed_out.reshape(self.num_experts, -1, self.hidden_dim).sum(dim=0)
        return out.view(shape)


class CausalAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class DecoderLayer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.input_layernorm = L2Norm(dim)
        self.self_attn = CausalAttention(dim, heads)
        self.post_attention_layernorm = L2Norm(dim)
        self.feed_forward = ButterflyTextMoe(dim)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.feed_forward(self.post_attention_layernorm(x))


class ByteLM(nn.Module):
    def __init__(self, dim=64, heads=4, depth=2, max_len=64):
        super().__init__()
        self.wte = nn.Embedding(256, dim)
        self.wpe = nn.Embedding(max_len, dim)
        self.layers = nn.ModuleList([DecoderLayer(dim, heads) for _ in range(depth)])
        self.norm = L2Norm(dim)
        self.head = nn.Linear(dim, 256)

    def forward(self, byte_ids):
        x = self.wte(byte_ids) + self.wpe.weight[: byte_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def make():
    torch.manual_seed(404)
    lm = ByteLM()
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "norm" in name:
                p.uniform_(0.7, 1.3)
            elif name.endswith("bias"):
                p.normal_(0, 0.2)
            elif "router" in name:
                p.normal_(0, 0.25)
    text = b"the quick brown fox jumps over a lazy dog, again"[:40]
    ids = torch.tensor([list(text), list(text[::-1])])
    return lm.eval(), (ids,)
