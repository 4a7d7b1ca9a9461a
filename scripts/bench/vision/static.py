"""Section `static`: heads, neurons and whole modules are cut out, until so many multiply-adds are left."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job

from secateur.console import Report
from vision.entrants import ENTRANTS
from vision.judging import LONG_STEPS, STEPS, judged
from vision.settings import Settings
from vision.subjects import subject

HOW = (
    "The demo model. Sparsity is the share of the multiply-adds that is gone from the network that was really cut, "
    "attention counted. Heads and neurons of all layers compete by score; with width, features of the stream too. "
    "Random takes the same share of each layer. Rate-distortion splits the budget by curves of the output's "
    "distortion, squared Taylor terms rank within a layer. MultiPruner measures the loss without each module, then "
    "each chunk of 16 neurons, then each head; modules are 44 % of what goes, neurons and heads share the rest by "
    "what they have. Criteria see 256 training pictures, other ones for each seed. The tuned accuracy is after 80 "
    "steps of 64 pictures with AdamW (largest rate 0.001, a cosine), half labels, half the dense model's outputs at "
    "temperature 2; 'long' is 600 steps. SlimSAM aligns features for as many steps in all while it cuts, without "
    "labels, so its accuracy is after that, and its tuned accuracy after twice as much training as others had. Speed "
    "is that of 32 pictures: the least of 15, in turns with the dense model, for the first seed."
)


LONG = ("rate-distortion", "Group Fisher")
"""Methods that train long, too."""


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a method and share, the middle one first, and two for long trainings."""
    found: dict[str, Job] = {
        f"{method}: {sparsity:.0%}": partial(_method, method, sparsity, STEPS, settings)
        for sparsity in sorted(settings.sparsities, key=lambda sparsity: abs(sparsity - 0.5))
        for method in ENTRANTS
    }
    return found | {f"{method}: 50%, long": partial(_method, method, 0.5, LONG_STEPS, settings) for method in LONG}


def _method(
    method: str, sparsity: float, steps: int, settings: Settings, report: Report, folder: Path
) -> dict[str, Any]:
    of, rows = subject("fashion", settings), []
    for number, seed in enumerate(settings.seeds):
        report(number / len(settings.seeds), f"{method} at {sparsity:.0%}, seed {seed}")
        start = time.perf_counter()
        small = ENTRANTS[method](of, 1 - sparsity, seed, settings)
        facts = {"method": method, "sparsity": sparsity, "seconds_to_prune": time.perf_counter() - start}
        rows.append(facts | judged(small, of, seed, settings, steps=steps))
    return {"how": HOW, "rows": rows}
