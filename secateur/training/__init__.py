"""What every fine-tuning loop of the suite shares: one fit, its data, its averages, its checkpoints."""

from secateur.training.batches import Batches, Collated, Shuffled
from secateur.training.ema import Ema
from secateur.training.fit import FitRecord, fit
from secateur.training.rates import cosine, exponential_decay
from secateur.training.seeding import generator_at
from secateur.training.validation import Validated

__all__ = [
    "Batches",
    "Collated",
    "Ema",
    "FitRecord",
    "Shuffled",
    "Validated",
    "cosine",
    "exponential_decay",
    "fit",
    "generator_at",
]
