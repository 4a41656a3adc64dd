"""Which point is meant, which points are kept, which disk is which: pure functions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from replicas import machine
from standby.errors import NoSuchPoint, ReplicaConflict
from standby.model.machine import CheckpointDisk, MachineDisk
from standby.model.point import RestorePoint
from standby.model.replica import ReplicaDisk
from standby.model.target_rules import TargetRules
from standby.road.points import chosen_point, match_disks, points_kept_by


def point(day: int) -> RestorePoint:
    """A point of that day, taken at 22:00."""
    point_id, taken_at = f"202603{day:02}T220000Z-00{day:02}", f"2026-03-{day:02}T22:00:00Z"
    return RestorePoint(1, point_id, "", 1, taken_at, "", "offline", "s", machine(), (), {})


POINTS = tuple(point(day) for day in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("wanted", "day"),
    [
        (None, 4),
        ("20260302T220000Z-0002", 2),
        ("20260303T", 3),
        ("2026-03-03T22:00:00Z", 3),
        ("2026-03-03T21:59:59Z", 2),
        ("2026-03-03T22:30:00+01:00", 2),
        ("2026-03-03T23:00:00", 3),
        ("2026-03-03", 2),
        ("2030-01-01", 4),
    ],
)
def test_a_point_is_chosen_by_id_or_time(wanted: str | None, day: int) -> None:
    assert chosen_point("r", POINTS, wanted).id == f"202603{day:02}T220000Z-00{day:02}"


@pytest.mark.parametrize("wanted", ["2020-01-01", "202603", "yesterday", ""])
def test_a_point_that_cannot_be_meant_is_refused(wanted: str) -> None:
    with pytest.raises(NoSuchPoint, match="20260304T220000Z-0004"):
        chosen_point("r", POINTS, wanted)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("yesterday", "not an id, and not a time such as "),
        ("1999-01-01", "a time older than the oldest, taken at "),
        ("202603", "several begin so"),
    ],
)
def test_the_refusal_of_a_point_says_what_is_wrong_with_it(wanted: str, why: str) -> None:
    with pytest.raises(NoSuchPoint) as caught:
        chosen_point("r", POINTS, wanted)
    assert f"no restore point {wanted} ({why}" in str(caught.value)


def test_no_point_at_all_is_said() -> None:
    with pytest.raises(NoSuchPoint, match="there are: none"):
        chosen_point("r", (), None)


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        (TargetRules(), 0),
        (TargetRules(keep_points_min=2), 2),
        (TargetRules(keep_points_min=9), 4),
        (TargetRules(keep_days_min=1), 1),
        (TargetRules(keep_points_min=1, keep_days_min=3), 3),
    ],
)
def test_the_targets_rules_keep_the_newest_and_the_young(rules: TargetRules, kept: int) -> None:
    now = datetime(2026, 3, 5, 12, tzinfo=UTC)
    assert points_kept_by(rules, POINTS, now) == POINTS[4 - kept :]


def test_a_point_without_a_readable_time_is_kept_while_days_count() -> None:
    odd = replace(POINTS[0], taken_at="soon")
    now = datetime(2026, 6, 1, tzinfo=UTC)
    assert points_kept_by(TargetRules(keep_days_min=1), (odd, *POINTS[1:]), now) == (odd,)


# --- disks -----------------------------------------------------------------------------------


def disk(place: str, *, host_id: str = "", page83: str = "") -> MachineDisk:
    return MachineDisk(place, f"{place}.vhdx", host_id, page83)


def test_disks_of_a_new_replica_get_ids_in_order() -> None:
    found = match_disks("r", (), [disk("scsi:0:0"), disk("scsi:0:1")])
    assert [item.id for item in found.new] == ["disk0", "disk1"]
    assert found.known == found.new
    assert found.removed == ()


def test_the_hosts_id_wins_over_page83_and_place() -> None:
    known = (ReplicaDisk("disk0", "a", "h0", "p"), ReplicaDisk("disk1", "b", "h1", "p"))
    found = match_disks(
        "r", known, [disk("a", host_id="h1", page83="p"), disk("b", host_id="h0", page83="p")]
    )
    assert {place: item.id for place, item in found.matched.items()} == {"a": "disk1", "b": "disk0"}
    assert [item.place for item in found.known] == ["b", "a"]


def test_clones_with_one_page83_are_told_apart_by_their_place() -> None:
    known = (ReplicaDisk("disk0", "a", "", "p"), ReplicaDisk("disk1", "b", "", "p"))
    found = match_disks("r", known, [disk("b", page83="p"), disk("a", page83="p")])
    assert {place: item.id for place, item in found.matched.items()} == {"a": "disk0", "b": "disk1"}


def test_a_disk_moved_to_another_place_is_followed_by_its_page83() -> None:
    found = match_disks("r", (ReplicaDisk("disk0", "a", "", "p"),), [disk("z", page83="p")])
    assert found.matched["z"] == ReplicaDisk("disk0", "z", "", "p")


def test_a_checkpoints_disks_match_as_a_machines_do() -> None:
    known = (ReplicaDisk("disk0", "a", "h0", "p"),)
    found = match_disks("r", known, [CheckpointDisk("a", ("x",), "i", 1, page83="p")])
    assert found.matched["a"].id == "disk0"
    assert found.matched["a"].host_id == "h0"


def test_moved_clones_are_a_conflict() -> None:
    known = (ReplicaDisk("disk0", "a", "", "p"), ReplicaDisk("disk1", "b", "", "p"))
    with pytest.raises(ReplicaConflict, match="same page-83 id"):
        match_disks("r", known, [disk("c", page83="p"), disk("d", page83="p")])
    with pytest.raises(ReplicaConflict, match="same page-83 id"):
        match_disks("r", known, [disk("c", page83="p")])


def test_a_replaced_disk_is_a_new_one_and_the_old_id_is_not_used_again() -> None:
    first = match_disks("r", (), [disk("a", page83="p")])
    second = match_disks("r", first.known, [disk("a", page83="q")])
    assert ([item.id for item in second.new], [item.id for item in second.removed]) == (
        ["disk1"],
        ["disk0"],
    )
    third = match_disks("r", second.known, [disk("a", page83="r")])
    assert [item.id for item in third.new] == ["disk2"]
    back = match_disks("r", third.known, [disk("a", page83="p")])
    assert back.matched["a"].id == "disk0"


def test_disks_without_identity_are_known_by_their_place() -> None:
    first = match_disks("r", (), [disk("a"), disk("b")])
    second = match_disks("r", first.known, [disk("b"), disk("c")])
    assert second.matched["b"].id == "disk1"
    assert [item.id for item in second.new] == ["disk2"]
    assert [item.id for item in second.removed] == ["disk0"]


def test_an_identity_is_never_matched_to_an_anonymous_disk_in_its_place() -> None:
    found = match_disks("r", (ReplicaDisk("disk0", "a", "", "p"),), [disk("a")])
    assert [item.id for item in found.new] == ["disk1"]


@pytest.mark.parametrize(
    "present",
    [[disk("a"), disk("a")], [disk("a", host_id="h"), disk("b", host_id="h")]],
    ids=["place", "host id"],
)
def test_two_disks_that_claim_to_be_one_are_a_conflict(present: list[MachineDisk]) -> None:
    with pytest.raises(ReplicaConflict, match="two disks"):
        match_disks("r", (), present)
