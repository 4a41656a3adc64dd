"""Whole sessions over everything that happens to VMs and disks between them."""

from __future__ import annotations

import shutil

import pytest

from simulation.sessions import (
    disks_of,
    edit,
    made,
    vm_toml,
)
from simulation.site import Site
from standby.disk import open_disk
from standby.host.folder import new_machine
from standby.model.replica import ReplicaState
from standby.units import MiB


@pytest.fixture
def site(tmp_path):
    return made(tmp_path)


# --- cycles ----------------------------------------------------------------------------------


def test_a_first_session_is_full_and_sends_no_zeros(site):
    site.zero(20 * MiB, MiB)
    report = site.run()
    assert report.outcome == "done"
    disk = disks_of(report)["scsi:0:0"]
    assert disk.mode == "full"
    assert disk.changed == 5 * MiB + 3 * MiB + 4096 + MiB
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_a_later_session_sends_the_changed_pieces_alone(site):
    site.run()
    site.change()
    report = site.run()
    disk = disks_of(report)["scsi:0:0"]
    assert disk.mode == "incremental"
    # Five scattered pieces and 300 KiB; the trimmed 256 KiB travel as a row of a table.
    assert disk.written == 5 * 4096 + 300 * 1024
    assert disk.zeroed == 256 * 1024
    assert disk.sent < disk.written + 8192
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_an_unchanged_vm_gets_a_point_that_costs_nothing(site):
    site.run()
    report = site.run()
    assert report.outcome == "done"
    assert all(disk.sent == disk.written == 0 for disk in disks_of(report).values())
    assert site.check_points() == 2


def test_many_vms_are_replicated_in_one_session(tmp_path):
    site = Site(tmp_path / "site", more="max_machines = 3\nmax_tasks = 2\n")
    for number in range(4):
        name = f"vm{number}"
        site.add_machine(name, (8 * MiB, 4 * MiB, 4 * MiB))
        for disk in range(3):
            site.write(disk * 4096, MiB, disk, name)
    report = site.run()
    assert [machine.outcome for machine in report.machines] == ["done"] * 4
    for number in range(4):
        site.write(2 * MiB, 4096, 0, f"vm{number}")
    assert site.run().outcome == "done"
    for number in range(4):
        assert site.check_points(f"vm{number}_replica") == 2
        site.check_nothing_leaked(f"vm{number}_replica")


def test_no_more_disks_are_under_way_than_the_job_allows(tmp_path, monkeypatch):
    from standby.road.source_host import SourceVerbs

    site = Site(tmp_path / "site", more="max_machines = 2\nmax_tasks = 1\n")
    for name in ("vm1", "vm2"):
        site.add_machine(name, (4 * MiB, 4 * MiB))
    under_way, most = [], []
    original = SourceVerbs._send_disk

    def counted(self, wanted, *rest):
        under_way.append(wanted.task)
        most.append(len(under_way))
        try:
            return original(self, wanted, *rest)
        finally:
            under_way.remove(wanted.task)

    monkeypatch.setattr(SourceVerbs, "_send_disk", counted)
    assert site.run().outcome == "done"
    assert len(most) == 4
    assert max(most) == 1


def test_one_vm_that_fails_does_not_stop_the_others(site):
    site.add_machine("vm2", (4 * MiB,))
    site.disk(0, "vm2").write_bytes(b"vhdxfile" + bytes(2 * MiB))
    with site.server() as server:
        report = server.start("job")
    assert [machine.outcome for machine in report.machines] == ["done", "failed"]
    assert "disk0.vhdx" in report.machines[1].error
    assert report.outcome == "failed"


def vm_file(site, folder, text):
    path = site.folder / "source" / folder / "vm.toml"
    path.parent.mkdir()
    path.write_text(text)


def test_a_vm_toml_that_cannot_be_read_fails_that_vm_alone(tmp_path):
    site = Site(tmp_path / "site", more='rpo = "1h"\n')
    site.add_machine()
    site.add_machine("vm2", (4 * MiB,))
    assert site.run().outcome == "done"
    toml = site.folder / "source" / "vm2" / "vm.toml"
    toml.write_text("no toml at all")
    site.clock.wait(hours=2)
    vm_file(site, "other", 'name = "vm9"')
    edit(site.config, ('machines = ["*"]', 'machines = ["vm*"]\nexclude_machines = ["VM9"]'))
    plan = site.plan()
    assert [(item.machine, item.action) for item in plan.machines] == [
        ("vm1", "replicate"),
        ("vm2", "conflict"),
    ]
    assert "is not TOML" in plan.machines[1].reason
    report = site.run()
    assert report.outcome == "failed"
    first, second = report.machines
    assert (first.machine, first.outcome) == ("vm1", "done")
    assert (second.machine, second.outcome) == ("vm2", "failed")
    assert f"{toml}: is not TOML" in second.error
    assert "the newest restore point of vm2 is 7" in second.alarms[0]
    with site.server() as server:
        assert server.report(report.id) == report
        assert [alarm.machine for alarm in server.store.alarms()] == ["vm2"]
    assert [item.outcome for item in site.run(machines=["vm1"]).machines] == ["done"]
    assert [item.outcome for item in site.run(machines=["vm2"]).machines] == ["failed"]


