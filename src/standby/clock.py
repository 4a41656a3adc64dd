"""Time and randomness: the only caller of the system's clock and random source.

Everything else takes a `Clock`, so that tests hold time (`standby.testing.ManualClock`) and can
make it jump. Wall time is for records and names; only the monotonic clock measures durations, so
a jump of the wall clock can neither lengthen a checkpoint's age limit nor end it early.
"""

from __future__ import annotations

import secrets
import time
import uuid
from datetime import UTC, datetime, timedelta, tzinfo


class Clock:
    """The system's clocks."""

    def now(self) -> datetime:
        """Wall time, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never going back."""
        return time.monotonic()

    def thread_cpu_s(self) -> float:
        """Seconds of processor that the calling thread has used."""
        return time.thread_time()

    def sleep(self, duration_s: float) -> None:
        """Return after `duration_s` seconds."""
        time.sleep(duration_s)


SYSTEM_CLOCK = Clock()


class _LocalZone(tzinfo):
    """The zone that this machine is set to, asked from the system each time."""

    def utcoffset(self, when: datetime | None) -> timedelta | None:
        wall = _wall(when)
        # As PEP 495 has it; `astimezone` of a wall clock that is set forward over that time gives
        # the offset before it, or after it, depending on Python's release.
        return timedelta(seconds=round(wall.replace(tzinfo=UTC).timestamp() - wall.timestamp()))

    def dst(self, when: datetime | None) -> timedelta | None:
        return None

    def tzname(self, when: datetime | None) -> str | None:
        return _wall(when).astimezone().tzname()

    def fromutc(self, when: datetime) -> datetime:
        local = when.replace(tzinfo=UTC).astimezone()
        first = local.replace(tzinfo=self, fold=0)
        return first if first.utcoffset() == local.utcoffset() else first.replace(fold=1)


def _wall(when: datetime | None) -> datetime:
    return (when if when is not None else SYSTEM_CLOCK.now()).replace(tzinfo=None)


LOCAL_ZONE = _LocalZone()
"""The machine's own time zone, with daylight saving as the system knows it."""


def new_uuid() -> uuid.UUID:
    """A random (version 4) UUID."""
    return uuid.uuid4()


def new_token(size_bytes: int = 8) -> str:
    """`size_bytes` random bytes as lower-case hex."""
    return secrets.token_hex(size_bytes)
