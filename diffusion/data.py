"""Clean latents with conditions: what losses, repair and recovery of a pruned model are computed on."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.models import LoadedModel
from diffusion.prompting import Rows
from diffusion.trajectory import Trajectories
from secateur.training import generator_at


@dataclass(frozen=True, eq=False)
class Samples:
    """Latents and what the network is told of each.

    Args:
        latents: (N, ...) clean ones.
        conditions: arguments by name, a row each.
        null: those of "no prompt", a single row; None: the model has none.
        shared: further arguments, the same for all.
        texts: the prompt of each, or its class as text; None: unknown.
    """

    latents: Float[Tensor, "N ..."]
    conditions: Rows
    null: Rows | None = None
    shared: Mapping[str, Any] | None = None
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def rows(self, indices: Int64[Tensor, " batch"]) -> Samples:
        """The samples at these places."""
        texts = None if self.texts is None else tuple(self.texts[index] for index in indices.tolist())
        return Samples(self.latents[indices], rows_at(self.conditions, indices), self.null, self.shared, texts)

    def arguments(self, device: torch.device) -> Rows:
        """Everything that the network is told beside latents and time."""
        return to_device({**(self.shared or {}), **self.conditions}, device)


@dataclass(frozen=True, eq=False)
class SampleConditions:
    """The conditions of samples for `diffusion.conditions.LatentBatches`, now and then replaced by those of no prompt.

    Args:
        samples: all of them.
        drop: probability that a sample is trained without its prompt.
    """

    samples: Samples
    drop: float = 0.1

    def at(self, indices: Int64[Tensor, " batch"], generator: torch.Generator, /) -> dict[str, Any]:
        """The network's arguments for these samples."""
        dropped = torch.rand(len(indices), generator=generator) < self.drop
        found = rows_at(self.samples.conditions, indices)
        if self.samples.null is not None:
            found = _replaced(found, self.samples.null, dropped)
        return {**(self.samples.shared or {}), **found}


class TrainingData(ABC):
    """Where clean latents come from."""

    @abstractmethod
    def gather(self, model: LoadedModel, trajectories: Callable[[int], Trajectories], /) -> Samples:
        """The latents, on the CPU.

        Args:
            model: the dense model.
            trajectories: so many of them, as the recipe samples.
        """


@dataclass(frozen=True)
class OwnSamples(TrainingData):
    """What the dense model itself generates for the recipe's prompts: no data set is needed.

    Args:
        count: how many.
        batch_size: how many at a time.

    Raises:
        ValueError: either is below 1.
    """

    count: int = 64
    batch_size: int = 16

    def __post_init__(self) -> None:
        if min(self.count, self.batch_size) < 1:
            raise ValueError(f"count and batch_size of at least 1 are needed, got {self.count} and {self.batch_size}")

    def gather(self, model: LoadedModel, trajectories: Callable[[int], Trajectories], /) -> Samples:
        drawn = trajectories(self.count)
        parts = [drawn.sample(model.network, part).cpu() for part in torch.arange(self.count).split(self.batch_size)]
        null = model.prompting.null()
        return Samples(torch.cat(parts), dict(drawn.conditions), null, drawn.shared, drawn.texts)


@dataclass(frozen=True)
class DemoData(TrainingData):
    """The data that a demo model was trained on.

    Args:
        name: scikit-learn's digits, or Fashion-MNIST's training split.
        count: how many, drawn at random; None: all.
        seed: of which, and of prompts.

    Raises:
        ValueError: `count` is below 1, or the seed negative.
    """

    name: Literal["digits", "fashion"]
    count: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.count is not None and self.count < 1) or self.seed < 0:
            raise ValueError(
                f"count of at least 1 or null, and a seed of at least 0, are needed, got {self.count} and {self.seed}"
            )

    def gather(self, model: LoadedModel, trajectories: Callable[[int], Trajectories], /) -> Samples:
        from diffusion.demo.prompts import training_prompts
        from diffusion.prompting import Classes
        from secateur.datasets import digits, fashion_mnist

        held = digits() if self.name == "digits" else fashion_mnist("train")
        generator = generator_at(self.seed, 0)
        chosen = held.subset(torch.randperm(len(held), generator=generator)[: self.count])
        if isinstance(model.prompting, Classes):
            asked = [str(label) for label in chosen.labels.tolist()]
        else:
            texts = [training_prompts(name) for name in chosen.classes]
            drawn = torch.rand(len(chosen), generator=generator).tolist()
            labels = chosen.labels.tolist()
            asked = [texts[label][int(at * len(texts[label]))] for label, at in zip(labels, drawn, strict=True)]
        prompting = model.prompting
        conditions, null = prompting.conditions(asked), prompting.null()
        return Samples(chosen.pixels(-1, 1), conditions, null, prompting.shared(None), tuple(asked))


