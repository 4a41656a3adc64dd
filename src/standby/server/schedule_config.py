"""The words of a job's schedule in standby.toml, as the values of `schedule`.

schedule = { daily = "22:00", days = ["mon-fri"], window = "mon-fri 20:00-06:00" }

One word says when: `every` (with `offset`, `days`), `daily` (with `days`), `weekly`, `monthly`,
`continuous` (with `pause`) or `after`. Beside it: `window`, `stop_at_window_end`, `missed`,
`retries`, `retry_wait`. A job without such a word is only started by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import time, tzinfo
from typing import TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from standby.clock import LOCAL_ZONE
from standby.server.schedule import (
    EVERY_DAY,
    PAUSE_S,
    RETRIES,
    RETRY_WAIT_S,
    AfterJob,
    Calendar,
    CalendarTime,
    Continuous,
    Periodic,
    Schedule,
    Trigger,
    Window,
)
from standby.strict_toml import Table, format_duration, nearest

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LONG_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
WEEKS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "last": -1}
TRIGGERS = ("every", "daily", "weekly", "monthly", "continuous", "after")
BELONGS = {"offset": ("every",), "days": ("every", "daily"), "pause": ("continuous",)}
DAY_S = 24 * 3600
MINUTES_OF_DAY = 1440

_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_Value = TypeVar("_Value")


def parse_schedule(table: Table, job: str) -> Schedule | None:
    """The schedule of a [jobs.X.schedule] table, None for an empty one; ConfigurationError for the
    first thing that is wrong. Names of other jobs are checked by `check_chains`."""
    given = [word for word in TRIGGERS if table.has(word)]
    trigger = _trigger(table, given, job)
    schedule = Schedule(
        trigger,
        _windows(table),
        table.boolean("stop_at_window_end", False),
        "skip" if table.text("missed", "run", choices=("run", "skip")) == "skip" else "run",
        table.integer("retries", RETRIES, maximum=100),
        table.duration_s("retry_wait", RETRY_WAIT_S, minimum=1),
    )
    for word, owners in BELONGS.items():
        if table.has(word) and not set(owners) & set(given):
            raise table.error(word, "has no effect here", f"it belongs to {' and '.join(owners)}")
    table.done()
    if not table.keys():
        return None
    if trigger is None and table.has("window"):
        raise table.error(
            "window", "has no effect without a time", 'write for example daily = "22:00" too'
        )
    if schedule.stop_at_window_end and not table.has("window"):
        raise table.error("stop_at_window_end", "has no effect without a window")
    return schedule


def check_chains(root: Table, schedules: Mapping[str, Schedule], jobs: tuple[str, ...]) -> None:
    """Refuse `after` with an unknown job, and jobs that wait for one another for ever. `root` is
    the file's table [jobs]."""
    for name, schedule in schedules.items():
        if not isinstance(schedule.trigger, AfterJob):
            continue
        table = root.table(name).table("schedule")
        other = schedule.trigger.job
        if other not in jobs:
            hint = nearest(other, jobs) or f"known: {', '.join(jobs)}"
            raise table.error("after", f"there is no job named {other!r}", hint)
        trail = [name]
        while True:
            trail.append(other)
            if other in trail[:-1]:
                text = " after ".join(trail)
                raise table.error("after", f"goes round in a circle: {text}", "leave one out")
            following = schedules.get(other)
            if following is None or not isinstance(following.trigger, AfterJob):
                break
            other = following.trigger.job


def parse_zone(table: Table, key: str = "time_zone") -> tzinfo:
    """The zone named by `key` (for example "Europe/Berlin"); without it the machine's own."""
    name = table.text(key, "")
    if not name:
        return LOCAL_ZONE
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise table.error(
            key, f"{name!r} is no time zone known here", 'write for example "Europe/Berlin"'
        ) from None


def parse_days(text: str) -> frozenset[int]:
    """Days meant by 'mon-fri', 'sat,sun' or 'fri-mon', 0 is Monday; ValueError if none."""
    days: set[int] = set()
    for part in text.lower().replace(" ", "").split(","):
        first, _, last = part.partition("-")
        start, stop = _day(first), _day(last or first)
        days.update((start + number) % 7 for number in range((stop - start) % 7 + 1))
    return frozenset(days)


def parse_window(text: str) -> Window:
    """The window meant by 'mon-fri 20:00-06:00' or '20:00-06:00'; ValueError if none."""
    days, _, hours = text.strip().rpartition(" ")
    start, separator, stop = hours.partition("-")
    if not separator:
        raise ValueError(f"{text!r} is no window; write for example mon-fri 20:00-06:00")
    window = Window(
        parse_days(days) if days.strip() else EVERY_DAY,
        _minute(start),
        MINUTES_OF_DAY if stop == "24:00" else _minute(stop),
    )
    if window.start == window.stop:
        raise ValueError(f"{text!r} is empty; a whole day is 00:00-24:00")
    return window


