"""What a run of the bench measures, and on which scenes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import SHARED, SplatTransform

from compress3d.cameras import Cameras
from compress3d.splats import read_scene
from compress3d.splats.evaluate import Judge
from compress3d.splats.scene import SplatScene

SCENES = {"playbot": "playbot/0_0/meta.json", "biker": "biker.compressed.ply", "plant": "plant.splat"}
"""The shared scenes by name: files in `shared/data/splats`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of a run.

    Args:
        scenes: names in `SCENES`.
        splat_transform: the peer; None where it is not installed, then ours runs alone.
        limit_seconds: how long the peer may take for one file.
        quick: fewest views, shares, repeats and Gaussians: shows that all runs, its figures mean nothing.
    """

    scenes: tuple[str, ...]
    splat_transform: SplatTransform | None
    limit_seconds: float = 600.0
    quick: bool = False

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the Gaussians that are kept."""
        return (0.1,) if self.quick else (0.5, 0.25, 0.1)

    @property
    def repeats(self) -> int:
        """How often a short measurement is repeated."""
        return 1 if self.quick else 5


def scene_path(name: str) -> Path:
    """Raises FileNotFoundError where the shared scenes are absent."""
    path = SHARED / "data" / "splats" / SCENES[name]
    if not path.exists():
        raise FileNotFoundError(f"no scene {name}: shared/data/splats/{SCENES[name]} is absent beside the checkout")
    return path


def heldout_views(name: str, quick: bool) -> Cameras:
    """The ten views that scenes are judged by, and nothing else may look through; two of them when `quick`."""
    record = json.loads((SHARED / "data" / "splats" / "heldout_views.json").read_text())[name]
    if record["background"] != [1, 1, 1]:
        raise ValueError(f"heldout_views.json: background of {name} is {record['background']}, renders are on white")
    cameras = Cameras.from_json(record)
    return cameras[:2] if quick else cameras


def load(name: str, settings: Settings) -> tuple[SplatScene, Judge]:
    """A shared scene, and its judge over the held-out views."""
    scene = read_scene(scene_path(name))
    return scene, Judge(scene, heldout_views(name, settings.quick))


def quality(judge: Judge, scene: SplatScene) -> dict[str, Any]:
    """What a row says about a scene: its count, and mean PSNR and SSIM on the held-out views."""
    measured = judge.quality(scene)
    return {"gaussians": len(scene), "psnr": measured.mean_psnr, "ssim": measured.mean_ssim}
