from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch

from compress3d.splats.formats import ply, read_scene
from compress3d.splats.formats.quantization import FLAT_LOG_SCALE
from compress3d.splats.scene import SplatScene

BASE = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
BASE += ["rot_0", "rot_1", "rot_2", "rot_3"]


def assert_same(left: SplatScene, right: SplatScene) -> None:
    for name, tensor in left.tensors().items():
        assert torch.equal(tensor, right.tensors()[name]), name
    assert left.antialiased == right.antialiased


def table(scene: SplatScene) -> dict[str, np.ndarray]:
    """Column name -> values, from the layout's definition."""
    rest = scene.shN.permute(0, 2, 1).reshape(len(scene), -1)
    columns = {name: scene.means[:, i] for i, name in enumerate("xyz")}
    columns |= {f"f_dc_{i}": scene.sh0[:, 0, i] for i in range(3)}
    columns |= {f"f_rest_{i}": rest[:, i] for i in range(rest.shape[1])}
    columns |= {"opacity": scene.opacities} | {f"scale_{i}": scene.scales[:, i] for i in range(3)}
    columns |= {f"rot_{i}": scene.quats[:, i] for i in range(4)}
    return {name: column.numpy() for name, column in columns.items()}


def write_table(path: Path, columns: dict[str, np.ndarray], form: str = "<", **options: object) -> None:
    """Write with plyfile, an independent writer; `form` is "ascii", "<" or ">"."""
    rows = np.empty(len(next(iter(columns.values()))), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        rows[name] = column
    elements = [*options.pop("before", []), plyfile.PlyElement.describe(rows, "vertex"), *options.pop("after", [])]
    ascii_text = form == "ascii"
    plyfile.PlyData(elements, text=ascii_text, byte_order="=" if ascii_text else form, **options).write(path)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("antialiased", [False, True])
def test_round_trip_is_bit_for_bit(tmp_path, make_scene, degree, antialiased):
    scene = make_scene(300, degree)
    scene.antialiased = antialiased
    ply.write(scene, tmp_path / "a.ply")
    assert_same(ply.read(tmp_path / "a.ply"), scene)


def test_an_empty_scene_round_trips(tmp_path, make_scene):
    ply.write(make_scene(0), tmp_path / "a.ply")
    assert len(ply.read(tmp_path / "a.ply")) == 0


def test_bytes_are_those_of_the_inria_layout(tmp_path, make_scene):
    scene = make_scene(2, 1)
    ply.write(scene, tmp_path / "a.ply")
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"] + [f"f_rest_{i}" for i in range(9)]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 2\n"
    header += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    columns = table(scene)
    body = b""
    for row in range(2):
        body += b"".join(struct.pack("<f", columns[name][row] if name in columns else 0) for name in names)
    assert (tmp_path / "a.ply").read_bytes() == header.encode() + body


def test_f_rest_is_channel_major(tmp_path, make_scene):
    columns = table(make_scene(1))
    columns |= {f"f_rest_{i}": np.array([i], "f4") for i in range(24)}
    write_table(tmp_path / "a.ply", columns)
    assert ply.read(tmp_path / "a.ply").shN[0].tolist() == [[j, 8 + j, 16 + j] for j in range(8)]


@pytest.mark.parametrize("form", ["<", ">", "ascii"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_any_number_format_and_property_order(tmp_path, make_scene, form, dtype):
    scene = make_scene(50, 2)
    columns = {name: column.astype(dtype) for name, column in table(scene).items()}
    columns |= {"red": np.arange(50, dtype="u1"), "label": np.arange(50, dtype="i4")}
    shuffled = dict(sorted(columns.items(), key=lambda item: item[0][::-1]))
    write_table(tmp_path / "a.ply", shuffled, form)
    assert_same(ply.read(tmp_path / "a.ply"), scene)


@pytest.mark.parametrize("form", ["<", ">", "ascii"])
def test_other_elements_before_and_after_are_skipped(tmp_path, make_scene, form):
    scene = make_scene(5000)
    cameras = plyfile.PlyElement.describe(np.array([(1, 2.0), (3, 4.0)], [("id", "i4"), ("focal", "f8")]), "camera")
    lights = plyfile.PlyElement.describe(np.array([(5, 6.0)], [("id", "u1"), ("power", "f4")]), "light")
    faces = np.empty(3, [("vertex_indices", "O"), ("flag", "u1")])
    faces["vertex_indices"], faces["flag"] = [np.array([0, 1, 2], "i4"), np.array([], "i4"), np.array([4], "i4")], 7
    faces = plyfile.PlyElement.describe(faces, "face", len_types={"vertex_indices": "u1"})
    write_table(tmp_path / "a.ply", table(scene), form, before=[cameras, faces], after=[lights])
    assert_same(ply.read(tmp_path / "a.ply"), scene)


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_header_with_other_line_ends(tmp_path, make_scene, newline):
    scene = make_scene(3)
    ply.write(scene, tmp_path / "a.ply")
    head, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    (tmp_path / "a.ply").write_bytes((head + b"end_header\n").replace(b"\n", newline.encode()) + body)
    assert_same(ply.read(tmp_path / "a.ply"), scene)


def test_of_properties_that_share_a_name_the_first_counts(tmp_path, make_scene):
    names = [*BASE, "opacity"]
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 1\n"
    header += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    (tmp_path / "a.ply").write_bytes(header.encode() + struct.pack("<15f", *range(15)))
    assert ply.read(tmp_path / "a.ply").opacities.tolist() == [6.0]


def test_without_scale_2_the_third_axis_is_flat(tmp_path, make_scene):
    scene = make_scene(4)
    columns = table(scene)
    del columns["scale_2"]
    write_table(tmp_path / "a.ply", columns)
    read = ply.read(tmp_path / "a.ply")
    assert torch.equal(read.scales[:, :2], scene.scales[:, :2])
    assert torch.equal(read.scales[:, 2], torch.full((4,), FLAT_LOG_SCALE))


@pytest.mark.parametrize(
    ("comments", "expected"),
    [
        ([], False),
        (["SplatRenderMode: mip"], True),
        (["splatrendermode:  MIP"], True),
        (["SplatRenderMode: default"], False),
        (["antialiased 1"], True),
        (["antialiased 0"], False),
        (["SplatRenderMode: mip", "made by hand", "antialiased 0"], False),
        (["this is not antialiased 1"], False),
    ],
)
def test_antialiased_comments(tmp_path, make_scene, comments, expected):
    write_table(tmp_path / "a.ply", table(make_scene(1)), comments=comments)
    assert ply.read(tmp_path / "a.ply").antialiased is expected


def test_mip_filter_is_folded_into_scales_and_opacities(tmp_path, make_scene):
    scene = make_scene(20)
    filters = np.linspace(0, 0.5, 20, dtype="f4")
    write_table(tmp_path / "a.ply", table(scene) | {"filter_3D": filters})
    read = ply.read(tmp_path / "a.ply")
    variances = scene.scales.double().exp() ** 2
    widened = variances + torch.from_numpy(filters).double()[:, None] ** 2
    opacities = torch.sigmoid(scene.opacities.double()) * (variances.prod(1) / widened.prod(1)).sqrt()
    torch.testing.assert_close(read.scales.double().exp(), widened.sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.sigmoid(read.opacities.double()), opacities, rtol=1e-5, atol=1e-30)
    assert read.antialiased
    assert torch.equal(read.opacities[0], scene.opacities[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda columns: columns.pop("rot_3"), "no property rot_3"),
        (lambda columns: columns.update(f_rest_0=columns["x"]), "1 f_rest properties; expected 0, 9, 24 or 45"),
        (lambda columns: columns.update(f_dc_1=columns["x"].astype("u1")), "'f_dc_1' holds integers"),
    ],
)
def test_other_schemas_are_refused_by_name(tmp_path, make_scene, change, message):
    columns = table(make_scene(3))
    change(columns)
    write_table(tmp_path / "a.ply", columns)
    with pytest.raises(ValueError, match=message) as caught:
        ply.read(tmp_path / "a.ply")
    assert "a.ply" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"ply\n", b"plx\n", "not a PLY file"),
        (b"end_header", b"end_haeder", "no line 'end_header'"),
        (b"format binary_little_endian 1.0\n", b"", "no format line"),
        (b"binary_little_endian 1.0", b"binary_little_endian 2.0", "cannot understand the line 'format"),
        (b"element vertex 3", b"element vertex 4", "'vertex' declares 4 rows of at least 68 bytes, but 204 bytes"),
        (b"element vertex 3", b"element vertex 99999999999", "declares 99999999999 rows"),
        (b"element vertex 3", b"element vertex -3", "cannot understand the line 'element vertex -3'"),
        (b"element vertex 3", b"element vertex 1_0", "cannot understand the line 'element vertex 1_0'"),
        (b"element vertex 3", b"element vortex 3", "no element 'vertex' in the PLY header; it declares vortex"),
        (b"float x", b"flaot x", "cannot understand the line 'property flaot x'"),
        (b"float nx", b"list uchar float nx", "list properties \\(nx\\)"),
    ],
)
def test_headers_that_are_wrong(tmp_path, make_scene, old, new, message):
    ply.write(make_scene(3), tmp_path / "a.ply")
    content = (tmp_path / "a.ply").read_bytes()
    assert old in content
    (tmp_path / "a.ply").write_bytes(content.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        ply.read(tmp_path / "a.ply")
    assert "a.ply" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("\n1 ", "\nfive ", "could not convert"), ("\n1 1 1 ", "\n10000 ", "number of columns")],
)
def test_ascii_rows_that_are_wrong(tmp_path, old, new, message):
    write_table(tmp_path / "a.ply", {name: np.ones(3, "f4") for name in BASE}, "ascii")
    text = (tmp_path / "a.ply").read_text()
    (tmp_path / "a.ply").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        ply.read(tmp_path / "a.ply")
    assert "a.ply" in str(caught.value)


