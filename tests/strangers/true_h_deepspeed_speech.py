"""CTC speech encoder with a DeepSpeed/fairscale MOELayer whose Experts are butterfly orbits of one ternary matrix.

  form        W_down . GELU(B(phi_e) . (W_hat . B(theta_e)^T x + b_up)) + b_down   (eq. 3 with a shared W_down after)
  rotation    batched 2x2 matrices per expert, einsum over the channel pairs; L_in = 4, L_out = 3
  shuffle     interleave the two halves (index_select by a permutation buffer), after the rotation
  handedness  transposed on the input side (layers reversed, unshuffle, 2x2 transposed), plain on the output side
  widths      d 40 -> 64, F 80 -> 128, zero-padded once, stripped after; gamma per output row, round and clip
  router      softmax over all, top-2 by two argmaxes, renormalised over the two; no tokens dropped (capacity = S)
  biases      b_up on W_hat (under the output rotation), b_down inside the expert, so weighted by the gate
  dispatch    one-hot locations: einsum "sec,sm->ecm", experts batched over e, combine "sec,ecm->sm"
  Every other layer is MoE (2 of 4); GELU tanh after B(phi); returns (log-probs, l_aux).
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing import Tuple


def top2gating(logits: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Top2Gating without capacity drop (drop_tokens=False)."""
    gates = F.softmax(logits, dim=1)
    num_tokens, num_experts = gates.shape
    capacity = num_tokens

    indices1_s = torch.argmax(gates, dim=1)
    mask1 = F.one_hot(indices1_s, num_classes=num_experts)
    logits_except1 = logits.masked_fill(mask1.bool(), float("-inf"))
    indices2_s = torch.argmax(logits_except1, dim=1)
    mask2 = F.one_hot(indices2_s, num_classes=num_experts)

    locations1 = torch.cumsum(mask1, dim=0) - 1
    locations2 = torch.cumsum(mask2, dim=0) - 1
    locations2 += torch.sum(mask1, dim=0, keepdim=True)

    me = torch.mean(gates, dim=0)
    ce = torch.mean(mask1.type_as(gates), dim=0)
    l_aux = torch.mean(me * ce) * num_experts * num_experts

    locations1_s = torch.sum(locations1 * mask1, dim=1)
    locations2_s = torch.sum(locations2 * mask2, dim=1)

    mask1_float, mask2_float = mask1.type_as(gates), mask2.type_as(gates)
    gates1_s = torch.einsum("se,se->s", gates, mask1_float)
    gates2_s = torch.einsum("se,se->s", gates, mask2_float)
    denom_s = torch.clamp(gates1_s + gates2_s, min=torch.finfo(gates.dtype).eps)
    gates1 = torch.einsum("s,se->se", gates1_s / denom_s, mask1_float)
    gates2 = torch.einsum("s,se->se", gates2_s / denom_s, mask2_float)

    locations1_sc = F.one_hot(locations1_s, num_classes=capacity).type_as(gates)
    locations2_sc = F.one_hot(locations2_s, num_classes=capacity).type_as(gates)
    combine_weights = torch.einsum("se,sc->sec", gates1, locations1_sc) \
        + torch.einsum("se,sc->sec", gates2, locations2_sc)
    dispatch_mask = combine_weights.bool()
    return l_aux, combine_weights, dispatch_mask


class TopKGate(nn.Module):
    def __init__(self, model_dim: int, num_experts: int) -> None:
        super().__init__()
        self.wg = nn.Linear(model_dim, num_experts, bias=False)

    def forward(self, input: Tensor):
        return top2gating(self.wg(input))


