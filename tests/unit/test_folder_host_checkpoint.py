"""Checkpoints of VMs that are off: clones or identities, what breaks them, what is left of them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import judging
from standby import files
from standby.clock import SYSTEM_CLOCK
from standby.disk import open_disk, vhdx
from standby.errors import ConfigurationError, HostError, MachineRunning, SourceChanged
from standby.host.folder import FolderHost, locks, new_machine, processes
from standby.host.folder.checkpoint import CLONE_PREFIX
from standby.model.machine import Machine
from standby.units import KiB, MiB


def copying(source: Path, target: Path) -> bool:
    """Stands in for a reflink on a file system that has none."""
    shutil.copyfile(source, target)
    return True


@pytest.fixture(params=["clone", "identity"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of checkpoint that the file system allows."""
    chosen = str(request.param)
    monkeypatch.setattr(files, "clone", copying if chosen == "clone" else lambda *_: False)
    return chosen


@pytest.fixture
def no_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without reflinks."""
    monkeypatch.setattr(files, "clone", lambda *_: False)


def chained(root: Path) -> tuple[FolderHost, Machine]:
    """A VM whose disk is a child on a base, and a raw disk."""
    folder = root / "web01"
    folder.mkdir()
    vhdx.create(folder / "base.vhdx", 8 * MiB).close()
    with vhdx.create_child(folder / "child.vhdx", folder / "base.vhdx") as child:
        child.write(0, b"child" + bytes(507))
    (folder / "data.raw").write_bytes(b"raw!" * 128 * KiB)
    disks = {"scsi:0:0": Path("child.vhdx"), "scsi:0:1": Path("data.raw")}
    return FolderHost("prod", root), new_machine(root, "web01", disks)


def clone_folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob(f"*/{CLONE_PREFIX}*"))


def test_files_are_listed_newest_first_relative_to_the_host(tmp_path: Path, kind: str) -> None:
    host, machine = chained(tmp_path)
    checkpoint = host.take_checkpoint(machine, "intent-1")
    assert checkpoint.kind == kind
    first, second = (disk.files for disk in checkpoint.disks)
    if kind == "identity":
        assert first == ("web01/child.vhdx", "web01/base.vhdx")
        assert second == ("web01/data.raw",)
    else:
        folder = f"web01/{CLONE_PREFIX}00000000-intent-1"
        assert first == (f"{folder}/0-child.vhdx", f"{folder}/1-base.vhdx")
        assert second == (f"{folder}/2-data.raw",)
    paths = [tmp_path / file for file in first]
    with_parents = open_disk(paths[0], parents=paths[1:])
    data = bytearray(512)
    with_parents.read_into(0, data)
    with_parents.close()
    assert data[:5] == b"child"
    host.confirm_checkpoint(checkpoint)
    host.release_checkpoint(checkpoint)
    assert clone_folders(tmp_path) == []


def test_clones_and_identities_of_one_state_have_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, machine = chained(tmp_path)
    taken = []
    for clone in (copying, lambda *_: False):
        monkeypatch.setattr(files, "clone", clone)
        taken.append(host.take_checkpoint(machine, "intent"))
        host.release_checkpoint(taken[-1])
    assert [checkpoint.kind for checkpoint in taken] == ["clone", "identity"]
    assert taken[0].id == taken[1].id


def test_the_file_system_decides_between_clones_and_identities(disk_path: Path) -> None:
    host, machine = chained(disk_path)
    (disk_path / "probe").write_bytes(b"x")
    can_clone = files.clone(disk_path / "probe", disk_path / "probe2")
    checkpoint = host.take_checkpoint(machine, "intent")
    assert checkpoint.kind == ("clone" if can_clone else "identity")
    host.confirm_checkpoint(checkpoint)


# --- what changes under it -------------------------------------------------------------------


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4096))


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def write_and_set_time_back(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"RAW?")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def put_another(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.replace(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (grow, "size"),
        (touch, "modification time"),
        (write_and_set_time_back, "change time"),
        (put_another, "inode"),
        (remove, "no longer readable"),
    ],
)
@pytest.mark.usefixtures("no_clones")
def test_a_change_is_named_with_its_file(tmp_path: Path, change: object, word: str) -> None:
    host, machine = chained(tmp_path)
    checkpoint = host.take_checkpoint(machine, "intent")
    assert callable(change)
    change(tmp_path / "web01" / "data.raw")
    with pytest.raises(SourceChanged, match=word) as caught:
        host.confirm_checkpoint(checkpoint)
    assert caught.value.path.endswith("data.raw")


@pytest.mark.usefixtures("no_clones")
def test_a_write_through_vhdx_with_its_times_set_back_is_noticed_by_guid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, machine = chained(tmp_path)
    path = tmp_path / "web01" / "child.vhdx"
    before = path.stat()
    monkeypatch.setattr("standby.host.folder.checkpoint._status", lambda _: before)
    checkpoint = host.take_checkpoint(machine, "intent")
    with open_disk(path, writable=True) as disk:
        disk.write(0, b"other" + bytes(507))
    with pytest.raises(SourceChanged, match="GUID") as caught:
        host.confirm_checkpoint(checkpoint)
    assert caught.value.path.endswith("child.vhdx")


@pytest.mark.usefixtures("no_clones")
def test_a_write_to_the_base_is_noticed_too(tmp_path: Path) -> None:
    host, machine = chained(tmp_path)
    checkpoint = host.take_checkpoint(machine, "intent")
    touch(tmp_path / "web01" / "base.vhdx")
    with pytest.raises(SourceChanged, match=r"base\.vhdx"):
        host.confirm_checkpoint(checkpoint)


@pytest.mark.usefixtures("no_clones")
def test_another_process_confirms_by_the_checkpoint_alone(tmp_path: Path) -> None:
    host, machine = chained(tmp_path)
    checkpoint = host.take_checkpoint(machine, "intent")
    other = FolderHost("prod", tmp_path)
    other.confirm_checkpoint(checkpoint)
    touch(tmp_path / "web01" / "base.vhdx")
    with pytest.raises(SourceChanged):
        other.confirm_checkpoint(checkpoint)


def test_clones_stay_good_while_the_originals_change_and_are_guarded_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "clone", copying)
    host, machine = chained(tmp_path)
    checkpoint = host.take_checkpoint(machine, "intent")
    grow(tmp_path / "web01" / "data.raw")
    host.confirm_checkpoint(checkpoint)
    FolderHost("prod", tmp_path).confirm_checkpoint(checkpoint)
    grow(tmp_path / checkpoint.disks[1].files[0])
    for one in (host, FolderHost("prod", tmp_path)):
        with pytest.raises(SourceChanged, match="size"):
            one.confirm_checkpoint(checkpoint)


def test_a_file_that_changes_while_it_is_cloned_gives_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, machine = chained(tmp_path)

    def racing(source: Path, target: Path) -> bool:
        copying(source, target)
        touch(tmp_path / "web01" / "data.raw")
        return True

    monkeypatch.setattr(files, "clone", racing)
    with pytest.raises(SourceChanged, match="modification time"):
        host.take_checkpoint(machine, "intent")
    assert clone_folders(tmp_path) == []
    monkeypatch.setattr(files, "clone", copying)
    host.release_checkpoint(host.take_checkpoint(machine, "intent"))


def test_a_file_system_that_clones_some_files_only_falls_back_to_identities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, machine = chained(tmp_path)
    monkeypatch.setattr(
        files, "clone", lambda old, new: old.suffix == ".vhdx" and copying(old, new)
    )
    checkpoint = host.take_checkpoint(machine, "intent")
    assert checkpoint.kind == "identity"
    assert clone_folders(tmp_path) == []


def synced_folders(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that are synced from now on, in order."""
    synced: list[Path] = []
    plain = files.sync_folder

    def sync_folder(folder: Path) -> None:
        synced.append(folder)
        plain(folder)

    for owner in (files, files.durability):
        monkeypatch.setattr(owner, "sync_folder", sync_folder)
    return synced


