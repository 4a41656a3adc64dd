"""The whole job over service movers: right, through any proxy, through losses of all kinds."""

from __future__ import annotations

import contextlib
import threading

import pytest

from cli.processes import wait_until
from simulation.several import SeveralSite
from simulation.site import at_kill_point
from standby.errors import DiskFull, LinkError
from standby.road.lease import WriterLease
from standby.road.owners import Owner, working_for
from standby.road.target_host import TargetVerbs
from standby.server.fleet import Fleet
from standby.server.remote_host import RemoteHost
from standby.server.service_crew import ServiceCrew
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


def test_proxies_that_see_a_part_of_the_host_each_take_the_disks_there(tmp_path):
    made = SeveralSite(tmp_path / "site")
    whole = f'"{made.folder}/source" = "{made.folder}/source"'
    text = made.config.read_text()
    for machine in ("vm1", "vm2"):
        text = text.replace(whole, whole.replace('/source"', f'/source/{machine}"'), 1)
    made.config.write_text(text)
    for machine in ("vm1", "vm2", "vm3"):
        made.add_machine(machine)
    made.fill()
    try:
        planned = {item.machine: item for item in made.plan().machines}
        assert [item.action for item in planned.values()] == ["replicate", "replicate", "conflict"]
        assert "VM vm3: no source proxy can take" in planned["vm3"].reason
        report = made.run()
        seen = {
            machine.machine: {disk.proxy for disk in machine.disks if machine.outcome == "done"}
            for machine in report.machines
        }
        assert seen == {"vm1": {"px1"}, "vm2": {"px2"}, "vm3": set()}
        (failed,) = (machine for machine in report.machines if machine.machine == "vm3")
        for proxy in ("px1", "px2"):
            assert f"{proxy}: none of its paths for host source leads to" in failed.error
        assert f"{made.folder}/source/vm3/" in failed.error
        assert made.check_points("vm1_replica") == made.check_points("vm2_replica") == 1
        made.check_nothing_leaked()
    finally:
        made.close()


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


def check_figures(report):
    """They are those of all attempts at the disk, not of the last one."""
    (disk,) = report.machines[0].disks
    assert disk.changed == 96 * MiB
    assert 96 * MiB <= disk.written < 1.05 * 96 * MiB + MiB
    assert disk.skipped == max(0, 96 * MiB - disk.read)


def test_a_dropped_data_link_costs_at_most_a_few_batches(big):
    for name in ("px1", "px2"):
        big.machines[name].cut_after = 48 * MiB
    report = big.run()
    assert report.machines[0].outcome == "done", report.machines[0].error
    assert retries(report) == 2
    check_figures(report)
    assert data_bytes(big) < 1.05 * 96 * MiB + MiB
    assert big.check_points() == 1
    big.check_nothing_leaked()


def test_a_plan_names_the_vm_that_no_proxy_of_the_target_can_take(site):
    text = site.config.read_text() + 'target_proxies = ["dr2"]\n'
    there = f'"{site.folder}/target" = '
    site.config.write_text(text.replace(there, there.replace("/target", "/elsewhere")))
    (planned,) = site.plan().machines
    assert planned.action == "conflict"
    assert planned.reason.startswith("VM vm1: no target proxy can take its disks (dr1: not am"), (
        planned.reason
    )


def test_a_proxy_that_vanishes_gives_its_disk_to_the_other(big):
    machine = big.machines["px1"]
    machine.cut_after = 48 * MiB
    machine.on_cut = machine.vanish
    report = big.run()
    assert report.machines[0].outcome == "done", report.machines[0].error
    (disk,) = report.machines[0].disks
    assert (disk.retries, disk.proxy) == (1, "px2")
    check_figures(report)
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
    check_figures(report)
    assert big.replica().record().generation == 2
    assert big.check_points() == 1
    big.check_nothing_leaked()


def test_what_a_killed_session_opened_at_one_target_is_closed_for_another(site, monkeypatch):
    """Killed before anything was recorded of its movers; the next one chooses another."""
    killed = site.run()
    folder = site.replica()
    (verbs,) = (role for role in site.machines["dr1"].mover._roles if isinstance(role, TargetVerbs))
    lost = Owner("server")
    lost.gone_at = 0.0
    left = f"{killed.id}/vm1/0badcafe"
    with working_for(lost), verbs.replicas.opening("vm1", folder, left, False) as lease:
        verbs.replicas.add("vm1", folder, lease)
    least_busy = Fleet.least_busy
    monkeypatch.setattr(
        Fleet,
        "least_busy",
        lambda fleet, stations, avoid=(): least_busy(fleet, stations, {*avoid, "dr1"}),
    )
    (machine,) = site.run().machines
    assert machine.outcome == "done", machine.error
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_a_writer_of_which_nothing_is_known_keeps_its_replica(site):
    site.run()
    lease = WriterLease.acquire(site.replica(), "verify/vm1/1")
    (machine,) = site.run().machines
    lease.release()
    assert "another writer holds it (session verify/vm1/1" in machine.error


def test_a_targets_trouble_is_no_source_proxys(site):
    """One whose file system is full is asked once, and nobody else is blamed for it."""
    room = []

    def fill():
        room.append("asked")
        raise DiskFull("/srv/replicas", MiB, 0)

    with at_kill_point("extent log commit", fill, count=0):
        report = site.run()
    (machine,) = report.machines
    assert machine.outcome == "failed"
    assert machine.error.startswith("/srv/replicas: no space left: at least 1.0 MiB needed"), (
        machine
    )
    assert not any("was lost" in text for text in machine.warnings), machine.warnings
    assert {disk.retries for disk in machine.disks} == {0}
    assert 1 <= len(room) <= len(machine.disks)
    report = site.run()
    assert report.outcome == "done", report.machines[0].error
    assert site.check_points() == 1


