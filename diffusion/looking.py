"""What an evaluation keeps of each sample: a few numbers and feature vectors a model, and the first pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.sampling import Classifier, Sampling
from secateur.console import Report, stretch
from secateur.evaluation.chunks import ChunkStore, Gathering, Rows
from secateur.metrics.distribution import DistributionJudge
from secateur.metrics.features.interface import check_images
from secateur.metrics.image import SSIM_WINDOW, psnr, ssim


@dataclass(frozen=True)
class Look:
    """Samples all models on the same seeds, and looks at what they made.

    The rows of the model at place i begin with "i/": `latent_mse`, `psnr` and `ssim` against the first model, `correct`
    (1 where the class is the one that was asked for), `vectors/j` of the judge at place j, `pictures`; of the first
    model `latent_square`, the mean square of its latents.

    Args:
        models: by name, the dense one first.
        sampling: which samples each makes.
        judges: hold real pictures against samples, one a feature network.
        classifier: tells the classes of samples where `sampling` has labels.
    """

    models: Mapping[str, nn.Module]
    sampling: Sampling
    judges: Sequence[DistributionJudge]
    classifier: Classifier | None

    def gathered(self, shown: int, store: ChunkStore, identity: Any, report: Report) -> Rows:
        """The rows of all samples; pictures are kept of the first `shown` alone."""
        count = len(self.sampling.seeds)
        parts = [self._gathering(range(min(shown, count)), identity, True)] if shown else []
        if count > shown:
            parts.append(self._gathering(range(shown, count), identity, False))
        found = []
        for part in parts:
            whole = stretch(report, part.items[0] / count, (part.items[-1] + 1) / count)
            found.append(store.gather(part, whole))
        return {name: torch.cat([rows[name] for rows in found if name in rows]) for name in found[0]}

    def _gathering(self, places: range, identity: Any, pictures: bool) -> Gathering:
        return Gathering(
            "sampling",
            [identity, places.start, places.stop, self.sampling.batch_size],
            places,
            lambda items: self._rows(items, pictures),
            chunk=self.sampling.batch_size,
            items_are="samples",
        )

    @torch.no_grad()
    def _rows(self, items: Iterator[int], pictures: bool) -> Rows:
        places = list(items)
        seeds = [self.sampling.seeds[place] for place in places]
        rows: Rows = {}
        dense: tuple[Tensor, Tensor] | None = None
        for index, (name, model) in enumerate(self.models.items()):
            latents = _checked(self.sampling.sample(model, seeds), name, seeds, None if dense is None else dense[0])
            drawn = self.sampling.decode(latents)
            check_images(drawn)
            found = self._seen(drawn, places)
            if pictures:
                found["pictures"] = drawn.cpu()
            if dense is None:
                dense = latents, drawn
                found["latent_square"] = latents.double().square().flatten(1).mean(dim=1).cpu()
            else:
                found |= _compared(latents, drawn, *dense)
            rows |= {f"{index}/{key}": values for key, values in found.items()}
        return rows

    def _seen(self, drawn: Tensor, places: Sequence[int]) -> Rows:
        """Vectors, and whether the class is right."""
        found = {f"vectors/{index}": judge.features(drawn).cpu() for index, judge in enumerate(self.judges)}
        if self.classifier is not None and self.sampling.labels is not None:
            asked = torch.tensor([self.sampling.labels[place] for place in places])
            found["correct"] = (self.classifier.classify(drawn).cpu() == asked).double()
        return found


def _compared(latents: Tensor, drawn: Tensor, dense_latents: Tensor, dense_drawn: Tensor) -> Rows:
    """Errors against the dense model's samples."""
    error = (latents.double() - dense_latents.double()).square().flatten(1).mean(dim=1)
    ours, theirs = _channels_last(drawn), _channels_last(dense_drawn)
    found = {"latent_mse": error.cpu(), "psnr": psnr(ours, theirs).double().cpu()}
    if min(ours.shape[1:3]) >= SSIM_WINDOW:
        found["ssim"] = ssim(ours, theirs).double().cpu()
    return found


def _checked(latents: Tensor, name: str, seeds: Sequence[int], dense: Tensor | None) -> Tensor:
    if len(latents) != len(seeds):
        raise ValueError(f"{name}: {len(latents)} latents for {len(seeds)} seeds")
    if dense is not None and latents.shape != dense.shape:
        raise ValueError(f"{name}: latents {tuple(latents.shape)}, the dense model's are {tuple(dense.shape)}")
    broken = int((~latents.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise ValueError(f"{name}: {broken} of {len(seeds)} latents are not finite, of seeds from {seeds[0]}")
    return latents


def _channels_last(pictures: Float[Tensor, "N C H W"]) -> Float[Tensor, "N H W 3"]:
    if pictures.shape[1] not in (1, 3):
        raise ValueError(f"pictures must have 1 or 3 channels, got {tuple(pictures.shape)}: decode the latents")
    return pictures.float().expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
