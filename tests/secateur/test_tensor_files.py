"""Tensors that come out of files."""

from __future__ import annotations

from pathlib import Path

import torch

from secateur.tensor_files import TensorFormat
from tests.contracts import assert_same


def test_tensors_lie_where_kernels_expect_them(tmp_path: Path) -> None:
    # Names of different lengths move what follows in the file: not all of these can be at a multiple of 64 bytes.
    saved = {"a" * length: torch.randn(3, 5) for length in range(1, 6)}
    form = TensorFormat("secateur trial", 1)
    form.save(tmp_path / "some.safetensors", saved, {})
    found = form.load(tmp_path / "some.safetensors", lambda header: None, lambda header, tensors: tensors)
    assert_same(found, saved)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values())
