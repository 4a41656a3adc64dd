"""What `standby check` finds: folders, and VMs that two jobs claim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from standby.model.job import ReplicationJob
from standby.model.machine import Machine
from standby.server.config import Config, HostConfig
from standby.server.config_check import (
    Level,
    check_paths,
    excludes_disk,
    refused_machines,
    replica_conflicts,
    same_names,
    selects,
)

JOB = ReplicationJob("nightly", "prod", "dr", "main", ("web*", "DB01"))


def machine(name: str) -> Machine:
    return Machine(f"id-{name}", name, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("web01", True), ("WEB", True), ("db01", True), ("db011", False), ("web9", False)],
)
def test_machines_are_selected_by_wildcards_without_regard_to_case(
    name: str, expected: bool
) -> None:
    assert selects(replace(JOB, exclude_machines=("Web9",)), name) is expected


def test_disks_are_excluded_by_machine_and_place() -> None:
    job = replace(JOB, exclude_disks=("db*:scsi:0:1", "web01:*"))
    assert excludes_disk(job, "DB01", "scsi:0:1")
    assert excludes_disk(job, "web01", "ide:1:0")
    assert not excludes_disk(job, "db01", "scsi:0:2")
    assert not excludes_disk(job, "web02", "scsi:0:1")


INVENTORY = {"prod": [machine("web01"), machine("db01"), machine("mail")]}


def test_a_vm_in_two_jobs_to_one_target_is_a_conflict() -> None:
    other = replace(JOB, name="weekly", machines=("*",), suffix="_weekly")
    findings = replica_conflicts([JOB, other], INVENTORY)
    assert [f.level for f in findings] == [Level.ERROR, Level.ERROR]
    assert findings[0].where == "[jobs.weekly] machines"
    assert "VM web01 of host prod is in jobs nightly and weekly" in findings[0].problem
    assert "one replica in it, whatever the jobs' suffixes" in findings[0].problem
    assert 'exclude_machines = ["web01"], or give one a target of its own' in findings[0].hint
    assert (
        replica_conflicts([JOB, replace(other, exclude_machines=("web*", "db*"))], INVENTORY) == []
    )


def test_two_targets_are_no_conflict_unless_they_are_one_folder() -> None:
    other = replace(JOB, name="weekly", target="dr2", machines=("web*",))
    assert replica_conflicts([JOB, other], INVENTORY) == []
    folders = {"dr": Path("/a"), "dr2": Path("/a")}
    assert len(replica_conflicts([JOB, other], INVENTORY, folders)) == 1


def test_an_unknown_inventory_is_no_conflict() -> None:
    assert replica_conflicts([JOB, replace(JOB, name="weekly")], {}) == []


@pytest.fixture
def config(tmp_path: Path) -> Config:
    for name in ("vms", "replicas"):
        (tmp_path / name).mkdir()
    return Config(
        path=tmp_path / "standby.toml",
        installation="x",
        state_database=tmp_path / "state.sqlite",
        hosts={
            "prod": HostConfig("prod", "folder", tmp_path / "vms"),
            "dr": HostConfig("dr", "folder", tmp_path / "replicas"),
        },
        repositories={"main": tmp_path / "deep" / "repository"},
        jobs={"nightly": JOB},
    )


def with_path(config: Config, host: str, path: Path) -> Config:
    return replace(config, hosts=config.hosts | {host: HostConfig(host, "folder", path)})


def test_sound_paths_have_no_findings(config: Config) -> None:
    assert check_paths(config) == []


def test_a_missing_source_is_an_error_a_missing_target_is_made(
    config: Config, tmp_path: Path
) -> None:
    assert check_paths(with_path(config, "dr", tmp_path / "new" / "folder")) == []
    (finding,) = check_paths(with_path(config, "prod", tmp_path / "gone"))
    assert (finding.level, finding.where) == (Level.ERROR, "[hosts.prod] path")
    assert finding.problem == f"{tmp_path / 'gone'} does not exist"
    assert "mounted" in finding.hint


def test_a_file_where_a_folder_belongs_is_an_error(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for changed in (
        with_path(config, "prod", file),
        with_path(config, "dr", file / "below"),
        replace(config, repositories={"main": file}),
        replace(config, state_database=file / "state.sqlite"),
    ):
        (finding,) = check_paths(changed)
        assert finding.problem == f"{file} is not a folder"


def test_one_folder_for_two_hosts_is_an_error(config: Config, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "vms")
    (finding,) = check_paths(with_path(config, "dr", tmp_path / "link"))
    assert finding.where == "[hosts.dr] path"
    assert "is the folder of host prod too" in finding.problem


def test_a_host_inside_another_and_a_repository_inside_a_host_are_errors(
    config: Config, tmp_path: Path
) -> None:
    (finding,) = check_paths(with_path(config, "dr", tmp_path / "vms" / "replicas"))
    assert "lies inside the folder of host prod" in finding.problem
    (finding,) = check_paths(replace(config, repositories={"main": tmp_path / "replicas" / "r"}))
    assert finding.where == "[repositories.main] path"
    assert "lies inside the folder of host dr" in finding.problem


def test_a_broken_rules_file_at_the_target_is_found(config: Config, tmp_path: Path) -> None:
    (tmp_path / "replicas" / "standby-target.toml").write_text("keep = 3")
    (finding,) = check_paths(config)
    assert finding.level is Level.ERROR
    assert finding.problem == "unknown key"


def test_unused_hosts_and_no_jobs_are_warnings(config: Config) -> None:
    findings = check_paths(replace(config, jobs={}))
    assert {f.level for f in findings} == {Level.WARNING}
    assert [f.problem for f in findings] == [
        "no job uses this host",
        "no job uses this host",
        "there is no job",
    ]


def test_a_vm_that_two_jobs_claim_is_refused_to_both(config: Config) -> None:
    other = replace(JOB, name="weekly", machines=("*",), suffix="_weekly")
    both = replace(config, jobs={"nightly": JOB, "weekly": other})
    for job, refused in ((JOB, {"id-web01", "id-db01"}), (other, {"id-web01", "id-db01"})):
        found = refused_machines(both, job, INVENTORY["prod"])
        assert set(found) == refused
        assert "is in jobs nightly and weekly" in found["id-web01"]
        assert "exclude_machines" in found["id-web01"]
    elsewhere = replace(other, target="dr2")
    third = HostConfig("dr2", "folder", both.hosts["dr"].path, "mover")
    apart = replace(
        both, hosts=both.hosts | {"dr2": third}, jobs={"nightly": JOB, "weekly": elsewhere}
    )
    assert refused_machines(apart, JOB, INVENTORY["prod"]) == {}


def test_one_name_at_two_targets_is_a_warning(config: Config) -> None:
    other = replace(JOB, name="weekly", target="dr2", machines=("mail", "web01"))
    (finding,) = same_names([JOB, other], INVENTORY)
    assert (finding.level, finding.where) == (Level.WARNING, "[jobs.weekly] suffix")
    assert "web01_replica" in finding.problem
    assert same_names([JOB, replace(other, suffix="_weekly")], INVENTORY) == []


def test_an_api_for_other_machines_without_tls_is_an_error(config: Config) -> None:
    there = replace(config, server=replace(config.server, listen="0.0.0.0:9443"))
    (finding,) = check_paths(there)
    assert (finding.level, finding.where) == (Level.ERROR, "[server] listen")
    assert "there is no TLS" in finding.problem
    assert "[server.tls]" in finding.hint
    files = {"certificate": Path("c.pem"), "key": Path("k.pem")}
    assert check_paths(replace(there, server=replace(there.server, **files))) == []
