"""The PLY container: a text header that declares elements, and their rows as ascii or binary of either byte order.

Source: Greg Turk, "The PLY Polygon File Format" (1994). What the rows mean is the business of the codecs above it.
"""

from __future__ import annotations

import itertools
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

MAX_HEADER_BYTES = 1 << 16
"""A header longer than this is refused: real ones take a few kilobytes."""

_ROWS_PER_BLOCK = 1 << 12
_SCALARS = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_LENGTHS = {name for name, dtype in _SCALARS.items() if dtype[0] in "iu"}
_BYTE_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True, slots=True)
class Property:
    """A column of an element.

    Args:
        name: as the header gives it.
        dtype: numpy kind and size without byte order, such as "f4".
        length_dtype: for a list property, the same of the list's length; None for a scalar.
    """

    name: str
    dtype: str
    length_dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Element:
    """A table of `count` rows."""

    name: str
    count: int
    properties: tuple[Property, ...]

    @property
    def has_lists(self) -> bool:
        """Whether its rows vary in length."""
        return any(column.length_dtype for column in self.properties)

    @property
    def dtypes(self) -> dict[str, str]:
        """Property name -> numpy kind and size; of properties that share a name, the first."""
        return {column.name: column.dtype for column in reversed(self.properties)}


@dataclass(frozen=True, slots=True)
class PlyHeader:
    """What a PLY file declares, checked against its size.

    Args:
        path: the file.
        format: "ascii", "binary_little_endian" or "binary_big_endian".
        comments: the comment lines without the word `comment`.
        elements: in the order of the file.
        data_offset: byte at which the rows start.
    """

    path: Path
    format: str
    comments: tuple[str, ...]
    elements: tuple[Element, ...]
    data_offset: int

    def find(self, name: str) -> Element | None:
        """The first element of that name, or None."""
        return next((element for element in self.elements if element.name == name), None)

    def element(self, name: str) -> Element:
        """The first element of that name.

        Raises:
            ValueError: there is none.
        """
        found = self.find(name)
        if found is None:
            names = ", ".join(element.name for element in self.elements) or "none"
            raise ValueError(f"{self.path}: no element {name!r} in the PLY header; it declares {names}")
        return found


def read_header(path: Path) -> PlyHeader:
    """Parse and check the header of a PLY file, with LF, CR LF or CR line ends.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a PLY, a header line that is not understood, or rows that the file is too short to hold.
    """
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    if not head.startswith((b"ply\n", b"ply\r")):
        raise ValueError(f"{path}: not a PLY file: it starts with {head[:8]!r} and not with a line 'ply'")
    newline = b"\n" if head[3:4] == b"\n" else b"\r\n" if head[4:5] == b"\n" else b"\r"
    end = head.find(newline + b"end_header" + newline)
    if end < 0:
        raise ValueError(f"{path}: PLY header: no line 'end_header' in the first {len(head)} bytes")
    data_offset = end + len(b"end_header") + 2 * len(newline)
    lines = head[:end].decode("utf-8", errors="replace").split(newline.decode())[1:]
    header = _parse_lines(path, lines, data_offset)
    _check_sizes(header, path.stat().st_size)
    return header


def _parse_lines(path: Path, lines: list[str], data_offset: int) -> PlyHeader:
    form, comments = "", []
    elements: list[tuple[str, int, list[Property]]] = []
    for line in lines:
        match line.split():
            case ["format", name, "1.0"] if name in _BYTE_ORDERS:
                form = name
            case ["comment", *_]:
                comments.append(line.strip().removeprefix("comment").strip())
            case ["obj_info", *_] | []:
                pass
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 16:
                elements.append((name, int(count), []))
            case ["property", kind, name] if kind in _SCALARS and elements:
                elements[-1][2].append(Property(name, _SCALARS[kind]))
            case ["property", "list", length, kind, name] if kind in _SCALARS and length in _LENGTHS and elements:
                elements[-1][2].append(Property(name, _SCALARS[kind], _SCALARS[length]))
            case _:
                raise ValueError(f"{path}: PLY header: cannot understand the line {line[:80]!r}")
    if not form:
        raise ValueError(f"{path}: PLY header: no format line; expected one of {', '.join(_BYTE_ORDERS)} with 1.0")
    tables = tuple(Element(name, count, tuple(columns)) for name, count, columns in elements)
    return PlyHeader(path, form, tuple(comments), tables, data_offset)


