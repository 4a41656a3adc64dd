"""Whether a host's change tracking (RCT) can be believed for a disk. Pure.

A tracker id of standby is a text: JSON of `TrackedDisk`, what was true of the disk when the
reference point was made. It is kept in the restore point of that very state (RULES 6), so the next
cycle compares what it finds with what that point says, and with nothing else.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import msgspec
import numpy as np
from numpy.typing import NDArray

from standby.host.hyperv.rows import DiskChanges, Point
from standby.model.extent import Extent
from standby.units import MiB

FORMAT = 1
RCT = 2
SAMPLES = 64
SAMPLE_SIZE = MiB
AUDIT_EVERY = timedelta(days=30)


class TrackedDisk(msgspec.Struct, frozen=True, omit_defaults=True):
    """One disk at a reference point. `ids` are the RCT ids of all disks of that point, by
    controller place, so that one script asks about all of them; `chain` the frozen files, newest
    first, `folded`; `applied` the snapshot that the VM was last set back to; `audited` when all of
    the disk was last read. Where no tracking came of a checkpoint, only `why` is told."""

    version: int = FORMAT
    why: str = ""
    point: str = ""
    place: str = ""
    ids: dict[str, str] = {}
    disk_id: str = ""
    size: int = 0
    chain: tuple[str, ...] = ()
    applied: tuple[str, ...] = ()
    audited: str = ""

    def text(self) -> str:
        """The tracker id."""
        return msgspec.json.encode(self).decode()


def parse_tracker(text: str) -> TrackedDisk | None:
    """What a tracker id says; None for one of another host kind or a later format."""
    try:
        found = msgspec.json.decode(text, type=TrackedDisk)
    except msgspec.MsgspecError:
        return None
    return found if found.version == FORMAT else None


class DiskNow(msgspec.Struct, frozen=True):
    """The disk as the checkpoint froze it."""

    disk_id: str
    size: int
    chain: tuple[str, ...]


def distrust_before(
    then: TrackedDisk, now: DiskNow, at: datetime, audit_every: timedelta = AUDIT_EVERY
) -> str:
    """Why the host need not even be asked, '' when it may be."""
    if then.why:
        return then.why
    if not then.point or not then.ids.get(then.place):
        return "the newest point records no reference point of the host"
    if then.disk_id != now.disk_id:
        return f"the disk's id is {now.disk_id}, {then.disk_id} in the newest point"
    if then.size != now.size:
        return f"the disk has {now.size} bytes, {then.size} in the newest point"
    if then.chain != now.chain:
        if then.chain[:1] != now.chain[:1]:
            was, is_now = then.chain[:1], now.chain[:1]
            return f"the disk's file is {_only(is_now)}, {_only(was)} in the newest point"
        return "the disk's parents are not those of the newest point (a checkpoint was removed)"
    return _audit_due(then.audited, at, audit_every)


def sample_alarm(machine: str, place: str, differing: Sequence[Extent]) -> str:
    """The alarm about a tracker that called ranges unchanged whose content differs from the newest
    point's, '' for none of them."""
    if not differing:
        return ""
    first = differing[0]
    return (
        f"VM {machine}, disk {place}: the host's change tracking said that {len(differing)} of the "
        f"sampled ranges are unchanged, and they differ (first at byte {first.offset}). The disk "
        "is compared whole from now on, and its tracker is not used. Update the host; "
        "disks that other software wrote to past Hyper-V do the same"
    )


def _only(names: Sequence[str]) -> str:
    return names[0] if names else "none"


def _audit_due(audited: str, at: datetime, every: timedelta) -> str:
    try:
        last = datetime.fromisoformat(audited)
    except ValueError:
        return "it is not known when all of the disk was last read"
    if at - last >= every:
        return f"all of the disk is read every {every.days} days (last {audited[:10]})"
    return ""


