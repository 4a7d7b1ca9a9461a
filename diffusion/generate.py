"""Pictures of a model by the thousand, as distances between sets take them: in the memory of a batch, a file each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffusion.calibrate import Generator
from secateur.console import Report, silent
from secateur.files import replacing_file
from secateur.image_folders.listing import holds_images
from secateur.recipe import to_plain

CAPTIONS = "captions.json"
"""File name -> prompt, as `secateur evaluate --captions` reads it."""

MADE_FROM = "made_from.json"
"""What the pictures of a folder depend on: a run that was stopped goes on, and none adds to pictures of another."""


def drawn(generator: Generator, asked: Sequence[str], places: Sequence[int]) -> Float[Tensor, "places C H W"]:
    """Pictures in [0, 1], on the CPU.

    Args:
        generator: the model, and how it is sampled.
        asked: the prompt of each picture, of all that there are.
        places: which of them to draw. A place has the same noise whatever else is drawn, and for every model.
    """
    network = generator.model.network
    trajectories = generator.trajectories(len(places), prompts=[asked[place] for place in places])
    predict = trajectories.predict(network, torch.arange(len(places)))
    noise = trajectories.noise(torch.tensor(places), next(network.parameters()).device)
    with torch.no_grad():
        latents = trajectories.sampler.sample(predict, noise, trajectories.seeds(torch.tensor(places)))
    return generator.model.prompting.decode(latents).cpu()


def drawn_all(generator: Generator, asked: Sequence[str], report: Report = silent) -> Float[Tensor, "N C H W"]:
    """All pictures at once, drawn a batch at a time."""
    return torch.cat([drawn(generator, asked, places) for places in _batches(generator, asked, report)])


def write_each(generator: Generator, asked: Sequence[str], folder: Path, report: Report = silent) -> tuple[Path, ...]:
    """Write each picture into a PNG named by its place, and the prompts beside them; those that are there stay.

    Args:
        generator: the model, and how it is sampled.
        asked: the prompt of each picture.
        folder: where to; made if it is not there.
        report: told how far it is.

    Returns:
        the files, in the order of `asked`.

    Raises:
        ValueError: the folder holds pictures that were made from anything else.
    """
    files = tuple(folder / f"{place:06}.png" for place in range(len(asked)))
    _claim(folder, generator, asked)
    _write(folder / CAPTIONS, {file.name: text for file, text in zip(files, asked, strict=True)})
    for places in _batches(generator, asked, report):
        if all(files[place].is_file() for place in places):
            continue
        for place, picture in zip(places, drawn(generator, asked, places), strict=True):
            with replacing_file(files[place]) as temporary:
                _as_image(picture).save(temporary, "PNG")
    return files


def _batches(generator: Generator, asked: Sequence[str], report: Report) -> Iterator[list[int]]:
    """The places of all pictures, always cut in the same way."""
    for places in torch.arange(len(asked)).split(generator.file.recipe.calibration.batch_size):
        report(int(places[0]) / len(asked), f"drawing: {int(places[0])} of {len(asked)} pictures")
        yield places.tolist()


def _claim(folder: Path, generator: Generator, asked: Sequence[str]) -> None:
    path = folder / MADE_FROM
    sampling = to_plain(generator.file.recipe.calibration)
    made_from = {"weights": generator.model.hashes(), "sampling": sampling, "prompts": list(asked)}
    if holds_images(folder) and not (path.is_file() and path.read_bytes() == _json(made_from)):
        raise ValueError(
            f"{folder} holds pictures already, of another model, other prompts or another seed: give an empty folder"
        )
    _write(path, made_from)


def _write(path: Path, held: object) -> None:
    with replacing_file(path) as temporary:
        temporary.write_bytes(_json(held))


def _json(held: object) -> bytes:
    return json.dumps(held, indent=1, ensure_ascii=False).encode()


def _as_image(picture: Float[Tensor, "C H W"]) -> Image.Image:
    """Grey where there is one channel."""
    levels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(levels[..., 0] if levels.shape[2] == 1 else levels))
