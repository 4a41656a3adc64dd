"""The keys of every `--json` document. Scripts of other people read them: a key may be added, none
may go or change its meaning without a new major version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from standby.disk import vhdx
from standby.units import MiB

FIGURE = {"value", "basis", "low", "high"}
JOB = {
    *("name", "source", "target", "repository", "machines", "exclude_machines", "exclude_disks"),
    *("restore_points", "suffix", "compression", "verify_writes", "rpo_s", "max_tasks"),
    *("max_machines", "checkpoint_max_age_s", "checkpoint_max_growth", "seed", "map"),
}
PLAN = {"job", "machines", "free_bytes", "is_exact", "warnings"}
MACHINE_PLAN = {
    *("machine", "machine_id", "replica", "action", "reason", "disks", "warnings", "alarms"),
}
DISK_PLAN = {"place", "disk_id", "virtual_size", "mode", "reason", "read", "send", "space"}
SESSION = {"id", "job", "started_at", "ended_at", "outcome", "machines"}
MACHINE = {
    *("machine", "machine_id", "replica", "outcome", "point", "error", "warnings", "alarms"),
    *("disks", "steps_s"),
}
DISK = {
    *("disk_id", "place", "mode", "reason", "virtual_size", "read", "skipped", "changed", "sent"),
    *("written", "zeroed", "resent_blocks", "busy_s"),
}
REPLICA = {
    *("name", "machine", "folder", "identity", "state", "generation", "is_processing", "holder"),
    *("points", "newest_age_s", "ready_point", "failover_point", "failover_started_at"),
    *("actions", "free_bytes", "findings", "power", "target"),
}
IDENTITY = {"installation", "source_host", "machine_id", "job"}
POINT_SUMMARY = {
    *("id", "taken_at", "committed_at", "consistency", "size", "changed_bytes", "disks"),
}
POINT = {
    *("format", "id", "parent", "generation", "taken_at", "committed_at", "consistency"),
    *("session", "machine", "disks", "state_files", "firmware_note", "changed_bytes"),
}
RECORD = {
    *("format", "identity", "name", "state", "generation", "disks", "points", "ready"),
    *("ready_point", "ready_next", "failover_point", "failover_started_at", "damage"),
    *("serve_pid", "serve_started"),
}
VERB_PLAN = {
    *("replica", "action", "state", "becomes", "point", "taken_at", "effects", "warnings"),
    "drops_bytes",
}
INFO = {
    *("path", "format", "virtual_size", "block_size", "logical_sector_size", "has_parent"),
    *("physical_sector_size", "is_fixed", "data_write_guid", "file_write_guid", "page83"),
    *("creator", "file_size", "log_is_dirty", "locator"),
}


def check_has(document: Any, keys: set[str]) -> None:
    missing = keys - set(document)
    assert not missing, f"{missing} of {sorted(document)}"


@pytest.fixture
def site_json(run, replicated):
    return lambda *words, **more: run(*words, "--config", replicated.config, "--json", **more).json


@pytest.fixture
def target_json(run, target: Path):
    return lambda *words, **more: run(*words, "--target", target, "--json", **more).json


def test_job_list(site_json) -> None:
    document = site_json("job", "list")
    check_has(document, {"jobs"})
    check_has(document["jobs"][0], JOB)


@pytest.mark.parametrize("words", [("plan", "job"), ("plan", "job", "--scan")])
def test_job_plan(site_json, words: tuple[str, ...]) -> None:
    document = site_json("job", *words)
    check_has(document, PLAN)
    check_has(document["machines"][0], MACHINE_PLAN)
    disk = document["machines"][0]["disks"][0]
    check_has(disk, DISK_PLAN)
    for figure in ("read", "send", "space"):
        assert set(disk[figure]) == FIGURE


def test_sessions(site_json) -> None:
    started = site_json("job", "start", "job")
    sessions = site_json("job", "sessions", "job")
    assert set(sessions) == {"sessions"}
    assert sessions["sessions"][0] == started == site_json("job", "report", started["id"])
    check_has(started, SESSION)
    check_has(started["machines"][0], MACHINE)
    check_has(started["machines"][0]["disks"][0], DISK)


def test_replica_list_and_show(site_json) -> None:
    document = site_json("replica", "list")
    assert set(document) == {"replicas", "unreadable"}
    (found,) = document["replicas"]
    check_has(found, REPLICA)
    check_has(found["identity"], IDENTITY)
    check_has(found["points"][0], POINT_SUMMARY)
    shown = site_json("replica", "show", found["name"])
    volatile = {"newest_age_s", "free_bytes"}
    assert {key: shown[key] for key in REPLICA - volatile} == {
        key: found[key] for key in REPLICA - volatile
    }


def test_failover_and_undo(target_json) -> None:
    check_has(target_json("replica", "failover", "vm1", "--dry-run"), VERB_PLAN)
    done = target_json("replica", "failover", "vm1", "--yes")
    check_has(done, {"record", "point", "renewed", "fenced", "warnings"})
    check_has(done["record"], RECORD)
    check_has(done["point"], POINT)
    check_has(target_json("replica", "permanent-failover", "vm1", "--dry-run"), VERB_PLAN)
    check_has(target_json("replica", "undo-failover", "vm1", "--dry-run"), VERB_PLAN)
    check_has(target_json("replica", "undo-failover", "vm1", "--yes"), RECORD)


def test_permanent_failover(target_json) -> None:
    target_json("replica", "failover", "vm1", "--yes")
    check_has(target_json("replica", "permanent-failover", "vm1", "--yes"), RECORD)


def test_verify(target_json) -> None:
    document = target_json("replica", "verify", "vm1")
    check_has(document, {"points", "repairs", "is_ok"})
    check_has(document["points"][0], {"point_id", "disks"})
    check_has(document["points"][0]["disks"][0], {"disk_id", "problem", "damaged"})


def test_disk_info_and_check(run, tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    vhdx.create(path, 4 * MiB).close()
    check_has(run("disk", "info", path, "--json").json, INFO)
    check_has(
        run("disk", "check", path, "--json").json,
        {
            *("path", "is_ok", "findings", "notes", "log_is_dirty", "blocks", "blocks_present"),
            *("blocks_partial", "layers"),
        },
    )
    check_has(
        run("disk", "convert", "--format", "raw", path, tmp_path / "disk.raw", "--json").json,
        {"virtual_size", "read", "written"},
    )
    check_has(
        run("disk", "info", tmp_path / "disk.raw", "--json").json,
        {"path", "format", "virtual_size", "file_size", "allocated"},
    )


def test_version_and_init(run, tmp_path: Path) -> None:
    assert set(run("version", "--json").json) == {
        *("standby", "kernel", "kernels_available", "python", "platform"),
    }
    assert set(run("init", tmp_path, "--json").json) == {"path", "installation", "next"}
