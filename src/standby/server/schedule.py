"""When a job is due: pure, no clock is read and nothing is done.

A schedule gives *slots*, instants at which a session is to begin:

- calendar: local times on days of the week or month. A time that does not exist (daylight saving
  begins) counts at the first instant after the gap, one that exists twice at its first;
- periodic: every n minutes of elapsed time, counted anew from each local midnight, so that no two
  slots are further apart than the period, whatever the clocks of that day do.

A slot outside the permitted windows waits for the next opening; slots that fall on one instant are
one. `next_due` compares the slots with what was handled last. Continuous jobs and jobs after
another one have no slots: they follow the end of a session.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Literal

EVERY_DAY = frozenset(range(7))
LATE_AFTER = timedelta(minutes=5)
"""A slot that nobody acted on for this long was missed; with missed = "skip" it is passed over."""
CLOCK_TRUST = timedelta(days=1)
"""A handled slot further ahead than this was handled under a clock that was wrong: slots count
from now again. Up to it, a clock that was set back runs nothing twice."""
RETRIES = 3
RETRY_WAIT_S = 600
PAUSE_S = 10
WINDOW_REACH_DAYS = 16
"""Windows repeat weekly; daylight saving can empty one of them, never two in a row."""
CALENDAR_REACH_DAYS = 70
"""A monthly slot comes at least once in two months."""

Missed = Literal["run", "skip"]


@dataclass(frozen=True, slots=True)
class Periodic:
    """Every `every_s` seconds from midnight plus `offset_s`, on `days` (0 is Monday)."""

    every_s: int
    offset_s: int = 0
    days: frozenset[int] = EVERY_DAY


@dataclass(frozen=True, slots=True)
class CalendarTime:
    """A local time on some days. `day` 1..31 is a day of the month (in a shorter month its last
    day), -1 the last, 0 any. `week` 1..4 is the first..fourth of the weekdays `days` in the month,
    -1 the last one, 0 any."""

    at: time
    days: frozenset[int] = EVERY_DAY
    day: int = 0
    week: int = 0

    def is_on(self, day: date) -> bool:
        """Whether the time counts on that day."""
        length = ((day.replace(day=1) + timedelta(days=32)).replace(day=1) - timedelta(days=1)).day
        if self.day and day.day != (length if self.day < 0 else min(self.day, length)):
            return False
        if self.week > 0 and (day.day - 1) // 7 + 1 != self.week:
            return False
        if self.week < 0 and day.day + 7 <= length:
            return False
        return day.weekday() in self.days


@dataclass(frozen=True, slots=True)
class Calendar:
    """Daily, weekly and monthly times."""

    times: tuple[CalendarTime, ...]


@dataclass(frozen=True, slots=True)
class Continuous:
    """Again `pause_s` seconds after the end of the last session."""

    pause_s: int = PAUSE_S


@dataclass(frozen=True, slots=True)
class AfterJob:
    """When the sessions of another job, retries included, are over."""

    job: str


Trigger = Periodic | Calendar | Continuous | AfterJob


@dataclass(frozen=True, slots=True)
class Window:
    """Sessions may run from `start` to `stop` (minutes of the local day, `stop` excluded, up to
    1440) on `days`; a window whose stop is not after its start ends on the next day."""

    days: frozenset[int]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a job runs by itself; without a trigger it is only started by hand. No windows: at any
    time. `retries` times, `retry_wait_s` apart, the VMs that failed are tried again."""

    trigger: Trigger | None = None
    windows: tuple[Window, ...] = ()
    stop_at_window_end: bool = False
    missed: Missed = "run"
    retries: int = RETRIES
    retry_wait_s: int = RETRY_WAIT_S


@dataclass(frozen=True, slots=True)
class LastRuns:
    """What is known of a job's sessions. `handled` is the newest slot that was acted on, at first
    the instant at which the schedule came into force. `ended` and `is_failed` tell of its last
    session; `called_at` is when the job before it ended, None once that was acted on."""

    handled: datetime
    ended: datetime | None = None
    is_failed: bool = False
    called_at: datetime | None = None


