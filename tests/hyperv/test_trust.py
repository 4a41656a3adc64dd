"""When a host's change tracking is believed: every reason not to, and what its answer means."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random

import msgspec
import numpy as np
import pytest

from standby.host.hyperv.rows import DiskChanges, Point
from standby.host.hyperv.trust import (
    SAMPLE_SIZE,
    SAMPLES,
    DiskNow,
    TrackedDisk,
    changed_ranges,
    distrust_after,
    distrust_before,
    parse_tracker,
    sample_alarm,
    sampled,
)
from standby.model.extent import Extent
from standby.units import GiB, KiB, MiB, TiB

NOW = datetime(2026, 11, 24, tzinfo=UTC)
PLACE = "scsi:0:0"
THEN = TrackedDisk(
    point="Microsoft:P",
    place=PLACE,
    ids={PLACE: "rct1"},
    disk_id="d1",
    size=GiB,
    chain=(r"d:\vm\a.vhdx",),
    applied=("Microsoft:S",),
    audited=(NOW - timedelta(days=3)).isoformat(),
)
AS_IT_WAS = DiskNow("d1", GiB, (r"d:\vm\a.vhdx",))
POINT = Point("Microsoft:P", 2, ["m1"], ["rct1"])
ANSWER = DiskChanges(PLACE, 0, GiB, "0;4096")


def changed(**more: object) -> TrackedDisk:
    return msgspec.structs.replace(THEN, **more)


@pytest.mark.parametrize(
    ("then", "now", "why"),
    [
        (THEN, AS_IT_WAS, ""),
        (changed(why="the conversion failed"), AS_IT_WAS, "the conversion failed"),
        (changed(point=""), AS_IT_WAS, "records no reference point"),
        (changed(ids={"scsi:0:1": "rct2"}), AS_IT_WAS, "records no reference point"),
        (THEN, DiskNow("d2", GiB, AS_IT_WAS.chain), "the disk's id is d2, d1 in"),
        (THEN, DiskNow("d1", 2 * GiB, AS_IT_WAS.chain), f"has {2 * GiB} bytes, {GiB} in"),
        (THEN, DiskNow("d1", GiB, (r"e:\vm\a.vhdx",)), r"file is e:\vm\a.vhdx, d:\vm\a.vhdx in"),
        (THEN, DiskNow("d1", GiB, ()), "file is none"),
        (THEN, DiskNow("d1", GiB, (r"d:\vm\a.vhdx", r"d:\b.vhdx")), "parents are not those"),
        (changed(audited=""), AS_IT_WAS, "not known when all of the disk was last read"),
        (
            changed(audited=(NOW - timedelta(days=30)).isoformat()),
            AS_IT_WAS,
            "read every 30 days (last 2026-10-25)",
        ),
    ],
)
def test_reasons_not_even_to_ask(then: TrackedDisk, now: DiskNow, why: str) -> None:
    found = distrust_before(then, now, NOW)
    assert (found == "") == (why == "")
    assert why in found


@pytest.mark.parametrize(
    ("points", "applied", "answer", "why"),
    [
        ([POINT], ["Microsoft:S"], ANSWER, ""),
        ([], ["Microsoft:S"], ANSWER, "does not have the reference point Microsoft:P any more"),
        ([Point("Microsoft:P", 1, ["m1"], ["rct1"])], ["Microsoft:S"], ANSWER, "of type 1, not"),
        ([Point("Microsoft:P", 2, ["m1"], ["x"])], ["Microsoft:S"], ANSWER, "other tracking ids"),
        ([Point("Microsoft:P", 2)], ["Microsoft:S"], ANSWER, "other tracking ids"),
        ([POINT], [], ANSWER, "set back to a checkpoint"),
        ([POINT], ["Microsoft:T"], ANSWER, "set back to a checkpoint"),
        ([POINT], ["Microsoft:S"], None, "did not answer about the disk"),
        (
            [POINT],
            ["Microsoft:S"],
            DiskChanges(PLACE, 32768, 0),
            "GetVirtualDiskChanges returned 32768",
        ),
        ([POINT], ["Microsoft:S"], DiskChanges(PLACE, 4096, 0), "returned 4096"),
        (
            [POINT],
            ["Microsoft:S"],
            DiskChanges(PLACE, -1, 0, "", "Generic failure"),
            "returned -1 (Generic failure)",
        ),
        (
            [POINT],
            ["Microsoft:S"],
            DiskChanges(PLACE, 0, GiB - 512),
            f"stopped at byte {GiB - 512} of {GiB}",
        ),
    ],
)
def test_reasons_not_to_believe_the_answer(
    points: list[Point], applied: list[str], answer: DiskChanges | None, why: str
) -> None:
    found = distrust_after(THEN, points, applied, answer)
    assert (found == "") == (why == "")
    assert why in found


@pytest.mark.parametrize("text", ["", "epoch:12", "[]", '{"version": 2}', '{"size": "x"}'])
def test_a_tracker_id_of_something_else_is_none(text: str) -> None:
    assert parse_tracker(text) is None
    assert parse_tracker(THEN.text()) == THEN


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", []),
        (";", []),
        ("0;4096", [(0, 4096)]),
        ("8192,0;4096,4096", [(0, 4096), (8192, 4096)]),
        ("0,4096;4096,4096\n8192;4096", [(0, 12288)]),
        ("0,100;1000,10", [(0, 1000)]),
        (f"{MiB - 512};4096", [(MiB - 512, 512)]),
        ("0,512;0,512", [(512, 512)]),
        (";\n4096;512\n;", [(4096, 512)]),
    ],
)
def test_ranges_are_in_order_joined_and_within_the_disk(
    lines: str, expected: list[tuple[int, int]]
) -> None:
    assert [tuple(row) for row in changed_ranges(lines, MiB).tolist()] == expected


@pytest.mark.parametrize("lines", ["0", "0;1,2", "a;b", f"{MiB};512", f"0;{1 << 63}", "-1;5"])
def test_ranges_that_make_no_sense_are_refused(lines: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        changed_ranges(lines, MiB)


def chance(seed: int) -> Callable[[int], int]:
    return Random(seed).randrange


def test_samples_touch_no_range_and_reach_every_other_piece() -> None:
    ranges = np.array(
        [[0, 4 * KiB], [8 * KiB, MiB], [5 * MiB - 1, 2], [90 * MiB, 10 * MiB]], dtype=np.int64
    )
    size = 100 * MiB + 512
    touched = {0, 1, 4, 5, *range(90, 100)}
    seen: set[int] = set()
    for seed in range(40):
        found = sampled(ranges, size, chance(seed))
        assert len(found) == SAMPLES
        assert found == sorted(found, key=lambda item: item.offset)
        pieces = {item.offset // SAMPLE_SIZE for item in found}
        assert len(pieces) == SAMPLES
        assert not pieces & touched
        assert all(item.offset + item.length <= size for item in found)
        seen |= pieces
    assert seen == set(range(101)) - touched


def test_samples_of_a_disk_without_much_that_is_unchanged_are_all_of_it() -> None:
    ranges = np.array([[0, 3 * MiB]], dtype=np.int64)
    assert sampled(ranges, 5 * MiB, chance(1)) == [Extent(3 * MiB, MiB), Extent(4 * MiB, MiB)]
    assert sampled(ranges, 3 * MiB, chance(1)) == []
    assert len(sampled(np.empty((0, 2), dtype=np.int64), TiB, chance(1))) == SAMPLES


def test_a_difference_in_a_sample_is_an_alarm() -> None:
    assert sample_alarm("web", PLACE, []) == ""
    text = sample_alarm("web", PLACE, [Extent(7 * MiB, 512), Extent(9 * MiB, 512)])
    assert "VM web, disk scsi:0:0" in text
    assert str(7 * MiB) in text
