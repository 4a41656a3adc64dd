"""Which points end, what the target keeps, which changed share is unusual."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rights import without_rights
from standby.errors import ConfigurationError, DiskIO
from standby.model.machine import Machine
from standby.model.point import RestorePoint
from standby.model.report import DiskReport, MachineReport
from standby.model.target_rules import TargetRules
from standby.road.points import points_to_retire
from standby.road.target_rules import load_target_rules
from standby.server.retention import (
    changed_share,
    is_change_worth_an_alarm,
    is_changed_share_unusual,
)
from standby.units import GiB, KiB, MiB, TiB

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def points_of(*taken: tuple[str, datetime]) -> list[RestorePoint]:
    """Points of these ids and times."""
    vm = Machine("id", "web", "web")
    return [
        RestorePoint(1, name, "", 1, at.isoformat(), "", "offline", "s", vm, (), {})
        for name, at in taken
    ]


def daily(count: int) -> list[RestorePoint]:
    """One point per day, the newest an hour old: p1 … p<count>, newest last."""
    return points_of(
        *(
            (f"p{number}", NOW - timedelta(days=count - number, hours=1))
            for number in range(1, count + 1)
        )
    )


def retired(points: list[RestorePoint], keep: int, rules: TargetRules, now: datetime) -> list[str]:
    return [point.id for point in points_to_retire(points, keep, rules, now)]


@pytest.mark.parametrize(
    ("count", "keep", "expected"),
    [(0, 3, []), (3, 3, []), (4, 3, ["p1"]), (6, 3, ["p1", "p2", "p3"]), (2, 0, ["p1"])],
)
def test_the_oldest_points_above_the_count_are_retired(
    count: int, keep: int, expected: list[str]
) -> None:
    assert retired(daily(count), keep, TargetRules(), NOW) == expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (TargetRules(keep_points_min=5), ["p1", "p2"]),
        (TargetRules(keep_points_min=9), []),
        (TargetRules(keep_points_min=1), ["p1", "p2", "p3", "p4", "p5"]),
        (TargetRules(keep_days_min=4), ["p1", "p2", "p3"]),
        (TargetRules(keep_points_min=5, keep_days_min=1), ["p1", "p2"]),
        (TargetRules(keep_days_min=30), []),
    ],
)
def test_the_targets_rules_are_never_undercut(rules: TargetRules, expected: list[str]) -> None:
    assert retired(daily(7), 2, rules, NOW) == expected


def test_a_point_of_exactly_the_kept_age_may_end() -> None:
    points = points_of(
        ("p1", NOW - timedelta(days=2)), ("p2", NOW - timedelta(days=1)), ("p3", NOW)
    )
    rules = TargetRules(keep_days_min=2)
    assert retired(points, 1, rules, NOW) == ["p1"]
    assert retired(points, 1, rules, NOW - timedelta(seconds=1)) == []


def test_a_young_point_protects_the_older_looking_ones_behind_it() -> None:
    points = points_of(
        ("p1", NOW + timedelta(days=400)),  # the clock was wrong
        ("p2", NOW - timedelta(days=20)),
        ("p3", NOW),
    )
    assert retired(points, 1, TargetRules(keep_days_min=1), NOW) == []


def report(*disks: tuple[str, int, int]) -> MachineReport:
    return MachineReport(
        "web",
        "id",
        disks=[
            DiskReport(f"d{number}", "", mode, virtual_size=size, changed=changed)
            for number, (mode, size, changed) in enumerate(disks)
        ],
    )


def test_the_changed_share_counts_disks_with_an_earlier_point() -> None:
    assert changed_share(report(("incremental", 100, 10), ("resume", 300, 30))) == 0.1
    assert changed_share(report(("incremental", 100, 10), ("full", 900, 900))) == 0.1
    assert changed_share(report(("full", 100, 100), ("excluded", 0, 0))) is None
    assert changed_share(report(("incremental", 0, 0))) is None


@pytest.mark.parametrize(
    ("history", "current", "expected"),
    [
        ([], 1.0, False),
        ([0.01, 0.01], 1.0, False),
        ([0.01, 0.01, 0.01], 0.05, False),
        ([0.01, 0.01, 0.01], 0.0501, True),
        ([0.01, 0.02, 0.9], 0.101, True),
        ([0.5] * 5 + [0.01] * 10, 0.06, True),
        ([0.01] * 5 + [0.5] * 10, 0.9, False),
        ([0.0, 0.0, 0.0], 0.004, False),
        ([0.0, 0.0, 0.0], 0.006, True),
    ],
)
def test_five_times_the_median_of_the_last_ten_is_unusual(
    history: list[float], current: float, expected: bool
) -> None:
    assert is_changed_share_unusual(history, current) is expected


@pytest.mark.parametrize(
    ("size", "stored", "changed", "expected"),
    [
        (64 * MiB, 63 * MiB, 824 * KiB, False),  # a log of a small VM
        (64 * MiB, 63 * MiB, 4 * MiB, True),
        (10 * TiB, 100 * GiB, 4 * GiB, False),
        (10 * TiB, 100 * GiB, 5 * GiB, True),  # a twentieth of what is there
        (10 * TiB, 9 * TiB, 9 * GiB, False),
        (10 * TiB, 9 * TiB, 10 * GiB, True),  # much in itself
        (64 * GiB, 0, 2 * GiB, True),  # emptied: nothing is stored any more
    ],
)
def test_a_small_part_of_what_is_stored_is_no_alarm(
    size: int, stored: int, changed: int, expected: bool
) -> None:
    read = min(stored, changed)
    disk = DiskReport(
        "d", "", "incremental", "", size, read=read, skipped=stored - read, changed=changed
    )
    full = DiskReport("e", "", "full", "", size, read=size, changed=size)
    assert is_change_worth_an_alarm(MachineReport("web", "id", disks=[disk, full])) is expected


def test_without_a_file_the_target_has_no_say(tmp_path: Path) -> None:
    assert load_target_rules(tmp_path) == TargetRules(keep_points_min=0, keep_days_min=0)


def test_the_targets_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "standby-target.toml").write_text("keep_points_min = 3\nkeep_days_min = 14\n")
    assert load_target_rules(tmp_path) == TargetRules(keep_points_min=3, keep_days_min=14)


@pytest.mark.skipif(sys.platform != "linux", reason="takes rights away as Linux does")
def test_rules_that_cannot_be_seen_are_not_taken_for_none(tmp_path: Path) -> None:
    target = tmp_path / "above" / "target"
    target.mkdir(parents=True)
    rules = target / "standby-target.toml"
    rules.write_text("keep_points_min = 3\n")
    for closed in (target, target.parent):
        with without_rights(closed), pytest.raises(DiskIO, match="Permission denied"):
            load_target_rules(target)
    with without_rights(rules), pytest.raises(ConfigurationError, match="Permission denied"):
        load_target_rules(target)
    rules.unlink()
    rules.symlink_to("nowhere")
    with pytest.raises(ConfigurationError):
        load_target_rules(target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep_point_min = 3", "keep_point_min: unknown key. did you mean keep_points_min?"),
        ("keep_days_min = '7d'", "keep_days_min: is a text ('7d'). it must be a whole number"),
        ("keep_days_min = -1", "keep_days_min: -1 is out of range"),
        ("keep_points_min", "is not TOML"),
    ],
)
def test_a_targets_file_that_cannot_be_understood_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "standby-target.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_target_rules(tmp_path)
    assert message in str(caught.value)
