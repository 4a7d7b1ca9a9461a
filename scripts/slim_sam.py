"""Slim a vision transformer without labels: python scripts/slim_sam.py MODEL IMAGES out/slim --share 0.5

SlimSAM on a model of transformers (a folder, or a repository of the hub: facebook/sam-vit-base with --architecture
SamVisionModel) and a folder of pictures, in which subfolders are searched, too. Writes a folder that `vit.load` opens,
and prints a JSON record: parameters, multiply-adds, errors of the embedding. --at-once cuts all in one step, for
comparison. Ctrl-C stops after the step; the same command goes on from there. --random-sam, in place of model and
pictures, is a tiny encoder with random weights on noise: a check in a minute or two that all of it runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from secateur.console import progress_bar
from secateur.surgery.cost import count_macs, count_params
from secateur.training import Shuffled, generator_at
from secateur.training.seeding import seeded
from vit.data import FORMATS
from vit.images import ImagePreparation
from vit.inputs import example_inputs, image_shape
from vit.models import LoadedModel, load_model
from vit.saving import save
from vit.slimsam import Slim, SlimSam

# SAM pads pictures to a square; here they are resized to one, which distillation does not mind.
SAM_MEAN, SAM_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pictures:
    """Pictures of a folder, as a model sees them; batches of them are pure functions of the step."""

    files: Sequence[Path]
    preparation: ImagePreparation
    batch_size: int
    device: torch.device

    def batch_at(self, step: int, /) -> Float[Tensor, "N C H W"]:
        return self.read(Shuffled(len(self.files), self.batch_size).batch_at(step).tolist())

    def read(self, indices: Sequence[int]) -> Float[Tensor, "N C H W"]:
        read = []
        for index in indices:
            try:
                with Image.open(self.files[index]) as file:
                    read.append(self.preparation(file))
            except (OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise ValueError(f"{self.files[index]} cannot be read as a picture ({error})") from error
        return torch.cat(read).to(self.device)

    def in_order(self, count: int) -> list[Tensor]:
        """The first so many, in batches."""
        return [self.read(part.tolist()) for part in torch.arange(min(count, len(self.files))).split(self.batch_size)]


@dataclass(frozen=True)
class Noise:
    """Random pixels in place of pictures."""

    shape: tuple[int, int, int]
    batch_size: int = 2

    def batch_at(self, step: int, /) -> Float[Tensor, "N C H W"]:
        return torch.randn(self.batch_size, *self.shape, generator=generator_at(0, step))

    def in_order(self, count: int) -> list[Tensor]:
        return [self.batch_at(10**6 + index) for index in range(max(1, min(count, 16) // self.batch_size))]


def preparation_of(model: LoadedModel) -> ImagePreparation:
    if type(model.network).__name__ != "SamVisionModel":
        return model.preparation()
    _, height, width = image_shape(model.network)
    return ImagePreparation((height, width), mean=SAM_MEAN, std=SAM_STD)


def random_sam() -> nn.Module:
    from transformers import SamVisionConfig, SamVisionModel

    with seeded(0, torch.device("cpu")):
        config = SamVisionConfig(
            hidden_size=32,
            output_channels=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=4,
            window_size=3,
            global_attn_indexes=(2,),
            mlp_dim=64,
        )
        return SamVisionModel(config).eval()


def material(options: argparse.Namespace) -> tuple[nn.Module, Any, Any]:
    """The model, the pictures to distil with, and those to validate on."""
    device = torch.device(options.device)
    if options.random_sam:
        model = random_sam().to(device)
        return model, Noise(image_shape(model)), Noise(image_shape(model))
    found = load_model(options.model, architecture=options.architecture, device=device)
    if found.cuts is not None:
        raise SystemExit(f"{options.model}: this model is pruned already; start from the dense one")
    files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in FORMATS)
    if len(files) <= options.held_out:
        raise SystemExit(f"{options.images}: {len(files)} pictures; more than --held-out {options.held_out} are needed")
    order = torch.randperm(len(files), generator=generator_at(0, 0)).tolist()
    files = [files[index] for index in order]
    preparation = preparation_of(found)
    train, rest = files[options.held_out :], files[: options.held_out]
    return (
        found.network,
        Pictures(train, preparation, options.batch_size, device),
        Pictures(rest, preparation, options.batch_size, device),
    )


def described(model: nn.Module, slim: Slim) -> dict[str, Any]:
    """Sizes before and after, and the error of the embedding over each distillation."""
    inputs = example_inputs(model)
    sizes = {
        name: {"parameters": count_params(each), "multiply_adds": count_macs(each, inputs)}
        for name, each in (("dense", model), ("slim", slim.network.module))
    }
    errors = [[(step, -score) for step, score in record.validations] for record in slim.records]
    return {**sizes, "mean_squared_errors": errors, "best_steps": [record.best_step for record in slim.records]}


def main(options: argparse.Namespace) -> dict[str, Any]:
    model, train, rest = material(options)
    method = SlimSam(
        share=options.share,
        attention=options.attention,
        ranking=options.ranking,
        steps=options.steps,
        rate=options.rate,
        validate_every=options.validate_every,
        alternate=not options.at_once,
    )
    identity = {"images": str(options.images), "model": str(options.model), "batch_size": options.batch_size}
    with progress_bar() as report:
        slim = method.fit(
            model,
            train,
            train.in_order(options.calibration),
            rest.in_order(options.held_out),
            work=options.output.with_name(f"{options.output.name}-work"),
            identity=identity,
            report=report,
        )
    record = described(model, slim)
    save(slim.network, options.output, dense=model, recipe={"method": repr(method), **identity}, metrics=record)
    return record


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    default = SlimSam()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder or repository of a vision model of transformers")
    parser.add_argument("images", nargs="?", type=Path, help="folder of pictures")
    parser.add_argument("output", type=Path, help="folder for the slim model")
    parser.add_argument("--random-sam", action="store_true", help="a tiny random encoder on noise")
    parser.add_argument("--architecture", help="class of transformers, such as SamVisionModel of a whole SAM")
    parser.add_argument("--share", type=float, default=default.share, help="of every width that stays")
    parser.add_argument("--attention", choices=("heads", "head_dims"), default=default.attention)
    parser.add_argument("--ranking", choices=("local", "global"), default=default.ranking)
    parser.add_argument("--steps", type=int, default=default.steps, help="of each distillation")
    parser.add_argument("--rate", type=float, default=default.rate, help="learning rate")
    parser.add_argument("--validate-every", type=int, default=default.validate_every, help="steps")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--calibration", type=int, default=1000, help="pictures to score with")
    parser.add_argument("--held-out", type=int, default=100, help="pictures to validate on")
    parser.add_argument("--at-once", action="store_true", help="one cut, and as much distillation")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if not options.random_sam and (options.model is None or options.images is None):
        parser.error("a model and a folder of pictures are needed, or --random-sam")
    return options


if __name__ == "__main__":
    print(json.dumps(main(parse()), indent=2))
