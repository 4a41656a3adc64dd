"""What a user may do to a replica by mistake: refused, or noticed by name."""

from __future__ import annotations

import json
from pathlib import Path

from simulation.site import Site
from standby.disk import open_disk
from standby.units import MiB


def made(tmp_path: Path) -> Site:
    site = Site(tmp_path / "site")
    site.add_machine(sizes=(8 * MiB,))
    site.write(0, MiB)
    assert site.run().outcome == "done"
    site.write(4096, 4096)
    assert site.run().outcome == "done"
    return site


def test_disk_commands_leave_a_replicas_files_alone(tmp_path: Path) -> None:
    site = made(tmp_path)
    disk = site.replica().path / "disk0"
    before = {path.name: path.stat().st_mtime_ns for path in disk.iterdir()}
    merged = site.plain("disk", "merge", str(disk / "ready.vhdx"), "--yes")
    assert merged.returncode == 10
    assert "belongs to the replica" in merged.stderr
    ready, base = str(disk / "ready.vhdx"), str(disk / "base.vhdx")
    replaced = site.plain("disk", "convert", "--format", "raw", "--replace", ready, base)
    assert replaced.returncode == 10
    assert {path.name: path.stat().st_mtime_ns for path in disk.iterdir()} == before
    site.check_points()


def test_a_conversion_never_replaces_a_file_its_source_stands_on(tmp_path: Path) -> None:
    site = made(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (site.replica().path / "disk0").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    ready, base = str(copy / "ready.vhdx"), str(copy / "base.vhdx")
    done = site.plain("disk", "convert", "--format", "raw", "--replace", ready, base)
    assert done.returncode == 10
    assert "stands on this file" in done.stderr
    open_disk(copy / "ready.vhdx").close()


def test_verify_tells_a_file_that_is_not_the_one_committed(tmp_path: Path) -> None:
    site = made(tmp_path)
    base = site.replica().path / "disk0" / "base.vhdx"
    with base.open("ab") as file:
        file.write(bytes(MiB))
    done = site.command("replica", "verify", "vm1_replica", "--json")
    assert done.returncode == 13, done.stdout
    assert "were left" in done.stdout


def test_a_damaged_replica_record_is_named_and_nothing_is_sent_again(tmp_path: Path) -> None:
    site = made(tmp_path)
    record = site.replica().record_path
    record.write_bytes(record.read_bytes()[:100])
    done = site.command("job", "start", "job", "--json", "--accept-loss")
    assert done.returncode == 16
    assert "replica.json" in json.loads(done.stdout)["machines"][0]["error"]
    assert [path.name for path in (site.folder / "target").iterdir()] == ["vm1_replica"]
