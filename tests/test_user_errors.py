"""Mistakes that users make, over all commands: each ends in exit code 2 and one line that says what to do about it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from secateur.cli import BAD_INPUT, main
from tests import user_files

SCENES = [
    ("splat info nowhere.ply", "nowhere.ply: no such file"),
    ("splat info nothing", "nothing: no meta.json there"),
    ("splat info cut.ply", "declares 60 rows", "cut short or its header is wrong"),
    ("splat info cut.spz", "cut.spz: numPoints is 60, which needs"),
    ("splat info cut.sog", "cut.sog: not a zip archive"),
    ("splat info cut.splat", "a .splat is a positive multiple of 32"),
    ("splat info empty.ply", "empty.ply: not a PLY file"),
    ("splat info photo.ply", "photo.ply: not a PLY file"),
    ("splat info scene.obj", "not a splat scene of a known format; known are .compressed.ply"),
    ("splat info huge.ply", "declares 4000000000 rows", "0 bytes are left"),
    ("splat info negative.ply", "cannot understand the line 'element vertex -3'"),
    ("splat info points.ply", "no property f_dc_0"),
    ("splat info other.glb", "other.glb: JSON chunk"),
    ("splat info escaping.sog", "escaping.sog: meta.json"),
    ("splat info other.sog", "no file 'meta.json'"),
    ("splat info unbundled", "unbundled: meta.json: not JSON"),
    ("splat info ball.ply --spz-axes RDF", "not SPZ"),
    ("splat info ball.spz --spz-axes RRR", "'RRR' are not axes", "such as RDF"),
    ("splat convert ball.ply ball.obj", "ball.obj: not a splat scene", ".spz"),
    ("splat convert ball.ply ball.ply/small.spz", "ball.ply cannot be a folder: it is a file"),
    ("splat convert ball.ply small.ksplat", "only read, not written"),
]
COMPRESSION = [
    ("splat compress ball.ply --keep 50%", "missing: output"),
    ("splat compress ball.ply -o small.sog --keep 0", "at least 1"),
    ("splat compress ball.ply -o small.sog --keep 150%", "at most 100%"),
    ("splat compress ball.ply -o small.sog --keep 2.5", "did you mean 2.5%?"),
    ("splat compress ball.ply -o small.sog --kep 50%", "--kep 50%; did you mean --keep?"),
    ("splat compress ball.ply -o small.sog --keep 25% --size 2MB", "one kind of budget, not to --keep and --size"),
    ("splat compress ball.ply -o small.sog --size 10", "10 bytes are too few"),
    ("splat compress ball.ply -o small.sog --size 2TB", "'2TB' is not a size", "GiB"),
    ("splat compress ball.ply -o small.sog --psnr high", "such as 35"),
    ("splat compress ball.ply -o small.png --keep 50%", "small.png: not a splat scene", ".sog"),
    ("splat compress ball.ply -o ball.ply/small.sog --keep 50%", "is not a folder that can be written to"),
    ("splat compress ball.ply -o small.sog --report ball.ply", "ball.ply cannot be a folder: it is a file"),
    ("splat compress ball.ply -o small.sog --cameras broken.json", "broken.json: not JSON"),
    ("splat compress ball.ply -o small.sog --cameras flat.json", "viewmats must be (C, 4, 4)"),
    (
        "splat compress ball.ply -o small.sog --cameras partial.json",
        "cameras need width, height, K or Ks, and viewmats",
    ),
    ("splat compress ball.ply -o small.sog --captures nothing", "nothing: not a capture", "transforms.json"),
    ("splat compress ball.ply -o small.sog --recover many", "'many' is not a number of steps"),
    ("splat compress ball.ply -o small.sog --sh-degree 4", "choose 0, 1, 2, 3 or auto"),
    ("splat compress none.ply -o small.sog --keep 50%", "0 Gaussians"),
    ("splat compress --config options-key.yaml", "'keeep'; did you mean keep?"),
    ("splat compress --config options-value.yaml", "--keep", "did you mean 7.5%?"),
    ("splat compress --config nowhere.yaml", "--config", "nowhere.yaml"),
]
PICTURES = [
    ("splat render ball.ply -o view.gif", "known are .png"),
    ("splat render ball.ply -o view.png --orbit 0", "must be at least 1"),
    ("splat render ball.ply -o view.png --orbit 2 --camera cameras.json", "not with both"),
    ("splat render ball.ply -o view.png --width 100000", "from 1 to 16384"),
    ("splat render ball.ply -o picture.png/view.png --width 16", "picture.png cannot be a folder: it is a file"),
    ("splat render ball.ply -o view.png --up=w", "--up", "choose from"),
]
CAPTURES = [
    ("splat train nowhere -o scene.ply", "nowhere: no such capture"),
    ("splat train nothing -o scene.ply", "nothing: not a capture"),
    ("splat train unframed -o scene.ply", "at least 3 are needed"),
    ("splat train absent -o scene.ply", "9 are missing"),
    ("splat train absent -o scene.ply --strict", "9 of the 9 photographs listed are missing"),
    ("splat train resized -o scene.ply", "the intrinsics are for 24x16 pixels, but the image has 10x10"),
    ("splat train damaged -o scene.ply", "the image cannot be read"),
    ("splat train misposed -o scene.ply", "frames[0].transform_matrix must have 3 or 4 rows"),
    ("splat train picture.png -o scene.ply", "expected a folder or a transforms.json"),
    ("splat train capture -o scene.obj", ".ply keeps everything"),
    ("splat train capture -o scene.ply --resume", "say from which with --checkpoint"),
    ("splat train capture -o scene.ply --start picture.png", "picture.png: not a PLY file"),
    ("splat train capture -o scene.ply --device tpu", "--device tpu: choose cpu or cuda"),
    ("splat train capture -o scene.ply --checkpoint picture.png --resume", "picture.png is no checkpoint"),
]
FIELDS_AND_MESHES = [
    ("nerf train capture -o field.ply", "a field is written as .safetensors"),
    ("nerf train capture -o new.safetensors --log2-table 90", "log2_table must be 8 to 22"),
    ("nerf compress nowhere.safetensors -o small.safetensors", "no such file"),
    (
        "nerf compress cut.safetensors -o small.safetensors",
        "cut.safetensors: not a safetensors file, or one that is cut",
    ),
    ("nerf compress pickle.safetensors -o small.safetensors", "not a safetensors file"),
    ("nerf compress field.safetensors -o small.safetensors --bits 9", "give 2 to 8"),
    ("nerf compress field.safetensors -o small.safetensors --levels 99", "levels must be 1 to 4"),
    ("nerf render ball.ply -o view.png", "ball.ply: not a safetensors file"),
    ("nerf evaluate field.safetensors nothing", "nothing: not a capture"),
    ("nerf points field.safetensors -o points.xyz", "points are written as .ply"),
    ("mesh info ball.ply", "no element 'face'"),
    ("mesh info picture.png", "known are .ply, .obj, .stl"),
    ("mesh prune triangle.ply capture -o clean.ply", "has no alpha"),
    ("mesh prune triangle.ply capture -o clean.stp", "known are .ply, .obj, .stl"),
    ("mesh prune triangle.ply capture -o clean.ply --threshold 2", "not a number from 0 to 1"),
]
DIFFUSION = [
    ("diffusion prune nowhere.yaml", "nowhere.yaml: no such file, nor the name of a recipe"),
    ("diffusion prune digits-dit-ecodif-20", "digits-dit-ecodiff-20"),
    ("diffusion prune picture.png --dry-run", "picture.png: not YAML"),
    ("diffusion prune list.yaml --dry-run", "a recipe is a mapping of model", "got list"),
    ("diffusion prune tab.yaml --dry-run", "tab.yaml:3: not YAML"),
    ("diffusion prune twice.yaml --dry-run", "twice.yaml:4: 'budget' is there twice, first in line 3"),
    ("diffusion prune key.yaml --dry-run", "key.yaml:3: unknown key 'budgett'", "budget"),
    ("diffusion prune class.yaml --dry-run", "class.yaml:3: criterion", "no attribute 'Magnitud'"),
    ("diffusion prune field.yaml --dry-run", "field.yaml:5: criterion.init_args.pow", "there is no 'pow'"),
    ("diffusion prune percent.yaml --dry-run", "percent.yaml:3: budget", "below 1, got [20.0]"),
    ("diffusion prune kind.yaml --dry-run", "kind.yaml:4: units.kinds: expected one of 'heads'"),
    ("diffusion prune pattern.yaml --dry-run", "module pattern 'mid.*' matches none", "such as"),
    ("diffusion prune empties.yaml --dry-run", "cannot go", "ask for less"),
    ("diffusion prune budgetless.yaml --dry-run", "needs one of a criterion and a budget"),
    ("diffusion prune modelless.yaml --dry-run", "'model' is missing"),
    ("diffusion prune elsewhere.yaml --dry-run", "nowhere: no folder", "digits-dit"),
    ("diffusion prune tpu.yaml --dry-run", "tpu.yaml:1: model: device 'tpu' is none", "choose cpu or cuda"),
    ("diffusion prune elsewhere-gpu.yaml -o small", "elsewhere-gpu.yaml:1: model.device: cuda:99 cannot be used here"),
    ("diffusion prune reversed.yaml --dry-run", "reversed.yaml:4: recovery", "clip_norm above 0"),
    ("diffusion prune promptless.yaml --dry-run", "promptless.yaml:4: calibration.prompts_file: nowhere.txt: no such"),
    ("diffusion prune odd.yaml --dry-run", "odd.yaml:4: calibration.size", "choose a multiple of its patches"),
    ("diffusion prune good.yaml -o picture.png", "picture.png cannot be a folder: it is a file"),
    ("diffusion info nothing", "nothing/config.json: no such file"),
    ("diffusion info dit --component unet", "it has ['transformer']"),
    ("diffusion generate dit -o digits.png", "missing: prompt"),
    ("diffusion generate dit --prompt 3", "missing: output", "-o PNG", "--each DIR"),
    ("diffusion generate dit --prompts nowhere.txt -o digits.png", "nowhere.txt: no such file"),
    ("diffusion generate dit --prompt 3 --each picture.png", "picture.png cannot be a folder: it is a file"),
    ("diffusion generate dit --prompt 3 --each pictures", "pictures holds pictures already"),
    ("diffusion generate dit --prompt cat -o digits.png", "'cat' is no class: they are 0 to 9"),
    ("diffusion generate cut-dit --prompt 1 -o digits.png", "cut-dit: cannot be loaded"),
    ("diffusion generate cut-dit --prompt 1 -o digits.png", "diffusion_pytorch_model.safetensors: damaged"),
    (
        "diffusion generate shallow-dit --prompt 1 -o digits.png",
        "do not fit",
        "are unknown to it (first: transformer_b",
    ),
    ("diffusion generate pickled-dit --prompt 1 -o digits.png", "only safetensors are read"),
    (
        "diffusion generate timeless-dit --prompt 1 -o digits.png",
        "scheduler_config.json: no DDIMScheduler can be built",
    ),
    ("diffusion info odd-dit", "odd-dit/transformer/config.json: no DiTTransformer2DModel can be built from it"),
    ("diffusion prune named.yaml --dry-run", "named.yaml:1: model: expected a mapping such as {id: dit}, got str"),
    ("diffusion prune nameless.yaml --dry-run", "nameless.yaml:2: model: expected a mapping of id", "got nothing"),
    ("diffusion generate mixed-dit --prompt 1 -o digits.png", "prune_manifest.json"),
    ("diffusion patches dit --ranks 1", "at least 2 processes, got ranks=1"),
    ("diffusion patches dit --context 2", "context must be 0 to 1, got 2.0"),
    ("diffusion patches dit --ranks 3 --steps 2", "8 rows of latents do not divide over 3 ranks"),
    ("diffusion evaluate dit vit -o report", "no configuration of diffusers"),
    (
        "diffusion evaluate digits-unet dit -o report",
        "dit: its class is DiTTransformer2DModel",
        "digits-unet is UNet2D",
    ),
    ("diffusion evaluate fashion-dit dit -o report", "its hidden_states is 1x8x8, that of fashion-dit is 1x28x28"),
    ("diffusion evaluate dit dit -o report --samples 0", "must be at least 1"),
    ("diffusion evaluate dit dit -o report --judge cats", "choose from 'digits', 'fashion'"),
    ("diffusion evaluate dit dit -o report --prompts nowhere.txt", "nowhere.txt: no such file", "photographs.txt"),
]
VIT = [
    ("vit prune fashion-vit-tom", "fashion-vit-tome"),
    ("vit prune vit-key.yaml --dry-run", "vit-key.yaml:3", "there is no 'cots'"),
    ("vit prune vit-step.yaml --dry-run", "vit-step.yaml:3", "statik"),
    ("vit prune vit-two.yaml --dry-run", "a step is one of static", "got static and recover"),
    ("vit prune vit-none.yaml --dry-run", "a recipe needs a step"),
    ("vit prune vit-empties.yaml --dry-run", "vit-empties.yaml:3"),
    ("vit prune vit-schedule.yaml --dry-run", "share must be in (0, 1], got 1.7"),
    ("vit prune vit-images.yaml", "nowhere"),
    ("vit info nothing", "it has no config.json"),
    ("vit info vit --architecture NoSuchClass", "transformers has no model 'NoSuchClass'"),
    ("vit evaluate vit nothing -o report", "nothing: no folder of a vision transformer"),
    ("vit evaluate vit vit -o report --data nowhere", "nowhere"),
    ("vit evaluate vit vit -o report --data pictures", "labels have 2 classes (cat, dog), the model has 5"),
]
COMMAND_LINE = [
    ("animal", "animal", "splat"),
    ("splat", "choose one of info,compress"),
    ("splat shrink ball.ply", "shrink", "compress"),
    ("--nope", "--nope"),
    ("evaluate ball.ply", "missing"),
    ("evaluate ball.ply ball.spz", "missing: output"),
    ("evaluate nowhere.ply ball.ply -o report", "nowhere.ply: no such file"),
    ("evaluate ball.ply nowhere.ply -o report", "nowhere.ply: no such file"),
    ("evaluate scene.obj ball.ply -o report", "scene.obj", "splat"),
    ("evaluate ball.ply picture.png -o report", "picture.png"),
    ("evaluate ball.ply cut.sog -o report", "cut.sog: not a zip archive"),
    ("evaluate ball.ply ball.spz -o report --views 0", "must be at least 1"),
    ("evaluate ball.ply ball.spz -o report --vews 3", "did you mean --views?"),
    ("evaluate ball.ply ball.spz -o report --samples 3", "--samples belongs to an evaluation of", "one of splat"),
    ("evaluate ball.ply ball.spz -o report --fail-on-worse", "--fail-on-worse", "--compare"),
    ("evaluate ball.ply ball.spz -o picture.png", "picture.png cannot be a folder: it is a file"),
    ("evaluate vit dit -o report", "dit"),
]
MISTAKES = [*SCENES, *COMPRESSION, *PICTURES, *CAPTURES, *FIELDS_AND_MESHES, *DIFFUSION, *VIT, *COMMAND_LINE]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the mistakes are made on."""
    folder = tmp_path_factory.mktemp("files")
    user_files.write_scenes(folder)
    user_files.write_cameras(folder)
    user_files.write_captures(folder)
    user_files.write_fields_and_meshes(folder)
    user_files.write_models(folder)
    user_files.write_recipes(folder)
    return folder


