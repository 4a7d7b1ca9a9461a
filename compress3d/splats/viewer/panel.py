"""The controls beside the picture."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from compress3d.splats.viewer.appearance import Appearance, Colouring, Gone
from compress3d.splats.viewer.errors import Attribute, Pairing
from compress3d.splats.viewer.scoring import CHOICES, Choice

if TYPE_CHECKING:
    import viser

Layout = Literal["scene", "twin", "side by side"]


class Panel:
    """What people set, and what they are told; the controls are its public attributes.

    Args:
        gui: viser's, to put the controls into.
        table: HTML of what is in the files.
        twin: whether there is a second scene.
        same_index: whether its Gaussians can be compared by index.
        changed: called when something is set that changes the picture.
    """

    def __init__(
        self, gui: viser.GuiApi, table: str, twin: bool, same_index: bool, changed: Callable[[], None]
    ) -> None:
        self._gui = gui
        gui.add_html(table)
        self.show = gui.add_dropdown("Show", get_args(Layout), visible=twin, initial_value="scene")
        with gui.add_folder("Colours"):
            colourings = [one for one in get_args(Colouring) if twin or "twin" not in one]
            self.colour_by = gui.add_dropdown("Colour by", colourings)
            self.criterion = gui.add_dropdown("Criterion", [choice.label for choice in CHOICES])
            self.of_attribute = gui.add_dropdown("Attribute", get_args(Attribute), visible=twin)
            pairings = [one for one in get_args(Pairing) if same_index or one == "nearest"]
            self.compared_with = gui.add_dropdown("Compared with", pairings, visible=twin)
            self._legend = gui.add_html("", visible=False)
        with gui.add_folder("What would go"):
            self.keep = gui.add_slider("Keep, %", 0.5, 100.0, 0.5, 100.0)
            self.gone = gui.add_dropdown("The rest is", get_args(Gone))
            self._budget = gui.add_html("")
        self.dark = gui.add_checkbox("Dark", False)
        self._status = gui.add_html("", visible=False)
        self._progress = gui.add_progress_bar(0.0, visible=False)
        for control in (
            self.show, self.colour_by, self.criterion, self.of_attribute, self.compared_with, self.keep, self.gone,
        ):  # fmt: skip
            cast("viser.GuiInputHandle[Any]", control).on_update(lambda _: changed())
        self.dark.on_update(lambda _: self.set_theme())
        self.set_theme()

    @property
    def appearance(self) -> Appearance:
        """How the scene is to look."""
        return Appearance(self.colour_by.value, self.keep.value / 100, self.gone.value)

    @property
    def layout(self) -> Layout:
        """Which of the scenes are shown."""
        return self.show.value

    @property
    def choice(self) -> Choice:
        """The criterion that scores."""
        return next(choice for choice in CHOICES if choice.label == self.criterion.value)

    @property
    def attribute(self) -> Attribute:
        """Whose errors are shown."""
        return self.of_attribute.value

    @property
    def pairing(self) -> Pairing:
        """What a Gaussian is compared with."""
        return self.compared_with.value

    def set_theme(self) -> None:
        """Light or dark, as the box says; no logo, and no button that shares the scene over the network."""
        self._gui.configure_theme(dark_mode=self.dark.value, show_logo=False, show_share_button=False)

    def tell(self, budget: str, legend: str) -> None:
        """HTML of what stays, and of the colours' legend ("" for none)."""
        self._budget.content = budget
        self._legend.content = legend
        self._legend.visible = bool(legend)

    def report(self, done: float, doing: str) -> None:
        """How far work in the background is, as a `secateur.console.Report`."""
        self._progress.value = 100 * min(max(done, 0.0), 1.0)  # type: ignore[misc]  # has a setter, further up
        self._progress.visible = self._status.visible = True
        self._status.content = f'<div style="font-size:.8em;padding:0 .9em">{escape(doing)}</div>'

    def done(self, problem: str = "") -> None:
        """Work in the background has ended, or failed for a `problem`."""
        if problem:
            self.report(0.0, problem)
        self._progress.visible = False
        self._status.visible = bool(problem)