@pytest.mark.usefixtures("no_clones")
def test_where_nothing_can_be_cloned_a_checkpoint_waits_for_no_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, machine = chained(tmp_path)
    synced = synced_folders(monkeypatch)
    host.release_checkpoint(host.take_checkpoint(machine, "intent"))
    assert synced == []


def test_clones_and_their_folder_are_stable_when_the_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "clone", copying)
    host, machine = chained(tmp_path)
    synced = synced_folders(monkeypatch)
    checkpoint = host.take_checkpoint(machine, "intent")
    clones = tmp_path / Path(checkpoint.disks[0].files[0]).parent
    assert synced.index(clones) < synced.index(clones.parent)


# --- locks -----------------------------------------------------------------------------------


@pytest.fixture
def hold_open() -> Iterator[Callable[..., None]]:
    """hold_open(path, *options): a qemu-nbd that has `path` open until the test ends."""
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        pid_files: list[Path] = []

        def hold(path: Path, *options: str) -> None:
            tool = judging.require_tool("qemu-nbd")
            pid_files.append(Path(name) / f"{len(pid_files)}.pid")
            socket_path = Path(name) / f"{len(pid_files)}.socket"
            # --fork: it returns when the file is open
            where = (f"--socket={socket_path}", f"--pid-file={pid_files[-1]}")
            judging.run(tool, "--fork", "--persistent", *where, *options, path)

        yield hold
        for pid_file in pid_files:
            pid = int(pid_file.read_text())
            assert processes.end(pid, processes.started(pid), SYSTEM_CLOCK, grace_s=30)


