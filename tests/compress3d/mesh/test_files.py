"""Meshes on disk: what is written reads back, polygons become triangles, and hostile files are refused in time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress3d.mesh.connectivity import Connectivity
from compress3d.mesh.files import read_mesh, write_mesh
from compress3d.mesh.mesh import Mesh
from compress3d.mesh.shapes import icosphere, torus
from tests.contracts import assert_round_trip, assert_same

HEADER = """ply
format {form} 1.0
element vertex {vertices}
property float x
property float y
property float z
element face {faces}
property list uchar int vertex_indices
end_header
"""
CORNERS = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n"


def ascii_ply(path: Path, vertices: str, faces: str, declared: dict[str, int] | None = None) -> Path:
    counts = {"vertices": len(vertices.splitlines()), "faces": len(faces.splitlines())} | (declared or {})
    path.write_text(HEADER.format(form="ascii", **counts) + vertices + faces)
    return path


def needs_open3d() -> None:
    pytest.importorskip("open3d", reason="open3d is not installed", exc_type=ImportError)


def test_a_ply_reads_back_bit_for_bit(tmp_path: Path) -> None:
    mesh = torus(around=12, across=6)
    assert_round_trip(
        lambda path: write_mesh(mesh, path),
        lambda path: (read_mesh(path).vertices, read_mesh(path).faces),
        (mesh.vertices, mesh.faces),
        tmp_path / "torus.ply",
    )


@pytest.mark.parametrize("suffix", [".obj", ".stl"])
def test_other_formats_keep_the_surface(tmp_path: Path, suffix: str) -> None:
    needs_open3d()
    mesh = torus(around=12, across=6)
    write_mesh(mesh, tmp_path / f"torus{suffix}")
    again = read_mesh(tmp_path / f"torus{suffix}")
    assert len(again) == len(mesh) and Connectivity.of(again).genus == 1
    middles = [each.vertices[each.faces].mean(dim=1) for each in (mesh, again)]
    assert float(torch.cdist(*middles, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1).max()) < 1e-4


def test_polygons_become_fans_of_triangles(tmp_path: Path) -> None:
    mesh = read_mesh(ascii_ply(tmp_path / "a.ply", CORNERS, "4 0 1 2 3\n3 0 1 2\n"))
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2]]
    assert_same(mesh.vertices, torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]))


@pytest.mark.parametrize(
    ("vertices", "faces", "declared", "words"),
    [
        (CORNERS.replace("1 1 0", "nan 1 0"), "3 0 1 2\n", {}, "1 of 4 vertices are not finite"),
        (CORNERS, "3 0 1 9\n3 0 1 -2\n", {}, "2 of 2 faces name vertices beyond the 4"),
        (CORNERS, "4 0 1 2 1000000\n", {}, "1 of 2 faces name"),
        (CORNERS, "2 0 1\n", {}, "1 of 1 faces have fewer than three corners"),
        (CORNERS, "3 0 1 2\n", {"faces": 10**12}, "declares 1000000000000 rows"),
        (CORNERS, "3 0 1 2\n", {"vertices": 10**12}, "declares 1000000000000 rows"),
        (CORNERS, "3 0 1\n", {}, "damaged PLY"),
        (CORNERS, "3 0 one 2\n", {}, "damaged PLY"),
    ],
)
def test_damaged_ply_is_refused_with_what_is_wrong(
    tmp_path: Path, vertices: str, faces: str, declared: dict[str, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_mesh(ascii_ply(tmp_path / "bad.ply", vertices, faces, declared))
    assert "bad.ply" in str(caught.value)


def test_a_binary_list_that_runs_out_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.ply"
    write_mesh(icosphere(1), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"cut\.ply"):
        read_mesh(path)
    start = whole.index(b"end_header\n") + 11 + 12 * 42
    path.write_bytes(whole[:start] + b"\xff" + whole[start + 1 :])
    with pytest.raises(ValueError, match=r"cut\.ply"):
        read_mesh(path)


@pytest.mark.parametrize("suffix", [".ply", ".stl", ".obj"])
def test_bytes_that_changed_on_the_way_give_a_mesh_or_a_reason(tmp_path: Path, suffix: str) -> None:
    needs_open3d()
    path = tmp_path / f"worn{suffix}"
    write_mesh(torus(around=6, across=4), path)
    whole, generator = path.read_bytes(), torch.Generator().manual_seed(0)
    for _ in range(60):
        worn = bytearray(whole)
        for place in torch.randint(len(worn), (4,), generator=generator).tolist():
            worn[place] = int(torch.randint(256, (1,), generator=generator))
        length = (
            len(worn)
            if torch.rand(1, generator=generator) < 0.7
            else int(len(worn) * float(torch.rand(1, generator=generator)))
        )
        path.write_bytes(worn[:length])
        try:
            assert len(read_mesh(path)) >= 0
        except ValueError as error:
            assert path.name in str(error)


@pytest.mark.parametrize("content", [b"", b"solid nothing\nendsolid", b"v 1 2\nf 1 2 3", b"\x00" * 80 + b"\xff" * 4])
@pytest.mark.parametrize("suffix", [".obj", ".stl", ".ply"])
def test_what_is_no_mesh_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    needs_open3d()
    path = tmp_path / f"strange{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="strange"):
        read_mesh(path)


def test_names_that_no_format_has_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.ply: no such file"):
        read_mesh(tmp_path / "gone.ply")
    with pytest.raises(ValueError, match=r"known are \.ply, \.obj, \.stl"):
        write_mesh(icosphere(0), tmp_path / "a.glb")
    with pytest.raises(ValueError, match="infinite"):
        write_mesh(Mesh(torch.full((3, 3), torch.inf), torch.tensor([[0, 1, 2]])), tmp_path / "a.ply")
