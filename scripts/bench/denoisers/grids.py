"""Samples of the dense, the pruned and the recovered models side by side, on the same seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from plots import INK
from torch import Tensor, nn

from denoisers.entrants import repaired, small
from denoisers.settings import Settings
from denoisers.subjects import subject
from diffusion.sampling import pictures_of
from secateur.files import replacing_file

SHARE, METHODS, COUNT = 0.3, ("EcoDiff", "magnitude", "random"), 20


def draw(name: str, settings: Settings, folder: Path) -> Path:
    """A row a model: dense, then each method one shot, repaired, and recovered, at 30 % of the multiply-adds."""
    of = subject(name)
    sampling = of.sampling(0, COUNT, settings.steps(of))
    models: dict[str, nn.Module] = {"dense": of.dense}
    for method in METHODS:
        pruned, _ = small(name, method, settings, SHARE, 0)
        mended = repaired(name, pruned, settings, 0)
        models |= {method: pruned.module, f"{method}, repaired": mended.module}
        models[f"{method}, recovered"] = settings.recovered(of, mended.module, 0)
    rows = {label: pictures_of(sampling.sample(model, sampling.seeds)) for label, model in models.items()}
    path = folder / f"diffusion_{name.replace('-', '_')}_samples.png"
    _sheet(rows, f"{name}, {SHARE:.0%} of the multiply-adds gone, on the same seeds", path)
    return path


def _sheet(rows: dict[str, Tensor], title: str, path: Path) -> None:
    style: Any = {"font.size": 9, "text.color": INK}
    with plt.rc_context(style):
        figure, axes = plt.subplots(len(rows), 1, figsize=(10, 0.5 * len(rows) + 0.4), dpi=110, layout="constrained")
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        for panel, (label, pictures) in zip(axes, rows.items(), strict=True):
            panel.imshow(torch.cat(list(pictures[:, 0]), dim=1).numpy(), cmap="gray", vmin=0, vmax=1)
            panel.set_ylabel(label, rotation=0, ha="right", va="center")
            panel.set_xticks([])
            panel.set_yticks([])
        folder = path.parent
        folder.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as temporary:
            figure.savefig(temporary, facecolor="white", bbox_inches="tight")
        plt.close(figure)
