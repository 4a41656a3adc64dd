"""The whole road from a host in memory: its change tracker, used and misbehaving, and a disk that
cannot be read."""

from __future__ import annotations

import hashlib

import pytest

from simulation.site import Site, at_kill_point
from standby import BackupServer
from standby.errors import DiskIO
from standby.host.memory import MemoryDisk, MemoryHost, TrackerFault
from standby.model.machine import PowerState
from standby.road.source_host import SourceVerbs
from standby.road.target_host import TargetVerbs
from standby.testing.movers import thread_movers
from standby.units import MiB

PLACE = "scsi:0:0"


class UnreadableDisk:
    """A disk of which one range cannot be read; everything else is the disk's own."""

    def __init__(self, disk: MemoryDisk, offset: int) -> None:
        self._disk = disk
        self._offset = offset

    def __getattr__(self, name):
        return getattr(self._disk, name)

    def read_into(self, offset, buffer):
        if offset <= self._offset < offset + len(memoryview(buffer)):
            path = str(self._disk.path)
            raise DiskIO(path, "read", self._offset, 4096, "Input/output error")
        self._disk.read_into(offset, buffer)


class MemorySite(Site):
    """A site whose source is a host in memory."""

    def __init__(self, folder, more=""):
        super().__init__(folder, more=more)
        self.host = MemoryHost("source", clock=self.clock)
        self.machine = self.host.add_machine("vm1", {PLACE: 24 * MiB, "scsi:0:1": 8 * MiB})
        self.unreadable = -1

    def opened(self, disk):
        found = self.host.open_file(disk.files[0])
        return UnreadableDisk(found, self.unreadable) if self.unreadable >= 0 else found

    def movers(self, connections):
        return thread_movers(
            connections,
            lambda ends: SourceVerbs(ends, self.opened),
            lambda ends: TargetVerbs(ends, self.clock),
        )

    def server(self):
        hosts = {"source": self.host}
        return BackupServer(self.config, clock=self.clock, hosts=hosts, make_movers=self.movers)

    def put(self, offset, length, place=PLACE):
        data = self.random.bytes(length)
        self.host.disk(self.machine, place).write(offset, data)

    def content(self, machine):
        found = {}
        for place in (PLACE, "scsi:0:1"):
            disk = self.host.disk(self.machine, place)
            data = bytearray(disk.virtual_size)
            disk.read_into(0, data)
            found[place] = hashlib.sha256(data).hexdigest()
        return found


@pytest.fixture
def site(tmp_path):
    made = MemorySite(tmp_path / "site")
    made.put(0, 5 * MiB)
    made.put(20 * MiB, MiB)
    made.put(0, 2 * MiB, "scsi:0:1")
    return made


def first_disk(report):
    (machine,) = report.machines
    assert machine.outcome == "done", machine.error
    return machine.disks[0]


def test_a_tracker_limits_what_is_read(site):
    assert first_disk(site.run()).mode == "full"
    site.put(MiB, 8192)
    site.put(20 * MiB + 100 * 512, 512)
    disk = first_disk(site.run())
    assert "change tracker" in disk.reason
    assert disk.read == 8192 + 4096
    assert disk.written == 8192 + 4096
    assert disk.skipped > 5 * MiB
    assert site.check_points() == 2


def test_a_running_vm_of_such_a_host_is_replicated(site):
    site.host.set_power(site.machine, PowerState.RUNNING)
    site.run()
    assert site.replica().newest().consistency == "crash"


def test_the_point_records_the_tracker_id_of_its_very_state(site):
    site.run()
    first = site.replica().newest().disks[0].tracker_id
    site.put(0, 4096)
    site.run()
    second = site.replica().newest().disks[0].tracker_id
    assert first
    assert second
    assert first != second
    # The older one was given up once the newer point was committed, and only then.
    known = site.host._find(site.machine.id).trackers[PLACE]
    assert list(known) == [second]


