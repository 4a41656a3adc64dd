"""When jobs are due, against a twin that steps through time minute by minute."""

from __future__ import annotations

import calendar
import functools
import os
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standby.clock import LOCAL_ZONE
from standby.server.schedule import (
    EVERY_DAY,
    AfterJob,
    Calendar,
    CalendarTime,
    Continuous,
    LastRuns,
    Periodic,
    Schedule,
    Window,
    is_permitted,
    local_instant,
    next_due,
    retry_due,
    window_end,
)

MINUTE = timedelta(minutes=1)
BERLIN = ZoneInfo("Europe/Berlin")
STARTS = {
    # The day before daylight saving begins, ends, and an ordinary day.
    "Europe/Berlin": ("2026-03-28", "2026-10-24", "2026-06-30"),
    "America/New_York": ("2026-03-07", "2026-10-31"),
    "Australia/Lord_Howe": ("2026-04-04", "2026-10-03"),  # half an hour
    "America/Sao_Paulo": ("2018-11-03", "2018-02-17"),  # at midnight: it does not exist
    "America/Havana": ("2026-03-07", "2026-10-31"),  # midnight exists twice
    "Asia/Kolkata": ("2026-02-27",),
    "UTC": ("2028-02-28",),
}
PRE_ROLL_DAYS = 8
DAYS = 11


# --- the twin --------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def minutes(zone: str, first: str) -> tuple[tuple[datetime, tuple[datetime, ...]], ...]:
    """Every minute, and the wall minutes that come into being at it: none while a wall clock that
    was set back repeats itself, several where it was set forward."""
    start = datetime.fromisoformat(first).replace(tzinfo=UTC) - timedelta(days=PRE_ROLL_DAYS)
    highest = start.astimezone(ZoneInfo(zone)).replace(tzinfo=None) - MINUTE
    found = []
    for number in range((DAYS + PRE_ROLL_DAYS) * 1440):
        at = start + number * MINUTE
        wall = at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        new = []
        while highest < wall:
            highest += MINUTE
            new.append(highest)
        found.append((at, tuple(new)))
    return tuple(found)


def fits(item: CalendarTime, wall: datetime) -> bool:
    if (wall.hour, wall.minute) != (item.at.hour, item.at.minute):
        return False
    length = calendar.monthrange(wall.year, wall.month)[1]
    same = [day for day in range(1, length + 1)
            if date(wall.year, wall.month, day).weekday() == wall.weekday()]  # fmt: skip
    if item.day == -1 and wall.day != length:
        return False
    if item.day > 0 and wall.day != min(item.day, length):
        return False
    if item.week and same[item.week - 1 if item.week > 0 else -1] != wall.day:
        return False
    return wall.weekday() in item.days


def twin(schedule: Schedule, zone: str, first: str) -> list[tuple[datetime, bool, bool]]:
    """(minute, is a slot, is a window open) for every minute from `first`."""
    start = datetime.fromisoformat(first).replace(tzinfo=UTC)
    origin: datetime | None = None
    origin_day = 0
    running: set[tuple[Window, date]] = set()
    is_waiting = False
    found = []
    at_minutes: dict[int, list[Window]] = {}
    for window in schedule.windows:
        for minute in {window.start, window.stop % 1440}:
            at_minutes.setdefault(minute, []).append(window)
    trigger = schedule.trigger
    times = trigger.times if isinstance(trigger, Calendar) else ()
    timed = {(item.at.hour, item.at.minute) for item in times}
    for at, walls in minutes(zone, first):
        is_raw = False
        for wall in walls:
            if (wall.hour, wall.minute) == (0, 0):
                origin, origin_day = at, wall.weekday()
            if (wall.hour, wall.minute) in timed:
                is_raw |= any(fits(item, wall) for item in times)
            minute = wall.hour * 60 + wall.minute
            for window in at_minutes.get(minute, ()):
                opened = wall.date() - (window.stop <= window.start) * timedelta(days=1)
                if minute == window.start and wall.weekday() in window.days:
                    running.add((window, wall.date()))
                if minute == window.stop % 1440:
                    if window.stop == 1440:
                        opened = wall.date() - timedelta(days=1)
                    running.discard((window, opened))
        if isinstance(trigger, Periodic) and origin is not None and origin_day in trigger.days:
            passed = (at - origin) // MINUTE * 60 - trigger.offset_s
            is_raw = passed >= 0 and passed % trigger.every_s == 0
        is_open = not schedule.windows or bool(running)
        is_slot = is_open and (is_raw or is_waiting)
        is_waiting = (is_waiting or is_raw) and not is_open
        if at >= start:
            found.append((at, is_slot, is_open))
    return found


