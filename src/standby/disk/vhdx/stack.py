"""A disk as the stack of its layers, child first: resolved run by run, without recursion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from standby.disk.file_ranges import FileRanges, plain
from standby.disk.raw import RawDisk
from standby.disk.vhdx.mapping import DATA, HOLE, ZERO, Map, clipped, filled, single
from standby.errors import ParentRefused
from standby.files import File
from standby.model.extent import Extent, Kind, coalesced
from standby.ports import Buffer, VirtualDisk

Offsets = npt.NDArray[np.int64]

SHORT = 1 << 20
"""Reads up to this length try the way without arrays first."""


class AnyLayer(Protocol):
    """What a stack asks of a layer."""

    @property
    def virtual_size(self) -> int: ...
    def map(self, start: int, stop: int) -> Map: ...
    def whole(self, offset: int, length: int) -> tuple[int, int] | None: ...
    def read_place(self, place: int, buffer: Buffer) -> None: ...
    @property
    def plain_file(self) -> File | None: ...
    def reads_plainly(self, places: Offsets, lengths: Offsets) -> bool: ...


class ForeignLayer:
    """Any VirtualDisk as the lowest layer; places are its own offsets."""

    def __init__(self, disk: VirtualDisk) -> None:
        self._disk = disk

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk."""
        return self._disk.virtual_size

    def map(self, start: int, stop: int) -> Map:
        """Runs of the disk's extents; past its end ZERO."""
        size = self.virtual_size
        if start >= size:
            return single(start, stop, ZERO)
        stop = min(stop, size)
        found = list(self._disk.extents(start, stop))
        starts = np.array([extent.offset for extent in found], dtype=np.int64)
        kinds = np.array([int(extent.kind) for extent in found], dtype=np.int8)
        places = np.where(kinds == DATA, starts, 0)
        return Map(starts, kinds, places, np.zeros(len(found), dtype=np.int16), stop)

    def whole(self, offset: int, length: int) -> tuple[int, int] | None:
        """The range itself, where the disk has it."""
        return (DATA, offset) if offset + length <= self.virtual_size else None

    def read_place(self, place: int, buffer: Buffer) -> None:
        """Fill `buffer` from the disk."""
        self._disk.read_into(place, buffer)

    @property
    def plain_file(self) -> File | None:
        """The file of a raw disk that has all of its bytes."""
        disk = self._disk
        is_whole = isinstance(disk, RawDisk) and disk.file.size == disk.virtual_size
        return plain(disk.file) if isinstance(disk, RawDisk) and is_whole else None

    def reads_plainly(self, places: Offsets, lengths: Offsets) -> bool:
        """Always: nothing lies over a raw disk."""
        return True


class Absent:
    """Stands below a differencing layer whose parent was not opened: refuses to be asked."""

    plain_file: File | None = None

    def __init__(self, child: str, parent: str) -> None:
        self._refusal = (child, parent, "not opened, and the disk asks it for content")
        self.virtual_size = 1 << 63

    def map(self, start: int, stop: int) -> Map:
        """Refused."""
        raise ParentRefused(*self._refusal)

    def whole(self, offset: int, length: int) -> tuple[int, int] | None:
        """Refused."""
        raise ParentRefused(*self._refusal)

    def read_place(self, place: int, buffer: Buffer) -> None:
        """Refused."""
        raise ParentRefused(*self._refusal)

    def reads_plainly(self, places: Offsets, lengths: Offsets) -> bool:
        """Refused."""
        raise ParentRefused(*self._refusal)


def resolved(layers: Sequence[AnyLayer], start: int, stop: int) -> Map:
    """What [start, stop), or a first part of it, holds through all layers."""
    result = layers[0].map(start, stop)
    for index, layer in enumerate(layers[1:], start=1):
        holes = np.flatnonzero(result.kinds == HOLE)
        if not holes.size:
            break
        first, last = int(result.starts[holes[0]]), int(result.stops[holes[-1]])
        below = layer.map(first, last)
        if below.stop < last:
            result = clipped(result, result.start, below.stop)
        result = filled(result, below, index)
    return result


def read_into(layers: Sequence[AnyLayer], offset: int, buffer: Buffer) -> None:
    """Fill `buffer` with what the stack holds from `offset`: one file read per run."""
    view = memoryview(buffer).cast("B")
    length = len(view)
    if length <= SHORT and _read_short(layers, offset, view):
        return
    position, stop = offset, offset + length
    while position < stop:
        runs = resolved(layers, position, stop)
        position = runs.stop
        columns = (runs.starts, runs.stops, runs.kinds, runs.places, runs.layers)
        for first, last, kind, place, layer in zip(*(c.tolist() for c in columns), strict=True):
            part = view[first - offset : last - offset]
            if kind == DATA:
                layers[layer].read_place(place, part)
            else:
                np.frombuffer(part, dtype=np.uint8)[:] = 0


def file_ranges(layers: Sequence[AnyLayer], start: int, stop: int) -> FileRanges | None:
    """Where the layers' files store [start, stop); None when one of them is not a plain file, or a
    log that was not replayed lies over what it stores of it."""
    there = [layer for layer in layers if not isinstance(layer, Absent)]
    files = [file for layer in there if (file := layer.plain_file) is not None]
    if len(files) != len(there):
        return None
    tables = [np.empty((0, 4), dtype=np.int64)]
    while start < stop:
        runs = resolved(layers, start, stop)
        table = np.stack((runs.starts, runs.stops - runs.starts, runs.places, runs.layers), axis=1)
        table = table[runs.kinds == DATA]
        for index, layer in enumerate(there):
            ours = table[table[:, 3] == index]
            if not layer.reads_plainly(ours[:, 2], ours[:, 1]):
                return None
        tables.append(table)
        start = runs.stop
    return FileRanges(np.concatenate(tables), tuple(files))


def _read_short(layers: Sequence[AnyLayer], offset: int, view: memoryview) -> bool:
    for layer in layers:
        if offset + len(view) > layer.virtual_size:
            return False
        found = layer.whole(offset, len(view))
        if found is None:
            return False
        kind, place = found
        if kind == DATA:
            layer.read_place(place, view)
            return True
        if kind == ZERO:
            break
    np.frombuffer(view, dtype=np.uint8)[:] = 0
    return True


def extents(layers: Sequence[AnyLayer], start: int, stop: int) -> Iterator[Extent]:
    """What the stack holds, in order and without gaps, neighbours of one kind joined."""
    return coalesced(_extents(layers, start, stop))


def _extents(layers: Sequence[AnyLayer], start: int, stop: int) -> Iterator[Extent]:
    position = start
    while position < stop:
        runs = resolved(layers, position, stop)
        position = runs.stop
        keep = np.concatenate((np.ones(1, dtype=bool), runs.kinds[1:] != runs.kinds[:-1]))
        starts = runs.starts[keep]
        lengths = np.diff(np.append(starts, runs.stop))
        columns = (starts.tolist(), lengths.tolist(), runs.kinds[keep].tolist())
        for first, length, kind in zip(*columns, strict=True):
            yield Extent(first, length, Kind(kind))
