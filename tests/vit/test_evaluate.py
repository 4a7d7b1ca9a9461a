"""Numbers of an evaluation by hand, and pictures of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("transformers")

from secateur.evaluation.chunks import ChunkStore
from secateur.report.html import render_page
from secateur.surgery.plan import Size
from tests.vit.images import noise
from tests.vit.models import random_model
from vit.choose import StepPlan
from vit.data import FolderImages, LabelledImages, held
from vit.evaluate import DENSE, Answers, classified, draw_tokens, evaluate
from vit.images import ImagePreparation
from vit.report import draw_units, evaluation_page, kept_units
from vit.tokens import Counts, ReducedModel, TokenNorm


def disturbed(model: nn.Module) -> nn.Module:
    """The model with noise on its weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def test_answers_are_counted_by_hand() -> None:
    images = noise(4, classes=2)  # labels 0, 1, 0, 1
    dense = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    small = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    answers, before = (Answers.from_logits(logits, images.labels) for logits in (small, dense))
    found = classified(answers, before, images.labels, images.classes)
    assert found.accuracy == 0.5 and found.change == pytest.approx(-0.25) and found.agreement == 0.25
    assert found.by_class == {"a": 0.5, "b": 0.5}
    assert found.confusion == ((1, 1), (1, 1))
    difference = torch.tensor([0.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    assert found.change_error == pytest.approx(float(difference.std()) / 2)


def test_a_model_against_itself_changes_nothing() -> None:
    model = random_model("vit")
    record, pictures = evaluate(model, {"same": model}, noise(10), batch_size=4, repeats=1)
    one = record.candidates[0]
    assert one.classified is not None and one.classified.agreement == 1.0 and one.classified.change == 0.0
    assert one.macs == record.reference.macs and not pictures
    assert one.cost.batch_size == 4 and one.cost.latency.threads == 1
    assert "same against dense, on the same 10 images" in render_page(evaluation_page(record, pictures, "dense"))


def test_kept_tokens_are_drawn_on_the_page() -> None:
    model = random_model("vit")
    reduced = ReducedModel(random_model("vit"), TokenNorm(), Counts((4, 2, 1))).eval()
    strips = draw_tokens(reduced, noise(2))
    assert len(strips) == 2 and strips[0].shape[1] > 2 * strips[0].shape[0]
    record, pictures = evaluate(model, {"fewer": reduced}, noise(6), batch_size=3, repeats=1, shown=2)
    assert len(pictures["fewer"]) == 2
    assert "Tokens that are left" in render_page(evaluation_page(record, pictures, "dense"))
    assert not draw_tokens(model, noise(2))


def folder_of(images: LabelledImages, folder: Path) -> FolderImages:
    """The same images as files."""
    for index, (pixels, label) in enumerate(images[place] for place in range(len(images))):
        name = folder / images.classes[int(label)] / f"{index:03d}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(name)
    return FolderImages.listed(folder, ImagePreparation((8, 8), mean=(0.5,) * 3, std=(0.5,) * 3))


def test_images_of_a_folder_are_judged_as_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit.evaluate.CHUNK", 8)
    images, dense, other = noise(20), random_model("vit"), disturbed(random_model("vit"))
    files = folder_of(images, tmp_path / "images")
    expected = held([files[index] for index in range(20)], files)
    order = [int(file.stem) for file in files.files]
    assert torch.equal(expected.images, images.images[order])
    quick: dict[str, Any] = {"batch_size": 4, "repeats": 1, "shown": 3}
    whole, _ = evaluate(dense, {"other": other}, expected, **quick)
    made, _ = evaluate(dense, {"other": other}, files, store=ChunkStore(tmp_path / "unfinished"), **quick)
    assert made.candidates[0].classified == whole.candidates[0].classified
    assert made.images_sha256 == whole.images_sha256 and made.images == 20 and made.classes == images.classes


def test_an_evaluation_that_was_stopped_goes_on_after_its_last_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit.evaluate.CHUNK", 8)
    dense, other, files = random_model("vit"), disturbed(random_model("vit")), folder_of(noise(20), tmp_path / "images")
    read: list[int] = []
    stops = [10]
    decode = FolderImages.__getitem__

    def counted(images: FolderImages, index: int) -> Any:
        read.append(index)
        if stops and len(read) > stops[0]:
            stops.clear()
            raise KeyboardInterrupt
        return decode(images, index)

    monkeypatch.setattr(FolderImages, "__getitem__", counted)
    store = ChunkStore(tmp_path / "unfinished")
    quick: dict[str, Any] = {"batch_size": 4, "repeats": 1, "shown": 0, "store": store}
    with pytest.raises(KeyboardInterrupt):
        evaluate(dense, {"other": other}, files, identity="these", **quick)
    read.clear()
    again, _ = evaluate(dense, {"other": other}, files, identity="these", **quick)
    assert read == [*range(8, 20), *range(4)]  # and the batch that is timed
    whole, _ = evaluate(dense, {"other": other}, files, **{**quick, "store": None})
    assert again.candidates[0].classified == whole.candidates[0].classified
    assert again.images_sha256 == whole.images_sha256
    read.clear()
    evaluate(dense, {"other": other}, files, identity="others", **quick)
    assert len(read) == 24


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    files, model = folder_of(noise(6), tmp_path), random_model("vit")
    files.files[3].write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"{files.files[3].name}: cannot be read"):
        evaluate(model, {}, files, batch_size=4, repeats=1)
    files.files[3].unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        evaluate(model, {}, files, batch_size=4, repeats=1)


class Embedding(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.scale * pixel_values.mean((2, 3))


def test_models_without_classes_are_judged_by_their_embedding() -> None:
    found, _ = evaluate(Embedding(1.0), {"half": Embedding(0.5)}, noise(10), batch_size=3, repeats=1)
    assert found.reference.embedding_error == 0.0 and found.reference.classified is None
    assert found.candidates[0].embedding_error == pytest.approx(0.25)


def test_what_is_left_of_units_multiplies_over_steps() -> None:
    size = Size(1, 4, 1)
    steps = [
        StepPlan("static", size, {"layers.0.mlp.neurons": (5, 10), "layers.0.attention.heads": (1, 2)}, None),
        StepPlan("static", size, {"layers.0.mlp.neurons": (2, 5), "layers.1.mlp.neurons": (5, 5)}, None),
        StepPlan("greedy", size, {"layers.1.attention": (0, 1)}, None),
    ]
    found = kept_units(steps)
    assert found == {"neurons": [0.2, 1.0], "heads": [0.5], "modules": [0.0]}
    assert draw_units(found).shape[2] == 3


class Broken(nn.Module):
    def __init__(self, model: nn.Module, value: float) -> None:
        super().__init__()
        self.model, self.value = model, value

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits[:, : int(self.value)] * self.value


def test_outputs_that_are_wrong_are_refused() -> None:
    model = random_model("vit")
    with pytest.raises(ValueError, match="is the reference"):
        evaluate(model, {DENSE: model}, noise(4))
    with pytest.raises(ValueError, match=r"gives outputs \(4, 2\), the dense model gives \(4, 5\)"):
        evaluate(model, {"small": Broken(model, 2.0)}, noise(4))