def test_two_vms_of_one_name_are_both_failed_and_no_other(site):
    site.add_machine("vm2", (4 * MiB,))
    shutil.copytree(site.folder / "source" / "vm2", site.folder / "source" / "vm2-copy")
    report = site.run()
    assert [(item.machine, item.outcome) for item in report.machines] == [
        ("vm1", "done"),
        ("vm2", "failed"),
        ("vm2-copy", "failed"),
    ]
    assert "'vm2-copy' too" in report.machines[1].error


def test_only_the_vms_named_are_taken(site):
    site.add_machine("vm2", (4 * MiB,))
    report = site.run(machines=["vm2"])
    assert [machine.machine for machine in report.machines] == ["vm2"]


def test_a_name_that_is_no_vm_of_the_job_is_refused(site):
    with pytest.raises(Exception, match="no VM in job job named 'vm9'; known: vm1"):
        site.run(machines=["vm9"])


# --- retention -------------------------------------------------------------------------------


def test_retention_keeps_the_newest_points_and_each_reads_right(tmp_path):
    site = Site(tmp_path / "site", restore_points=3)
    site.add_machine()
    site.fill()
    for _ in range(6):
        assert site.run().outcome == "done"
        site.change()
    assert site.check_points() == 3
    site.check_nothing_leaked()


def test_fewer_points_asked_for_are_merged_at_the_next_session(tmp_path):
    site = Site(tmp_path / "site", restore_points=5)
    site.add_machine()
    for _ in range(5):
        site.change()
        site.run()
    edit(site.config, ("restore_points = 5", "restore_points = 2"))
    site.change()
    assert site.run().outcome == "done"
    assert site.check_points() == 2
    site.change()
    assert site.run().outcome == "done"


# --- whose replica ---------------------------------------------------------------------------


def test_a_renamed_vm_keeps_its_replica(site):
    site.run()
    (site.folder / "source" / "vm1").rename(site.folder / "source" / "other")
    edit(vm_toml(site, "other"), ('name = "vm1"', 'name = "web"'))
    report = site.run()
    assert report.machines[0].replica == "vm1_replica"
    assert disks_of(report)["scsi:0:0"].mode == "incremental"
    assert site.check_points() == 2


def test_a_vm_that_is_gone_from_the_source_is_a_warning_until_that_is_meant(site):
    site.add_machine("vm2", (4 * MiB,))
    site.run()
    (site.folder / "source" / "vm2").rename(site.folder / "aside")
    assert {item.machine for item in site.run(machines=["vm1"]).machines} == {"vm1"}
    report = site.run()
    first, gone = report.machines
    assert (report.outcome, first.outcome, gone.outcome) == ("warnings", "done", "skipped")
    assert gone.replica == "vm2_replica"
    assert "is not on host source any more" in gone.warnings[0]
    edit(site.config, ('machines = ["*"]', 'machines = ["*"]\nexclude_machines = ["vm2"]'))
    assert site.run().outcome == "done"


def test_a_folder_of_another_vms_replica_is_never_used(site):
    site.run()
    before = site.replica().points()
    shutil.rmtree(site.folder / "source" / "vm1")
    site.add_machine("vm1", (4 * MiB,))  # another VM of that name
    report = site.run()
    assert report.machines[0].replica != "vm1_replica"
    assert report.machines[0].replica.startswith("vm1_replica-")
    assert site.replica().points() == before


def test_the_folder_of_a_vm_at_the_target_is_never_used(site):
    new_machine(site.folder / "target", "vm1_replica", disks={"scsi:0:0": MiB})
    report = site.run()
    assert report.machines[0].replica.startswith("vm1_replica-")
    assert not (site.folder / "target" / "vm1_replica" / "replica.json").exists()


def test_a_running_vm_is_refused_and_named(site, monkeypatch):

    held = open_disk(site.disk(), writable=True)  # as QEMU would
    try:
        report = site.run()
    finally:
        held.close()
    assert report.outcome == "failed"
    assert "vm1" in report.machines[0].error
    assert "is running" in report.machines[0].error
    assert site.run().outcome == "done"


def test_a_replica_that_is_failed_over_is_left_alone(site):
    site.run()
    with site.server() as server:
        server.replicas.failover("vm1_replica")
    report = site.run()
    assert report.machines[0].outcome == "skipped"
    assert report.outcome == "warnings"
    assert site.replica().record().state is ReplicaState.FAILOVER
    with site.server() as server:
        server.replicas.undo_failover("vm1_replica")
    site.change()
    assert site.run().outcome == "done"
    assert site.check_points() == 2
