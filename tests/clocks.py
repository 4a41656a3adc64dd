"""Clocks for tests: one that stands until it is moved, and one that goes on at every look."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from standby.clock import Clock

START = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


class HeldClock(Clock):
    """Time moves only when someone sleeps or says so."""

    def __init__(self, now: datetime = START) -> None:
        self.wall = now
        self.elapsed = 0.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.elapsed

    def sleep(self, duration_s: float) -> None:
        self.advance(duration_s)

    def advance(self, duration_s: float) -> None:
        """Let that much time go by."""
        self.elapsed += duration_s
        self.wall += timedelta(seconds=duration_s)


class StepClock(Clock):
    """Each look is `step` later."""

    def __init__(self, step: timedelta = timedelta(seconds=1), start: datetime = NEW_YEAR) -> None:
        self.at = start
        self._step = step

    def now(self) -> datetime:
        self.at += self._step
        return self.at
