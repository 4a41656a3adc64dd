"""Whole sessions over everything that happens to VMs and disks between them."""

from __future__ import annotations

import shutil

import pytest

from simulation.site import Site, add_disk, at_kill_point
from standby.disk import open_disk, vhdx
from standby.errors import DiskIO
from standby.host.folder import new_machine
from standby.model.replica import ReplicaState
from standby.road import target_host
from standby.server.plan import Mode
from standby.units import MiB


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "site")
    made.add_machine()
    made.fill()
    return made


def disks_of(report, machine=0):
    return {disk.place: disk for disk in report.machines[machine].disks}


def vm_toml(site, machine="vm1"):
    return site.folder / "source" / machine / "vm.toml"


def edit(path, *changes):
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def drop_disk(site, number, machine="vm1"):
    """Take the disk's table out of vm.toml."""
    path = vm_toml(site, machine)
    parts = path.read_text().split("[[disks]]")
    path.write_text("[[disks]]".join(part for part in parts if f"disk{number}.vhdx" not in part))


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


# --- disks that come, go and change ----------------------------------------------------------


def test_an_added_disk_is_full_while_the_others_go_on(site):
    site.run()
    add_disk(site, 4 * MiB, "scsi:0:5")
    site.write(0, MiB, 2)
    site.change()
    report = site.run()
    assert {place: disk.mode for place, disk in disks_of(report).items()} == {
        "scsi:0:0": "incremental",
        "scsi:0:1": "incremental",
        "scsi:0:5": "full",
    }
    assert report.outcome == "done"  # a new disk is no alarm
    assert site.check_points() == 2


def test_a_removed_disk_stays_in_older_points(site):
    site.run()
    drop_disk(site, 1)
    report = site.run()
    assert report.outcome == "warnings"
    assert "gone from the VM" in report.machines[0].warnings[0]
    folder = site.replica()
    assert [len(point.disks) for point in folder.points()] == [2, 1]
    assert site.check_points() == 2


@pytest.mark.parametrize("size", [40 * MiB, 10 * MiB])
def test_a_resized_disk_starts_a_new_chain_from_what_the_target_holds(site, size):
    site.run()
    site.change()
    if size > 24 * MiB:
        disk = vhdx.open_vhdx(site.disk(), writable=True)
        disk.grow(size)
        disk.close()
        site.write(size - MiB, MiB)
    else:
        rewritten = site.disk().with_suffix(".new")
        source = vhdx.open_vhdx(site.disk())
        target = vhdx.create(rewritten, size)
        buffer = bytearray(size)
        source.read_into(0, buffer)
        target.write(0, buffer)
        target.close()
        source.close()
        rewritten.replace(site.disk())
    report = site.run()
    disk = disks_of(report)["scsi:0:0"]
    assert disk.mode == "new chain"
    assert ("grew" if size > 24 * MiB else "shrank") in disk.reason
    # What the target held was copied there: only the change travelled.
    assert disk.written < 3 * MiB
    site.change() if size > 24 * MiB else site.write(0, 4096)
    assert site.run().outcome == "done"
    assert site.check_points() == 3
    site.check_nothing_leaked()


def test_retention_takes_an_old_chain_whole(tmp_path):
    site = Site(tmp_path / "site", restore_points=2)
    site.add_machine()
    site.fill()
    site.run()
    disk = vhdx.open_vhdx(site.disk(), writable=True)
    disk.grow(30 * MiB)
    disk.close()
    for _ in range(3):
        site.change()
        assert site.run().outcome in ("done", "warnings")
    assert site.check_points() == 2
    files = {path.name for path in (site.replica().path / "disk0").glob("*.vhdx")}
    assert len(files) == 3  # the new chain's base, a child, the ready layer
    site.check_nothing_leaked()


