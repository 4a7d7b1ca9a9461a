"""The viewer: a viser server with a scene, its twin, and the panel that says how to show them."""

from __future__ import annotations

import contextlib
import io
import socket
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.evaluate import RESOLUTION, SceneFile
from compress3d.splats.scene import SplatScene
from compress3d.splats.viewer.appearance import dress
from compress3d.splats.viewer.arrays import SplatArrays, most_visible, splat_arrays
from compress3d.splats.viewer.background import Background
from compress3d.splats.viewer.errors import UNITS, Pairing, attribute_errors, pair
from compress3d.splats.viewer.flying import Flying
from compress3d.splats.viewer.panel import Panel
from compress3d.splats.viewer.scoring import Scorer
from compress3d.splats.viewer.statistics import budget_line, legend, statistics
from compress3d.splats.viewpoint import viewpoint
from compress3d.splats.views import UP, SceneShape, Vector, orbit, sample_views, scene_shape

if TYPE_CHECKING:
    import viser

SCORED_VIEWS = 24
"""Views that scores look through where no cameras are given."""

_ORBIT_VIEWS = 36
_PORTS_TRIED = 100


@dataclass(frozen=True, slots=True)
class Shown:
    """A scene in the viewer: what its file holds, and the Gaussians of it that are drawn."""

    file: SceneFile
    scene: SplatScene

    def capped(self, count: int) -> Shown:
        """With no more than `count` Gaussians, the most visible."""
        if len(self.scene) <= count:
            return self
        return replace(self, scene=self.scene.select(most_visible(self.scene, count)))


