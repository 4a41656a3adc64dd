"""What the names in the segments say of a table's answers: which hits are none, and what stands
beside those that are.

The table keeps some bits of a name, so it answers one question in some thousands wrongly. And
beyond its budget it knows one piece in 16 only; but content that was written together is mostly
asked for together. A question may consist of whole names or of some bytes of each (`columns`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from standby.wan.locations import NONE, POSITION_BITS, Locations, numbers_of, positions_of
from standby.wan.segment_file import NAME, Names

WINDOW = 512
"""Pieces to either side of a hit that are compared: 2 MiB of content."""

Columns = tuple[int, ...]
"""Which bytes of a name a question has, eight at most; () for all."""
Words = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

NamesAt = Callable[[int, Positions], Names | None]
"""Names at positions of a segment; None where it is gone or damaged. A position behind its end has
a name of zeros."""
NamesOf = Callable[[int], Names | None]
"""All names of a segment, in order of position; None where it is gone or damaged."""


def words(names: Names, columns: Columns) -> Words:
    """The bytes that count, as (n, 1) or (n, 2) numbers that are equal when the bytes are."""
    if not columns:
        return np.ascontiguousarray(names).view(np.uint64)
    packed = np.zeros((len(names), 8), dtype=np.uint8)
    packed[:, : len(columns)] = names[:, list(columns)]
    return packed.view(np.uint64)


def widened(asked: npt.NDArray[np.uint8], columns: Columns) -> Names:
    """Names that have the bytes asked for, and zeros."""
    names = np.zeros((len(asked), NAME), dtype=np.uint8)
    names[:, list(columns)] = asked
    return names


def confirmed(names: Names, found: Locations, columns: Columns, names_at: NamesAt) -> Locations:
    """`found` without the hits whose place holds another name."""
    hits = np.flatnonzero(found != NONE)
    if not len(hits):
        return found
    result = found.copy()
    numbers, positions = numbers_of(found[hits]), positions_of(found[hits])
    wanted = words(names[hits], columns)
    for group in groups(numbers):
        held = names_at(int(numbers[group[0]]), positions[group])
        if held is None:
            result[hits[group]] = NONE
        else:
            differs = (words(held, columns) != wanted[group]).any(axis=1)
            result[hits[group[differs]]] = NONE
    return result


def groups(numbers: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """The indices of equal numbers, each group in order."""
    if not len(numbers):
        return []
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order])) + 1
    return np.split(order, starts)


def extended(
    names: Names, found: Locations, columns: Columns, names_of: NamesOf
) -> tuple[Locations, int]:
    """(locations, how many were added): for each confirmed hit, its neighbours in the question
    that are its neighbours in the segment too."""
    result = found.copy()
    hits = np.flatnonzero(found != NONE)
    wanted = words(names, columns)
    reached = -1
    last = 0
    numbers, positions = numbers_of(found), positions_of(found)
    held_words: dict[int, Words | None] = {}
    for index in hits.tolist():
        number, position = int(numbers[index]), int(positions[index])
        diagonal = (number << POSITION_BITS) + position - index
        if index <= reached and diagonal == last:
            continue
        if number not in held_words:
            held = names_of(number)
            held_words[number] = None if held is None else words(held, columns)
        there = held_words[number]
        if there is None or position >= len(there):
            continue
        before = min(index, position, WINDOW)
        after = min(len(names) - index, len(there) - position, WINDOW)
        equal = (
            there[position - before : position + after] == wanted[index - before : index + after]
        ).all(axis=1)
        part = result[index - before : index + after]
        start = diagonal + index - before
        places = np.arange(start, start + len(part), dtype=np.uint64)
        np.copyto(part, places, where=equal & (part == NONE))
        reached, last = index + after - 1, diagonal
    return result, int(np.count_nonzero(result != NONE)) - len(hits)
