"""Orders in which given sets lie side by side (the consecutive-ones property)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

Parts = list[frozenset[int]]


def consecutive_order(sets: Collection[frozenset[int]], size: int) -> list[int] | None:
    """An order of 0 to size - 1 in which the members of each set follow one another, or None if there is none.

    Exact (Fulkerson and Gross 1965, Incidence matrices and interval graphs): sets that overlap, neither within the
    other, force an order of the parts that they make, up to its reversal; each such cluster lies within one part of any
    larger one.

    Args:
        sets: sets of numbers below `size`.
        size: how many numbers there are.
    """
    parts: Parts = [frozenset(range(size))]
    clusters = []
    for cluster in _overlapping([each for each in dict.fromkeys(sets) if len(each) > 1]):
        ordered = _ordered(cluster)
        if ordered is None:
            return None
        clusters.append(ordered)
    # The largest first; of clusters over the same numbers the one of a single part holds the other.
    for ordered in sorted(clusters, key=lambda ordered: (-sum(map(len, ordered)), len(ordered))):
        held = frozenset().union(*ordered)
        at = next(index for index, part in enumerate(parts) if held <= part)
        parts[at : at + 1] = [*ordered, parts[at] - held]
    return [number for part in parts for number in sorted(part)]


def _overlapping(sets: Sequence[frozenset[int]]) -> list[list[frozenset[int]]]:
    """Clusters of sets that overlap with one another directly or through others, each set after one it overlaps."""
    waiting = list(sets)
    clusters = []
    while waiting:
        cluster = [waiting.pop(0)]
        for known in cluster:
            found = [each for each in waiting if known & each and not known <= each and not each <= known]
            cluster += found
            waiting = [each for each in waiting if each not in found]
        clusters.append(cluster)
    return clusters


def _ordered(cluster: Sequence[frozenset[int]]) -> Parts | None:
    """The parts that overlapping sets make, in the one order that keeps each set together."""
    parts: Parts = [cluster[0]]
    for each in cluster[1:]:
        beyond = each.difference(*parts)
        hit = [index for index, part in enumerate(parts) if part & each]
        if hit != list(range(hit[0], hit[-1] + 1)) or not all(parts[index] <= each for index in hit[1:-1]):
            return None
        if beyond and not _reaches_end(parts, each, hit):
            parts.reverse()
            hit = [len(parts) - 1 - index for index in reversed(hit)]
            if not _reaches_end(parts, each, hit):
                return None
        first, last = hit[0], hit[-1]
        # The rest of the first part stays before the set, that of the last behind it.
        head, tail = [parts[first] - each], [parts[last] - each] if last > first else []
        inside = [parts[index] & each for index in hit]
        parts[first : last + 1] = [*head, *inside, *tail]
        parts = [part for part in [*parts, beyond] if part]
    return parts


def _reaches_end(parts: Parts, each: frozenset[int], hit: Sequence[int]) -> bool:
    """Whether a set with numbers beyond the parts can go on behind the last one."""
    return hit[-1] == len(parts) - 1 and (len(hit) == 1 or parts[-1] <= each)
