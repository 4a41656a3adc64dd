"""A replica that is older than its job's rpo allows: every command that looks says so."""

from __future__ import annotations

import shutil

import pytest

from simulation.site import Site

TEXT = "the newest restore point of vm1 is "


def edit(site: Site, old: str, new: str) -> None:
    text = site.config.read_text()
    assert old in text
    site.config.write_text(text.replace(old, new))


@pytest.fixture
def late(site: Site) -> Site:
    """A site whose only session was 30 hours ago, and its job's rpo is one day."""
    edit(site, "restore_points = 7", 'restore_points = 7\nrpo = "24h"')
    site.clock.set_back(hours=30)
    site.run()
    site.clock.wait(hours=30)
    return site


def test_every_look_says_that_a_replica_is_overdue(run, late: Site) -> None:
    at = ("--config", late.config)
    checked = run("check", *at, "--json", expect=3).json["findings"]
    assert [(item["level"], item["where"]) for item in checked] == [("warning", "[jobs.job] rpo")]
    assert checked[0]["problem"].startswith(TEXT)
    assert "standby job sessions job" in checked[0]["hint"]
    planned = run("job", "plan", "job", *at, expect=3)
    assert f"warning: vm1: {TEXT}" in planned.err
    (machine,) = run("job", "plan", "job", *at, "--json", expect=3).json["machines"]
    assert [text[: len(TEXT)] for text in machine["alarms"]] == [TEXT]
    assert f"warning: job job: {TEXT}" in run("job", "list", *at).err
    told = run("job", "list", *at, "--json").json["overdue"]
    assert list(told) == ["job"]
    assert told["job"][0].startswith(TEXT)
    assert f"warning: vm1_replica: {TEXT}" in run("replica", "list", *at, expect=3).err
    (replica,) = run("replica", "list", *at, "--json", expect=3).json["replicas"]
    assert replica["findings"][0].startswith(TEXT)
    assert TEXT in run("replica", "show", "vm1", *at, expect=3).err
    late.run()
    for verb in (("check",), ("job", "plan", "job"), ("job", "list"), ("replica", "list")):
        ended = run(*verb, *at)
        assert TEXT not in ended.out + ended.err


def test_a_replica_that_its_job_takes_no_more_is_not_overdue(run, late: Site) -> None:
    edit(late, 'machines = ["*"]', 'machines = ["*"]\nexclude_machines = ["vm1"]')
    at = ("--config", late.config)
    for verb in (("job", "list"), ("replica", "list")):
        assert run(*verb, *at).err == ""
    assert TEXT not in run("check", *at, expect=3).out


def test_a_vm_whose_id_another_one_has_too_is_overdue_once_under_its_own_name(
    run, late: Site
) -> None:
    source = late.folder / "source"
    shutil.copytree(source / "vm1", source / "a-copy")
    toml = source / "a-copy" / "vm.toml"
    toml.write_text(toml.read_text().replace('name = "vm1"', 'name = "a-copy"'))
    at = ("--config", late.config)
    planned = run("job", "plan", "job", *at, "--json", expect=3).json["machines"]
    assert {item["action"] for item in planned} == {"conflict"}
    alarms = {item["machine"]: item["alarms"] for item in planned}
    assert [text[: len(TEXT)] for text in alarms["vm1"]] == [TEXT]
    assert alarms["a-copy"] == []
    report = run("job", "start", "job", *at, "--json", expect=16).json
    alarms = {item["machine"]: item["alarms"] for item in report["machines"]}
    assert [text[: len(TEXT)] for text in alarms["vm1"]] == [TEXT]
    assert alarms["a-copy"] == []
    (alarm,) = run("job", "alarms", *at, "--json", expect=3).json["alarms"]
    assert (alarm["kind"], alarm["machine"]) == ("rpo", "vm1")
