"""Where a piece stands: segment number and position in it, in the 48 bits that the lookup table
keeps.

    47                      20 19                0
    | segment number, 28 bits | position, 20 bits |

Numbers are given in the order of creation, from 1, and not again while any higher one is there.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from standby.wan.segment_file import PIECES_MAX, Names

__all__ = [
    "NONE",
    "NUMBER_MAX",
    "POSITION_BITS",
    "Locations",
    "Mask",
    "NamePieces",
    "Names",
    "NewTable",
    "Table",
    "located",
    "numbers_of",
    "positions_of",
]

Locations = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

POSITION_BITS = 20
NUMBER_MAX = (1 << 28) - 1
NONE = np.uint64((1 << 64) - 1)
assert 1 << POSITION_BITS == PIECES_MAX


class Table(Protocol):
    """What the cache asks of a lookup table. Several threads may call at once.

    A look-up is a hint: it may name a place of other content (the table keeps 16 bits of a name),
    and lose what was inserted.
    """

    def insert(self, names: Names, locations: Locations) -> object:
        """Add the pairs; a name that is there already gets the new location. Beyond its budget of
        memory the table keeps samples of the names only."""

    def lookup(self, names: Names) -> Locations:
        """A location per name, NONE for those not known."""

    def remove(self, names: Names, locations: Locations) -> object:
        """Forget the pairs that are there."""

    def remove_between(self, start: int, stop: int) -> object:
        """Forget every name whose location is in [start, stop)."""

    def clear(self) -> None:
        """Forget everything."""

    @property
    def is_sampled(self) -> bool: ...
    @property
    def entries(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...


class NewTable(Protocol):
    """Makes an empty table that uses at most `budget_bytes` of memory."""

    def __call__(self, budget_bytes: int) -> Table: ...


class NamePieces(Protocol):
    """Names of the pieces of `data`, (n, 4096) uint8, under a tenant's key: (n, 16) uint8."""

    def __call__(self, data: npt.NDArray[np.uint8], key: bytes) -> Names: ...


def located(number: int, first: int, count: int) -> Locations:
    """The locations of `count` pieces of a segment from position `first` on."""
    start = (number << POSITION_BITS) | first
    return np.arange(start, start + count, dtype=np.uint64)


def numbers_of(locations: Locations) -> npt.NDArray[np.int64]:
    """The segment numbers; of NONE, and of anything else that is none, one that never exists."""
    return (locations >> np.uint64(POSITION_BITS)).astype(np.int64)


def positions_of(locations: Locations) -> npt.NDArray[np.int64]:
    """The positions within the segments."""
    return (locations & np.uint64(PIECES_MAX - 1)).astype(np.int64)
