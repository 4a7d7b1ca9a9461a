"""DeepCache: a UNet's deep features change little from step to step, so most steps reuse them. Nothing is trained.

Ma et al. 2024, DeepCache: Accelerating Diffusion Models for Free (arXiv 2312.00858). It stacks with any pruning of the
same UNet, and is what a pruned model has to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.steps import StepCounter, replaced_forward


@contextmanager
def deep_cache(unet: nn.Module, interval: int = 3, branch: int = 0) -> Iterator[None]:
    """While the context is open, every `interval`-th step runs the whole UNet; steps between run its outer layers only.

    Skip connections are numbered from the outside: 0 is what the first convolution gives, each layer on the way down
    and each downsampler makes one more. Of the steps between, the layers run that make the skips 1 to `branch` and
    those that read the skips 0 to `branch`; the features below come from the last whole step (arXiv 2312.00858,
    section 3.2, with its uniform intervals).

    Args:
        unet: with `down_blocks`, `mid_block` and `up_blocks` of diffusers, such as `UNet2DConditionModel`; pruned ones
            and masked ones, too. Any sampler or pipeline may call it.
        interval: 1 changes nothing.
        branch: the deepest skip connection that stays fresh.

    Raises:
        ValueError: the network is no such UNet, `interval` is below 1, or it has no such branch.
    """
    if interval < 1:
        raise ValueError(f"interval must be at least 1, got {interval}")
    deep, last = _deep_modules(unet, branch)
    if interval == 1:
        yield
        return
    cache = _Cache(interval)
    with ExitStack() as stack:
        hook = unet.register_forward_pre_hook(lambda _module, args, kwargs: cache.begin(args, kwargs), with_kwargs=True)
        stack.callback(hook.remove)
        for module in deep:
            stack.enter_context(replaced_forward(module, cache.wrapped(module, module is last)))
        yield


@dataclass
class _Cache:
    """What the last whole step left, for each call of a step: one slot for each branch of the guidance."""

    interval: int
    counter: StepCounter = field(default_factory=StepCounter)
    kept: dict[tuple[int, nn.Module], Any] = field(default_factory=dict)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    whole: bool = True

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.counter.advance(args, kwargs)
        sample = args[0] if args else kwargs["sample"]
        # Latents of another size, or a further call that the whole step did not make, have nothing to reuse.
        known = self.shapes.get(self.counter.call) == tuple(sample.shape)
        self.whole = self.counter.step % self.interval == 0 or not known
        self.shapes[self.counter.call] = tuple(sample.shape)

    def wrapped(self, module: nn.Module, needed: bool) -> Callable[..., Any]:
        """The forward of a deep module: on the steps between, what is left of it."""
        forward = module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            key = (self.counter.call, module)
            if self.whole:
                output = forward(*args, **kwargs)
                self.kept[key] = output if needed else _hollow(output)
                return output
            return self.kept[key]

        return run


def _hollow(output: Any) -> Any:
    """Something of the same shape that takes no memory: layers that are skipped hand it on to one another."""
    if isinstance(output, Tensor):
        return torch.zeros((), dtype=output.dtype, device=output.device).expand(output.shape)
    return tuple(_hollow(part) for part in output) if isinstance(output, tuple) else output


def _deep_modules(unet: nn.Module, branch: int) -> tuple[list[nn.Module], nn.Module]:
    """What lies below the branch, in the order in which it runs; and the module whose output is reused.

    Raises:
        ValueError: the skips that are made are not those that are read, or there is no such branch.
    """
    if not all(hasattr(unet, name) for name in ("conv_in", "down_blocks", "mid_block", "up_blocks")):
        raise ValueError(f"{type(unet).__name__} has no down_blocks, mid_block and up_blocks: deep_cache needs a UNet")
    down: list[list[nn.Module]] = []
    for block in unet.down_blocks:  # type: ignore[union-attr]
        down += _layers(block)
        down += [[sampler] for sampler in getattr(block, "downsamplers", None) or ()]
    up: list[list[nn.Module]] = []
    for block in unet.up_blocks:  # type: ignore[union-attr]
        layers = _layers(block)
        layers[-1] += list(getattr(block, "upsamplers", None) or ())
        up += layers
    if len(up) != len(down) + 1:
        raise ValueError(f"the UNet makes {len(down) + 1} skip connections and reads {len(up)}: no known kind")
    if not 0 <= branch < len(down):
        raise ValueError(f"branch must be 0 to {len(down) - 1} in this UNet, got {branch}")
    middle = [unet.mid_block] if isinstance(unet.mid_block, nn.Module) else []
    deep = [*_flat(down[branch:]), *middle, *_flat(up[: len(up) - branch - 1])]
    return deep, deep[-1]


def _layers(block: nn.Module) -> list[list[nn.Module]]:
    """The resnet and the attention of each layer of a block."""
    resnets: Sequence[nn.Module] = block.resnets  # type: ignore[assignment]
    attentions: Sequence[nn.Module] = getattr(block, "attentions", None) or ()
    layers = [[resnet] for resnet in resnets]
    for layer, attention in zip(layers, attentions, strict=False):
        if attention is not None:
            layer.append(attention)
    return layers


def _flat(layers: Sequence[Sequence[nn.Module]]) -> list[nn.Module]:
    return [module for layer in layers for module in layer]
