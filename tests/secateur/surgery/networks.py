"""Small networks of every kind that surgery knows, with inputs that run them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def seeded(build: type[nn.Module], seed: int = 0) -> nn.Module:
    """The network in evaluation mode, every parameter and statistic random, no global random state touched."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            with torch.no_grad():
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 2.0)
                elif tensor.dim() < 2:
                    tensor.uniform_(-0.8, 1.2)
        return module.eval()


def pixels(batch: int = 2, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens(batch: int = 2, length: int = 5, width: int = 12) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(2))


class Residual(nn.Module):
    """A ResNet: a stem, an identity block and a strided one with a projection, sigmoid where zeros would not stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.a1 = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Sigmoid())
        self.a2 = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.b1 = nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1), nn.BatchNorm2d(10), nn.ReLU())
        self.b2 = nn.Sequential(nn.Conv2d(10, 12, 3, padding=1), nn.BatchNorm2d(12))
        self.shortcut = nn.Conv2d(8, 12, 1, 2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.a2(self.a1(x)))
        return self.head(torch.relu(self.b2(self.b1(x)) + self.shortcut(x)))


class Dense(nn.Module):
    """A DenseNet block: every layer reads all layers before it, through concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(6 + 4 * i), nn.ReLU(), nn.Conv2d(6 + 4 * i, 4, 3, padding=1)) for i in range(3)
        )
        self.norm = nn.BatchNorm2d(18)
        self.head = nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return self.head(torch.relu(self.norm(x)).mean(dim=(2, 3)))


class Mobile(nn.Module):
    """MobileNet's inverted residual: widen, depthwise, squeeze and excite, narrow; and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.widen = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.PReLU(16))
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid()
        )
        self.narrow = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))
        self.grouped = nn.Sequential(nn.Conv2d(8, 12, 3, groups=2), nn.GroupNorm(6, 12), nn.SiLU())
        self.last = nn.Sequential(nn.Conv2d(12, 6, 1), nn.InstanceNorm2d(6), nn.Flatten(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        wide = self.depthwise(self.widen(x))
        return self.last(self.grouped(x + self.narrow(wide * self.squeeze(wide))))


class Transformer(nn.Module):
    """torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(dim=1))


class Recurrent(nn.Module):
    """An embedding of real inputs, an LSTM, a GRU and a head on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 7)
        self.lstm = nn.LSTM(7, 9, batch_first=True)
        self.between = nn.Linear(9, 6)
        self.gru = nn.GRU(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(torch.tanh(self.embed(x)))
        x, _ = self.gru(torch.relu(self.between(x)))
        return self.head(x[:, -1])


class Mixer(nn.Module):
    """Layer norms over a residual stream without attention, so that the stream itself can narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 10)
        self.norms = nn.ModuleList([nn.LayerNorm(10), nn.LayerNorm(10)])
        self.up = nn.ModuleList([nn.Linear(10, 14), nn.Linear(10, 14)])
        self.down = nn.ModuleList([nn.Linear(14, 10), nn.Linear(14, 10)])
        self.last = nn.RMSNorm(10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(torch.nn.functional.gelu(up(norm(x))))
        return self.head(self.last(x).mean(dim=1))


class Decoder(nn.Module):
    """Down and up again, with a skip connection and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, 2, 1)
        self.mid = nn.Conv2d(6, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 5, 2, 2)
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(torch.tanh(self.mid(torch.relu(self.down(x)))))
        return self.out(torch.cat([up, x], dim=1))
