"""The networks that are climbed with: a block of Segment Anything's ViT-H, and its whole image encoder.

Built from the published description of both, with random weights. Attention is written out as there, as matrix products
around a softmax, with a bias for the rows and one for the columns between two patches.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

_SEED = 0
_BIAS = 0.02


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a vision transformer. ``grid`` counts patches along a side; ``everywhere`` are blocks without windows."""

    width: int = 1280
    heads: int = 16
    ratio: int = 4
    window: int = 14
    grid: int = 64
    patch: int = 16
    depth: int = 32
    everywhere: tuple[int, ...] = (7, 15, 23, 31)
    neck: int = 256


VIT_H = Sizes()
TINY = replace(VIT_H, width=32, heads=2, window=3, grid=8, patch=4, depth=2, everywhere=(1,), neck=16)


class Attention(nn.Module):
    """Among patches of a square of ``side``: [batch, side, side, width] to the same."""

    def __init__(self, sizes: Sizes, side: int) -> None:
        super().__init__()
        self.heads = sizes.heads
        depth = sizes.width // sizes.heads
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.proj = nn.Linear(sizes.width, sizes.width)
        self.rows = nn.Parameter(torch.empty(2 * side - 1, depth))
        self.columns = nn.Parameter(torch.empty(2 * side - 1, depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend."""
        batch, side, _, width = x.shape
        heads = self.qkv(x).view(batch, side * side, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads.flatten(1, 2).unbind(0)
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(1, 2)
        attended = self._biased(scores, queries, side).softmax(-1) @ values
        attended = attended.view(batch, self.heads, side, side, -1).permute(0, 2, 3, 1, 4)
        result: torch.Tensor = self.proj(attended.reshape(batch, side, side, width))
        return result

    def _biased(self, scores: torch.Tensor, queries: torch.Tensor, side: int) -> torch.Tensor:
        """Add for where two patches are: for each query a bias by row, and one by column."""
        grid = queries.view(-1, side, side, queries.shape[-1])
        places = torch.arange(side, device=queries.device)
        distances = places[:, None] - places[None, :] + side - 1
        rows = torch.einsum("bhwc,hkc->bhwk", grid, self.rows[distances])
        columns = torch.einsum("bhwc,wkc->bhwk", grid, self.columns[distances])
        squares = scores.view(-1, side, side, side, side)
        return (squares + rows[..., :, None] + columns[..., None, :]).view(scores.shape)


class Block(nn.Module):
    """A layer of the transformer, [batch, grid, grid, width] to the same. ``window`` 0: attention is everywhere."""

    def __init__(self, sizes: Sizes, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.attention = Attention(sizes, window or sizes.grid)
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.lin1 = nn.Linear(sizes.width, sizes.ratio * sizes.width)
        self.lin2 = nn.Linear(sizes.ratio * sizes.width, sizes.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend, then look at each patch alone."""
        attended = self._attend(self.norm1(x))
        x = x + attended
        result: torch.Tensor = x + self.lin2(functional.gelu(self.lin1(self.norm2(x))))
        return result

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        if not self.window:
            whole: torch.Tensor = self.attention(x)
            return whole
        batch, grid, _, width = x.shape
        count, rest = -(-grid // self.window), -grid % self.window
        padded = functional.pad(x, (0, 0, 0, rest, 0, rest))
        windows = padded.view(batch, count, self.window, count, self.window, width).transpose(2, 3)
        attended = self.attention(windows.reshape(-1, self.window, self.window, width))
        attended = attended.view(batch, count, count, self.window, self.window, width).transpose(2, 3)
        joined: torch.Tensor = attended.reshape(padded.shape)
        return joined[:, :grid, :grid].contiguous()


class ChannelNorm(nn.LayerNorm):
    """A layer norm of the channels of an image, [batch, channels, rows, columns]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize."""
        normalized: torch.Tensor = super().forward(x.permute(0, 2, 3, 1))
        return normalized.permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """From an image, [batch, 3, patch * grid, patch * grid], to [batch, neck, grid, grid]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, sizes.width, sizes.patch, stride=sizes.patch)
        self.places = nn.Parameter(torch.empty(1, sizes.grid, sizes.grid, sizes.width))
        windows = [0 if index in sizes.everywhere else sizes.window for index in range(sizes.depth)]
        self.blocks = nn.Sequential(*(Block(sizes, window) for window in windows))
        self.neck = nn.Sequential(
            nn.Conv2d(sizes.width, sizes.neck, 1, bias=False),
            ChannelNorm(sizes.neck, eps=1e-6),
            nn.Conv2d(sizes.neck, sizes.neck, 3, padding=1, bias=False),
            ChannelNorm(sizes.neck, eps=1e-6),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encode."""
        x = self.patches(image).permute(0, 2, 3, 1) + self.places
        result: torch.Tensor = self.neck(self.blocks(x).permute(0, 3, 1, 2))
        return result


def build(name: str, sizes: Sizes, batch: int) -> tuple[nn.Module, torch.Tensor]:
    """The network "block" or "encoder" on the host, in fp32, and an input: the same each time, on any machine."""
    with torch.device("meta"):
        network: nn.Module = Block(sizes, sizes.window) if name == "block" else Encoder(sizes)
    network = network.to_empty(device="cpu").eval().requires_grad_(requires_grad=False)
    dice = torch.Generator().manual_seed(_SEED)
    for label, parameter in network.named_parameters():
        if parameter.ndim == 1 and label.endswith("weight"):
            parameter.fill_(1)  # of a norm
        else:
            # What is multiplied keeps its size, so that no branch is lost in the sum that it is added to.
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
            parameter.normal_(std=fan_in**-0.5 if fan_in else _BIAS, generator=dice)
    side = sizes.grid * sizes.patch
    shape = (sizes.grid, sizes.grid, sizes.width) if name == "block" else (3, side, side)
    return network, torch.randn(batch, *shape, generator=dice)
