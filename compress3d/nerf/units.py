"""What a field is made of, and what cutting it does: rows of tables, levels, neurons, voxels of saliency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Int32
from torch import Tensor

from compress3d.nerf.levels import first_rows
from secateur.surgery.cut import Cuts, Kept, cut_module
from secateur.surgery.masking import Scale
from secateur.units import Keep, Member, UnitGroup, check_keep, mask_of

if TYPE_CHECKING:
    from compress3d.nerf.field import Field

ROWS, LEVELS, GEOMETRY, VOXELS = "rows", "levels", "geometry", "voxels"


def field_groups(field: Field) -> tuple[UnitGroup, ...]:
    """The groups of a field; those without units are left out."""
    density, color = field.weights()
    first, last, inlet = "density.0.weight", f"density.{len(density) - 1}.weight", "color.0.weight"
    columns = torch.arange(field.width).reshape(len(field.levels), -1)
    onward = torch.arange(1, len(density[-1]))[:, None]
    groups = [
        UnitGroup(ROWS, len(field.table), (Member("table"),), min_keep=0),
        UnitGroup(LEVELS, len(field.levels), (Member(first, 1, columns),)),
        *_neurons("density", density),
        UnitGroup(GEOMETRY, len(onward), (Member(last, 0, onward), Member(inlet, 1, onward)), min_keep=0),
        *_neurons("color", color),
    ]
    return tuple(_with_costs(field, group) for group in groups if group.size)


def _neurons(name: str, weights: list[Tensor]) -> list[UnitGroup]:
    return [
        UnitGroup(
            f"{name}.{index}",
            len(weight),
            (Member(f"{name}.{index}.weight"), Member(f"{name}.{index + 1}.weight", 1)),
        )
        for index, weight in enumerate(weights[:-1])
    ]


def voxel_groups(field: Field) -> tuple[UnitGroup, ...]:
    """The vertices of a hollow field's saliency grid that are left, where any is."""
    left = len(field.tensors()["saliency"])
    return (_with_costs(field, UnitGroup(VOXELS, left, (Member("saliency"),), min_keep=0)),) if left else ()


def _with_costs(field: Field, group: UnitGroup) -> UnitGroup:
    """With "params" and "bytes" of each unit; a level takes its rows with it."""
    tensors = field.tensors()
    params = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        tensor = tensors[member.param]
        each = 1 if member.rows is None else member.rows.shape[1]
        params += each * tensor.numel() / tensor.shape[member.dim]
    if group.name == LEVELS:
        params += rows_by_level(field).double() * field.table.shape[1]
    return replace(group, cost={"params": params, "bytes": params * field.table.element_size()})


def rows_by_level(field: Field) -> Tensor:
    """(L,) int64: rows that are stored of each level."""
    starts = torch.tensor(first_rows(field.levels))
    if field.slots is None:
        return starts.diff()
    stored = torch.cat([torch.zeros(1, dtype=torch.int64), (field.slots >= 0).long().cumsum(0).cpu()])
    return stored[starts].diff()


def scales_of(field: Field, masks: Mapping[str, Tensor]) -> dict[str, list[Scale]]:
    """Tensor name -> what masks multiply it by: rows of tables, and columns of the weights that read other units."""
    scales: dict[str, list[Scale]] = {}
    for group in field.groups():
        mask = mask_of(masks, group.name, group.size)
        for member in group.members:
            if group.name in (ROWS, VOXELS) or member.dim == 1:
                rows = torch.arange(group.size)[:, None] if member.rows is None else member.rows
                scales.setdefault(member.param, []).append(Scale(member.dim, rows, mask))
    return scales


def cut_field(field: Field, keep: Keep) -> Field:
    """A smaller copy; see `Field.cut`."""
    groups = field.groups()
    check_keep(keep, groups)
    for group in groups:
        left = int(keep[group.name].sum())
        if left < group.min_keep:
            raise ValueError(f"keep leaves {left} units of group {group.name!r}, which needs {group.min_keep}")
    keep = {name: mask.cpu() for name, mask in keep.items()}
    levels = keep[LEVELS]
    stored = keep[ROWS] if ROWS in keep and len(field.table) else torch.zeros(0, dtype=torch.bool)
    stored = stored & levels.repeat_interleave(rows_by_level(field))
    stays = {("table", 0): stored}
    tensors = field.tensors()
    for group in groups:
        for member in group.members:
            if group.name == ROWS:
                continue
            size = tensors[member.param].shape[member.dim]
            rows = torch.arange(group.size)[:, None] if member.rows is None else member.rows
            mask = stays.setdefault((member.param, member.dim), torch.ones(size, dtype=torch.bool))
            mask[rows[~keep[group.name]].flatten()] = False
    cuts = Cuts({key: Kept(len(mask), mask.nonzero()[:, 0]) for key, mask in stays.items() if not bool(mask.all())})
    smaller = cast("Field", cut_module(field, cuts))
    smaller.slots = _slots(field, levels, stored)
    smaller.levels = tuple(level for level, kept in zip(field.levels, levels.tolist(), strict=True) if kept)
    return smaller


def _slots(field: Field, levels: Tensor, stored: Tensor) -> Int32[Tensor, " all_rows"] | None:
    """Where rows of the levels that stay are now; None where none of theirs is missing."""
    present = torch.ones(first_rows(field.levels)[-1], dtype=torch.bool)
    if field.slots is not None:
        present = field.slots.cpu() >= 0
    stays = torch.zeros_like(present)
    stays[present] = stored
    counts = torch.tensor([level.rows for level in field.levels])
    return slots_of(stays[levels.repeat_interleave(counts)], field.table.device)


def slots_of(stays: Tensor, device: torch.device | str = "cpu") -> Int32[Tensor, " all_rows"] | None:
    """Row as the levels count them -> row that is stored, -1 where it is not; None where all are."""
    if bool(stays.all()):
        return None
    return torch.where(stays, stays.long().cumsum(0) - 1, -1).int().to(device)
