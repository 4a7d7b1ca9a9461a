"""How close a scene comes to photographs, which it is rendered beside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from compress3d.captures import Capture
from compress3d.photographs import Pair, paired, psnr_of_pair, quality_of_pairs
from compress3d.splats.evaluate import Quality
from compress3d.splats.rasterize import render
from compress3d.splats.scene import SplatScene
from secateur.console import Report, silent


def beside_photograph(scene: SplatScene, capture: Capture, index: int) -> Pair:
    """(render, photograph) of one view; see `compress3d.photographs.paired`."""
    with torch.no_grad():
        return paired(render(scene, capture.cameras[index], capture.background)[0], capture, index)


def psnr_to_photograph(scene: SplatScene, capture: Capture, index: int) -> float:
    """In dB, over the pixels that count."""
    return psnr_of_pair(beside_photograph(scene, capture, index), capture, index)


def quality_to_photographs(
    scene: SplatScene, capture: Capture, views: Sequence[int], report: Report = silent
) -> Quality:
    """PSNR and SSIM of renders against the photographs at `views`; see `compress3d.photographs.quality_of_pairs`."""
    return quality_of_pairs(partial(beside_photograph, scene, capture), capture, views, report)