def test_a_tracker_id_stays_valid_until_the_next_point_is_committed(site):
    site.run()
    first = site.replica().newest().disks[0].tracker_id
    site.put(0, 4096)

    def fail():
        raise DiskIO("somewhere", "rename", 0, 0, "as asked for")

    site.states.append(site.content("vm1"))
    with at_kill_point("pending written", fail):
        report = site.run()
    assert report.outcome == "failed"
    known = site.host._find(site.machine.id).trackers[PLACE]
    assert first in known
    site.put(12 * MiB, 4096)
    # All was there: the next session commits that point first, and counts from it.
    assert first_disk(site.run()).read == 4096
    assert site.check_points() == 3
    assert list(known) == [site.replica().newest().disks[0].tracker_id]


def test_an_unsure_tracker_costs_reading_and_nothing_else(site):
    site.run()
    site.put(MiB + 8192, 4096)
    site.host.set_fault(site.machine, PLACE, TrackerFault.UNSURE)
    disk = first_disk(site.run())
    assert disk.read == MiB
    assert disk.written == 4096
    assert site.check_points() == 2


@pytest.mark.parametrize(
    ("fault", "why"),
    [(TrackerFault.WRONG_BASE, "counts from another id"), (TrackerFault.LOST, "does not know")],
)
def test_a_tracker_that_cannot_say_is_replaced_by_digests(site, fault, why):
    site.run()
    site.put(MiB, 4096)
    site.host.set_fault(site.machine, PLACE, fault)
    disk = first_disk(site.run())
    assert why in disk.reason
    assert disk.written == 4096
    assert disk.read >= 6 * MiB
    site.host.set_fault(site.machine, PLACE, None)
    site.put(2 * MiB, 4096)
    disk = first_disk(site.run())
    assert disk.read == 4096
    assert site.check_points() == 3


def test_content_that_was_taken_back_is_a_candidate_whatever_the_tracker_says(site, monkeypatch):
    """RULES 8: a tracker that hears of no write in between must not hide what was sent already."""
    site.run()
    disk = site.host.disk(site.machine, PLACE)
    before = bytearray(MiB)
    disk.read_into(2 * MiB, before)
    site.put(2 * MiB, MiB)

    def fail():
        raise DiskIO("somewhere", "write", 0, 0, "as asked for")

    with at_kill_point("verified", fail):
        assert site.run().outcome == "failed"
    disk.write(2 * MiB, before)
    del disk.writes[-2:]  # as if nothing had been written since the point
    resumed = first_disk(site.run())
    assert resumed.mode == "resume"
    assert site.check_points() == 2


def test_a_plan_with_a_tracker_is_what_the_session_does(site):
    site.run()
    site.put(MiB, 8192)
    (machine,) = site.plan(scan=True).machines
    disk = first_disk(site.run())
    assert machine.disks[0].reason == disk.reason
    assert machine.disks[0].read.value == disk.read
    assert machine.disks[0].send.value == disk.written


def test_a_block_that_cannot_be_read_fails_the_task_and_names_it(site):
    site.run()
    site.put(MiB, 4096)
    site.put(3 * MiB, 4096)
    site.unreadable = 3 * MiB
    report = site.run()
    assert report.outcome == "failed"
    assert "Input/output error" in report.machines[0].error
    assert "0x300000" in report.machines[0].error
    assert site.check_points() == 1
    site.unreadable = -1
    assert first_disk(site.run()).mode == "resume"
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_a_checkpoint_that_vanished_makes_no_point(site):
    site.run()
    site.put(0, 4096)

    def vanish():
        for held in list(site.host._held.values()):
            if held.tracker_ids is None:
                site.host.disturb(held.checkpoint)

    with at_kill_point("verified", vanish, count=2):
        report = site.run()
    assert "changed under the checkpoint" in report.machines[0].error
    assert site.check_points() == 1
    first_disk(site.run())
    assert site.check_points() == 2