def test_a_header_without_an_end_is_not_read_on_and_on(tmp_path):
    (tmp_path / "a.ply").write_bytes(b"ply\n" + b"comment filler\n" * 20000)
    with pytest.raises(ValueError, match="no line 'end_header' in the first 65536 bytes"):
        ply.read(tmp_path / "a.ply")


def test_a_failed_write_leaves_the_old_file(tmp_path, make_scene, monkeypatch):
    ply.write(make_scene(3), tmp_path / "a.ply")
    before = (tmp_path / "a.ply").read_bytes()

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ply, "_columns", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ply.write(make_scene(4), tmp_path / "a.ply")
    assert (tmp_path / "a.ply").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ply"]


def test_reading_holds_little_more_than_the_scene(tmp_path, make_scene):
    import tracemalloc

    scene = make_scene(40_000, 3)
    ply.write(scene, tmp_path / "a.ply")
    tracemalloc.start()
    try:
        ply.read(tmp_path / "a.ply")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * scene.bytes_per_gaussian * len(scene)


def test_tensors_that_need_gradients_can_be_written(tmp_path, make_scene):
    scene = make_scene(3)
    ply.write(scene.with_tensors(means=scene.means.clone().requires_grad_()), tmp_path / "a.ply")
    assert torch.equal(read_scene(tmp_path / "a.ply").means, scene.means)
