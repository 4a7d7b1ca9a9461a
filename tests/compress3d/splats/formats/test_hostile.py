"""Broken and malicious files, for every reader: a scene or one clear ValueError, and no memory for a lying header."""

from __future__ import annotations

import functools
import importlib
import io
import json
import re
import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from compress3d.splats.formats import read_scene, write_scene
from compress3d.splats.scene import SplatScene
from tests.compress3d.splats.formats.conftest import random_scene
from tests.compress3d.splats.formats.test_ksplat import tiny_file

# A reader's libraries are loaded at its first use, which must not count as memory that a file took.
for module in ("compressed_ply", "ply", "splat", "ksplat", "spz", "sog", "gltf"):
    importlib.import_module(f"compress3d.splats.formats.{module}")

LARGEST_PEAK = 16 << 20
"""Bytes that reading a file of a few kilobytes may take at most; what the lying headers below ask for is far more."""


def written(name: str, **options: object) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_scene(random_scene(5, 1), Path(folder) / name, **options)
        return (Path(folder) / name).read_bytes()


# Name of the file, and what makes its valid content.
VALID = {
    "a.ply": lambda: written("a.ply"),
    "a.compressed.ply": lambda: written("a.compressed.ply"),
    "a.splat": lambda: written("a.splat"),
    "level0.ksplat": lambda: tiny_file(0, 2),
    "level2.ksplat": lambda: tiny_file(2, 1),
    "v2.spz": lambda: written("v2.spz", version=2),
    "v3.spz": lambda: written("v3.spz", version=3),
    "v4.spz": lambda: written("v4.spz", version=4),
    "a.sog": lambda: written("a.sog"),
    "a.glb": lambda: written("a.glb"),
}
every_format = pytest.mark.parametrize("name", VALID)


@functools.cache
def valid(name: str) -> bytes:
    return VALID[name]()


