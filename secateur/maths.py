"""Small numerical primitives that every domain shares. Plain functions of tensors, without global random state."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

DerivativeMethod = Literal["double_backward", "central_differences"]
"""How second derivatives are taken: exactly, or from first derivatives on either side."""


def reject_nan(scores: Tensor, what: str = "scores") -> None:
    """Raise ValueError with a count and the first index if `scores` holds NaN."""
    nan = torch.isnan(scores)
    count = int(nan.sum())
    if count:
        first = int(nan.flatten().nonzero()[0])
        raise ValueError(f"{what} hold {count} NaN among {scores.numel()} values, the first at index {first}")


def topk_mask(scores: Float[Tensor, " n"], k: int) -> Bool[Tensor, " n"]:
    """True for exactly the `k` highest scores; among equal scores the lower index wins.

    Args:
        scores: (n,) any real dtype, infinities allowed.
        k: how many, 0 to n.

    Raises:
        ValueError: k is out of range, or scores hold NaN.
    """
    if scores.ndim != 1:
        raise ValueError(f"scores must be one-dimensional, got shape {tuple(scores.shape)}")
    if not 0 <= k <= len(scores):
        raise ValueError(f"k must be between 0 and {len(scores)}, got {k}")
    reject_nan(scores)
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = torch.topk(scores, k, sorted=False).values.min()
    above = scores > threshold
    tied = scores == threshold
    return above | (tied & (tied.cumsum(0) <= k - above.sum()))


def order_by_score(scores: Float[Tensor, " n"]) -> Tensor:
    """(n,) int64 indices from the highest score to the lowest; among equal scores the lower index comes first."""
    reject_nan(scores)
    return torch.sort(scores, descending=True, stable=True).indices


def average_ranks(scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """(n,) float64 ranks in (0, 1): the highest score has the highest rank; equal scores share their mean rank."""
    reject_nan(scores)
    _, group, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    middle = last - counts.double() / 2
    return middle[group] / max(len(scores), 1)


def gumbel_noise(n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """(n,) float64 samples of the standard Gumbel distribution, on the generator's device."""
    uniform = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
    tiny = torch.finfo(torch.float64).tiny
    return -torch.log(-torch.log(uniform.clamp_min(tiny)))


