"""The `.ply` that the INRIA code of 3D Gaussian Splatting writes, and its relatives.

One float column for each number, raw: logit opacity, log-scales, unnormalised (w, x, y, z) rotation, and
`f_rest_[c*K + j]` for coefficient j of channel c. Sources: the files of Kerbl et al. 2023, "3D Gaussian Splatting";
the comments `SplatRenderMode` (Brush) and `antialiased` (Postshot); the column `filter_3D` (Yu et al. 2024,
"Mip-Splatting", eq. 9).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from compress3d.splats.formats.ply_elements import Element, PlyHeader, read_header, read_rows
from compress3d.splats.formats.quantization import FLAT_LOG_SCALE
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene
from secateur.files import replacing_file

_ROWS_PER_BLOCK = 1 << 12


def matches(path: Path, head: bytes) -> bool:
    """Whether `head` begins a PLY that is not a compressed one."""
    return head.startswith((b"ply\n", b"ply\r")) and b"packed_position" not in head


def read(path: Path) -> SplatScene:
    """Read a splat PLY: ascii or binary of either byte order, float or double, properties in any order.

    Other elements and other properties are ignored. A file without `scale_2` is 2D Gaussian Splatting: the third axis
    gets FLAT_LOG_SCALE. A `filter_3D` column is folded into scales and opacities. `antialiased` comes from the comments
    of Brush and Postshot (the last one holds), and is True without any where there is a `filter_3D`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a splat PLY, or its rows do not fit its header.
    """
    header = read_header(path)
    vertex = header.element("vertex")
    coefficients = _check_properties(path, vertex)
    n = vertex.count
    arrays = [np.empty((n, *shape), np.float32) for shape in ((3,), (4,), (3,), (), (1, 3), (coefficients, 3))]
    columns, filters = _columns(*arrays), np.empty(n, np.float32)
    if "filter_3D" in vertex.dtypes:
        columns["filter_3D"] = filters
    if "scale_2" not in vertex.dtypes:
        columns.pop("scale_2").fill(FLAT_LOG_SCALE)
    for rows, block in read_rows(header, vertex):
        with np.errstate(over="ignore"):
            for name, column in columns.items():
                column[rows] = block[name]
    has_filter = "filter_3D" in columns
    means, quats, scales, opacities, sh0, shN = map(torch.from_numpy, arrays)
    scene = SplatScene(means, quats, scales, opacities, sh0, shN, trained_antialiased(header, has_filter))
    return _fold_filter(scene, torch.from_numpy(filters)) if has_filter else scene


def write(scene: SplatScene, path: Path) -> None:
    """Write the INRIA layout, normals (zeros) included, binary little-endian; it reads back bit for bit."""
    names = ["x", "y", "z", "nx", "ny", "nz", *_property_names(scene.shN.shape[1])[3:]]
    lines = [*header_start(scene), f"element vertex {len(scene)}"]
    lines += [f"property float {name}" for name in names] + ["end_header", ""]
    columns = _columns(*(tensor.detach().cpu().numpy() for tensor in scene.tensors().values()))
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join(lines).encode())
        for start in range(0, len(scene), _ROWS_PER_BLOCK):
            rows = slice(start, min(start + _ROWS_PER_BLOCK, len(scene)))
            block = np.zeros((rows.stop - start, len(names)), "<f4")
            for index, name in enumerate(names):
                if name in columns:
                    block[:, index] = columns[name][rows]
            file.write(block.tobytes())


def header_start(scene: SplatScene) -> list[str]:
    """The first lines of a binary header, with the comments that `trained_antialiased` looks for."""
    comments = ["comment SplatRenderMode: mip", "comment antialiased 1"] if scene.antialiased else []
    return ["ply", "format binary_little_endian 1.0", *comments]


def _property_names(coefficients: int) -> list[str]:
    """The columns of a scene with (N, coefficients, 3) shN, in INRIA's order without normals."""
    return [
        *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{index}" for index in range(3 * coefficients)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]


def _columns(
    means: NDArray[np.float32],
    quats: NDArray[np.float32],
    scales: NDArray[np.float32],
    opacities: NDArray[np.float32],
    sh0: NDArray[np.float32],
    shN: NDArray[np.float32],
) -> dict[str, NDArray[np.float32]]:
    """Property name -> (N,) view of where its values live in a scene's arrays."""
    rest = [shN[:, index, channel] for channel in range(3) for index in range(shN.shape[1])]
    views = [*means.T, *sh0[:, 0].T, *rest, opacities, *scales.T, *quats.T]
    return dict(zip(_property_names(shN.shape[1]), views, strict=True))


def _check_properties(path: Path, vertex: Element) -> int:
    """The number of coefficients above degree 0 in each channel, once every column of a splat is there as a float."""
    rest = sum(name.startswith("f_rest_") for name in vertex.dtypes)
    if rest not in [3 * count for count in SH_COEFFICIENTS.values()]:
        raise ValueError(f"{path}: element 'vertex' has {rest} f_rest properties; expected 0, 9, 24 or 45")
    names = [name for name in _property_names(rest // 3) if name != "scale_2"]
    missing = [name for name in names if name not in vertex.dtypes]
    if missing:
        raise ValueError(f"{path}: not a splat PLY: element 'vertex' has no property {', '.join(missing[:6])}")
    for name in names:
        if vertex.dtypes[name] not in ("f4", "f8"):
            raise ValueError(
                f"{path}: property {name!r} holds integers; a splat PLY has float or double "
                f"(codebook variants such as Reduced-3DGS are another schema)"
            )
    return rest // 3


def trained_antialiased(header: PlyHeader, default: bool) -> bool:
    """What the last comment of Brush or Postshot says of the rasteriser that the scene was trained with."""
    meanings = {
        "splatrendermode: mip": True,
        "splatrendermode: default": False,
        "splatrendermode: 2dgs": False,
        "antialiased 1": True,
        "antialiased 0": False,
    }
    said = [meanings[key] for comment in header.comments if (key := " ".join(comment.lower().split())) in meanings]
    return said[-1] if said else default


def _fold_filter(scene: SplatScene, filters: Float[Tensor, " N"]) -> SplatScene:
    """Fold Mip-Splatting's 3D smoothing filter in: s'^2 = s^2 + f^2, and opacity times sqrt(prod s^2 / prod s'^2)."""
    before = scene.scales.double()
    after = torch.logaddexp(2 * before, 2 * filters.double().clamp(min=0).log()[:, None]) / 2
    log_factor = (before - after).sum(dim=1)
    log_opacities = torch.nn.functional.logsigmoid(scene.opacities.double()) + log_factor
    logits = log_opacities - torch.log1p(-log_opacities.exp())
    return scene.with_tensors(
        scales=after.float(), opacities=torch.where(log_factor == 0, scene.opacities, logits.float())
    )
