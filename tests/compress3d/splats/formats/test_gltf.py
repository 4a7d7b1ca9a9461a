"""KHR_gaussian_splatting against files built by hand, nodes that move splats, the drafts of 2025, and bad files."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from compress3d.splats.formats import gltf, spz
from compress3d.splats.formats.axes import reframe, transformed
from compress3d.splats.scene import SplatScene

MakeScene = Callable[..., SplatScene]
NAME = "KHR_gaussian_splatting"


def glb(document: dict[str, Any], binary: bytes) -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def document_of(arrays: dict[str, tuple[np.ndarray, dict[str, Any]]], **more: Any) -> tuple[dict[str, Any], bytes]:
    """A primitive with one attribute for each array; the dictionary beside it goes into the accessor."""
    components = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "f4": 5126}
    types = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
    document: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "buffers": [{"byteLength": 0}],
        "bufferViews": [],
        "accessors": [],
        "meshes": [{"primitives": [{"mode": 0, "attributes": {}, "extensions": {NAME: {"kernel": "ellipse"}}}]}],
        **more,
    }
    binary = b""
    for index, (name, (array, accessor)) in enumerate(arrays.items()):
        document["meshes"][0]["primitives"][0]["attributes"][name] = index
        view = {"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes}
        document["bufferViews"].append(view)
        kind = {"componentType": components[array.dtype.str[1:]], "type": types[array.shape[1]], "count": len(array)}
        document["accessors"].append({"bufferView": index, **kind, **accessor})
        binary += array.tobytes() + b"\0" * (-array.nbytes % 4)
    document["buffers"][0]["byteLength"] = len(binary)
    return document, binary


def small_arrays() -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Two Gaussians of degree 1, with each kind of number that the extension allows."""
    floats = np.arange(24, dtype=np.float32).reshape(4, 2, 3) / 10
    return {
        "POSITION": (np.array([[1, 2, 3], [4, 5, 6]], np.float32), {}),
        f"{NAME}:ROTATION": (np.array([[0, 0, 127, 0], [0, 0, 0, 127]], np.int8), {"normalized": True}),
        f"{NAME}:SCALE": (np.array([[1, 2, 3], [0, 5, 6]], np.uint16), {}),
        f"{NAME}:OPACITY": (np.array([[51], [255]], np.uint8), {"normalized": True}),
        f"{NAME}:SH_DEGREE_0_COEF_0": (floats[0], {}),
        **{f"{NAME}:SH_DEGREE_1_COEF_{m}": (floats[m + 1], {}) for m in range(3)},
    }


def read(path: Path, document: dict[str, Any], binary: bytes) -> SplatScene:
    path.write_bytes(glb(document, binary))
    return gltf.read(path)


def test_reads_a_file_built_by_hand(tmp_path: Path) -> None:
    scene = read(tmp_path / "a.glb", *document_of(small_arrays()))
    assert scene.means.tolist() == [[-1, -2, 3], [-4, -5, 6]]
    # Half a turn about z stays one about z when x and y are mirrored together.
    torch.testing.assert_close(scene.quats, torch.tensor([[0.0, 0, 0, 1], [1, 0, 0, 0]]))
    torch.testing.assert_close(scene.scales[0], torch.tensor([0.0, math.log(2), math.log(3)]))
    assert math.isfinite(scene.scales[1, 0]) and scene.scales[1, 0] < -10
    torch.testing.assert_close(torch.sigmoid(scene.opacities), torch.tensor([0.2, 1.0]))
    torch.testing.assert_close(scene.sh0, torch.tensor([[[0.0, 0.1, 0.2]], [[0.3, 0.4, 0.5]]]))
    # Of the three harmonics (y, z, x) of degree 1, those along the mirrored axes change sign.
    torch.testing.assert_close(scene.shN[1], torch.tensor([[-0.9, -1.0, -1.1], [1.5, 1.6, 1.7], [-2.1, -2.2, -2.3]]))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 300])