class SplatViewer:
    """A scene in the browser, until it is closed.

    Args:
        shown: the scene, at least one Gaussian.
        twin: what it is compared with.
        cameras: views to look through when it is scored; sampled by the scene's shape when None.
        up: world direction that is up.
        host: address to listen on.
        port: to listen on, or the next free one; 0: any.

    Raises:
        ModuleNotFoundError: viser is not installed.
        ValueError: no port is free at that address.
    """

    def __init__(
        self,
        shown: Shown,
        twin: Shown | None = None,
        cameras: Cameras | None = None,
        up: Vector = UP,
        host: str = "127.0.0.1",
        port: int = 8080,
    ) -> None:
        viser = import_viser()
        self._shown, self._twin, self._cameras, self._up = shown, twin, cameras, up
        self._shape = scene_shape(shown.scene, up)
        self._scorer = Scorer(shown.scene, self._views)
        self._pairs: dict[Pairing, Tensor] = {}
        arrays = splat_arrays(shown.scene)
        self._arrays = arrays
        with _quiet():
            self.server: viser.ViserServer = viser.ViserServer(host, free_port(host, port), "secateur", verbose=False)
        self._node = _add(self.server, "/scene", arrays)
        self._twin_node = None if twin is None else _add(self.server, "/twin", splat_arrays(twin.scene), visible=False)
        self._background = Background(self._refresh, lambda error: self.panel.done(f"{type(error).__name__}: {error}"))
        files = [one for one in (shown, twin) if one is not None]
        table = statistics([one.file for one in files], [len(one.scene) for one in files])
        same = twin is not None and len(twin.scene) == len(shown.scene)
        self.panel = Panel(self.server.gui, table, twin is not None, same, self._background.request)
        self.flying = Flying(self.server, lambda: self._orbit, self._views)
        self._look(up)
        self._background.request()

    @property
    def url(self) -> str:
        """Where the browser finds it."""
        host = self.server.get_host()
        return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{self.server.get_port()}"

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the picture is what the panel asks for; False if that took longer than `seconds`."""
        return self._background.wait(seconds)

    def close(self) -> None:
        """Disconnect everyone, and free the port."""
        self.flying.close()
        self._background.close()
        with _quiet():
            self.server.stop()

    def _views(self) -> Cameras:
        if self._cameras is None:
            self._cameras = sample_views(self._shown.scene, SCORED_VIEWS, RESOLUTION, RESOLUTION, up=self._up)
        return self._cameras

    @cached_property
    def _orbit(self) -> Cameras:
        return orbit(self._shown.scene, _ORBIT_VIEWS, RESOLUTION, RESOLUTION, up=self._up)

    def _look(self, up: Vector) -> None:
        """The camera that people start with."""
        self.server.scene.set_up_direction(up)
        start, camera = viewpoint(self._shown.scene, up), self.server.initial_camera
        camera.position, camera.look_at, camera.fov = start.position, start.target, start.fov
        camera.near, camera.far = 1e-3 * start.radius, 1e3 * start.radius

    def _refresh(self) -> None:
        """Bring the picture up to date with the panel."""
        asked, scene = self.panel.appearance, self._shown.scene
        choice, attribute = self.panel.choice, self.panel.attribute
        scores = self._scorer.scores(choice, self.panel.report) if asked.needs_scores else None
        errors = None
        if asked.needs_errors and self._twin is not None:
            errors = attribute_errors(scene, self._twin.scene, self._pair(self._twin.scene), attribute)
        look = dress(scene, asked, scores, errors)
        self._node.set_gaussians(self._arrays.centers, self._arrays.covariances, look.rgbs, look.opacities)
        self._arrange()
        bar = ""
        if asked.needs_errors:
            bar = legend(f"error of the {attribute}", look.scale, UNITS[attribute])
        elif asked.colouring != "own colours":
            bar = legend(f"{choice.label}: {asked.colouring}", look.scale)
        self.panel.tell(budget_line(self._shown.file, len(scene), look.kept), bar)
        self.panel.done()

    def _pair(self, twin: SplatScene) -> Tensor:
        pairing = self.panel.pairing
        if pairing not in self._pairs:
            self.panel.report(0.0, f"comparing with the twin: {pairing}")
            self._pairs[pairing] = pair(self._shown.scene, twin, pairing)
        return self._pairs[pairing]

    def _arrange(self) -> None:
        """Show the scene, its twin, or both, the twin to the right of the scene as people first see it."""
        if self._twin_node is None:
            return
        layout = self.panel.layout
        with self.server.atomic():
            self._node.visible = layout != "twin"
            self._twin_node.visible = layout != "scene"
            beside = beside_offset(self._shape, self._orbit) if layout == "side by side" else np.zeros(3)
            self._twin_node.position = beside


def beside_offset(shape: SceneShape, orbit: Cameras) -> np.ndarray:
    """(3,) where a twin stands free of its scene: to the right of the orbit's first view, by its width there."""
    right = orbit.viewmats[0, 0, :3].double().numpy()
    return right * 2.2 * float(np.abs(right) @ shape.half_size)


def _quiet() -> contextlib.AbstractContextManager[object]:
    """viser says on stdout where it listens and that it stopped; only a command's record may be there."""
    return contextlib.redirect_stdout(io.StringIO())


def import_viser() -> Any:
    """The module viser; raises ModuleNotFoundError that says how to get it."""
    try:
        import viser
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the viewer needs viser ({error}): pip install 'secateur[viewer]', or pip install viser"
        ) from error
    return viser


def free_port(host: str, port: int) -> int:
    """`port`, or the next one that nobody listens on; viser itself would wait for ever at an address that is wrong.

    Raises:
        ValueError: none of the next hundred is free, or the address is not this machine's.
    """
    reason: Exception | None = None
    for candidate in range(port, min(port + _PORTS_TRIED, 65536)):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return probe.getsockname()[1]
        except OSError as error:
            reason = error
    raise ValueError(f"cannot listen on {host}, port {port} or the next ones: {reason}")


def _add(server: viser.ViserServer, name: str, arrays: SplatArrays, visible: bool = True) -> viser.GaussianSplatHandle:
    return server.scene.add_gaussian_splats(
        name,
        centers=arrays.centers,
        covariances=arrays.covariances,
        rgbs=arrays.rgbs,
        opacities=arrays.opacities,
        scale=arrays.unit,
        visible=visible,
    )
