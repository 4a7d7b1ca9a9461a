"""Files as users have them: a few that are good, and many that are not what their name says."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import torch
from PIL import Image

from compress3d.mesh.files import write_mesh
from compress3d.mesh.mesh import Mesh
from compress3d.nerf.files import save_field
from compress3d.splats.formats import write_scene
from compress3d.splats.views import sample_views
from tests.compress3d.captures.synthetic import photograph, transforms, write_transforms
from tests.compress3d.nerf.fields import some_field
from tests.compress3d.splats.test_evaluate import scene as ball

PLY_HEADER = "ply\nformat {form} 1.0\nelement vertex {count}\n{properties}end_header\n"
SPLAT_FIELDS = [
    *("x", "y", "z", "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    *("f_dc_0", "f_dc_1", "f_dc_2"),
]


def write_scenes(folder: Path) -> None:
    """`ball.ply`, `ball.spz`, `ball.sog` that are good, others that are cut off, hostile, or something else."""
    for name in ("ball.ply", "ball.spz", "ball.sog", "ball.splat"):
        write_scene(ball(60), folder / name)
    for name in ("ball.ply", "ball.spz", "ball.sog", "ball.splat"):
        content = (folder / name).read_bytes()
        (folder / f"cut.{name.partition('.')[2]}").write_bytes(content[: len(content) * 2 // 3 - 1])
    (folder / "empty.ply").touch()
    (folder / "photo.ply").write_bytes(b"\xff\xd8\xff\xe0 a photograph, renamed")
    (folder / "scene.obj").write_text("v 0 0 0\n")
    properties = "".join(f"property float {name}\n" for name in SPLAT_FIELDS)
    little = "binary_little_endian"
    (folder / "huge.ply").write_text(PLY_HEADER.format(form=little, count=4_000_000_000, properties=properties))
    (folder / "negative.ply").write_text(PLY_HEADER.format(form=little, count=-3, properties=properties))
    (folder / "none.ply").write_text(PLY_HEADER.format(form=little, count=0, properties=properties))
    points = PLY_HEADER.format(form="ascii", count=1, properties="".join(f"property float {a}\n" for a in "xyz"))
    (folder / "points.ply").write_text(points + "0 0 0\n")
    (folder / "other.glb").write_bytes(b"glTF\x02\x00\x00\x00\x14\x00\x00\x00\x00\x00\x00\x00JSON")
    with zipfile.ZipFile(folder / "escaping.sog", "w") as archive:
        archive.writestr("meta.json", json.dumps({"version": 2, "count": 1, "means": {"files": ["../../secret.webp"]}}))
    with zipfile.ZipFile(folder / "other.sog", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    (folder / "unbundled").mkdir()
    (folder / "unbundled" / "meta.json").write_text("{")


def write_cameras(folder: Path) -> None:
    """`cameras.json`, and three that will not do."""
    record = sample_views(ball(60), 3, 24, 20).to_json()
    (folder / "cameras.json").write_text(json.dumps(record))
    (folder / "broken.json").write_text("{'width': 3}")
    (folder / "flat.json").write_text(json.dumps({**record, "viewmats": [[1, 0], [0, 1]]}))
    (folder / "partial.json").write_text(json.dumps({"width": 20, "height": 20}))


def write_captures(folder: Path) -> None:
    """`capture`, and captures without photographs, without frames, with pictures of another size and damaged ones."""
    write_transforms(folder / "capture")
    (folder / "nothing").mkdir()
    (folder / "nothing" / "readme.txt").write_text("no photographs here")
    write_transforms(folder / "unframed", transforms(frames=[]))
    write_transforms(folder / "absent")
    for image in (folder / "absent" / "images").iterdir():
        image.unlink()
    write_transforms(folder / "resized")
    photograph(0, 10, 10).save(next((folder / "resized" / "images").iterdir()))
    write_transforms(folder / "damaged")
    next((folder / "damaged" / "images").iterdir()).write_bytes(b"no picture")
    poses = transforms()
    poses["frames"][0]["transform_matrix"] = [[1, 2, 3]]
    write_transforms(folder / "misposed", poses)


def write_fields_and_meshes(folder: Path) -> None:
    """A field, a mesh, and files that only look like them."""
    save_field(some_field(), folder / "field.safetensors")
    content = (folder / "field.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "pickle.safetensors").write_bytes(b"\x80\x04\x95 a pickle, renamed")
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    write_mesh(Mesh(corners, torch.tensor([[0, 1, 2]])), folder / "triangle.ply")
    Image.new("RGB", (8, 8)).save(folder / "picture.png")


def write_models(folder: Path) -> None:
    """`dit` and `vit`, a folder of images by class, and models with wrong weights, manifests and settings."""
    from tests.diffusion.recipes import save_dit
    from tests.vit.recipes import save_model

    save_dit(folder / "dit")
    save_model(folder / "vit")
    for name in ("cut-dit", "mixed-dit", "shallow-dit", "odd-dit", "pickled-dit", "timeless-dit"):
        shutil.copytree(folder / "dit", folder / name)
    weights = next((folder / "cut-dit" / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    manifest = {"format": "secateur pruned vision transformer", "version": 1, "cuts": {}}
    (folder / "mixed-dit" / "transformer" / "prune_manifest.json").write_text(json.dumps(manifest))
    _change(folder / "shallow-dit" / "transformer" / "config.json", num_layers=1)
    _change(folder / "odd-dit" / "transformer" / "config.json", num_attention_heads="six", key_of_tomorrow=1)
    _change(folder / "timeless-dit" / "scheduler" / "scheduler_config.json", num_train_timesteps="x")
    weights = next((folder / "pickled-dit" / "transformer").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    for name in ("cat", "dog"):
        (folder / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "pictures" / name / "0.png")
    (folder / "pictures" / "dog" / "broken.png").write_text("no picture")


def _change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DIFFUSION = "model: {id: dit, device: cpu}\n"
CRITERION = "criterion: {class_path: secateur.importance.Magnitude}\n"
VIT = "model: {id: vit, device: cpu}\nsteps:\n"
RECIPES = {
    "good": f"{DIFFUSION}{CRITERION}budget: {{remove: 0.1}}\n",
    "list": "- model\n- budget\n",
    "tab": f"{DIFFUSION}units:\n\tkinds: [heads]\n",
    "twice": f"{DIFFUSION}{CRITERION}budget: {{remove: 0.1}}\nbudget: {{remove: 0.2}}\n",
    "key": f"{DIFFUSION}{CRITERION}budgett: {{remove: 0.1}}\n",
    "class": f"{DIFFUSION}budget: {{remove: 0.1}}\ncriterion: {{class_path: secateur.importance.Magnitud}}\n",
    "field": f"{DIFFUSION}budget: {{remove: 0.1}}\ncriterion:\n  class_path: secateur.importance.Magnitude\n"
    "  init_args: {pow: 1}\n",
    "percent": f"{DIFFUSION}{CRITERION}budget: {{remove: 20}}\n",
    "kind": f"{DIFFUSION}{CRITERION}budget: {{remove: 0.1}}\nunits: {{kinds: [head]}}\n",
    "pattern": f"{DIFFUSION}{CRITERION}budget: {{remove: 0.1}}\nunits: {{modules: [mid.*]}}\n",
    "empties": f"{DIFFUSION}{CRITERION}budget: {{remove: 0.99}}\n",
    "budgetless": f"{DIFFUSION}{CRITERION}",
    "tpu": f"model: {{id: dit, device: tpu}}\n{CRITERION}budget: {{remove: 0.1}}\n",
    "elsewhere-gpu": f"model: {{id: dit, device: 'cuda:99'}}\n{CRITERION}budget: {{remove: 0.1}}\n",
    "reversed": f"{DIFFUSION}{CRITERION}budget: {{remove: 0.1}}\nrecovery: {{steps: 5, clip_norm: -1}}\n",
    "promptless": f"{DIFFUSION}{CRITERION}budget: {{remove: 0.1}}\ncalibration: {{prompts_file: nowhere.txt}}\n",
    "odd": f"{DIFFUSION}{CRITERION}budget: {{remove: 0.1}}\ncalibration: {{size: 7}}\n",
    "modelless": f"{CRITERION}budget: {{remove: 0.1}}\n",
    "named": f"model: dit\n{CRITERION}budget: {{remove: 0.1}}\n",
    "nameless": f"{CRITERION}model:\nbudget: {{remove: 0.1}}\n",
    "elsewhere": f"model: {{id: nowhere}}\n{CRITERION}budget: {{remove: 0.1}}\n",
    "vit-key": f"{VIT}  - static: {{budget: {{remove: 0.3, cots: macs}}}}\n",
    "vit-step": f"{VIT}  - statik: {{budget: {{remove: 0.3}}}}\n",
    "vit-two": f"{VIT}  - static: {{budget: {{remove: 0.3}}}}\n    recover: {{steps: 3}}\n",
    "vit-none": "model: {id: vit}\nsteps: []\n",
    "vit-empties": f"{VIT}  - static: {{budget: {{remove: 0.995, cost: macs}}}}\n",
    "vit-schedule": f"{VIT}  - tokens:\n      pruner: {{class_path: vit.tokens.TokenMerging}}\n"
    "      schedule: {class_path: vit.tokens.Target, init_args: {share: 1.7}}\n",
    "vit-images": f"{VIT}  - static: {{budget: {{remove: 0.3}}}}\n"
    "data: {class_path: vit.sources.ImageFolders, init_args: {training: nowhere, test: nowhere}}\noutput: small\n",
    "options-key": "file: ball.ply\noutput: small.sog\nkeeep: 0.5\n",
    "options-value": "file: ball.ply\noutput: small.sog\nkeep: 7.5\n",
}


def write_recipes(folder: Path) -> None:
    """Recipes each of which has one mistake, but for `good.yaml`."""
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
