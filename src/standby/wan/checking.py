"""Reading a whole cache and dropping what is bad in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from standby.errors import StandbyError
from standby.ports import Progress
from standby.wan.appending import Run
from standby.wan.disk_content import DiskChanged
from standby.wan.locations import located
from standby.wan.namespace import Core
from standby.wan.payloads import unpacked
from standby.wan.segment_file import (
    Directory,
    DiskFile,
    Names,
    Record,
    SegmentDamaged,
    read_record,
)
from standby.wan.segments import Segment, is_content

KeyOf = Callable[[bytes], bytes | None]
"""The key of a namespace's fingerprint, None where it is not known."""

_AT_ONCE = 64
"""Records that are copied at a time: 8 MiB at most."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written."""

    file: str
    offset: int
    """Of the record in the file; 0 for the file as a whole."""
    pieces: int
    problem: str


@dataclass(slots=True)
class CheckReport:
    """What a check read and found."""

    drops: bool = True
    """What is bad was dropped."""
    segments: int = 0
    records: int = 0
    pieces: int = 0
    bytes: int = 0
    unnamed_pieces: int = 0
    """Pieces whose key was not given: their checksums were compared, their names were not."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.findings


def check_cache(
    core: Core, key_of: KeyOf, progress: Progress | None = None, *, drop: bool = True
) -> CheckReport:
    """Read all that the cache holds, compare checksums, and names where the key is known; `drop`
    what is bad. Others may use the cache meanwhile.

    A damaged segment's sound records are copied to the open one before it goes, so that a restart
    does not meet the damage again.
    """
    report = CheckReport(drops=drop)
    segments = list(core.shelf)
    total = sum(segment.size for segment in segments)
    for segment in segments:
        if segment.is_gone:
            continue
        report.segments += 1
        key = key_of(segment.header.namespace)
        if is_content(segment):
            _check_content(core, segment, key, report)
        else:
            _check_entries(core, segment, key, report)
        report.bytes += segment.size
        if progress is not None:
            progress(min(report.bytes, total), total)
    return report


# --- segments with content ---------------------------------------------------------------------


def _check_content(core: Core, segment: Segment, key: bytes | None, report: CheckReport) -> None:
    try:
        directory, names = core.shelf.facts(segment)
    except (SegmentDamaged, StandbyError) as exc:
        _drop_whole(core, segment, str(exc), report)
        return
    bad: list[int] = []
    for index in range(len(directory)):
        problem = _problem_of(core, segment, directory, names, index, key)
        count = int(directory["count"][index])
        report.records += 1
        report.pieces += count
        report.unnamed_pieces += 0 if key is not None else count
        if problem and not segment.is_gone:
            bad.append(index)
            offset = int(directory["offset"][index])
            report.findings.append(Finding(segment.path.name, offset, count, problem))
    if bad and report.drops:
        core.counters.add(damaged=int(directory["count"][bad].sum()))
        _rewrite(core, segment, directory, names, set(bad))


def _problem_of(
    core: Core, segment: Segment, directory: Directory, names: Names, index: int, key: bytes | None
) -> str:
    """What is wrong with a record, '' when nothing is."""
    try:
        record = _record(core, segment, directory, index)
        pieces = unpacked(record.payload, record.codec, record.count)
    except (SegmentDamaged, StandbyError) as exc:
        return str(exc)
    wanted = names[record.first : record.first + record.count]
    if not np.array_equal(record.names, wanted):
        return "its names are not those of the footer"
    if key is not None and not np.array_equal(core.name_pieces(pieces, key), wanted):
        return "content that is not what its name says"
    return ""


def _record(core: Core, segment: Segment, directory: Directory, index: int) -> Record:
    with core.shelf.using(segment) as file:
        offset = int(directory["offset"][index])
        record = read_record(file, segment.header, offset, segment.size)
    if record is None or record.number != index or record.count != directory["count"][index]:
        raise SegmentDamaged("another record than the directory says")
    return record


def _drop_whole(core: Core, segment: Segment, problem: str, report: CheckReport) -> None:
    if segment.is_gone:
        return
    report.findings.append(Finding(segment.path.name, 0, segment.pieces, problem))
    if report.drops:
        core.intake.drop(segment)


def _rewrite(
    core: Core, segment: Segment, directory: Directory, names: Names, bad: set[int]
) -> None:
    """Forget the bad records, and copy the others to where they are not bad."""
    with core.intake.lock:
        segment.bad |= bad
        for index in sorted(bad):
            first, count = int(directory["first"][index]), int(directory["count"][index])
            core.table.remove(
                np.ascontiguousarray(names[first : first + count]),
                located(segment.number, first, count),
            )
        if not segment.is_sealed and not core.intake.seal_open(segment):
            return
        good = [index for index in range(len(directory)) if index not in bad]
        for start in range(0, len(good), _AT_ONCE):
            runs = []
            for index in good[start : start + _AT_ONCE]:
                try:
                    record = _record(core, segment, directory, index)
                except (SegmentDamaged, StandbyError):
                    continue
                runs.append(Run(record.names, record.payload, record.codec))
            if core.intake.take(segment.header.namespace, runs) < sum(len(r.names) for r in runs):
                return  # no room now: what is bad is forgotten, the rest stays where it is
        core.intake.drop(segment)


# --- segments of entries into disk files -------------------------------------------------------


def _check_entries(core: Core, segment: Segment, key: bytes | None, report: CheckReport) -> None:
    disk = segment.header.disk
    assert disk is not None
    try:
        directory, names = core.shelf.facts(segment)
    except (SegmentDamaged, StandbyError) as exc:
        _drop_whole(core, segment, str(exc), report)
        return
    wrong = 0
    for index in range(len(directory)):
        row = directory[index]
        first, count = int(row["first"]), int(row["count"])
        report.records += 1
        report.pieces += count
        report.unnamed_pieces += 0 if key is not None else count
        try:
            wrong += _wrong_entries(core, disk, names[first : first + count], row, key)
        except DiskChanged as exc:
            _drop_whole(core, segment, f"{disk.path}: {exc}", report)
            core.counters.add(invalidated=int(report.drops))
            return
    if wrong:
        problem = f"{disk.path} holds other content than was indexed"
        _drop_whole(core, segment, problem, report)
        core.counters.add(damaged=wrong if report.drops else 0)


def _wrong_entries(
    core: Core, disk: DiskFile, names: Names, row: np.void, key: bytes | None
) -> int:
    """How many pieces of a record are not there as they were indexed."""
    places = int(row["place"]) + np.arange(len(names), dtype=np.int64)
    pieces, ok = core.disks.read(disk, places)
    if key is not None:
        ok &= (core.name_pieces(pieces, key) == names).all(axis=1)
    return int(np.count_nonzero(~ok))