def distrust_after(
    then: TrackedDisk,
    points: Sequence[Point],
    applied: Sequence[str],
    answer: DiskChanges | None,
) -> str:
    """Why the host's answer is not believed, '' when it is."""
    point = next((item for item in points if item.instance_id == then.point), None)
    if point is None:
        return f"the VM's host does not have the reference point {then.point} any more"
    if point.reference_point_type != RCT:
        return f"the reference point {then.point} is of type {point.reference_point_type}, not RCT"
    if then.ids[then.place] not in (point.resilient_change_tracking_identifiers or ()):
        return f"the reference point {then.point} has other tracking ids than the newest point"
    if tuple(applied) != then.applied:
        return "the VM was set back to a checkpoint since the newest point"
    if answer is None:
        return "the host did not answer about the disk"
    if answer.code != 0:
        said = f" ({answer.message})" if answer.message else ""
        return f"GetVirtualDiskChanges returned {answer.code}{said}"
    if answer.processed < then.size:
        return f"GetVirtualDiskChanges stopped at byte {answer.processed} of {then.size}"
    return ""


def changed_ranges(lines: str, size: int) -> NDArray[np.int64]:
    """(n, 2) offsets and lengths in order, without overlap, clipped to the disk; ValueError for
    lines that are none, or ranges that begin outside the disk."""
    offsets: list[NDArray[np.uint64]] = []
    lengths: list[NDArray[np.uint64]] = []
    for line in lines.split("\n"):
        first, separator, second = line.strip().partition(";")
        if not separator and not first:
            continue
        starts, counts = _numbers(first), _numbers(second)
        if not separator or len(starts) != len(counts):
            raise ValueError("a line of changes has offsets and as many lengths")
        offsets.append(starts)
        lengths.append(counts)
    if not offsets:
        return np.empty((0, 2), dtype=np.int64)
    starts, counts = np.concatenate(offsets), np.concatenate(lengths)
    if len(starts) and (int(starts.max()) >= size or int(counts.max()) > 1 << 62):
        raise ValueError(f"a range begins beyond the disk's {size} bytes")
    return _joined(starts.astype(np.int64), counts.astype(np.int64), size)


def _numbers(text: str) -> NDArray[np.uint64]:
    if not text:
        return np.empty(0, dtype=np.uint64)
    return np.array(text.split(","), dtype=np.uint64)


def _joined(starts: NDArray[np.int64], counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    keep = counts > 0
    starts, stops = starts[keep], np.minimum(starts[keep] + counts[keep], size)
    if not len(starts):
        return np.empty((0, 2), dtype=np.int64)
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(stops[order])
    is_first = np.concatenate([[True], starts[1:] > reach[:-1]])
    heads = np.flatnonzero(is_first)
    tails = np.concatenate([heads[1:] - 1, [len(starts) - 1]])
    return np.stack([starts[heads], reach[tails] - starts[heads]], axis=1)


def extents_of(ranges: NDArray[np.int64]) -> list[Extent]:
    """The ranges as extents."""
    return [Extent(offset, length) for offset, length in ranges.tolist()]


def sampled(
    ranges: NDArray[np.int64], size: int, chance: Callable[[int], int], count: int = SAMPLES
) -> list[Extent]:
    """Up to `count` different MiB-aligned pieces of at most 1 MiB that no range touches, in order,
    each as likely as any other; all of them where there are no more. `chance(n)` is below n."""
    pieces = -(-size // SAMPLE_SIZE)
    first = ranges[:, 0] // SAMPLE_SIZE
    last = (ranges[:, 0] + ranges[:, 1] - 1) // SAMPLE_SIZE
    # Touched pieces as disjoint runs; several ranges may touch one piece.
    lows: list[int] = []
    before: list[int] = []  # touched pieces before each run ends, runs included
    touched = 0
    end = 0
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        low = max(low, end)
        if high < low:
            continue
        lows.append(low - touched)  # untouched pieces before this run
        touched += high + 1 - low
        before.append(touched)
        end = high + 1
    free = pieces - touched
    if free <= count:
        chosen: Sequence[int] = range(max(0, free))
    else:
        picked: set[int] = set()
        while len(picked) < count:
            picked.add(chance(free))
        chosen = sorted(picked)
    found = []
    for index in chosen:
        run = bisect.bisect_right(lows, index)
        piece = index + (before[run - 1] if run else 0)
        offset = piece * SAMPLE_SIZE
        found.append(Extent(offset, min(SAMPLE_SIZE, size - offset)))
    return found