def outcome(content: bytes, name: str) -> SplatScene | str:
    """Read the content as a file of that name; a refusal must be a ValueError that names the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return outcome_of(path)


def outcome_of(path: Path) -> SplatScene | str:
    tracemalloc.start()
    try:
        return read_scene(path)
    except ValueError as error:
        assert path.name in str(error), f"the message does not name the file: {error}"
        assert len(str(error)) > len(str(path)) + 10, f"the message says nothing: {error}"
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < LARGEST_PEAK, f"{peak} bytes were allocated"


def refusal(content: bytes, name: str) -> str:
    result = outcome(content, name)
    assert isinstance(result, str), "a broken file was read"
    return result


@every_format
def test_the_valid_files_are_valid(name):
    result = outcome(valid(name), name)
    assert isinstance(result, SplatScene) and len(result) in (2, 5)


@every_format
def test_a_file_cut_short_anywhere_is_refused(name):
    content = valid(name)
    # Record by record at the boundaries of the small formats; headers padded with zeros need not be cut at every byte.
    lengths = {*range(0, len(content), max(1, len(content) // 150)), *range(max(0, len(content) - 40), len(content))}
    for length in sorted(lengths):
        result = outcome(content[:length], name)
        whole_records = name == "a.splat" and length and length % 32 == 0
        padding_only = name.endswith(".glb") and len(content) - length < 4
        assert isinstance(result, str) or whole_records or padding_only, f"{length} of {len(content)} bytes were read"


@every_format
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_flipped_bits_never_escape_as_another_error(name, data):
    content = bytearray(valid(name))
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers are at the start, except a zip's, which is at the end.
        position = data.draw(
            st.integers(0, len(content) - 1) | st.integers(0, 60) | st.integers(1, 60).map(lambda i: -i)
        )
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    outcome(bytes(content), name)


@every_format
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(junk=st.binary(max_size=200), keep=st.integers(0, 64))
def test_junk_never_escapes_as_another_error(name, junk, keep):
    outcome(valid(name)[:keep] + junk, name)


@every_format
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_counts_that_lie_never_allocate(name, data):
    """A field of four bytes, in turn most of the header's, claims billions."""
    content = bytearray(valid(name))
    start = data.draw(st.integers(0, min(len(content), 200) // 4 - 1) | st.integers(1024, 1040)) * 4
    number = data.draw(st.sampled_from([0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x10000000, 0xFFFFFF]))
    content[start : start + 4] = struct.pack("<I", number)
    outcome(bytes(content), name)


@pytest.mark.parametrize("name", ["a.ply", "a.compressed.ply"])
@pytest.mark.parametrize("count", [6, 10**6, 10**12, 10**40])
def test_ply_counts_beyond_the_file(name, count):
    content = re.sub(rb"element vertex 5\n", b"element vertex %d\n" % count, valid(name))
    assert re.search(
        "element '(vertex|sh)' declares|cannot understand the line 'element vertex", refusal(content, name)
    )


def test_an_ascii_ply_that_claims_more_rows_than_it_has():
    header = valid("a.ply").split(b"end_header\n")[0].replace(b"binary_little_endian", b"ascii")
    assert "vertex" in refusal(header.replace(b"vertex 5", b"vertex 1000000000") + b"end_header\n1 2 3\n", "a.ply")


def test_list_lengths_that_lead_out_of_the_file():
    header = b"ply\nformat binary_little_endian 1.0\nelement face 2\nproperty list uint float indices\n"
    vertex = valid("a.ply").split(b"element vertex")[1]
    content = header + b"element vertex" + vertex.replace(b"end_header\n", b"end_header\n\xff\xff\xff\xff")
    assert "element" in refusal(content, "a.ply")


def bundle(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@functools.cache
def sog_files() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(valid("a.sog"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def changed_meta(**changes: object) -> bytes:
    meta = json.loads(sog_files()["meta.json"])
    for keys, value in changes.items():
        target = meta
        *path, last = keys.split("__")
        for key in path:
            target = target[key]
        target[last] = value
    return bundle(sog_files() | {"meta.json": json.dumps(meta).encode()})


@pytest.mark.parametrize("count", [-1, 0, 10**9, 10**30, 1.5, "5", None, [5]])
def test_sog_counts_that_lie(count):
    refusal(changed_meta(count=count), "a.sog")


@pytest.mark.parametrize("field", ["means", "scales", "quats", "sh0", "shN"])
@pytest.mark.parametrize("value", [3, "text", [], {}, {"files": "text"}, {"files": [1, 2]}, {"files": []}])
def test_sog_fields_of_the_wrong_kind(field, value):
    refusal(changed_meta(**{field: value}), "a.sog")


@pytest.mark.parametrize("value", [None, 3, [1, 2], ["x"] * 256, [None] * 256, [[0]] * 256])
def test_sog_codebooks_that_are_wrong(value):
    refusal(changed_meta(scales__codebook=value), "a.sog")


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{", b'{"version": 2}', b'{"version": 99}', b"[" * 100_000])
def test_sog_meta_that_is_no_meta(content):
    refusal(bundle(sog_files() | {"meta.json": content}), "a.sog")


@pytest.mark.parametrize(
    "outside", ["../secret.webp", "/etc/passwd", "..\\secret.webp", "x/../../secret.webp", "C:\\x", ""]
)
@pytest.mark.parametrize("folder", [False, True])
def test_sog_names_that_lead_out_of_the_scene(tmp_path, outside, folder):
    files = sog_files()
    meta = json.loads(files["meta.json"])
    inside = meta["means"]["files"][0]
    meta["means"]["files"][0] = outside
    changed = {name: content for name, content in files.items() if name != inside}
    changed["meta.json"] = json.dumps(meta).encode()
    if not folder:
        refusal(bundle(changed | ({outside: files[inside]} if outside else {})), "a.sog")
        return
    (tmp_path / "scene").mkdir()
    for name, content in changed.items():
        (tmp_path / "scene" / name).write_bytes(content)
    (tmp_path / "secret.webp").write_bytes(files[inside])
    assert isinstance(outcome_of(tmp_path / "scene" / "meta.json"), str)


def test_zip_entries_that_lead_out_of_the_zip_are_never_extracted(tmp_path):
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "a.sog"
    path.write_bytes(bundle(sog_files() | {"../evil.txt": b"evil", "/evil.txt": b"evil"}))
    outcome_of(path)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["a.sog", "deep"]


def webp(width: int, height: int, lossless: bool = True, value: int = 255) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 4), value, np.uint8), "RGBA").save(buffer, "WEBP", lossless=lossless)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (6000, 6000)])
@pytest.mark.parametrize("field", ["means", "scales", "quats", "sh0"])
def test_sog_textures_of_the_wrong_size(field, size):
    name = json.loads(sog_files()["meta.json"])[field]["files"][0]
    assert name in refusal(bundle(sog_files() | {name: webp(*size)}), "a.sog")


def test_a_missing_texture_is_named():
    name = json.loads(sog_files()["meta.json"])["quats"]["files"][0]
    assert name in refusal(bundle({key: value for key, value in sog_files().items() if key != name}), "a.sog")


def test_a_texture_that_is_no_image_is_named():
    name = json.loads(sog_files()["meta.json"])["quats"]["files"][0]
    assert name in refusal(bundle(sog_files() | {name: b"RIFF nothing"}), "a.sog")


@pytest.mark.parametrize("entry", ["meta.json", "texture"])
def test_zip_bombs(entry):
    files = sog_files()
    name = "meta.json" if entry == "meta.json" else json.loads(files["meta.json"])["means"]["files"][0]
    refusal(bundle(files | {name: bytes(200 << 20)}), "a.sog")


def changed_glb(keys: tuple[str | int, ...], value: object) -> bytes:
    content = valid("a.glb")
    length = struct.unpack_from("<I", content, 12)[0]
    gltf = json.loads(content[20 : 20 + length])
    target = gltf
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    text = json.dumps(gltf).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + content[20 + length :]
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


@pytest.mark.parametrize("value", [None, -1, 6, 10**9, 10**30, 1.5, "5", [5], {}])
@pytest.mark.parametrize(
    "keys",
    [
        ("accessors", 0, "count"),
        ("accessors", 0, "byteOffset"),
        ("accessors", 0, "componentType"),
        ("accessors", 0, "type"),
        ("bufferViews", 0, "byteOffset"),
        ("bufferViews", 0, "byteLength"),
        ("bufferViews", 0, "buffer"),
        ("meshes", 0, "primitives", 0, "attributes"),
        ("meshes", 0, "primitives", 0, "attributes", "POSITION"),
        ("meshes", 0, "primitives"),
        ("meshes",),
        ("accessors",),
    ],
)
def test_gltf_fields_that_lie(keys, value):
    result = outcome(changed_glb(keys, value), "a.glb")
    # A default may stand in for null, and a buffer view of more bytes than it needs, or another start, is no lie.
    assert isinstance(result, str) or value is None or keys[-1] in ("byteOffset", "byteLength", "POSITION")


def test_gzip_bombs():
    import gzip

    content = gzip.decompress(valid("v3.spz"))
    refusal(gzip.compress(content + bytes(200 << 20)), "v3.spz")
    header = bytearray(content[:16])
    header[8:12] = struct.pack("<I", 10**7)
    refusal(gzip.compress(bytes(header) + bytes(200 << 20)), "v3.spz")


def test_zstd_bombs():
    import zstandard

    content = bytearray(valid("v4.spz"))
    offset = struct.unpack_from("<I", content, 16)[0]
    streams = content[15]
    bomb = zstandard.compress(bytes(200 << 20))
    body_start = offset + 16 * streams
    first = struct.unpack_from("<Q", content, offset)[0]
    content[body_start : body_start + first] = bomb
    content[offset : offset + 8] = struct.pack("<Q", len(bomb))
    refusal(bytes(content), "v4.spz")


def broken(name: str, value: float) -> SplatScene:
    scene = random_scene(6, 1)
    scene.tensors()[name][2] = value
    return scene


@pytest.mark.parametrize("tensor", ["means", "quats", "scales", "sh0", "shN", "opacities"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gaussians_with_values_that_are_not_finite_are_dropped_from_a_ply(tmp_path, tensor, value):
    write_scene(broken(tensor, value), tmp_path / "a.ply")
    clamped = tensor == "opacities" and value == np.inf
    assert len(read_scene(tmp_path / "a.ply")) == 5 + clamped


@pytest.mark.parametrize("suffix", [".compressed.ply", ".splat", ".spz", ".sog", ".glb"])
@pytest.mark.parametrize("tensor", ["means", "quats", "scales", "sh0"])
def test_no_writer_lets_one_bad_gaussian_spoil_the_others(tmp_path, suffix, tensor):
    """Either the writer refuses it, or the others come back as they were."""
    path = tmp_path / f"a{suffix}"
    try:
        write_scene(broken(tensor, np.nan), path)
    except ValueError:
        assert not list(tmp_path.iterdir())
        return
    good = random_scene(6, 1).means[[0, 1, 3, 4, 5]]
    read = read_scene(path).means
    assert ((read[None] - good[:, None]).norm(dim=2).amin(dim=1) < 0.02).all()


def test_a_chunk_of_infinite_bounds_loses_only_its_own_gaussians(tmp_path):
    write_scene(random_scene(300), tmp_path / "a.compressed.ply")
    header, body = (tmp_path / "a.compressed.ply").read_bytes().split(b"end_header\n")
    broken_body = struct.pack("<3f", np.inf, -np.inf, np.nan) + body[12:]
    (tmp_path / "a.compressed.ply").write_bytes(header + b"end_header\n" + broken_body)
    assert len(read_scene(tmp_path / "a.compressed.ply")) == 300 - 256
    assert len(read_scene(tmp_path / "a.compressed.ply", keep_invalid=True)) == 300


def test_a_splat_with_garbage_floats_keeps_the_rest(tmp_path):
    content = bytearray(valid("a.splat"))
    content[32:36] = struct.pack("<f", np.nan)
    content[64 + 12 : 64 + 16] = struct.pack("<f", -1.0)
    content[96 + 28 : 96 + 32] = bytes([128] * 4)
    (tmp_path / "a.splat").write_bytes(content)
    assert len(read_scene(tmp_path / "a.splat")) == 2
