"""What a session at work is said to be at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemons import NIGHTLY, Site, made_sites
from standby.server.check_movers import Need
from standby.server.doing import how_far, who_is_away
from standby.server.progress import DiskProgress
from standby.units import GiB, MiB

AT = datetime(2026, 11, 23, 18, 40, 5, tzinfo=UTC)
NEEDS = [
    Need("hv1", "host", "host prod", "/vms"),
    Need("px1", "source", "host prod", "/vms", "source prod"),
    Need("px2", "source", "host prod", "/vms", "source prod"),
    Need("b", "host", "host dr", "/dr"),
    Need("b", "target", "host dr", "/dr", "target dr"),
    Need("wan1", "wan", "[wan.w]", "", "", True),
]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    with made_sites(tmp_path) as make:
        yield make


def test_how_far_disks_are_is_told_in_bytes_and_percent() -> None:
    disks = [DiskProgress("web01", "scsi:0:0", GiB, 2 * GiB)]
    assert how_far(disks) == "1 disk: 1.0 GiB of 2.0 GiB, 50 %"
    disks.append(DiskProgress("web01", "scsi:0:1", 0, 512 * MiB))
    assert how_far(disks) == "2 disks: 1.0 GiB of 2.5 GiB, 40 %"
    assert how_far([]) == ""
    assert how_far([DiskProgress("web01", "scsi:0:0", 0, 0)]) == "1 disk: 0 B of 0 B"


def test_a_mover_without_a_stand_in_is_waited_for() -> None:
    assert who_is_away(NEEDS, {"b": AT, "other": AT}) == ["waits for mover b since 18:40:05 UTC"]
    assert who_is_away(NEEDS, {"px1": AT}) == ["mover px1 is away since 18:40:05 UTC"]
    assert who_is_away(NEEDS, {"wan1": AT}) == ["mover wan1 is away since 18:40:05 UTC"]
    both = who_is_away(NEEDS, {"px1": AT, "px2": AT})
    assert both == [f"waits for mover {name} since 18:40:05 UTC" for name in ("px1", "px2")]


def test_the_queue_tells_what_a_session_is_at_while_it_is_at_work(
    made: Callable[..., Site],
) -> None:
    site = made(nightly=NIGHTLY)
    run = site.at_work(hours=8)
    site.daemon._doing = lambda job, report: f"{job} of {report}"
    site.daemon.step()
    (found,) = site.runs()
    assert (found.id, found.detail) == (run.id, f"nightly of {run.id}")
    site.daemon.end()
    assert site.runs()[0].detail == "given back by a server that ended"