@pytest.mark.judge
def test_a_qemu_that_writes_is_noticed_at_every_file_of_the_chain(
    tmp_path: Path, hold_open: Callable[..., None], kind: str
) -> None:
    host, machine = chained(tmp_path)
    path = tmp_path / "web01" / "base.vhdx"
    assert not locks.qemu_writer(path)
    hold_open(path, "--format=vhdx")
    assert locks.qemu_writer(path)
    with pytest.raises(MachineRunning, match=r"base\.vhdx"):
        host.take_checkpoint(machine, "intent")


@pytest.mark.judge
def test_a_qemu_that_only_reads_does_no_harm(
    tmp_path: Path, hold_open: Callable[..., None], kind: str
) -> None:
    host, machine = chained(tmp_path)
    hold_open(tmp_path / "web01" / "data.raw", "--read-only", "--format=raw")
    host.confirm_checkpoint(host.take_checkpoint(machine, "intent"))


@pytest.mark.judge
@pytest.mark.usefixtures("no_clones")
def test_a_qemu_that_begins_to_write_under_the_checkpoint_is_noticed(
    tmp_path: Path, hold_open: Callable[..., None]
) -> None:
    host, machine = chained(tmp_path)
    checkpoint = host.take_checkpoint(machine, "intent")
    hold_open(tmp_path / "web01" / "data.raw", "--format=raw")
    with pytest.raises(SourceChanged, match="open for writing"):
        host.confirm_checkpoint(checkpoint)


@pytest.mark.judge
def test_a_machine_that_a_foreign_qemu_runs_counts_as_running(
    tmp_path: Path, hold_open: Callable[..., None]
) -> None:
    host, machine = chained(tmp_path)
    hold_open(tmp_path / "web01" / "data.raw", "--format=raw")
    assert host.power_state(machine).value == "running"


def test_a_disk_that_we_write_ourselves_is_noticed(tmp_path: Path, kind: str) -> None:
    host, machine = chained(tmp_path)
    with vhdx.open_vhdx(tmp_path / "web01" / "base.vhdx", writable=True):
        with pytest.raises(MachineRunning, match=r"base\.vhdx"):
            host.take_checkpoint(machine, "intent")
    with open_disk(tmp_path / "web01" / "child.vhdx", writable=True):
        assert host.power_state(machine).value == "running"
    assert host.power_state(machine).value == "off"


@pytest.mark.usefixtures("no_clones")
def test_an_identity_checkpoint_keeps_our_power_on_away_until_its_release(tmp_path: Path) -> None:
    judging.require_tool("qemu-system-x86_64")
    host, machine = chained(tmp_path)
    checkpoint = host.take_checkpoint(machine, "intent")
    other = FolderHost("prod", tmp_path)
    assert locks.has_checkpoint(tmp_path / "web01")
    with pytest.raises(HostError, match="checkpoint"):
        other.start(machine)
    host.release_checkpoint(checkpoint)
    assert not locks.has_checkpoint(tmp_path / "web01")


