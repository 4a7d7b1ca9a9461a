"""What the commands on splat scenes do, and how they show it. Their arguments are in `compress3d/commands.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from compress3d.cameras import Cameras
from compress3d.captures import Capture, read_capture
from compress3d.splats.budget import Budget
from compress3d.splats.compress import Compression, Compressor
from compress3d.splats.evaluate import SceneFile, evaluate
from compress3d.splats.formats import drop_invalid, is_spz, read_scene, write_scene
from compress3d.splats.rasterize import render_each
from compress3d.splats.record import compressions_record, record_of
from compress3d.splats.recover import RECOVERY
from compress3d.splats.report import compressions_page, evaluation_page
from compress3d.splats.scene import SplatScene
from compress3d.splats.standalone.comparison import write_compression_page
from compress3d.splats.tables import compressions_table, conversion_table
from compress3d.splats.views import AXES, orbit
from compress3d.suffixes import splat_codec
from secateur.console import console, messages, progress_bar, result_table, stretch
from secateur.evaluation.chunks import ChunkStore
from secateur.evaluation.evaluator import Evaluated, write
from secateur.evaluation.run import Start
from secateur.files import check_folder, replacing_file
from secateur.interrupts import naming_what_was_written
from secateur.quantities import format_bytes
from secateur.report.record import Steps

_PAGE_3D = "scene.html"

_LONGEST_SIDE = 800
"""Photographs to recover by are made no larger than this: a step's time goes with their pixels."""

_PICTURE_FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}


@dataclass(frozen=True, slots=True)
class SceneInfo:
    """What is in a scene.

    Args:
        file: name, counts and bytes.
        antialiased: whether it was trained with the mip rasteriser.
        low: (x, y, z) below which 2 % of the centres lie, axis by axis, in world units.
        high: (x, y, z) above which 2 % of the centres lie.
        opacity: 5th, 50th and 95th percentile, 0 to 1.
        scale: 5th, 50th and 95th percentile of the standard deviations, in world units.
        invalid: Gaussians that cannot be drawn, by reason.
    """

    file: SceneFile
    antialiased: bool
    low: tuple[float, ...]
    high: tuple[float, ...]
    opacity: tuple[float, ...]
    scale: tuple[float, ...]
    invalid: dict[str, int]


@dataclass(frozen=True, slots=True)
class Conversion:
    """A scene in two formats."""

    original: SceneFile
    converted: SceneFile
    seconds: dict[str, float]


def describe_file(file: Path, spz_axes: str | None) -> SceneInfo:
    """`secateur splat info`."""
    whole = read_scene(file, keep_invalid=True, spz_axes=spz_axes)
    scene, invalid = drop_invalid(whole)
    opacities, scales = torch.sigmoid(scene.opacities)[:, None], torch.exp(scene.scales).reshape(-1, 1)
    low, high = (tuple(_quantiles(scene.means, level).tolist()) for level in (0.02, 0.98))
    opacity, scale = (
        tuple(float(_quantiles(values, level)) for level in (0.05, 0.5, 0.95)) for values in (opacities, scales)
    )
    return SceneInfo(SceneFile.describe(file, whole), scene.antialiased, low, high, opacity, scale, invalid)


