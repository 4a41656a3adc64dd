"""Whole sessions in which something goes wrong: it is noticed, named, and the next one is right."""

from __future__ import annotations

import signal
import subprocess
import threading

import pytest

import judging
from simulation.faults import failing, only, open_alarms
from simulation.sessions import made
from simulation.site import Site, at_kill_point
from standby.disk import open_disk
from standby.errors import (
    DiskFull,
    HostError,
    JobBusy,
    ReplicaBusy,
    ReplicaConflict,
    TargetRefuses,
)
from standby.model.replica import ReplicaState
from standby.road import target_host
from standby.server.movers import MoverPair
from standby.server.replicas import Replicas
from standby.units import KiB, MiB


@pytest.fixture
def site(tmp_path):
    return made(tmp_path)


# --- the source ------------------------------------------------------------------------------


def test_a_disk_written_under_the_checkpoint_makes_no_point(site):
    site.run()
    site.change()
    with at_kill_point("last extent", lambda: site.write(0, 4096)):
        report = site.run()
    assert only(report).outcome == "failed"
    assert "changed under the checkpoint" in only(report).error
    assert site.check_points() == 1
    assert site.run().outcome == "done"
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_content_that_was_reverted_after_a_cut_is_reverted_in_the_point(site):
    """RULES 8 through whole sessions: what was sent and then taken back is candidate again."""
    site.run()
    with open_disk(site.disk()) as disk:
        before = bytearray(2 * MiB)
        disk.read_into(4 * MiB, before)
    site.write(4 * MiB, 2 * MiB)
    site.write(16 * MiB, MiB)
    with at_kill_point("verified", failing()):
        assert only(site.run()).outcome == "failed"
    with open_disk(site.disk(), writable=True) as disk:
        disk.write(4 * MiB, before)
        disk.zero(16 * MiB, MiB)
    report = site.run()
    assert only(report).disks[0].mode == "resume"
    assert report.outcome == "done"
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_what_was_acknowledged_is_not_sent_again(site):
    site.run()
    site.change()
    with at_kill_point("verified", failing(), count=2):
        first = only(site.run())
    assert first.outcome == "failed"
    again = only(site.run())
    assert again.outcome == "done"
    assert sum(disk.written for disk in again.disks) == 0
    assert site.check_points() == 2


@pytest.fixture
def cut(monkeypatch):
    """Set when the server cuts its movers off."""
    event = threading.Event()
    original = MoverPair.cut

    def noticed(pair):
        original(pair)
        event.set()

    monkeypatch.setattr(MoverPair, "cut", noticed)
    return event


def test_a_checkpoint_past_its_age_is_given_up_and_the_next_session_goes_on(tmp_path, cut):
    site = made(tmp_path, more='checkpoint_max_age = "12h"\n')
    site.run()
    site.change()

    def hang():
        site.clock.wait(hours=13)
        assert cut.wait(timeout=60)

    with at_kill_point("extent log commit", hang):
        report = site.run()
    assert only(report).outcome == "interrupted"
    assert "age 43200 s" in only(report).error
    with site.server() as server:
        assert server.store.open_intents() == []
    assert list(site.replica().path.glob("*/*.partial.vhdx"))
    report = site.run()
    assert only(report).outcome == "done"
    assert only(report).disks[0].mode == "resume"
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_a_checkpoint_of_a_dead_session_of_another_job_is_released(site):
    from standby.model.report import SessionReport

    with site.server() as server:
        host = server.host("source")
        machine = host.machines()[0]
        server.store.begin_session(SessionReport("s-of-another", "gone", "2026-01-01T00:00:00Z"))
        intent = server.store.record_intent(
            "source", machine.id, "s-of-another", "2026-01-01T00:00:00Z"
        )
        checkpoint = host.take_checkpoint(machine, intent)
        server.store.checkpoint_made(intent, checkpoint)
        host.release_checkpoint(checkpoint)
    report = site.run()
    assert "released what a killed session left" in only(report).warnings[0]
    with site.server() as server:
        assert server.store.open_intents() == []
        assert server.report("s-of-another").outcome == "interrupted"


def test_the_clock_may_jump_back_and_forth_between_sessions(site):
    site.run()
    site.clock.set_back(days=400)
    site.change()
    site.run()
    site.clock.wait(days=900)
    site.change()
    site.run()
    site.clock.set_back(days=500)
    site.change()
    assert site.run().outcome == "done"
    points = [point.id for point in site.replica().points()]
    assert len(points) == 4
    assert points == sorted(points)
    assert site.check_points() == 4
    with site.server() as server:
        assert len(server.sessions("job")) == 4


# --- alarms ----------------------------------------------------------------------------------


def test_a_replica_older_than_its_rpo_is_an_alarm_whatever_the_reason(tmp_path):
    site = made(tmp_path, more='rpo = "24h"\n')
    site.run()
    with site.server() as server:
        server.replicas.failover("vm1_replica")
    report = site.run()
    assert only(report).alarms == []
    site.clock.wait(hours=30)
    report = site.run()
    assert only(report).outcome == "skipped"
    assert "rpo is 86400 s" in only(report).alarms[0]
    assert report.outcome == "warnings"  # exit code 3
    assert open_alarms(site) == [("rpo", "vm1")]


