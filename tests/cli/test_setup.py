"""From nothing to a configuration that is sound, each step saying the next."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simulation.several import SeveralSite
from standby.disk import open_disk
from standby.host.folder import new_machine
from standby.model.replica import ReplicaState
from standby.road.replica import ReplicaFolder, encode_replica
from standby.server.checking import check_configuration
from standby.server.config import load_config
from standby.server.fleet import Fleet, Station
from standby.server.remote_host import RemoteHost
from standby.server.service_mover import Reconnect
from standby.units import MiB


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_then_edit_then_check_then_plan(run, here: Path, with_thread_movers: None) -> None:
    assert run("init").out == (
        "wrote standby.toml\nnext: edit the paths in standby.toml, then run `standby check`\n"
    )
    first = run("check", expect=10)
    assert "vms does not exist" in first.out
    assert first.out.endswith("next: edit standby.toml, then run `standby check` again\n")

    text = Path("standby.toml").read_text()
    Path("standby.toml").write_text(re.sub(r'path = "vms"', 'path = "machines"', text))
    Path("machines").mkdir()
    second = run("check", expect=3)
    assert "matches none of the 0 VMs of host production" in second.out

    new_machine(here / "machines", "web01", disks={"scsi:0:0": 4 * MiB})
    third = run("check")
    assert third.out == (
        "standby.toml: everything is as it should be\n"
        "next: `standby job plan nightly` says what a session would do\n"
    )
    assert "web01: replicate" in run("job", "plan", "nightly").out


def test_init_takes_paths_and_names_the_file_in_the_next_step(run, tmp_path: Path) -> None:
    folder = tmp_path / "etc" / "standby"
    ended = run("init", folder, "--source", "/srv/vms", "--target", "/mnt/dr", "--json")
    path = folder / "standby.toml"
    assert ended.json["path"] == str(path)
    assert ended.json["next"] == [f"look through {path}", f"standby check --config {path}"]
    config = load_config(path)
    assert config.hosts["production"].path == Path("/srv/vms")
    assert config.hosts["recovery"].path == Path("/mnt/dr")
    assert config.installation == ended.json["installation"]


def test_init_never_overwrites_unasked(run, here: Path) -> None:
    Path("standby.toml").write_text("mine")
    assert "--force" in run("init", expect=10).err
    assert Path("standby.toml").read_text() == "mine"
    run("init", "--force", "--installation", "site-a")
    assert load_config(here / "standby.toml").installation == "site-a"


def test_init_refuses_a_name_that_the_file_would_refuse(run, here: Path) -> None:
    assert "--installation" in run("init", "--installation", "a b", expect=2).err
    assert not Path("standby.toml").exists()


def findings(run, site, expect: int) -> list[dict[str, str]]:
    return run("check", "--config", site.config, "--json", expect=expect).json["findings"]


def test_check_of_a_folder_names_the_file_in_it(run, site) -> None:
    file = site.folder / "standby.toml"
    assert f"{file}: everything is as" in run("check", "--config", site.folder).out
    (site.folder / "source").rename(site.folder / "gone")
    told = run("check", "--config", site.folder, expect=10).out
    assert f"next: edit {file}, then run `standby check --config {site.folder}` again" in told


def test_check_makes_no_state_database_and_looks_at_one_that_is_there(run, site) -> None:
    before = {path: path.stat().st_mtime_ns for path in site.folder.rglob("*")}
    run("check", "--config", site.config)
    assert {path: path.stat().st_mtime_ns for path in site.folder.rglob("*")} == before
    database = site.folder / "standby-state.sqlite"
    database.write_bytes(b"no database at all" * 100)
    (finding,) = findings(run, site, expect=10)
    assert finding["where"] == "[standby] state_database"
    assert "not a database" in finding["problem"]
    database.unlink()
    with sqlite3.connect(database) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    (finding,) = findings(run, site, expect=10)
    assert "is another program's database" in finding["problem"]
    database.unlink()
    site.run()
    assert findings(run, site, expect=0) == []


def test_check_opens_the_repository(run, site) -> None:
    site.run()
    file = site.folder / "repository" / "repository.sqlite"
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    content = file.read_bytes()
    for damage, words in (
        (content[:4096] + b"\xff" * (len(content) - 4096), "damaged"),
        (content[:68] + b"else" + content[72:], "another program's database"),
    ):
        file.write_bytes(damage)
        (finding,) = findings(run, site, expect=10)
        assert (finding["level"], finding["where"]) == ("error", "[repositories.main]")
        assert words in finding["problem"]
    file.write_bytes(content)
    assert findings(run, site, expect=0) == []


def test_check_looks_at_the_disks_of_the_vms_that_jobs_take(run, site) -> None:
    site.add_machine("vm2", (4 * MiB,))
    site.disk().write_bytes(b"vhdxfile" + bytes(2 * MiB))
    site.disk(1).unlink()
    site.disk(0, "vm2").write_bytes(b"")
    first, second, third = findings(run, site, expect=10)
    assert first["where"] == "VM vm1 of host source, scsi:0:0"
    assert "disk0.vhdx: " in first["problem"]
    for item, vm in ((first, "vm1"), (second, "vm1"), (third, "vm2")):
        folder = site.folder / "source" / vm
        assert str(folder / "vm.toml") in item["hint"]
        assert f'exclude_disks = ["{vm}:scsi:0:' in item["hint"]
        assert Path(item["mend"]).parent == folder
    ended = run("check", "--config", site.config, expect=10)
    footer = ended.out.splitlines()[-1]
    assert footer.startswith(f"next: mend {site.disk()}, {site.disk(1)}, {site.disk(0, 'vm2')} as")
    assert "edit" not in footer
    assert (second["where"], third["where"]) == (
        "VM vm1 of host source, scsi:0:1",
        "VM vm2 of host source, scsi:0:0",
    )
    site.config.write_text(
        site.config.read_text().replace(
            'machines = ["*"]', 'machines = ["vm1"]\nexclude_disks = ["vm1:scsi:0:0"]'
        )
    )
    (only,) = findings(run, site, expect=10)
    assert only == second


def test_check_of_a_vm_that_runs_says_so_as_the_plan_does_and_nothing_of_its_disks(
    run, site
) -> None:
    held = open_disk(site.disk(), writable=True)  # as QEMU would
    try:
        (finding,) = findings(run, site, expect=10)
        planned = run("job", "plan", "job", "--config", site.config, "--json", expect=None)
    finally:
        held.close()
    assert (finding["level"], finding["where"]) == ("error", "VM vm1 of host source")
    assert "VM vm1 on host source is running (" in finding["problem"]
    assert finding["problem"] == planned.json["machines"][0]["reason"]
    site.config.write_text(site.config.read_text().replace('["*"]', '["vm9"]'))
    assert "running" not in json.dumps(findings(run, site, expect=3))


# --- replicas --------------------------------------------------------------------------------


def test_check_names_the_state_of_a_replica_that_takes_no_session(run, replicated) -> None:
    site = ("--config", replicated.config)
    assert findings(run, replicated, expect=0) == []
    run("replica", "failover", "vm1", "--yes", *site)
    (finding,) = findings(run, replicated, expect=10)
    assert finding["where"] == "[jobs.job] VM vm1"
    assert "while it is failover" in finding["problem"]
    assert "standby replica undo-failover vm1_replica" in finding["problem"]
    assert finding["mend"] == str(replicated.folder / "target" / "vm1_replica")
    run("replica", "permanent-failover", "vm1", "--yes", *site)
    (finding,) = findings(run, replicated, expect=10)
    assert "while it is permanent" in finding["problem"]
    assert "exclude_machines" in finding["problem"]


def test_check_names_a_damaged_replica(run, replicated) -> None:
    record = replicated.folder / "target" / "vm1_replica" / "replica.json"
    damaged = replace(ReplicaFolder(record.parent).record(), state=ReplicaState.DAMAGED)
    record.write_bytes(encode_replica(damaged))
    (finding,) = findings(run, replicated, expect=10)
    assert "while it is damaged" in finding["problem"]
    assert "standby replica verify vm1_replica --repair" in finding["problem"]
    record.write_text("no record")
    (finding,) = findings(run, replicated, expect=10)
    assert "replica.json" in finding["problem"]


@pytest.mark.parametrize("which", [0, 1])
def test_check_and_plan_name_a_damaged_commit_record_as_the_session_does(
    run, replicated, which: int
) -> None:
    points = sorted((replicated.folder / "target" / "vm1_replica" / "points").glob("*.json"))
    points[which].write_text("{}")
    (finding,) = findings(run, replicated, expect=10)
    arguments = ("job", "job", "--config", replicated.config)
    planned = run(arguments[0], "plan", *arguments[1:], "--json", expect=None).json
    error = run("job", "start", *arguments[1:], "--json", expect=16).json["machines"][0]["error"]
    assert points[which].stem in error
    assert finding["problem"] == planned["machines"][0]["reason"] == error


def test_sessions_say_nothing_of_a_seed_that_was_copied_and_show_does(run, site) -> None:
    home = site.folder / "target" / "vm1_replica"
    site.config.write_text(site.config.read_text() + "[jobs.job.seed]\nvm1 = true\n")
    for number in (0, 1):
        (home / f"disk{number}").mkdir(parents=True)
        seed = home / f"disk{number}" / "seed.raw"
        run("disk", "convert", "--format", "raw", site.disk(number), seed)
    for _ in range(2):
        told = run("job", "start", "job", "--config", site.config, "--json").json
        assert told["machines"][0]["warnings"] == []
    shown = run("replica", "show", "vm1", "--config", site.config, expect=None)
    assert "disk1/seed.raw: a seed that is not needed any more; delete it" in shown.out + shown.err


def test_check_and_plan_name_the_seed_that_is_missing(run, site) -> None:
    site.config.write_text(site.config.read_text() + "[jobs.job.seed]\nvm1 = true\n")
    arguments = ("job", "plan", "job", "--config", site.config, "--json")
    home = site.folder / "target" / "vm1_replica"
    for number in (0, 1):
        (finding,) = findings(run, site, expect=10)
        assert finding["where"] == "[jobs.job.seed] vm1"
        assert f"neither disk{number}.vhdx nor disk{number}/seed.vhdx is here" in finding["problem"]
        assert "seed.raw" in finding["hint"]
        (planned,) = run(*arguments, expect=None).json["machines"]
        assert planned["action"] == "conflict"
        assert planned["reason"] == finding["problem"]
        (home / f"disk{number}").mkdir(parents=True)
        shutil.copy(site.disk(number), home / f"disk{number}" / "seed.vhdx")
    assert findings(run, site, expect=0) == []
    assert run(*arguments).json["machines"][0]["action"] == "replicate"
    site.run()
    assert findings(run, site, expect=0) == []


def test_plan_names_the_seed_that_is_missing_at_a_movers_target(tmp_path: Path) -> None:
    away = SeveralSite(tmp_path / "site", more="[jobs.job.seed]\nvm1 = true\n")
    away.add_machine(sizes=(4 * MiB,))
    try:
        with away.server() as server:
            (planned,) = server.plan("job").machines
    finally:
        away.close()
    assert planned.action == "conflict"
    assert "neither disk0.vhdx nor disk0/seed.vhdx is here" in planned.reason


def test_check_says_that_the_first_full_may_not_fit(run, site, monkeypatch) -> None:
    monkeypatch.setattr("standby.server.check_targets.free_bytes", lambda folder: MiB)
    monkeypatch.setattr("standby.road.target_host.free_bytes", lambda folder: MiB)
    (finding,) = findings(run, site, expect=3)  # what is stored may be zeros: not sure to fail
    planned = run("job", "plan", "job", "--config", site.config, "--json", expect=None)
    assert finding["problem"] in planned.json["machines"][0]["warnings"]
    assert "1.0 MiB are free: the session would read its disks first" in finding["problem"]
    site.config.write_text(site.config.read_text() + "[jobs.job.seed]\nvm1 = true\n")
    assert "free" not in findings(run, site, expect=10)[0]["problem"]
    monkeypatch.undo()


def test_check_says_that_a_replicas_folder_cannot_be_written(run, replicated, monkeypatch) -> None:
    home = replicated.folder / "target" / "vm1_replica"
    access = os.access

    def refused(path, mode, **more) -> bool:
        return Path(path) != home and access(path, mode, **more)

    monkeypatch.setattr("os.access", refused)
    (finding,) = findings(run, replicated, expect=10)
    assert finding["problem"] == f"{home} cannot be written by this user"


def test_check_warns_of_names_that_match_nothing(run, site) -> None:
    text = site.config.read_text().replace(
        'machines = ["*"]',
        'machines = ["*"]\nexclude_disks = ["VM1:scsi:0:1", "vm1:scsi:0:7", "vm9:*"]',
    )
    text += '[jobs.job.seed]\nvm8 = true\nvm7 = false\n[jobs.job.map]\nvm9 = "x"\nvm1 = "old"\n'
    site.config.write_text(text)
    new_machine(site.folder / "target", "old", {"ide:0:0": MiB})
    assert [(item["level"], item["where"]) for item in findings(run, site, expect=10)] == [
        ("warning", "[jobs.job] exclude_disks"),
        ("warning", "[jobs.job] exclude_disks"),
        ("warning", "[jobs.job.seed] vm8"),
        ("warning", "[jobs.job.map] vm9"),
        ("error", "[jobs.job.map] vm1"),  # its session fails
    ]
    found = findings(run, site, expect=10)
    assert ["'vm1:scsi:0:7'" in found[0]["problem"], "'vm9:*'" in found[1]["problem"]] == [True] * 2
    assert "no disk at a place where vm1 has one" in found[4]["problem"]
    planned = ("job", "plan", "job", "--config", site.config, "--json")
    (machine,) = run(*planned, expect=3).json["machines"]
    assert machine["action"] == "conflict"
    assert "no disk at a place where vm1 has one" in machine["reason"]
    toml = site.folder / "target" / "old" / "vm.toml"
    toml.unlink()
    for problem in (
        findings(run, site, expect=10)[4]["problem"],
        run(*planned, expect=3).json["machines"][0]["reason"],
    ):
        assert problem.startswith(f"{toml}: does not exist")
    run("job", "start", "job", "--config", site.config, expect=16)


def test_check_and_plan_tell_that_a_mapped_vm_gives_its_disks_away(run, site) -> None:
    site.config.write_text(site.config.read_text() + '[jobs.job.map]\nvm1 = "old"\n')
    new_machine(site.folder / "target", "old", {"scsi:0:0": 8 * MiB, "ide:0:0": MiB})
    (finding,) = findings(run, site, expect=3)
    assert (finding["level"], finding["where"]) == ("warning", "[jobs.job.map] vm1")
    planned = run("job", "plan", "job", "--config", site.config, "--json").json["machines"][0]
    for text in (finding["problem"], planned["warnings"][0]):
        assert "moves the disks at scsi:0:0 of the VM in old" in text
        assert "does not start any more" in text
    assert "moved into the replica" in planned["disks"][0]["reason"]
    run("job", "start", "job", "--config", site.config, expect=3)
    assert not (site.folder / "target" / "old" / "disk0.vhdx").exists()
    assert findings(run, site, expect=0) == []
    assert (
        run("job", "plan", "job", "--config", site.config, "--json").json["machines"][0]["warnings"]
        == []
    )


def test_check_warns_of_a_vm_name_that_is_one_of_several_and_not_there(run, site) -> None:
    text = site.config.read_text().replace('machines = ["*"]', 'machines = ["vm*", "mail", "vm1"]')
    site.config.write_text(text)
    (finding,) = findings(run, site, expect=3)
    assert finding["problem"] == "mail matches none of the 1 VMs of host source"


def test_check_warns_of_a_replica_whose_vm_is_gone(run, site) -> None:
    site.add_machine("vm2", sizes=(4 * MiB,))
    run("job", "start", "job", "--config", site.config)
    assert findings(run, site, expect=0) == []
    gone = site.folder / "source" / "vm2"
    gone.rename(site.folder / "aside")
    (finding,) = findings(run, site, expect=3)
    assert "VM vm2 of the replica vm2_replica is not on host source any more" in finding["problem"]
    text = site.config.read_text()
    site.config.write_text(
        text.replace('machines = ["*"]', 'machines = ["*"]\nexclude_machines = ["vm2"]')
    )
    assert findings(run, site, expect=0) == []


def test_check_says_who_acts_on_a_schedule(run, site) -> None:
    site.config.write_text(site.config.read_text() + '[jobs.job.schedule]\ndaily = "22:00"\n')
    (finding,) = findings(run, site, expect=3)
    assert finding["where"] == "[jobs.job] schedule"
    assert "not acted on by `standby job start`" in finding["problem"]
    assert "`standby server`" in finding["hint"]


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_a_configuration_that_is_no_file_is_an_error_and_never_waited_for(run, here: Path) -> None:
    os.mkfifo(here / "standby.toml")
    assert "standby.toml: is not a file" in run("check", expect=10).err
    (here / "standby.toml").unlink()
    (here / "standby.toml").mkdir()
    assert "standby.toml: is not a file" in run("check", "--config", ".", expect=10).err
    (here / "standby.toml" / "standby.toml").mkdir()
    assert "is not a file" in run("check", expect=10).err


def test_check_as_json(run, site) -> None:
    ended = run("check", "--config", site.config, "--json")
    assert ended.json == {
        "findings": [],
        "errors": 0,
        "next": f"`standby job plan job --config {site.config}` says what a session would do",
    }
    site.config.write_text(site.config.read_text().replace('"repository"', '"source/inside"'))
    ended = run("check", "--config", site.config, "--json", expect=10)
    assert ended.json["errors"] == 1
    assert set(ended.json["findings"][0]) == {"level", "where", "problem", "hint", "mend"}


def test_check_shows_a_vm_that_cannot_be_read(run, site) -> None:
    toml = site.folder / "source" / "vm1" / "vm.toml"
    toml.write_text(toml.read_text() + "\nmemroy = 1\n")
    ended = run("check", "--config", site.config, expect=10)
    assert "unknown key" in ended.out
    assert f"next: mend {toml} as said above, then run `standby check" in ended.out
    assert f"correct {toml}; until then job job cannot replicate it" in ended.out


def test_check_says_that_a_mover_cannot_be_reached(tmp_path: Path) -> None:
    away = SeveralSite(tmp_path / "site")
    try:
        config = load_config(away.config)
        away.machines["hv1"].close()
        fleet = Fleet(config, reconnect=Reconnect(0.1, 0), make_link=away.link)
        host = config.hosts["source"]
        station = Station(host.mover, str(host.path))
        found = check_configuration(config, lambda name: RemoteHost(name, fleet, station))
        fleet.close()
    finally:
        away.close()
    (finding,) = (item for item in found if item.where == "[hosts.source]")
    assert finding.problem.startswith("mover hv1 cannot be reached: ")
    assert "died" not in finding.problem
    assert "`standby mover run`" in finding.hint
    assert finding.mend == "mover hv1"


def test_version(run) -> None:
    from standby import __version__

    assert run("version").out == f"standby {__version__}\n"
    assert run("--version").out == f"standby {__version__}\n"
    assert "kernel " in run("version", "--verbose").out
    assert json.loads(run("version", "--json").out)["standby"] == __version__


def test_check_says_that_a_target_has_lost_what_was_there(run, replicated) -> None:
    target = replicated.folder / "target"
    target.rename(replicated.folder / "not mounted")
    (finding,) = findings(run, replicated, expect=10)
    assert finding["where"] == "[jobs.job] VM vm1"
    assert f"{target}/vm1_replica: its newest restore point is gone where" in finding["problem"]
    assert "mounted" in finding["hint"]
    assert "--accept-loss" in finding["hint"]


def test_a_copy_of_a_replica_beside_it_is_a_conflict(run, replicated) -> None:
    target = replicated.folder / "target"
    shutil.copytree(target / "vm1_replica", target / "vm1_copy")
    (finding,) = findings(run, replicated, expect=10)
    site = ("--config", replicated.config)
    planned = run("job", "plan", "job", *site, expect=3).out
    started = run("job", "start", "job", *site, expect=16).err
    for text in (finding["problem"], planned, started):
        assert f"{target}/vm1_copy and {target}/vm1_replica are replicas of one VM" in text
    shutil.rmtree(target / "vm1_copy")
    run("job", "start", "job", *site)


# --- a target at a mover ---------------------------------------------------------------------


def found_at(away: SeveralSite) -> list[tuple[str, str, str]]:
    """What `standby check` finds where source and target are at movers: level, where, what."""
    config = load_config(away.config)
    fleet = Fleet(config, reconnect=Reconnect(0.1, 0), make_link=away.link)

    def host(name: str) -> RemoteHost:
        found = config.hosts[name]
        return RemoteHost(name, fleet, Station(found.mover, str(found.path)))

    try:
        found = check_configuration(config, host)
    finally:
        fleet.close()
    return [(item.level.value, item.where, item.problem) for item in found]


def test_check_looks_at_the_replicas_of_a_target_at_a_mover(tmp_path: Path) -> None:
    away = SeveralSite(tmp_path / "site")
    away.add_machine(sizes=(4 * MiB,))
    away.add_machine("vm2", sizes=(4 * MiB,))
    try:
        assert found_at(away) == []
        with away.server() as server:
            assert server.start("job").outcome == "done"
            assert found_at(away) == []
            server.replicas.failover("vm1")
            ((level, where, problem),) = found_at(away)
            assert (level, where) == ("error", "[jobs.job] VM vm1")
            assert "while it is failover" in problem
            assert "standby replica undo-failover vm1_replica" in problem
            server.replicas.permanent_failover("vm1")
            ((_, _, problem),) = found_at(away)
            assert "while it is permanent" in problem
            assert server.replicas.power("vm1_replica", on=False).value == "off"
        shutil.rmtree(away.folder / "source" / "vm2")
        told = [item for item in found_at(away) if "vm2" in item[2]]
        assert [item[:2] for item in told] == [("warning", "[jobs.job] machines")]
        assert "VM vm2 of the replica vm2_replica is not on host source any more" in told[0][2]
        (away.folder / "target" / "vm2_replica" / "replica.json").write_text("damaged")
        away.add_machine("vm2", sizes=(4 * MiB,))
        (told,) = [item for item in found_at(away) if "vm2" in item[1]]
        assert told[0] == "error"
        assert "replica.json" in told[2]
    finally:
        away.close()


@pytest.mark.parametrize("table", ["seed", "map"])
def test_check_looks_for_seeds_and_mapped_vms_at_a_mover(tmp_path: Path, table: str) -> None:
    value = {"seed": "true", "map": '"old"'}[table]
    away = SeveralSite(tmp_path / "site", more=f"[jobs.job.{table}]\nvm1 = {value}\n")
    away.add_machine(sizes=(4 * MiB,))
    try:
        ((level, where, problem),) = found_at(away)
        assert where == f"[jobs.job.{table}] vm1"
        if table == "seed":
            assert level == "error"
            assert "neither disk0.vhdx nor disk0/seed.vhdx is here" in problem
        else:
            assert level == "error"
            assert "old" in problem
            new_machine(away.folder / "target", "old", {"scsi:0:0": 4 * MiB})
            ((_, _, problem),) = found_at(away)
            assert "moves the disks at scsi:0:0 of the VM in old" in problem
    finally:
        away.close()


@pytest.mark.skipif(sys.platform != "linux", reason="takes rights away as Linux does")
def test_check_says_that_a_target_at_a_mover_is_gone_or_not_reached(tmp_path: Path) -> None:
    away = SeveralSite(tmp_path / "site")
    away.add_machine(sizes=(4 * MiB,))
    try:
        (away.folder / "target").rmdir()
        ((level, where, problem),) = found_at(away)
        assert (level, where) == ("error", "[hosts.target] path")
        assert f"{away.folder}/target on the machine of mover dr" in problem
        for name in ("dr1", "dr2"):
            away.machines[name].close()
        ((level, where, problem),) = found_at(away)
        assert (level, where) == ("error", "[hosts.target]")
        assert "cannot be reached" in problem
    finally:
        away.close()
