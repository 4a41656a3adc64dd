"""The words of a schedule in standby.toml."""

from __future__ import annotations

from datetime import time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from standby.clock import LOCAL_ZONE
from standby.errors import ConfigurationError
from standby.server.config import Config, load_config
from standby.server.schedule import (
    AfterJob,
    Calendar,
    CalendarTime,
    Continuous,
    Periodic,
    Schedule,
    Window,
)
from standby.server.schedule_config import describe, parse_window

WEEKDAYS = frozenset(range(5))
GENERAL = """
[standby]
installation = "main-site"
{general}
[hosts.prod]
kind = "folder"
path = "vms"
[hosts.dr]
kind = "folder"
path = "replicas"
[repositories.main]
path = "repository"
"""
JOB = """
[jobs.{name}]
source = "prod"
target = "dr"
machines = ["*"]
schedule = {{ {schedule} }}
"""


def load(folder: Path, general: str = "", **schedules: str) -> Config:
    text = GENERAL.format(general=general)
    text += "".join(JOB.format(name=name, schedule=words) for name, words in schedules.items())
    (folder / "standby.toml").write_text(text)
    return load_config(folder)


def times(*items: CalendarTime) -> Schedule:
    return Schedule(Calendar(items))


@pytest.mark.parametrize(
    ("words", "schedule", "text"),
    [
        ('every = "4h", offset = "30 min"', Schedule(Periodic(14400, 1800)), "every 4h + 30m"),
        ('every = "15m", days = "mon-fri"', Schedule(Periodic(900, 0, WEEKDAYS)),
         "every 15m mon-fri"),
        ('daily = "22:00"', times(CalendarTime(time(22))), "22:00"),
        ('daily = ["8:00", "20:30"], days = ["mon-wed", "sun"]',
         times(CalendarTime(time(8), frozenset({0, 1, 2, 6})),
               CalendarTime(time(20, 30), frozenset({0, 1, 2, 6}))),
         "08:00 mon-wed,sun, 20:30 mon-wed,sun"),
        ('weekly = "sat 03:00"', times(CalendarTime(time(3), frozenset({5}))), "03:00 sat"),
        ('weekly = "Fri-Monday 03:00"', times(CalendarTime(time(3), frozenset({4, 5, 6, 0}))),
         "03:00 mon,fri-sun"),
        ('monthly = "last sun 02:00"', times(CalendarTime(time(2), frozenset({6}), week=-1)),
         "last sun 02:00"),
        ('monthly = "15 02:00"', times(CalendarTime(time(2), day=15)), "day 15 02:00"),
        ('monthly = ["last 02:00"]', times(CalendarTime(time(2), day=-1)), "last day 02:00"),
        ('continuous = true', Schedule(Continuous()), "continuous"),
        ('continuous = true, pause = "5m"', Schedule(Continuous(300)), "continuous"),
        ('retries = 0', Schedule(retries=0), "by hand"),
        ('daily = "22:00", window = "mon-fri 20:00-06:00", stop_at_window_end = true, '
         'missed = "skip", retries = 5, retry_wait = "1 min"',
         Schedule(Calendar((CalendarTime(time(22)),)), (Window(WEEKDAYS, 1200, 360),), True,
                  "skip", 5, 60), "22:00"),
        ('daily = "22:00", window = ["mon-sat 00:00-24:00", "sun 0:00-24:00"]',
         times(CalendarTime(time(22))), "22:00"),
    ],
)  # fmt: skip
def test_the_words_of_a_schedule(tmp_path: Path, words: str, schedule: Schedule, text: str) -> None:
    found = load(tmp_path, nightly=words).schedules["nightly"]
    assert found == schedule
    assert describe(found) == text


def test_a_job_without_a_schedule_is_started_by_hand(tmp_path: Path) -> None:
    config = load(tmp_path, nightly="")
    assert config.schedules == {}
    assert describe(config.schedules.get("nightly")) == "by hand"


def test_a_job_may_follow_another(tmp_path: Path) -> None:
    config = load(tmp_path, nightly='daily = "22:00"', second='after = "nightly"')
    assert config.schedules["second"].trigger == AfterJob("nightly")
    assert describe(config.schedules["second"]) == "after nightly"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ('dayly = "22:00"', "[jobs.nightly.schedule] dayly: unknown key. did you mean daily?"),
        ('daily = "22"', "daily: '22' is no time of day; write for example 22:00"),
        ('daily = "24:00"', "'24:00' is no time of day"),
        ('daily = []', "daily: is empty"),
        ('daily = 22', "daily: is a number (22)"),
        ('daily = "22:00", every = "4h"', "daily: stands beside every. one of them says when"),
        ('daily = "22:00", days = "mun"', "days: 'mun' is no day; did you mean sun?"),
        ('daily = "22:00", offset = "5m"', "offset: has no effect here. it belongs to every"),
        ('weekly = "sat 03:00", days = "mon"', "days: has no effect here. it belongs to every and"),
        ('every = "30s"', "every: '30s' is too short. at least 1m"),
        ('every = "2d"', "every: is longer than a day"),
        ('every = "4h", offset = "4h"', "offset: is not shorter than the period. less than 4h"),
        ('weekly = "03:00"', "weekly: '03:00' names no day; write for example sat 03:00"),
        ('monthly = "32 02:00"', "monthly: '32 02:00' is no day of a month"),
        ('monthly = "fifth sun 02:00"', "is no day of a month; write for example 15 02:00"),
        ('continuous = "yes"', "continuous: is a text ('yes'). it must be true or false"),
        ('window = "mon 20:00-06:00"', "window: has no effect without a time"),
        ('daily = "22:00", window = "mon 20:00"', "window: 'mon 20:00' is no window"),
        ('daily = "22:00", window = "20:00-20:00"', "is empty; a whole day is 00:00-24:00"),
        ('daily = "22:00", stop_at_window_end = true', "stop_at_window_end: has no effect without"),
        ('daily = "22:00", missed = "never"', "missed: 'never' is not known. one of run, skip"),
        ('daily = "22:00", retries = -1', "retries: -1 is out of range"),
        ('after = "nightly"', "after: names the job itself"),
        ('after = "second"', "after: there is no job named 'second'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_a_hint(tmp_path: Path, words: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, nightly=words)
    assert message in str(caught.value)


def test_jobs_that_wait_for_one_another_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="after: goes round in a circle: a after b after"):
        load(tmp_path, a='after = "b"', b='after = "c"', c='after = "a"')
    with pytest.raises(ConfigurationError, match="circle"):
        load(tmp_path, first='after = "b"', b='after = "c"', c='after = "b"')


def test_the_time_zone_is_the_machines_own_or_one_by_name(tmp_path: Path) -> None:
    assert load(tmp_path).time_zone is LOCAL_ZONE
    named = load(tmp_path, 'time_zone = "Europe/Berlin"')
    assert named.time_zone == ZoneInfo("Europe/Berlin")
    for wrong in ("Europe/Berln", "../etc/passwd", "Europe"):
        with pytest.raises(ConfigurationError, match="is no time zone known here"):
            load(tmp_path, f'time_zone = "{wrong}"')


@pytest.mark.parametrize("text", ["", "mon", "20:00", "mon-fri", "mon 20-06", "x 20:00-06:00"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_window(text)