def complaint(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What comes back for a mistake, which is one line after whatever said how far the work was."""
    assert main(shlex.split(line)) == BAD_INPUT
    printed = capsys.readouterr()
    assert printed.out == ""
    *before, last = printed.err.splitlines()
    assert last.startswith("secateur: error: ") and not any("secateur: error" in other for other in before)
    assert "Traceback" not in printed.err
    return last


@pytest.mark.parametrize(("line", "says"), [(line, says) for line, *says in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_ends_in_one_line(
    line: str, says: list[str], files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.delenv("SECATEUR_DEBUG", raising=False)
    before = {path.name for path in files.iterdir()}
    said = complaint(line, capsys)
    assert all(words in said for words in says), said
    assert {path.name for path in files.iterdir()} == before, "a mistake leaves nothing behind"


@pytest.mark.parametrize(
    ("line", "module", "says"),
    [
        ("mesh info scan.stl", "open3d", "pip install 'secateur[mesh]'"),
        ("splat view ball.ply", "viser", "pip install 'secateur[viewer]'"),
        ("diffusion evaluate dit dit -o report --judge digits", "sklearn", "pip install scikit-learn"),
    ],
)
def test_what_is_not_installed_is_told_with_what_brings_it(
    line: str,
    module: str,
    says: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files)
    (files / "scan.stl").write_text("solid scan\nendsolid scan\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert says in complaint(line, capsys)
