"""Commands of a user who may not read a folder: named with the reason, never taken for empty."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rights import without_rights
from simulation.site import Site
from standby.server.config import load_config
from standby.server.config_check import check_paths

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="takes rights away as Linux does")


def test_a_target_that_may_not_be_read_is_named(run, replicated: Site) -> None:
    target = replicated.folder / "target"
    site = ("--config", replicated.config)
    with without_rights(target):
        listed = run("replica", "list", *site, expect=3)
        assert f"{target}: " in listed.err
        assert "Permission denied" in listed.err
        for verb in ("show", "failover", "undo-failover", "verify"):
            refused = run("replica", verb, "vm1_replica", *site, expect=11)
            assert str(target) in refused.err
            assert "Permission denied" in refused.err
        alone = run("replica", "show", "vm1", "--target", target, expect=11)
        assert str(target) in alone.err
        assert "Permission denied" in alone.err
        checked = run("check", *site, expect=10)
        assert str(target) in checked.out + checked.err
        planned = run("job", "plan", "job", *site, expect=None)
        assert planned.code
        assert "Permission denied" in planned.out + planned.err
        started = run("job", "start", "job", *site, expect=None)
        assert started.code
        assert "Permission denied" in started.out + started.err
    assert run("replica", "list", *site).err == ""


@pytest.mark.parametrize(
    "below",
    ["vm1_replica", "vm1_replica/points", "vm1_replica/replica.json", "vm1_replica/disk0"],
)
def test_a_replica_that_may_not_be_read_is_named(run, replicated: Site, below: str) -> None:
    path = replicated.folder / "target" / below
    site = ("--config", replicated.config)
    with without_rights(path):
        listed = run("replica", "list", *site, expect=3)
        assert str(path) in listed.err
        assert "Permission denied" in listed.err
        refused = run("replica", "failover", "vm1_replica", *site, "--yes", expect=None)
        assert refused.code in (11, 13)
        assert str(path) in refused.err
        assert "Permission denied" in refused.err
        started = run("job", "start", "job", *site, expect=None)
        assert started.code
        assert "Permission denied" in started.out + started.err
    assert sorted(item.name for item in (replicated.folder / "target").iterdir()) == ["vm1_replica"]
    run("job", "start", "job", *site)


def test_a_vm_whose_folder_may_not_be_read_is_not_gone(run, replicated: Site) -> None:
    folder = replicated.folder / "source" / "vm1"
    site = ("--config", replicated.config)
    with without_rights(folder):
        planned = run("job", "plan", "job", *site, expect=None)
        started = run("job", "start", "job", *site, expect=None)
        checked = run("check", *site, expect=None)
    for ended in (planned, started, checked):
        text = ended.out + ended.err
        assert ended.code
        assert f"{folder}: cannot be read: Permission denied" in text.replace("\n", "")
        assert "not on host" not in text
        assert "remove the replica" not in text


def test_a_configuration_that_may_not_be_read_is_named(run, site: Site, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    with without_rights(closed):
        ended = run("job", "list", "--config", closed / "standby.toml", expect=10)
    assert f"{closed}/standby.toml: cannot be read: Permission denied" in ended.err


def test_folders_below_one_that_may_not_be_read_are_findings(run, replicated: Site) -> None:
    folder = replicated.folder / "closed"
    folder.mkdir()
    text = replicated.config.read_text()
    replicated.config.write_text(text.replace('path = "target"', 'path = "closed/target"'))
    assert replicated.config.read_text() != text
    with without_rights(folder):
        found = check_paths(load_config(replicated.config))
        listed = run("replica", "list", "--config", replicated.config, expect=3)
    assert [(item.where, item.problem) for item in found] == [
        ("[hosts.target] path", f"{folder}/target cannot be read: Permission denied")
    ]
    assert f"{folder}/target" in listed.err
    assert "Permission denied" in listed.err


@pytest.mark.parametrize("which", ["source", "target", "repository"])
def test_a_closed_folder_above_what_a_job_needs_is_named(run, replicated: Site, which: str) -> None:
    above = replicated.folder / "above"
    above.mkdir()
    (replicated.folder / which).rename(above / which)
    text = replicated.config.read_text()
    text = text.replace(f'path = "{which}"', f'path = "above/{which}"')
    replicated.config.write_text(text)
    site = ("--config", replicated.config)
    run("check", *site)
    for more in ("", "[jobs.job.seed]\nvm1 = true\n", '[jobs.job.map]\nvm1 = "old"\n'):
        replicated.config.write_text(text + more)
        with without_rights(above):
            findings = run("check", *site, "--json", expect=10).json["findings"]
            for verb in (("plan", "job"), ("plan", "job", "--scan"), ("start", "job")):
                ended = run("job", *verb, *site, expect=None)
                assert ended.code in (3, 12, 16)
                assert "Permission denied" in ended.out + ended.err
        told = [item["problem"] for item in findings]
        named = f"{above}/{which}"
        assert any(named in text and "Permission denied" in text for text in told), told


@pytest.mark.parametrize(
    "below",
    ["", "vm1_replica", "vm1_replica/points", "vm1_replica/replica.json", "vm1_replica/disk0"],
)
@pytest.mark.parametrize("state", ["ready", "failover"])
def test_no_verb_meets_what_may_not_be_read_unprepared(
    run, replicated: Site, below: str, state: str
) -> None:
    target = replicated.folder / "target"
    site = ("--config", replicated.config)
    if state == "failover":
        run("replica", "failover", "vm1_replica", "--yes", *site)
    with without_rights(target / below):
        for verb in (
            ("show", "vm1_replica"),
            ("verify", "vm1_replica"),
            ("verify", "vm1_replica", "--repair"),
            ("failover", "vm1_replica", "--yes"),
            ("undo-failover", "vm1_replica", "--yes"),
            ("undo-failover", "vm1_replica", "--drop-writes", "--yes"),
            ("permanent-failover", "vm1_replica", "--dry-run"),
            ("power", "on", "vm1_replica"),
        ):
            ended = run("replica", *verb, *site, expect=None)  # an OSError would be the test's
            assert ended.code in (3, 11, 13), (verb, ended)
        run("check", *site, expect=None)
        run("job", "plan", "job", "--scan", *site, expect=None)


def test_a_seed_that_may_not_be_looked_at_is_named(run, site: Site) -> None:
    site.config.write_text(site.config.read_text() + "[jobs.job.seed]\nvm1 = true\n")
    home = site.folder / "target" / "vm1_replica"
    for number in (0, 1):
        (home / f"disk{number}").mkdir(parents=True)
        (home / f"disk{number}" / "seed.raw").touch()
    arguments = ("--config", site.config)
    for closed in (home, home / "disk0"):
        with without_rights(closed):
            (finding,) = run("check", *arguments, "--json", expect=10).json["findings"]
            assert str(closed) in finding["problem"]
            planned = run("job", "plan", "job", *arguments, "--json", expect=3).json["machines"][0]
            assert planned["action"] == "conflict"
            assert "Permission denied" in planned["reason"]


def test_a_vm_that_cannot_be_read_is_named_where_its_folder_has_another_name(
    run, site: Site
) -> None:
    arguments = ("--config", site.config)
    folder = site.folder / "source" / "server-a"
    (site.folder / "source" / "vm1").rename(folder)
    site.config.write_text(
        site.config.read_text().replace('machines = ["*"]', 'machines = ["vm1"]')
    )
    run("job", "plan", "job", *arguments)
    with without_rights(folder):
        planned = run("job", "plan", "job", *arguments, expect=3)
        started = run("job", "start", "job", *arguments, expect=16)
        site.add_machine("vm2", (1 << 20,))
        text = site.config.read_text().replace('["vm1"]', '["vm1", "vm2"]')
        site.config.write_text(text)
        partly = run("job", "start", "job", *arguments, expect=3)
        complete = run("job", "start", "job", "--machine", "vm2", *arguments)
    for ended in (planned, started, partly):
        told = " ".join((ended.out + ended.err).split())
        assert "no VM on host source matches vm1" in told
        assert f"{folder}: cannot be read: Permission denied" in told
    assert "vm1" not in complete.out + complete.err


@pytest.mark.parametrize("mode", ["--folder", "init", "convert"])
def test_where_nothing_can_be_made_is_named(run, tmp_path: Path, mode: str) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    place = closed / "below" / "deeper"
    arguments = {
        "--folder": ("demo", "--folder", place),
        "init": ("init", place),
        "convert": (
            "disk",
            "convert",
            "--format",
            "raw",
            Path(__file__),
            place / "new.raw",
        ),
    }[mode]
    with without_rights(closed):
        ended = run(*arguments, expect=11)
    assert str(closed) in ended.err
    assert "Permission denied" in ended.err


def test_what_a_user_has_no_right_to_is_to_be_opened_not_restored(run, replicated: Site) -> None:
    arguments = ("--config", replicated.config, "--json")
    database = replicated.folder / "standby-state.sqlite"
    for path in (replicated.folder / "source" / "vm1", replicated.disk(), database):
        with without_rights(path):
            (finding,) = run("check", *arguments, expect=10).json["findings"]
        assert "access to" in finding["hint"]
        assert "backup" not in finding["hint"]
        assert "correct" not in finding["hint"]
        assert finding["mend"] == str(path)


def test_a_name_that_may_be_behind_a_closed_folder_is_not_said_to_be_unknown(
    run, replicated: Site
) -> None:
    closed = replicated.folder / "target" / "vm1_replica"
    site = ("--config", replicated.config)
    with without_rights(closed):
        for name in ("vm1", "vm2"):
            refused = run("replica", "failover", name, "--yes", *site, expect=10)
            assert f"{closed}/replica.json" in refused.err
            assert "Permission denied" in refused.err
        assert "free at the target" not in run("job", "plan", "job", *site, expect=3).out


def test_a_vm_whose_folder_may_not_be_written_cannot_be_locked(run, site: Site) -> None:
    site_ = ("--config", site.config)
    lock = site.folder / "source" / "vm1" / ".standby.lock"
    with without_rights(lock.parent, mode=0o555):
        (finding,) = run("check", *site_, "--json", expect=10).json["findings"]
        assert "Permission denied" in run("job", "plan", "job", *site_, expect=3).out
    assert finding["problem"] == f"{lock.parent} cannot be written by this user"
    assert ".standby.lock" in finding["hint"]
    lock.touch()
    run("check", *site_)
    with without_rights(lock):
        (finding,) = run("check", *site_, "--json", expect=10).json["findings"]
        assert "Permission denied" in run("job", "plan", "job", *site_, expect=3).out
    assert finding["where"] == "VM vm1 of host source"
    assert finding["problem"] == f"{lock} cannot be written by this user"


def test_a_replica_that_may_not_be_written_is_no_plan_of_a_session(run, replicated: Site) -> None:
    site = ("--config", replicated.config)
    home = replicated.folder / "target" / "vm1_replica"
    lock = home / ".lock"
    for path, mode in ((home, 0o555), (home / "disk0", 0o555), (lock, 0o444)):
        with without_rights(path, mode=mode):
            (finding,) = run("check", *site, "--json", expect=10).json["findings"]
            (machine,) = run("job", "plan", "job", *site, "--json", expect=3).json["machines"]
        assert str(home) in finding["problem"]
        assert "cannot be written by this user" in finding["problem"]
        assert "write access to" in finding["hint"]
        assert machine["action"] == "conflict"
        for text in (finding["problem"], finding["hint"]):
            assert text in machine["reason"]
    with without_rights(lock, mode=0o444):
        told = run("job", "start", "job", *site, expect=16).err
    assert f"{lock}: open lock failed: Permission denied. This user may not write it" in told
    assert "give it write access" in told
    run("job", "start", "job", *site)


def test_a_target_on_a_read_only_file_system_is_named_as_such(
    run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.server.config_check._is_on_read_only", lambda path: True)
    at = ("--config", site.config)
    with without_rights(site.folder / "target", mode=0o555):
        (finding,) = run("check", *at, "--json", expect=10).json["findings"]
        (machine,) = run("job", "plan", "job", *at, "--json", expect=3).json["machines"]
    assert finding["problem"] == (
        f"{site.folder}/target cannot be written: its file system is mounted read-only"
    )
    assert "mount it writable" in finding["hint"]
    assert "mounted read-only; mount its file system writable" in machine["reason"]
