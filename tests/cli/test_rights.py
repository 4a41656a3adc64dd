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
