"""The whole job over service movers: right, through any proxy, through losses of all kinds."""

from __future__ import annotations

import pytest

from simulation.several import SeveralSite
from standby.units import MiB


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


def sent(report):
    return sum(disk.sent for machine in report.machines for disk in machine.disks)


def retries(report):
    return sum(disk.retries for machine in report.machines for disk in machine.disks)


def data_bytes(site):
    """What the data links of all movers have carried so far, in either direction."""
    return sum(link.sent_bytes for machine in site.machines.values() for link in machine.made)


@pytest.fixture
def big(tmp_path):
    """One disk of 96 MiB of noise: some 24 batches."""
    made = SeveralSite(tmp_path / "site")
    made.add_machine(sizes=(128 * MiB,))
    made.write(0, 96 * MiB)
    yield made
    made.close()


def test_a_dropped_data_link_costs_at_most_a_few_batches(big):
    for name in ("px1", "px2"):
        big.machines[name].cut_after = 48 * MiB
    report = big.run()
    assert report.outcome == "done", report.machines[0].error
    assert retries(report) == 2
    assert data_bytes(big) < 1.05 * 96 * MiB + MiB
    assert big.check_points() == 1
    big.check_nothing_leaked()


def test_a_proxy_that_vanishes_gives_its_disk_to_the_other(big):
    machine = big.machines["px1"]
    machine.cut_after = 48 * MiB
    machine.on_cut = machine.vanish
    report = big.run()
    assert report.outcome == "done", report.machines[0].error
    (disk,) = report.machines[0].disks
    assert (disk.retries, disk.proxy) == (1, "px2")
    assert data_bytes(big) < 1.05 * 96 * MiB + MiB
    assert big.check_points() == 1
    big.check_nothing_leaked()


def test_a_target_that_vanishes_gives_its_replica_to_the_other(big):
    for name in ("px1", "px2"):
        big.machines[name].cut_after = 48 * MiB
        big.machines[name].on_cut = big.machines["dr1"].vanish
    report = big.run()
    assert report.machines[0].outcome == "done", report.machines[0].error
    assert any("went on after" in text for text in report.machines[0].warnings)
    assert big.replica().record().generation == 2
    assert big.check_points() == 1
    big.check_nothing_leaked()
