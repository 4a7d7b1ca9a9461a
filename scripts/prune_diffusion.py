"""Prune a model of digits, and say what it cost: python scripts/prune_diffusion.py digits-dit out/small 0.2"""

import sys
from pathlib import Path

from diffusion.data import DemoData
from diffusion.prune import prune
from diffusion.recipe import Budget, Calibration, DiffusionRecipe, Distil, Model, Recovery
from diffusion.taylor import DiffPruning


def main(model: str, output: Path, remove: float) -> None:
    recipe = DiffusionRecipe(
        Model(model),
        criterion=DiffPruning(),
        budget=Budget(remove=remove, cost="params"),
        calibration=Calibration(count=20, steps=10, batch_size=64, data=DemoData("digits", 512)),
        recovery=Recovery(steps=100, batch_size=64, rate=5e-4, ema=0.95, distil=Distil()),
    )
    _, record = prune(recipe, output)

    before, after = record.plan.dense, record.plan.pruned
    print(f"parameters     {before.params:,} -> {after.params:,}")
    print(f"multiply-adds  {before.macs:,} -> {after.macs:,}")
    for candidate in record.evaluation.candidates:
        paired = candidate.paired
        print(f"{candidate.name:14} {paired.mean_psnr:.2f} dB against the dense model's pictures" if paired else "")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
