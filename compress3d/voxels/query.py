"""How relevant voxels are to what is asked for: a text's embedding, a feature vector, or any callable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.voxels.pyramid import VoxelPyramid, group_name
from secateur.units import Scores


class Query(Protocol):
    """What is asked for."""

    def __call__(self, features: Float[Tensor, "N D"], /) -> Float[Tensor, " N"]:
        """How relevant each row is, in [0, 1]; of a row alone, whatever the others are."""
        ...


@dataclass(frozen=True, eq=False)
class CosineQuery:
    """sigmoid((c - middle) / temperature), c the cosine of a voxel's features with the token that is most like it.

    For features in the space of the query: a text's token embeddings, of the encoder whose features the voxels hold.

    Args:
        tokens: (T, D) vectors, or one (D,); none is 0.
        middle: the cosine whose relevance is 0.5.
        temperature: how fast relevance rises there, above 0.
    """

    tokens: Float[Tensor, "T D"]
    middle: float = 0.5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        _check("temperature", self.temperature)
        if not bool((torch.atleast_2d(self.tokens).norm(dim=1) > 0).all()):
            raise ValueError("tokens must not be 0: a vector of zeros has no direction")

    def __call__(self, features: Float[Tensor, "N D"], /) -> Float[Tensor, " N"]:
        tokens = torch.nn.functional.normalize(torch.atleast_2d(self.tokens).to(features), dim=1)
        cosines = torch.nn.functional.normalize(features, dim=1) @ tokens.T
        return torch.sigmoid((cosines.amax(dim=1) - self.middle) / self.temperature)


@dataclass(frozen=True, eq=False)
class NearQuery:
    """exp(-d^2 / (2 radius^2)), d the distance to the nearest of some vectors: for colours.

    Args:
        vectors: (T, D) vectors, or one (D,).
        radius: in the features' units, above 0.
    """

    vectors: Float[Tensor, "T D"]
    radius: float

    def __post_init__(self) -> None:
        _check("radius", self.radius)

    def __call__(self, features: Float[Tensor, "N D"], /) -> Float[Tensor, " N"]:
        vectors = torch.atleast_2d(self.vectors).to(features)
        squares = (features[:, None] - vectors).square().sum(dim=2).amin(dim=1)
        return torch.exp(-0.5 * squares / self.radius**2)


@dataclass(frozen=True)
class QueryRelevance:
    """How relevant each voxel's features are to a query, level by level, in [0, 1].

    The keep probability of text-guided pruning (Guo et al., Text-guided Sparse Voxel Pruning for Efficient 3D Visual
    Grounding, arXiv 2502.10392, section 3.3), whose cross-attention and perceptron are one `Query` among others. Here
    all voxels are asked about; `QueryPruning` asks about few.
    """

    def score(self, target: VoxelPyramid, calibration: Query | None = None) -> Scores:
        """(N_l,) scores of each level.

        Raises:
            ValueError: there is no query.
        """
        if calibration is None:
            raise ValueError("relevance needs a query: what is asked for")
        return {group_name(level): relevance(calibration, v.features) for level, v in enumerate(target.levels)}


@torch.no_grad()
def relevance(query: Query, features: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """What the query says, checked.

    Raises:
        ValueError: it is not one number in [0, 1] for each row.
    """
    found = query(features)
    if found.shape != (len(features),):
        raise ValueError(f"a query must give ({len(features)},), got {tuple(found.shape)}")
    wrong = int((~((found >= 0) & (found <= 1))).sum())
    if wrong:
        raise ValueError(f"a query must give numbers in [0, 1], but {wrong} of {len(found)} are not")
    return found


def _check(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
