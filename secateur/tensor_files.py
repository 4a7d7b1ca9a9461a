"""Tensors and a JSON header in one safetensors file, without pickle; format and version are checked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.files import replacing_file

_HEADER = "secateur"
_ALIGNMENT = 64
"""Bytes: what torch allocates on a CPU begins at a multiple of it."""

Restored = TypeVar("Restored")


@dataclass(frozen=True, slots=True)
class TensorFormat:
    """A kind of file.

    Args:
        name: what such a file is: "secateur neural field".
        version: of what is in it.
        article: stands before the name in messages; "" where the name is a plural.
    """

    name: str
    version: int
    article: str = "a "

    def save(self, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> int:
        """Write contiguous CPU tensors, and `fields` that JSON holds, in the place of `path`; returns the bytes."""
        header = {"format": self.name, "version": self.version, **fields}
        with replacing_file(path) as temporary:
            save_file(dict(tensors), temporary, {_HEADER: json.dumps(header, sort_keys=True)})
        return Path(path).stat().st_size

    def load(
        self,
        path: str | os.PathLike[str],
        check: Callable[[dict[str, Any]], None],
        restore: Callable[[dict[str, Any], dict[str, Tensor]], Restored],
    ) -> Restored:
        """What `restore` makes of a file's header and tensors.

        Args:
            path: the file.
            check: raises ValueError for a header whose fields will not do, before any tensor is read.
            restore: may raise ValueError, TypeError, KeyError, OverflowError or RuntimeError for what does not fit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such file, of another version, or damaged; names the file and what is wrong.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                header = self._checked((file.metadata() or {}).get(_HEADER))
                check(header)
                tensors = {name: aligned(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  no mapping
            return restore(header, tensors)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file, or one that is cut short ({error})") from error
        except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def _checked(self, text: str | None) -> dict[str, Any]:
        if text is None:
            raise ValueError(f"no header {_HEADER!r}: not {self.article}{self.name}")
        header = json.loads(text)
        if not isinstance(header, dict) or header.get("format") != self.name:
            raise ValueError(f"not {self.article}{self.name}")
        if header.get("version") != self.version:
            raise ValueError(f"version {header.get('version')!r} of the format; this reads version {self.version}")
        return header


def aligned(tensor: Tensor) -> Tensor:
    """The tensor where kernels expect it: as it comes out of a file, it lies at any address.

    From there torch takes other kernels, which are slower and add in another order: outputs would differ in the last
    bits from those of the tensor that was saved.
    """
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor
