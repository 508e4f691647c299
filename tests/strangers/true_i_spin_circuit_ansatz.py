"""Neural quantum state: a transformer over spin configurations that returns log|psi| and the phase, with circuit experts.

Each rotation stack is a circuit of multiplexed Ry gates on the amplitude register: a width-2^n vector is n "qubits", layer l
targets one qubit with all the others as controls, i.e. channel pairs at distance 2^l (little-endian qubits, q0 = last axis).
No other shuffle.  A gate is exp(i t) acting on a + i b (counter-clockwise: a' = c a - s b, b' = s a + c b).
Expert: equation 3 with a shared W_down: W_down . GELU( B(phi) . (W_hat . B(theta)^dagger x + b) ), erf GELU after B(phi).
B(theta)^dagger is the inverse circuit: gates in reverse order with negated angles.  d = 32 (5 qubits), F = 64 (6 qubits).
L_in = 5, L_out = 4.  Router: raw logits of the top 3 of 6 (no softmax), linear without bias.
Quantiser: round-clip with a gamma per output row for both W_hat and W_down, straight-through.  Bias of W_down added once.
Dispatch: vmap over the angle tables (all experts), weights scattered to (T, E), contraction by einsum.
"""
from functools import partial

import torch
from torch import nn, Tensor
from torch.func import vmap

N_SITES, QUBITS_D, QUBITS_F = 12, 5, 6
DIM, HID = 2 ** QUBITS_D, 2 ** QUBITS_F


def multiplexed_ry(psi: Tensor, qubit: int, angle: Tensor) -> Tensor:
    """Apply a uniformly controlled rotation on `qubit` (little-endian). psi: (T, 2**n), angle: (2**(n-1),)"""
    n = psi.shape[-1].bit_length() - 1
    register = psi.reshape(psi.shape[0], *([2] * n))
    register = register.movedim(n - qubit, -1)                        # target wire last
    shape = register.shape
    flat = register.reshape(psi.shape[0], -1, 2)
    amp = torch.complex(flat[..., 0], flat[..., 1])
    amp = amp * torch.complex(torch.cos(angle), torch.sin(angle))
    flat = torch.stack((amp.real, amp.imag), dim=-1)
    return flat.reshape(shape).movedim(-1, n - qubit).reshape(psi.shape)


def circuit(psi: Tensor, angles: Tensor) -> Tensor:
    for q, row in enumerate(angles.unbind(0)):
        psi = multiplexed_ry(psi, q, row)
    return psi


def dagger(psi: Tensor, angles: Tensor) -> Tensor:
    for q in range(angles.shape[0] - 1, -1, -1):
        psi = multiplexed_ry(psi, q, -angles[q])
    return psi


def trit(w: Tensor, ste: bool = False) -> Tensor:
    gamma = w.abs().mean(dim=1, keepdim=True)
    q = (w / (gamma + 1e-8)).round().clamp(-1.0, 1.0) * gamma
    return w + (q - w).detach() if ste else q


def run_expert(theta: Tensor, phi: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = dagger(x, theta)
    y = y @ w.mT + b
    return torch.nn.functional.gelu(circuit(y, phi))


class CircuitMixture(nn.Module):
    def __init__(self, experts: int = 6, chosen: int = 3, depth_in: int = QUBITS_D, depth_out: int = 4):
        super().__init__()
        self.chosen = chosen
        self.gate = nn.Linear(DIM, experts, bias=False)
        self.theta = nn.Parameter(torch.randn(experts, depth_in, DIM // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(experts, depth_out, HID // 2) * 0.5)
        self.W = nn.Parameter(torch.randn(HID, DIM) * DIM ** -0.5)
        self.b = nn.Parameter(torch.randn(HID) * 0.2)
        self.V = nn.Parameter(torch.randn(DIM, HID) * HID ** -0.5)
        self.v = nn.Parameter(torch.randn(DIM) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        psi = x.reshape(-1, DIM)
        logits = self.gate(psi)
        top, who = logits.topk(self.chosen, dim=-1)
        weight = torch.zeros_like(logits).scatter(-1, who, top)
        body = partial(run_expert, x=psi, w=trit(self.W, self.training), b=self.b)
        hidden = vmap(lambda t, p: body(t, p))(self.theta, self.phi)          # (E, T, F)
        mixed = torch.einsum("te,etf->tf", weight, hidden)
        out = mixed @ trit(self.V, self.training).mT + self.v
        return out.reshape(x.shape)


class SpinAttention(nn.Module):
    """Factored attention: translation-dependent weights between sites, values from spins."""

    def __init__(self, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.J = nn.Parameter(torch.randn(heads, N_SITES, N_SITES) * 0.4)
        self.value = nn.Linear(DIM, DIM)
        self.out = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        v = self.value(x).reshape(B, N, self.heads, -1)
        mixed = torch.einsum("hij,bjhc->bihc", torch.softmax(self.J, dim=-1), v)
        return self.out(mixed.reshape(B, N, DIM))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn, self.moe = SpinAttention(), CircuitMixture()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.moe(self.ln2(x))


class NeuralQuantumState(nn.Module):
    def __init__(self, depth: int = 2):
        super().__init__()
        self.spin = nn.Embedding(2, DIM)
        self.site = nn.Parameter(torch.randn(N_SITES, DIM) * 0.7)
        self.blocks = nn.Sequential(*[Block() for _ in range(depth)])
        self.norm = nn.LayerNorm(DIM)
        self.to_logpsi = nn.Linear(DIM, 2)

    def forward(self, bits: Tensor):
        x = self.spin(bits) + self.site
        x = self.norm(self.blocks(x))
        log_amp, phase = self.to_logpsi(x.mean(dim=1)).unbind(-1)
        return log_amp, torch.pi * torch.tanh(phase)


def make():
    torch.manual_seed(137)
    model = NeuralQuantumState()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.copy_(1 + 0.2 * torch.randn(DIM))
                m.bias.copy_(0.1 * torch.randn(DIM))
            elif isinstance(m, nn.Linear) and m.bias is not None:
                m.bias.copy_(0.1 * torch.randn(m.bias.shape))
            if isinstance(m, CircuitMixture):
                m.gate.weight.copy_(0.3 * torch.randn(m.gate.weight.shape))
    bits = torch.randint(0, 2, (3, N_SITES))
    return model.eval(), (bits,)
