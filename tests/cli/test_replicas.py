"""`standby replica …` on a target folder, with nothing else left alive."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from standby.disk import open_disk, vhdx
from standby.host.folder import FolderHost, processes
from standby.host.folder.power import PowerRecord, write_record
from standby.model.machine import PowerState
from standby.model.replica import ReplicaIdentity
from standby.road.replica import ReplicaFolder
from standby.road.replica_work import ReplicaWork
from standby.units import MiB


@pytest.fixture
def replica(run, target: Path):
    """`standby replica …` on the target folder alone."""
    return lambda *arguments, **more: run("replica", *arguments, "--target", target, **more)


@pytest.fixture
def points(replica) -> list[str]:
    return [item["id"] for item in replica("show", "vm1_replica", "--json").json["points"]]


def ready(target: Path) -> Path:
    return target / "vm1_replica" / "disk0" / "ready.vhdx"


def read_first(path: Path) -> bytes:
    disk = open_disk(path)
    try:
        data = bytearray(512)
        disk.read_into(0, data)
        return bytes(data)
    finally:
        disk.close()


def write_first(path: Path, data: bytes) -> None:
    disk = open_disk(path, writable=True)
    disk.write(0, data.ljust(512, b"\0"))
    disk.close()


def records(target: Path) -> dict[str, bytes]:
    """Everything of the replica that is not a lock or a note who held it."""
    folder = target / "vm1_replica"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


# --- looking ---------------------------------------------------------------------------------


def test_list_is_readable_at_80_columns(replica, points: list[str]) -> None:
    lines = replica("list").out.splitlines()
    assert lines[0].split() == ["replica", "state", "points", "newest", "point", "age", "now"]
    assert lines[1].split()[:4] == ["vm1_replica", "ready", "2", points[-1]]
    assert max(map(len, lines)) <= 80


def test_show_names_every_point_in_full(replica, points: list[str]) -> None:
    lines = replica("show", "vm1_replica").out.splitlines()
    for point in points:
        assert any(line.split()[0] == point for line in lines)
    table = lines[2 : lines.index("possible now:")]  # commands below it name a folder
    assert all(len(line) <= 80 for line in table)


def test_show_names_what_is_possible_as_commands_that_exist(run, replica, target: Path) -> None:
    def shown() -> list[str]:
        lines = replica("show", "vm1_replica", expect=None).out.splitlines()
        commands = [line.strip() for line in lines[lines.index("possible now:") + 1 :]]
        for command in commands:
            words = command.split()
            assert words.pop(0) == "standby"
            run(*words, "--help")
        return commands

    at = f"--target {target}"
    assert shown() == [
        "standby job start job",
        f"standby replica failover vm1_replica {at}",
        f"standby replica verify vm1_replica {at}",
        f"standby replica verify vm1_replica --repair {at}",
    ]
    replica("failover", "vm1_replica", "--yes")
    assert shown() == [
        f"standby replica undo-failover vm1_replica {at}",
        f"standby replica permanent-failover vm1_replica {at}",
        f"standby replica verify vm1_replica {at}",
        f"standby replica power on vm1_replica {at}",
    ]
    refused = replica("failover", "vm1_replica", "--yes", expect=13)
    undo = f"`standby replica undo-failover vm1_replica --target {target}`"
    assert f"possible now: {undo}, " in refused.err


def test_an_undo_is_not_said_to_be_possible_while_the_vm_runs(
    replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica("failover", "vm1", "--yes")
    monkeypatch.setattr("standby.road.surveying.power_of", lambda folder: PowerState.RUNNING)
    actions = replica("show", "vm1", "--json").json["actions"]
    assert not [text for text in actions if "undo-failover" in text]
    assert "standby replica power off vm1_replica" in actions
    refused = replica("failover", "vm1", "--yes", expect=13).err
    assert "An undo wants its VM off: `standby replica power off vm1_replica" in refused


def test_an_empty_point_is_refused(replica) -> None:
    for verb in ("failover", "verify"):
        refused = replica(verb, "vm1", "--point", "", expect=2)
        assert "--point" in refused.err
        assert "is empty" in refused.err


def test_damage_during_a_failover_is_told_and_the_failover_can_be_undone(
    replica, points: list[str], target: Path
) -> None:
    replica("failover", "vm1", "--yes")
    base = target / "vm1_replica" / "disk0" / "base.vhdx"
    with base.open("r+b") as file:
        file.seek(5 * MiB)
        content = file.read(16)
        file.seek(5 * MiB)
        file.write(bytes(byte ^ 255 for byte in content))
    assert "can be tried after an undo" in replica("verify", "vm1", expect=13).err
    assert "damaged" in replica("permanent-failover", "vm1", "--dry-run", expect=3).err
    assert replica("show", "vm1", "--json", expect=3).json["state"] == "failover"
    assert "damaged again" in replica("undo-failover", "vm1", "--yes").out


def test_a_vm_name_means_its_replica(replica) -> None:
    assert replica("show", "vm1", "--json").json["name"] == "vm1_replica"


def test_a_vm_name_that_means_two_replicas_says_how_to_name_one(replica, target: Path) -> None:
    shutil.copytree(target / "vm1_replica", target / "vm1_second")
    refused = replica("show", "vm1", expect=10).err
    assert "vm1_replica" in refused
    assert "vm1_second" in refused
    assert "the name of one of these folders" in refused
    assert replica("show", "vm1_second", "--json").json["machine"] == "vm1"


def test_an_unknown_replica_is_refused_with_the_known_ones(replica) -> None:
    assert "known: vm1_replica" in replica("show", "nope", expect=10).err


def test_a_replicas_own_folder_as_target_says_what_was_meant(run, target: Path) -> None:
    ended = run("replica", "list", "--target", target / "vm1_replica", expect=10)
    assert f"Name the folder it is in: {target}" in ended.err


def test_a_replica_whose_record_is_damaged_is_not_hidden(replica, target: Path) -> None:
    (target / "vm1_replica" / "replica.json").write_text("{}")
    ended = replica("list", expect=3)
    assert "vm1_replica" in ended.err
    document = replica("list", "--json", expect=3).json
    assert document["replicas"] == []
    assert list(document["unreadable"]) == [str(target / "vm1_replica")]


def test_a_target_that_is_not_mounted_is_not_an_empty_one(run, replicated) -> None:
    (replicated.folder / "target").rename(replicated.folder / "elsewhere")
    ended = run("replica", "list", "--config", replicated.config, expect=3)
    assert ended.out == "no replicas\n"
    assert "not mounted" in ended.err


def test_a_touched_point_needs_a_look(replica, target: Path, points: list[str]) -> None:
    with (target / "vm1_replica" / "disk0" / f"{points[-1]}.vhdx").open("ab") as file:
        file.write(b"\0" * 4096)
    assert f"{points[-1]}.vhdx" in replica("show", "vm1_replica", expect=3).err
    assert "vm1_replica" in replica("list", expect=3).err
    refused = replica("failover", "vm1_replica", "--yes", expect=13)
    assert points[-1] in refused.err
    assert "other points may be intact" in refused.err


# --- failing over ----------------------------------------------------------------------------


def test_failover_write_and_undo(replica, target: Path, points: list[str]) -> None:
    before = read_first(ready(target))
    done = replica("failover", "vm1_replica", "--yes")
    assert f"failed over to {points[-1]}" in done.out
    assert "scsi:0:0: disk0/ready.vhdx" in done.out
    write_first(ready(target), b"written")
    shown = replica("show", "vm1_replica").out
    assert f"failed over to {points[-1]} since" in shown
    undone = replica("undo-failover", "vm1_replica", "--yes")
    assert undone.out == f"vm1_replica: ready again, above {points[-1]}\n"
    assert read_first(ready(target)) == before


@pytest.mark.parametrize("how", ["id", "beginning", "time"])
def test_failover_to_an_older_point(replica, target: Path, points: list[str], how: str) -> None:
    shown = replica("show", "vm1_replica", "--json").json["points"]
    wanted = {"id": points[0], "beginning": points[0][:-1], "time": shown[0]["taken_at"]}[how]
    done = replica("failover", "vm1_replica", "--point", wanted, "--yes", "--json")
    assert done.json["point"]["id"] == points[0]
    assert done.json["renewed"] is True


def test_a_source_that_runs_is_seen_beside_a_vm_that_cannot_be_read(run, replicated) -> None:
    broken = replicated.folder / "source" / "broken" / "vm.toml"
    broken.parent.mkdir()
    broken.write_text("no toml")
    held = open_disk(replicated.disk(), writable=True)  # as QEMU would
    try:
        arguments = ("replica", "failover", "vm1", "--yes", "--config", replicated.config)
        assert "the source VM is running" in run(*arguments, expect=13).err
    finally:
        held.close()


@pytest.mark.parametrize("damage", ["noise", "folder", "no reference"])
def test_replica_verbs_go_on_without_the_state_database(run, replicated, damage: str) -> None:
    for file in replicated.folder.glob("standby-state.sqlite*"):
        file.unlink()
    database = replicated.folder / "standby-state.sqlite"
    if damage == "noise":
        database.write_bytes(os.urandom(9000))
    elif damage == "folder":
        database.mkdir()
    else:
        general = 'installation = "test"\n'
        more = general + 'state_database = "env:STANDBY_TEST_NOT_SET"\n'
        replicated.config.write_text(replicated.config.read_text().replace(general, more))
    shutil.rmtree(replicated.folder / "repository")
    site = ("--config", replicated.config)
    listed = run("replica", "list", "--json", *site)
    assert [item["name"] for item in listed.json["replicas"]] == ["vm1_replica"]
    named = "state_database" if damage == "no reference" else str(database)
    assert named in listed.err
    assert "goes on without it" in listed.err
    for arguments, words in (
        (("show", "vm1"), "vm1_replica: ready"),
        (("verify", "vm1"), "ok"),
        (("failover", "vm1", "--yes"), "failed over to"),
        (("power", "off", "vm1", "--force"), "off"),
        (("undo-failover", "vm1", "--yes"), "ready again"),
        (("failover", "vm1", "--yes"), "failed over to"),
        (("permanent-failover", "vm1", "--yes"), "a VM of its own now"),
    ):
        done = run("replica", *arguments, *site)
        assert words in done.out
        assert named in done.err
    if damage == "noise":
        assert database.stat().st_size == 9000


def test_a_source_that_runs_is_seen_without_the_state_database(run, replicated) -> None:
    (replicated.folder / "standby-state.sqlite").write_bytes(b"no database at all" * 100)
    held = open_disk(replicated.disk(), writable=True)  # as QEMU would
    try:
        arguments = ("replica", "failover", "vm1", "--yes", "--config", replicated.config)
        assert "the source VM is running" in run(*arguments, expect=13).err
    finally:
        held.close()


def test_a_configuration_that_cannot_be_read_names_what_needs_none(run, replicated) -> None:
    replicated.config.write_text("no toml")
    refused = run("replica", "list", "--config", replicated.config, expect=10)
    assert "--target FOLDER" in refused.err
    replicated.config.unlink()
    refused = run("replica", "failover", "vm1", "--config", replicated.config, expect=10)
    assert "--target FOLDER" in refused.err


def test_an_unknown_point_is_refused_with_the_known_ones(replica, points: list[str]) -> None:
    refused = replica("failover", "vm1_replica", "--point", "2001-01-01", "--yes", expect=13)
    for point in points:
        assert point in refused.err


def test_permanent_failover(replica, target: Path) -> None:
    assert "failover" in replica("permanent-failover", "vm1", "--yes", expect=13).err
    replica("failover", "vm1", "--yes")
    assert "a VM of its own" in replica("permanent-failover", "vm1", "--yes").out
    refused = replica("failover", "vm1", "--yes", expect=13).err
    assert "possible now" not in refused
    assert "exclude_machines" in refused
    assert replica("list", "--json").json["replicas"] == []
    assert ready(target).exists()


def test_the_targets_own_rules_hold_whoever_orders(replica, target: Path) -> None:
    (target / "standby-target.toml").write_text("keep_points_min = 1\n")
    replica("failover", "vm1", "--yes")
    for more in (("--dry-run",), ("--yes",)):
        refused = replica("permanent-failover", "vm1", *more, expect=13)
        assert "keep_points_min = 1" in refused.err


def test_a_dry_run_to_a_touched_point_refuses_as_the_failover_does(
    replica, target: Path, points: list[str]
) -> None:
    with (target / "vm1_replica" / "disk0" / "base.vhdx").open("ab") as file:
        file.write(b"\0" * 4096)
    for more in ((), ("--point", points[0])):
        planned = replica("failover", "vm1_replica", *more, "--dry-run", expect=13)
        refused = replica("failover", "vm1_replica", *more, "--yes", expect=13)
        assert planned.err == refused.err
        assert "base.vhdx" in planned.err


def test_a_failover_of_a_replica_marked_damaged_says_so_and_its_dry_run_too(
    replica, target: Path, points: list[str]
) -> None:
    damage(target, points[0])
    replica("verify", "vm1", expect=13)
    planned = replica("failover", "vm1", "--dry-run", expect=3)
    assert f"marked damaged: verify found damage in {points[0]}" in planned.err
    done = replica("failover", "vm1", "--yes", expect=3)
    assert planned.err in done.err


@pytest.mark.parametrize("more", ["--dry-run", "--yes"])
def test_undoing_the_failover_of_a_running_vm_names_it_and_what_stops_it(
    replica, target: Path, more: str
) -> None:
    replica("failover", "vm1", "--yes")
    ours = os.getpid()
    record = PowerRecord(node=platform.node(), qemu_pid=ours, qemu_started=processes.started(ours))
    write_record(target / "vm1_replica", record)
    refused = replica("undo-failover", "vm1", more, expect=12)
    assert f"VM vm1_replica on host target is running (QEMU process {ours})" in refused.err
    assert f"`standby replica power off vm1_replica --target {target}`" in refused.err
    write_record(target / "vm1_replica", PowerRecord())
    held = open_disk(ready(target), writable=True)  # as a VM started by hand would
    refused = replica("undo-failover", "vm1", more, expect=12)
    assert "has ready.vhdx open for writing" in refused.err
    assert "power off" not in refused.err
    held.close()
    write_record(target / "vm1_replica", replace(record, node="hv2"))
    refused = replica("undo-failover", "vm1", more, expect=12)
    assert "machine hv2" in refused.err


# --- dry runs --------------------------------------------------------------------------------


def test_dry_runs_say_what_would_be_done_and_change_nothing(
    replica, target: Path, points: list[str]
) -> None:
    before = records(target)
    text = replica("failover", "vm1", "--dry-run").out
    assert text.startswith("vm1_replica: ready becomes failover, 2 disks, point of ")
    assert "no file is made" in text
    text = replica("failover", "vm1", "--point", points[0], "--dry-run").out
    assert f"new empty ready layers are made above {points[0]}" in text
    assert "1 newer restore points stay" in text
    assert records(target) == before

    replica("failover", "vm1", "--yes")
    write_first(ready(target), b"written")
    before = records(target)
    text = replica("undo-failover", "vm1", "--dry-run").out
    assert "what the VM wrote is dropped: disk0/ready.vhdx" in text
    assert "cannot be undone" in replica("permanent-failover", "vm1", "--dry-run").out
    assert records(target) == before


def test_a_dry_run_refuses_what_the_verb_would(replica) -> None:
    assert "possible now" in replica("undo-failover", "vm1", "--dry-run", expect=13).err
    assert "possible now" in replica("permanent-failover", "vm1", "--dry-run", expect=13).err
    replica("failover", "vm1", "--yes")
    assert "possible now" in replica("failover", "vm1", "--dry-run", expect=13).err


def test_writes_outside_of_a_failover_are_not_dropped_unasked(replica, target: Path) -> None:
    write_first(ready(target), b"started by hand")
    for verb in ("failover", "undo-failover"):
        for more in ("--dry-run", "--yes"):
            refused = replica(verb, "vm1", more, expect=13)
            assert "--adopt" in refused.err
            assert "--drop-writes" in refused.err
    kept = replica("failover", "vm1", "--adopt", "--dry-run").out
    assert "keeps what it wrote outside of a failover" in kept
    assert "dropped" in replica("undo-failover", "vm1", "--drop-writes", "--dry-run").out
    replica("undo-failover", "vm1", "--drop-writes", "--yes")
    assert read_first(ready(target))[:7] != b"started"


def test_yes_is_asked_for_before_every_verb_that_cannot_be_taken_back(replica) -> None:
    assert "--yes" in replica("failover", "vm1", expect=2).err
    replica("failover", "vm1", "--yes")
    assert "--yes" in replica("undo-failover", "vm1", expect=2).err
    assert "--yes" in replica("permanent-failover", "vm1", expect=2).err
    assert replica("show", "vm1", "--json").json["state"] == "failover"


# --- verify and repair -----------------------------------------------------------------------


def points_of(target: Path) -> list[str]:
    return sorted(path.stem for path in (target / "vm1_replica" / "points").glob("*.json"))


def damage(target: Path, point: str) -> None:
    """Flip bits where the first disk's data lies, keeping size and structure."""
    path = target / "vm1_replica" / "disk0" / "base.vhdx"
    content = bytearray(path.read_bytes())
    place = len(content) - (1 << 20) - 4096
    content[place : place + 64] = bytes(byte ^ 0xFF for byte in content[place : place + 64])
    path.write_bytes(content)


