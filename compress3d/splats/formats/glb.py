"""The binary container of glTF 2.0: a JSON document, and the numbers that its accessors describe, in one file.

Source: glTF 2.0 specification, sections 3.6 (binary data storage) and 4 (GLB file format); little-endian throughout.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float32

from compress3d.splats.formats.checked_json import Json
from secateur.files import replacing_file

MAGIC = b"glTF"
_HEADER = struct.Struct("<4sII")
_CHUNK = struct.Struct("<I4s")
_LARGEST_FILE = 2**32 - 1
_MOST_COUNT = 2**31

_COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_FLOAT, _UNSIGNED_BYTE = 5126, 5121
_TYPES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_ARRAY_BUFFER = 34962


@dataclass(frozen=True, slots=True)
class Glb:
    """An opened GLB file.

    Args:
        path: the file, for messages.
        document: its JSON.
        binary: its binary chunk, empty if there is none.
    """

    path: Path
    document: Json
    binary: bytes

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not GLB version 2, or cut short.
        """
        data = path.read_bytes()
        if len(data) < _HEADER.size or data[:4] != MAGIC:
            raise ValueError(f"{path}: not GLB, expected it to begin with {MAGIC!r}, found {data[:4]!r}")
        _, version, length = _HEADER.unpack_from(data)
        if version != 2:
            raise ValueError(f"{path}: GLB version is {version}, must be 2")
        if length > len(data):
            raise ValueError(f"{path}: length in the header is {length}, the file has {len(data)} bytes")
        chunks: dict[bytes, bytes] = {}
        offset = _HEADER.size
        while offset + _CHUNK.size <= length:
            size, kind = _CHUNK.unpack_from(data, offset)
            offset += _CHUNK.size
            if size > length - offset:
                raise ValueError(f"{path}: chunk {kind!r} declares {size} bytes, {length - offset} are left")
            chunks.setdefault(kind, data[offset : offset + size])
            offset += size
        if b"JSON" not in chunks:
            raise ValueError(f"{path}: no JSON chunk")
        document = Json.parse(chunks[b"JSON"].rstrip(b" \0"), f"{path}: JSON chunk")
        return cls(path, document, chunks.get(b"BIN\0", b""))

    def view(self, index: Json) -> tuple[bytes, int | None]:
        """The bytes of the buffer view of that index, and its stride."""
        view = self._entry("bufferViews", index)
        if view["buffer"].integer(0, _MOST_COUNT) != 0 or self.document["buffers"][0].get("uri") is not None:
            raise ValueError(f"{view.where}.buffer must be the file's own binary chunk, other buffers are not read")
        if view.get("extensions") is not None:
            raise ValueError(
                f"{view.where} is compressed by {', '.join(view['extensions'].names())}, which is not read"
            )
        start = _whole(view.get("byteOffset"), len(self.binary), 0)
        size = view["byteLength"].integer(1, _MOST_COUNT)
        if size > len(self.binary) - start:
            raise ValueError(f"{view.where} goes to byte {start + size}, the binary chunk has {len(self.binary)}")
        stride = view.get("byteStride")
        return self.binary[start : start + size], None if stride is None else stride.integer(1, 252)

    def accessor(self, index: Json, channels: int) -> Float32[np.ndarray, "count channels"]:
        """The numbers of the accessor of that index as floats, normalised where it says so.

        Raises:
            ValueError: it has another number of channels, or does not fit its buffer view.
        """
        accessor = self._entry("accessors", index)
        kind = accessor["type"].text()
        if _TYPES.get(kind) != channels:
            raise ValueError(f"{accessor.where}.type is {kind!r}, {index.where} needs {channels} numbers each")
        component = accessor["componentType"].integer(0, 2**16)
        if component not in _COMPONENTS:
            raise ValueError(f"{accessor.where}.componentType is {component}, must be one of {list(_COMPONENTS)}")
        if accessor.get("sparse") is not None:
            raise ValueError(f"{accessor.where} is sparse, which is not read")
        dtype = np.dtype(_COMPONENTS[component])
        data, stride = self.view(accessor["bufferView"])
        stride = stride or dtype.itemsize * channels
        offset = _whole(accessor.get("byteOffset"), len(data), 0)
        count = accessor["count"].integer(1, _MOST_COUNT)
        if offset + stride * (count - 1) + dtype.itemsize * channels > len(data):
            raise ValueError(f"{accessor.where}.count is {count}, more than its buffer view of {len(data)} bytes holds")
        array: np.ndarray = np.ndarray((count, channels), dtype, data, offset, (stride, dtype.itemsize))
        normalized = accessor.get("normalized")
        if normalized is not None and normalized.value is True and dtype.kind != "f":
            return np.maximum(array.astype(np.float32) / np.float32(np.iinfo(dtype).max), -1)
        return array.astype(np.float32)

    def _entry(self, table: str, index: Json) -> Json:
        entries = self.document[table]
        return entries[index.integer(0, max(len(entries) - 1, 0))]


@dataclass(slots=True)
class GlbWriter:
    """Collects arrays, each with its accessor and buffer view, and writes them with a document."""

    accessors: list[dict[str, Any]] = field(default_factory=list)
    arrays: list[np.ndarray] = field(default_factory=list)

    def add(self, array: np.ndarray, bounds: bool = False) -> int:
        """The index of a new accessor for (N, channels) float32, or uint8 that stands for 0..1, with its bounds."""
        kinds = {channels: name for name, channels in _TYPES.items()}
        is_float = array.dtype == np.float32
        accessor: dict[str, Any] = {
            "bufferView": len(self.arrays),
            "componentType": _FLOAT if is_float else _UNSIGNED_BYTE,
            "count": len(array),
            "type": kinds[array.shape[1]],
        }
        if not is_float:
            accessor["normalized"] = True
        if bounds:
            accessor["min"], accessor["max"] = array.min(axis=0).tolist(), array.max(axis=0).tolist()
        self.accessors.append(accessor)
        self.arrays.append(np.ascontiguousarray(array))
        return len(self.accessors) - 1

    def write(self, path: Path, document: Mapping[str, Any]) -> None:
        """Write the file, replacing `path` only when all is written.

        Raises:
            ValueError: it would pass the container's 4 GiB.
        """
        views, size = self._views()
        document = {
            **document,
            "buffers": [{"byteLength": size}],
            "bufferViews": views,
            "accessors": self.accessors,
        }
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        length = _HEADER.size + 2 * _CHUNK.size + len(text) + size
        if length > _LARGEST_FILE:
            raise ValueError(f"{path}: the scene needs {length} bytes, a GLB file holds at most {_LARGEST_FILE}")
        with replacing_file(path) as temporary, temporary.open("wb") as file:
            file.write(_HEADER.pack(MAGIC, 2, length) + _CHUNK.pack(len(text), b"JSON") + text)
            file.write(_CHUNK.pack(size, b"BIN\0"))
            for array in self.arrays:
                file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())

    def _views(self) -> tuple[Sequence[dict[str, int]], int]:
        views, offset = [], 0
        for array in self.arrays:
            view = {"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes, "target": _ARRAY_BUFFER}
            views.append(view)
            offset += array.nbytes
        return views, offset


def _whole(value: Json | None, most: int, otherwise: int) -> int:
    return otherwise if value is None else value.integer(0, most)
