"""Randomised parameter sharing: all rows of the tables read one short array, each by its own hash, sign and scale.

STABLE-RPS (Desai and Shrivastava: In defense of parameter sharing for model-compression, arXiv 2310.11611): W_i =
lambda s_i M[h(i)], with h as even as it can be (RANDOMFOLD), so that sharing ends where M is as long as W; and steps
of M as long as those of W would be. It is the baseline that pruning has to beat at an equal number of entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress3d.captures import Capture
from compress3d.nerf.field import Field
from compress3d.nerf.recover import RATE, FieldRecovery
from compress3d.nerf.train import Training, fit_field
from compress3d.nerf.units import rows_by_level
from secateur.console import Report, silent
from secateur.maths import root_mean_square
from secateur.training import FitRecord


@dataclass(frozen=True, slots=True, eq=False)
class Sharing:
    """How N rows read M rows of an array.

    Args:
        size: M.
        slots: (N,) the row of the array that each reads, h(i).
        factors: (N, 1) sign times scale of each row.
    """

    size: int
    slots: Int64[Tensor, " N"]
    factors: Float[Tensor, "N 1"]

    def expand(self, memory: Float[Tensor, "M F"]) -> Float[Tensor, "N F"]:
        """The rows that the array stands for; its gradient is the factors' sum over all that share a row."""
        return memory.index_select(0, self.slots) * self.factors

    def sketch(self, rows: Float[Tensor, "N F"]) -> Float[Tensor, "M F"]:
        """The transpose of `expand`: with scales of 1, inner products are kept on average over the signs."""
        return rows.new_zeros(self.size, rows.shape[1]).index_add_(0, self.slots, rows * self.factors)

    def fit(self, rows: Float[Tensor, "N F"]) -> Float[Tensor, "M F"]:
        """The array whose expansion is nearest to `rows`, by least squares.

        Of gradients by rows it makes the step of the array that moves rows as far as their own step would, whatever
        their scales (arXiv 2310.11611's gradient scaling, in the least-squares sense).
        """
        squares = rows.new_zeros(self.size, 1).index_add_(0, self.slots, self.factors.square())
        return self.sketch(rows) / squares.clamp_min(1e-30)


def sharing_for(field: Field, size: int, seed: int = 0) -> Sharing:
    """How the rows of a field's tables share `size` rows; each level's scale is its root mean square.

    Rows in random order take the rows of the array in turn: no one is read by more than one row more than another, and
    where there are as many as rows of the tables, each has its own.

    Args:
        field: with its tables.
        size: rows of the array.
        seed: of order and signs.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"rows must share at least 1 row, got {size}")
    random, count = torch.Generator().manual_seed(seed), len(field.table)
    slots = torch.randperm(count, generator=random) % size
    signs = torch.randint(2, (count, 1), generator=random).float() * 2 - 1
    levels = field.table.detach().split(rows_by_level(field).tolist())
    scales = torch.cat([torch.full((len(rows), 1), root_mean_square(rows) or 1.0) for rows in levels])
    return Sharing(min(size, max(count, 1)), slots.to(field.device), (signs * scales).to(field.device))


def share(
    field: Field,
    capture: Capture,
    keep: float,
    *,
    steps: int,
    training: Training | None = None,
    seed: int = 0,
    report: Report = silent,
) -> tuple[Field, Sharing, int, FitRecord]:
    """A field whose tables read `keep` of as many rows, trained so; `field` stays as it is.

    Args:
        field: to be made smaller.
        capture: photographs to train on.
        keep: rows of the array, as a share of those of the tables.
        steps: of training; 0: the array that fits the tables best.
        training: samples, rates, loss and seed; None: as `recover` has it.
        seed: of the sharing.
        report: told how much is done.

    Returns:
        the field, with its tables expanded; how they share; the bytes that it takes: those of the array, the seed and
        all that is not tables; and the fit.

    Raises:
        ValueError: `keep` is not a share, or there are no training photographs.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be a share above 0 and at most 1, got {keep}")
    if not len(capture.train):
        raise ValueError(f"{capture.name}: no photographs to train on")
    sharing = sharing_for(field, max(1, int(keep * len(field.table))), seed)
    smaller = field.cut({group.name: torch.ones(group.size, dtype=torch.bool) for group in field.groups()})
    settings = Training(rate=RATE, final_rate=0.1) if training is None else training
    module = SharedRecovery(capture, settings, max(steps, 1), smaller, sharing)
    record = fit_field(module, steps, None, False, report)
    table = smaller.table
    entries = sharing.size * table.shape[1] * table.element_size()
    scales = 4 * len(field.levels)
    return smaller, sharing, smaller.bytes - table.numel() * table.element_size() + entries + scales + 8, record


class SharedRecovery(FieldRecovery):
    """Training of the array that a field's tables read.

    Args:
        capture: the posed photographs.
        training: samples, rates, loss and seed.
        steps: of the run.
        field: whose tables become what the array that fits them best stands for.
        sharing: how.
    """

    def __init__(self, capture: Capture, training: Training, steps: int, field: Field, sharing: Sharing) -> None:
        super().__init__(capture, training, steps, field, None)
        self.sharing = sharing
        self.memory = torch.nn.Parameter(sharing.fit(field.table.detach()))
        self._spread()
        field.table.register_post_accumulate_grad_hook(self._gather)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        optimizer.param_groups[0]["params"] = [self.memory]
        return optimizer

    def training_step(self, batch: Int64[Tensor, ""], index: int) -> Tensor:
        loss = super().training_step(batch, index)
        self._spread()
        return loss

    def _gather(self, table: Tensor) -> None:
        """The gradient of the tables becomes that of the array."""
        assert table.grad is not None
        self.memory.grad = self.sharing.fit(table.grad)
        table.grad = None

    def _spread(self) -> None:
        self.field.table.data.copy_(self.sharing.expand(self.memory.detach()))
