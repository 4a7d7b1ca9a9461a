"""Vectors of folders held against those of the reference: Frechet and kernel distance, CMMD, CLIP score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.evaluation.chunks import Rows
from secateur.image_folders.listing import ImageFolder
from secateur.image_folders.networks import Networks
from secateur.image_folders.results import Floor, FolderResult, PairNumbers, SetDistance
from secateur.metrics.distribution import (
    DistributionJudge,
    Moments,
    clip_score,
    cmmd,
    frechet_distance,
    frechet_error,
    kernel_distance,
)
from secateur.metrics.distribution.judge import KID_SUBSET_SIZE

FEWEST = 4
"""Images of a set that has a distance."""

_FEWEST_FOR_ERROR = 30
_TEXTS = 64
_TABLE = 1 << 22
"""Numbers of a table of pairs that CMMD holds at a time."""


def read_captions(path: Path) -> dict[str, str]:
    """File name -> caption, from a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object of texts.
    """
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(captions, dict) or not all(isinstance(text, str) for text in captions.values()):
        raise ValueError(f"{path}: captions must be one JSON object: {{file name: caption}}")
    return captions


class Judging:
    """The reference's vectors, and what candidates' are held against."""

    def __init__(
        self, reference: ImageFolder, vectors: Rows, networks: Networks, captions: Mapping[str, str] | None, seed: int
    ) -> None:
        self.networks, self.seed, self.vectors = networks, seed, vectors
        self.judges: list[DistributionJudge] = []
        if len(reference) >= FEWEST:
            for network in networks.features:
                own = vectors[network.name]
                self.judges.append(DistributionJudge(network, own, Moments.of(own)))
        self.captions = captions
        order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))
        self.halves = order[: len(order) // 2], order[len(order) // 2 : 2 * (len(order) // 2)]

    def result(self, folder: ImageFolder, vectors: Rows, pairs: PairNumbers | None) -> FolderResult:
        clip = self.networks.clip
        distances = [self._distance(judge, vectors[judge.features.name]) for judge in self.judges]
        apart = None if clip is None else _cmmd(vectors[clip.name], self.vectors[clip.name])
        found = tuple(distance for distance in distances if distance is not None)
        return FolderResult(folder, found, apart, self.scores(folder, vectors), pairs)

    def floors(self) -> dict[str, Floor]:
        """Real against real on each network."""
        count = len(self.halves[0])
        if count < FEWEST:
            return {}
        found = {}
        for judge in self.judges:
            one, other = (judge.vectors[half] for half in self.halves)
            size = KID_SUBSET_SIZE if count >= KID_SUBSET_SIZE else count // 2
            kid = kernel_distance(one, other, subset_size=size, seed=self.seed).mean
            found[judge.features.name] = Floor(count, frechet_distance(Moments.of(one), Moments.of(other)), kid)
        return found

    def cmmd_floor(self) -> float | None:
        """CMMD of two halves of the reference."""
        clip = self.networks.clip
        if clip is None or not len(self.halves[0]):
            return None
        one, other = (self.vectors[clip.name][half] for half in self.halves)
        return _cmmd(one, other)

    def scores(self, folder: ImageFolder, vectors: Rows) -> dict[str, float] | None:
        """CLIP score of each image that has a caption: under its name, or without the ending."""
        clip = self.networks.clip
        if clip is None or self.captions is None:
            return None
        given = [self.captions.get(image.name, self.captions.get(image.stem)) for image in folder.images]
        places = [index for index, caption in enumerate(given) if caption is not None]
        if not places:
            raise ValueError(f"{folder.path}: none of its {len(folder)} images has a caption under its name")
        texts = [caption for caption in given if caption is not None]
        starts = range(0, len(texts), _TEXTS)
        embedded = torch.cat([clip.captions(texts[start : start + _TEXTS])[0].cpu() for start in starts])
        values = clip_score(vectors[clip.name][places], embedded)
        return {folder.images[place].name: value for place, value in zip(places, values.tolist(), strict=True)}

    def _distance(self, judge: DistributionJudge, vectors: Float[Tensor, "N D"]) -> SetDistance | None:
        if len(vectors) < FEWEST:
            return None
        error = None
        if len(vectors) >= _FEWEST_FOR_ERROR:
            error = frechet_error(vectors, judge.moments, seed=self.seed)
        return SetDistance(judge.features.name, judge.distances(vectors, seed=self.seed), error)


def _cmmd(one: Float[Tensor, "N D"], other: Float[Tensor, "M D"]) -> float:
    return cmmd(one, other, chunk=max(1, _TABLE // max(len(one), len(other))))