def compress_file(
    file: Path,
    output: Path,
    keep: str | None,
    size: str | None,
    psnr: str | None,
    recover: int | None,
    captures: Path | None,
    sh_degree: int | Literal["auto"] | None,
    sh_keep: float,
    cameras: Path | None,
    up: str,
    seed: int,
    report: Path | None,
    report_3d: bool,
    spz_axes: str | None,
) -> Compression | list[Compression]:
    """`secateur splat compress`: one record, or a list of them where several budgets were asked for."""
    start = Start.now()
    budgets = _budgets(keep, size, psnr)
    if report_3d and report is None:
        raise ValueError("--report-3d needs --report DIR, the folder that its page scene.html is written into")
    if report is not None:
        check_folder(report)
    given = None if cameras is None else Cameras.load(cameras)
    scene = read_scene(file, spz_axes=spz_axes)
    compressor = Compressor(
        scene,
        given,
        recover=RECOVERY if recover is None else recover,
        photographs=_photographs(captures),
        sh_degree=sh_degree,
        sh_keep=sh_keep,
        up=AXES[up],
        seed=seed,
        source=file,
    )
    outputs = [output if len(budgets) == 1 else _tagged(output, tag) for tag, _ in budgets]
    records: list[Compression] = []
    written: list[Path] = []
    with naming_what_was_written(written), progress_bar() as progress:
        for index, (target, (_, budget)) in enumerate(zip(outputs, budgets, strict=True)):
            part = stretch(progress, index / len(budgets), (index + 1) / len(budgets))
            records.append(compressor.compress(budget, target, part)[1])
            written.append(target)
        if report is not None:
            progress(1.0, "drawing the report")
            decoded, views = [read_scene(target) for target in outputs], compressor.judge.cameras
            links: dict[str, str] = {}
            if report_3d:
                left_out = write_compression_page(report / _PAGE_3D, records, decoded, scene, AXES[up])
                if left_out:
                    messages.print(f"{report / _PAGE_3D}: no room for {', '.join(left_out)}", markup=False)
                links["Turn the scenes in 3D"] = _PAGE_3D
            shared = compressions_record(records, [file, *outputs], views, start)
            write(shared, compressions_page(shared, records, decoded, scene, views, links), report)
            written.append(report / "index.html")
    return records[0] if len(records) == 1 else records


def convert_file(input: Path, output: Path, sh_degree: int | None, spz_axes: str | None) -> Conversion:
    """`secateur splat convert`."""
    steps = Steps()
    inward = spz_axes is not None and is_spz(input)
    if spz_axes is not None and not inward and splat_codec(output.name) != "spz":
        raise ValueError(f"neither {input} nor {output} is SPZ, whose axes --spz-axes is about")
    with steps("read"):
        scene = read_scene(input, spz_axes=spz_axes if inward else None)
    lean = scene if sh_degree is None else scene.with_sh_degree(min(sh_degree, scene.sh_degree))
    with steps("write"):
        write_scene(lean, output, **({} if spz_axes is None or inward else {"axes": spz_axes}))
    with steps("read back"):
        converted = read_scene(output)
    return Conversion(SceneFile.describe(input, scene), SceneFile.describe(output, converted), steps.seconds)


