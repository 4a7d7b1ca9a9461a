"""Gradients of losses that come batch by batch, handed over tensor by tensor.

A gradient is handed over as soon as it is known, and let go before the next one is: what a criterion holds is what it
makes of them, not copies of the parameters. `secateur.hessian_products` does the same for second derivatives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

Take = Callable[[str, Tensor], object]
"""Called with the name of a tensor and its derivative, which is not to be changed in place."""

# Derivatives of what only looks at a tensor in another way: they go through without the rest of the tensor's gradient.
_VIEWS = frozenset(
    f"{kind}Backward0" for kind in ("T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Alias")
)


def stream_gradients(
    losses: Iterable[Tensor],
    tensors: Mapping[str, Tensor],
    take: Take,
    create_graph: bool = False,
    sign: float = 1.0,
) -> Generator[int, None, None]:
    """Hand the gradients of each loss to `take`, one tensor at a time, in the order in which they become known.

    One graph is alive at a time, and one gradient: on a network of many layers that is much less than a copy of the
    parameters. `.grad` is not touched.

    Args:
        losses: scalars, one a batch; a generator is closed as soon as something fails.
        tensors: what to differentiate by, distinct, all of which require a gradient; one that a loss does not use gets
            zeros.
        take: called once a loss and tensor.
        create_graph: keep the gradients differentiable; those that `take` holds keep their graph.
        sign: 1, or -1 for the gradients of the negative losses.

    Yields:
        The number of each loss, after all of its gradients were taken.

    Raises:
        ValueError: there are no losses, or a loss is not a finite scalar, depends on none of the tensors, shares its
            graph with an earlier one, or has a gradient that is not finite.
    """
    number = -1
    try:
        for number, loss in enumerate(losses):
            if loss.numel() != 1 or not bool(torch.isfinite(loss)):
                got = loss.item() if loss.numel() == 1 else f"a tensor of shape {tuple(loss.shape)}"
                raise ValueError(f"the loss of batch {number} must be one finite number, got {got}")
            if not loss.requires_grad:
                raise ValueError(f"the loss of batch {number} is not differentiable in any of {sorted(tensors)}")
            if create_graph:
                _refuse_custom_functions(loss)
            loss = loss if sign > 0 else -loss
            met = hand_over(loss.reshape(()), tensors, _finite(take, number), number, create_graph)
            if not met:
                raise ValueError(f"the loss of batch {number} does not depend on any of {sorted(tensors)}")
            # Else its graph would be alive while the next loss is computed.
            del loss
            hand_over_zeros({name: tensor for name, tensor in tensors.items() if name not in met}, take)
            yield number
    finally:
        # Contexts that a generator of losses has open must not outlive an error.
        if isinstance(losses, Generator):
            losses.close()
    if number < 0:
        raise ValueError("the objective gave no losses")


def _finite(take: Take, number: int) -> Take:
    def checked(name: str, gradient: Tensor) -> None:
        # Extremes are NaN where anything is, and need no tensor of the gradient's size, as counting does.
        if gradient.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(gradient.detach()))).all()):
            wrong = gradient.numel() - int(torch.isfinite(gradient).sum())
            raise ValueError(f"batch {number}: {wrong} values of the gradient of {name!r} are not finite")
        take(name, gradient)

    return checked


def hand_over(
    loss: Tensor,
    tensors: Mapping[str, Tensor],
    take: Take,
    number: int,
    create_graph: bool = False,
    in_shares: bool = False,
) -> set[str]:
    """Hand the gradients of one loss to `take`, by the tensors that it depends on.

    Args:
        loss: a scalar, of shape ().
        tensors: see `stream_gradients`.
        take: called at most once a tensor.
        number: of the loss, for errors.
        create_graph: see `stream_gradients`.
        in_shares: call `take` for each place where a tensor is used, as soon as what comes from there is known; the
            gradient is their sum. Else torch holds what comes from the one place until the other is known.

    Returns:
        The names that were handed over.

    Raises:
        ValueError: the loss shares its graph with an earlier one.
    """
    met: set[str] = set()

    def taken(name: str, gradient: Tensor) -> None:
        met.add(name)
        take(name, gradient)

    handles = [*_hooks_on_arrival(loss, tensors, taken, in_shares), *_hooks(tensors, taken)]
    try:
        torch.autograd.grad(loss, list(tensors.values()), create_graph=create_graph, allow_unused=True)
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise ValueError(
            f"the loss of batch {number} shares a part of its graph with an earlier one; compute all that needs a "
            "gradient anew for each batch"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return met


def _hooks(tensors: Mapping[str, Tensor], take: Take) -> list[RemovableHandle]:
    """Hooks that hand over what comes to a tensor, once all of it is known."""

    def hook(name: str) -> Callable[[Tensor | None], Tensor | None]:
        def hand(gradient: Tensor | None) -> Tensor | None:
            if gradient is None:
                return None
            take(name, gradient)
            # What stays until all others are known is this: one number, seen as a tensor of the gradient's shape.
            return gradient.new_zeros(()).expand_as(gradient)

        return hand

    return [tensor.register_hook(hook(name)) for name, tensor in tensors.items()]


def _hooks_on_arrival(
    loss: Tensor, tensors: Mapping[str, Tensor], take: Take, in_shares: bool
) -> list[RemovableHandle]:
    """Hooks that hand over what an operation sends to a tensor, as soon as it is known.

    Torch runs backward what was last run forward. A view of a weight that is made before any layer runs gets its
    gradient after all layers, whose gradients are then alive together.
    """
    leaves = {get_gradient_edge(tensor).node: name for name, tensor in tensors.items() if tensor.is_leaf}
    ends: dict[Node, dict[int, tuple[str, Sequence[Node]]]] = {}
    uses: Counter[str] = Counter()
    for node in graph_of(loss):
        if _end(node, leaves) is None:
            found = ((index, _end(parent, leaves)) for index, (parent, _) in enumerate(node.next_functions))
            ends[node] = {index: end for index, end in found if end is not None}
            uses.update(name for name, _ in ends[node].values())
    handles = []
    for node, each in ends.items():
        wanted = {index: end for index, end in each.items() if in_shares or uses[end[0]] == 1}
        if wanted:
            handles.append(node.register_hook(partial(_hand_on, take, wanted)))
    return handles


def _hand_on(
    take: Take, ends: Mapping[int, tuple[str, Sequence[Any]]], gradients: tuple[Tensor | None, ...], _: object
) -> tuple[Tensor | None, ...]:
    """Take what goes to the ends, through their views; nothing is left for these."""
    left = list(gradients)
    for index, (name, views) in ends.items():
        gradient, left[index] = left[index], None
        if gradient is not None:
            for view in views:
                gradient = view(gradient)
            take(name, gradient)
    return tuple(left)


def _end(node: Node | None, leaves: Mapping[Node, str]) -> tuple[str, Sequence[Node]] | None:
    """The leaf that this node alone leads to, and the views on the way, or None."""
    views = []
    while node is not None and node not in leaves:
        if node.name() not in _VIEWS:
            return None
        views.append(node)
        node = node.next_functions[0][0]
    return None if node is None else (leaves[node], views)


def hand_over_zeros(tensors: Mapping[str, Tensor], take: Take) -> None:
    """Hand a derivative of 0 to `take`, one tensor at a time."""
    for name, tensor in tensors.items():
        take(name, torch.zeros_like(tensor, requires_grad=False))


def loss_gradients(losses: Iterable[Tensor], tensors: Mapping[str, Tensor]) -> Generator[dict[str, Tensor], None, None]:
    """The gradients of each loss together, by name in the order of the tensors; arguments and errors as above."""
    found: dict[str, Tensor] = {}
    with closing(stream_gradients(losses, tensors, found.__setitem__)) as batches:
        for _ in batches:
            yield {name: found.pop(name) for name in tensors}


class Mean:
    """The mean over batches of tensors that are handed over one by one, in float32 or better."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """One batch's share of one tensor; the value is left alone."""
        if name in self._totals:
            self._totals[name] += value
        else:
            self._totals[name] = value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)

    def over(self, count: float, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Name -> total of `count` batches, divided by it, in the order of the names. The totals are given away."""
        order = list(self._totals) if names is None else names
        return {name: self._totals.pop(name).div_(count) for name in order}


def mean_over_losses(
    losses: Iterable[Tensor],
    tensors: Mapping[str, Tensor],
    measure: Callable[[str, Tensor], Tensor] = lambda _, gradient: gradient,
) -> dict[str, Tensor]:
    """The mean over the losses of `measure(name, gradient)`; by default, the mean gradient.

    Other arguments, and errors, as for `stream_gradients`.
    """
    mean = Mean()

    def take(name: str, gradient: Tensor) -> None:
        mean.add(name, measure(name, gradient))

    return mean.over(batches_of(stream_gradients(losses, tensors, take)), tensors)


def batches_of(stream: Generator[int, None, None]) -> int:
    """Run a stream to its end, or close it when it fails; returns how many batches it had."""
    with closing(stream):
        return sum(1 for _ in stream)


def _refuse_custom_functions(loss: Tensor) -> None:
    """Raise ValueError if the graph of `loss` holds a custom autograd.Function, of Python or of C++."""
    # `once_differentiable` does not help: torch.autograd.grad never reaches the node that would raise.
    for node in graph_of(loss):
        if isinstance(node, torch.autograd.function.BackwardCFunction) or "CppNode" in node.name():
            raise ValueError(
                f"the loss passes through {node.name()}, a custom autograd.Function, and torch cannot tell whether it "
                "has a second derivative; use method='central_differences'"
            )


def graph_of(tensor: Tensor) -> Iterator[Node]:
    """The nodes that a backward of `tensor` may pass, each once."""
    seen: set[Node] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(parent for parent, _ in node.next_functions)
