"""A plan says what the session then does."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from concurrent.futures import wait
from types import SimpleNamespace

import pytest

from simulation.sessions import (
    check_as_planned,
    disks_of,
    made,
    planned,
)
from simulation.several import SeveralSite
from standby.disk import open_disk, vhdx
from standby.repository.database import FILE_NAME
from standby.road import target_host
from standby.server import preparing
from standby.units import MiB


@pytest.fixture
def site(tmp_path):
    return made(tmp_path)


# --- plans -----------------------------------------------------------------------------------


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
        assert "the session would read its disks first" in plan.machines[0].warnings[0]
        scanned = site.plan(scan=True).machines[0].warnings[0]
        assert scanned.endswith("takes 13.0 MiB and 12.0 MiB are free: the session would refuse it")
        machine = site.run().machines[0]
        assert "no space left: at least 13.0 MiB needed, 12.0 MiB free" in machine.error
        assert not list(site.replica().path.glob("*/*.vhdx"))
    site.run()
    for _ in range(3):
        site.write(0, 8192)
        site.run()
    monkeypatch.setattr(target_host, "free_bytes", lambda path: MiB // 2)
    (warning,) = site.plan().warnings
    assert warning.startswith("about 1.0 MiB are needed at the target, 512.0 KiB are free")
    assert site.plan().machines[0].warnings == ()


def test_a_first_full_that_fits_without_its_zeros_is_not_refused(site, monkeypatch):
    """It was refused for what the source stores, zeros and all: a fixed disk, filled once with
    zeros, had to fit whole."""
    with open_disk(site.disk(), writable=True) as disk:
        disk.write(14 * MiB, bytes(4 * MiB))
    monkeypatch.setattr(target_host, "free_bytes", lambda path: 14 * MiB)
    (warning,) = site.plan().machines[0].warnings
    assert "up to 17.0 MiB and 14.0 MiB are free" in warning
    assert site.plan(scan=True).machines[0].warnings == ()
    report = site.run()
    machine = report.machines[0]
    assert machine.outcome == "done", machine.error
    (warning,) = machine.warnings
    assert warning.endswith("so its disks were read before: it takes 13.0 MiB")
    assert machine.steps_s["count"] > 0
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_a_first_full_is_counted_by_the_proxy_of_another_machine(tmp_path, monkeypatch):
    site = SeveralSite(tmp_path / "site")
    try:
        site.add_machine()
        site.fill()
        with open_disk(site.disk(), writable=True) as disk:
            disk.write(14 * MiB, bytes(4 * MiB))
        with monkeypatch.context() as patched:
            patched.setattr(target_host, "free_bytes", lambda path: 12 * MiB)
            machine = site.run().machines[0]
            assert "at least 13.0 MiB needed, 12.0 MiB free" in machine.error
            patched.setattr(target_host, "free_bytes", lambda path: 14 * MiB)
            machine = site.run().machines[0]
        assert machine.outcome == "done", machine.error
        assert any("it takes 13.0 MiB" in text for text in machine.warnings)
        assert site.check_points() == 1
    finally:
        site.close()


def test_a_count_past_the_checkpoints_limit_ends_the_session(site, monkeypatch):
    monkeypatch.setattr(target_host, "free_bytes", lambda path: 12 * MiB)
    monkeypatch.setattr(preparing, "wait", waited_for_days(site))
    machine = site.run().machines[0]
    assert machine.outcome == "interrupted"
    assert "the checkpoint reached its limit" in machine.error
    monkeypatch.undo()
    assert site.run().outcome == "done"
    site.check_nothing_leaked()


def waited_for_days(site):
    """A wait in which days go by, and nothing ends the first time."""
    calls = []

    def waited(pending, timeout=None):
        calls.append(timeout)
        site.clock.wait(hours=7 * 24)
        if len(calls) == 1:
            return SimpleNamespace(done=set(), not_done=set(pending))
        return wait(pending)

    return waited


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

    held = open_disk(site.disk(), writable=True)
    try:
        plan = site.plan()
    finally:
        held.close()
    assert plan.machines[0].action == "conflict"
    assert "running" in plan.machines[0].reason


def test_a_vm_in_two_jobs_to_one_target_gets_no_second_replica(site):
    site.run()
    with site.config.open("a") as file:
        file.write('[jobs.other]\nsource = "source"\ntarget = "target"\nmachines = ["vm1"]\n')
        file.write('suffix = "_other"\n')
    before = sorted((site.folder / "target").iterdir())
    with site.server() as server:
        for name in ("job", "other"):
            (planned,) = server.plan(name).machines
            assert planned.action == "conflict"
            assert "is in jobs job and other" in planned.reason
            report = server.start(name)
            assert (report.outcome, report.machines[0].outcome) == ("failed", "failed")
            assert "is in jobs job and other" in report.machines[0].error
    assert sorted((site.folder / "target").iterdir()) == before


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("what", ["pages", "all of it"])
def test_a_damaged_repository_is_told_and_the_plan_is_what_the_session_does(site, what, scan):
    site.run()
    site.change()
    file = site.folder / "repository" / FILE_NAME
    if what == "pages":
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute("UPDATE leaves SET data = zeroblob(length(data))")
            database.commit()
    else:
        file.write_bytes(b"no database at all" * 1000)
    site.plan()
    before = tree(site)
    plan = site.plan(scan=scan)
    assert tree(site) == before
    (machine,) = plan.machines
    assert machine.action == "replicate"
    if scan or what != "pages":  # who reads no page does not meet the damage
        (alarm,) = machine.alarms
        assert "damaged" in alarm
        assert "a session drops what is damaged there" in alarm
        assert "compared with the target's" in machine.disks[0].reason
    report = site.run()
    (text,) = report.machines[0].alarms
    assert "damaged" in text
    if scan:
        for place, disk in disks_of(report).items():
            assert planned(plan)[place].send.value == disk.changed - disk.zeroed