def test_an_unreachable_source_is_an_rpo_alarm_too(tmp_path):
    site = made(tmp_path, more='rpo = "24h"\n')
    site.run()
    site.clock.wait(hours=30)
    (site.folder / "source").rename(site.folder / "elsewhere")
    with pytest.raises(HostError, match="cannot be listed"):
        site.run()
    (site.folder / "elsewhere").rename(site.folder / "source")
    assert [kind for kind, _ in open_alarms(site)] == ["rpo"]
    with site.server() as server:
        assert server.sessions("job")[0].outcome == "failed"


def test_an_unusual_share_of_changes_holds_retention_until_it_is_acknowledged(tmp_path):
    site = made(tmp_path, restore_points=2)
    site.run()
    for _ in range(3):
        site.write(0, 4096)
        site.run()
    assert site.check_points() == 2
    site.write(0, 12 * MiB)  # as if somebody encrypted everything
    report = site.run()
    assert "far more than usual" in only(report).alarms[0]
    assert report.outcome == "warnings"
    site.write(0, 4096)
    report = site.run()
    assert site.check_points() == 4  # nothing was merged away
    (warning,) = only(report).warnings  # said until somebody does something about it
    assert "`standby job acknowledge job`" in warning
    assert report.outcome == "warnings"
    with site.server() as server:
        assert warning in server.plan("job").machines[0].warnings
        assert server.acknowledge("job") == 1
        assert server.plan("job").machines[0].warnings == ()
    site.write(0, 4096)
    assert site.run().outcome == "done"
    assert site.check_points() == 2


def test_a_small_change_after_idle_sessions_is_no_alarm(tmp_path):
    site = made(tmp_path)
    site.run()
    for _ in range(3):
        site.run()
    site.write(0, 200 * KiB)
    assert site.run().outcome == "done"
    assert open_alarms(site) == []


@pytest.mark.parametrize(
    "trouble",
    [
        DiskFull("target", 4096, 0),
        ReplicaBusy("vm1_replica", "a fenced process that has not ended is merging"),
        ReplicaConflict("vm1_replica", "disk0/x.vhdx is another child of disk0/base.vhdx"),
    ],
)
def test_a_merge_that_cannot_be_done_now_is_a_warning_and_done_later(
    tmp_path, monkeypatch, trouble
):
    site = made(tmp_path, restore_points=1)
    site.run()
    site.change()
    with monkeypatch.context() as patched:

        def refused(*_arguments, **_more):
            raise trouble

        patched.setattr(target_host, "merge_oldest", refused)
        report = site.run()
    assert (report.outcome, only(report).outcome, only(report).error) == ("warnings", "done", "")
    (warning,) = only(report).warnings
    assert warning.startswith("2 points are kept where the job asks for 1 until a later session")
    assert str(trouble) in warning
    assert site.check_points() == 2
    with site.server() as server:
        (known,) = server.store.known_replicas("job")
        assert known.points == 2  # the rest of the session was done
    site.change()
    assert site.run().outcome == "done"
    assert site.check_points() == 1


def test_sessions_go_on_above_a_merge_that_no_space_is_left_to_end(tmp_path, monkeypatch):
    site = made(tmp_path, restore_points=1)
    site.run()
    site.change()
    with at_kill_point("merge: intent", failing()):
        site.run()
    site.change()
    with monkeypatch.context() as patched:

        def refused(*_arguments, **_more):
            raise DiskFull("target", 4096, 0)

        patched.setattr(target_host, "merge_oldest", refused)
        patched.setattr(target_host, "finish_merge", refused)
        report = site.run()
    assert only(report).outcome == "done", only(report).error
    assert "a merge that was cut off is not ended yet" in only(report).warnings[0]
    site.change()
    assert site.run().outcome == "done"
    assert site.check_points() == 1
    site.check_nothing_leaked()


@pytest.fixture
def read_only_target(tmp_path):
    """A site with two points whose target is mounted read-only; skipped where this user may not
    mount."""
    site = made(tmp_path)
    for _ in range(2):
        site.run()
        site.change()
    target = str(site.folder / "target")
    done = subprocess.run(
        ["mount", "--bind", target, target], capture_output=True, text=True, check=False
    )
    if done.returncode:
        judging.missing(f"the right to mount a file system ({done.stderr.strip()})")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", target], check=True)
        yield site
    finally:
        subprocess.run(["umount", "-l", target], check=True)


def test_verbs_on_a_read_only_target_say_so_and_looking_works(read_only_target):
    site = read_only_target
    with site.server() as server:
        shown = server.replicas.show("vm1_replica")
        assert (len(shown.points), shown.findings) == (2, ())
        for point in (None, shown.points[0].id):
            with pytest.raises(ReplicaConflict, match="mounted read-only"):
                server.replicas.failover("vm1_replica", point=point)
        assert all(item.is_ok for item in server.replicas.verify("vm1_replica"))
        assert "cannot be written" in server.check()[0].problem
    report = site.run()
    assert only(report).outcome == "failed"
    assert "Read-only file system" in only(report).error
    for verb in ("--dry-run", "--yes"):
        ended = site.command("replica", "failover", "vm1_replica", verb)
        assert ended.returncode == 13
        assert ended.stderr.startswith("error: replica vm1_replica: ")
        assert "mounted read-only" in ended.stderr