@pytest.mark.usefixtures("no_clones")
def test_63_checkpoints_are_enough(tmp_path: Path) -> None:
    host = FolderHost("prod", tmp_path)
    machine = new_machine(tmp_path, "web01", {})
    taken = [host.take_checkpoint(machine, f"i{number}") for number in range(63)]
    with pytest.raises(HostError, match="63"):
        host.take_checkpoint(machine, "one more")
    host.release_checkpoint(taken[7])
    host.take_checkpoint(machine, "one more")


# --- what dead processes leave ---------------------------------------------------------------


def take_and_die(root: Path, state: Path | None) -> None:
    """The body of a process that takes a checkpoint by cloning and is killed."""
    files.clone = copying
    host = FolderHost("prod", root, state)
    host.take_checkpoint(host.machine("web01"), "dead")
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_another_process(root: Path, state: Path | None = None) -> None:
    process = multiprocessing.get_context("spawn").Process(target=take_and_die, args=(root, state))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL


def test_clones_of_a_killed_process_are_released_those_of_a_live_one_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "clone", copying)
    host, machine = chained(tmp_path)
    alive = host.take_checkpoint(machine, "alive")
    die_in_another_process(tmp_path)
    assert len(clone_folders(tmp_path)) == 2
    other = FolderHost("prod", tmp_path)
    assert other.release_leftovers() == [f"web01/{CLONE_PREFIX}00000000-dead"]
    assert other.release_leftovers() == []
    host.confirm_checkpoint(alive)
    other.release_checkpoint(alive)
    host.confirm_checkpoint(alive)
    host.release_checkpoint(alive)
    assert clone_folders(tmp_path) == []


def test_clones_of_another_installation_are_nobodys_but_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "clone", copying)
    root = tmp_path / "host"
    root.mkdir()
    chained(root)
    die_in_another_process(root, tmp_path / "theirs")
    assert FolderHost("prod", root, tmp_path / "ours").release_leftovers() == []
    assert FolderHost("prod", root).release_leftovers() == []
    assert len(clone_folders(root)) == 1
    assert len(FolderHost("prod", root, tmp_path / "theirs").release_leftovers()) == 1
    assert clone_folders(root) == []


def test_the_lock_of_an_identity_checkpoint_dies_with_its_process(tmp_path: Path) -> None:
    chained(tmp_path)
    process = multiprocessing.get_context("spawn").Process(
        target=_take_without_clones_and_die, args=(tmp_path,)
    )
    process.start()
    process.join(timeout=60)
    assert not locks.has_checkpoint(tmp_path / "web01")


def _take_without_clones_and_die(root: Path) -> None:
    files.clone = lambda *_: False
    host = FolderHost("prod", root)
    host.take_checkpoint(host.machine("web01"), "dead")
    assert locks.has_checkpoint(root / "web01")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_processs_clone_folder_of_the_same_intent_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "clone", copying)
    host, machine = chained(tmp_path)
    die_in_another_process(tmp_path)
    checkpoint = host.take_checkpoint(machine, "dead")
    host.confirm_checkpoint(checkpoint)
    with pytest.raises(HostError, match="in use"):
        FolderHost("prod", tmp_path).take_checkpoint(machine, "dead")
    host.confirm_checkpoint(checkpoint)


def test_strange_intents_make_plain_folder_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "clone", copying)
    host, machine = chained(tmp_path)
    for intent in ("../../x", "", "a" * 300, "ü"):
        host.take_checkpoint(machine, intent)
    assert len(clone_folders(tmp_path)) == 4
    assert not (tmp_path.parent / "x").exists()


def test_a_checkpoint_that_names_files_outside_is_refused(tmp_path: Path) -> None:
    host, machine = chained(tmp_path)
    checkpoint = host.take_checkpoint(machine, "intent")
    disk = replace(checkpoint.disks[0], files=("../x",))
    forged = replace(checkpoint, kind="clone", disks=(disk,))
    with pytest.raises(ConfigurationError, match=r"\.\."):
        host.release_checkpoint(forged)
