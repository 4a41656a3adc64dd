"""The whole job over service movers: right, through any proxy, through losses of all kinds."""

from __future__ import annotations

import pytest

from simulation.several import SeveralSite


@pytest.fixture
def site(tmp_path):
    made = SeveralSite(tmp_path / "site", restore_points=2)
    made.add_machine()
    made.fill()
    yield made
    made.close()


def test_points_read_right_and_nothing_is_sent_twice(site):
    first = site.run()
    assert first.outcome == "done", first.machines[0].error
    assert {disk.mode for disk in first.machines[0].disks} == {"full"}
    assert {disk.proxy for disk in first.machines[0].disks} == {"px1", "px2"}
    again = site.run()
    assert sum(disk.written for disk in again.machines[0].disks) == 0
    assert {disk.mode for disk in again.machines[0].disks} == {"incremental"}
    site.change()
    third = site.run()
    assert third.outcome == "done", third.machines[0].error
    assert site.check_points() == 2
    site.check_nothing_leaked()
