"""Section `peer`: Torch-Pruning's own pruner and ours on the demo model, at equal multiply-adds."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch_pruning
from networks.peer import Theirs
from parts import Job
from torch import Tensor, nn

from secateur.console import Report
from secateur.importance import Lamp, MaskTaylor
from secateur.surgery.cost import count_macs
from secateur.units import Criterion
from vision.entrants import ALL, INNER, matching
from vision.judging import judged
from vision.settings import Settings
from vision.subjects import Subject, subject
from vit.inputs import example_inputs
from vit.tasks.task import Logits
from vit.units import Kind
from vit.units.layouts import layers

HOW = (
    "Torch-Pruning prunes first, once, to the least ratio whose network takes no more than the wanted multiply-adds; "
    "ours then gets what Torch-Pruning's network takes as its limit, so it never takes more; where no ratio reaches "
    "what is wanted, its row says so, and ours gets what is wanted. Both cut heads and neurons, and where the way "
    "says so features of the stream. Theirs: importances of groups with the package's defaults (a mean over the "
    "group, normalised by the layer's mean), over all layers or with one ratio for each. Same pictures for gradients, "
    "same training; speeds as in the section static."
)
BISECTIONS = 8


@dataclass(frozen=True)
class Way:
    """A way to use Torch-Pruning, and what of ours needs the same."""

    theirs: Theirs
    kinds: tuple[Kind, ...]
    ours: Mapping[str, Criterion]


_FISHER: Mapping[str, Criterion] = {"Group Fisher": MaskTaylor("square")}
_MAGNITUDE, _GRADIENT = (
    torch_pruning.importance.GroupMagnitudeImportance,
    torch_pruning.importance.GroupTaylorImportance,
)
WAYS: Mapping[str, Way] = {
    "magnitude, global": Way(Theirs(_MAGNITUDE, True), INNER, {"LAMP": Lamp()}),
    "Taylor, global": Way(Theirs(_GRADIENT, True, True), INNER, _FISHER),
    "Taylor, one ratio": Way(Theirs(_GRADIENT, False, True), INNER, {}),
    "Taylor, one ratio, with width": Way(Theirs(_GRADIENT, False, True), ALL, _FISHER),
}
"""Ways by name."""


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a way and share."""
    return {
        f"{how}: {sparsity:.0%}": partial(_way, how, sparsity, settings)
        for sparsity in settings.sparsities
        for how in WAYS
    }


def _way(how: str, sparsity: float, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of, way, rows = subject("fashion", settings), WAYS[how], []
    limit = (1 - sparsity) * count_macs(of.network, example_inputs(of.network))
    for number, seed in enumerate(settings.seeds):
        report(number / len(settings.seeds), f"{how} at {sparsity:.0%}, seed {seed}")
        row: dict[str, Any] = {"who": "torch-pruning", "method": how, "sparsity": sparsity}
        start = time.perf_counter()
        try:
            small = torch_pruned(of, way, of.calibration(seed, settings), limit)
            row |= {"seconds_to_prune": time.perf_counter() - start} | judged(small, of, seed, settings)
        except ValueError as error:
            row |= {"seed": seed, "failed": str(error)}
        rows.append(row)
        for name, criterion in way.ours.items():
            mine = matching(of, criterion, way.kinds, row.get("macs", limit), seed, settings)
            facts = {"who": "secateur", "method": name, "sparsity": sparsity}
            rows.append(facts | judged(mine, of, seed, settings))
    return {"how": HOW, "rows": rows}


def torch_pruned(of: Subject, way: Way, pictures: list[tuple[Tensor, Tensor]], limit: float) -> nn.Module:
    """Torch-Pruning's network of the least ratio, by bisection, that takes no more than `limit` multiply-adds.

    Raises:
        ValueError: none does.
    """
    gradients = _gradients(of, pictures) if way.theirs.gradients else {}
    best, low, high = None, 0.0, 1.0
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        small = _pruned(of, way, gradients, ratio)
        if small is not None and count_macs(small, example_inputs(of.network)) <= limit:
            best, high = small, ratio
        else:
            low = ratio
    if best is None:
        raise ValueError(f"torch-pruning leaves more than {limit:g} multiply-adds at every ratio")
    return best


def _gradients(of: Subject, pictures: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Of the sum of the batches' losses, as a training loop without steps leaves them behind."""
    learning = Logits(of.copied())
    for pixels, labels in pictures:
        of.task.loss(learning(pixels), labels).backward()
    found = {name: value.grad for name, value in learning.network.named_parameters()}
    return {name: grad for name, grad in found.items() if grad is not None}


def _pruned(of: Subject, way: Way, gradients: Mapping[str, Tensor], ratio: float) -> nn.Module | None:
    """A copy with the ratio of heads and channels cut, or None where it does not run any more."""
    small: Any = copy.deepcopy(of.network)
    for name, value in small.named_parameters():
        value.grad = gradients[name].clone() if name in gradients else None
    pixels = example_inputs(small)["pixel_values"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            Logits(small),
            pixels,
            way.theirs.importance(),
            global_pruning=way.theirs.over_all,
            pruning_ratio=ratio,
            **_options(small, way.kinds, ratio),
        )
        pruner.step()
    small.zero_grad(set_to_none=True)
    try:
        small(pixels)
    except RuntimeError:
        return None
    return small


def _options(small: Any, kinds: tuple[Kind, ...], ratio: float) -> dict[str, Any]:
    """Attention loses whole heads; the stream stays whole unless its features may go."""
    found = [layer for layer in layers(small) if layer.attention and layer.feed_forward]
    attentions = [layer.attention for layer in found if layer.attention]
    ignored = [small.classifier]
    if "embedding" not in kinds:
        writers = [name for layer in found for name in (layer.attention.out, layer.feed_forward.down)]  # type: ignore[union-attr]
        ignored += [small.get_submodule(name) for name in writers]
        ignored.append(small.vit.embeddings.patch_embeddings.projection)
    embeddings = small.vit.embeddings
    return {
        "ignored_layers": ignored,
        "unwrapped_parameters": [(embeddings.cls_token, 2), (embeddings.position_embeddings, 2)],
        "num_heads": {small.get_submodule(name): each.heads for each in attentions for name in each.inputs},
        "prune_num_heads": True,
        "prune_head_dims": False,
        "head_pruning_ratio": ratio,
    }
