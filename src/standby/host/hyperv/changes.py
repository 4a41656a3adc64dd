"""What changed on a VM's disks since a reference point: one script for all disks of the VM.

The answer of each disk is believed only as `trust` says; 64 random MiB that the tracker calls
unchanged come with it, to be read all the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from standby.host.hyperv.asking import Asking
from standby.host.hyperv.records import RecordedDisk
from standby.host.hyperv.rows import CHANGES, Changes
from standby.host.hyperv.trust import (
    TrackedDisk,
    changed_ranges,
    distrust_after,
    extents_of,
    sampled,
)
from standby.model.extent import Extent


@dataclass(frozen=True, slots=True)
class TrackedRanges:
    """The answer of a host's change tracker (`ports.TrackedChanges`). `samples` are ranges that it
    calls unchanged: a difference there means that it lies."""

    ranges: Sequence[Extent] | None
    reason: str = ""
    samples: Sequence[Extent] = field(default=())


class Answers:
    """What was answered about checkpoints that are open, by checkpoint and reference point: a VM
    that goes to two targets has a point of each. Thread-safe."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Changes] = {}
        self._lock = threading.Lock()

    def of(self, checkpoint: str, then: TrackedDisk, ask: Callable[[], Changes]) -> Changes:
        """The answer that is kept, or what `ask` gives; an answer without this disk is asked
        for again."""
        key = (checkpoint, then.point)
        with self._lock:
            found = self._kept.get(key)
        if found is None or not any(disk.place == then.place for disk in found.disks):
            found = ask()
            with self._lock:
                self._kept[key] = found
        return found

    def drop(self, checkpoint: str) -> None:
        """The checkpoint is given up."""
        with self._lock:
            self._kept = {key: item for key, item in self._kept.items() if key[0] != checkpoint}


def ask_changes(
    door: Asking,
    machine_id: str,
    files: Mapping[str, str],
    disks: Sequence[RecordedDisk],
    then: TrackedDisk,
) -> Changes:
    """Ask about every disk of the checkpoint that the reference point of `then` tracks; `files` are
    the frozen files by place."""
    wanted = [
        {
            "place": disk.place,
            "path": files[disk.place],
            "limit": then.ids[disk.place],
            "size": disk.size,
        }
        for disk in disks
        if then.ids.get(disk.place)
    ]
    request = {"machines": [{"id": machine_id, "disks": wanted}]}
    return door.run(CHANGES, request).value(machine_id)


def believed(then: TrackedDisk, answer: Changes, chance: Callable[[int], int]) -> TrackedRanges:
    """The ranges of one disk, or why the answer is not believed."""
    disk = next((item for item in answer.disks if item.place == then.place), None)
    reason = distrust_after(then, answer.points, answer.applied, disk)
    if reason or disk is None:
        return TrackedRanges(None, reason)
    try:
        ranges = changed_ranges(disk.lines, then.size)
    except (ValueError, OverflowError) as exc:
        return TrackedRanges(None, f"the host's ranges make no sense: {exc}")
    return TrackedRanges(extents_of(ranges), "", sampled(ranges, then.size, chance))