def test_verify_reads_every_point(replica, points: list[str]) -> None:
    assert replica("verify", "vm1").out == "".join(f"{point}: ok\n" for point in points)
    assert replica("verify", "vm1", "--point", points[0]).out == f"{points[0]}: ok\n"


def test_verify_reads_what_points_share_once(replica) -> None:
    first, second = replica("verify", "vm1", "--json").json["points"]
    assert sum(disk["bytes_read"] for disk in first["disks"]) >= 3 * MiB
    assert sum(disk["bytes_read"] for disk in second["disks"]) == 64 * 1024


def test_verify_names_what_is_damaged_and_repair_heals_it(run, replicated) -> None:
    target = replicated.folder / "target"
    damage(target, "")
    site = ("--config", replicated.config)
    found = run("replica", "verify", "vm1", *site, expect=13)
    assert "DAMAGED" in found.out
    assert "disk0: " in found.out
    assert "--repair" in found.err
    assert "marked damaged" in run("replica", "list", *site, expect=3).err
    healed = run("replica", "verify", "vm1", "--repair", *site)
    assert "repaired 4.0 KiB" in healed.out
    assert run("replica", "list", *site).err == ""


@pytest.mark.parametrize("which", [0, 1])
def test_verify_names_a_point_whose_record_is_destroyed(run, replicated, which: int) -> None:
    folder = replicated.folder / "target" / "vm1_replica"
    points = points_of(replicated.folder / "target")
    path = folder / "points" / f"{points[which]}.json"
    before = path.read_bytes()
    path.write_bytes(b"")
    path.with_suffix(".copy").unlink()
    site = ("--config", replicated.config)
    found = run("replica", "verify", "vm1_replica", *site, expect=13)
    assert "no copy of it is there" in found.out
    other = points[1 - which]
    lines = [line for line in found.out.splitlines() if not line.startswith("  ")]
    assert f"{points[which]}: DAMAGED" in lines
    assert [line.partition(":")[0] for line in lines] == points
    assert "  its commit record: " in found.out
    assert "vm1_replica is damaged" in found.err
    told = run("replica", "verify", "vm1_replica", "--repair", "--json", *site, expect=13).json
    assert not told["is_ok"]
    assert [item["point_id"] for item in told["points"]] == points
    assert "record" in told["points"][which]["record_problem"]
    assert told["points"][1 - which]["record_problem"] == ""
    alone = ("--point", points[which])
    assert (
        f"{points[which]}: DAMAGED"
        in run("replica", "verify", "vm1_replica", *alone, *site, expect=13).out
    )
    if which:  # the older one does not need the record that is lost
        assert f"{other}: ok" in lines
    path.write_bytes(before)
    assert run("replica", "verify", "vm1_replica", *site).err == ""
    assert run("replica", "list", *site).err == ""


