"""A triangle mesh: its tensors, and its face as something prunable, whose units are the triangles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from secateur.units import Keep, Member, UnitGroup, check_keep, mask_of

FACES = "faces"
"""Name of the one group of units that a mesh has."""


@dataclass(slots=True, eq=False)
class Mesh:
    """V points in the world, and F triangles between them.

    Each triangle is a unit. It owns the rows of `vertices` that are its corners, and shares them with its neighbours:
    so criteria on elements count a vertex once for each triangle around it.

    Args:
        vertices: (V, 3) positions in world units, finite.
        faces: (F, 3) rows of `vertices`; counter-clockwise from outside, where there is an outside.

    Raises:
        ValueError: shapes or dtypes do not fit, a position is not finite, or a face names a vertex that is not there.
    """

    vertices: Float[Tensor, "V 3"]
    faces: Int64[Tensor, "F 3"]
    _mask: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3 or not self.vertices.is_floating_point():
            raise ValueError(f"vertices must be (V, 3) floats, got {self.vertices.dtype} {tuple(self.vertices.shape)}")
        if self.faces.ndim != 2 or self.faces.shape[1] != 3 or self.faces.dtype != torch.int64:
            raise ValueError(f"faces must be (F, 3) int64, got {self.faces.dtype} {tuple(self.faces.shape)}")
        wrong = int((~torch.isfinite(self.vertices).all(dim=1)).sum())
        if wrong:
            raise ValueError(f"{wrong} of {len(self.vertices)} vertices are not finite (NaN or infinite)")
        astray = int(((self.faces < 0) | (self.faces >= len(self.vertices))).any(dim=1).sum())
        if astray:
            raise ValueError(f"{astray} of {len(self)} faces name vertices beyond the {len(self.vertices)} there are")

    def __len__(self) -> int:
        """The number of faces."""
        return len(self.faces)

    def strengths(self) -> Float[Tensor, " F"]:
        """How strongly each face covers, in [0, 1]: the mask that is in force, or ones."""
        return self.vertices.new_ones(len(self)) if self._mask is None else self._mask

    def tensors(self) -> Mapping[str, Tensor]:
        return {"vertices": self.vertices}

    def groups(self) -> Sequence[UnitGroup]:
        cost = {"faces": torch.ones(len(self))}
        return (UnitGroup(FACES, len(self), (Member("vertices", 0, self.faces),), cost),)

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """Multiply each face's coverage by `masks["faces"]` ((F,), in [0, 1]) while the context is open."""
        before, self._mask = self._mask, mask_of(masks, FACES, len(self))
        try:
            yield
        finally:
            self._mask = before

    def cut(self, keep: Keep) -> Self:
        """Without the faces that go, and without the vertices that only they had; the rest keeps its order."""
        check_keep(keep, self.groups())
        faces = self.faces[keep[FACES].to(self.faces.device)]
        gone = self._referenced(self.faces) & ~self._referenced(faces)
        return replace(self, faces=faces)._without_vertices(gone)

    def with_vertices(self, vertices: Float[Tensor, "V 3"]) -> Self:
        """The same faces over other positions."""
        return replace(self, vertices=vertices)

    def without_stray_vertices(self) -> Self:
        """Without the vertices that no face names."""
        return self._without_vertices(~self._referenced(self.faces))

    def _referenced(self, faces: Tensor) -> Tensor:
        used = torch.zeros(len(self.vertices), dtype=torch.bool, device=faces.device)
        used[faces.flatten()] = True
        return used

    def _without_vertices(self, gone: Tensor) -> Self:
        if not bool(gone.any()):
            return self
        numbers = (~gone).cumsum(0) - 1
        return replace(self, vertices=self.vertices[~gone], faces=numbers[self.faces])
