"""Gaussian splats in glTF: the extension KHR_gaussian_splatting in a .glb, and its drafts of 2025 (read only).

Source: KHR_gaussian_splatting (release candidate, Khronos 2026), sections "Ellipse Kernel" and "Attributes"; the drafts
in pull requests 2490 and 2531 of KhronosGroup/glTF. glTF's axes are x left, y up, z front.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from compress3d.splats.formats import spz
from compress3d.splats.formats.axes import PLY_AXES, reframe, transformed
from compress3d.splats.formats.checked_json import Json
from compress3d.splats.formats.glb import MAGIC, Glb, GlbWriter
from compress3d.splats.formats.quantization import (
    alphas_from_opacities,
    colors_from_sh0,
    log_scales,
    opacities_from_alphas,
    sh0_from_colors,
    to_levels,
)
from compress3d.splats.formats.sanitize import require_valid
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene

_AXES = "LUF"
_EXTENSION = "KHR_gaussian_splatting"
_SPZ_EXTENSIONS = ("KHR_gaussian_splatting_compression_spz_2", "KHR_gaussian_splatting_compression_spz")
_FIRST_DRAFT = "KHR_spz_gaussian_splats_compression"
_KNOWN_EXTENSIONS = {_EXTENSION, *_SPZ_EXTENSIONS, _FIRST_DRAFT, "KHR_mesh_quantization"}

_log = logging.getLogger("secateur")


def matches(path: Path, head: bytes) -> bool:
    """Whether a file that begins with `head` is a GLB, be it of splats or not."""
    return head[:4] == MAGIC


def read(path: Path) -> SplatScene:
    """Read the splats of all primitives of the default scene, with their nodes' transforms, into one scene.

    Harmonics of lower degree than the highest found are filled up with zeros.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not GLB, without splats, damaged, or with an extension that is required and not known here.
    """
    path = Path(path)
    glb = Glb.read(path)
    required = glb.document.get("extensionsRequired")
    for name in required or ():
        if name.text() not in _KNOWN_EXTENSIONS:
            raise ValueError(f"{name.where}: {name.text()!r} is required to read this file, and is not known here")
    scenes: list[SplatScene] = []
    for primitive, matrix in _placed_primitives(glb):
        scene = _decode_primitive(glb, primitive)
        # Nodes may share a mesh, so that a small file could ask for any number of Gaussians.
        if sum(map(len, scenes)) + len(scene) > len(glb.binary):
            raise ValueError(f"{path}: nodes place more Gaussians than the binary chunk has bytes")
        scenes.append(reframe(_placed(scene, matrix), _AXES, PLY_AXES))
    if not scenes:
        raise ValueError(f"{path}: no Gaussian splats, expected a mesh primitive with {_EXTENSION}")
    return _joined(scenes)


def write(scene: SplatScene, path: Path) -> None:
    """Write GLB with float attributes: nothing is lost, and the order is kept.

    Viewers that do not know splats show points in the degree-0 colours (COLOR_0).

    Raises:
        ValueError: the scene has no Gaussians, ones that cannot be rendered, or needs more than 4 GiB.
    """
    path = Path(path)
    if len(scene) == 0:
        raise ValueError(f"{path}: glTF cannot hold a scene without Gaussians")
    require_valid(scene)
    writer = GlbWriter()
    attributes = _add_attributes(writer, reframe(scene, PLY_AXES, _AXES))
    extension = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
        **({"extras": {"antialiased": True}} if scene.antialiased else {}),
    }
    primitive = {"attributes": attributes, "mode": 0, "extensions": {_EXTENSION: extension}}
    document = {
        "asset": {"version": "2.0", "generator": "secateur"},
        "extensionsUsed": [_EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
    }
    writer.write(path, document)


def _coefficient_names(degree: int) -> list[str]:
    return [f"{_EXTENSION}:SH_DEGREE_{l}_COEF_{m}" for l in range(1, degree + 1) for m in range(2 * l + 1)]  # noqa: E741


def _add_attributes(writer: GlbWriter, scene: SplatScene) -> dict[str, int]:
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in scene.tensors().items()}
    alphas = alphas_from_opacities(arrays["opacities"])[:, None]
    colors = np.clip(colors_from_sh0(arrays["sh0"][:, 0]), 0, 1)
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    fallback = to_levels(np.concatenate([linear, alphas], axis=1), 256).astype(np.uint8)
    xyzw = arrays["quats"][:, [1, 2, 3, 0]]
    attributes = {
        "POSITION": writer.add(arrays["means"], bounds=True),
        "COLOR_0": writer.add(fallback),
        f"{_EXTENSION}:ROTATION": writer.add(xyzw / np.linalg.norm(xyzw, axis=1, keepdims=True)),
        f"{_EXTENSION}:SCALE": writer.add(np.exp(arrays["scales"])),
        f"{_EXTENSION}:OPACITY": writer.add(alphas.astype(np.float32)),
        f"{_EXTENSION}:SH_DEGREE_0_COEF_0": writer.add(arrays["sh0"][:, 0]),
    }
    for index, name in enumerate(_coefficient_names(scene.sh_degree)):
        attributes[name] = writer.add(arrays["shN"][:, index])
    return attributes


def _placed_primitives(glb: Glb) -> Iterator[tuple[Json, NDArray[np.float64]]]:
    """The splat primitives of the default scene (of all meshes, if there are no scenes) and their world matrices."""
    document = glb.document
    if document.get("scenes") is None:
        yield from ((primitive, np.eye(4)) for mesh in document["meshes"] for primitive in _splats(mesh))
        return
    nodes = list(document["nodes"])
    default = document.get("scene")
    scene = document["scenes"][0 if default is None else default.integer(0, 2**31)]
    waiting = [(index, np.eye(4)) for index in reversed(list(scene.get("nodes") or ()))]
    seen: set[int] = set()
    while waiting:
        index, parent = waiting.pop()
        number = index.integer(0, len(nodes) - 1)
        if number in seen:
            raise ValueError(f"{index.where}: node {number} is below more than one node")
        seen.add(number)
        with np.errstate(over="ignore", invalid="ignore"):
            matrix = parent @ _local_matrix(nodes[number])
        if not np.isfinite(matrix).all():
            raise ValueError(f"{nodes[number].where}: its transform, with those above it, overflows")
        waiting += [(child, matrix) for child in reversed(list(nodes[number].get("children") or ()))]
        mesh = nodes[number].get("mesh")
        if mesh is not None:
            yield from ((primitive, matrix) for primitive in _splats(document["meshes"][mesh.integer(0, 2**31)]))


def _splats(mesh: Json) -> Iterator[Json]:
    for primitive in mesh["primitives"]:
        extensions = primitive.get("extensions")
        if extensions is not None and {_EXTENSION, _FIRST_DRAFT} & set(extensions.names()):
            yield primitive


def _local_matrix(node: Json) -> NDArray[np.float64]:
    matrix = node.get("matrix")
    if matrix is not None:
        return np.array(matrix.numbers(16)).reshape(4, 4).T
    result = np.eye(4)
    rotation, scale, translation = node.get("rotation"), node.get("scale"), node.get("translation")
    if rotation is not None:
        quat = np.array(rotation.numbers(4))
        if not np.linalg.norm(quat) > 0:
            raise ValueError(f"{rotation.where} must be a unit quaternion, got {quat.tolist()}")
        result[:3, :3] = Rotation.from_quat(quat).as_matrix()
    if scale is not None:
        result[:3, :3] *= np.array(scale.numbers(3))
    if translation is not None:
        result[:3, 3] = translation.numbers(3)
    return result


def _placed(scene: SplatScene, matrix: NDArray[np.float64]) -> SplatScene:
    """The scene under an affine matrix; Gaussians stay Gaussians, and harmonics turn by its rotation."""
    linear = matrix[:3, :3]
    if not np.array_equal(linear, np.eye(3)):
        u, stretches, vt = np.linalg.svd(linear)
        rotated = transformed(scene, u @ vt)
        if stretches[0] - stretches[2] < 1e-6 * stretches[0]:
            size = float(stretches.mean())
            scene = rotated.with_tensors(means=rotated.means * size, scales=rotated.scales + float(np.log(size)))
        else:
            scene = _sheared(scene, linear).with_tensors(shN=rotated.shN)
    translation = torch.from_numpy(matrix[:3, 3].astype(np.float32))
    return scene.with_tensors(means=scene.means + translation)


def _sheared(scene: SplatScene, linear: NDArray[np.float64]) -> SplatScene:
    quats = scene.quats.double().numpy()
    quats = np.where(np.abs(quats).sum(axis=1, keepdims=True) > 0, quats, np.array([1.0, 0, 0, 0]))
    axes = Rotation.from_quat(quats, scalar_first=True).as_matrix() * np.exp(scene.scales.double().numpy())[:, None]
    turned, lengths, _ = np.linalg.svd(np.nan_to_num(linear @ axes))
    turned[:, :, 2] *= np.linalg.det(turned)[:, None]
    return scene.with_tensors(
        means=scene.means @ torch.from_numpy(linear.T.astype(np.float32)),
        quats=torch.from_numpy(Rotation.from_matrix(turned).as_quat(scalar_first=True).astype(np.float32)),
        scales=torch.from_numpy(log_scales(lengths.astype(np.float32))),
    )


def _decode_primitive(glb: Glb, primitive: Json) -> SplatScene:
    """The scene of a primitive in glTF's axes."""
    extensions = primitive["extensions"]
    extension = extensions.get(_EXTENSION)
    nested = None if extension is None else extension.get("extensions")
    for holder, names in ((nested, _SPZ_EXTENSIONS), (extensions, (_FIRST_DRAFT,))):
        for name in names:
            packed = None if holder is None else holder.get(name)
            if packed is not None:
                data, _ = glb.view(packed["bufferView"])
                return reframe(spz.decode(data, Path(f"{glb.path}: {packed.keys}")), PLY_AXES, _AXES)
    assert extension is not None
    for field, usual in (("kernel", "ellipse"), ("colorSpace", "srgb_rec709_display")):
        found = extension.get(field)
        if found is not None and found.value != usual:
            _log.warning("%s is %r, read as %r", found.where, found.value, usual)
    return _decode_attributes(glb, primitive["attributes"], extension)