def gumbel_scores(probabilities: Float[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, " n"]:
    """(n,) float64 random scores whose top k are k draws without replacement in proportion to `probabilities`.

    Top-k of log p + Gumbel noise is successive sampling without replacement (Kool, van Hoof, Welling: Stochastic Beams
    and Where to Find Them, ICML 2019, section 3). Units of probability zero score -inf.

    Args:
        probabilities: (n,) non-negative, of any sum.
        generator: the source of randomness.

    Raises:
        ValueError: a probability is NaN, negative or infinite.
    """
    reject_nan(probabilities, "probabilities")
    if bool((probabilities < 0).any()) or bool(torch.isinf(probabilities).any()):
        raise ValueError("probabilities must be finite and not negative")
    noise = gumbel_noise(len(probabilities), generator).to(probabilities.device)
    return torch.log(probabilities.double()) + noise


def sample_without_replacement(
    probabilities: Float[Tensor, " n"], k: int, generator: torch.Generator
) -> Bool[Tensor, " n"]:
    """True for `k` units drawn one after another without replacement, in proportion to `probabilities`.

    Args:
        probabilities: (n,) non-negative, of any sum.
        k: how many, at most the number of units with a positive probability.
        generator: the source of randomness.

    Raises:
        ValueError: a probability is NaN, negative or infinite, or too few are positive.
    """
    positive = int((probabilities > 0).sum())
    if k > positive:
        raise ValueError(f"cannot draw {k} units: only {positive} of {len(probabilities)} have a positive probability")
    return topk_mask(gumbel_scores(probabilities, generator), k)


def root_mean_square(values: Float[Tensor, "*shape"]) -> float:
    """The root of the mean of the squares; 0 for no values."""
    return float(values.detach().double().square().mean().sqrt()) if values.numel() else 0.0


def mean_tensors(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> mean over the parts, in float32 or better; all parts have the same names and shapes.

    Raises:
        ValueError: there are no parts.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for part in parts:
        count += 1
        _add(total, part)
        # Else it would be held while the next one is made.
        del part
    if not count:
        raise ValueError("there is nothing to take a mean of")
    return {name: value.div_(count) for name, value in total.items()}


def _add(total: dict[str, Tensor], part: Mapping[str, Tensor]) -> None:
    for name, value in part.items():
        if name in total:
            total[name] += value
        else:
            total[name] = value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)


def straight_through(forward: Float[Tensor, "*shape"], backward: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values of `forward`, exactly, with the gradient of the finite `backward` (Bengio et al. 2013, 1308.3432)."""
    return forward.detach() + (backward - backward.detach())


def rademacher(like: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Independent signs, -1 or +1 with equal chance, of the shape, dtype and device of `like`.

    Drawn on the generator's device, so that a CPU generator gives the same signs to tensors of every device.
    """
    bits = torch.randint(0, 2, like.shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(device=like.device, dtype=like.dtype)


def loss_gradients(
    losses: Iterable[Tensor], tensors: Mapping[str, Tensor], create_graph: bool = False
) -> Generator[dict[str, Tensor], None, None]:
    """The gradient of each loss, one after another, so that one graph is alive at a time. `.grad` is not touched.

    Args:
        losses: scalars, one a batch; a generator is closed as soon as something fails.
        tensors: what to differentiate by, all of which require a gradient; one that a loss does not use gets zeros.
        create_graph: keep the gradients differentiable.

    Yields:
        Name -> gradient, shaped like the tensor; held nowhere else, so that what is popped from it is freed.

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
            found = _gradients_of(loss, number, list(tensors.values()), create_graph)
            if all(gradient is None for gradient in found):
                raise ValueError(f"the loss of batch {number} does not depend on any of {sorted(tensors)}")
            gradients = {
                name: torch.zeros_like(tensor) if gradient is None else gradient
                for (name, tensor), gradient in zip(tensors.items(), found, strict=True)
            }
            del found
            for name in gradients:
                wrong = gradients[name].numel() - int(torch.isfinite(gradients[name]).sum())
                if wrong:
                    raise ValueError(f"batch {number}: {wrong} values of the gradient of {name!r} are not finite")
            yield gradients
    finally:
        # Contexts that a generator of losses has open must not outlive an error.
        if isinstance(losses, Generator):
            losses.close()
    if number < 0:
        raise ValueError("the objective gave no losses")


def _gradients_of(loss: Tensor, number: int, tensors: list[Tensor], create_graph: bool) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(loss.reshape(()), tensors, create_graph=create_graph, allow_unused=True)
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise ValueError(
            f"the loss of batch {number} shares a part of its graph with an earlier one; compute all that needs a "
            "gradient anew for each batch"
        ) from error


def mean_over_losses(
    losses: Iterable[Tensor],
    tensors: Mapping[str, Tensor],
    measure: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = dict,
    create_graph: bool = False,
) -> dict[str, Tensor]:
    """The mean over the losses of what `measure` makes of each one's gradients; by default, the mean gradient.

    `measure` may pop gradients as it uses them, so that they are freed. Other arguments, and errors, as for
    `loss_gradients`.
    """
    # Closed here, so that no context of the losses outlives an error in `measure`.
    with closing(loss_gradients(losses, tensors, create_graph)) as gradients:
        return mean_tensors(map(measure, gradients))


def hessian_vector_product(
    losses: Callable[[], Iterable[Tensor]],
    tensors: Mapping[str, Tensor],
    vectors: Mapping[str, Tensor],
    method: DerivativeMethod = "double_backward",
) -> dict[str, Tensor]:
    """H v, with H the Hessian of the mean loss.

    "double_backward" differentiates the gradient times v (Pearlmutter, Fast Exact Multiplication by the Hessian, 1994).
    It is exact, and needs operations that torch can differentiate twice. Attention by torch's
    `scaled_dot_product_attention` is computed by plain products meanwhile, which hold all attention maps in memory: its
    fused kernels have one derivative only. Losses through a custom `autograd.Function` are refused: torch would count
    the derivative of a backward pass that leaves torch (a rasteriser's) as 0.

    "central_differences" is (gradient(w + h v) - gradient(w - h v)) / 2h, which needs first derivatives only. The step
    h moves the tensor that moves most, relative to its root mean square, by the cube root of the machine epsilon (0.5 %
    in float32), which balances rounding against truncation. Tensors are changed in place meanwhile, and given back bit
    for bit, also when a loss fails. The relative error is about 1e-4 in float32 where the loss is smooth.

    Args:
        losses: called once or twice; each time gives the same losses, of the values that `tensors` hold then.
        tensors: what to differentiate by; distinct tensors, all of which require a gradient.
        vectors: name -> v, shaped like the tensors.
        method: see above.

    Returns:
        Name -> H v, shaped like the tensors, without a graph.

    Raises:
        ValueError: as for `loss_gradients`, or the losses cannot be differentiated twice with "double_backward", or a
            tensor is given twice.
    """
    if len({id(tensor) for tensor in tensors.values()}) != len(tensors):
        raise ValueError(f"the tensors {sorted(tensors)} must be distinct, but some share one")
    with torch.enable_grad():
        if method == "central_differences":
            return _central_differences(losses, tensors, vectors)
        with sdpa_kernel(SDPBackend.MATH):
            return mean_over_losses(
                losses(), tensors, lambda gradients: _gradient_times(gradients, tensors, vectors), create_graph=True
            )


def _gradient_times(
    gradients: Mapping[str, Tensor], tensors: Mapping[str, Tensor], vectors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The derivative of the gradients' dot product with the vectors."""
    curved = [name for name, gradient in gradients.items() if gradient.requires_grad]
    if not curved:
        return {name: torch.zeros_like(tensor, requires_grad=False) for name, tensor in tensors.items()}
    product = torch.stack([(gradients[name] * vectors[name]).sum() for name in curved]).sum()
    try:
        found = torch.autograd.grad(product, list(tensors.values()), allow_unused=True, materialize_grads=True)
    except RuntimeError as error:
        # Attention in kernels of its own, and others, have a first derivative only.
        if "is not implemented" not in str(error):
            raise
        raise ValueError(f"{error}: use method='central_differences', or an operation with two derivatives") from error
    return dict(zip(tensors, found, strict=True))


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
    losses: Callable[[], Iterable[Tensor]], tensors: Mapping[str, Tensor], vectors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    step = _difference_step(tensors, vectors)
    if step == 0:
        return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def gradient_at(offset: float) -> dict[str, Tensor]:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name]).add_(vectors[name], alpha=offset)
        return mean_over_losses(losses(), tensors)

    try:
        ahead, behind = gradient_at(step), gradient_at(-step)
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name])
    return {name: (ahead[name] - behind[name]) / (2 * step) for name in tensors}


def _difference_step(tensors: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> float:
    """The step h of w + h v; 0 where v is 0."""
    moves = [root_mean_square(vectors[name]) / (root_mean_square(w) or 1.0) for name, w in tensors.items()]
    epsilon = max(torch.finfo(tensor.dtype).eps for tensor in tensors.values())
    return epsilon ** (1 / 3) / max(moves) if max(moves) > 0 else 0.0
