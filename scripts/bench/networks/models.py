"""The two networks that are pruned, for grey pictures of 28x28 pixels in ten classes, and their units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.surgery import Count, Network, trace
from secateur.surgery.attention import feed_forward_group, head_group

CLASSES = 10
PICTURE = (1, 28, 28)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norms, added to what came in (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """The CIFAR-style residual network of widths 16, 32, 64, on 14x14, 7x7 and 4x4 positions."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        layers, inputs = [], widths[0]
        for outputs in widths:
            for _ in range(blocks):
                layers.append(ResidualBlock(inputs, outputs, 1 if inputs == outputs else 2))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x: Float[Tensor, "B 1 28 28"]) -> Float[Tensor, "B 10"]:
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


class Attention(nn.Module):
    """Self-attention whose queries, keys and values are layers of their own, in operations with two derivatives."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-2, -1) * self.head_dim**-0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward layer, each behind a layer norm and added to what came in."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        x = x + self.attention(self.norm1(x))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A small vision transformer (arXiv 2010.11929) over 5x5 overlapping patches, with the mean of the tokens read."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 8, hidden: int = 192) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 8, 5, 1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 25, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Float[Tensor, "B 1 28 28"]) -> Float[Tensor, "B 10"]:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


def example(batch: int = 1) -> Float[Tensor, "batch 1 28 28"]:
    """Pictures of noise, always the same."""
    return torch.randn(batch, *PICTURE, generator=torch.Generator().manual_seed(0))


def channels(module: ResNet) -> Network:
    """Its channels as units: those inside of each block, and those of each width's stream."""
    return trace(module, example())


def heads_and_neurons(module: Transformer) -> Network:
    """Its heads and the neurons of its feed-forward layers as units."""
    groups, counts = [], []
    for index in range(len(module.blocks)):
        block = f"blocks.{index}"
        attention = f"{block}.attention"
        layers = {name: f"{attention}.{name}" for name in ("q", "k", "v", "out")}
        count = Count(attention, "heads", attention)
        group, counted = head_group(
            module, attention, **layers, heads=module.blocks[index].attention.heads, counts=[count]
        )
        groups += [group, feed_forward_group(module, f"{block}.mlp", up=f"{block}.up", down=f"{block}.down")]
        counts += counted
    return Network(module, groups, example(), counts=counts)


def is_weight(name: str, tensor: Tensor) -> bool:
    """Whether it is the weight of a layer, of two dimensions or more: no bias, norm or learnt position."""
    return tensor.ndim >= 2 and name.endswith("weight")


@dataclass(frozen=True, slots=True)
class Kind:
    """A network of this bench.

    Args:
        build: makes it, with weights from torch's global generator.
        units: its unit map.
        activation: what comes behind the layers that make units.
        epochs: over the training pictures, by which it is trained.
        rate: largest learning rate of its training.
    """

    build: Callable[[], nn.Module]
    units: Callable[..., Network]
    activation: Callable[[Tensor], Tensor]
    epochs: int
    rate: float


KINDS = {
    "ResNet": Kind(ResNet, channels, torch.relu, 5, 4e-3),
    "transformer": Kind(Transformer, heads_and_neurons, torch.nn.functional.gelu, 7, 1.5e-3),
}
"""The networks by name."""
