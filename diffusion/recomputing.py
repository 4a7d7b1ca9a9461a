"""Blocks of a network that are run again in the backward, instead of keeping what it needs (gradient checkpointing)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

Run = Callable[..., Any]
"""(block, its arguments) -> what it gives."""


@contextmanager
def recomputed_blocks(
    network: nn.Module, again: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[None]:
    """While the context is open, of each block called only the inputs are held for a backward, which runs it again.

    Chen et al.: Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174). Gradients are the same; a forward
    more is their price. The backward may come after the context is closed.

    Args:
        network: of diffusers.
        again: context that a block needs when it is run again: masks that were in force.

    Raises:
        ValueError: the network has no blocks that can be run so.
    """

    def run(block: nn.Module, *args: Any) -> Any:
        return checkpoint(block, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))

    with blocks_run_by(network, run):
        yield


@contextmanager
def blocks_run_by(network: nn.Module, run: Run) -> Iterator[None]:
    """While the context is open, and wherever gradients are on, the network's blocks are called through `run`.

    Raises:
        ValueError: the network has no blocks that can be run so.
    """
    model: Any = network
    if not getattr(model, "_supports_gradient_checkpointing", False):
        raise ValueError(f"{type(network).__name__} has no blocks that can be run again: its class does not say so")
    model.enable_gradient_checkpointing(run)
    try:
        yield
    finally:
        model.disable_gradient_checkpointing()
