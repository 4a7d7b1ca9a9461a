"""Model cards: what a demo model is, what it was made from, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import fill


@dataclass(frozen=True, slots=True)
class Card:
    """The README.md of a model's folder.

    Args:
        name: of the model and its folder.
        about: a sentence on what it does.
        data: what it was trained and measured on.
        example: Python that uses it.
        parameters: how many.
        training: how it was trained.
        images: how many it was measured on.
        measured: what -> value, as text.
    """

    name: str
    about: str
    data: str
    example: str
    parameters: int
    training: str
    images: int
    measured: Mapping[str, str]

    def text(self) -> str:
        """Markdown."""
        rows = [f"| {what} | {value} |" for what, value in self.measured.items()]
        paragraphs = [
            "---\nlicense: apache-2.0\nlibrary_name: transformers\n---",
            f"# {self.name}",
            fill(f"{self.about} {self.parameters:,} parameters.", 120),
            f"```python\n{self.example}\n```",
            fill(self.data, 120),
            fill(self.training, 120),
            f"Measured on {self.images:,} images that nothing was trained or chosen on:",
            "\n".join(["| what | value |", "| --- | --- |", *rows]),
            "Training and weights are ours (Apache-2.0).",
        ]
        return "\n\n".join(paragraphs) + "\n"