def test_round_trip_loses_nothing(tmp_path: Path, make_scene: MakeScene, count: int, degree: int) -> None:
    scene = make_scene(count, degree)
    scene.antialiased = degree == 1
    gltf.write(scene, tmp_path / "scene.glb")
    back = gltf.read(tmp_path / "scene.glb")
    assert back.antialiased == scene.antialiased
    for name in ("means", "sh0", "shN"):
        assert torch.equal(back.tensors()[name], scene.tensors()[name]), name
    torch.testing.assert_close(back.scales, scene.scales, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back.opacities, scene.opacities, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(back.quats, torch.nn.functional.normalize(scene.quats, dim=1))


def test_a_file_is_what_the_specification_asks(tmp_path: Path, make_scene: MakeScene) -> None:
    scene = make_scene(6, 2)
    gltf.write(scene, tmp_path / "scene.glb")
    data = (tmp_path / "scene.glb").read_bytes()
    assert struct.unpack_from("<4sII", data) == (b"glTF", 2, len(data)) and len(data) % 4 == 0
    (size,) = struct.unpack_from("<I", data, 12)
    document = json.loads(data[20 : 20 + size])
    binary = data[28 + size :]
    assert document["extensionsUsed"] == [NAME] and document["buffers"] == [{"byteLength": len(binary)}]
    (primitive,) = document["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    assert {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}.items() <= primitive["extensions"][NAME].items()
    harmonics = [f"{NAME}:SH_DEGREE_{d}_COEF_{m}" for d in range(3) for m in range(2 * d + 1)]
    others = [f"{NAME}:ROTATION", f"{NAME}:SCALE", f"{NAME}:OPACITY"]
    assert set(primitive["attributes"]) == {"POSITION", "COLOR_0", *others, *harmonics}
    position = document["accessors"][primitive["attributes"]["POSITION"]]
    assert position["min"] == (scene.means * torch.tensor([-1, -1, 1])).amin(0).tolist()
    view = document["bufferViews"][position["bufferView"]]
    stored = np.frombuffer(binary, "<f4", 18, view["byteOffset"]).reshape(6, 3)
    np.testing.assert_array_equal(stored, scene.means.numpy() * [-1, -1, 1])
    for view in document["bufferViews"]:
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] + view["byteLength"] <= len(binary)


def test_interleaved_attributes(tmp_path: Path) -> None:
    document, binary = document_of(small_arrays())
    plain = read(tmp_path / "a.glb", document, binary)
    start = document["bufferViews"][4]["byteOffset"]
    floats = np.frombuffer(binary, "<f4", offset=start).reshape(4, 2, 3).transpose(1, 0, 2)
    document["bufferViews"][4] = {"buffer": 0, "byteOffset": start, "byteLength": 96, "byteStride": 48}
    for index in range(4, 8):
        document["accessors"][index].update(bufferView=4, byteOffset=12 * (index - 4))
    mixed = read(tmp_path / "b.glb", document, binary[:start] + floats.tobytes())
    assert torch.equal(mixed.sh0, plain.sh0) and torch.equal(mixed.shN, plain.shN)


def stored_document(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (size,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def covariances(scene: SplatScene) -> np.ndarray:
    axes = Rotation.from_quat(scene.quats.double().numpy(), scalar_first=True).as_matrix()
    axes = axes * np.exp(scene.scales.double().numpy())[:, None]
    return axes @ axes.transpose(0, 2, 1)


@pytest.mark.parametrize("stretch", [[2.0, 2.0, 2.0], [1.0, 3.0, 0.5]])
def test_nodes_move_turn_and_stretch_splats(tmp_path: Path, make_scene: MakeScene, stretch: list[float]) -> None:
    scene = make_scene(20, 2)
    gltf.write(scene, tmp_path / "plain.glb")
    document, binary = stored_document(tmp_path / "plain.glb")
    turn = Rotation.from_euler("xyz", [0.4, -1.0, 0.2])
    outer = np.eye(4)
    outer[:3, 3] = [1, 2, 3]
    document["nodes"] = [
        {"children": [1], "matrix": outer.T.ravel().tolist()},
        {"mesh": 0, "rotation": turn.as_quat().tolist(), "scale": stretch, "translation": [0, 0, 5]},
    ]
    moved = reframe(read(tmp_path / "moved.glb", document, binary), "RDF", "LUF")
    stored = reframe(scene, "RDF", "LUF")
    linear = turn.as_matrix() * stretch
    np.testing.assert_allclose(moved.means, stored.means.numpy() @ linear.T + [1, 2, 8], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(covariances(moved), linear @ covariances(stored) @ linear.T, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved.shN, transformed(stored, turn.as_matrix()).shN, rtol=1e-4, atol=1e-5)


def test_several_primitives_become_one_scene(tmp_path: Path) -> None:
    document, binary = document_of(small_arrays())
    (first,) = document["meshes"][0]["primitives"]
    second = copy.deepcopy(first)
    for name in [name for name in second["attributes"] if "SH_DEGREE_1" in name]:
        del second["attributes"][name]
    document["meshes"].append({"primitives": [second, {"mode": 4, "attributes": {"POSITION": 0}}]})
    document["nodes"] = [{"mesh": 0}, {"mesh": 1, "translation": [0, 0, 10]}]
    document["scenes"] = [{"nodes": [0, 1]}]
    scene = read(tmp_path / "a.glb", document, binary)
    assert scene.means[:, 2].tolist() == [3, 6, 13, 16] and scene.sh_degree == 1
    assert not scene.shN[2:].any() and scene.shN[:2].any()


def test_reads_the_first_drafts_attributes(tmp_path: Path) -> None:
    arrays = small_arrays()
    draft = {
        "POSITION": arrays["POSITION"],
        "COLOR_0": (np.array([[255, 0, 51, 51], [0, 0, 0, 255]], np.uint8), {"normalized": True}),
        "_ROTATION": arrays[f"{NAME}:ROTATION"],
        "_SCALE": arrays[f"{NAME}:SCALE"],
        **{f"_SH_DEGREE_1_COEF_{m}": arrays[f"{NAME}:SH_DEGREE_1_COEF_{m}"] for m in range(3)},
    }
    new, old = (read(tmp_path / "a.glb", *document_of(each)) for each in (arrays, draft))
    for name in ("means", "quats", "scales", "shN", "opacities"):
        assert torch.equal(old.tensors()[name], new.tensors()[name]), name
    colors = 0.5 + 0.28209479177387814 * old.sh0[0, 0]
    torch.testing.assert_close(colors, torch.tensor([1.0, 0.0, 0.2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "name", ["KHR_gaussian_splatting_compression_spz_2", "KHR_gaussian_splatting_compression_spz", "draft"]
)
def test_reads_spz_inside_glb(tmp_path: Path, make_scene: MakeScene, name: str, version: int) -> None:
    spz.write(make_scene(20, 1), tmp_path / "scene.spz", version=version)
    data = (tmp_path / "scene.spz").read_bytes()
    document, _ = document_of({}, bufferViews=[{"buffer": 0, "byteLength": len(data)}])
    nested = {NAME: {"extensions": {name: {"bufferView": 0}}}}
    first = {"KHR_spz_gaussian_splats_compression": {"bufferView": 0}}
    document["meshes"][0]["primitives"][0]["extensions"] = first if name == "draft" else nested
    document["extensionsRequired"] = [NAME]
    scene = read(tmp_path / "a.glb", document, data)
    plain = spz.read(tmp_path / "scene.spz")
    for key, tensor in plain.tensors().items():
        assert torch.equal(scene.tensors()[key], tensor), key


def bad_files() -> dict[str, tuple[Callable[[dict[str, Any]], object], str]]:
    def attributes(document: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = document["meshes"][0]["primitives"][0]["attributes"]
        return found

    return {
        "no splats": (lambda d: d["meshes"][0]["primitives"][0].pop("extensions"), "no Gaussian splats"),
        "no rotation": (lambda d: attributes(d).pop(f"{NAME}:ROTATION"), "attributes._ROTATION is missing"),
        "half a degree": (lambda d: attributes(d).pop(f"{NAME}:SH_DEGREE_1_COEF_2"), "2 coefficients of harmonics"),
        "a hole in a degree": (lambda d: attributes(d).pop(f"{NAME}:SH_DEGREE_1_COEF_0"), "2 coefficients"),
        "count": (lambda d: d["accessors"][0].update(count=2**30), r"accessors\[0\].count is 1073741824"),
        "count 0": (lambda d: d["accessors"][0].update(count=0), r"accessors\[0\].count must be a whole number"),
        "unequal counts": (lambda d: d["accessors"][0].update(count=1), "POSITION has 1 entries, another"),
        "type": (lambda d: d["accessors"][1].update(type="VEC3"), "type is 'VEC3'"),
        "component": (lambda d: d["accessors"][1].update(componentType=7), "componentType is 7"),
        "sparse": (lambda d: d["accessors"][1].update(sparse={}), "is sparse"),
        "no view": (lambda d: d["accessors"][1].pop("bufferView"), r"accessors\[1\].bufferView is missing"),
        "view beyond": (lambda d: d["bufferViews"][1].update(byteOffset=140), "the binary chunk has"),
        "outside buffer": (lambda d: d["buffers"][0].update(uri="x.bin"), "other buffers are not read"),
        "view index": (lambda d: d["accessors"][0].update(bufferView=99), "must be a whole number from 0 to 7"),
        "required": (lambda d: d.update(extensionsRequired=["EXT_x"]), "'EXT_x' is required"),
        "cycle": (lambda d: d["nodes"][0].update(children=[0]), "node 0 is below more than one"),
        "mesh index": (lambda d: d["nodes"][0].update(mesh=3), r"meshes\[3\] is missing"),
        "matrix": (lambda d: d["nodes"][0].update(matrix=[1, 2]), "must have 16 numbers"),
        "rotation": (lambda d: d["nodes"][0].update(rotation=[0, 0, 0, 0]), "must be a unit quaternion"),
        "overflow": (
            lambda d: d.update(
                nodes=[*({"scale": [1e38] * 3, "children": [i + 1]} for i in range(9)), {"mesh": 0}],
            ),
            "overflows",
        ),
        "instances": (
            lambda d: d.update(nodes=[{"mesh": 0}] * 999, scenes=[{"nodes": list(range(999))}]),
            "place more Gaussians than",
        ),
    }


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_document_is_one_clear_error(tmp_path: Path, name: str) -> None:
    document, binary = document_of(small_arrays())
    change, message = bad_files()[name]
    change(document)
    with pytest.raises(ValueError, match=f"bad.glb: .*{message}"):
        read(tmp_path / "bad.glb", document, binary)


def test_a_bad_container_is_one_clear_error(tmp_path: Path) -> None:
    good = glb(*document_of(small_arrays()))
    for data, message in (
        (b"", "not GLB"),
        (b"glTF" + struct.pack("<II", 1, 12), "version is 1"),
        (good[:-8], "length in the header"),
        (good[:12] + struct.pack("<I", 2**31) + good[16:], "chunk b'JSON' declares"),
        (good[:16] + b"XXXX" + good[20:], "no JSON chunk"),
        (good[:20] + b"?" + good[21:], "JSON chunk: not JSON"),
    ):
        (tmp_path / "bad.glb").write_bytes(data)
        with pytest.raises(ValueError, match=f"bad.glb: .*{message}"):
            gltf.read(tmp_path / "bad.glb")


def test_other_kernels_and_colour_spaces_are_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document, binary = document_of(small_arrays())
    document["meshes"][0]["primitives"][0]["extensions"][NAME]["colorSpace"] = "lin_rec709_display"
    assert len(read(tmp_path / "a.glb", document, binary)) == 2
    assert "lin_rec709_display" in caplog.text


def test_scenes_that_cannot_be_written_leave_nothing(tmp_path: Path, make_scene: MakeScene) -> None:
    scene = make_scene(3)
    with pytest.raises(ValueError, match="without Gaussians"):
        gltf.write(make_scene(0), tmp_path / "scene.glb")
    with pytest.raises(ValueError, match="3 with a NaN opacity"):
        gltf.write(scene.with_tensors(opacities=torch.full((3,), math.nan)), tmp_path / "scene.glb")
    assert not list(tmp_path.iterdir())


def test_matches() -> None:
    assert gltf.matches(Path("a.glb"), b"glTF\x02\0\0\0") and not gltf.matches(Path("a.glb"), b"ply\n")
