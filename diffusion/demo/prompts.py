"""What Fashion-MNIST's pictures are called: words and frames to train with, and others to test with."""

from __future__ import annotations

from collections.abc import Sequence

TRAINING_NAMES: dict[str, tuple[str, ...]] = {
    "t-shirt": ("a t-shirt", "a tee", "a short-sleeved top", "a cotton t-shirt"),
    "trousers": ("a pair of trousers", "trousers", "pants", "a pair of slacks"),
    "pullover": ("a pullover", "a sweater", "a jumper", "a knitted pullover"),
    "dress": ("a dress", "a gown", "a summer dress", "a long dress"),
    "coat": ("a coat", "an overcoat", "a winter coat", "a jacket"),
    "sandal": ("a sandal", "an open sandal", "a strappy sandal", "a flip-flop"),
    "shirt": ("a shirt", "a blouse", "a button-up shirt", "a dress shirt"),
    "sneaker": ("a sneaker", "a running shoe", "a trainer", "a tennis shoe"),
    "bag": ("a bag", "a handbag", "a purse", "a shoulder bag"),
    "ankle boot": ("an ankle boot", "a boot", "a short boot", "a leather boot"),
}
"""Class -> what it is called in training."""

HELD_OUT_NAMES: dict[str, str] = {
    "t-shirt": "a crew-neck tee",
    "trousers": "jeans",
    "pullover": "a sweatshirt",
    "dress": "an evening gown",
    "coat": "a parka",
    "sandal": "a beach sandal",
    "shirt": "an oxford shirt",
    "sneaker": "a sports shoe",
    "bag": "a tote bag",
    "ankle boot": "a chelsea boot",
}
"""Class -> a name that training never sees."""

TRAINING_FRAMES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "a black and white photo of {}",
    "a product photo of {}",
    "a studio shot of {}",
    "a low-resolution image of {}",
    "{} on a black background",
    "{} in a fashion catalogue",
    "{} for sale",
)

HELD_OUT_FRAME = "an online shop shows {}"


def training_prompts(name: str) -> list[str]:
    """Every frame around every name of a class that training sees: 40."""
    return [frame.format(called) for called in TRAINING_NAMES[name] for frame in TRAINING_FRAMES]


def plain_prompts(names: Sequence[str]) -> list[str]:
    """ "a photo of ..." for each class."""
    return [f"a photo of {TRAINING_NAMES[name][0]}" for name in names]


def unseen_prompts(names: Sequence[str]) -> list[str]:
    """A name and a frame that training never sees, for each class."""
    return [HELD_OUT_FRAME.format(HELD_OUT_NAMES[name]) for name in names]
