"""Reading records of one segment: neighbours in one read, each decoded once.

Their checksums are not compared here, which took a fifth of the time: whoever hands content out
computes its names anew and compares those, which proves more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from standby.errors import StandbyError
from standby.files import File
from standby.units import MiB
from standby.wan.payloads import Pieces, unpacked
from standby.wan.segment_file import NAME, RECORD_HEAD, Directory, SegmentDamaged, parsed_record
from standby.wan.segments import Segment, SegmentAway, Shelf

READ_MAX = 2 * MiB
"""Of neighbouring records that one read gets."""

Numbers = npt.NDArray[np.int64]


class _Buffer(threading.local):
    """One buffer for each thread: fresh memory costs as much as the read."""

    def __init__(self) -> None:
        self._held = np.empty(0, dtype=np.uint8)

    def of(self, length: int) -> npt.NDArray[np.uint8]:
        """`length` bytes, good until the next call."""
        if len(self._held) < length:
            self._held = np.empty(max(length, READ_MAX), dtype=np.uint8)
        return self._held[:length]


_buffer = _Buffer()


def decoded_records(
    shelf: Shelf, segment: Segment, directory: Directory, wanted: Numbers
) -> Iterator[tuple[int, Pieces | None]]:
    """(record, its pieces) of the records `wanted`, in rising order; None for one that cannot be
    read. The pieces are not proven, and stay until the next is asked for. Ends early where the
    segment cannot be read now; raises SegmentDamaged where its file is missing."""
    try:
        with shelf.using(segment) as file:
            for indices in _neighbours(directory, wanted):
                yield from _read(file, segment, directory, indices)
    except SegmentAway:
        return


def _neighbours(directory: Directory, wanted: Numbers) -> list[list[int]]:
    """The records in groups that one read gets."""
    groups: list[list[int]] = []
    length = 0
    sizes = _lengths(directory[wanted])
    for index, size in zip(wanted.tolist(), sizes.tolist(), strict=True):
        if groups and groups[-1][-1] == index - 1 and length + size <= READ_MAX:
            groups[-1].append(index)
            length += size
        else:
            groups.append([index])
            length = size
    return groups


def _lengths(rows: Directory) -> Numbers:
    counts = rows["count"].astype(np.int64)
    lengths: Numbers = RECORD_HEAD + NAME * counts + rows["payload"].astype(np.int64)
    return lengths


def _read(
    file: File, segment: Segment, directory: Directory, indices: list[int]
) -> Iterator[tuple[int, Pieces | None]]:
    rows = directory[indices[0] : indices[-1] + 1]
    start = int(rows["offset"][0])
    sizes = _lengths(rows).tolist()
    data = _buffer.of(sum(sizes)).data
    try:
        file.read_into(data, start)
    except StandbyError:
        if len(indices) == 1:
            yield indices[0], None
            return
        for index in indices:  # one bad sector, or a file cut short, does not cost them all
            yield from _read(file, segment, directory, [index])
        return
    position = 0
    for index, size in zip(indices, sizes, strict=True):
        part = data[position : position + size]
        position += size
        try:
            if index in segment.bad:
                raise SegmentDamaged("known to be damaged")
            record = parsed_record(segment.header, part, is_proven=False)
            row = (record.number, record.first, record.count)
            if row != (index, directory["first"][index], directory["count"][index]):
                raise SegmentDamaged("another record than the directory says")
            pieces = unpacked(record.payload, record.codec, record.count)
        except SegmentDamaged:
            yield index, None
            continue
        yield index, pieces


def spans(rows: Numbers, positions: Numbers, records: Numbers) -> list[tuple[int, int, int, int]]:
    """(row, position, record, count) of each run in which rows and positions rise by one within a
    record; `records` are in order."""
    if not len(rows):
        return []
    breaks = (np.diff(rows) != 1) | (np.diff(positions) != 1) | (np.diff(records) != 0)
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    counts = np.diff(np.append(starts, len(rows)))
    return list(
        zip(
            rows[starts].tolist(),
            positions[starts].tolist(),
            records[starts].tolist(),
            counts.tolist(),
            strict=True,
        )
    )
