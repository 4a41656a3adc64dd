"""What a cache folder holds when it is opened: its segments, and the table over them.

The table is the one saved at the last close, brought up to date with what came and went since, or
is filled from the segments' footers. Either way it is a hint.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from standby.errors import StandbyError
from standby.files import remove_plainly
from standby.wan import table_file
from standby.wan.locations import NewTable, Table, located
from standby.wan.segment_file import SegmentDamaged, SegmentUnknown
from standby.wan.segments import Found, Segment, Shelf, read_segment, segment_paths
from standby.wan.table import LookupTable

TABLE_NAME = "index.table"

_COVERED = struct.Struct("<II8s")
"""A segment that a saved table covers: number, pieces, start of its id."""

_SWEEPS_MAX = 8
"""A sweep over the table costs some 0.3 s for each GB; beyond that many it is filled anew."""


@dataclass(slots=True)
class Loaded:
    """What was found."""

    table: Table
    open_ones: list[Found] = field(default_factory=list)
    """Segments without a sound footer."""
    problems: list[str] = field(default_factory=list)
    covered: dict[int, tuple[bytes, int]] = field(default_factory=dict)


def load(folder: Path, shelf: Shelf, index_bytes: int, new_table: NewTable | None) -> Loaded:
    """Put every segment on the shelf and its names into a table. A file of which nothing can be
    used is removed; one of another release's format is left alone. Both are told as problems."""
    if new_table is None:
        loaded = _saved(folder, index_bytes)
    else:
        loaded = Loaded(new_table(index_bytes))
    segments: list[Segment] = []
    names = {}
    for number, path in segment_paths(folder):
        try:
            found = read_segment(path, number)
        except SegmentUnknown as exc:
            loaded.problems.append(f"{path.name}: {exc}")
            continue
        except (SegmentDamaged, StandbyError) as exc:
            loaded.problems.append(f"{path.name}: {exc}; removed")
            _remove(path)
            continue
        if found.problem:
            kept = f"{found.segment.pieces} pieces before that are kept"
            loaded.problems.append(f"{path.name}: {found.problem}; {kept}")
        if not found.segment.is_sealed:
            loaded.open_ones.append(found)
            names[number] = found.names
        segments.append(found.segment)
    shelf.add(*segments)
    _drop_stale(loaded, segments, index_bytes)
    if isinstance(loaded.table, LookupTable) and not loaded.table.entries:
        loaded.table.expect(sum(segment.pieces for segment in segments))
    for segment in segments:
        mark, covered = loaded.covered.get(segment.number, (b"", 0))
        start = covered if mark == segment.header.mark else 0
        held = names.get(segment.number)
        if start >= segment.pieces:
            continue
        if held is None:
            try:
                _, held = shelf.facts(segment)
            except (SegmentDamaged, StandbyError) as exc:
                loaded.problems.append(f"{segment.path.name}: {exc}; removed")
                shelf.take_off(segment)
                continue
        places = located(segment.number, start, segment.pieces - start)
        loaded.table.insert(held[start:], places)
    return loaded


def _remove(path: Path) -> None:
    try:
        remove_plainly(path)
    except (OSError, StandbyError):
        pass  # it is left out again next time


def _saved(folder: Path, index_bytes: int) -> Loaded:
    path = folder / TABLE_NAME
    found = table_file.load(path, index_bytes)
    whole = len(found.note) // _COVERED.size * _COVERED.size
    rows = _COVERED.iter_unpack(found.note[:whole])
    return Loaded(found.table, covered={number: (mark, pieces) for number, pieces, mark in rows})


def _drop_stale(loaded: Loaded, segments: list[Segment], index_bytes: int) -> None:
    """Take out of a saved table what leads to segments that are not there any more."""
    present = {segment.number: segment for segment in segments}
    ranges: list[tuple[int, int]] = []
    joins = False
    for number in sorted(loaded.covered.keys() | present.keys()):
        segment = present.get(number)
        mark, pieces = loaded.covered.get(number, (b"", 0))
        if segment is not None and segment.header.mark == mark and pieces <= segment.pieces:
            joins = False
            continue
        if segment is not None and number not in loaded.covered:
            joins = False
            continue
        is_shorter = segment is not None and segment.header.mark == mark
        first = segment.pieces if is_shorter and segment is not None else 0
        start = int(located(number, first, 1)[0])
        stop = int(located(number + 1, 0, 1)[0])
        if joins and not first:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((start, stop))
        joins = True
    if len(ranges) > _SWEEPS_MAX:
        loaded.table, loaded.covered = LookupTable(index_bytes), {}
        return
    for start, stop in ranges:
        loaded.table.remove_between(start, stop)


def save(folder: Path, shelf: Shelf, table: Table) -> str:
    """Save the table for the next opening; why it was not, '' when it was. The cache may be used
    meanwhile: what comes in or goes then is seen to at the opening. One caller at a time."""
    if not isinstance(table, LookupTable):
        return "a table that cannot be saved"
    rows = [_COVERED.pack(s.number, s.pieces, s.header.mark) for s in shelf]
    note = b"".join(rows)
    try:
        if len(note) > table_file.NOTE_MAX:
            remove_plainly(folder / TABLE_NAME)
            return "too many segments"
        table_file.save(table, folder / TABLE_NAME, note)
    except (OSError, StandbyError) as exc:
        return str(exc)
    return ""