def test_a_damaged_commit_record_is_written_again_from_its_copy(run, replicated) -> None:
    folder = replicated.folder / "target" / "vm1_replica"
    newest = points_of(replicated.folder / "target")[-1]
    path = folder / "points" / f"{newest}.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"offline", b"offlime"))
    site = ("--config", replicated.config)
    refused = run("job", "start", "job", *site, expect=None)
    assert refused.code not in (0, 3)
    found = run("replica", "verify", "vm1_replica", *site, expect=13)
    assert f"{newest}: DAMAGED\n  its commit record: checksum" in found.out
    assert "try `standby replica verify vm1_replica --repair" in found.err
    healed = run("replica", "verify", "vm1_replica", "--repair", *site)
    assert f"{newest}: its commit record was written again from its copy; every disk" in healed.out
    assert path.read_bytes() == before
    assert run("replica", "list", *site).err == ""


def test_damaged_digests_are_told_from_damaged_data_and_computed_again(run, replicated) -> None:
    folder = replicated.folder / "target" / "vm1_replica"
    points = points_of(replicated.folder / "target")
    path = folder / "points" / f"{points[0]}.disk0.digests"
    before = path.read_bytes()
    path.write_bytes(before[:5000] + bytes([before[5000] ^ 1]) + before[5001:])
    site = ("--config", replicated.config)
    found = run("replica", "verify", "vm1", *site, expect=3)
    assert f"{points[0]}: its digests are damaged, its data is intact" in found.out
    assert "DAMAGED" not in found.out
    assert "has damaged digests, its data is intact; try `standby replica verify" in found.err
    assert run("replica", "list", *site).err == ""
    mended = run("replica", "verify", "vm1", "--repair", *site)
    assert f"digests of disk0 computed again from the disk: {points[0]}" in mended.out
    assert mended.err == ""
    assert path.read_bytes() == before
    run("job", "start", "job", *site)


