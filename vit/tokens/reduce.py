"""Token pruning in a running model: hooks on its encoder layers, which come off again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit.tokens.costs import EncoderCost, Place
from vit.tokens.layers import EncoderLayer, count_prefix, find_layers, matrix_elements
from vit.tokens.pruner import Choice, TokenPruner, Tokens
from vit.tokens.reduction import Reduction
from vit.tokens.schedule import TokenSchedule
from vit.tokens.state import State


@dataclass(slots=True)
class _Call:
    """One forward of the model: nothing of it outlives the next."""

    patches: int = 0
    state: State = field(default_factory=State)
    whole: State = field(default_factory=State)
    reductions: dict[int, Reduction] = field(default_factory=dict)
    dropped_from: list[tuple[Reduction, Tensor]] = field(default_factory=list)
    predictions: dict[int, Tensor] = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)


class TokenReduction:
    """A pruner at work in a model. `reduce_tokens` makes one.

    Args: as for `reduce_tokens`.

    Attributes:
        progress: 0 to 1, how much of the schedule's removal is done, for trainings that begin with all tokens. Token
            Cropr lets it rise linearly over the first half of a dense task's training, EViT along a cosine
            (`secateur.schedules`).
    """

    def __init__(
        self,
        model: nn.Module,
        pruner: TokenPruner,
        schedule: TokenSchedule,
        *,
        place: Place = "before layer",
        prefix: int | None = None,
        last_layer_fusion: bool = False,
    ) -> None:
        if place not in get_args(Place):
            raise ValueError(f"place must be one of {get_args(Place)}, got {place!r}")
        self.layers = find_layers(model)
        self.prefix = count_prefix(model) if prefix is None else prefix
        self.pruner, self.schedule, self.place = pruner, schedule, place
        self.last_layer_fusion = last_layer_fusion
        self.progress = 1.0
        self._call = _Call()
        self._final: dict[int, tuple[int, ...]] = {}
        self._counts: dict[tuple[int, float], tuple[int, ...]] = {}
        self._handles: list[Any] = []
        self._nested: list[nn.TransformerEncoder] = []
        self._forwards: list[tuple[nn.Module, Any]] = []
        self._outside = _outside_cost(model, self.layers)

    def install(self, model: nn.Module) -> None:
        """Put the hooks on; raises ValueError if the model's tokens are reduced already."""
        for layer in self.layers:
            hooks = layer.module._forward_pre_hooks.values()
            if any(isinstance(getattr(_inner(hook), "__self__", None), TokenReduction) for hook in hooks):
                raise ValueError(
                    f"the tokens of {type(model).__name__} are reduced already ({layer.name}): end that first"
                )
        try:
            for index, layer in enumerate(self.layers):
                before = partial(self._before, index)
                self._handles.append(layer.module.register_forward_pre_hook(before, with_kwargs=True))
                if self.pruner.needs_keys or self.pruner.needs_cls_attention:
                    self._handles += layer.watch()
                if self.place != "before layer":
                    self._forwards.append((layer.module, layer.module.__dict__.get("forward")))
                    layer.module.forward = partial(self._within, index)
        except ValueError:
            self.remove()
            raise
        # A nested tensor is padded to its old length behind the layers.
        self._nested = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder) and m.use_nested_tensor]
        for encoder in self._nested:
            encoder.use_nested_tensor = False

    def remove(self) -> None:
        """Take the hooks off: the model is what it was."""
        for handle in self._handles:
            handle.remove()
        for layer in self.layers:
            layer.seen.clear()
        for module, forward in self._forwards:
            del module.forward
            if forward is not None:
                module.forward = forward
        for encoder in self._nested:
            encoder.use_nested_tensor = True
        self._handles, self._nested, self._forwards = [], [], []

    @property
    def reductions(self) -> dict[int, Reduction]:
        """Layer -> what happened to the tokens there, in the last forward."""
        return self._call.reductions

    @property
    def predictions(self) -> dict[int, Tensor]:
        """Layer -> prediction of its auxiliary head, in the last forward; none in evaluation mode."""
        return self._call.predictions

    @property
    def losses(self) -> dict[int, Tensor]:
        """Layer -> the scalar loss of the pruner itself, in the last forward; none in evaluation mode."""
        return self._call.losses

    @property
    def policy(self) -> Float[Tensor, "batch tokens"] | None:
        """1 for tokens that others still see, 0 for those that are only masked, after the last forward; None: all 1."""
        return self._call.state.policy

    def auxiliary_loss(self, task_loss: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The sum of the pruner's losses in the last forward, and of `task_loss` of each auxiliary prediction.

        Args:
            task_loss: the loss that the model itself is trained with, of a prediction; unweighted, as in Token Cropr.

        Raises:
            ValueError: there are predictions, but no loss is given for them.
        """
        call = self._call
        if call.predictions and task_loss is None:
            raise ValueError(f"the auxiliary heads of layers {sorted(call.predictions)} need the task's loss")
        terms = list(call.losses.values())
        terms += [task_loss(prediction) for prediction in call.predictions.values()] if task_loss else []
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def composed(self, layer: int | None = None) -> Reduction | None:
        """From the tokens of the image to those that a layer is left with in the last forward; None: all of them.

        Args:
            layer: from 0; None: the last one.
        """
        last = len(self.layers) - 1 if layer is None else layer
        if self.last_layer_fusion and last == len(self.layers) - 1:
            return None
        whole: Reduction | None = None
        for at, reduction in sorted(self._call.reductions.items()):
            if at <= last:
                whole = reduction if whole is None else whole.then(reduction)
        return whole

    def restore(self, tokens: Float[Tensor, "batch fewer width"], fill: float | Tensor = 0.0) -> Tensor:
        """The model's last tokens at full length and in the order of the image: see `Reduction.restore`."""
        whole = self.composed()
        return tokens if whole is None else whole.restore(tokens, fill)

    def cost(self, patches: int) -> EncoderCost:
        """Multiply-adds of the model by layer, for images of that many patches."""
        layers = tuple(layer.cost() for layer in self.layers)
        by_patch, once = self._outside
        return EncoderCost(layers, self.prefix, patches, by_patch * patches + once, self.last_layer_fusion)

    def macs(self, patches: int) -> int:
        """Multiply-adds of an image under the schedule in evaluation mode, those of choosing the tokens included."""
        cost, counts = self.cost(patches), self.counts(patches)
        total, before = cost.macs(counts, self.place), patches
        for index, count in enumerate(counts[: cost.prunable_layers]):
            if count < before:
                looked_at = cost.layers[index - (self.place == "before layer")]
                tokens = before + self.prefix
                total += self.pruner.macs(before, count, looked_at)
                total += tokens * looked_at.keys if self.pruner.needs_keys else 0
                if self.pruner.needs_cls_attention:
                    total += tokens * looked_at.cls_attention + looked_at.cls_query
            before = count
        return total

    def counts(self, patches: int) -> tuple[int, ...]:
        """Patches that each layer is left with, at the present progress.

        Raises:
            ValueError: the schedule does not fit the model, or takes more in one step than the pruner can.
        """
        key = (patches, self.progress)
        if key not in self._counts:
            if patches not in self._final:
                self._final[patches] = self.schedule.counts(self.cost(patches), self.place)
            final = self._final[patches]
            counts = tuple(patches - math.floor((patches - count) * self.progress + 0.5) for count in final)
            self._check(counts, patches)
            self._counts[key] = counts
        return self._counts[key]

    def _check(self, counts: tuple[int, ...], patches: int) -> None:
        looks = self.pruner.needs_keys or self.pruner.needs_cls_attention
        if looks and self.place == "before layer" and counts[0] < patches:
            raise ValueError("there is no attention before layer 0 to look at: let the schedule begin at layer 1")
        before = patches
        for layer, count in enumerate(counts):
            fewest = self.pruner.fewest(before)
            if count < min(fewest, before):
                raise ValueError(
                    f"{type(self.pruner).__name__} cannot go from {before} to {count} patches at layer {layer}: "
                    f"{fewest} is the fewest"
                )
            before = count

    def _begin(self, layer: EncoderLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.pruner.begin()
        tokens = layer.hidden_states(args, kwargs)
        whole = State.under(layer.mask(args, kwargs), tokens)
        self._call = _Call(tokens.shape[1] - self.prefix, whole, whole)

    def _before(self, index: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call of a layer with the tokens that are left, and a mask that fits them."""
        layer = self.layers[index]
        tokens = layer.hidden_states(args, kwargs)
        if index == 0:
            self._begin(layer, args, kwargs)
        call = self._call
        if self.last_layer_fusion and index == len(self.layers) - 1:
            tokens = self._fused(tokens)
        elif self.place == "before layer":
            tokens = self._reduced(call, index, tokens, self.layers[index - 1])
        if not call.reductions and call.state.policy is None:
            return None
        return layer.call(args, kwargs, tokens, call.state.bias(tokens, self.pruner.proportional))

    def _within(self, index: int, *args: Any, **kwargs: Any) -> Tensor:
        """A layer's forward that reduces the tokens between its attention and its MLP."""
        module = self.layers[index].module
        run = partial(self._halves, index, self._call, self._call.state, kwargs)
        if getattr(module, "gradient_checkpointing", False) and module.training:
            return module._gradient_checkpointing_func(run, *args)  # type: ignore[operator]
        return run(*args)

    def _halves(self, index: int, call: _Call, state: State, kwargs: dict[str, Any], *args: Any) -> Tensor:
        layer = self.layers[index]
        tokens = layer.attend(args, kwargs)
        if not (self.last_layer_fusion and index == len(self.layers) - 1):
            # The backward pass of a checkpoint comes here again, so the state is that of the first time.
            call.state = state
            tokens = self._reduced(call, index, tokens, layer)
        return layer.output(layer.feed(tokens))

    def _reduced(self, call: _Call, index: int, tokens: Tensor, looked_at: EncoderLayer) -> Tensor:
        """What the pruner leaves of the tokens at a layer."""
        counts = self.counts(call.patches)
        if counts[index] == (counts[index - 1] if index else call.patches):
            return tokens
        state, pruner = call.state, self.pruner
        seen = Tokens(
            tokens,
            self.prefix,
            index,
            looked_at.keys() if pruner.needs_keys else None,
            looked_at.cls_attention(state.bias(tokens, pruner.proportional)) if pruner.needs_cls_attention else None,
            state.sizes,
            state.valid,
            state.policy,
        )
        choice = pruner.choose(seen, counts[index])
        _note(call, index, choice)
        if choice.reduction is None:
            return tokens
        call.state = state.after(choice.reduction, tokens, pruner.proportional)
        if self.last_layer_fusion:
            call.dropped_from.append((choice.reduction, tokens))
        return choice.reduction.apply(tokens)

    def _fused(self, tokens: Tensor) -> Tensor:
        """All tokens in the order of the image, those that were dropped as they were then (last-layer fusion)."""
        call = self._call
        for reduction, before in reversed(call.dropped_from):
            tokens = reduction.restore(tokens, before)
        call.state = call.whole if call.dropped_from else call.state
        return tokens


@contextmanager
def reduce_tokens(
    model: nn.Module,
    pruner: TokenPruner,
    schedule: TokenSchedule,
    *,
    place: Place = "before layer",
    prefix: int | None = None,
    last_layer_fusion: bool = False,
) -> Iterator[TokenReduction]:
    """While the context is open, the model's layers run on fewer tokens.

    Args:
        model: transformers' ViT, DeiT or DINOv2 (with registers or not), or one made of `nn.TransformerEncoderLayer`s;
            with any attention implementation, in training and evaluation, compiled or exported. Its hidden states get
            shorter from layer to layer. A padding mask goes with the tokens. Checkpointing is transformers' own, which
            runs forwards again, but no hooks. Hooks keep torch's layers from their fused fast path.
        pruner: which tokens stay, or are merged.
        schedule: how many.
        place: in front of the layers, looking at the attention of the layer before; or within, behind the attention
            that is looked at, which costs that attention of all tokens.
        prefix: tokens in front that always stay; None: as many as the model's class, distillation and register
            tokens.
        last_layer_fusion: the last layer gets all tokens again, in their order; those that were dropped as they were
            when they were dropped (Token Cropr, arXiv 2412.00965, section 3.3), for dense tasks.

    Yields:
        What happens, and happened in the last forward: maps, auxiliary predictions, losses, costs.

    Raises:
        ValueError: the model is none of these (Swin and others with windows), or its tokens are reduced already; when
            it runs, the schedule leaves a layer without patches, or an argument does not fit.
    """
    reduction = TokenReduction(model, pruner, schedule, place=place, prefix=prefix, last_layer_fusion=last_layer_fusion)
    reduction.install(model)
    try:
        yield reduction
    finally:
        reduction.remove()


def _note(call: _Call, index: int, choice: Choice) -> None:
    if choice.prediction is not None:
        call.predictions[index] = choice.prediction
    if choice.loss is not None:
        call.losses[index] = choice.loss
    if choice.policy is not None:
        call.state = replace(call.state, policy=choice.policy)
    if choice.reduction is not None:
        call.reductions[index] = choice.reduction


def _outside_cost(model: nn.Module, layers: list[EncoderLayer]) -> tuple[int, int]:
    """Multiply-adds outside of the layers: of each patch, and once an image.

    Convolutions run on patches, linear layers on one token, but for those that a module names in `patchwise`.
    """
    inside = {id(module) for layer in layers for module in layer.module.modules()}
    patchwise = {id(m.get_submodule(name)) for m in model.modules() for name in getattr(m, "patchwise", ())}
    by_patch, once = 0, 0
    for module in model.modules():
        if id(module) in inside:
            continue
        if isinstance(module, nn.Conv2d):
            by_patch += module.weight.numel()
        elif isinstance(module, nn.Linear) and id(module) in patchwise:
            by_patch += matrix_elements(module)
        elif isinstance(module, nn.Linear):
            once += matrix_elements(module)
    return by_patch, once


def _inner(hook: Any) -> Any:
    return hook.func if isinstance(hook, partial) else hook