def describe(schedule: Schedule | None) -> str:
    """A schedule in a few words, for lists."""
    trigger = schedule.trigger if schedule is not None else None
    if trigger is None:
        return "by hand"
    if isinstance(trigger, AfterJob):
        return f"after {trigger.job}"
    if isinstance(trigger, Continuous):
        return "continuous"
    if isinstance(trigger, Periodic):
        offset = f" + {format_duration(trigger.offset_s)}" if trigger.offset_s else ""
        return f"every {format_duration(trigger.every_s)}{offset}{_on_days(trigger.days)}"
    return ", ".join(_described(item) for item in trigger.times)


# --- the words -------------------------------------------------------------------------------


def _trigger(table: Table, given: list[str], job: str) -> Trigger | None:
    if len(given) > 1:
        raise table.error(
            given[1], f"stands beside {given[0]}", "one of them says when the job runs"
        )
    if not given:
        return None
    word = given[0]
    if word == "every":
        return _periodic(table)
    if word == "continuous":
        pause_s = table.duration_s("pause", PAUSE_S, minimum=1)
        return Continuous(pause_s) if table.boolean("continuous") else None
    if word == "after":
        other = table.text("after")
        if other == job:
            raise table.error("after", "names the job itself", "name the job that runs before")
        return AfterJob(other)
    if word == "daily":
        days = _days(table)
        return Calendar(tuple(CalendarTime(at, days) for at in _each(table, word, _time)))
    return Calendar(_each(table, word, _weekly if word == "weekly" else _monthly))


def _periodic(table: Table) -> Periodic:
    every_s = table.duration_s("every", minimum=60)
    if every_s > DAY_S:
        raise table.error("every", "is longer than a day", 'at most "24h"; see weekly and monthly')
    offset_s = table.duration_s("offset", 0)
    if offset_s >= every_s:
        raise table.error(
            "offset", "is not shorter than the period", f"less than {format_duration(every_s)}"
        )
    return Periodic(every_s, offset_s, _days(table))


def _days(table: Table) -> frozenset[int]:
    if not table.has("days"):
        return EVERY_DAY
    return frozenset().union(*_each(table, "days", parse_days))


def _windows(table: Table) -> tuple[Window, ...]:
    windows = _each(table, "window", parse_window) if table.has("window") else ()
    open_minutes: set[int] = set()
    for window in windows:
        length = (window.stop - window.start) % MINUTES_OF_DAY or MINUTES_OF_DAY
        for day in window.days:
            start = day * MINUTES_OF_DAY + window.start
            open_minutes.update(
                minute % (7 * MINUTES_OF_DAY) for minute in range(start, start + length)
            )
    # Open at all times is no window at all.
    return windows if len(open_minutes) < 7 * MINUTES_OF_DAY else ()


def _each(table: Table, key: str, parse: Callable[[str], _Value]) -> tuple[_Value, ...]:
    """Every text of `key`, which is one text or a list of them."""
    texts = table.text_or_texts(key)
    if not texts:
        raise table.error(key, "is empty")
    found = []
    for text in texts:
        try:
            found.append(parse(text))
        except ValueError as exc:
            raise table.error(key, str(exc)) from None
    return tuple(found)


def _weekly(text: str) -> CalendarTime:
    days, _, at = text.strip().rpartition(" ")
    if not days:
        raise ValueError(f"{text!r} names no day; write for example sat 03:00")
    return CalendarTime(_time(at), parse_days(days))


def _monthly(text: str) -> CalendarTime:
    *words, at = text.lower().split()
    match words:
        case [number] if number.isdecimal() and 1 <= int(number) <= 31:
            return CalendarTime(_time(at), day=int(number))
        case ["last"] | ["last", "day"]:
            return CalendarTime(_time(at), day=-1)
        case [week, days] if week in WEEKS:
            return CalendarTime(_time(at), parse_days(days), week=WEEKS[week])
    raise ValueError(
        f"{text!r} is no day of a month; write for example 15 02:00, last 02:00 or last sun 02:00"
    )


def _day(text: str) -> int:
    for names in (DAYS, LONG_DAYS):
        if text in names:
            return names.index(text)
    hint = nearest(text, DAYS) or f"one of {', '.join(DAYS)}"
    raise ValueError(f"{text!r} is no day; {hint}")


def _time(text: str) -> time:
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no time of day; write for example 22:00")
    return time(int(match[1]), int(match[2]))


def _minute(text: str) -> int:
    at = _time(text)
    return at.hour * 60 + at.minute


def _described(item: CalendarTime) -> str:
    at = f"{item.at:%H:%M}"
    if item.day:
        return f"last day {at}" if item.day < 0 else f"day {item.day} {at}"
    if item.week:
        week = next(word for word, number in WEEKS.items() if number == item.week)
        return f"{week}{_on_days(item.days)} {at}"
    return at + _on_days(item.days)


def _on_days(days: frozenset[int]) -> str:
    if days == EVERY_DAY:
        return ""
    runs: list[list[int]] = []
    for day in sorted(days):
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    parts = [DAYS[run[0]] if len(run) == 1 else f"{DAYS[run[0]]}-{DAYS[run[-1]]}" for run in runs]
    return f" {','.join(parts)}"
