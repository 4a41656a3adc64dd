"""`standby job …` in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulation.site import Site
from standby.disk import open_disk
from standby.host.folder import new_machine
from standby.model.report import SessionReport
from standby.server.store import Store
from standby.units import MiB


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture
def job(run, site: Site):
    """`standby job …` on the site."""
    return lambda *arguments, **more: run("job", *arguments, "--config", site.config, **more)


def test_list(job) -> None:
    assert job("list").out == (
        "job  source  machines  target  restore points  schedule  next run\n"
        "job  source  *         target               7  by hand   -\n"
    )


def test_plan_says_why_and_how_sure_it_is(job) -> None:
    text = job("plan", "job").out
    assert "vm1: replicate to vm1_replica" in text
    assert "scsi:0:0  full" in text
    assert "first restore point" in text
    assert "<= is an upper bound" in text
    scanned = job("plan", "job", "--scan").out
    assert "2.0 MiB  2.0 MiB  2.0 MiB" in scanned
    assert "<=" not in scanned


def test_a_scan_knows_the_blocks_that_changes_take(job, site: Site) -> None:
    def spaces() -> list[tuple[int, str]]:
        (machine,) = job("plan", "job", "--scan", "--json").json["machines"]
        return [(disk["space"]["value"], disk["space"]["basis"]) for disk in machine["disks"]]

    assert spaces() == [(2 * MiB, "exact"), (2 * MiB, "exact")]  # the second: from 4 KiB on
    job("start", "job")
    assert spaces() == [(0, "exact"), (0, "exact")]
    site.write(MiB - 4096, 8192)
    site.write(5 * MiB, 4096)
    site.write(5 * MiB + 65536, 4096)
    assert spaces() == [(3 * MiB, "exact"), (0, "exact")]
    site.zero(0, MiB, 1)  # a whole block takes no room, parts of blocks do
    assert spaces() == [(3 * MiB, "exact"), (MiB, "upper bound")]


def test_plans_and_looks_leave_nothing_behind(run, job, site: Site) -> None:
    def files() -> set[str]:
        return {item.relative_to(site.folder).as_posix() for item in site.folder.rglob("*")}

    before = files()
    for arguments in (
        ("plan", "job"),
        ("plan", "job", "--scan"),
        ("start", "job", "--dry-run"),
        ("list",),
        ("sessions",),
    ):
        job(*arguments)
    run("replica", "list", "--config", site.config)
    assert files() - before == {"source/vm1/.standby.lock"}
    job("start", "job")
    before = files()
    job("plan", "job", "--scan")
    assert files() == before


def test_a_source_that_is_not_there_ends_plan_and_start_alike(job, site: Site) -> None:
    (site.folder / "source").rename(site.folder / "elsewhere")
    for verb in (("plan", "job"), ("plan", "job", "--scan"), ("start", "job")):
        ended = job(*verb, expect=12)
        assert f"host source: {site.folder}/source cannot be listed: No such file" in ended.err
        assert "Is it mounted" in ended.err
    (session,) = job("sessions", "--json").json["sessions"]
    assert session["outcome"] == "failed"
    told = job("report")
    assert told.out == f"Session {session['id']} of job job: failed\n"
    assert told.err == f"error: {ended.err.removeprefix('error: ')}"
    assert job("sessions").out.splitlines()[1].split()[2:4] == ["failed", "0"]


def test_dry_run_of_start_is_the_plan_and_changes_nothing(job, site: Site) -> None:
    before = files_of(site.folder / "source")
    planned = job("start", "job", "--dry-run", "--json").json
    assert planned["machines"][0]["action"] == "replicate"
    assert files_of(site.folder / "source") == before
    assert files_of(site.folder / "target") == {}
    assert job("sessions", "--json").json == {"sessions": []}


def test_start_then_report(job) -> None:
    started = job("start", "job")
    assert "vm1: done, restore point " in started.out
    assert started.err == ""
    sessions = job("sessions").out.splitlines()
    session = sessions[1].split()[0]
    assert f"Session {session} of job job: done" in started.out
    assert job("report", session).out == started.out
    assert job("report").out == started.out
    for line in started.out.splitlines():
        assert len(line) <= 80 or line.startswith("steps:"), line


def test_start_of_one_machine_only(job, site: Site) -> None:
    new_machine(site.folder / "source", "vm2", disks={"scsi:0:0": 4 * MiB})
    dry = job("start", "job", "--machine", "vm2", "--dry-run", "--json").json
    assert [item["machine"] for item in dry["machines"]] == ["vm2"]
    done = job("start", "job", "--machine", "vm2", "--json").json
    assert [item["machine"] for item in done["machines"]] == ["vm2"]
    assert "known: vm1, vm2" in job("start", "job", "--machine", "vm3", expect=10).err
    assert "known: vm1, vm2" in job("start", "job", "--machine", "x", "--dry-run", expect=10).err


def test_a_machine_that_fails_makes_the_session_fail(job, site: Site) -> None:
    disk = site.disk()
    disk.write_bytes(b"\0" * MiB)
    ended = job("start", "job", expect=16)
    assert "vm1" in ended.err
    assert job("sessions", "--json").json["sessions"][0]["outcome"] == "failed"


def test_a_replica_that_is_failed_over_is_skipped_with_a_warning(run, job, site: Site) -> None:
    job("start", "job")
    run("replica", "failover", "vm1", "--yes", "--config", site.config)
    ended = job("start", "job", expect=3)
    assert "vm1: skipped" in ended.out
    assert "warning: vm1: " in ended.err
    assert job("plan", "job", "--json", expect=3).json["machines"][0]["action"] == "skip"


def test_sessions_before_the_first(job) -> None:
    assert job("sessions").out == "no sessions yet\n"


def test_sessions_of_a_job_that_never_was_are_refused(job) -> None:
    assert "known: job" in job("sessions", "nope", expect=10).err


def test_a_report_before_any_session_is_refused(job) -> None:
    assert "no session" in job("report", expect=10).err


def test_acknowledge(job, site: Site) -> None:
    with Store(site.folder / "standby-state.sqlite") as store:
        store.raise_alarm("changed share", "job", "vm1", "much changed")
    assert job("acknowledge", "job").out == "acknowledged 1 alarms of job job\n"
    assert job("acknowledge", "job", "--json").json == {"job": "job", "acknowledged": 0}


def test_stop_without_a_session_is_no_error(job) -> None:
    assert job("stop", "job").out == "no session of job job runs\n"
    assert job("stop", "job", "--json").json == {"job": "job", "stopped": []}
    assert "known: job" in job("stop", "nope", expect=10).err


def test_a_session_that_another_process_is_at_runs(run, site) -> None:
    given = ("--config", site.config)
    with site.server() as server:
        store = server.store
        store.begin_session(SessionReport("20261123T220000Z-1f2e", "job", "2026-11-23T22:00:00"))
        assert " unfinished " in run("job", "sessions", *given).out
        lock = store.job_lock("job")
        assert lock.acquire()
        try:
            assert " running " in run("job", "sessions", *given).out
            assert run("job", "report", *given).out.splitlines()[0].endswith(": running")
        finally:
            lock.release()


def test_a_vm_that_the_job_does_not_take_is_refused_before_there_is_a_session(job, site) -> None:
    site.add_machine("web01", (MiB,))
    for more in ((), ("--queue",)):
        refused = job("start", "job", "--machine", "wbe01", *more, expect=10)
        assert "no VM in job job named 'wbe01'; known: vm1, web01" in refused.err
        assert "Did you mean web01?" in refused.err
    assert job("sessions", "--json").json == {"sessions": []}


def test_a_report_before_the_first_session_says_how_to_have_one(job) -> None:
    for arguments in ((), ("job",)):
        told = job("report", *arguments, expect=10)
        assert "no session of" in told.err
        assert "`standby job start job" in told.err
    assert "no session or job named 'nope'; known: job" in job("report", "nope", expect=10).err


@pytest.mark.parametrize("what", ["ready layer", "point"])
def test_plan_and_check_say_what_a_session_is_refused_for(run, job, site, what: str) -> None:
    site.run()
    home = site.folder / "target" / "vm1_replica" / "disk0"
    if what == "point":
        with (home / "base.vhdx").open("ab") as file:
            file.write(bytes(MiB))
    else:
        with open_disk(home / "ready.vhdx", writable=True) as disk:
            disk.write(0, bytes(4096))
    (refused,) = job("start", "job", "--json", expect=16).json["machines"]
    (machine,) = job("plan", "job", "--json", expect=3).json["machines"]
    (finding,) = run("check", "--config", site.config, "--json", expect=10).json["findings"]
    assert machine["action"] == "skip"
    assert finding["where"] == "[jobs.job] VM vm1"
    assert machine["reason"] == finding["problem"] == refused["error"]
    assert ("base.vhdx" if what == "point" else "--adopt") in refused["error"]


def test_a_jobs_name_means_its_newest_session(job, site) -> None:
    site.run()
    newest = site.run().id
    assert job("report", "job").out.startswith(f"Session {newest} of job job: done\n")
