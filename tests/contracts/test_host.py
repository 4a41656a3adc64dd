"""What `ports.Host` promises, asked of every host that can be made here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from standby.disk import open_disk
from standby.errors import SourceChanged
from standby.host.folder import FolderHost, new_machine
from standby.host.memory import MemoryHost
from standby.model.extent import Extent
from standby.model.machine import Checkpoint, Machine, PowerState
from standby.ports import Host
from standby.units import KiB, MiB

DISKS = {"scsi:0:0": 8 * MiB, "ide:0:1": 4 * MiB}


@dataclass
class Setting:
    """A host, how a guest writes to its VM's disks, and how to read a checkpoint."""

    host: Any
    add: Callable[..., Machine]
    write: Callable[[Machine, str, int, bytes], None]
    opened: Callable[[Checkpoint, str], Any]

    def content(self, checkpoint: Checkpoint, place: str) -> bytes:
        disk = self.opened(checkpoint, place)
        data = bytearray(disk.virtual_size)
        disk.read_into(0, data)
        disk.close()
        return bytes(data)


def folder_setting(tmp_path: Path) -> Setting:
    def write(machine: Machine, place: str, offset: int, data: bytes) -> None:
        (file,) = (disk.file for disk in machine.disks if disk.place == place)
        disk = open_disk(tmp_path / machine.folder / file, writable=True)
        disk.write(offset, data)
        disk.close()

    def add(name: str, disks: dict[str, int] = DISKS) -> Machine:
        return new_machine(tmp_path, name, disks)

    def opened(checkpoint: Checkpoint, place: str) -> Any:  # as source proxies do
        (found,) = (disk for disk in checkpoint.disks if disk.place == place)
        paths = [tmp_path / file for file in found.files]
        return open_disk(paths[0], parents=paths[1:])

    return Setting(FolderHost("prod", tmp_path), add, write, opened)


def memory_setting(tmp_path: Path) -> Setting:
    host = MemoryHost("prod")
    return Setting(
        host,
        lambda name, disks=DISKS: host.add_machine(name, disks),
        lambda machine, place, offset, data: host.disk(machine, place).write(offset, data),
        host.open_checkpoint,
    )


@pytest.fixture(params=[folder_setting, memory_setting], ids=["folder", "memory"])
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> Setting:
    """One host with nothing on it."""
    found = request.param(tmp_path)
    assert isinstance(found, Setting)
    return found


def test_is_a_host(setting: Setting) -> None:
    host: Host = setting.host
    assert host.name == "prod"


def test_lists_machines_in_order_of_name(setting: Setting) -> None:
    made = [setting.add(name) for name in ("web02", "db01", "web01")]
    found = setting.host.machines()
    assert [machine.name for machine in found] == ["db01", "web01", "web02"]
    assert {machine.id for machine in found} == {machine.id for machine in made}


def test_says_size_place_and_identity_of_every_disk(setting: Setting) -> None:
    setting.add("web01")
    (machine,) = setting.host.machines()
    assert {disk.place: disk.virtual_size for disk in machine.disks} == DISKS
    assert len({disk.host_id for disk in machine.disks}) == len(DISKS)
    assert all(disk.host_id and disk.file for disk in machine.disks)


def test_a_new_machine_is_off(setting: Setting) -> None:
    assert setting.host.power_state(setting.add("web01")) is PowerState.OFF


def test_a_checkpoint_holds_the_content_of_its_time(setting: Setting) -> None:
    machine = setting.add("web01")
    setting.write(machine, "scsi:0:0", 1 * MiB, b"first" * 1024 + bytes(3 * KiB))
    checkpoint = setting.host.take_checkpoint(machine, "intent-1")
    assert checkpoint.machine_id == machine.id
    assert checkpoint.consistency == "offline"
    assert {disk.place: disk.virtual_size for disk in checkpoint.disks} == DISKS
    content = setting.content(checkpoint, "scsi:0:0")
    assert content[1 * MiB : 1 * MiB + 10] == b"firstfirst"
    assert not any(content[: 1 * MiB])
    assert not any(setting.content(checkpoint, "ide:0:1"))
    setting.host.confirm_checkpoint(checkpoint)
    setting.host.release_checkpoint(checkpoint)


def test_checkpoints_of_an_unchanged_machine_have_one_id(setting: Setting) -> None:
    machine = setting.add("web01")
    setting.write(machine, "scsi:0:0", 0, b"x" * 4096)
    first = setting.host.take_checkpoint(machine, "intent-1")
    setting.host.release_checkpoint(first)
    second = setting.host.take_checkpoint(machine, "intent-2")
    setting.host.release_checkpoint(second)
    assert first.id == second.id
    assert [d.identity for d in first.disks] == [d.identity for d in second.disks]


