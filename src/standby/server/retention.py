"""When a changed share is a reason to hold retention: pure functions. Which points end is the
target's to say (`road.points.points_to_retire`)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from standby.model.report import MachineReport

HISTORY = 10
"""Sessions whose median a changed share is compared with (RULES 17)."""

HISTORY_MIN = 3
"""With fewer there is no usual."""

UNUSUAL_FACTOR = 5.0

SHARE_MIN = 0.001
"""A smaller median counts as this: a VM that was idle for days and then writes a log is no
alarm; 0.5 % of its disks is the least that can be one."""


def changed_share(report: MachineReport) -> float | None:
    """Changed bytes as a share of the disks' size, over the disks compared with an earlier point;
    None where no disk was, as in a first session."""
    disks = [disk for disk in report.disks if disk.mode in ("incremental", "resume")]
    total = sum(disk.virtual_size for disk in disks)
    return sum(disk.changed for disk in disks) / total if total else None


def is_changed_share_unusual(history: Sequence[float], current: float) -> bool:
    """Whether `current` exceeds five times the median of the last ten shares of `history` (newest
    last); False with fewer than three. Ransomware looks like that (RULES 17)."""
    recent = history[-HISTORY:]
    if len(recent) < HISTORY_MIN:
        return False
    return current > UNUSUAL_FACTOR * max(statistics.median(recent), SHARE_MIN)
