"""The model that comes with the package loads as itself and as plain transformers, and is as good as its card says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AutoModelForImageClassification

from secateur.datasets.fashion_mnist import CLASSES, INSTALLED
from tests.contracts import assert_same
from tests.vit.images import seeded_network
from vit import demo
from vit.demo import networks
from vit.images import PREPROCESSOR, read_preparation
from vit.tasks.classification import Classification

FOLDER = demo.MODELS / "fashion-vit"


@pytest.fixture
def model() -> Any:
    if not (FOLDER / "README.md").exists():
        pytest.skip("fashion-vit is not among the models: scripts/train_demo_vit.py fashion makes it")
    return demo.fashion_vit()


def test_it_is_what_it_is_said_to_be(model: Any) -> None:
    built = seeded_network(networks.fashion_vit)
    shapes = {name: value.shape for name, value in built.state_dict().items()}
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters()) and not model.training
    assert tuple(model.config.id2label.values()) == CLASSES


def test_plain_transformers_reads_it(model: Any) -> None:
    alone = AutoModelForImageClassification.from_pretrained(FOLDER, local_files_only=True)
    assert_same(dict(alone.state_dict()), dict(model.state_dict()))


def test_the_folder_is_small_and_has_a_card(model: Any) -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 3e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n") and "# fashion-vit" in card
    assert json.loads((FOLDER / "config.json").read_text())["model_type"] == "vit"
    assert accuracy_of_card(card) >= 0.9
    preparation = read_preparation(FOLDER / PREPROCESSOR)
    assert (preparation.output_size, preparation.mean, preparation.std) == ((28, 28), (0.5,), (0.5,))


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_it_is_as_good_as_its_card_says(model: Any) -> None:
    _, _, unseen = demo.fashion_splits()
    found = Classification().measure(model, unseen.subset(slice(2000)))
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert found.top1 == pytest.approx(accuracy_of_card(card), abs=0.02)


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_what_choices_are_made_with_is_not_trained_on() -> None:
    training, validation, judging = demo.fashion_splits()
    assert (len(training), len(validation), len(judging)) == (55000, 5000, 10000)
    assert training.classes == validation.classes == judging.classes == CLASSES


def test_a_model_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(demo, "MODELS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train_demo_vit\.py fashion makes it"):
        demo.fashion_vit()


def accuracy_of_card(card: str) -> float:
    found = re.search(r"\| top-1 accuracy \| ([\d.]+)% \|", card)
    assert found, card
    return float(found[1]) / 100