def test_damage_that_nobody_can_heal_stays_named(replica, target: Path) -> None:
    damage(target, "")
    found = replica("verify", "vm1", "--repair", expect=13)
    assert "4.0 KiB are nowhere to be had" in found.out


def test_a_truncated_layer_is_not_repaired_and_the_ways_out_are_named(run, replicated) -> None:
    points = points_of(replicated.folder / "target")
    layer = replicated.folder / "target" / "vm1_replica" / "disk0" / f"{points[-1]}.vhdx"
    with layer.open("r+b") as file:
        file.truncate(1 * MiB)
    site = ("--config", replicated.config)
    ways = (f"failover vm1_replica --point {points[0]}", "job start job --accept-loss")
    found = run("replica", "verify", "vm1", *site, expect=13)
    assert "--repair" not in found.err
    tried = run("replica", "verify", "vm1", "--repair", *site, expect=13)
    assert f"{points[-1]}: not repaired" in tried.out
    assert "--repair" not in tried.err
    for text in (found.err, tried.err):
        assert all(way in text for way in ways)
    skipped = run("job", "start", "job", *site, expect=None)
    assert "--accept-loss" in skipped.out + skipped.err
    run("replica", "failover", "vm1", "--point", points[0], "--yes", *site)  # an undamaged one
    run("replica", "undo-failover", "vm1", "--dry-run", *site)
    undone = run("replica", "undo-failover", "vm1", "--yes", *site)
    assert f"damaged again, above {points[0]}" in undone.out