def next_due(
    schedule: Schedule, last_runs: LastRuns, now: datetime, zone: tzinfo
) -> datetime | None:
    """The slot to act on next, in UTC: due now where it is not after `now`, None where nothing
    will ever be due by itself. Of several missed slots it is the newest: they are handled by one
    session. `now` is aware; local times are those of `zone`."""
    trigger = schedule.trigger
    now = now.astimezone(UTC)
    if trigger is None:
        return None
    if isinstance(trigger, AfterJob):
        if last_runs.called_at is None:
            return None
        return _now_or_opening(schedule, min(last_runs.called_at, now), now, zone)
    if isinstance(trigger, Continuous):
        ended = min(last_runs.ended or last_runs.handled, now)
        wait_s = schedule.retry_wait_s if last_runs.is_failed else trigger.pause_s
        due = ended + timedelta(seconds=wait_s if last_runs.ended is not None else 0)
        return (
            permitted_from(schedule, due, zone)
            if due > now
            else _now_or_opening(schedule, due, now, zone)
        )
    handled = believed(last_runs.handled, now)
    newest = _newest_slot(schedule, trigger, now, zone)
    if newest is not None and newest > handled:
        if schedule.missed == "run":
            return _now_or_opening(schedule, newest, now, zone)
        if now - newest <= LATE_AFTER and is_permitted(schedule, now, zone):
            return newest
    return _first_slot(schedule, trigger, max(handled, now), zone)


def believed(handled: datetime, now: datetime) -> datetime:
    """A remembered slot as far as it can be true: one far ahead of `now` was handled under a clock
    that was wrong, and counts as `now`. Whoever keeps `handled` must keep what this returns."""
    return now.astimezone(UTC) if handled > now + CLOCK_TRUST else handled


def retry_due(
    schedule: Schedule, failed_at: datetime, attempt: int, zone: tzinfo
) -> datetime | None:
    """When the VMs that failed at `failed_at` are tried for the `attempt`-th time again (from 1);
    None when there were enough attempts, or where the window is closed then."""
    if attempt > schedule.retries:
        return None
    due = failed_at.astimezone(UTC) + timedelta(seconds=schedule.retry_wait_s)
    return due if is_permitted(schedule, due, zone) else None


# --- windows ---------------------------------------------------------------------------------


def is_permitted(schedule: Schedule, at: datetime, zone: tzinfo) -> bool:
    """Whether a session may begin at that instant."""
    return permitted_from(schedule, at, zone) == at


def permitted_from(schedule: Schedule, at: datetime, zone: tzinfo) -> datetime:
    """`at`, or the first instant after it at which a window opens."""
    for start, stop in _spans_around(schedule, at, zone):
        if at < stop:
            return max(at, start)
    return at


def window_end(schedule: Schedule, at: datetime, zone: tzinfo) -> datetime | None:
    """When a session that runs at `at` has to be stopped: `at` itself where no window is open,
    None where it need not be stopped."""
    if not schedule.windows or not schedule.stop_at_window_end:
        return None
    for start, stop in _spans_around(schedule, at, zone):
        if start <= at < stop:
            return stop
    return at


def _now_or_opening(schedule: Schedule, slot: datetime, now: datetime, zone: tzinfo) -> datetime:
    """A slot that has come: itself, or the next opening where the windows are closed now."""
    opening = permitted_from(schedule, now, zone)
    return slot if opening == now else opening


def _spans_around(
    schedule: Schedule, at: datetime, zone: tzinfo
) -> tuple[tuple[datetime, datetime], ...]:
    if not schedule.windows:
        return ()
    return _spans(schedule.windows, at.astimezone(zone).date(), zone)


@functools.lru_cache(maxsize=512)
def _spans(
    windows: tuple[Window, ...], around: date, zone: tzinfo
) -> tuple[tuple[datetime, datetime], ...]:
    """The instants at which the windows are open, some weeks around a day, in order and joined."""
    found = []
    for number in range(-WINDOW_REACH_DAYS, WINDOW_REACH_DAYS + 1):
        day = around + timedelta(days=number)
        for window in windows:
            if day.weekday() in window.days:
                last = window.stop + (1440 if window.stop <= window.start else 0)
                found.append((_at_minute(day, window.start, zone), _at_minute(day, last, zone)))
    spans: list[tuple[datetime, datetime]] = []
    for start, stop in sorted(found):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        elif start < stop:
            spans.append((start, stop))
    return tuple(spans)


