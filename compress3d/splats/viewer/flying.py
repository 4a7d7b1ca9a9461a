"""The controls of camera paths: fly along an orbit, views or what was recorded, and record to a file of cameras."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compress3d.cameras import Cameras
from compress3d.splats.viewer.paths import Flight, Pose, as_json, camera_at, joined

if TYPE_CHECKING:
    import viser

_FRAMES_PER_SECOND = 30
_SECONDS_BETWEEN_VIEWS = 0.25
"""While it records what people do, a view is taken no more often than this."""

FILE_NAME = "cameras.json"
"""What the browser saves recorded views as."""


class Flying:
    """Camera paths of all who are connected.

    Args:
        server: viser's.
        orbit: called for the views of a turn around the scene.
        views: called for the views that scores look through.
    """

    def __init__(self, server: viser.ViserServer, orbit: Callable[[], Cameras], views: Callable[[], Cameras]) -> None:
        self._recorded: list[Cameras] = []
        self._flights: dict[int, threading.Event] = {}
        self._orbit, self._views = orbit, views
        gui = server.gui
        with gui.add_folder("Camera path", expand_by_default=False):
            self._path = gui.add_dropdown("Path", ("orbit", "views of the scores", "recorded"))
            self._seconds = gui.add_slider("Seconds", 2, 60, 1, 12)
            play = gui.add_button("Play or stop")
            self._follow = gui.add_checkbox("Record as I move", False)
            add, save, forget = (gui.add_button(name) for name in ("Record this view", "Save views", "Forget views"))
            self._count = gui.add_html("")
        self._on_click(play, self.toggle)
        self._on_click(add, self.record)
        self._on_click(save, self.save)
        self._on_click(forget, lambda client: self.forget())
        server.on_client_connect(self._watch)
        server.on_client_disconnect(self._leave)
        self._tell()

    def toggle(self, client: viser.ClientHandle) -> None:
        """Start to fly this client's camera, or stop it."""
        if self.stop(client.client_id):
            return
        stopped = threading.Event()
        self._flights[client.client_id] = stopped
        flight = Flight(self._cameras(), closed=self._path.value == "orbit")
        threading.Thread(target=self._fly, args=(client, flight, stopped), daemon=True).start()

    def stop(self, client_id: int) -> bool:
        """End a flight; False if there was none."""
        stopped = self._flights.pop(client_id, None)
        if stopped is None or stopped.is_set():
            return False
        stopped.set()
        return True

    def close(self) -> None:
        """End all flights."""
        for client_id in list(self._flights):
            self.stop(client_id)

    def record(self, client: viser.ClientHandle) -> None:
        """Remember what this client sees."""
        camera = client.camera
        pose = Pose(camera.wxyz, camera.position, camera.fov)
        self._recorded.append(camera_at(pose, camera.image_width or 800, camera.image_height or 800))
        self._tell()

    def save(self, client: viser.ClientHandle) -> None:
        """Give the recorded views to the client's browser as a file."""
        client.send_file_download(FILE_NAME, as_json(joined(self._recorded)), save_immediately=True)

    def forget(self) -> None:
        """Drop the recorded views."""
        self._recorded.clear()
        self._tell()

    def _cameras(self) -> Cameras:
        if self._path.value == "recorded":
            return joined(self._recorded)
        return self._orbit() if self._path.value == "orbit" else self._views()

    def _fly(self, client: viser.ClientHandle, flight: Flight, stopped: threading.Event) -> None:
        started, seconds = time.monotonic(), float(self._seconds.value)
        while not stopped.wait(1 / _FRAMES_PER_SECOND):
            share = (time.monotonic() - started) / seconds
            pose = flight.at(share)
            with client.atomic():
                client.camera.position = pose.position
                client.camera.wxyz = pose.wxyz
            if share >= 1:
                self.stop(client.client_id)

    def _leave(self, client: viser.ClientHandle) -> None:
        self.stop(client.client_id)

    def _watch(self, client: viser.ClientHandle) -> None:
        last = 0.0

        def moved(_: Any) -> None:
            nonlocal last
            if self._follow.value and time.monotonic() - last >= _SECONDS_BETWEEN_VIEWS:
                last = time.monotonic()
                self.record(client)

        client.camera.on_update(moved)

    def _on_click(self, button: viser.GuiButtonHandle, act: Callable[[viser.ClientHandle], None]) -> None:
        def clicked(event: Any) -> None:
            try:
                act(event.client)
            except ValueError as error:
                event.client.add_notification("Camera path", str(error), auto_close_seconds=6)

        button.on_click(clicked)

    def _tell(self) -> None:
        count = len(self._recorded)
        text = f"{count} view{'' if count == 1 else 's'} recorded; the file is for secateur splat render --camera"
        self._count.content = f'<div style="font-size:.8em;padding:0 .9em .3em">{text}</div>'