def test_a_replaced_disk_is_another_disk_and_an_alarm(site):
    site.run()
    site.run()
    drop_disk(site, 0)
    site.disk().unlink()
    add_disk(site, 12 * MiB, "scsi:0:0", name="disk9.vhdx")
    (site.folder / "source/vm1/disk9.vhdx").replace(site.folder / "source/vm1/disk7.vhdx")
    edit(vm_toml(site), ('file = "disk9.vhdx"', 'file = "disk7.vhdx"'))
    site.write(0, MiB, 7)
    report = site.run()
    disk = disks_of(report)["scsi:0:0"]
    assert (disk.mode, disk.disk_id) == ("new chain", "disk2")
    assert "another disk is at this place" in report.machines[0].alarms[0]
    assert report.outcome == "warnings"
    assert site.check_points() == 3
    with site.server() as server:
        assert [alarm.kind for alarm in server.store.alarms()] == ["full"]


def test_a_disk_replaced_by_a_copy_of_itself_travels_as_what_differs(site):
    site.run()
    before = open_disk(site.disk())
    content = bytearray(24 * MiB)
    before.read_into(0, content)
    before.close()
    drop_disk(site, 0)
    site.disk().unlink()
    add_disk(site, 24 * MiB, "scsi:0:0", name="disk9.vhdx")
    after = open_disk(site.disk(9), writable=True)
    after.write(0, content)
    after.close()
    site.write(MiB, 4096, 9)
    assert disks_of(site.plan(scan=True))["scsi:0:0"].send.value < MiB
    disk = disks_of(site.run())["scsi:0:0"]
    assert (disk.mode, disk.disk_id) == ("new chain", "disk2")
    assert disk.sent < MiB
    assert site.check_points() == 2


def test_an_excluded_disk_is_neither_read_nor_kept(tmp_path):
    site = Site(tmp_path / "site", more='exclude_disks = ["vm1:scsi:0:1"]\n')
    site.add_machine()
    site.fill()
    report = site.run()
    assert disks_of(report)["scsi:0:1"].mode == "excluded"
    assert disks_of(report)["scsi:0:1"].read == 0
    assert site.check_points() == 1
    edit(site.config, ('exclude_disks = ["vm1:scsi:0:1"]', ""))
    report = site.run()
    assert disks_of(report)["scsi:0:1"].mode == "full"
    edit(site.config, ("restore_points = 7", 'restore_points = 7\nexclude_disks = ["*:scsi:0:0"]'))
    site.change()
    assert site.run().outcome == "done"
    assert site.check_points() == 3


EXCLUDING = 'exclude_disks = ["vm1:scsi:0:1"]'


def excluding(site, is_excluded):
    if is_excluded:
        edit(site.config, ("restore_points", f"{EXCLUDING}\nrestore_points"))
    else:
        edit(site.config, (f"{EXCLUDING}\n", ""))


@pytest.mark.parametrize("how", ["excluded", "removed", "repository lost"])
def test_a_disk_that_was_left_out_goes_on_from_the_newest_point_that_has_it(tmp_path, how):
    site = Site(tmp_path / "site", restore_points=4)
    site.add_machine()
    site.fill()
    site.run()
    last = site.run().machines[0].point
    toml = vm_toml(site).read_text()
    for _ in range(2):
        drop_disk(site, 1) if how == "removed" else excluding(site, True)
        site.change()
        assert [disk.place for disk in site.run().machines[0].disks if disk.written] == ["scsi:0:0"]
        vm_toml(site).write_text(toml) if how == "removed" else excluding(site, False)
    if how == "repository lost":
        shutil.rmtree(site.folder / "repository")
    plan = site.plan(scan=True)
    report = site.run()
    check_as_planned(plan, report)
    disk = disks_of(report)["scsi:0:1"]
    # 6 MiB came and went with each of the two changes; 2 MiB are there since the first session.
    assert (disk.mode, disk.written) == ("incremental", 4096)
    assert planned(plan)["scsi:0:1"].send.value == 4096
    assert f"the newest that has the disk is {last}" in disk.reason
    newest = site.replica().points()[-1]
    assert [len(disk.chain) for disk in newest.disks][1] in (2, 3)
    # Retention merges across the points without the disk.
    for _ in range(3 if how == "excluded" else 1):
        assert site.check_points() == 4
        site.change()
        assert site.run().outcome == "done"
    assert site.check_points() == 4
    site.check_nothing_leaked()


