"""Prune a vision transformer, and say what it cost: python scripts/prune_vit.py fashion-vit out/small 0.5

The model is a demo model, a folder of transformers, or a repository of the hub; --images names a folder with a folder a
class, in place of Fashion-MNIST.
"""

import argparse
from pathlib import Path

from secateur.console import progress_bar
from secateur.importance import HessianProduct
from vit.prune import prune
from vit.recipe import Model, VitRecipe
from vit.sources import DemoImages, ImageFolders
from vit.steps import Budget, Distil, Recovery, Static, Step


def main(model: str, output: Path, remove: float, images: Path | None, steps: int) -> None:
    recipe = VitRecipe(
        Model(model),
        steps=(
            Step(static=Static(Budget(remove=remove, cost="macs"), criterion=HessianProduct())),
            Step(recover=Recovery(steps=steps, ema=0.99, distil=Distil(outputs=1.0))),
        ),
        data=DemoImages() if images is None else ImageFolders(images),
    )
    with progress_bar() as report:
        _, record = prune(recipe, output, report)
    for one in (record.evaluation.reference, *record.evaluation.candidates):
        accuracy = "" if one.classified is None else f"{one.classified.accuracy:.2%}"
        print(f"{one.name:12} {accuracy:>8} {one.macs:>14,} multiply-adds {one.images_per_second:>8,.0f} images/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("remove", type=float, help="share of the multiply-adds that goes")
    parser.add_argument("--images", type=Path, help="folder with a folder a class")
    parser.add_argument("--steps", type=int, default=1000, help="of recovery")
    options = parser.parse_args()
    main(options.model, options.output, options.remove, options.images, options.steps)