def _at_minute(day: date, minute: int, zone: tzinfo) -> datetime:
    """The instant of a minute counted from a local midnight, by the clock on the wall."""
    days, rest = divmod(minute, 1440)
    return local_instant(day + timedelta(days=days), time(rest // 60, rest % 60), zone)


# --- slots -----------------------------------------------------------------------------------


def _first_slot(
    schedule: Schedule, trigger: Periodic | Calendar, after: datetime, zone: tzinfo
) -> datetime | None:
    """The first slot after `after`."""
    raw = _raw_before(trigger, after, zone, is_included=True) or _raw_after(trigger, after, zone)
    while raw is not None:
        slot = permitted_from(schedule, raw, zone)
        if slot > after:
            return slot
        raw = _raw_after(trigger, raw, zone)
    return None


def _newest_slot(
    schedule: Schedule, trigger: Periodic | Calendar, now: datetime, zone: tzinfo
) -> datetime | None:
    """The newest slot that is not after `now`."""
    raw = _raw_before(trigger, now, zone, is_included=True)
    while raw is not None:
        slot = permitted_from(schedule, raw, zone)
        if slot <= now:
            return slot
        # The windows are closed at `raw`, and still now: what fell into this closing waits too.
        closings = [stop for _, stop in _spans_around(schedule, raw, zone) if stop <= raw]
        if not closings:
            return None
        raw = _raw_before(trigger, closings[-1], zone, is_included=False)
    return None


def _raw_after(trigger: Periodic | Calendar, after: datetime, zone: tzinfo) -> datetime | None:
    """The first slot after `after`, windows apart."""
    day = after.astimezone(zone).date() - timedelta(days=1)
    for number in range(CALENDAR_REACH_DAYS):
        for slot in _slots_of(trigger, day + timedelta(days=number), zone, after):
            if slot > after:
                return slot
    return None


def _raw_before(
    trigger: Periodic | Calendar, before: datetime, zone: tzinfo, *, is_included: bool
) -> datetime | None:
    """The last slot before `before` (`before` itself where `is_included`), windows apart."""
    day = before.astimezone(zone).date() + timedelta(days=1)
    for number in range(CALENDAR_REACH_DAYS):
        found = None
        for slot in _slots_of(trigger, day - timedelta(days=number), zone, before):
            if slot < before or (is_included and slot == before):
                found = slot
        if found is not None:
            return found
    return None


def _slots_of(
    trigger: Periodic | Calendar, day: date, zone: tzinfo, near: datetime
) -> Iterator[datetime]:
    """The slots of a local day in order; of a periodic trigger's those next to `near`, at least."""
    if isinstance(trigger, Calendar):
        yield from sorted(
            {local_instant(day, item.at, zone) for item in trigger.times if item.is_on(day)}
        )
        return
    if day.weekday() not in trigger.days:
        return
    first = local_instant(day, time(), zone) + timedelta(seconds=trigger.offset_s)
    stop = local_instant(day + timedelta(days=1), time(), zone)
    every = timedelta(seconds=trigger.every_s)
    last = max(0, -((first - stop) // every) - 1)
    nearest = min(max(0, (near - first) // every), last)
    for number in sorted({0, max(0, nearest - 1), nearest, min(last, nearest + 1), last}):
        slot = first + number * every
        if slot < stop:
            yield slot


def local_instant(day: date, at: time, zone: tzinfo) -> datetime:
    """The instant, in UTC, at which a wall clock of `zone` shows that day and time: the first one
    where it shows it twice, the end of the gap where it is set forward over it."""
    wall = datetime.combine(day, at)
    found = wall.replace(tzinfo=zone).astimezone(UTC)
    if found.astimezone(zone).replace(tzinfo=None) == wall:
        return found
    # PEP 495: in a gap, fold 1 counts with the offset after it, so that is an instant before it.
    before = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    offset = before.astimezone(zone).utcoffset()
    low, high = 0, int((found - before).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        is_before = (before + timedelta(seconds=middle)).astimezone(zone).utcoffset() == offset
        low, high = (middle, high) if is_before else (low, middle)
    return before + timedelta(seconds=high)