def render_file(
    file: Path,
    output: Path,
    camera: Path | None,
    orbit: int | None,
    up: str,
    width: int | None,
    height: int | None,
    spz_axes: str | None,
) -> list[str]:
    """`secateur splat render`; the pictures' paths."""
    from PIL import Image

    if output.suffix.lower() not in _PICTURE_FORMATS:
        raise ValueError(f"{output}: not a picture that can be written; known are {', '.join(_PICTURE_FORMATS)}")
    if camera is not None and orbit is not None:
        raise ValueError("a picture is taken with --camera or with --orbit, not with both")
    check_folder(output.parent)
    scene = read_scene(file, spz_axes=spz_axes)
    cameras = _cameras(scene, camera, orbit or 1, up, width, height)
    paths = [output] if len(cameras) == 1 else [_tagged(output, f"{index:03d}") for index in range(len(cameras))]
    with progress_bar() as progress:
        for index, (path, (image, _)) in enumerate(zip(paths, render_each(scene, cameras), strict=True)):
            pixels = (image.clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()
            with replacing_file(path) as temporary:
                Image.fromarray(pixels).save(temporary, _PICTURE_FORMATS[path.suffix.lower()])
            progress((index + 1) / len(paths), "rendering")
    return [str(path) for path in paths]


def evaluate_files(
    reference: Path, candidates: list[Path], output: Path, cameras: Path | None, views: int, up: str, seed: int
) -> Evaluated:
    """`secateur evaluate` for splat scenes."""
    start = Start.now()
    given = None if cameras is None else Cameras.load(cameras)
    store = ChunkStore.within(output)
    with progress_bar() as progress, store.kept_when_stopped():
        found, judge, scenes = evaluate(
            reference, candidates, cameras=given, views=views, up=AXES[up], seed=seed, progress=progress, store=store
        )
        progress(1.0, "drawing the report")
        record = record_of(found, [reference, *candidates], judge.cameras, start, seed=seed)
        page = evaluation_page(found, scenes, judge.original, judge.cameras)
    store.clear()
    return Evaluated(record, page)


def show_info(info: SceneInfo) -> None:
    """A table of what is in a scene."""
    file = info.file
    table = result_table(file.name, "", "")
    table.add_row("Gaussians", f"{file.gaussians:,}")
    table.add_row("spherical-harmonic degree", str(file.sh_degree))
    table.add_row("bytes", f"{file.bytes:,} ({format_bytes(file.bytes)})")
    table.add_row("bytes per Gaussian", f"{file.bytes / max(1, file.gaussians):.1f}")
    for name, size in file.bytes_by_attribute.items():
        table.add_row(f"  {name}", f"{format_bytes(size)}  {100 * size / file.bytes:.1f} %")
    table.add_row("centres, 2 % to 98 %", f"{_vector(info.low)} to {_vector(info.high)}")
    table.add_row("opacity, 5 / 50 / 95 %", " / ".join(f"{value:.3f}" for value in info.opacity))
    table.add_row("scale, 5 / 50 / 95 %", " / ".join(f"{value:.3g}" for value in info.scale))
    table.add_row("antialiased", "yes" if info.antialiased else "no")
    for reason, count in info.invalid.items():
        if count:
            table.add_row(f"cannot be drawn: {reason}", f"{count:,}")
    console.print(table)


def show_compressions(records: Compression | list[Compression]) -> None:
    """A table of before and after, a column for each compression."""
    console.print(compressions_table([records] if isinstance(records, Compression) else records))


def show_conversion(conversion: Conversion) -> None:
    """A table of the two files."""
    console.print(conversion_table(conversion.original, conversion.converted, sum(conversion.seconds.values())))


def show_pictures(paths: list[str]) -> None:
    """The pictures' paths, one a line."""
    for path in paths:
        console.print(path, highlight=False, markup=False, soft_wrap=True)


def _budgets(keep: str | None, size: str | None, psnr: str | None) -> list[tuple[str, Budget]]:
    """Each budget asked for, with a tag for its file's name; none keeps everything."""
    kinds = {"--keep": keep, "--size": size, "--psnr": psnr}
    given = {flag: texts for flag, texts in kinds.items() if texts is not None}
    if len(given) > 1:
        raise ValueError(f"a scene is compressed to one kind of budget, not to {' and '.join(given)}")
    return [
        (_tag(flag, text), Budget.parse(*(text if kind == flag else None for kind in kinds)))
        for flag, texts in given.items()
        for text in texts.split(",")
    ] or [("", Budget())]


def _photographs(folder: Path | None) -> Capture | None:
    """The photographs of a capture that are there to learn from."""
    if folder is None:
        return None
    with progress_bar() as progress:
        capture = read_capture(folder, long_side=_LONGEST_SIDE, report=progress)
    if capture.skipped:
        messages.print(f"{folder}: {capture.skipped} listed photographs are not there")
    return capture.subset(capture.train)


def _tag(flag: str, text: str) -> str:
    unit = "dB" if flag == "--psnr" and not text.lower().endswith("db") else ""
    return re.sub(r"\s", "", text).replace("%", "pct") + unit


def _tagged(output: Path, tag: str) -> Path:
    """`output` with a tag in its name: "a.sog" -> "a-50pct.sog", "a.compressed.ply" -> "a-50pct.compressed.ply"."""
    if output.name == "meta.json":
        return _tagged(output.parent, tag) / output.name
    suffix = ".compressed.ply" if output.name.endswith(".compressed.ply") else output.suffix
    return output.with_name(f"{output.name.removesuffix(suffix)}-{tag}{suffix}")


def _cameras(
    scene: SplatScene, camera: Path | None, count: int, up: str, width: int | None, height: int | None
) -> Cameras:
    if camera is None:
        width = width or height or 800
        return orbit(scene, count, width, height or width, up=AXES[up])
    cameras = Cameras.load(camera)
    if width is None and height is None:
        return cameras
    ratio = cameras.height / cameras.width
    width = width or max(1, round((height or 1) / ratio))
    return cameras.resized(width, height or max(1, round(width * ratio)))


def _quantiles(values: torch.Tensor, level: float) -> torch.Tensor:
    """The value of each column below which `level` of the rows lie."""
    if not len(values):
        return torch.full(values.shape[1:], torch.nan)
    rank = 1 + round(level * (len(values) - 1))
    return values.kthvalue(rank, dim=0).values


def _vector(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"
