"""What the commands on neural fields do, and how they show it. Their arguments are in `commands.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compress3d.cameras import Cameras
from compress3d.captures import Split, read_capture
from compress3d.devices import device_named
from compress3d.nerf.commands import SUFFIX
from compress3d.nerf.compress import CompressRecord, Worth, check_options, compress
from compress3d.nerf.evaluate import FieldEvaluation, quality_to_photographs, view_speed
from compress3d.nerf.files import load_field, save_field
from compress3d.nerf.points import save_points, surface_points
from compress3d.nerf.record import compression_record, photographs_record
from compress3d.nerf.render import orbit_of, render_each
from compress3d.nerf.report import compression_page, photographs_page
from compress3d.nerf.tables import compression_table, evaluation_table, training_table
from compress3d.nerf.teacher import views_around
from compress3d.nerf.train import Training, TrainRecord, train
from compress3d.splats.views import AXES
from secateur.console import console, progress_bar, stretch
from secateur.evaluation.evaluator import write
from secateur.evaluation.run import Start
from secateur.files import check_folder, replacing_file
from secateur.interrupts import saying_how_to_go_on
from secateur.quantities import parse_keep
from secateur.report.record import Steps, describe_machine

_POINT_VIEWS, _POINT_VIEW_SIZE = 32, 200

_PICTURE_FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}


def train_capture(
    capture: Path,
    output: Path,
    steps: int,
    levels: int,
    log2_table: int,
    long_side: int | None,
    split: Split | None,
    strict: bool,
    seed: int,
    checkpoint: Path | None,
    resume: bool,
    device: str | None = None,
) -> TrainRecord:
    """`secateur nerf train`."""
    check_writing(output, checkpoint, resume)
    where = device_named(device)
    training = Training(levels=levels, log2_table=log2_table, seed=seed)
    with progress_bar() as progress:
        photographs = read_capture(
            capture, strict=strict, split=split, long_side=long_side, report=stretch(progress, 0.0, 0.01)
        )
        with saying_how_to_go_on(checkpoint):
            field, record = train(
                photographs,
                steps=steps,
                training=training,
                device=where,
                checkpoint=checkpoint,
                resume=resume,
                report=stretch(progress, 0.01, 1.0),
            )
        return replace(record, bytes=save_field(field, output))


def show_training(record: TrainRecord) -> None:
    """A table of the field and of how close it comes to the photographs."""
    console.print(training_table(record))


def render_file(
    file: Path,
    output: Path,
    camera: Path | None,
    orbit: int | None,
    up: str,
    width: int | None,
    height: int | None,
    device: str | None = None,
) -> list[str]:
    """`secateur nerf render`; the pictures' paths."""
    from PIL import Image

    if output.suffix.lower() not in _PICTURE_FORMATS:
        raise ValueError(f"{output}: not a picture that can be written; known are {', '.join(_PICTURE_FORMATS)}")
    if camera is not None and orbit is not None:
        raise ValueError("a picture is taken with --camera or with --orbit, not with both")
    check_folder(output.parent)
    field = load_field(file).to(device_named(device))
    if camera is None:
        width = width or height or 800
        cameras = orbit_of(field.box, orbit or 1, width, height or width, AXES[up])
    else:
        cameras = _resized(Cameras.load(camera), width, height)
    paths = [output]
    if len(cameras) > 1:
        paths = [output.with_stem(f"{output.stem}-{index:03d}") for index in range(len(cameras))]
    with progress_bar() as progress:
        for index, (path, picture) in enumerate(zip(paths, render_each(field, cameras), strict=True)):
            pixels = (picture.image.clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()
            with replacing_file(path) as temporary:
                Image.fromarray(pixels).save(temporary, _PICTURE_FORMATS[path.suffix.lower()])
            progress((index + 1) / len(paths), "rendering")
    return [str(path) for path in paths]


def points_file(file: Path, output: Path, count: int, seed: int, device: str | None = None) -> list[str]:
    """`secateur nerf points`; the path of the points."""
    if output.suffix != ".ply":
        raise ValueError(f"{output}: points are written as .ply")
    field = load_field(file).to(device_named(device))
    with progress_bar() as progress:
        views = views_around(field.box, _POINT_VIEWS, _POINT_VIEW_SIZE)
        save_points(surface_points(field, views, count, seed=seed, report=progress), output)
    return [str(output)]


def show_pictures(paths: list[str]) -> None:
    """The paths, a line each."""
    for path in paths:
        print(path)


def evaluate_file(
    file: Path,
    capture: Path,
    long_side: int | None,
    split: Split | None,
    strict: bool,
    report: Path | None = None,
    device: str | None = None,
) -> FieldEvaluation:
    """`secateur nerf evaluate`."""
    where = device_named(device)
    if report is not None:
        check_folder(report)
    start, clock = Start.now(), Steps()
    with progress_bar() as progress:
        with clock("read"):
            field = load_field(file).to(where)
            photographs = read_capture(
                capture, strict=strict, split=split, long_side=long_side, report=stretch(progress, 0.0, 0.1)
            )
        views = photographs.test.tolist() or list(range(len(photographs)))
        with clock("judge"):
            quality = quality_to_photographs(field, photographs, views, stretch(progress, 0.1, 0.9))
        progress(0.9, "timing")
        with clock("time"):
            speed = view_speed(field, photographs, views[0])
        size, skipped = file.stat().st_size, photographs.skipped
        record = FieldEvaluation(
            file.name, size, photographs.name, quality, speed, skipped, clock.seconds, describe_machine()
        )
        if report is not None:
            progress(1.0, "drawing the report")
            shared = photographs_record(record, field, (capture, file), photographs, views, start)
            write(shared, photographs_page(shared, field, photographs, views), report)
    return record


def show_evaluation(record: FieldEvaluation) -> None:
    """A table of how close the field comes to the photographs."""
    console.print(evaluation_table(record))


def compress_file(
    file: Path,
    capture: Path | None,
    output: Path,
    keep: str,
    bits: str,
    levels: int | None,
    worth: Worth,
    recover: int,
    long_side: int | None,
    split: Split | None,
    strict: bool,
    seed: int,
    checkpoint: Path | None = None,
    resume: bool = False,
    report: Path | None = None,
    device: str | None = None,
) -> CompressRecord:
    """`secateur nerf compress`."""
    start, where = Start.now(), device_named(device)
    check_writing(output, checkpoint, resume)
    if report is not None:
        check_folder(report)
    field, before = load_field(file).to(where), file.stat().st_size
    each = [int(one) for one in bits.split(",")]
    wanted = each[0] if len(each) == 1 else each
    # Now rather than after photographs were read.
    check_options(field, parse_keep(keep), levels, wanted, worth, recover)
    with progress_bar() as progress:
        photographs = None
        if capture is not None:
            photographs = read_capture(
                capture, strict=strict, split=split, long_side=long_side, report=stretch(progress, 0.0, 0.02)
            )
        with saying_how_to_go_on(checkpoint):
            small, rounding, record = compress(
                field,
                photographs,
                keep=parse_keep(keep),
                levels=levels,
                bits=wanted,
                worth=worth,
                steps=recover,
                seed=seed,
                checkpoint=checkpoint,
                resume=resume,
                report=stretch(progress, 0.02, 1.0),
            )
        record = replace(record, bytes_before=before, bytes=save_field(small, output, rounding))
        if report is not None:
            progress(1.0, "drawing the report")
            fields = (field, load_field(output).to(where))
            shared = compression_record(record, fields, (file, output), photographs, start)
            write(shared, compression_page(shared, record, fields, photographs), report)
        return record


def show_compression(record: CompressRecord) -> None:
    """A table of the field before and after."""
    console.print(compression_table(record))


def _resized(cameras: Cameras, width: int | None, height: int | None) -> Cameras:
    if width is None and height is None:
        return cameras
    ratio = cameras.height / cameras.width
    width = width or max(1, round((height or 1) / ratio))
    return cameras.resized(width, height or max(1, round(width * ratio)))


def check_writing(output: Path, checkpoint: Path | None, resume: bool) -> None:
    """Raise ValueError unless a field can be written as asked: now rather than after an hour of training."""
    if output.suffix != SUFFIX:
        raise ValueError(f"{output}: a field is written as {SUFFIX}")
    if resume and checkpoint is None:
        raise ValueError("--resume goes on from a checkpoint: say from which with --checkpoint FILE")
    check_folder(output.parent)
    output.parent.mkdir(parents=True, exist_ok=True)