some_days = st.frozensets(st.integers(0, 6), min_size=1)
night = st.sampled_from([0, 30, 60, 90, 120, 125, 150, 179, 180, 1380, 1439])
minute_of_day = st.one_of(night, st.integers(0, 1439))


@st.composite
def periodic(draw: st.DrawFn) -> Periodic:
    every = draw(st.sampled_from([1, 7, 15, 30, 60, 120, 240, 300, 480, 720, 1440]))
    return Periodic(every * 60, 60 * draw(st.integers(0, every - 1)), draw(some_days))


@st.composite
def wall_times(draw: st.DrawFn) -> time:
    minute = draw(minute_of_day)
    return time(minute // 60, minute % 60)


@st.composite
def calendars(draw: st.DrawFn) -> Calendar:
    items = st.one_of(
        st.builds(CalendarTime, wall_times(), some_days),
        st.builds(CalendarTime, wall_times(), day=st.sampled_from([-1, 1, 15, 29, 30, 31])),
        st.builds(CalendarTime, wall_times(), some_days, week=st.sampled_from([-1, 1, 2, 3, 4])),
    )
    return Calendar(tuple(draw(st.lists(items, min_size=1, max_size=3))))


@st.composite
def windows(draw: st.DrawFn) -> Window:
    start = draw(minute_of_day)
    stop = draw(st.one_of(st.just(1440), minute_of_day).filter(lambda value: value != start))
    return Window(draw(some_days), start, stop)


schedules = st.builds(
    Schedule, st.one_of(periodic(), calendars()), st.lists(windows(), max_size=2).map(tuple)
)
places = st.sampled_from([(zone, first) for zone, firsts in STARTS.items() for first in firsts])


@settings(max_examples=25, deadline=None)
@given(schedules, places)
def test_the_slots_are_those_of_a_twin_that_steps_through_every_minute(
    schedule: Schedule, place: tuple[str, str]
) -> None:
    zone, first = place
    known = twin(schedule, zone, first)
    known = known[: 3 * 1440]
    wanted = [at for at, is_slot, _ in known if is_slot and at > known[0][0]]
    found = []
    at = known[0][0]
    while (due := next_due(schedule, LastRuns(at), at, ZoneInfo(zone))) and due <= known[-1][0]:
        assert due > at
        found.append(at := due)
    assert found == wanted


@settings(max_examples=25, deadline=None)
@given(schedules, places, st.integers(0, 5759), st.integers(0, 5759), st.data())
def test_what_was_missed_is_handled_once_and_only_where_that_is_permitted(
    schedule: Schedule, place: tuple[str, str], handled: int, now: int, data: st.DataObject
) -> None:
    zone, first = place
    known = twin(schedule, zone, first)
    handled_at, now_at = known[handled][0], known[now][0]
    pending = [at for at, is_slot, _ in known[: now + 1] if is_slot and at > handled_at]
    following = [at for at, is_slot, _ in known[now + 1 :] if is_slot and at > handled_at]
    openings = [at for at, _, is_open in known[now:] if is_open]
    due = next_due(schedule, LastRuns(handled_at), now_at, ZoneInfo(zone))
    if handled_at > now_at + timedelta(days=1):
        return
    if pending:
        assert due == (pending[-1] if openings and openings[0] == now_at else openings[0])
    elif following:
        assert due == following[0]


@settings(max_examples=25, deadline=None)
@given(schedules, places, st.integers(0, 5759))
def test_windows_are_open_when_the_twin_says_so(
    schedule: Schedule, place: tuple[str, str], minute: int
) -> None:
    zone, first = place
    known = twin(schedule, zone, first)
    at, _, is_open = known[minute]
    assert is_permitted(schedule, at, ZoneInfo(zone)) == is_open
    stopping = Schedule(schedule.trigger, schedule.windows, True)
    end = window_end(stopping, at, ZoneInfo(zone))
    closed = [later for later, _, is_open in known[minute:] if not is_open]
    if not schedule.windows:
        assert end is None
    elif closed:
        assert end == closed[0]


# --- by name ---------------------------------------------------------------------------------


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def local(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).astimezone(UTC)


def daily(hour: int, minute: int = 0, **more: object) -> Schedule:
    return Schedule(Calendar((CalendarTime(time(hour, minute)),)), **more)  # type: ignore[arg-type]


def test_a_time_that_does_not_exist_runs_once_right_after_the_gap() -> None:
    schedule = Schedule(Calendar((CalendarTime(time(2, 10)), CalendarTime(time(2, 30)))))
    due = next_due(schedule, LastRuns(local("2026-03-28T12:00")), local("2026-03-28T12:00"), BERLIN)
    assert due == utc("2026-03-29T01:00") == local("2026-03-29T03:00")
    assert next_due(schedule, LastRuns(due), due, BERLIN) == local("2026-03-30T02:10")


def test_a_time_that_exists_twice_runs_once() -> None:
    before = local("2026-10-24T12:00")
    due = next_due(daily(2, 30), LastRuns(before), before, BERLIN)
    assert due == utc("2026-10-25T00:30")
    again = utc("2026-10-25T01:30")  # the second half past two
    assert next_due(daily(2, 30), LastRuns(due), again, BERLIN) == local("2026-10-26T02:30")


def test_periodic_slots_are_never_further_apart_than_the_period() -> None:
    at = local("2026-10-24T12:00")
    for _ in range(20):
        due = next_due(Schedule(Periodic(4 * 3600)), LastRuns(at), at, BERLIN)
        assert due is not None
        assert due - at <= timedelta(hours=4)
        at = due


def test_the_first_run_in_a_window_is_at_its_opening() -> None:
    schedule = Schedule(Periodic(7200), (Window(EVERY_DAY, 540, 1020),))
    at = local("2026-07-01T06:00")
    found = []
    for _ in range(6):
        at = next_due(schedule, LastRuns(at), at, BERLIN) or at
        found.append(at.astimezone(BERLIN).strftime("%d %H:%M"))
    assert found == ["01 09:00", "01 10:00", "01 12:00", "01 14:00", "01 16:00", "02 09:00"]


def test_a_clock_set_back_runs_no_slot_twice_but_one_that_was_wrong_is_not_believed() -> None:
    slot = local("2026-07-01T22:00")
    set_back = slot - timedelta(minutes=30)
    assert next_due(daily(22), LastRuns(slot), set_back, BERLIN) == slot + timedelta(days=1)
    next_year = slot + timedelta(days=365)
    assert next_due(daily(22), LastRuns(next_year), set_back, BERLIN) == slot


def test_missed_slots_run_once_or_are_skipped() -> None:
    handled, now = local("2026-07-01T22:00"), local("2026-07-05T09:00")
    assert next_due(daily(22), LastRuns(handled), now, BERLIN) == local("2026-07-04T22:00")
    skipping = daily(22, missed="skip")
    assert next_due(skipping, LastRuns(handled), now, BERLIN) == local("2026-07-05T22:00")
    late = local("2026-07-04T22:03")
    assert next_due(skipping, LastRuns(handled), late, BERLIN) == local("2026-07-04T22:00")


def test_a_missed_slot_waits_for_the_window() -> None:
    schedule = daily(22, windows=(Window(EVERY_DAY, 20 * 60, 6 * 60),))
    handled, now = local("2026-07-01T22:00"), local("2026-07-03T09:00")
    assert next_due(schedule, LastRuns(handled), now, BERLIN) == local("2026-07-03T20:00")


def test_a_continuous_job_follows_its_own_end() -> None:
    now = local("2026-07-01T12:00")
    first = LastRuns(now - timedelta(days=3))
    assert next_due(Schedule(Continuous(60)), first, now, BERLIN) == first.handled
    ended = LastRuns(now, ended=now)
    assert next_due(Schedule(Continuous(60)), ended, now, BERLIN) == now + timedelta(seconds=60)
    failed = LastRuns(now, ended=now, is_failed=True)
    assert next_due(Schedule(Continuous(60)), failed, now, BERLIN) == now + timedelta(minutes=10)
    future = LastRuns(now, ended=now + timedelta(days=9))  # the clock was set back
    assert next_due(Schedule(Continuous(60)), future, now, BERLIN) == now + timedelta(seconds=60)


def test_a_job_after_another_waits_for_its_call_and_the_window() -> None:
    now = local("2026-07-01T12:00")
    schedule = Schedule(AfterJob("nightly"), (Window(EVERY_DAY, 13 * 60, 14 * 60),))
    assert next_due(schedule, LastRuns(now), now, BERLIN) is None
    called = LastRuns(now, called_at=now)
    assert next_due(schedule, called, now, BERLIN) == local("2026-07-01T13:00")
    assert next_due(Schedule(AfterJob("nightly")), called, now, BERLIN) == now


def test_a_job_started_by_hand_is_never_due() -> None:
    now = local("2026-07-01T12:00")
    assert next_due(Schedule(), LastRuns(now), now, BERLIN) is None


def test_retries_are_counted_and_stay_in_the_window() -> None:
    failed = local("2026-07-01T22:00")
    schedule = daily(22, retries=2, windows=(Window(EVERY_DAY, 20 * 60, 23 * 60),))
    assert retry_due(schedule, failed, 1, BERLIN) == failed + timedelta(minutes=10)
    assert retry_due(schedule, failed, 2, BERLIN) == failed + timedelta(minutes=10)
    assert retry_due(schedule, failed, 3, BERLIN) is None
    assert retry_due(schedule, local("2026-07-01T22:55"), 1, BERLIN) is None


def test_monthly_times_are_found_a_month_ahead() -> None:
    now = local("2026-02-01T12:00")
    end = Schedule(Calendar((CalendarTime(time(2), day=31),)))
    assert next_due(end, LastRuns(now), now, BERLIN) == local("2026-02-28T02:00")
    last_sunday = Schedule(Calendar((CalendarTime(time(2), frozenset({6}), week=-1),)))
    assert next_due(last_sunday, LastRuns(now), now, BERLIN) == local("2026-02-22T02:00")


@pytest.mark.skipif(sys.platform == "win32", reason="the zone is set by TZ")
def test_the_machines_own_zone_knows_daylight_saving() -> None:
    code = (
        "from datetime import *; from standby.clock import LOCAL_ZONE as z;"
        "from standby.server.schedule import local_instant as i;"
        "print(i(date(2026,3,29), time(2,30), z), i(date(2026,10,25), time(2,30), z));"
        "t = datetime(2026,10,25,1,30,tzinfo=UTC).astimezone(z); print(t.fold, t.utcoffset())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TZ": "Europe/Berlin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "2026-03-29 01:00:00+00:00 2026-10-25 00:30:00+00:00",
        "1 1:00:00",
    ]
    assert local_instant(date(2026, 7, 1), time(12), LOCAL_ZONE).tzinfo is UTC