# --- the target's own say --------------------------------------------------------------------


def test_the_targets_own_rules_win_over_the_jobs(tmp_path):
    site = made(tmp_path, restore_points=2)
    (site.folder / "target" / "standby-target.toml").write_text("keep_points_min = 4\n")
    for _ in range(5):
        site.change()
        report = site.run()
    assert "the target's own rules keep them" in only(report).warnings[0]
    assert site.check_points() == 4
    with site.server() as server:
        server.replicas.failover("vm1_replica")
        with pytest.raises(TargetRefuses, match="keep_points_min = 4"):
            server.replicas.permanent_failover("vm1_replica")


# --- bugs, interrupts, busy ------------------------------------------------------------------


def test_a_bug_met_by_one_vm_is_reported_and_no_other_vm_suffers(site, monkeypatch, capsys):
    from standby.server.driver import MachineDriver

    site.add_machine("vm2", (4 * MiB,))
    original = MachineDriver._take_checkpoint

    def broken(driver):
        if driver.machine.name == "vm1":
            raise RuntimeError("a bug")
        return original(driver)

    monkeypatch.setattr(MachineDriver, "_take_checkpoint", broken)
    with site.server() as server:
        report = server.start("job")
    assert [machine.outcome for machine in report.machines] == ["failed", "done"]
    assert report.machines[0].error == "unexpected RuntimeError: a bug"
    assert "RuntimeError: a bug" in capsys.readouterr().err
    monkeypatch.undo()
    assert site.run().outcome == "done"


@pytest.mark.parametrize(
    "where", ["child created", "last extent", "file renamed", "merge: locator"]
)
def test_an_unexpected_error_anywhere_ends_the_session_and_the_next_is_right(
    tmp_path, where, capsys
):
    site = made(tmp_path, restore_points=2)
    site.run()
    site.change()
    site.run()
    site.change()

    def bug():
        raise RuntimeError("a bug")

    site.states.append(site.content("vm1"))
    with at_kill_point(where, bug) as reached:
        report = site.run()
    assert where in reached
    assert report.outcome in ("failed", "warnings")
    assert "a bug" in only(report).error + "".join(only(report).warnings)
    capsys.readouterr()
    site.change()
    assert only(site.run()).outcome == "done"
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_an_interrupt_ends_the_session_and_everything_it_started(site, cut):
    site.run()
    site.change()

    def interrupt():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        assert cut.wait(timeout=60)

    with site.server() as server:
        with pytest.raises(KeyboardInterrupt), at_kill_point("extent log commit", interrupt):
            server.start("job")
        assert server.sessions("job")[0].outcome == "interrupted"
    assert only(site.run()).outcome == "done"
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_a_killed_session_shows_the_vms_it_was_about_and_what_became_of_them(tmp_path):
    site = Site(tmp_path / "site", more="max_machines = 1\n")
    for name in ("vm1", "vm2"):
        site.add_machine(name, (4 * MiB,))
    killed = site.start(STANDBY_KILL_POINT="checkpoint made:2", STANDBY_KILL_PROCESS="server")
    assert killed.returncode == -signal.SIGKILL
    with site.server() as server:
        (session,) = server.sessions()
    assert (session.outcome, session.ended_at) == ("", "")
    assert [(item.machine, item.outcome) for item in session.machines] == [
        ("vm1", "done"),
        ("vm2", ""),
    ]
    assert site.run().outcome in ("done", "warnings")
    with site.server() as server:
        session = server.report(session.id)
    assert session.outcome == "interrupted"
    assert [item.outcome for item in session.machines] == ["done", "interrupted"]
    shown = site.command("job", "report", session.id).stdout
    assert "vm2: interrupted" in shown


def test_a_failover_ends_a_running_session_at_its_next_commit(site):
    site.run()
    site.change()

    def fail_over():
        Replicas.of_folder(site.folder / "target").failover("vm1_replica")

    with at_kill_point("child created", fail_over) as reached:
        report = site.run()
    assert only(report).outcome == "interrupted"
    assert "is fenced" in only(report).error
    assert reached.count("verified") <= 1  # the other disk may have been quicker
    folder = site.replica()
    assert folder.record().state is ReplicaState.FAILOVER
    assert list(folder.path.glob("*/*.partial.vhdx"))
    Replicas.of_folder(site.folder / "target").undo_failover("vm1_replica")
    assert only(site.run()).outcome == "done"
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_two_sessions_of_a_job_at_once_are_refused(site):
    refused = []

    def second():
        with pytest.raises(JobBusy) as caught:
            site.run()
        refused.append(caught.value)

    with at_kill_point("checkpoint made", second):
        assert only(site.run()).outcome == "done"
    assert "--take-over" in str(refused[0])
