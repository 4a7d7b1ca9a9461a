"""Fusion instead of selection: what is pruned is carried into what stays, by optimal transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.solvers.transport import transport
from secateur.units import Keep, Member, Prunable, Scores, UnitGroup, check_keep

Target = TypeVar("Target", bound=Prunable)

Masses = Literal["uniform", "importance"]
"""How much a unit weighs in the transport: all the same, or by its score."""


@dataclass(frozen=True)
class IntraFusion:
    """Cut, and give each kept unit a mean of the units that the plan carries to it.

    Theus et al.: Towards Meta-Pruning via Optimal Transport (arXiv 2402.07839). A unit is the vector of all the
    parameters that it owns, of length 1; cost is the p-norm distance of every unit to every kept one; the plan T is the
    exact one. The map M = T^T / source masses has a column for each unit, of sum 1: where its share goes.

    What reads the units (members along a dimension above 0: the next layer's inputs) is contracted with M, which adds
    the weights up of those that have become one. What makes them (members along dimension 0) is contracted with M, its
    rows scaled to sum 1: a mean. So duplicates merge without changing the function. The released code contracts both
    with M, and leaves the growth of the outputs to a following normalisation: `producers="sum"` does that.

    Batch norm is expected to be folded into the layer before it, as in the paper; the mean of its parameters and
    running statistics is exact only among units that share them.

    Args:
        p: of the distance; 1 as in the released code.
        sources: masses of all units; "importance" needs scores.
        targets: masses of the kept units.
        producers: see above.
    """

    p: float = 1.0
    sources: Masses = "uniform"
    targets: Masses = "uniform"
    producers: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        for field, value, known in (
            ("sources", self.sources, ("uniform", "importance")),
            ("targets", self.targets, ("uniform", "importance")),
            ("producers", self.producers, ("mean", "sum")),
        ):
            if value not in known:
                raise ValueError(f"{field} must be one of {known}, got {value!r}")
        if not self.p > 0:
            raise ValueError(f"p must be above 0, got {self.p}")

    @torch.no_grad()
    def cut(self, target: Target, keep: Keep, scores: Scores | None = None) -> Target:
        """`target.cut(keep)` with fused parameters; groups that keep everything are left as they are, bit for bit.

        Args:
            target: what is cut; it is not changed.
            keep: group name -> (size,) bool.
            scores: group name -> (size,) above 0, for masses by importance.

        Raises:
            ValueError: keep or scores do not fit the groups, a group keeps nothing, or a parameter of what was cut has
                another shape than its members say.
        """
        groups = target.groups()
        check_keep(keep, groups)
        before, small = target.tensors(), target.cut(keep)
        after = small.tensors()
        fused: dict[str, Tensor] = {}
        for group in groups:
            kept = keep[group.name]
            if bool(kept.all()):
                continue
            plan = self.map(before, group, kept, None if scores is None else scores[group.name])
            means = plan / plan.sum(1, keepdim=True) if self.producers == "mean" else plan
            for member in group.members:
                value = fused.get(member.param, before[member.param])
                if member.param in before and value.is_floating_point():
                    rows = _rows_map(means if member.dim == 0 else plan, member, kept, value.shape[member.dim])
                    fused[member.param] = torch.tensordot(
                        rows.to(value.device), value.double(), ([1], [member.dim])
                    ).movedim(0, member.dim)
        for name, value in fused.items():
            if value.shape != after[name].shape:
                raise ValueError(
                    f"{name!r} was cut to {tuple(after[name].shape)}, its members say {tuple(value.shape)}"
                )
            after[name].copy_(value)
        return small

    def map(
        self, tensors: Mapping[str, Tensor], group: UnitGroup, kept: Tensor, scores: Tensor | None
    ) -> Float[Tensor, "kept size"]:
        """M: what share of each unit goes to each kept one, float64 on the CPU."""
        if not bool(kept.any()):
            raise ValueError(f"group {group.name!r} keeps nothing that the rest could be fused with")
        units = torch.cat([_units(tensors[m.param], m) for m in group.members if _counts(tensors, m)], 1)
        units = torch.nn.functional.normalize(units, dim=1)
        kept = kept.cpu()
        sources = _masses(self.sources, scores, torch.ones_like(kept), group)
        plan = transport(torch.cdist(units, units[kept], p=self.p), sources, _masses(self.targets, scores, kept, group))
        return plan.T / sources


def _counts(tensors: Mapping[str, Tensor], member: Member) -> bool:
    return member.param in tensors and tensors[member.param].is_floating_point()


def _units(value: Tensor, member: Member) -> Tensor:
    """(size, elements) what each unit owns of a parameter."""
    by_row = value.detach().double().cpu().movedim(member.dim, 0)
    by_unit = by_row if member.rows is None else by_row[member.rows.cpu()]
    return by_unit.reshape(len(by_unit), -1)


def _masses(kind: Masses, scores: Tensor | None, which: Tensor, group: UnitGroup) -> Tensor:
    if kind == "uniform":
        return torch.full((int(which.sum()),), 1 / int(which.sum()), dtype=torch.float64)
    if scores is None or scores.shape != (group.size,):
        raise ValueError(f"masses by importance need {group.size} scores for group {group.name!r}")
    masses = scores.detach().cpu().double()[which]
    if not bool((masses > 0).all()) or not bool(torch.isfinite(masses).all()):
        raise ValueError(f"masses by importance need finite scores above 0, those of group {group.name!r} are not")
    return masses / masses.sum()


def _rows_map(plan: Tensor, member: Member, kept: Tensor, size: int) -> Tensor:
    """(rows after, rows before) the plan between units as one between the parameter's rows; unowned rows stay."""
    rows = torch.arange(size)[:, None] if member.rows is None else member.rows.cpu()
    if len(rows) != len(kept):
        raise ValueError(f"{member.param!r} has {len(rows)} owners along dimension {member.dim}, not {len(kept)}")
    kept = kept.cpu()
    full = torch.eye(size, dtype=torch.float64)
    for slot in range(rows.shape[1]):
        full[rows[kept, slot][:, None], rows[:, slot]] = plan
    stays = torch.ones(size, dtype=torch.bool)
    stays[rows[~kept].flatten()] = False
    return full[stays]