@dataclass(frozen=True)
class Pictures(TrainingData):
    """Pictures with captions, through the model's autoencoder.

    A folder with `metadata.jsonl`, a line each: {"file_name": "a.jpg", "text": "a caption"}, as Hugging Face's image
    folders have it.

    Args:
        folder: the folder.
        side: pixels that the pictures' shorter side is resized to; the middle square is taken.
        count: the first so many; None: all.
        batch_size: pictures at a time.

    Raises:
        ValueError: a number is below 1.
    """

    folder: Path
    side: int = 512
    count: int | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if min(self.side, self.batch_size) < 1 or (self.count is not None and self.count < 1):
            raise ValueError(
                "side, batch_size and count of at least 1 are needed, got "
                f"{self.side}, {self.batch_size} and {self.count}"
            )

    def gather(self, model: LoadedModel, trajectories: Callable[[int], Trajectories], /) -> Samples:
        """Raises ValueError for a model without an autoencoder, or a line that names no picture and caption."""
        prompting = model.prompting
        entries = list(self._entries())[: self.count]
        latents = []
        for start in range(0, len(entries), self.batch_size):
            paths = [path for path, _ in entries[start : start + self.batch_size]]
            pixels = torch.stack([self._pixels(path) for path in paths])
            latents.append(prompting.encode(pixels).cpu())
        texts = tuple(text for _, text in entries)
        conditions = to_device(prompting.conditions(texts), torch.device("cpu"))
        shared = prompting.shared(prompting.size(latents[0]))
        return Samples(torch.cat(latents), conditions, prompting.null(), shared, texts)

    def _entries(self) -> Iterator[tuple[Path, str]]:
        listing = self.folder / "metadata.jsonl"
        if not listing.is_file():
            raise FileNotFoundError(f"{listing}: no such file; it names the pictures and their captions")
        for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(line)
                yield self.folder / entry["file_name"], str(entry["text"])
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{listing}:{number}: needs file_name and text ({error})") from error

    def _pixels(self, path: Path) -> Float[Tensor, "3 side side"]:
        from PIL import Image, ImageOps

        with Image.open(path) as picture:
            square = ImageOps.fit(picture.convert("RGB"), (self.side, self.side), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(square, np.float32) / 255).permute(2, 0, 1)


def rows_at(conditions: Mapping[str, Any], indices: Int64[Tensor, " batch"]) -> Rows:
    """The rows of these samples, within mappings too."""
    return {
        name: rows_at(value, indices) if isinstance(value, Mapping) else value[indices]
        for name, value in conditions.items()
    }


def to_device(conditions: Mapping[str, Any], device: torch.device) -> Rows:
    """The same with all tensors on a device."""
    moved: Rows = {}
    for name, value in conditions.items():
        if isinstance(value, Mapping):
            moved[name] = to_device(value, device)
        else:
            moved[name] = value.to(device) if isinstance(value, Tensor) else value
    return moved


def _replaced(rows: Rows, null: Rows, dropped: Tensor) -> Rows:
    found: Rows = {}
    for name, value in rows.items():
        if isinstance(value, Mapping):
            found[name] = _replaced(dict(value), null[name], dropped)
        else:
            where = dropped.reshape(-1, *([1] * (value.dim() - 1)))
            found[name] = torch.where(where, null[name].to(value), value) if name in null else value
    return found