def test_a_lost_point_record_does_not_take_the_newer_points_with_it(run, replicated) -> None:
    site = ("--config", replicated.config)
    run("job", "start", "job", *site)
    points = points_of(replicated.folder / "target")
    assert len(points) == 3
    record = replicated.folder / "target" / "vm1_replica" / "points" / f"{points[1]}.json"
    record.unlink()
    record.with_suffix(".copy").unlink()
    ended = run("replica", "verify", "vm1", *site)
    assert ended.out.count(": ok") == 2
    refused = run("job", "start", "job", *site, expect=None)
    assert "--accept-loss" in refused.out + refused.err
    run("job", "start", "job", "--accept-loss", *site, expect=None)
    assert len(points_of(replicated.folder / "target")) == 3
    assert run("replica", "verify", "vm1", *site).out.count(": ok") == 3


def test_points_without_a_record_of_the_replica_are_not_hidden(replica, target: Path) -> None:
    (target / "vm1_replica" / "replica.json").unlink()
    (target / "other").mkdir()
    ended = replica("list", expect=3)
    assert f"{target / 'vm1_replica'}: restore points are here" in ended.err
    assert "--accept-loss" in ended.err
    assert "other" not in ended.err


def test_a_truncated_record_of_the_replica_names_the_way_out(replica, target: Path) -> None:
    path = target / "vm1_replica" / "replica.json"
    path.write_bytes(path.read_bytes()[:40])
    assert "--accept-loss" in replica("list", expect=3).err


