"""What a session at work is at, in a line: how far its disks are, and which mover it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from standby.clock import Clock
from standby.model.job import ReplicationJob
from standby.server.check_movers import Need, needs_of
from standby.server.config import Config
from standby.server.progress import DiskProgress, ProgressBoard
from standby.units import counted, format_bytes


class Doing:
    """Says of the sessions of this process what they are at. Thread-safe."""

    def __init__(self, config: Config, progress: ProgressBoard, clock: Clock) -> None:
        self._config = config
        self._progress = progress
        self._clock = clock
        self._away: dict[str, datetime] = {}

    def moved(self, mover: str, problem: str) -> None:
        """The mover is away now, or is back."""
        if problem:
            self._away.setdefault(mover, self._clock.now())
        else:
            self._away.pop(mover, None)

    def of(self, job: ReplicationJob, report: str) -> str:
        """What the session whose report has that id is at; '' where nothing is known yet."""
        told = [how_far(self._progress.of(report))]
        away = dict(self._away)
        if away:
            told += who_is_away(needs_of(self._config, job), away)
        return "; ".join(text for text in told if text)


def how_far(disks: Sequence[DiskProgress]) -> str:
    """How far the disks are that have begun."""
    if not disks:
        return ""
    done, total = sum(item.done for item in disks), sum(item.total for item in disks)
    share = f", {100 * done // total} %" if total else ""
    count = counted(len(disks), "disk")
    return f"{count}: {format_bytes(done)} of {format_bytes(total)}{share}"


def who_is_away(needs: Sequence[Need], away: dict[str, datetime]) -> list[str]:
    """The movers that are away, of those that the job needs: it waits for one that no other can
    stand in for."""
    waits: dict[str, datetime] = {}
    does_without: dict[str, datetime] = {}
    for need in needs:
        if need.mover not in away:
            continue
        group = {item.mover for item in needs if need.group and item.group == need.group}
        is_replaced = bool(group - away.keys()) or need.is_optional
        (does_without if is_replaced else waits)[need.mover] = away[need.mover]
    return [f"waits for mover {name} since {at:%H:%M:%S} UTC" for name, at in waits.items()] + [
        f"mover {name} is away since {at:%H:%M:%S} UTC"
        for name, at in does_without.items()
        if name not in waits
    ]
