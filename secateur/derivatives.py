"""Gradients and Hessian-vector products of losses that come batch by batch, handed over tensor by tensor.

A gradient is handed over as soon as it is known, and let go before the next one is: what a criterion holds is what it
makes of them, not copies of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.maths import root_mean_square

DerivativeMethod = Literal["double_backward", "central_differences"]
"""How second derivatives are taken: exactly, or from first derivatives on either side."""

Take = Callable[[str, Tensor], object]
"""Called with the name of a tensor and its derivative, which is not to be changed in place."""


def stream_gradients(
    losses: Iterable[Tensor], tensors: Mapping[str, Tensor], take: Take, create_graph: bool = False
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
            if not _hand_over(loss.reshape(()), tensors, _finite(take, number), number, create_graph):
                raise ValueError(f"the loss of batch {number} does not depend on any of {sorted(tensors)}")
            # Else its graph would be alive while the next loss is computed.
            del loss
            yield number
    finally:
        # Contexts that a generator of losses has open must not outlive an error.
        if isinstance(losses, Generator):
            losses.close()
    if number < 0:
        raise ValueError("the objective gave no losses")


def _finite(take: Take, number: int) -> Take:
    def checked(name: str, gradient: Tensor) -> None:
        wrong = gradient.numel() - int(torch.isfinite(gradient).sum())
        if wrong:
            raise ValueError(f"batch {number}: {wrong} values of the gradient of {name!r} are not finite")
        take(name, gradient)

    return checked


def _hand_over(loss: Tensor, tensors: Mapping[str, Tensor], take: Take, number: int, create_graph: bool) -> bool:
    """Whether the loss depends on any of the tensors; those that it does not depend on get zeros, last."""
    met = set()

    def hook(name: str) -> Callable[[Tensor], Tensor]:
        def taken(gradient: Tensor) -> Tensor:
            met.add(name)
            take(name, gradient)
            # What stays until all others are known is this: one number, seen as a tensor of the gradient's shape.
            return gradient.new_zeros(()).expand_as(gradient)

        return taken

    handles = [tensor.register_hook(hook(name)) for name, tensor in tensors.items()]
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
    for name, tensor in tensors.items():
        if name not in met:
            take(name, torch.zeros_like(tensor, requires_grad=False))
    return bool(met)


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

    def subtract(self, name: str, value: Tensor) -> None:
        """The opposite of `add`."""
        self.add(name, -value)

    def over(self, count: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
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


def stream_hessian_vector_products(
    losses: Callable[[], Iterable[Tensor]],
    tensors: Mapping[str, Tensor],
    vectors: Mapping[str, Tensor],
    take: Take,
    method: DerivativeMethod = "double_backward",
) -> int:
    """Hand H v to `take`, one tensor at a time, as shares whose sum over the returned count is that of the mean loss.

    "double_backward" differentiates the gradient times v (Pearlmutter, Fast Exact Multiplication by the Hessian, 1994),
    loss by loss. It is exact, and needs operations that torch can differentiate twice. Attention by torch's
    `scaled_dot_product_attention` is computed by plain products meanwhile, which hold all attention maps in memory: its
    fused kernels have one derivative only. Losses through a custom `autograd.Function` are refused: torch would count
    the derivative of a backward pass that leaves torch (a rasteriser's) as 0.

    "central_differences" is (gradient(w + h v) - gradient(w - h v)) / 2h, which needs first derivatives only, and holds
    two copies of the tensors. The step h moves the tensor that moves most, relative to its root mean square, by the
    cube root of the machine epsilon (0.5 % in float32), which balances rounding against truncation. Tensors are changed
    in place meanwhile, and given back bit for bit, also when a loss fails. The relative error is about 1e-4 in float32
    where the loss is smooth.

    Args:
        losses: called once or twice; each time gives the same losses, of the values that `tensors` hold then.
        tensors: what to differentiate by; distinct tensors, all of which require a gradient.
        vectors: name -> v, shaped like the tensors; it may be the tensors, or make what is asked for anew each time.
        take: see above; what it gets has no graph.
        method: see above.

    Raises:
        ValueError: as for `stream_gradients`, or the losses cannot be differentiated twice with "double_backward", or a
            tensor is given twice.
    """
    if len({id(tensor) for tensor in tensors.values()}) != len(tensors):
        raise ValueError(f"the tensors {sorted(tensors)} must be distinct, but some share one")
    with torch.enable_grad():
        if method == "central_differences":
            _central_differences(losses, tensors, vectors, take)
            return 1
        with sdpa_kernel(SDPBackend.MATH):
            return _double_backward(losses, tensors, vectors, take)


def hessian_vector_product(
    losses: Callable[[], Iterable[Tensor]],
    tensors: Mapping[str, Tensor],
    vectors: Mapping[str, Tensor],
    method: DerivativeMethod = "double_backward",
) -> dict[str, Tensor]:
    """Name -> H v, with H the Hessian of the mean loss; arguments and errors as above."""
    mean = Mean()
    count = stream_hessian_vector_products(losses, tensors, vectors, mean.add, method)
    return mean.over(count, tensors)


def _double_backward(
    losses: Callable[[], Iterable[Tensor]], tensors: Mapping[str, Tensor], vectors: Mapping[str, Tensor], take: Take
) -> int:
    products: list[Tensor] = []

    def along(name: str, gradient: Tensor) -> None:
        if gradient.requires_grad:
            products.append(_Along.apply(gradient, partial(vectors.__getitem__, name)))

    with closing(stream_gradients(losses(), tensors, along, create_graph=True)) as batches:
        number = -1
        for number in batches:
            product = torch.stack(products).sum() if products else None
            products.clear()
            _hand_over_curvature(product, tensors, take, number)
        return number + 1


def _hand_over_curvature(product: Tensor | None, tensors: Mapping[str, Tensor], take: Take, number: int) -> None:
    if product is None:
        for name, tensor in tensors.items():
            take(name, torch.zeros_like(tensor, requires_grad=False))
        return
    try:
        _hand_over(product, tensors, take, number, create_graph=False)
    except RuntimeError as error:
        # Attention in kernels of its own, and others, have a first derivative only.
        if "is not implemented" not in str(error):
            raise
        raise ValueError(f"{error}: use method='central_differences', or an operation with two derivatives") from error


class _Along(torch.autograd.Function):
    """gradient . v, to be summed with others: its derivative by the gradient is v, which torch would hold or copy."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, vector: Callable[[], Tensor]) -> Tensor:
        ctx.vector = vector
        return torch.dot(gradient.flatten(), vector().detach().flatten())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.vector().detach(), None


def _refuse_custom_functions(loss: Tensor) -> None:
    """Raise ValueError if the graph of `loss` holds a custom autograd.Function, of Python or of C++."""
    # `once_differentiable` does not help: torch.autograd.grad never reaches the node that would raise.
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction) or "CppNode" in node.name():
            raise ValueError(
                f"the loss passes through {node.name()}, a custom autograd.Function, and torch cannot tell whether it "
                "has a second derivative; use method='central_differences'"
            )
        waiting.extend(parent for parent, _ in node.next_functions)


