"""What a network is like before and after pruning: how compressible (PQ index), how able to recover (plasticity)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.granularity import ParamsFilter, matrices
from secateur.training.weights import evaluating

# Weights are looked at in float64 this many at a time, so that a large network is not held twice.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class PqIndex:
    """How sparse a vector is by its norms.

    Args:
        index: 0 for entries of one size, 1 - entries^(1/q - 1/p) for a single one other than 0.
        entries: how many were counted.
        retained: a lower bound of how many of them have to stay: SAP's, with its eta of 0.
    """

    index: float
    entries: int
    retained: float


@dataclass(frozen=True)
class PqReport:
    """The PQ index of a network.

    Args:
        p, q: norms.
        whole: of all parameters as one vector.
        by_parameter: of each.
    """

    p: float
    q: float
    whole: PqIndex
    by_parameter: dict[str, PqIndex]


def pq_index(tensors: Tensor | Sequence[Tensor], p: float = 0.5, q: float = 1.0, *, nonzero: bool = False) -> PqIndex:
    """I = 1 - d^(1/q - 1/p) ||w||_p / ||w||_q of d entries.

    Diao et al. 2023, Pruning Deep Neural Networks from a Sparsity Perspective (arXiv 2302.05601). I is in [0, 1), the
    same for a vector's multiples and for the vector repeated, lower when a constant is added to its entries' sizes. If
    |w|^p of all but the r largest entries sums to at most eta times that of those r, then r >= d (1 + eta)^(-q / (q -
    p)) (1 - I)^(p q / (q - p)), from which their adaptive pruning takes how much may go.

    Args:
        tensors: one vector in parts, of any shapes; read in one pass for the largest entry and one for the norms.
        p, q: 0 < p < q.
        nonzero: count only entries other than 0: what pruning has left. A vector of zeros has index 0.

    Raises:
        ValueError: p and q are out of range, there are no entries, or one of them is not finite.
    """
    if not 0 < p < q < math.inf:
        raise ValueError(f"0 < p < q are needed, got p={p}, q={q}")
    parts = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    entries = sum(part.numel() for part in parts)
    if not entries:
        raise ValueError("there are no entries: the index of an empty vector has no meaning")
    extremes = [float(value) for part in parts if part.numel() for value in part.detach().aminmax()]
    if not all(map(math.isfinite, extremes)):
        raise ValueError("an entry is not finite")
    largest = max(map(abs, extremes))
    if nonzero:
        entries = sum(int(torch.count_nonzero(part)) for part in parts)
    if largest == 0:
        return PqIndex(0.0, entries, float(entries))
    # By the largest entry, so that no power overflows or vanishes.
    sums = [0.0, 0.0]
    for part in parts:
        for chunk in part.detach().reshape(-1).split(_CHUNK):
            sizes = chunk.to(torch.float64).abs() / largest
            sums[0] += float(sizes.pow(p).sum())
            sums[1] += float(sizes.pow(q).sum())
    closeness = min(1.0, entries ** (1 / q - 1 / p) * sums[0] ** (1 / p) / sums[1] ** (1 / q))
    return PqIndex(1.0 - closeness, entries, entries * closeness ** (p * q / (q - p)))


def pq_report(
    module: nn.Module | Mapping[str, Tensor],
    p: float = 0.5,
    q: float = 1.0,
    *,
    nonzero: bool = False,
    params: ParamsFilter = matrices,
) -> PqReport:
    """The PQ index of a network as a whole and of each of its parameters.

    Over rounds of pruning it is to fall while the network is regularised, to rise when its compressibility is reached,
    and to fall again when it collapses (arXiv 2302.05601).

    Args:
        module: the network, or tensors by name.
        p, q, nonzero: as in `pq_index`.
        params: which parameters count; by default those of two dimensions or more.

    Raises:
        ValueError: no parameter counts, or as `pq_index`, with the parameter's name.
    """
    named = module.named_parameters() if isinstance(module, nn.Module) else module.items()
    chosen = {name: tensor for name, tensor in named if params(name, tensor)}
    if not chosen:
        raise ValueError("there is no parameter to report on: the filter passes over all of them")
    each = {}
    for name, tensor in chosen.items():
        try:
            each[name] = pq_index(tensor, p, q, nonzero=nonzero)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
    return PqReport(p, q, pq_index(list(chosen.values()), p, q, nonzero=nonzero), each)


@dataclass(frozen=True)
class Plasticity:
    """How a network comes back from one pruning.

    Args:
        before: score before it.
        pruned: score right after it.
        after: score after further training.
    """

    before: float
    pruned: float
    after: float

    @property
    def lost(self) -> float:
        """What pruning took."""
        return self.before - self.pruned

    @property
    def regained(self) -> float:
        """What training gave back."""
        return self.after - self.pruned

    @property
    def plasticity(self) -> float:
        """after - before: 0 or more where the network has recovered."""
        return self.after - self.before


def pruning_plasticity(
    module: nn.Module,
    prune: Callable[[nn.Module], nn.Module],
    train: Callable[[nn.Module], Any],
    evaluate: Callable[[nn.Module], float],
) -> Plasticity:
    """Prune a copy of the network, train it on, and report how far it comes back.

    Liu et al. 2021, Sparse Training via Boosting Pruning Plasticity with Neuroregeneration (arXiv 2106.10404):
    the accuracy after further training less that before pruning. It depends on when in a training one prunes:
    `plasticity_over` takes several moments.

    Args:
        module: is not changed.
        prune: copy -> pruned network: the copy itself, changed, or another one.
        train: trains the pruned network in place; holding zeros is up to it (`secateur.recovery.zeros.HoldZeros`).
        evaluate: how good a module is, the higher the better; called in evaluation mode, without gradients.
    """
    before = _evaluated(module, evaluate)
    small = prune(copy.deepcopy(module))
    pruned = _evaluated(small, evaluate)
    train(small)
    return Plasticity(before, pruned, _evaluated(small, evaluate))


def plasticity_over(
    moments: Iterable[tuple[int, nn.Module]],
    prune: Callable[[nn.Module], nn.Module],
    train: Callable[[nn.Module], Any],
    evaluate: Callable[[nn.Module], float],
) -> dict[int, Plasticity]:
    """`pruning_plasticity` at each moment of a training.

    Args:
        moments: step and the network as it was then; one at a time, so that an iterator may load checkpoints.
        prune, train, evaluate: as in `pruning_plasticity`.
    """
    return {step: pruning_plasticity(module, prune, train, evaluate) for step, module in moments}


def _evaluated(module: nn.Module, evaluate: Callable[[nn.Module], float]) -> float:
    with evaluating(module):
        return float(evaluate(module))
