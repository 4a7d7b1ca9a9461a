"""Fewer Gaussians for the same pictures, without gradients: observe, merge, refit."""

from __future__ import annotations

from collections.abc import Callable

from compress3d.cameras import Cameras
from compress3d.splats.merge import Merge
from compress3d.splats.rasterize.contributions import Observation, observe
from compress3d.splats.refit import Refit
from compress3d.splats.scene import SplatScene


def simplify(
    scene: SplatScene,
    count: int,
    cameras: Cameras,
    *,
    merge: Merge | None = None,
    refit: Refit | None = None,
    observation: Observation | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> SplatScene:
    """Reduce a scene to exactly `count` Gaussians.

    The scene is rendered at `cameras`, which tells what each Gaussian contributes; neighbours are merged, cheapest
    expected error first; then colours, opacities and sizes are refitted to the renders.

    Args:
        scene: N Gaussians on the CPU.
        count: 1 to N. N changes nothing, bit for bit.
        cameras: views to observe and to refit by; not those that the result is judged by.
        merge, refit: how; the defaults when None. Where more than two fifths stay, one round of refitting is the
            default: it brings most of the gain, and the next would take longer than all the rest.
        observation: what `observe(scene, cameras)` returned, to reuse it over several counts.
        progress: called with the share done (0 to 1) and the name of the step.

    Raises:
        ValueError: `count` is out of range, or there is no camera.
    """
    if not 1 <= count <= len(scene):
        raise ValueError(f"count must be 1 to {len(scene)}, got {count}")
    if len(cameras) == 0:
        raise ValueError("at least one camera is needed to see what each Gaussian contributes")
    if count == len(scene):
        return scene

    def report(start: float, end: float, share: float, step: str) -> None:
        if progress is not None:
            progress(start + (end - start) * share, step)

    if observation is None:
        observation = observe(scene, cameras, lambda done: report(0.0, 0.3, done / len(cameras), "observe"))
    merged = (merge or Merge())(
        scene,
        count,
        observation.weights.numpy(),
        cameras,
        lambda left: report(0.3, 0.5, (len(scene) - left) / (len(scene) - count), "merge"),
    )
    if refit is None:
        refit = Refit(rounds=1) if 5 * count > 2 * len(scene) else Refit()
    refitted = refit(merged, cameras, observation.images.numpy(), lambda share: report(0.5, 1.0, share, "refit"))
    report(0.5, 1.0, 1.0, "refit")
    return refitted
