"""Making room: whole segments go, the oldest first; what was read since the last pass is copied
forward (CLOCK: a second chance, not two).

No record is ever deleted alone, so a segment is written once and removed once. Of each segment at
most half is copied forward, the records hit most: every pass frees at least half of what it looks
at, whatever is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from standby.errors import StandbyError
from standby.files import File
from standby.wan.appending import Run
from standby.wan.segment_file import (
    NAME,
    RECORD_HEAD,
    Directory,
    SegmentDamaged,
    read_record,
)
from standby.wan.segments import Segment, Shelf, is_content


def victim(shelf: Shelf, spared: Iterable[int] = ()) -> Segment | None:
    """The segment to go next: the oldest sealed one that no transfer counts on. Segments of entries
    into disk files take little room; they go when nothing else is left."""
    kept = set(spared)
    left: Segment | None = None
    for segment in shelf:
        if not segment.is_sealed or segment.number in kept or shelf.is_pinned(segment):
            continue
        if is_content(segment):
            return segment
        left = left or segment
    return left


def hot_records(segment: Segment, directory: Directory, room: int) -> npt.NDArray[np.int64]:
    """Which records to keep, in order: those hit most, as many as fit into `room` bytes and into
    half of the segment."""
    if segment.hits is None or not is_content(segment):
        return np.empty(0, dtype=np.int64)
    hits = segment.hits[: segment.records].astype(np.int64)
    hits[[index for index in segment.bad if index < len(hits)]] = 0
    order = np.argsort(-hits, kind="stable")
    order = order[hits[order] > 0]
    lengths = record_lengths(directory)[order]
    kept = order[np.cumsum(lengths) <= min(room, segment.size // 2)]
    return np.sort(kept)


def record_lengths(directory: Directory) -> npt.NDArray[np.int64]:
    """Bytes of each record in the file."""
    counts = directory["count"].astype(np.int64)
    return RECORD_HEAD + NAME * counts + directory["payload"].astype(np.int64)


def copied_runs(
    shelf: Shelf, segment: Segment, directory: Directory, records: npt.NDArray[np.int64]
) -> list[Run]:
    """The records' contents, to be appended elsewhere; a damaged one is left out."""
    runs = []
    try:
        with shelf.using(segment) as file:
            for index in records.tolist():
                run = _run(file, segment, directory, index)
                if run is not None:
                    runs.append(run)
    except (SegmentDamaged, StandbyError):
        return runs
    return runs


def _run(file: File, segment: Segment, directory: Directory, index: int) -> Run | None:
    offset = int(directory["offset"][index])
    try:
        record = read_record(file, segment.header, offset, segment.size)
    except (SegmentDamaged, StandbyError):
        segment.bad.add(index)
        return None
    if record is None or record.first != directory["first"][index]:
        return None
    return Run(record.names, record.payload, record.codec, record.place)
