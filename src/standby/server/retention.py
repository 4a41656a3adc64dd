"""When a changed share is a reason to hold retention: pure functions. Which points end is the
target's to say (`road.points.points_to_retire`)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from standby.model.report import DiskReport, MachineReport
from standby.units import GiB

HISTORY = 10
"""Sessions whose median a changed share is compared with (RULES 17)."""

HISTORY_MIN = 3
"""With fewer there is no usual."""

UNUSUAL_FACTOR = 5.0

SHARE_MIN = 0.001
"""A smaller median counts as this: a VM that was idle for days and then writes a log is no
alarm; 0.5 % of its disks is the least that can be one."""

STORED_SHARE_MIN = 0.05
"""Of what the disks store: less is never an alarm, however still the VM was before. Encrypting even
a small part of the files comes to more, a log or an update of a small disk does not; measured by
what is stored, since of a large disk with little in it all can be gone for a few per cent."""

CHANGED_BYTES = 10 * GiB
"""So much is worth an alarm of any disk, whatever part of it that is."""


def changed_share(report: MachineReport) -> float | None:
    """Changed bytes as a share of the disks' size, over the disks compared with an earlier point;
    None where no disk was, as in a first session."""
    disks = _compared(report)
    total = sum(disk.virtual_size for disk in disks)
    return sum(disk.changed for disk in disks) / total if total else None


def is_change_worth_an_alarm(report: MachineReport) -> bool:
    """Whether enough changed that it can be ransomware: a part of what the disks store, or much in
    itself. Where the report does not know what they store, all of it counts."""
    disks = _compared(report)
    changed = sum(disk.changed for disk in disks)
    stored = sum(min(disk.read + disk.skipped, disk.virtual_size) for disk in disks)
    return changed >= min(STORED_SHARE_MIN * stored, CHANGED_BYTES)


def is_changed_share_unusual(history: Sequence[float], current: float) -> bool:
    """Whether `current` exceeds five times the median of the last ten shares of `history` (newest
    last); False with fewer than three. Ransomware looks like that (RULES 17)."""
    recent = history[-HISTORY:]
    if len(recent) < HISTORY_MIN:
        return False
    return current > UNUSUAL_FACTOR * max(statistics.median(recent), SHARE_MIN)


def held_text(job: str) -> str:
    """What sessions and plans of a VM say while its retention is held."""
    return (
        "an earlier session changed far more than usual: no restore point is merged away, and they "
        f"pile up, until `standby job acknowledge {job}`"
    )


def _compared(report: MachineReport) -> list[DiskReport]:
    return [disk for disk in report.disks if disk.mode in ("incremental", "resume")]
