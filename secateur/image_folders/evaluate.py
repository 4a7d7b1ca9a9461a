"""How far folders of images are from a reference: as sets, and image by image where names are the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secateur.console import Report, stretch
from secateur.evaluation.chunks import ChunkStore, Rows
from secateur.image_folders.decoding import read_image
from secateur.image_folders.judging import FEWEST, Judging, read_captions
from secateur.image_folders.listing import ImageFolder, pairs_of
from secateur.image_folders.looking import LPIPS, PSNR, SAME_SIZE, SSIM, look_at_folder, look_at_pairs
from secateur.image_folders.networks import Networks
from secateur.image_folders.results import Comparison, FolderResult, PairNumbers, Settings
from secateur.report.record import Steps


def compare_folders(
    reference: Path, candidates: Sequence[Path], store: ChunkStore, settings: Settings, report: Report
) -> Comparison:
    """Measure folders of images against a reference.

    What grows with the number of images is their vectors and a few numbers each; pixels are let go. Chunks that a
    former run finished are taken from the store.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a folder has no images, an image cannot be read (names it), captions are none, or there is nothing
            that could be measured: says why.
        ModuleNotFoundError: what Inception needs is not installed.
    """
    steps = Steps()
    with steps("list"):
        folders = [ImageFolder.listed(path) for path in (reference, *candidates)]
        captions = None if settings.captions is None else read_captions(settings.captions)
        real, *others = folders
        size = read_image(real.file(real.images[0])).shape[1:]
        networks = Networks.load(
            (size[0], size[1]),
            features=settings.features,
            inception=settings.inception,
            clip=settings.clip,
            captions=captions is not None,
            lpips=settings.lpips,
        )
    with steps("look"):
        vectors = _looked_at(folders, networks, store, stretch(report, 0.0, 0.6))
    with steps("compare pairs"):
        pairs = [
            None if settings.unpaired else _paired(other, real, networks, store, stretch(report, 0.6, 0.9))
            for other in others
        ]
    if not networks.looking and not any(pairs):
        raise ValueError(_nothing(reference, networks))
    with steps("judge"):
        report(0.9, "judging")
        judge = Judging(real, vectors[0], networks, captions, settings.seed)
        results = [judge.result(*one) for one in zip(others, vectors[1:], pairs, strict=True)]
    missing = networks.missing | _too_few(folders, networks) | _no_pairs(results, settings.unpaired)
    return Comparison(
        real, judge.floors(), judge.cmmd_floor(), judge.scores(real, vectors[0]), tuple(results), networks, missing,
        steps.seconds,
    )  # fmt: skip


def _looked_at(folders: Sequence[ImageFolder], networks: Networks, store: ChunkStore, report: Report) -> list[Rows]:
    """The vectors of each folder by network."""
    if not networks.looking:
        return [{} for _ in folders]
    return [
        store.gather(
            look_at_folder(folder, networks.looking),
            stretch(report, index / len(folders), (index + 1) / len(folders)),
        )
        for index, folder in enumerate(folders)
    ]


def _paired(
    folder: ImageFolder, reference: ImageFolder, networks: Networks, store: ChunkStore, report: Report
) -> PairNumbers | None:
    pairs = pairs_of(reference, folder)
    if not pairs:
        return None
    rows = store.gather(look_at_pairs(folder, reference, pairs, networks.perceptual), report)
    same = rows[SAME_SIZE].bool()
    kept = [pair for pair, equal in zip(pairs, same.tolist(), strict=True) if equal]
    left_out = tuple(one.name for (one, _), equal in zip(pairs, same.tolist(), strict=True) if not equal)
    return PairNumbers(
        tuple(one.name for one, _ in kept),
        tuple(other.name for _, other in kept),
        tuple(rows[PSNR][same].tolist()),
        tuple(rows[SSIM][same].tolist()),
        tuple(rows[LPIPS][same].tolist()) if LPIPS in rows else None,
        left_out,
    )


def _too_few(folders: Sequence[ImageFolder], networks: Networks) -> dict[str, str]:
    fewest = min(folders, key=len)
    if len(fewest) >= FEWEST or not networks.features:
        return {}
    return {"Frechet and kernel distance": f"{fewest.name} has {len(fewest)} images; each needs {FEWEST} at least"}


def _no_pairs(results: Sequence[FolderResult], unpaired: bool) -> dict[str, str]:
    if unpaired or all(result.pairs is not None and result.pairs.names for result in results):
        return {}
    names = ", ".join(result.folder.name for result in results if result.pairs is None or not result.pairs.names)
    return {"PSNR, SSIM": f"no image of {names} has the name and size of one of the reference"}


def _nothing(reference: Path, networks: Networks) -> str:
    ways = "; ".join(f"{metric}: {how}" for metric, how in networks.missing.items())
    return f"{reference}: nothing can be measured: no names are the same, and there are no networks. {ways}"
