"""Files of fields: what is saved loads back, and damage is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress3d.splats.anchors import NeuralField, load_field, save_field
from compress3d.splats.anchors.files import field_bytes
from tests.compress3d.splats.anchors.captures import forest, ring, scaffold
from tests.compress3d.splats.anchors.test_fields import images, stirred
from tests.contracts import assert_round_trip, assert_same

BOTH = pytest.mark.parametrize("make", [scaffold, forest])
Make = Callable[[], NeuralField]


@BOTH
def test_what_is_saved_loads_back_bit_for_bit(make: Make, tmp_path: Path) -> None:
    field = stirred(make())
    state = dict(sorted(field.state_dict().items()))
    path = tmp_path / "field.safetensors"
    assert_round_trip(
        lambda to: save_field(to, field), lambda of: dict(sorted(load_field(of).state_dict().items())), state, path
    )
    assert_same(images(field), images(load_field(path)))
    assert load_field(path).settings_record() == field.settings_record()


@BOTH
def test_half_features_are_half_as_large_and_close(make: Make, tmp_path: Path) -> None:
    field = stirred(make())
    whole = save_field(tmp_path / "whole", field)
    half = save_field(tmp_path / "half", field, half_features=True)
    features = sum(size for name, size in field_bytes(field).items() if name.endswith("features"))
    assert abs(whole - half - features // 2) < 64
    assert float((images(field) - images(load_field(tmp_path / "half"))).abs().max()) < 0.02
    rounded = load_field(tmp_path / "half")
    save_field(tmp_path / "again", rounded, half_features=True)
    assert_same(dict(rounded.state_dict()), dict(load_field(tmp_path / "again").state_dict()))


@BOTH
def test_the_bytes_are_those_of_the_file_networks_included(make: Make, tmp_path: Path) -> None:
    field = make()
    sizes = field_bytes(field)
    header = save_field(tmp_path / "field", field) - sum(sizes.values())
    assert 0 < header < 3000
    assert any("network" in name for name in sizes)
    per_unit = float(field.groups()[0].cost["bytes"][0])
    stored = sum(sizes[name] for name in field.unit_rows()) / len(field)
    assert stored == per_unit - (4 if "parents" in field.unit_rows() else 0), "indices are stored in four bytes"


def test_a_forests_size_is_leaves_and_nodes_and_networks() -> None:
    field = forest()
    leaves, inner, roots = len(field), len(field.inner_features), len(field.root_features)
    networks = 4 * sum(p.numel() for name, p in field.named_parameters() if "network" in name)
    expected = 20 * leaves + inner * (4 * 8 + 8) + roots * 4 * 8 + networks
    assert sum(field_bytes(field).values()) == expected


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "field"
    with pytest.raises(FileNotFoundError, match="field"):
        load_field(path)
    path.write_bytes(b"no field at all")
    with pytest.raises(ValueError, match="field: "):
        load_field(path)
    field = forest()
    save_field(path, field)
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    with pytest.raises(ValueError, match="field: "):
        load_field(path)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (None, "header"),
        ({"format": "another"}, "not a secateur"),
        ({"version": 9}, "version 9"),
        ({"method": "orchard"}, "orchard"),
        ({"settings": {"hidden": "wide"}}, "numbers"),
        ({"settings": {"hidden": 32, "colour": 3}}, "colour"),
        ({"settings": {"inner_features": 7}}, "inner_features|features"),
    ],
)
def test_wrong_headers_are_named(tmp_path: Path, header: dict[str, object] | None, match: str) -> None:
    path = tmp_path / "field"
    field = forest()
    save_field(path, field)
    good = {
        "format": "secateur neural field",
        "version": 1,
        "method": "forest",
        "settings": field.settings_record(),
    }
    metadata = None if header is None else {"secateur": json.dumps({**good, **header})}
    save_file(load_file(path), path, metadata)
    with pytest.raises(ValueError, match=match):
        load_field(path)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("parents", torch.full((5,), 99, dtype=torch.int32), "parents"),
        ("parents", torch.zeros(7, dtype=torch.int32), "parents"),
        ("means", torch.full((120, 3), torch.nan), "means"),
        ("opacities", torch.zeros(3), "opacities"),
        ("spare", torch.zeros(3), "spare"),
        ("means", torch.zeros(120), "means"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, name: str, value: torch.Tensor, match: str) -> None:
    path = tmp_path / "field"
    field = forest()
    save_field(path, field)
    header = {"format": "secateur neural field", "version": 1, "method": "forest", "settings": field.settings_record()}
    save_file({**load_file(path), name: value}, path, {"secateur": json.dumps(header)})
    with pytest.raises(ValueError, match=match):
        load_field(path)


def test_a_field_lacks_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "field"
    field = scaffold()
    save_field(path, field)
    header = {"format": "secateur neural field", "version": 1, "method": "scaffold"}
    tensors = load_file(path)
    for name in ("anchors", "offsets", "color_network.0.weight"):
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        save_file(rest, path, {"secateur": json.dumps({**header, "settings": field.settings_record()})})
        with pytest.raises(ValueError, match=name):
            load_field(path)
    assert len(ring(1)) == 1
