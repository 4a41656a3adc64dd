"""Which restore points end, and when a changed share is a reason to wait: pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime, timedelta

from standby.model.report import MachineReport
from standby.model.target_rules import TargetRules

HISTORY = 10
"""Sessions whose median a changed share is compared with (RULES 17)."""

HISTORY_MIN = 3
"""With fewer there is no usual."""

UNUSUAL_FACTOR = 5.0

SHARE_MIN = 0.001
"""A smaller median counts as this: a VM that was idle for days and then writes a log is no
alarm; 0.5 % of its disks is the least that can be one."""


def points_to_retire(
    points: Sequence[tuple[str, datetime]], keep_count: int, rules: TargetRules, now: datetime
) -> list[str]:
    """Ids of the points to merge away, oldest first, so that `keep_count` remain.

    `points` are (id, time of the checkpoint), newest last. The target's rules win: fewer are
    retired where it keeps more points, and none that is younger than it keeps days. A point with
    a time in the future counts as young. Only the oldest can end (RULES 15), so the first one to
    be kept ends the list; the newest is always kept.
    """
    excess = len(points) - max(keep_count, rules.keep_points_min, 1)
    youngest = now - timedelta(days=rules.keep_days_min)
    retired = []
    for point_id, taken_at in points[: max(excess, 0)]:
        if rules.keep_days_min and taken_at > youngest:
            break
        retired.append(point_id)
    return retired


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