def test_checkpoints_of_two_machines_have_different_ids(setting: Setting) -> None:
    first = setting.host.take_checkpoint(setting.add("web01"), "intent-1")
    second = setting.host.take_checkpoint(setting.add("web02"), "intent-2")
    assert first.id != second.id


def test_a_write_changes_the_next_checkpoints_id_and_only_that_disks_identity(
    setting: Setting,
) -> None:
    machine = setting.add("web01")
    first = setting.host.take_checkpoint(machine, "intent-1")
    setting.host.release_checkpoint(first)
    setting.write(machine, "ide:0:1", 0, b"x" * 512)
    second = setting.host.take_checkpoint(machine, "intent-2")
    assert first.id != second.id
    before = {disk.place: disk.identity for disk in first.disks}
    after = {disk.place: disk.identity for disk in second.disks}
    assert before["scsi:0:0"] == after["scsi:0:0"]
    assert before["ide:0:1"] != after["ide:0:1"]


def test_two_checkpoints_may_stand_and_are_released_apart(setting: Setting) -> None:
    machine = setting.add("web01")
    first = setting.host.take_checkpoint(machine, "intent-1")
    second = setting.host.take_checkpoint(machine, "intent-2")
    setting.host.release_checkpoint(first)
    setting.host.confirm_checkpoint(second)
    assert not any(setting.content(second, "ide:0:1"))
    setting.host.release_checkpoint(second)


def test_releasing_twice_is_harmless(setting: Setting) -> None:
    machine = setting.add("web01")
    checkpoint = setting.host.take_checkpoint(machine, "intent-1")
    first = setting.host.release_checkpoint(checkpoint)
    assert setting.host.release_checkpoint(checkpoint) == first


def test_nothing_is_left_over_by_a_living_process(setting: Setting) -> None:
    checkpoint = setting.host.take_checkpoint(setting.add("web01"), "intent-1")
    assert setting.host.release_leftovers() == []
    setting.host.confirm_checkpoint(checkpoint)


def test_a_machine_without_disks_has_checkpoints_too(setting: Setting) -> None:
    checkpoint = setting.host.take_checkpoint(setting.add("empty", {}), "intent-1")
    assert checkpoint.disks == ()
    setting.host.confirm_checkpoint(checkpoint)
    setting.host.release_checkpoint(checkpoint)


def test_tracked_changes_cover_every_write_or_say_why_not(setting: Setting) -> None:
    machine = setting.add("web01")
    ids = setting.host.release_checkpoint(setting.host.take_checkpoint(machine, "intent-1"))
    written = [Extent(64 * KiB, 4096), Extent(3 * MiB, 512), Extent(8 * MiB - 512, 512)]
    for extent in written:
        setting.write(machine, "scsi:0:0", extent.offset, b"y" * extent.length)
    checkpoint = setting.host.take_checkpoint(machine, "intent-2")
    answer = setting.host.changes_since(machine, "scsi:0:0", ids.get("scsi:0:0", ""), checkpoint)
    if answer.ranges is None:
        assert answer.reason
        return
    assert answer.reason == ""
    for extent in written:
        assert any(
            found.offset <= extent.offset and extent.stop <= found.stop for found in answer.ranges
        )
    setting.host.forget_tracker(machine, list(ids.values()))
    setting.host.forget_tracker(machine, ["never known"])
    gone = setting.host.changes_since(machine, "scsi:0:0", ids["scsi:0:0"], checkpoint)
    assert gone.ranges is None
    assert ids["scsi:0:0"] in gone.reason


def test_an_unknown_tracker_id_is_no_answer(setting: Setting) -> None:
    machine = setting.add("web01")
    checkpoint = setting.host.take_checkpoint(machine, "intent-1")
    answer = setting.host.changes_since(machine, "scsi:0:0", "someone else's", checkpoint)
    assert answer.ranges is None
    assert answer.reason


def test_a_change_under_the_checkpoint_is_told_or_cannot_happen(setting: Setting) -> None:
    machine = setting.add("web01")
    checkpoint = setting.host.take_checkpoint(machine, "intent-1")
    setting.write(machine, "scsi:0:0", 0, b"z" * 512)
    if checkpoint.kind == "identity":
        with pytest.raises(SourceChanged, match="web01"):
            setting.host.confirm_checkpoint(checkpoint)
    else:
        setting.host.confirm_checkpoint(checkpoint)
        assert setting.content(checkpoint, "scsi:0:0")[:512] == bytes(512)
