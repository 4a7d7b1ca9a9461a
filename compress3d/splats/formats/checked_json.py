"""JSON from strangers: every access checks what it finds and names it when it is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Json:
    """A value inside a JSON document, and where it stands.

    Args:
        value: what `json.loads` gave.
        file: the document's name, for messages.
        keys: the way from the document's top to the value, such as "means.mins".
    """

    value: Any
    file: str
    keys: str = ""

    @classmethod
    def parse(cls, text: bytes, file: str) -> Json:
        """The document in the UTF-8 `text` of `file`.

        Raises:
            ValueError: it is not JSON.
        """
        try:
            return cls(json.loads(text.decode("utf-8-sig")), file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: not JSON: {error}") from error

    @property
    def where(self) -> str:
        """File and keys, for messages."""
        return f"{self.file}: {self.keys}" if self.keys else self.file

    def __getitem__(self, key: str | int) -> Json:
        """A member of an object, or an entry of an array."""
        found = self.get(key)
        if found is None:
            raise ValueError(f"{self.file}: {self._below(key)} is missing")
        return found

    def get(self, key: str | int) -> Json | None:
        """The same, or None where there is none (or a null)."""
        if isinstance(key, str):
            value = self._as(dict, "an object").get(key)
        else:
            entries = self._as(list, "an array")
            value = entries[key] if 0 <= key < len(entries) else None
        return None if value is None else Json(value, self.file, self._below(key))

    def __len__(self) -> int:
        return len(self._as(list, "an array"))

    def __iter__(self) -> Iterator[Json]:
        for index, value in enumerate(self._as(list, "an array")):
            yield Json(value, self.file, self._below(index))

    def names(self) -> list[str]:
        """What the members of an object are called."""
        return list(self._as(dict, "an object"))

    def text(self) -> str:
        """A string."""
        return str(self._as(str, "a string"))

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        value = self.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{self.where} must be a whole number from {low} to {high}, got {self._shown()}")
        return value

    def number(self) -> float:
        """A finite number that float32 can hold."""
        if isinstance(self.value, int | float) and not isinstance(self.value, bool) and abs(self.value) < 3.4e38:
            return float(self.value)
        raise ValueError(f"{self.where} must be a finite number of 32 bits, got {self._shown()}")

    def numbers(self, fewest: int, most: int | None = None) -> list[float]:
        """An array of `fewest` to `most` finite numbers; `most` is `fewest` when left out."""
        most = fewest if most is None else most
        entries = self._as(list, "an array")
        if not fewest <= len(entries) <= most:
            wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            raise ValueError(f"{self.where} must have {wanted} numbers, got {len(entries)}")
        return [entry.number() for entry in self]

    def _below(self, key: str | int) -> str:
        if isinstance(key, int):
            return f"{self.keys}[{key}]"
        return f"{self.keys}.{key}" if self.keys else key

    def _as(self, kind: type, name: str) -> Any:
        if not isinstance(self.value, kind):
            raise ValueError(f"{self.where} must be {name}, got {self._shown()}")
        return self.value

    def _shown(self) -> str:
        if isinstance(self.value, int) and abs(self.value) > 10**30:
            return "a number beyond all measure"
        shown = repr(self.value) if not isinstance(self.value, dict | list) else type(self.value).__name__
        return shown if len(shown) < 60 else shown[:57] + "..."
