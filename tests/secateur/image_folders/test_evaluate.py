import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from secateur.console import silent
from secateur.evaluation import chunks
from secateur.evaluation.chunks import ChunkStore
from secateur.evaluation.record import EvaluationRecord
from secateur.evaluation.run import Start
from secateur.image_folders.decoding import read_image
from secateur.image_folders.evaluate import compare_folders
from secateur.image_folders.listing import ImageFolder
from secateur.image_folders.record import record_of
from secateur.image_folders.report import page_of, worst_pairs
from secateur.image_folders.results import Comparison, Settings
from secateur.metrics import perceptual
from secateur.metrics.distribution import Moments, cmmd, frechet_distance, frechet_error, kernel_distance
from secateur.metrics.features import ClassifierFeatures, digit_features, fashion_features
from secateur.metrics.features.clip import ClipFeatures
from secateur.report.record import to_json
from tests.secateur.image_folders.pictures import write_pictures
from tests.secateur.metrics.perceptual import random_state


def compared(real: Path, *candidates: Path, **options: object) -> Comparison:
    settings = Settings(**options)  # type: ignore[arg-type]
    return compare_folders(real, candidates, ChunkStore(real.parent / "chunks", settings.workers), settings, silent)


def recorded(found: Comparison, **options: object) -> EvaluationRecord:
    return record_of(found, Start.now(), Settings(**options))  # type: ignore[arg-type]


def vectors(features: ClassifierFeatures, folder: Path) -> Tensor:
    listed = ImageFolder.listed(folder)
    return torch.cat([features(read_image(listed.file(image))[None]) for image in listed.images])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """40 grey pictures of 28 pixels, with little noise, and with much."""
    root = tmp_path_factory.mktemp("folders")
    sets = {
        name: write_pictures(root / name, 40, noise=noise) for name, noise in (("real", 0), ("near", 4), ("far", 30))
    }
    return sets["real"], sets["near"], sets["far"]


@pytest.fixture(scope="module")
def found(folders: tuple[Path, Path, Path]) -> Comparison:
    return compared(*folders)


def test_distances_are_those_of_the_vectors(found: Comparison, folders: tuple[Path, Path, Path]) -> None:
    fashion = fashion_features()
    real, near = (vectors(fashion, folder) for folder in folders[:2])
    one = found.candidates[0].distances[0]
    assert (one.features, one.distances.name) == ("fashion-cnn", "FD-fashion-cnn")
    assert one.distances.frechet == pytest.approx(frechet_distance(Moments.of(near), Moments.of(real)), rel=1e-3)
    assert one.distances.kid.mean == pytest.approx(kernel_distance(near, real, subset_size=20).mean, rel=1e-3)
    assert one.error == pytest.approx(frechet_error(near, Moments.of(real)), rel=1e-3)
    assert (one.distances.samples, one.distances.reference_samples, one.distances.singular) == (40, 40, True)


def test_real_against_real_is_near_and_noise_is_far(found: Comparison) -> None:
    floor = found.floors["fashion-cnn"]
    near, far = (result.distances[0].distances for result in found.candidates)
    assert floor.images == 20
    assert near.frechet < far.frechet and near.kid.mean < far.kid.mean
    assert floor.kid < far.kid.mean


def test_the_record_holds_every_number_and_names_what_is_missing(found: Comparison) -> None:
    record = recorded(found)
    near, far = record.candidates
    assert record.kind == "images" and [one.name for one in record.subjects] == ["real", "near", "far"]
    assert set(near.measurements) == {
        *("fd-fashion-cnn", "kid-fashion-cnn", "psnr", "ssim", "pairs", "equal_pairs", "images", "size")
    }
    decibels = near.measurements["psnr"]
    values = near.parts["pairs"].columns["psnr"].values
    assert decibels.value == pytest.approx(sum(value or 0 for value in values) / 40)
    assert decibels.value is not None and decibels.interval is not None
    assert decibels.interval.low < decibels.value < decibels.interval.high
    assert decibels.value > (far.measurements["psnr"].value or math.inf)
    pair = next(one for one in record.pairs if one.measurement == "psnr")
    assert (pair.candidate, pair.against) == ("near", "far") and pair.difference.low > 0
    assert set(record.details["not_measured"]) == {"FID", "CMMD", "CLIP score", "LPIPS"}
    assert "--inception FILE" in record.details["not_measured"]["FID"]
    assert record.protocol["networks"] == {"fashion-cnn": fashion_features().weights_sha256}
    assert record.reference.measurements["fd-fashion-cnn-floor"].samples == 20
    json.dumps(to_json(record), allow_nan=False)