def _decode_attributes(glb: Glb, attributes: Json, extension: Json) -> SplatScene:
    names = set(attributes.names())
    # Drafts called the attributes _ROTATION and _SCALE, and kept the colour and the opacity in COLOR_0.
    prefix = f"{_EXTENSION}:" if f"{_EXTENSION}:ROTATION" in names else "_"
    means = glb.accessor(attributes["POSITION"], 3)
    xyzw = glb.accessor(attributes[f"{prefix}ROTATION"], 4)
    scales = glb.accessor(attributes[f"{prefix}SCALE"], 3)
    if f"{_EXTENSION}:SH_DEGREE_0_COEF_0" in names:
        sh0 = glb.accessor(attributes[f"{_EXTENSION}:SH_DEGREE_0_COEF_0"], 3)
        alphas = glb.accessor(attributes[f"{_EXTENSION}:OPACITY"], 1)[:, 0]
    else:
        colors = glb.accessor(attributes["COLOR_0"], 4)
        sh0, alphas = sh0_from_colors(colors[:, :3]), colors[:, 3]
    shN = [glb.accessor(attributes[name], 3) for name in _present_coefficients(attributes, names, prefix)]
    count = len(means)
    for array in (xyzw, scales, sh0, alphas, *shN):
        if len(array) != count:
            raise ValueError(f"{attributes.where}: POSITION has {count} entries, another attribute has {len(array)}")
    extras = extension.get("extras")
    antialiased = None if extras is None else extras.get("antialiased")
    return SplatScene(
        means=torch.from_numpy(means),
        quats=torch.from_numpy(xyzw[:, [3, 0, 1, 2]]),
        scales=torch.from_numpy(log_scales(scales)),
        opacities=torch.from_numpy(opacities_from_alphas(alphas)),
        sh0=torch.from_numpy(sh0[:, None]),
        shN=torch.from_numpy(_stacked(shN, count)),
        antialiased=antialiased is not None and antialiased.value is True,
    )