def _check_sizes(header: PlyHeader, file_bytes: int) -> None:
    left = file_bytes - header.data_offset
    for element in header.elements:
        if header.format == "ascii":
            # A digit and a separator for each value; only the file's last separator may be missing.
            row_bytes = 2 * len(element.properties)
        else:
            row_bytes = sum(np.dtype(column.length_dtype or column.dtype).itemsize for column in element.properties)
        needed = element.count * row_bytes
        if element.count and not element.properties:
            raise ValueError(f"{header.path}: element {element.name!r} declares {element.count} rows of no property")
        if needed > left + (header.format == "ascii"):
            raise ValueError(
                f"{header.path}: element {element.name!r} declares {element.count} rows of at least {row_bytes} bytes, "
                f"but {max(left, 0)} bytes are left for them: the file is cut short or its header is wrong"
            )
        left -= needed


def read_rows(header: PlyHeader, element: Element) -> Iterator[tuple[slice, NDArray[np.void]]]:
    """Read an element block by block, so that no second copy of it is ever held.

    Yields:
        the row numbers as a slice, and the rows as a structured array with a field for each property name.

    Raises:
        ValueError: the element has list properties, or its rows are not what the header says.
    """
    if element.has_lists:
        names = ", ".join(column.name for column in element.properties if column.length_dtype)
        raise ValueError(f"{header.path}: element {element.name!r} has list properties ({names}); expected scalars")
    order = _BYTE_ORDERS[header.format]
    fields: dict[str, str] = {}
    for index, column in enumerate(element.properties):
        # A repeated name would be refused by numpy; only the first of that name can be asked for.
        fields[column.name if column.name not in fields else f"{column.name} (column {index})"] = order + column.dtype
    dtype = np.dtype(list(fields.items()))
    with header.path.open("rb") as file:
        file.seek(header.data_offset)
        for earlier in itertools.takewhile(lambda other: other is not element, header.elements):
            if header.format == "ascii":
                next(itertools.islice(_lines(file), earlier.count, earlier.count), None)
            else:
                file.seek(_end_of_rows(file, header, earlier))
        for start in range(0, element.count, _ROWS_PER_BLOCK):
            count = min(_ROWS_PER_BLOCK, element.count - start)
            if header.format == "ascii":
                block = _parse_text(file, header, element, start, count, dtype)
            else:
                block = np.fromfile(file, dtype, count)
            if len(block) != count:
                raise ValueError(
                    f"{header.path}: element {element.name!r} ends after {start + len(block)} of {element.count} rows"
                )
            yield slice(start, start + count), block


def _parse_text(
    file: BinaryIO, header: PlyHeader, element: Element, start: int, count: int, dtype: np.dtype[np.void]
) -> NDArray[np.void]:
    lines = list(itertools.islice(_lines(file), count))
    names = dtype.names or ()
    try:
        values = np.loadtxt(lines, np.float64, comments=None, ndmin=2) if lines else np.empty((0, len(names)))
    except ValueError as error:
        raise ValueError(
            f"{header.path}: element {element.name!r}, rows {start} to {start + count - 1}: {error}"
        ) from None
    if values.shape[1] != len(names):
        raise ValueError(
            f"{header.path}: element {element.name!r} declares {len(names)} properties, "
            f"but its rows from {start} have {values.shape[1]} values"
        )
    block = np.empty(len(values), dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for index, name in enumerate(names):
            block[name] = values[:, index]
    return block


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return (line for line in file if not line.isspace())


def _end_of_rows(file: BinaryIO, header: PlyHeader, element: Element) -> int:
    """The byte after the binary rows of an element that start at the file's position."""
    start, sizes = file.tell(), [np.dtype(column.dtype).itemsize for column in element.properties]
    if not element.has_lists:
        return start + element.count * sum(sizes)
    order = _BYTE_ORDERS[header.format]
    lengths = [
        column.length_dtype and struct.Struct(order + np.dtype(column.length_dtype).char)
        for column in element.properties
    ]
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for row in range(element.count):
            for length, size in zip(lengths, sizes, strict=True):
                count = 1
                if length:
                    count = length.unpack_from(data, start)[0] if start + length.size <= len(data) else -1
                    start += length.size
                start += count * size
                if count < 0 or start > len(data):
                    raise ValueError(f"{header.path}: element {element.name!r}: row {row} does not end in the file")
    return start
