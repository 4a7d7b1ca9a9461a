"""What subjects are called: no two the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def distinct_names(names: Sequence[str], paths: Sequence[object], taken: Collection[str]) -> list[str]:
    """A name for each candidate: its own, its path where two have the same, with a mark where even that is taken.

    Args:
        names: of the candidates.
        paths: where they lie, in the same order.
        taken: what no candidate may be called: the reference's name.
    """
    found: list[str] = []
    for name, path in zip(names, paths, strict=True):
        plain = name if list(names).count(name) == 1 else str(path)
        plain = f"{plain} (candidate)" if plain in taken else plain
        chosen, number = plain, 2
        while chosen in found or chosen in taken:
            chosen, number = f"{plain} ({number})", number + 1
        found.append(chosen)
    return found