def _present_coefficients(attributes: Json, names: set[str], prefix: str) -> list[str]:
    """The harmonics' attributes, degree by degree, each degree complete."""
    draft = {name: name.replace(f"{_EXTENSION}:", prefix) for name in _coefficient_names(3)}
    wanted = [found if found in names else name for name, found in draft.items()]
    present = sum(name in names for name in wanted)
    if present not in SH_COEFFICIENTS.values() or not all(name in names for name in wanted[:present]):
        raise ValueError(
            f"{attributes.where} has {present} coefficients of harmonics, whole degrees have 0, 3, 8 or 15"
        )
    return wanted[:present]


def _stacked(coefficients: list[Float32[np.ndarray, "N 3"]], count: int) -> Float32[np.ndarray, "N K 3"]:
    return np.stack(coefficients, axis=1) if coefficients else np.zeros((count, 0, 3), np.float32)


def _joined(scenes: list[SplatScene]) -> SplatScene:
    degree = max(scene.sh_degree for scene in scenes)
    scenes = [scene.with_sh_degree(degree) for scene in scenes]
    if len(scenes) == 1:
        return scenes[0]
    antialiased = any(scene.antialiased for scene in scenes)
    tensors = [scene.tensors() for scene in scenes]
    joined = {name: torch.cat([each[name] for each in tensors]) for name in tensors[0]}
    return SplatScene(**joined, antialiased=antialiased)
