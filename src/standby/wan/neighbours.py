"""Finding what stands beside a hit: a sampled table knows one piece in 16, and content that was
written together is mostly asked for together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from standby.wan.locations import (
    NONE,
    POSITION_BITS,
    Locations,
    Mask,
    numbers_of,
    positions_of,
)
from standby.wan.segment_file import Names

WINDOW = 512
"""Pieces to either side of a hit that are compared: 2 MiB. A hit costs some 20 us for that."""

NamesOf = Callable[[int], Names | None]
"""The names of a segment in order of position; None where it is gone or damaged."""


def extended(names: Names, locations: Locations, names_of: NamesOf) -> tuple[Locations, int]:
    """(locations, how many were added): for each hit, its neighbours in the question that are its
    neighbours in the segment too, by their whole names. A hit whose own name differs is none."""
    result = locations.copy()
    numbers, positions = numbers_of(locations), positions_of(locations)
    wanted = _words(names)
    for index in np.flatnonzero(locations != NONE).tolist():
        held = names_of(int(numbers[index]))
        if held is None:
            result[index] = NONE
            continue
        position = int(positions[index])
        if position >= len(held) or not np.array_equal(held[position], names[index]):
            if result[index] == locations[index]:
                result[index] = NONE
            continue
        if _is_covered(result, index, position):
            continue
        before = min(index, position, WINDOW)
        after = min(len(names) - index, len(held) - position, WINDOW)
        there = _words(held[position - before : position + after])
        equal = (there == wanted[index - before : index + after]).all(axis=1)
        part = result[index - before : index + after]
        start = (int(numbers[index]) << POSITION_BITS) | (position - before)
        places = np.arange(start, start + len(part), dtype=np.uint64)
        np.copyto(part, places, where=equal & (part == NONE))
    return result, int(np.count_nonzero((result != NONE) & (locations == NONE)))


def _is_covered(result: Locations, index: int, position: int) -> bool:
    """Whether an earlier hit on the same diagonal has looked here already."""
    del position
    here = int(result[index])
    return bool(index and int(result[index - 1]) == here - 1 and _covers(result, index, here))


def _covers(result: Locations, index: int, here: int) -> bool:
    last = min(index + 16, len(result) - 1)
    return bool(int(result[last]) == here + (last - index))


def _words(names: Names) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(names).view(np.uint64)


def without(locations: Locations, bad: Mask) -> Locations:
    """The locations with NONE where `bad`."""
    return np.where(bad, NONE, locations)