def _central_differences(
    losses: Callable[[], Iterable[Tensor]], tensors: Mapping[str, Tensor], vectors: Mapping[str, Tensor], take: Take
) -> None:
    step = _difference_step(tensors, vectors)
    if step == 0:
        _hand_over_curvature(None, tensors, take, 0)
        return
    with _restored(tensors) as before:
        # A vector may be the tensor itself, which moves.
        fixed = {name: before[name] if vectors[name] is tensor else vectors[name] for name, tensor in tensors.items()}
        mean = Mean()
        for move, take_gradient in ((step, mean.add), (-step, mean.subtract)):
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(before[name]).add_(fixed[name], alpha=move)
            count = batches_of(stream_gradients(losses(), tensors, take_gradient))
    for name, difference in mean.over(count, tensors).items():
        take(name, difference.div_(2 * step))


@contextmanager
def _restored(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors' values, which they get back afterwards bit for bit."""
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    try:
        yield before
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name])


def _difference_step(tensors: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> float:
    """The step h of w + h v; 0 where v is 0."""
    moves = [root_mean_square(vectors[name]) / (root_mean_square(w) or 1.0) for name, w in tensors.items()]
    epsilon = max(torch.finfo(tensor.dtype).eps for tensor in tensors.values())
    return epsilon ** (1 / 3) / max(moves) if max(moves) > 0 else 0.0