def test_a_disk_that_was_left_out_and_resized_is_copied_from_what_the_target_holds(site):
    site.run()
    excluding(site, True)
    site.run()
    excluding(site, False)
    grown(site, 12 * MiB, 1)
    site.change()
    plan = site.plan(scan=True)
    report = site.run()
    check_as_planned(plan, report)
    disk = disks_of(report)["scsi:0:1"]
    assert (disk.mode, disk.written) == ("new chain", 4096)
    assert site.check_points() == 3
    site.check_nothing_leaked()


def test_a_disk_left_out_is_gone_on_with_after_a_cut(site):
    site.run()
    excluding(site, True)
    site.run()
    excluding(site, False)
    site.change()
    with at_kill_point("verified", failing, 0):
        assert site.run().outcome == "failed"
    disk = disks_of(site.run())["scsi:0:1"]
    assert (disk.mode, disk.written) == ("resume", 0)
    assert site.check_points() == 3
    site.check_nothing_leaked()


def test_a_disk_left_out_until_its_last_point_went_is_full_again(tmp_path):
    site = Site(tmp_path / "site", restore_points=2)
    site.add_machine()
    site.fill()
    site.run()
    excluding(site, True)
    site.run()
    site.run()
    assert list((site.replica().path / "disk1").glob("*.vhdx")) == []
    excluding(site, False)
    report = site.run()
    assert disks_of(report)["scsi:0:1"].mode == "full"
    assert site.check_points() == 2


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
    from standby.disk import open_disk

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


# --- plans -----------------------------------------------------------------------------------


def planned(plan, machine=0):
    return {disk.place: disk for disk in plan.machines[machine].disks}


def check_as_planned(plan, report):
    for place, disk in disks_of(report).items():
        expected = planned(plan)[place]
        assert (disk.mode, disk.reason) == (expected.mode.value, expected.reason)
        assert disk.disk_id == expected.disk_id
        assert disk.read == expected.read.value


def tree(site):
    """Every file of source, target and repository: bytes and times. A checkpoint makes and
    removes a folder, so the times of the source's folders are left out."""
    found = {}
    for name in ("source", "target", "repository"):
        for path in sorted((site.folder / name).rglob("*")):
            status = path.stat()
            is_folder = path.is_dir()
            changed = 0 if is_folder and name == "source" else status.st_mtime_ns
            found[path] = (changed, status.st_ino, b"" if is_folder else path.read_bytes())
    return found


def prepared(site, how):
    """Bring the site to a state in which the next session goes another way."""
    site.run()
    site.change()
    if how == "first":
        shutil.rmtree(site.folder / "target")
        shutil.rmtree(site.folder / "repository")
        for path in site.folder.glob("standby-state.sqlite*"):
            path.unlink()
        (site.folder / "target").mkdir()
    elif how == "repository lost":
        shutil.rmtree(site.folder / "repository")
    elif how == "grown":
        disk = vhdx.open_vhdx(site.disk(), writable=True)
        disk.grow(40 * MiB)
        disk.close()


@pytest.mark.parametrize("how", ["first", "incremental", "repository lost", "grown"])
def test_the_plan_is_what_the_session_then_does(site, how):
    prepared(site, how)
    plan = site.plan()
    report = site.run()
    check_as_planned(plan, report)


@pytest.mark.parametrize("how", ["first", "incremental", "repository lost", "grown"])
def test_a_scanned_plan_is_exact_and_changes_nothing(site, how):
    prepared(site, how)
    site.plan()  # makes the lock files that a first look makes
    before = tree(site)
    plan = site.plan(scan=True)
    assert tree(site) == before
    assert plan.is_exact
    report = site.run()
    check_as_planned(plan, report)
    for place, disk in disks_of(report).items():
        expected = planned(plan)[place]
        assert expected.send.value == disk.changed - disk.zeroed == disk.written, place
        assert expected.send.basis == "exact"