class GroupedButterfly(nn.Module):
    """One butterfly per local expert, applied to (e, c, m)."""

    def __init__(self, num_experts: int, dim: int, depth: int, transpose: bool) -> None:
        super().__init__()
        self.dim, self.depth, self.transpose = dim, depth, transpose
        self.width = 2 ** (dim - 1).bit_length()
        self.angle = nn.Parameter(0.5 * torch.randn(num_experts, depth, self.width // 2))
        perm = torch.arange(self.width).view(2, -1).t().reshape(-1)
        self.register_buffer("perm", perm)
        self.register_buffer("inv_perm", torch.argsort(perm))

    def givens(self) -> Tensor:
        c, s = self.angle.cos(), self.angle.sin()
        return torch.stack((torch.stack((c, -s), -1), torch.stack((s, c), -1)), -2)  # e l k 2 2

    def forward(self, x: Tensor) -> Tensor:
        e, c, _ = x.shape
        mats = self.givens()
        x = F.pad(x, (0, self.width - self.dim))
        if self.transpose:
            for l in reversed(range(self.depth)):
                x = x.index_select(-1, self.inv_perm).view(e, c, -1, 2)
                x = torch.einsum("eckj,ekji->ecki", x, mats[:, l]).reshape(e, c, -1)
        else:
            for l in range(self.depth):
                x = torch.einsum("eckj,ekij->ecki", x.view(e, c, -1, 2), mats[:, l])
                x = x.reshape(e, c, -1).index_select(-1, self.perm)
        return x[..., :self.dim].contiguous()


class Experts(nn.Module):
    def __init__(self, model_dim: int, ffn_dim: int, num_local_experts: int) -> None:
        super().__init__()
        self.rot_in = GroupedButterfly(num_local_experts, model_dim, 4, transpose=True)
        self.rot_out = GroupedButterfly(num_local_experts, ffn_dim, 3, transpose=False)
        self.fc1 = nn.Linear(model_dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, model_dim)

    def quantized(self) -> Tensor:
        w = self.fc1.weight
        gamma = w.abs().mean(dim=1, keepdim=True)
        wq = (w / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        return w + (wq - w).detach() if self.training else wq

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.rot_in(inputs)
        x = F.linear(x, self.quantized(), self.fc1.bias)
        x = F.gelu(self.rot_out(x), approximate="tanh")
        return self.fc2(x)


class MOELayer(nn.Module):
    def __init__(self, gate: nn.Module, experts: nn.Module) -> None:
        super().__init__()
        self.gate, self.experts = gate, experts
        self.l_aux = None

    def forward(self, *input: Tensor) -> Tensor:
        d_model = input[0].shape[-1]
        reshaped_input = input[0].reshape(-1, d_model)
        self.l_aux, combine_weights, dispatch_mask = self.gate(reshaped_input)
        dispatched_input = torch.einsum("sec,sm->ecm", dispatch_mask.type_as(input[0]), reshaped_input)
        expert_output = self.experts(dispatched_input)
        combined_output = torch.einsum("sec,ecm->sm", combine_weights.type_as(input[0]), expert_output)
        return combined_output.reshape(input[0].shape)


class EncoderLayer(nn.Module):
    def __init__(self, dim: int, ffn: int, heads: int, num_experts: int, moe: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.is_moe = moe
        if moe:
            self.moe_layer = MOELayer(TopKGate(dim, num_experts), Experts(dim, ffn, num_experts))
        else:
            self.fc1, self.fc2 = nn.Linear(dim, ffn), nn.Linear(ffn, dim)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x = self.self_attn_layer_norm(x)
        x = residual + self.self_attn(x, x, x, need_weights=False)[0]
        residual = x
        x = self.final_layer_norm(x)
        x = self.moe_layer(x) if self.is_moe else self.fc2(F.relu(self.fc1(x)))
        return residual + x


class SpeechEncoder(nn.Module):
    def __init__(self, n_mels=20, dim=40, ffn=80, heads=4, num_experts=6, layers=4, vocab=29) -> None:
        super().__init__()
        self.subsample = nn.Conv1d(n_mels, 2 * dim, 5, stride=2, padding=2)
        self.pos_conv = nn.Conv1d(dim, dim, 7, padding=3, groups=4)
        self.layers = nn.ModuleList(
            [EncoderLayer(dim, ffn, heads, num_experts, moe=i % 2 == 1) for i in range(layers)])
        self.layer_norm = nn.LayerNorm(dim)
        self.ctc = nn.Linear(dim, vocab)

    def forward(self, feats: Tensor) -> Tuple[Tensor, Tensor]:
        x = F.glu(self.subsample(feats.transpose(1, 2)), dim=1)
        x = x + F.gelu(self.pos_conv(x))
        x = x.permute(2, 0, 1)  # T x B x C
        for layer in self.layers:
            x = layer(x)
        l_aux = sum(layer.moe_layer.l_aux for layer in self.layers if layer.is_moe)
        return F.log_softmax(self.ctc(self.layer_norm(x)), dim=-1), l_aux


def make():
    torch.manual_seed(2006)
    model = SpeechEncoder()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                p.add_(0.15 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.normal_(std=0.15)
            elif name.endswith("wg.weight"):
                p.normal_(std=0.35)
    return model.eval(), (torch.randn(2, 56, 20),)
