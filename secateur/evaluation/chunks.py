"""Rows of numbers, one an image or view, gathered a chunk at a time: a run that was stopped goes on where it was.

Items are decoded in worker processes and let go; what stays is their rows. A chunk is a file, whole or not there, so
several processes (of torch.distributed, or of machines that share the folder) may take chunks in turn, and the one that
gathers them gets the same rows in the same order, whoever made them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from secateur.console import Report, silent
from secateur.interrupts import is_interrupt
from secateur.tensor_files import TensorFormat

CHUNK = 64
"""Items of a chunk, unless a gathering says otherwise."""

Rows = dict[str, Tensor]
"""Name -> (items, ...) numbers."""

_FORMAT = TensorFormat("secateur rows of numbers", 1, article="")
_FOLDER = "unfinished"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What came of an item that could not be read: a worker process hands it over; its exception would lose its line.

    Args:
        message: names the file, and says what is wrong.
        missing: whether the file is not there any more.
    """

    message: str
    missing: bool = False

    def error(self) -> Exception:
        """The exception that says so."""
        return FileNotFoundError(self.message) if self.missing else ValueError(self.message)


@dataclass(frozen=True)
class Gathering:
    """What is to be known of each item of a data set.

    Args:
        name: of it, as progress shows it and files are called.
        identity: all that the rows depend on, as plain values.
        items: decoded, or only named, by place; one that cannot be read is an `Unreadable`.
        look: takes some items one after another, gives their rows; must not depend on other items.
        together: items that a worker process hands over at a time.
        chunk: items of a chunk: what Ctrl-C may cost. None: `CHUNK`.
        items_are: what people call them.
    """

    name: str
    identity: Any
    items: Dataset[Any] | Sequence[Any]
    look: Callable[[Iterator[Any]], Rows]
    together: int = 1
    chunk: int | None = None
    items_are: str = "images"

    def __post_init__(self) -> None:
        if not isinstance(self.items, Sized) or not len(self.items):
            raise ValueError(f"{self.name}: there are no items")


@dataclass(frozen=True, slots=True)
class Share:
    """Which process of how many this is: it takes every `count`-th chunk."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> Share:
        """As torch.distributed says; the only one without a process group."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())


@dataclass(frozen=True)
class ChunkStore:
    """The chunks of a run that has not ended, in `unfinished` within the folder of its results.

    Args:
        folder: of the chunks; None: none is kept, and a run that was stopped begins again.
        workers: processes that decode; 0: this one.
        share: of the chunks that this process makes.
    """

    folder: Path | None = None
    workers: int = 0
    share: Share = Share()

    @classmethod
    def within(cls, output: Path, workers: int = 0) -> ChunkStore:
        """The chunks of the run whose results go into `output`.

        Raises:
            ValueError: `workers` is below 0.
        """
        if workers < 0:
            raise ValueError(f"workers must be at least 0, got {workers}")
        return cls(output / _FOLDER, workers, Share.of_this_process())

    def gather(self, gathering: Gathering, report: Report = silent) -> Rows:
        """The rows of all items, in their order; those that a run before made are not made again.

        Raises:
            FileNotFoundError: an item's file is gone.
            ValueError: an item cannot be read, or a row is not as those before; names the file.
        """
        total = len(gathering.items)  # type: ignore[arg-type]  # a Dataset need not say its length; see Gathering
        chunks = torch.arange(total).split(gathering.chunk or CHUNK)
        kept = _Kept(
            None if self.folder is None else self.folder / f"{gathering.name}-{_hash(gathering.identity)[:16]}"
        )
        own = [number for number in range(len(chunks)) if number % self.share.count == self.share.index]
        missing = [number for number in own if kept.read(number) is None]
        done = total - sum(len(chunks[number]) for number in missing)
        items = self._decoded(gathering, [index for number in missing for index in chunks[number].tolist()])
        for number in missing:
            report(done / total, f"{gathering.name}: {done} of {total} {gathering.items_are}")
            count = len(chunks[number])
            rows = gathering.look(map(_readable, islice(items, count)))
            if any(len(values) != count for values in rows.values()):
                raise ValueError(f"{gathering.name}: chunk {number} has {count} items, but not as many rows")
            kept.write(number, rows)
            done += count
        _wait_for_all()
        return kept.all(gathering, len(chunks))

    @contextmanager
    def kept_when_stopped(self) -> Iterator[None]:
        """Let Ctrl-C out as a KeyboardInterrupt that says where the chunks are."""
        try:
            yield
        except (KeyboardInterrupt, SystemError) as stop:
            if self.folder is None or not is_interrupt(stop):
                raise
            raise KeyboardInterrupt(f"what is finished is in {self.folder}: the same command goes on") from None

    def clear(self) -> None:
        """Remove all chunks, when the results are written: the first process does it, when all have read them."""
        _wait_for_all()
        if self.folder is not None and self.share.index == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _decoded(self, gathering: Gathering, indices: list[int]) -> Iterator[Any]:
        if not indices:
            return
        groups = DataLoader(
            Subset(gathering.items, indices),  # type: ignore[arg-type]  # it takes whatever has places
            batch_size=gathering.together,
            num_workers=min(self.workers, len(indices)),
            collate_fn=list,
            generator=torch.Generator(),  # else it draws from the global one
        )
        for group in groups:
            yield from group


class _Kept:
    """The chunks of one gathering, in a folder of their own or nowhere but in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._held: dict[int, Rows] = {}

    def read(self, number: int) -> Rows | None:
        """A chunk that was made; None where it was not, or its file is damaged."""
        if self.folder is None:
            return self._held.get(number)
        try:
            return _FORMAT.load(self._file(self.folder, number), lambda header: None, lambda header, tensors: tensors)
        except (FileNotFoundError, ValueError):
            return None

    def write(self, number: int, rows: Rows) -> None:
        """Keep a chunk."""
        if self.folder is None:
            self._held[number] = rows
        else:
            contiguous = {name: values.contiguous() for name, values in rows.items()}
            _FORMAT.save(self._file(self.folder, number), contiguous, {})

    def all(self, gathering: Gathering, count: int) -> Rows:
        """The rows of all chunks, in order."""
        chunks = [self.read(number) for number in range(count)]
        absent = [number for number, chunk in enumerate(chunks) if chunk is None]
        if absent:
            raise ValueError(f"{self.folder}: chunks {absent} are missing; do all processes share this folder?")
        held = [chunk for chunk in chunks if chunk is not None]
        shapes = [{name: values.shape[1:] for name, values in chunk.items()} for chunk in held]
        if any(one != shapes[0] for one in shapes):
            raise ValueError(f"{gathering.name}: not all {gathering.items_are} gave the same kind of numbers")
        return {name: torch.cat([chunk[name] for chunk in held]) for name in held[0]}

    def _file(self, folder: Path, number: int) -> Path:
        return folder / f"{number:06d}.safetensors"


def _wait_for_all() -> None:
    if Share.of_this_process().count > 1:
        torch.distributed.barrier()


def _readable(item: Any) -> Any:
    if isinstance(item, Unreadable):
        raise item.error()
    return item


def _hash(identity: Any) -> str:
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