# --- the server and its links ----------------------------------------------------------------


def check_nothing_is_held(site, server):
    """No replica is open, no task runs, no slot is taken."""
    wait_until(lambda: not site.running_tasks(), "tasks ended")
    wait_until(lambda: not site.open_replicas(), "replicas were closed")
    used = server.crews.resources.usage()
    assert (used.running, used.waiting) == (0, 0)


@pytest.mark.parametrize("verb", ["take_checkpoint", "release_checkpoint"])
def test_a_checkpoint_whose_host_was_away_just_then_is_released_all_the_same(
    site, monkeypatch, verb
):
    original, lost = getattr(RemoteHost, verb), []

    def drops(host, *arguments):
        """A checkpoint is taken and never told of; its release is tried twice by an attempt."""
        is_taking = verb == "take_checkpoint"
        if len(lost) < (1 if is_taking else 2):
            lost.append(verb)
            if is_taking:
                original(host, *arguments)
            raise LinkError("hv1", "the other side closed the connection")
        return original(host, *arguments)

    monkeypatch.setattr(RemoteHost, verb, drops)
    report = site.run()
    (machine,) = report.machines
    assert machine.outcome == "done", machine.error
    assert (machine.alarms, len(lost) > 0) == ([], True)
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_a_vm_that_waits_for_its_turn_does_not_care_who_else_is_cut_off(tmp_path, monkeypatch):
    site = SeveralSite(tmp_path / "site", more="max_tasks = 1")
    for name in ("vm1", "vm2"):
        site.add_machine(name, sizes=(64 * MiB,))
        site.write(0, 48 * MiB, machine=name)
    at_work = []
    original = ServiceCrew.disk_link

    @contextlib.contextmanager
    def told(crew, task):
        with original(crew, task) as link:
            at_work.append(crew)
            yield link

    def cut_off():
        wait_until(lambda: server.crews.resources.waiting == 1, "the other VM waits")
        threading.Thread(target=at_work[0].cut).start()

    monkeypatch.setattr(ServiceCrew, "disk_link", told)
    for name in ("px1", "px2"):
        proxy = site.machines[name]
        proxy.cut_after, proxy.cuts, proxy.on_cut = 24 * MiB, False, cut_off
    with site.server() as server:
        report = server.start("job")
    site.remember(report)
    assert len(at_work) == 3
    assert [(made.outcome, made.error) for made in report.machines] == [("done", "")] * 2
    for name in ("vm1", "vm2"):
        assert site.check_points(f"{name}_replica") == 1
        site.check_nothing_leaked(f"{name}_replica")
    site.close()


def test_a_stopped_session_leaves_nothing_and_the_same_server_goes_on(big, monkeypatch):
    noticed = threading.Event()
    cut = ServiceCrew.cut

    def cut_and_say(crew):
        cut(crew)
        noticed.set()

    monkeypatch.setattr(ServiceCrew, "cut", cut_and_say)
    with big.server() as server:

        def stop():
            """In the thread that sends, so that the transfer is not over before."""
            (report,) = server.store.unfinished_sessions()
            server.store.ask_to_stop(report.id)
            assert noticed.wait(30)

        big.machines["px1"].cuts = big.machines["px2"].cuts = False
        for name in ("px1", "px2"):
            big.machines[name].cut_after = 48 * MiB
            big.machines[name].on_cut = stop
        stopped = server.start("job")
        assert stopped.outcome == "interrupted", stopped.machines[0]
        assert server.store.open_intents() == []
        check_nothing_is_held(big, server)
        for name in ("px1", "px2"):
            big.machines[name].cut_after = 0
        again = server.start("job")
        check_nothing_is_held(big, server)
    big.remember(again)
    assert again.outcome == "done", again.machines[0].error
    assert again.machines[0].disks[0].mode == "resume"
    assert big.check_points() == 1
    big.check_nothing_leaked()


def test_a_transfer_goes_on_while_the_server_is_cut_off_and_is_joined(big):
    for name in ("px1", "px2"):
        big.machines[name].cuts = False
        big.machines[name].cut_after = 24 * MiB
        big.machines[name].on_cut = big.cut_off_server
    with big.server() as server:
        report = {}
        session = threading.Thread(target=lambda: report.update(it=server.start("job")))
        session.start()
        wait_until(lambda: big.is_cut_off, "the server was cut off")
        wait_until(lambda: not big.running_tasks(), "the transfer ended without the server")
        assert session.is_alive()
        big.is_cut_off = False
        session.join(60)
        check_nothing_is_held(big, server)
    done = report["it"]
    big.remember(done)
    assert done.machines[0].outcome == "done", done.machines[0]
    assert retries(done) == 0
    assert data_bytes(big) < 1.05 * 96 * MiB + MiB
    assert big.check_points() == 1
    big.check_nothing_leaked()


def test_a_mover_that_was_restarted_begins_its_disk_anew(tmp_path):
    site = SeveralSite(tmp_path / "site", more='proxies = ["px1"]')
    site.add_machine(sizes=(128 * MiB,))
    site.write(0, 96 * MiB)
    old = site.machines["px1"]

    def restart():
        old.vanish()
        site.machines["px1"] = site.make_mover("px1")

    old.cut_after, old.on_cut = 48 * MiB, restart
    report = site.run()
    assert report.machines[0].outcome == "done", report.machines[0].error
    (disk,) = report.machines[0].disks
    assert (disk.retries, disk.proxy) == (1, "px1")
    (warning,) = report.machines[0].warnings
    assert warning.startswith("disk scsi:0:0: px1 was lost (")
    assert warning.endswith("; it went on through px1")
    assert site.check_points() == 1
    site.check_nothing_leaked()
    old.mover.close()
    site.close()
