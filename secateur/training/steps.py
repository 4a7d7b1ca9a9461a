"""Which step a batch belongs to, where several batches make one step."""

from __future__ import annotations

import lightning.pytorch as lightning


def steps_after(trainer: lightning.Trainer, batch_idx: int) -> int | None:
    """Optimiser steps done after this batch; None amid a step, where gradients of further batches are waited for."""
    steps, rest = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
    if rest and not trainer.is_last_batch:
        return None
    return steps + (rest > 0)
