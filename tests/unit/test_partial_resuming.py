"""Partial disks resumed: what is kept, found again, refused or discarded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import partials
from partials import (
    LATER,
    POINT,
    SIZE,
    abandoned,
    fields_of,
    noise,
    root_of,
    rows,
    sealed_base,
    send,
    send_changes,
    spec_of,
)
from standby import digesting
from standby.digesting import PAGE, PIECE
from standby.disk.check import check_disk
from standby.disk.vhdx import VhdxDisk
from standby.errors import DiskCorrupt, DiskIO
from standby.files import File
from standby.road.extent_log import KIND_DATA
from standby.road.partial import PartialDisk
from standby.units import MiB


def test_a_resume_keeps_the_point_the_data_and_the_mark(tmp_path: Path) -> None:
    content = noise(5, SIZE)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    send_changes(partial, content, stop=PAGE)
    partial.mark(PAGE)
    partial.group_commit()
    acknowledged = partial.acknowledged_bytes
    send_changes(partial, content, start=PAGE, stop=PAGE + MiB)
    abandoned(partial)
    again = PartialDisk.open(tmp_path, spec_of(SIZE, point=LATER))
    assert again.point_id == POINT
    assert again.resume_mark == PAGE
    assert again.acknowledged_bytes >= acknowledged
    assert np.array_equal(again.baseline.leaves(0), partials.source_leaves(content)[:4096])
    send_changes(again, content)
    sealed = again.seal()
    assert sealed.point_id == POINT
    assert sealed.root == root_of(content)
    assert partials.content_of(sealed.partial_path) == content


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "filled"])
@pytest.mark.parametrize("generation", [1, 2], ids=["continued", "taken over"])
def test_what_a_kill_cut_off_takes_no_space_after_the_resume(
    generation: int, sparse: bool, tmp_path: Path
) -> None:
    """Blocks that were received and not committed lie in the file, and no table entry names
    them: each kill left as much in the restore point, for good."""
    content = noise(5, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE), sparse=sparse)
    send_changes(partial, content, stop=4 * MiB)
    partial.group_commit()
    for _ in range(2):
        send_changes(partial, content, start=4 * MiB, stop=PAGE)
        abandoned(partial)
        partial = PartialDisk.open(tmp_path, spec_of(SIZE, generation=generation), sparse=sparse)
    send_changes(partial, content)
    sealed = partial.seal()
    report = check_disk(sealed.partial_path)
    assert (report.findings, report.notes) == ((), ())
    assert partials.content_of(sealed.partial_path) == content
    assert sealed.root == root_of(content)


def test_another_checkpoint_makes_the_mark_begin_again(tmp_path: Path) -> None:
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    send(partial, noise(6, SIZE), 0, PAGE)
    partial.mark(PAGE)
    partial.group_commit()
    partial.close()
    again = PartialDisk.open(tmp_path, spec_of(SIZE, checkpoint="checkpoint-2"))
    assert (again.resume_mark, again.log.checkpoint_id) == (0, "checkpoint-2")
    again.close()


def test_what_was_written_and_not_logged_is_found_by_the_resume(tmp_path: Path) -> None:
    """The dangerous case: a logged piece is overwritten, the process dies before the log says so,
    and the source then has the first content again."""
    first, second = noise(7, SIZE, 1.0), noise(8, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    send_changes(partial, first)
    partial.mark(SIZE)
    partial.group_commit()
    send(partial, second, 3 * PIECE, 7 * PIECE)
    partial.disk.flush()  # it even reached the disk
    abandoned(partial)
    again = PartialDisk.open(tmp_path, spec_of(SIZE))
    assert again.resume_mark == 3 * PIECE
    assert send_changes(again, first) == [offset * PIECE for offset in range(3, 7)]
    sealed = again.seal()
    assert partials.content_of(sealed.partial_path) == first
    assert sealed.root == root_of(first)


def test_a_reread_covers_only_open_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("standby.road.group_commits.WINDOW", PAGE)
    content = noise(9, 4 * PAGE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(4 * PAGE))
    for start in range(0, 4 * PAGE, PAGE):
        send(partial, content, start, start + PAGE)
        partial.group_commit()
    assert partial.log.open_ranges == [(3 * PAGE, 4 * PAGE)]
    abandoned(partial)
    read: list[int] = []
    plain = VhdxDisk.read_into

    def counted(self: VhdxDisk, offset: int, buffer: memoryview) -> None:
        read.append(offset)
        plain(self, offset, buffer)

    monkeypatch.setattr(VhdxDisk, "read_into", counted)
    again = PartialDisk.open(tmp_path, spec_of(4 * PAGE))
    assert min(read) >= 3 * PAGE
    assert again.log.open_ranges == []
    again.close()


def test_windows_ahead_keep_a_scattered_transfer_from_syncing_for_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.road.group_commits.WINDOW", MiB)
    size = 1024 * MiB
    partial = PartialDisk.open(tmp_path, spec_of(size))
    syncs = []
    plain = File.sync

    def counted(self: File) -> None:
        syncs.append(self.path.suffix)
        plain(self)

    monkeypatch.setattr(File, "sync", counted)
    piece = b"w" * PIECE
    for offset in range(0, size, MiB):
        partial.receive(rows((offset, PIECE, KIND_DATA)), digesting.leaves(piece), piece)
    assert syncs.count(".extents") <= 6 + 1024 // 64
    partial.close()


@pytest.mark.parametrize("what", ["parent", "size", "disk", "log", "file", "damaged"])
def test_a_partial_that_fits_no_longer_is_discarded(tmp_path: Path, what: str) -> None:
    first = sealed_base(tmp_path / "base1", noise(10, SIZE))
    other = sealed_base(tmp_path / "base2", noise(11, SIZE))
    folder = tmp_path / "child"
    partial = PartialDisk.open(folder, spec_of(SIZE, parent=(first,)))
    send(partial, noise(12, SIZE), 0, MiB)
    partial.group_commit()
    partial.close()
    log, path = partial.log.path, partial.path
    spec = spec_of(SIZE, point=LATER, parent=(first,))
    if what == "parent":
        spec = spec_of(SIZE, point=LATER, parent=(other,))
    elif what == "size":
        spec = spec_of(2 * SIZE // 512 * 512, point=LATER)
    elif what == "disk":
        spec = type(spec)(**{**fields_of(spec), "disk_id": "disk7"})
    elif what == "log":
        log.write_bytes(b"")
    elif what == "file":
        path.unlink()
    else:
        path.write_bytes(b"no vhdx at all")
    again = PartialDisk.open(folder, spec)
    assert again.point_id == LATER
    assert again.acknowledged_bytes == 0
    assert not log.exists()
    assert not path.exists()
    again.close()


def test_unknown_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    for name in ("base.vhdx", "ready.vhdx", "notes.txt", f"{POINT}.vhdx", "x.1.partial.vhdx"):
        (tmp_path / name).write_bytes(b"mine")
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    partial.discard()
    assert len(list(tmp_path.iterdir())) == 5


def test_digests_that_are_not_the_parents_are_not_trusted(tmp_path: Path) -> None:
    first = sealed_base(tmp_path / "base1", noise(13, SIZE))
    other = sealed_base(tmp_path / "base2", noise(14, SIZE))
    spec = spec_of(SIZE, parent=(first,))
    wrong = type(spec)(**{**fields_of(spec), "digests": (other.digests_path,)})
    with pytest.raises(DiskCorrupt, match="not those of the restore point"):
        PartialDisk.open(tmp_path / "child", wrong)
    PartialDisk.open(tmp_path / "child", spec).close()


def test_a_failed_log_sync_makes_the_object_refuse_but_the_files_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(15, SIZE)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    send_changes(partial, content, stop=PAGE)

    def failing(self: File) -> None:
        raise DiskIO(str(self.path), "sync", 0, 0, "test")

    with monkeypatch.context() as patch:
        patch.setattr(partial.log._file, "sync", failing.__get__(partial.log._file))
        with pytest.raises(DiskIO, match="test"):
            partial.group_commit()
    for call in (partial.group_commit, lambda: send(partial, content, 0, PIECE), partial.seal):
        with pytest.raises(DiskIO, match="unusable"):
            call()
    partial.close()
    again = PartialDisk.open(tmp_path, spec_of(SIZE))
    send_changes(again, content)
    assert partials.content_of(again.seal().partial_path) == content


def test_a_write_that_failed_is_never_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(28, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    plain = VhdxDisk.write

    def failing(self: VhdxDisk, offset: int, data: memoryview) -> None:
        if offset >= MiB:
            raise DiskIO(str(self.path), "write", offset, len(data), "test")
        plain(self, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(VhdxDisk, "write", failing)
        send(partial, content, 0, MiB)
        with pytest.raises(DiskIO, match="test"):
            send(partial, content, MiB, 2 * MiB)
    with pytest.raises(DiskIO, match="unusable"):
        partial.group_commit()
    partial.close()
    again = PartialDisk.open(tmp_path, spec_of(SIZE))
    assert send_changes(again, content, stop=2 * MiB)[0] == MiB
    again.close()


def test_a_parent_that_cannot_be_read_costs_no_work_done(tmp_path: Path) -> None:
    content = noise(29, SIZE)
    base = sealed_base(tmp_path / "base", content)
    spec = spec_of(SIZE, point=LATER, parent=(base,))
    partial = PartialDisk.open(tmp_path / "child", spec)
    send(partial, noise(30, SIZE, 1.0), 0, MiB)
    partial.group_commit()
    partial.close()
    aside = base.partial_path.rename(tmp_path / "aside")
    with pytest.raises(DiskIO):
        PartialDisk.open(tmp_path / "child", spec)
    aside.rename(base.partial_path)
    again = PartialDisk.open(tmp_path / "child", spec)
    assert again.acknowledged_bytes == MiB
    again.close()
