"""Cut networks as files: the weights as safetensors, and a manifest that names every cut.

Weights alone cannot rebuild a cut network, so loading takes the code from the caller: it builds the dense network on
the meta device, cuts it as the manifest says, and gives it the weights. Nothing is unpickled, and the manifest is
believed in nothing: every number in it has to fit the network that the caller built.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.files import replacing_folder
from secateur.surgery.cut import Cuts, Kept, cut_module
from secateur.surgery.layers import join_name, named_tensors, split_name
from secateur.surgery.network import Network
from secateur.surgery.selecting import Channels
from secateur.surgery.stand_in import Block, Leaves, kind_of, stand_in
from secateur.tensor_files import aligned

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"
_FORMAT = "secateur cut network"
_VERSION = 1
_LARGEST_MANIFEST = 256 * 10**6


def save(
    network: Network,
    folder: str | os.PathLike[str],
    *,
    dense: nn.Module | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Write the network's weights and the manifest of its cuts into a folder.

    The manifest says, in the dense network's numbering, which rows of which tensor of which module stay, which modules
    are gone and what they leave, and which attributes changed, with the original sizes.

    Args:
        network: a network with its history of cuts (`Network.cuts`).
        folder: where to; other files in it stay.
        dense: the network that it was cut from; the manifest then holds the hash of its weights.
        recipe: anything that JSON can hold, to say how the network was made.

    Raises:
        ValueError: the module holds meta tensors, or the recipe is no JSON.
    """
    tensors = named_tensors(network.module)
    missing = [name for name, tensor in tensors.items() if tensor.is_meta]
    if missing:
        raise ValueError(f"{missing[0]!r} is on the meta device, so there are no weights to save")
    try:
        with replacing_folder(folder, index=MANIFEST) as temporary:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary / WEIGHTS
            )
            manifest = {
                "format": _FORMAT,
                "version": _VERSION,
                "recipe": recipe,
                "dense_sha256": None if dense is None else hash_weights(dense),
                "weights_sha256": hash_file(temporary / WEIGHTS),
                **cuts_to_json(network),
            }
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    except TypeError as error:
        raise ValueError(f"the recipe is no JSON: {error}") from error


def load(folder: str | os.PathLike[str], build: Callable[[], nn.Module]) -> Network:
    """Read a cut network that `save` wrote. It gives the outputs that were saved, bit for bit.

    Args:
        folder: the folder.
        build: makes the dense network; called on the meta device, so that it takes no memory.

    Returns:
        The network with its cuts, on the CPU. It has no groups: `trace` its module, or map its units, to cut it again.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the first thing in which manifest, weights and network do not fit one another.
    """
    folder = Path(folder)
    weights = folder / WEIGHTS
    manifest = _read_manifest(folder / MANIFEST)
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file")
    if hash_file(weights) != manifest.get("weights_sha256"):
        raise ValueError(f"{weights}: damaged, or not the weights that {MANIFEST} is of (weights_sha256)")
    with torch.device("meta"):
        dense = build()
    module = cut_module(dense, cuts := cuts_from_json(manifest, dense, folder / MANIFEST))
    fill(module, weights)
    return Network(module, (), cuts=cuts)


def cuts_to_json(network: Network) -> dict[str, Any]:
    """The network's cuts as fields of a manifest, which `cuts_from_json` reads."""
    kinds = {name: kind_of(module) for name, module in network.module.named_modules()}
    cuts = network.cuts
    return {
        "cuts": [_cut_record(key, kept, kinds) for key, kept in cuts.rows.items()],
        "blocks": [_block_record(kind, block) for kind, block in cuts.blocks.values()],
        "attributes": [
            {"module": module, "attribute": attribute, "original": before, "now": now}
            for (module, attribute), (before, now) in cuts.attributes.items()
        ],
        "scattered": sorted(cuts.scattered),
        "gathers": [_channels_record(name, each, kinds) for name, each in cuts.gathers.items()],
        "scatters": [_channels_record(name, each, kinds) for name, each in cuts.scatters.items()],
    }


def cuts_from_json(manifest: Mapping[str, Any], dense: nn.Module, path: Path) -> Cuts:
    """The cuts that a manifest names, each checked against the dense network.

    Args:
        manifest: what the file holds.
        dense: the network before the cuts, on any device.
        path: the manifest's file, for messages.

    Raises:
        ValueError: the first cut that does not fit the network.
    """
    return _Reader(path, manifest, dense).cuts()


