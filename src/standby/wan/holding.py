"""What a target holds, for the decoder of one disk: the global cache by name, disks by address."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from standby.errors import StandbyError
from standby.wan.locations import Locations, Names
from standby.wan.references import NOW, PIECE, Array

Pieces = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Reader(Protocol):
    """A disk's content in one state; every VirtualDisk is one."""

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk."""

    def read_into(self, offset: int, buffer: Any) -> None:
        """Fill `buffer` with the content from `offset`, a multiple of PIECE, in whole pieces or to
        the disk's end; raises StandbyError where it cannot."""


class Cached(Protocol):
    """The half of `decoding.Held` that knows names; every CacheTransfer is one."""

    def find(self, asked: NDArray[np.uint8]) -> tuple[Mask, Locations]:
        """As Held.find."""

    def read_found(self, locations: Locations, rows: Array, out: Pieces) -> Mask:
        """As Held.read_found."""

    def disprove(self, locations: Locations, names: Names) -> None:
        """As Held.disprove."""

    def release(self, locations: Locations) -> None:
        """As Held.release."""


@dataclass(frozen=True, slots=True)
class _Place:
    base: int
    before: Reader | None
    now: Reader | None


class Holding:
    """`decoding.Held` over the cache and over disks that this side opened.

    `add_disk` says which addresses a disk has; what is in none of them, or cannot be read, is not
    held. One thread at a time; another decoder has another.
    """

    def __init__(self, cached: Cached) -> None:
        """`cached` answers questions; it stays the caller's to close."""
        self.find = cached.find
        self.read_found = cached.read_found
        self.disprove = cached.disprove
        self.release = cached.release
        self._places: list[_Place] = []

    def add_disk(self, base: int, *, before: Reader | None, now: Reader | None) -> None:
        """A disk from the address `base` on: its newest restore point, and what the session under
        way has written so far; None where there is no such state. Stays the caller's to close."""
        self._places.append(_Place(base, before, now))
        self._places.sort(key=lambda place: place.base)

    def read(self, addresses: Array, lengths: Array, out: Pieces) -> Mask:
        """From the disks."""
        ok = np.zeros(len(addresses), bool)
        view: Any = memoryview(out)  # type: ignore[arg-type]
        at = 0
        ranges = zip(addresses.tolist(), lengths.tolist(), strict=True)
        for row, (address, length) in enumerate(ranges):
            ok[row] = self._read(address, view[at : at + length])
            at += length
        return ok

    def _read(self, address: int, buffer: Any) -> bool:
        offset = address & ~NOW
        index = bisect_right(self._places, offset, key=lambda place: place.base) - 1
        if index < 0:
            return False
        place = self._places[index]
        reader = place.now if address & NOW else place.before
        offset -= place.base
        if reader is None or offset >= reader.virtual_size:
            return False
        # A last piece beyond the disk's end is padded with zeros, on either side.
        there = min(len(buffer), reader.virtual_size - offset)
        if len(buffer) - there >= PIECE:
            return False
        try:
            _read_any(reader, offset, buffer[:there])
        except StandbyError:
            return False
        buffer[there:] = bytes(len(buffer) - there)
        return True


def _read_any(reader: Reader, offset: int, buffer: Any) -> None:
    """From any byte on: disks read whole sectors."""
    first, stop = offset // PIECE * PIECE, -(-(offset + len(buffer)) // PIECE) * PIECE
    stop = min(stop, reader.virtual_size)
    if (first, stop) == (offset, offset + len(buffer)):
        reader.read_into(offset, buffer)
        return
    whole = memoryview(bytearray(stop - first))
    reader.read_into(first, whole)
    buffer[:] = whole[offset - first : offset - first + len(buffer)]
