"""Which networks look at the images of a folder, and what is not measured for want of weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.image_folders.decoding import as_grey, as_rgb
from secateur.metrics.features import ClassifierFeatures, Features, digit_features, fashion_features
from secateur.metrics.features.clip import ClipFeatures
from secateur.metrics.features.demo import DIGITS, FASHION
from secateur.metrics.features.inception import WEIGHTS_URL, InceptionFeatures, downloaded
from secateur.metrics.perceptual import WEIGHTS_URLS, PerceptualDistance

AUTO, NONE = "auto", "none"
DOWNLOAD = Path("download")
_SHIPPED = {FASHION: fashion_features, DIGITS: digit_features}
_SIDES = {28: FASHION, 8: DIGITS}

INCEPTION_HINT = f"give --inception FILE, the weights of {WEIGHTS_URL}, or --inception download"
CLIP_HINT = (
    "give --clip FOLDER, a CLIP model of transformers (published figures of CMMD: openai/clip-vit-large-patch14-336)"
)
CAPTIONS_HINT = "give --clip FOLDER and --captions FILE.json, an object of file name and caption"
LPIPS_HINT = f"give --lpips FILE, the weights of {WEIGHTS_URLS['alex']} or {WEIGHTS_URLS['vgg']}"


@dataclass(frozen=True)
class Networks:
    """What looks at images.

    Args:
        features: one for each Frechet and kernel distance.
        clip: for CMMD and CLIP score.
        perceptual: for LPIPS.
        missing: metric -> how to get it, a line each.
    """

    features: tuple[Features, ...] = ()
    clip: ClipFeatures | None = None
    perceptual: PerceptualDistance | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        size: tuple[int, int],
        *,
        features: str = AUTO,
        inception: Path | None = None,
        clip: Path | None = None,
        captions: bool = False,
        lpips: Path | None = None,
    ) -> Networks:
        """The networks that were asked for, on the GPU where there is one.

        Args:
            size: (height, width) of the images, by which "auto" chooses one of the networks that come with the package.
            features: "fashion-cnn", "digits-cnn", the file of a classifier, "auto" or "none".
            inception: file of its weights; "download": fetched, where they are not in torch's cache.
            clip: folder of a CLIP model.
            captions: whether there are any.
            lpips: file of the weights of AlexNet or VGG-16.

        Raises:
            FileNotFoundError: a file is missing, or cannot be downloaded; says where it can be had.
            ValueError: a file is another one.
            ModuleNotFoundError: what Inception needs is not installed.
        """
        chosen: list[Features] = []
        missing = {}
        if inception is None:
            missing["FID"] = INCEPTION_HINT
        else:
            chosen.append(InceptionFeatures.load(downloaded() if inception == DOWNLOAD else inception))
        small = _small(features, size)
        if small is not None:
            chosen.append(small)
        if clip is None:
            missing["CMMD"] = CLIP_HINT
        if clip is None or not captions:
            missing["CLIP score"] = CAPTIONS_HINT
        if lpips is None:
            missing["LPIPS"] = LPIPS_HINT
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for network in chosen:
            if isinstance(network, ClassifierFeatures | InceptionFeatures):
                network.network.to(device)
        model = None if clip is None else ClipFeatures.load(clip)
        if model is not None:
            model.model.to(device)
        perceptual = None if lpips is None else PerceptualDistance.load(lpips).to(device)
        return cls(tuple(chosen), model, perceptual, missing)

    @property
    def looking(self) -> tuple[Features, ...]:
        """All that make a vector of an image."""
        return self.features if self.clip is None else (*self.features, self.clip)


def as_seen(features: Features, image: Float[Tensor, "C H W"]) -> Float[Tensor, "C2 H W"]:
    """The channels that a network looks at: one for classifiers of grey images, three for others."""
    return as_grey(image) if isinstance(features, ClassifierFeatures) else as_rgb(image)


def _small(name: str, size: tuple[int, int]) -> ClassifierFeatures | None:
    """The classifier that is asked for, or fits images of this size."""
    if name == AUTO:
        name = _SIDES.get(size[0], NONE) if size[0] == size[1] else NONE
    if name == NONE:
        return None
    if name in _SHIPPED:
        return _SHIPPED[name]()
    path = Path(name)
    if not path.is_file():
        known = ", ".join((AUTO, NONE, *_SHIPPED))
        raise FileNotFoundError(f"--features {name}: no such file, and none of {known}")
    return ClassifierFeatures.load(path)
