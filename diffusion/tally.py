"""What an evaluation keeps of a model's samples: a few numbers each, feature vectors, and the first pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.unfinished import UnfinishedSamples, numbers
from secateur.metrics.distribution import DistributionJudge
from secateur.metrics.image import psnr, ssim

_SMALLEST_SSIM = 11


@dataclass
class Tally:
    """What is kept of a model's samples."""

    judges: Sequence[DistributionJudge]
    shown: int
    vectors: list[list[Tensor]] = field(init=False)
    pictures: list[Tensor] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    latent_mse: list[float] = field(default_factory=list)
    squared_error: float = 0.0
    dense_squares: float = 0.0
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.vectors = [[] for _ in self.judges]

    def known(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        found = {f"vectors/{index}": torch.cat(held) for index, held in enumerate(self.vectors) if held}
        if self.pictures:
            found["pictures"] = torch.cat(self.pictures)
        lists: dict[str, list[Any]] = {
            "correct": self.correct,
            "latent_mse": self.latent_mse,
            "psnr": self.psnr,
            "ssim": self.ssim,
        }
        found |= {name: numbers(values) for name, values in lists.items() if values}
        return found | {"sums": numbers([self.squared_error, self.dense_squares])}

    def restore(self, known: Mapping[str, Tensor]) -> None:
        """Take over what `known` gave."""
        self.vectors = [[known[f"vectors/{index}"]] for index in range(len(self.judges))]
        self.pictures = [known["pictures"]] if "pictures" in known else []
        self.correct = [bool(right) for right in known.get("correct", ())]
        self.latent_mse, self.psnr, self.ssim = (
            known[name].tolist() if name in known else [] for name in ("latent_mse", "psnr", "ssim")
        )
        self.squared_error, self.dense_squares = known["sums"].tolist()

    def look(self, pictures: Tensor) -> None:
        """Take the vectors of a batch, and keep its pictures while there are too few."""
        for judge, held in zip(self.judges, self.vectors, strict=True):
            held.append(judge.features(pictures).cpu())
        missing = self.shown - sum(map(len, self.pictures))
        if missing > 0:
            self.pictures.append(pictures[:missing].cpu().clone())

    def compare(self, latents: Tensor, pictures: Tensor, dense_latents: Tensor, dense_pictures: Tensor) -> None:
        """Note the errors of a batch against the dense model's."""
        error = (latents.double() - dense_latents.double()).square().flatten(1)
        self.latent_mse += error.mean(dim=1).tolist()
        self.squared_error += float(error.sum())
        self.dense_squares += float(dense_latents.double().square().sum())
        ours, theirs = _channels_last(pictures), _channels_last(dense_pictures)
        self.psnr += psnr(ours, theirs).tolist()
        if min(ours.shape[1:3]) >= _SMALLEST_SSIM:
            self.ssim += ssim(ours, theirs).tolist()


def known_of(tallies: Mapping[str, Tally]) -> dict[str, Tensor]:
    """What all models' tallies know, as tensors by index and name."""
    return {
        f"{index}/{name}": value
        for index, tally in enumerate(tallies.values())
        for name, value in tally.known().items()
    }


def restored(unfinished: UnfinishedSamples, tallies: Mapping[str, Tally]) -> int:
    """How many samples need not be made again: the tallies have them."""
    done, known = unfinished.load()
    if done:
        for index, tally in enumerate(tallies.values()):
            own = f"{index}/"
            tally.restore({name.removeprefix(own): one for name, one in known.items() if name.startswith(own)})
    return done


def _channels_last(pictures: Float[Tensor, "N C H W"]) -> Float[Tensor, "N H W 3"]:
    if pictures.shape[1] not in (1, 3):
        raise ValueError(f"pictures must have 1 or 3 channels, got {tuple(pictures.shape)}: decode the latents")
    return pictures.float().expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
