"""Land-cover segmentation of 4-band satellite tiles (blue, green, red, near infra-red): a two-level U-net with butterfly experts in
the encoder, the bottleneck and the decoder, every pixel of a feature map a token.

form        W_down_hat . B(phi_e) . GELU_erf( W_hat . B(theta_e)^T x + b_e )
butterfly   no shuffle, stride-doubling pairs (1, 2, 4, ...) by views; input side transposed, output side plain; L = 3 and 4;
            widths 24 / 72 and 48 / 144 zero-padded to 32 / 128 and 64 / 256, stripped after
quantiser   round_clip with gamma = mean |W| per output row, for W_up and for W_down, straight-through
router      softmax over all 4, top-2, renormalised; dispatch: loop over experts, torch.where on the chosen pixels
NOT a Butterfly layer: each expert owns a bias vector b_e of width F after the shared ternary projection, before GELU, so an
expert has more of its own than its angles.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class StrideButterfly(nn.Module):
    def __init__(self, width, levels):
        super().__init__()
        self.width = width
        self.full = 1 << (width - 1).bit_length()
        self.theta = nn.Parameter(torch.randn(levels, self.full // 2) * 0.5)

    def level(self, x, i, sign):
        stride = 2 ** i
        v = x.view(*x.shape[:-1], self.full // (2 * stride), 2, stride)
        t = self.theta[i].view(self.full // (2 * stride), stride)
        c, s = torch.cos(t), sign * torch.sin(t)
        lo, hi = v[..., 0, :], v[..., 1, :]
        return torch.stack((c * lo - s * hi, s * lo + c * hi), dim=-2).view(x.shape)

    def forward(self, x, transpose=False):
        x = F.pad(x, (0, self.full - self.width))
        order = range(len(self.theta))
        for i in (reversed(order) if transpose else order):
            x = self.level(x, i, -1.0 if transpose else 1.0)
        return x[..., : self.width]


class RowTernaryLinear(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * n_in ** -0.5)

    def forward(self, x):
        w = self.weight
        gamma = w.abs().mean(1, keepdim=True)
        q = gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1.0, 1.0)
        return F.linear(x, w + (q - w).detach())


class PixelExpert(nn.Module):
    """What one land-cover expert owns."""

    def __init__(self, width, hidden):
        super().__init__()
        self.rot_in = StrideButterfly(width, 3)
        self.rot_out = StrideButterfly(hidden, 4)
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, x, up, down):
        h = up(self.rot_in(x, transpose=True)) + self.bias
        return down(self.rot_out(F.gelu(h)))


class PixelMoE(nn.Module):
    def __init__(self, width, hidden, n_experts=4, top_k=2):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Conv2d(width, n_experts, 1)
        self.up = RowTernaryLinear(width, hidden)
        self.down = RowTernaryLinear(hidden, width)
        self.experts = nn.ModuleList(PixelExpert(width, hidden) for _ in range(n_experts))

    def forward(self, fmap):
        prob = self.router(fmap).softmax(1).permute(0, 2, 3, 1)
        val, idx = prob.topk(self.top_k, -1)
        val = val / val.sum(-1, keepdim=True)
        x = fmap.permute(0, 2, 3, 1).contiguous()
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            hit = idx == e
            g = torch.where(hit, val, torch.zeros_like(val)).sum(-1, keepdim=True)
            y = expert(x, self.up, self.down)
            out = torch.where(hit.any(-1, keepdim=True), out + g * y, out)
        return out.permute(0, 3, 1, 2)


class Stage(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.dw = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.GroupNorm(4, width)
        self.moe = PixelMoE(width, hidden)

    def forward(self, x):
        x = x + F.relu(self.dw(x))
        return x + self.moe(self.norm(x))


class LandCoverUNet(nn.Module):
    def __init__(self, bands=5, classes=7, width=24):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(bands, width, 4, stride=4), nn.GroupNorm(4, width), nn.ReLU())
        self.enc = Stage(width, 3 * width)
        self.pool = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.mid = Stage(2 * width, 6 * width)
        self.unpool = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.fuse = nn.Conv2d(2 * width, width, 1)
        self.dec = Stage(width, 3 * width)
        self.head = nn.Conv2d(width, classes * 16, 1)
        self.shuffle = nn.PixelShuffle(4)

    @staticmethod
    def with_ndvi(tile):
        red, nir = tile[:, 2:3], tile[:, 3:4]
        return torch.cat((tile, (nir - red) / (nir + red + 0.1)), 1)

    def forward(self, tile):
        skip = self.enc(self.stem(self.with_ndvi(tile)))
        deep = self.mid(self.pool(skip))
        x = self.fuse(torch.cat((skip, self.unpool(deep)), 1))
        return self.shuffle(self.head(self.dec(x)))


@torch.no_grad()
def balance_router(net, router, tile):
    logits = []
    handle = router.register_forward_hook(lambda m, i, o: logits.append(o))
    net(tile)
    handle.remove()
    router.bias.sub_(logits[0].mean((0, 2, 3)))


def make():
    torch.manual_seed(606)
    net = LandCoverUNet()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.3 if "experts" in name else 0.1)
            elif "norm" in name or name == "stem.1.weight":
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif name.endswith("router.weight"):
                p.normal_(0, 0.4)
    tile = torch.rand(2, 4, 16, 24)
    net.eval()
    for stage in (net.enc, net.mid, net.dec):
        balance_router(net, stage.moe.router, tile)
    return net, (tile,)