def test_a_plan_says_when_the_target_has_too_little_space(site, monkeypatch):
    plan = site.plan()
    # Whole blocks of 1 MiB: 0 to 4, 9 to 12 and 23; 0 to 2.
    assert planned(plan)["scsi:0:0"].space.value == 10 * MiB
    assert planned(plan)["scsi:0:1"].space.value == 3 * MiB
    assert (plan.warnings, plan.machines[0].warnings) == ((), ())
    with monkeypatch.context() as patched:
        patched.setattr(target_host, "free_bytes", lambda path: 12 * MiB)
        plan = site.plan()
        assert plan.free_bytes == 12 * MiB
        (warning,) = plan.warnings
        assert warning.startswith("up to 13.0 MiB are needed at the target, 12.0 MiB are free")
        assert "the session would refuse" in plan.machines[0].warnings[0]
        assert "no space left" in site.run().machines[0].error
    site.run()
    for _ in range(3):
        site.write(0, 8192)
        site.run()
    monkeypatch.setattr(target_host, "free_bytes", lambda path: MiB // 2)
    (warning,) = site.plan().warnings
    assert warning.startswith("about 1.0 MiB are needed at the target, 512.0 KiB are free")
    assert site.plan().machines[0].warnings == ()


def test_a_plan_says_why_a_vm_is_left_alone(site):
    site.run()
    with site.server() as server:
        server.replicas.failover("vm1_replica")
    plan = site.plan()
    assert plan.machines[0].action == "skip"
    assert "failover" in plan.machines[0].reason


def test_a_plan_estimates_from_the_last_sessions(site):
    site.run()
    for _ in range(3):
        site.write(0, 8192)
        site.run()
    send = planned(site.plan())["scsi:0:0"].send
    assert (send.value, send.basis) == (8192, "estimated")


def test_a_plan_names_an_unreadable_vm_as_a_conflict(site):
    from standby.disk import open_disk

    held = open_disk(site.disk(), writable=True)
    try:
        plan = site.plan()
    finally:
        held.close()
    assert plan.machines[0].action == "conflict"
    assert "running" in plan.machines[0].reason


# --- seed and map ----------------------------------------------------------------------------


def with_seed(tmp_path, more):
    site = Site(tmp_path / "site")
    site.config.write_text(site.config.read_text() + f"[jobs.job.{more}]\n")
    site.add_machine()
    site.fill()
    return site


@pytest.mark.parametrize("name", ["disk0.vhdx", "disk0/seed.vhdx"])
def test_a_seed_is_updated_in_place_and_only_differences_travel(tmp_path, name):
    site = with_seed(tmp_path, "seed]\nvm1 = true\n#")
    replica = site.folder / "target" / "vm1_replica"
    for number in (0, 1):
        file = replica / name.replace("disk0", f"disk{number}")
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(site.disk(number), file)
    site.change()
    plan = site.plan(scan=True)
    report = site.run()
    assert report.outcome == "done"
    check_as_planned(plan, report)
    disk = disks_of(report)["scsi:0:0"]
    assert disk.mode == Mode.SEED
    assert disk.written == 5 * 4096 + 300 * 1024
    assert planned(plan)["scsi:0:0"].send.value == disk.written
    assert site.check_points() == 1
    site.check_nothing_leaked()
    site.change()
    report = site.run()
    assert disks_of(report)["scsi:0:0"].mode == "incremental"
    assert site.check_points() == 2


def grown(site, size, number=0):
    disk = vhdx.open_vhdx(site.disk(number), writable=True)
    disk.grow(size)
    disk.close()


def failing():
    raise DiskIO("somewhere", "write", 0, 0, "as asked for")


@pytest.mark.parametrize(
    ("cut", "is_still_asked_for"),
    [
        ("child created", True),
        ("child created", False),
        ("seed kept", True),
        ("seed kept aside", False),
    ],
)
def test_a_seed_is_used_although_the_source_is_resized_before_the_first_point(
    tmp_path, cut, is_still_asked_for
):
    site = with_seed(tmp_path, "seed]\nvm1 = true\n#")
    replica = site.folder / "target" / "vm1_replica"
    replica.mkdir()
    for number in (0, 1):
        shutil.copy(site.disk(number), replica / f"disk{number}.vhdx")
    with at_kill_point("child created", failing, 0):
        assert site.run().outcome == "failed"
    assert not (replica / "disk0.vhdx").exists()  # adopted
    grown(site, 40 * MiB)
    site.change()
    if not is_still_asked_for:
        edit(site.config, ("vm1 = true", "vm1 = false"))
    if cut != "child created":
        with at_kill_point(cut, failing):
            assert site.run().outcome == "failed"
    disk = disks_of(site.run())["scsi:0:0"]
    assert (disk.mode, disk.written) == ("resume", 5 * 4096 + 300 * 1024)
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_a_first_transfer_that_was_cut_off_is_used_although_the_source_is_resized(site):
    with at_kill_point("verified", failing, 0):
        assert site.run().outcome == "failed"
    grown(site, 40 * MiB)
    site.change()
    disk = disks_of(site.run())["scsi:0:0"]
    assert (disk.mode, disk.written) == ("resume", 5 * 4096 + 300 * 1024)
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_a_raw_seed_is_copied_from(tmp_path):
    from standby.disk.convert import convert

    site = with_seed(tmp_path, "seed]\nvm1 = true\n#")
    for number in (0, 1):
        folder = site.folder / "target" / "vm1_replica" / f"disk{number}"
        folder.mkdir(parents=True)
        convert(site.disk(number), folder / "seed.raw", "raw")
    site.change()
    report = site.run()
    assert report.machines[0].outcome == "done", report.machines[0].error
    assert disks_of(report)["scsi:0:0"].written == 5 * 4096 + 300 * 1024
    assert site.check_points() == 1


def test_a_seed_that_is_not_there_is_named(tmp_path):
    site = with_seed(tmp_path, "seed]\nvm1 = true\n#")
    report = site.run()
    assert report.outcome == "failed"
    assert "disk0.vhdx nor disk0/seed.vhdx is here" in report.machines[0].error


def test_a_disk_added_later_needs_no_seed(tmp_path):
    site = with_seed(tmp_path, "seed]\nvm1 = true\n#")
    replica = site.folder / "target" / "vm1_replica"
    replica.mkdir()
    for number in (0, 1):
        shutil.copy(site.disk(number), replica / f"disk{number}.vhdx")
    assert site.run().outcome == "done"
    add_disk(site, 4 * MiB, "scsi:0:5")
    report = site.run()
    assert disks_of(report)["scsi:0:5"].mode == "full"
    assert site.check_points() == 2


def test_a_mapped_vm_is_the_first_point_and_the_synced_one_the_second(tmp_path):
    site = with_seed(tmp_path, 'map]\nvm1 = "old"\n#')
    shutil.copytree(site.folder / "source" / "vm1", site.folder / "target" / "old")
    found = site.content("vm1")
    site.change()
    plan = site.plan(scan=True)
    assert planned(plan)["scsi:0:0"].mode is Mode.INCREMENTAL
    report = site.run()
    assert report.machines[0].outcome == "done", report.machines[0].error
    disk = disks_of(report)["scsi:0:0"]
    assert disk.mode == "incremental"
    assert disk.written == 5 * 4096 + 300 * 1024 == planned(plan)["scsi:0:0"].send.value
    first = site.replica().points()[0]
    site.points[f"vm1_replica/{first.id}"] = found
    assert site.check_points() == 2
    site.check_nothing_leaked()
    site.change()
    assert site.run().outcome == "done"
    assert site.check_points() == 3