def test_the_page_shows_the_worst_pairs_and_samples(found: Comparison) -> None:
    page = page_of(found, recorded(found))
    decibels = [dict(zip(one.pairs.names, one.pairs.psnr, strict=True)) for one in found.candidates if one.pairs]
    worst = sorted(decibels[0], key=lambda name: min(one[name] for one in decibels))[:6]
    assert worst_pairs(found) == worst == [view.name for view in page.views]
    assert [result.name for result in page.results] == ["near", "far"]
    assert {image.shape for result in page.results for image in result.images} == {(308, 308, 3)}
    assert all(errors.max() > 0 for errors in page.results[1].errors)
    assert page.results[0].drawings[0].image.shape[1] == 8 * 100 - 4


def test_identical_folders_are_identical(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    real = write_pictures(tmp_path / "real", 8)
    found = compared(real, write_pictures(tmp_path / "same", 8))
    same = recorded(found).candidates[0]
    assert same.measurements["fd-fashion-cnn"].value == pytest.approx(0, abs=1e-4)
    assert same.measurements["psnr"].infinite and same.measurements["equal_pairs"].value == 8
    assert same.measurements["ssim"].value == pytest.approx(1)
    assert same.parts["pairs"].columns["psnr"].values == (None,) * 8
    assert page_of(found, recorded(found)).results[0].captions == ("identical",) * 6


def test_single_images_have_pairs_and_no_distances(tmp_path: Path) -> None:
    found = compared(write_pictures(tmp_path / "real", 1), write_pictures(tmp_path / "made", 1, noise=9))
    assert found.candidates[0].distances == () and found.floors == {}
    assert "real has 1 images; each needs 4 at least" in found.missing["Frechet and kernel distance"]
    one = recorded(found).candidates[0].measurements["psnr"]
    assert one.samples == 1 and one.interval is None and one.value is not None
    page_of(found, recorded(found))


def test_colours_of_other_formats_and_sizes_are_compared_where_they_can_be(tmp_path: Path) -> None:
    real = write_pictures(tmp_path / "real", 3, size=(30, 50), channels=3)
    write_pictures(real, 1, size=(12, 9), channels=3, names=["odd.png"])
    write_pictures(tmp_path / "made", 3, size=(30, 50), channels=3, names=[f"{i:03d}.webp" for i in range(3)])
    made = write_pictures(tmp_path / "made", 1, size=(13, 9), channels=3, names=["odd.png"])
    found = compared(real, made)
    pairs = found.candidates[0].pairs
    assert pairs is not None and pairs.names == ("000.png", "001.png", "002.png")
    assert pairs.candidates == ("000.webp", "001.webp", "002.webp") and pairs.other_size == ("odd.png",)
    assert all(20 < value < math.inf for value in pairs.psnr)
    record = recorded(found)
    assert record.candidates[0].details["pairs_of_other_size"] == ["odd.png"]
    assert [table.title for table in page_of(found, record).results[0].tables] == ["Left out"]


def test_unpaired_images_are_not_compared_one_by_one(folders: tuple[Path, Path, Path]) -> None:
    found = compared(*folders[:2], unpaired=True)
    assert found.candidates[0].pairs is None and "PSNR, SSIM" not in found.missing
    page = page_of(found, recorded(found, unpaired=True))
    assert page.views == () and page.results[0].images == ()


def test_where_nothing_can_be_measured_the_ways_are_named(tmp_path: Path) -> None:
    real = write_pictures(tmp_path / "real", 5, size=(20, 20))
    made = write_pictures(tmp_path / "made", 5, size=(20, 20), names=[f"x{index}.png" for index in range(5)])
    with pytest.raises(ValueError, match=r"nothing can be measured: no names are the same.*FID: give --inception FILE"):
        compared(real, made)
    found = compared(real, made, write_pictures(tmp_path / "twin", 5, size=(20, 20)))
    assert "no image of made has the name and size" in found.missing["PSNR, SSIM"]
    assert page_of(found, recorded(found)).views == ()


def test_the_network_is_chosen_by_size_by_name_or_by_file(tmp_path: Path) -> None:
    real = write_pictures(tmp_path / "real", 5, size=(8, 8))
    made = write_pictures(tmp_path / "made", 5, size=(8, 8), noise=9)
    assert compared(real, made).networks.features[0].name == "digits-cnn"
    assert compared(real, made, features="none").networks.features == ()
    own = tmp_path / "own.safetensors"
    digit_features().save(own)
    assert compared(real, made, features=str(own)).networks.features[0].name == "digits-cnn"
    with pytest.raises(FileNotFoundError, match="--features lpips: no such file, and none of auto, none, fashion-cnn"):
        compared(real, made, features="lpips")
    with pytest.raises(ValueError, match=r"000\.png: fashion-cnn looks at grey images"):
        compared(real, made, features="fashion-cnn")
    with pytest.raises(FileNotFoundError, match=r"no\.pth: no such file; Inception's weights are at https"):
        compared(real, made, inception=tmp_path / "no.pth")
    with pytest.raises(FileNotFoundError, match=r"no\.pth: no such file; LPIPS takes https"):
        compared(real, made, lpips=tmp_path / "no.pth")


def test_lpips_is_measured_where_its_weights_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(random_state("alex"), tmp_path / "alexnet.pth")
    digest = hashlib.sha256((tmp_path / "alexnet.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(perceptual._HASHES, digest[:8], "alex")
    real = write_pictures(tmp_path / "real", 3, size=(40, 40), channels=3)
    made = write_pictures(tmp_path / "made", 3, size=(40, 40), channels=3, noise=20)
    found = compared(real, made, lpips=tmp_path / "alexnet.pth")
    one = recorded(found).candidates[0].measurements["lpips-alex"]
    assert (one.label, one.better, one.samples) == ("LPIPS-alex", "lower", 3)
    assert one.value is not None and one.value > 0
    assert "LPIPS" not in found.missing and recorded(found).protocol["lpips"] == digest


class WordsOfColour:
    """A CLIP model that sees the mean colour, and reads the words red, green and blue."""

    name, weights_sha256, dimensions = "clip-words", "1" * 64, 3
    model = torch.nn.Identity()

    def __call__(self, images: Tensor, /) -> Tensor:
        return images.mean(dim=(2, 3)) + 1e-3

    def captions(self, texts: list[str]) -> tuple[Tensor, int]:
        return torch.tensor([[float(word in text) for word in ("red", "green", "blue")] for text in texts]), 0


def test_cmmd_and_clip_score_are_measured_by_a_clip_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipFeatures, "load", lambda folder: WordsOfColour())
    real = write_pictures(tmp_path / "real", 6, size=(20, 20), channels=3)
    made = write_pictures(tmp_path / "made", 6, size=(20, 20), channels=3, seed=3)
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"000.png": "red", "001": "green and blue", "elsewhere.png": "blue"}))
    found = compared(real, made, clip=tmp_path, captions=captions)
    one, two = ([read_image(file) for file in sorted(folder.iterdir())] for folder in (real, made))
    see = WordsOfColour()
    expected = cmmd(see(torch.stack(two)), see(torch.stack(one)))
    assert found.candidates[0].cmmd == pytest.approx(expected, rel=1e-6)
    scores = found.candidates[0].clip_scores
    assert scores is not None and list(scores) == ["000.png", "001.png"]
    colour = see(torch.stack(two))[0]
    assert scores["000.png"] == pytest.approx(100 * float(colour[0] / colour.norm()), rel=1e-5)
    record = recorded(found, clip=tmp_path, captions=captions)
    assert {"cmmd-clip-words", "clip-score-clip-words"} < set(record.candidates[0].measurements)
    assert {"cmmd-clip-words-floor", "clip-score-clip-words"} < set(record.reference.measurements)
    assert page_of(found, record).results[0].tables[0].title == "Distances"
    captions.write_text(json.dumps({"nowhere.png": "red"}))
    with pytest.raises(ValueError, match="none of its 6 images has a caption"):
        compared(real, made, clip=tmp_path, captions=captions)