def test_what_a_permanent_replica_names_as_the_way_out_works(run, replicated) -> None:
    site = ("--config", replicated.config)
    run("replica", "failover", "vm1", "--yes", *site)
    run("replica", "permanent-failover", "vm1", "--yes", *site)
    for verb in (("job", "plan", "job"), ("job", "start", "job")):
        told = run(*verb, *site, expect=None)
        told = " ".join((told.out + told.err).split())
        assert "while it is permanent" in told
        assert "--accept-loss" in told
    home = replicated.folder / "target" / "vm1_replica"
    home.rename(replicated.folder / "elsewhere")
    for verb in (("job", "plan", "job"), ("job", "start", "job")):
        told = run(*verb, *site, expect=None)
        assert "the replica is not there" in " ".join((told.out + told.err).split())
    run("job", "start", "job", "--accept-loss", *site, expect=None)
    assert run("replica", "show", "vm1", "--json", *site).json["state"] == "ready"


def test_a_permanent_failover_says_that_the_vm_runs(
    replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica("failover", "vm1", "--yes")
    assert "runs" not in replica("permanent-failover", "vm1", "--dry-run").out
    monkeypatch.setattr(ReplicaWork, "is_running", lambda self, folder: lambda: True)
    assert "the VM runs" in replica("permanent-failover", "vm1", "--dry-run").out
    assert "own now, and runs" in replica("permanent-failover", "vm1", "--yes").out


# --- power -----------------------------------------------------------------------------------


def test_power_of_a_replica_that_has_not_failed_over_is_refused(replica) -> None:
    refused = replica("power", "on", "vm1", expect=13)
    assert "failover" in refused.err


def test_power_off_of_a_vm_that_is_off_is_done(replica) -> None:
    replica("failover", "vm1", "--yes")
    told = replica("power", "off", "vm1", "--json")
    assert told.json == {"replica": "vm1", "power": "off", "was": "off"}
    again = replica("power", "off", "vm1")
    assert (again.out, again.err) == ("vm1: is off already\n", "")


def test_a_vm_that_runs_is_shown_and_left_running(
    replica, target: Path, points: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "VM" not in replica("list").out
    replica("failover", "vm1", "--yes")
    assert "its VM is off" in replica("list").out
    assert "its VM is off" in replica("show", "vm1").out
    assert replica("show", "vm1", "--json").json["power"] == "off"
    held = open_disk(ready(target), writable=True)  # as its disk server would
    try:
        assert "its VM runs" in replica("list").out
        assert "its VM runs" in replica("show", "vm1").out
        assert replica("list", "--json").json["replicas"][0]["power"] == "running"
        monkeypatch.setattr(FolderHost, "start", lambda self, machine: None)
        assert replica("power", "on", "vm1").out == "vm1: is running already\n"
    finally:
        held.close()
    write_record(
        target / "vm1_replica", PowerRecord(node="another", qemu_pid=1, qemu_started="then")
    )
    assert "nobody says whether its VM runs" in replica("show", "vm1").out
    assert replica("list", "--json").json["replicas"][0]["power"] == "unknown"
    assert all(len(line) <= 80 for line in replica("list").out.splitlines())


def test_a_vm_of_its_own_is_started_and_stopped(
    replica, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica("failover", "vm1", "--yes")
    replica("permanent-failover", "vm1", "--yes")
    toml = target / "vm1_replica" / "vm.toml"
    mine = toml.read_text().replace("processors = 1", "processors = 2")
    toml.write_text(mine)
    began: list[str] = []
    monkeypatch.setattr(FolderHost, "start", lambda self, machine: began.append(machine.folder))
    replica("power", "on", "vm1_replica")
    assert began == ["vm1_replica"]
    assert toml.read_text() == mine
    assert replica("power", "off", "vm1_replica").out == "vm1_replica: is off already\n"


def test_a_permanent_failover_names_what_remains_and_what_may_go(
    run, replica, target: Path, points: list[str]
) -> None:
    replica("failover", "vm1", "--point", points[0], "--yes")
    home = target / "vm1_replica"
    planned = replica("permanent-failover", "vm1", "--dry-run")
    done = replica("permanent-failover", "vm1", "--yes")
    for ended in (planned, done):
        lines = ended.out.splitlines()
        first, second, third = lines[lines.index("what remains:") + 1 :][:3]
        assert str(home) in first
        assert f"disk0/{points[1]}.vhdx" in first
        assert "points/" in first
        assert "base.vhdx" not in first
        assert "ready.vhdx" not in first
        assert "exclude_machines" in second
        assert "replica.json" in second
        assert "digests" in third
    (home / "disk0" / f"{points[1]}.vhdx").unlink()
    (home / "disk1" / f"{points[1]}.vhdx").unlink(missing_ok=True)
    shutil.rmtree(home / "points")
    (home / "replica.json").unlink()
    found = FolderHost("dr", target).machine("vm1")
    assert FolderHost("dr", target).disk_problems(found) == {}
    assert replica("list").err == ""


def test_a_forced_power_off_waits_for_no_guest_and_the_other_says_so(
    replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(
        FolderHost,
        "stop",
        lambda self, machine, *, force=False, timeout_s=60: waits.append(timeout_s),
    )
    replica("failover", "vm1", "--yes")
    monkeypatch.setattr(FolderHost, "seen_power", lambda self, machine: PowerState.RUNNING)
    assert replica("power", "off", "vm1", "--force").err == ""
    assert "60 s" in replica("power", "off", "vm1").err
    assert waits == [0, 60]


def test_a_vm_that_cannot_be_started_is_failed_over_all_the_same(
    replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    ended = replica("failover", "vm1", "--power-on", "--yes", expect=12)
    assert "failed over to " in ended.err
    assert "QEMU" in ended.err
    assert replica("show", "vm1", "--json").json["state"] == "failover"


def test_what_a_first_session_left_that_failed_is_no_replica_to_fail_over_to(
    run, tmp_path: Path
) -> None:
    folder = ReplicaFolder(tmp_path / "vm1_replica")
    folder.create(ReplicaIdentity("test", "prod", "id", "job"), "vm1_replica")
    lines = run("replica", "list", "--target", tmp_path).out
    assert "no restore point yet: no session has ended well" in " ".join(lines.split())


def test_what_a_killed_repair_left_is_ended_by_another_one(run, replicated) -> None:
    """It made a file longer and did not get to record that."""
    points = points_of(replicated.folder / "target")
    layer = replicated.folder / "target" / "vm1_replica" / "disk0" / f"{points[-1]}.vhdx"
    with vhdx.open_vhdx(layer, writable=True, keep_data_write_guid=True) as disk:
        disk.zero(7 * MiB, 4096)
        disk.write(7 * MiB, bytes(4096))
    site = ("--config", replicated.config)
    found = run("replica", "verify", "vm1", *site, expect=13)
    assert "bytes where" in found.out
    assert "try `standby replica verify vm1" in found.err
    assert "--repair" in found.err
    assert run("replica", "verify", "vm1", "--repair", *site).err == ""
    assert run("replica", "verify", "vm1", *site).out.count(": ok") == 2