def hash_weights(module: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and buffer, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors(module).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cut_record(key: tuple[str, int], kept: Kept, kinds: Mapping[str, str]) -> dict[str, Any]:
    module, tensor = split_name(key[0])
    return {
        "module": module,
        "kind": kinds[module],
        "tensor": tensor,
        "dim": key[1],
        "size": kept.size,
        "kept": _ranges(kept.rows),
    }


def _channels_record(name: str, channels: Channels, kinds: Mapping[str, str]) -> dict[str, Any]:
    size, kept = channels.width, _ranges(channels.rows)
    return {"module": name, "kind": kinds[name], "dim": channels.dim, "size": size, "kept": kept}


def _block_record(kind: str, block: Block) -> dict[str, Any]:
    """The block's fields; those that are as for a plain block are left out."""
    fields = dataclasses.asdict(block)
    plain = dataclasses.asdict(Block(block.module))
    always = ("module", "leaves", "outputs")
    return {"kind": kind} | {name: value for name, value in fields.items() if name in always or value != plain[name]}


def _ranges(rows: Tensor) -> list[list[int]]:
    """[[first, last + 1], ...] of ascending rows."""
    if not len(rows):
        return []
    breaks = (rows.diff() != 1).nonzero()[:, 0] + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in rows.tensor_split(breaks.tolist())]


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise ValueError(f"{path}: {path.stat().st_size} bytes are more than a manifest has ({_LARGEST_MANIFEST})")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ValueError(f"{path}: not a manifest of a cut network (format must be {_FORMAT!r})")
    if manifest.get("version") != _VERSION:
        raise ValueError(f"{path}: version {manifest.get('version')!r} is unknown; this reads version {_VERSION}")
    return manifest


class _Reader:
    """Reads the cuts of a manifest against the dense network that they are to fit."""

    def __init__(self, path: Path, manifest: Mapping[str, Any], dense: nn.Module) -> None:
        self.path = path
        self.manifest = manifest
        self.modules = dict(dense.named_modules())
        self.tensors = named_tensors(dense)

    def cuts(self) -> Cuts:
        """All the cuts, or ValueError at the first that does not fit."""
        rows = {}
        for index, record in self._records("cuts"):
            key, kept = self._rows(f"cuts[{index}]", record)
            if key in rows:
                self._refuse(f"cuts[{index}]", f"{key[0]!r} (dim {key[1]}) is cut twice")
            rows[key] = kept
        blocks = dict(self._block(f"blocks[{index}]", record) for index, record in self._records("blocks"))
        attributes = dict(self._attribute(f"attributes[{i}]", record) for i, record in self._records("attributes"))
        return Cuts(
            rows, blocks, attributes, self._scattered(rows), self._channels("gathers"), self._channels("scatters")
        )

    def _records(self, name: str) -> enumerate[dict[str, Any]]:
        records = self.manifest.get(name)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            self._refuse(name, "must be a list of objects")
        return enumerate(records)

    def _rows(self, where: str, record: Mapping[str, Any]) -> tuple[tuple[str, int], Kept]:
        module = self._module(where, record)
        name = join_name(module, str(record.get("tensor")))
        if name not in self.tensors:
            self._refuse(where, f"the network has no tensor {name!r}")
        shape = self.tensors[name].shape
        dim = self._integer(where, record, "dim")
        if not 0 <= dim < len(shape):
            self._refuse(where, f"{name!r} of shape {tuple(shape)} has no dimension {dim}")
        size = self._integer(where, record, "size")
        if size != shape[dim]:
            self._refuse(where, f"{name!r} had {size} rows along dim {dim}, but the network's has {shape[dim]}")
        return (name, dim), Kept(size, self._kept(where, record.get("kept"), size))

    def _kept(self, where: str, ranges: Any, size: int) -> Tensor:
        if not isinstance(ranges, list):
            self._refuse(where, "kept must be a list of [first, last + 1]")
        left = size
        runs = [torch.zeros(0, dtype=torch.int64)]
        for run in ranges:
            whole = isinstance(run, list) and len(run) == 2 and all(type(bound) is int for bound in run)
            if not whole or not 0 <= run[0] < run[1] <= size or run[1] - run[0] > left:
                self._refuse(where, f"kept must be ranges within [0, {size}], no row twice; found {run!r}")
            left -= run[1] - run[0]
            runs.append(torch.arange(*run))
        rows = torch.cat(runs)
        if len(rows.unique()) < len(rows):
            self._refuse(where, f"kept must be ranges within [0, {size}], no row twice")
        return rows

    def _block(self, where: str, record: Mapping[str, Any]) -> tuple[str, tuple[str, Block]]:
        name = self._module(where, record)
        leaves = record.get("leaves")
        outputs = self._integer(where, record, "outputs")
        if leaves not in get_args(Leaves) or not 1 <= outputs <= 16 or not name:
            self._refuse(
                where, f"a block leaves one of {get_args(Leaves)}, has 1 to 16 outputs, and is not the whole network"
            )
        named = {field: self._names(where, record, field) for field in ("arguments", "biases", "held")}
        part = record.get("part", "")
        if not isinstance(part, str):
            self._refuse(where, f"part must be a name, found {part!r}")
        features_last = record.get("features_last", False)
        if not isinstance(features_last, bool):
            self._refuse(where, f"features_last must be true or false, found {features_last!r}")
        block = Block(name, leaves, outputs, part=part, features_last=features_last, **named)  # type: ignore[arg-type]
        try:
            stand_in(self.modules[name], block)
        except ValueError as error:
            self._refuse(where, str(error))
        return name, (record["kind"], block)

    def _names(self, where: str, record: Mapping[str, Any], field: str) -> tuple[str, ...]:
        names = record.get(field, [])
        if not isinstance(names, list) or len(names) > 16 or not all(isinstance(name, str) for name in names):
            self._refuse(where, f"{field} must be a list of names, found {names!r}")
        return tuple(names)

    def _scattered(self, rows: Mapping[tuple[str, int], Kept]) -> frozenset[str]:
        names = self.manifest.get("scattered", [])
        if not isinstance(names, list):
            self._refuse("scattered", "must be a list of names")
        for name in names:
            if not isinstance(name, str) or not isinstance(self.modules.get(name), nn.Linear):
                self._refuse("scattered", f"the network has no linear layer {name!r}")
            if (join_name(name, "weight"), 0) not in rows:
                self._refuse("scattered", f"none of the outputs of {name!r} is cut")
        return frozenset(names)

    def _channels(self, name: str) -> dict[str, Channels]:
        found = {}
        for index, record in self._records(name) if name in self.manifest else ():
            where = f"{name}[{index}]"
            dim, size = self._integer(where, record, "dim"), self._integer(where, record, "size")
            rows = self._kept(where, record.get("kept"), size)
            if not -4 <= dim <= -1 or not len(rows) or bool((rows.diff() < 0).any()):
                self._refuse(where, "dim must be -4 to -1, and kept ascending and not empty")
            found[self._module(where, record)] = Channels(dim, size, rows)
        return found

    def _attribute(self, where: str, record: Mapping[str, Any]) -> tuple[tuple[str, str], tuple[int, int]]:
        module, attribute = record.get("module"), record.get("attribute")
        if not isinstance(module, str) or module not in self.modules or not isinstance(attribute, str):
            self._refuse(where, f"the network has no attribute {attribute!r} of a module {module!r}")
        before, now = self._integer(where, record, "original"), self._integer(where, record, "now")
        value = vars(self.modules[module]).get(attribute)
        if type(value) is not int or value != before:
            self._refuse(where, f"{module}.{attribute} was {before}, but the network's is {value!r}")
        if not 0 <= now <= before:
            self._refuse(where, f"{module}.{attribute} cannot go from {before} to {now}")
        return (module, attribute), (before, now)

    def _module(self, where: str, record: Mapping[str, Any]) -> str:
        name, kind = record.get("module"), record.get("kind")
        if not isinstance(name, str) or name not in self.modules:
            self._refuse(where, f"the network has no module {name!r}")
        found = kind_of(self.modules[name])
        if kind != found:
            self._refuse(where, f"module {name!r} was a {kind!r}, but the network's is a {found!r}")
        return name

    def _integer(self, where: str, record: Mapping[str, Any], name: str) -> int:
        value = record.get(name)
        if type(value) is not int:
            self._refuse(where, f"{name} must be a whole number, found {value!r}")
        return value

    def _refuse(self, where: str, reason: str) -> NoReturn:
        raise ValueError(f"{self.path}: {where}: {reason}")