@pytest.mark.parametrize(
    ("text", "words"), [("no json", "not JSON"), ('["a"]', "one JSON object"), ('{"a.png": 3}', "one JSON object")]
)
def test_captions_that_are_none_are_refused(text: str, words: str, folders: tuple[Path, ...], tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(ValueError, match=rf"captions\.json: .*{words}"):
        compared(*folders, captions=tmp_path / "captions.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        compared(*folders, captions=tmp_path / "none.json")


def test_a_run_that_was_stopped_gives_the_same_numbers(
    folders: tuple[Path, Path, Path], found: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, reads = ChunkStore(tmp_path), list[int]()
    save = chunks._FORMAT.save

    def interrupted(*arguments: object) -> int:
        reads.append(1)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(chunks, "CHUNK", 16)
    monkeypatch.setattr(type(chunks._FORMAT), "save", lambda self, *arguments: interrupted(*arguments))
    with pytest.raises(KeyboardInterrupt):
        compare_folders(folders[0], folders[1:], store, Settings(), silent)
    again = compare_folders(folders[0], folders[1:], store, Settings(), silent)
    assert len(reads) == 3 + 15 - 2
    monkeypatch.undo()
    monkeypatch.setattr(chunks, "CHUNK", 16)
    whole = compare_folders(folders[0], folders[1:], ChunkStore(tmp_path / "whole"), Settings(), silent)
    measured = [[(one.distances[0], one.pairs) for one in comparison.candidates] for comparison in (again, whole)]
    assert measured[0] == measured[1]
