"""Hessian-vector products of losses that come batch by batch, handed over tensor by tensor, in shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.derivatives import Mean, Take, batches_of, hand_over, hand_over_zeros, stream_gradients
from secateur.maths import root_mean_square

DerivativeMethod = Literal["double_backward", "central_differences"]
"""How second derivatives are taken: exactly, or from first derivatives on either side."""

TakeShare = Callable[[str, Tensor, Tensor], object]
"""Called with the name of a tensor, a share of H v, and the value of the tensor; neither is to be changed in place."""


def stream_hessian_vector_products(
    losses: Callable[[], Iterable[Tensor]],
    tensors: Mapping[str, Tensor],
    vectors: Mapping[str, Tensor],
    take: TakeShare,
    method: DerivativeMethod = "double_backward",
    spent: Callable[[str], object] | None = None,
) -> float:
    """Hand H v to `take` as shares, several a tensor, whose sum over the returned number is that of the mean loss.

    A share is handed over as soon as it is known, and let go before the next one is.

    "double_backward" differentiates the gradient times v (Pearlmutter, Fast Exact Multiplication by the Hessian, 1994),
    loss by loss. It is exact, and needs operations that torch can differentiate twice. Attention by torch's
    `scaled_dot_product_attention` is computed by plain products meanwhile, which hold all attention maps in memory: its
    fused kernels have one derivative only. Losses through a custom `autograd.Function` are refused: torch would count
    the derivative of a backward pass that leaves torch (a rasteriser's) as 0.

    "central_differences" is (gradient(w + h v) - gradient(w - h v)) / 2h, which needs first derivatives only, and holds
    a copy of the tensors. The step h moves the tensor that moves most, relative to its root mean square, by the cube
    root of the machine epsilon (0.5 % in float32), which balances rounding against truncation. Tensors are changed in
    place meanwhile, and given back bit for bit, also when a loss fails. The relative error is about 1e-4 in float32
    where the loss is smooth.

    Args:
        losses: called once or twice; each time gives the same losses, of the values that `tensors` hold then.
        tensors: what to differentiate by; distinct tensors, all of which require a gradient.
        vectors: name -> v, shaped like the tensors; it may be the tensors, or make what is asked for anew each time.
        take: see above. Shares have no graph; the value is that of the tensor whether it is moved meanwhile or not.
        method: see above.
        spent: called with the name of a vector that is not needed any more; "double_backward" needs all to the end.

    Raises:
        ValueError: as for `secateur.derivatives.stream_gradients`, or the losses cannot be differentiated twice with
            "double_backward", or a tensor is given twice.
    """
    if len({id(tensor) for tensor in tensors.values()}) != len(tensors):
        raise ValueError(f"the tensors {sorted(tensors)} must be distinct, but some share one")
    with torch.enable_grad():
        if method == "central_differences":
            return _central_differences(losses, tensors, vectors, take, spent or (lambda name: None))
        with sdpa_kernel(SDPBackend.MATH):
            return _double_backward(
                losses, tensors, vectors, lambda name, share: take(name, share, tensors[name].detach())
            )


def hessian_vector_product(
    losses: Callable[[], Iterable[Tensor]],
    tensors: Mapping[str, Tensor],
    vectors: Mapping[str, Tensor],
    method: DerivativeMethod = "double_backward",
) -> dict[str, Tensor]:
    """Name -> H v, with H the Hessian of the mean loss; arguments and errors as above."""
    mean = Mean()
    count = stream_hessian_vector_products(
        losses, tensors, vectors, lambda name, share, _: mean.add(name, share), method
    )
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
    met: set[str] = set()
    if product is not None:
        try:
            # A weight acts twice in a gradient, on what goes forward and on what comes back.
            met = hand_over(product, tensors, take, number, in_shares=True)
        except RuntimeError as error:
            # Attention in kernels of its own, and others, have a first derivative only.
            if "is not implemented" not in str(error):
                raise
            raise ValueError(
                f"{error}: use method='central_differences', or an operation with two derivatives"
            ) from error
    hand_over_zeros({name: tensor for name, tensor in tensors.items() if name not in met}, take)


class _Along(torch.autograd.Function):
    """gradient . v, to be summed with others: its derivative by the gradient is v, which torch would hold or copy."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, vector: Callable[[], Tensor]) -> Tensor:
        ctx.vector = vector
        return torch.dot(gradient.flatten(), vector().detach().flatten())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.vector().detach(), None


def _central_differences(
    losses: Callable[[], Iterable[Tensor]],
    tensors: Mapping[str, Tensor],
    vectors: Mapping[str, Tensor],
    take: TakeShare,
    spent: Callable[[str], object],
) -> float:
    step = _difference_step(tensors, vectors)
    if step == 0:
        hand_over_zeros(tensors, lambda name, share: take(name, share, tensors[name].detach()))
        return 1.0
    before: dict[str, Tensor] = {}
    count = 0
    with _given_back(tensors, before):
        for sign in (1.0, -1.0):
            for name, tensor in tensors.items():
                moved = tensor.detach()
                if sign > 0:
                    before[name] = moved.clone()
                    moved.add_(vectors[name].detach(), alpha=step)
                    spent(name)
                else:  # as far to the other side
                    moved.neg_().add_(before[name], alpha=2.0)
            count = batches_of(
                stream_gradients(losses(), tensors, lambda name, share: take(name, share, before[name]), sign=sign)
            )
    return 2 * step * count


@contextmanager
def _given_back(tensors: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Iterator[None]:
    """Afterwards the tensors have the values in `before` that there are, bit for bit."""
    try:
        yield
    finally:
        for name, value in before.items():
            tensors[name].detach().copy_(value)


def _difference_step(tensors: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> float:
    """The step h of w + h v; 0 where v is 0."""
    moves = [root_mean_square(vectors[name]) / (root_mean_square(w) or 1.0) for name, w in tensors.items()]
    epsilon = max(torch.finfo(tensor.dtype).eps for tensor in tensors.values())
    return epsilon ** (1 / 3) / max(moves) if max(moves) > 0 else 0.0