def fill(module: nn.Module, path: Path) -> None:
    """Give the module the file's tensors, each of its own shape; no more and no fewer."""
    expected = named_tensors(module)
    try:
        with safe_open(path, framework="pt") as file:
            held = set(file.keys())
            for name, tensor in expected.items():
                if name not in held:
                    raise ValueError(f"{path}: no tensor {name!r}, which the network has")
                shape = file.get_slice(name).get_shape()
                if list(tensor.shape) != shape:
                    raise ValueError(f"{path}: {name!r} has shape {shape}, the cut network's {list(tensor.shape)}")
            unexpected = sorted(held - set(expected))
            if unexpected:
                raise ValueError(f"{path}: tensor {unexpected[0]!r} is none of the network's")
            loaded = {id(tensor): _like(tensor, aligned(file.get_tensor(name))) for name, tensor in expected.items()}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error
    for owner_name, owner in module.named_modules():
        held_by: dict[str, Any]
        for held_by in (owner._parameters, owner._buffers):
            held_by.update({name: loaded[id(tensor)] for name, tensor in held_by.items() if tensor is not None})
        stray = [name for name, value in vars(owner).items() if isinstance(value, Tensor) and value.is_meta]
        if stray:
            raise ValueError(
                f"{join_name(owner_name, stray[0])} is a plain tensor, which no file holds: make it a buffer"
            )
        if isinstance(owner, nn.RNNBase):
            owner._init_flat_weights()


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
