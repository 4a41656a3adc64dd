"""Partial disks: what is received, acknowledged, resumed, copied, proven and sealed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import partials
from partials import LATER, POINT, noise, rows, send, send_changes, spec_of
from standby import digesting
from standby.clock import Clock
from standby.digesting import PAGE, PIECE, DigestChain, DigestFile
from standby.disk import open_disk, vhdx
from standby.disk.check import check_disk
from standby.disk.vhdx import VhdxDisk
from standby.errors import DiskCorrupt, DiskIO, Fenced, ProtocolError
from standby.files import File
from standby.road.extent_log import KIND_DATA, KIND_ZERO, ExtentLog
from standby.road.partial import PartialDisk
from standby.units import MiB

SIZE = 2 * PAGE + 3 * MiB + 512


def root_of(content: bytes | bytearray) -> bytes:
    """The digest root, computed from all leaves."""
    leaves = partials.source_leaves(content).reshape(-1, digesting.LEAVES_PER_PAGE)
    nodes = digesting.page_nodes(leaves)
    kept = [index for index in range(len(leaves)) if (leaves[index] != digesting.ZERO_LEAF).any()]
    return digesting.root_of_pages(len(content), np.array(kept, dtype=np.int64), nodes[kept])


def sealed_base(folder: Path, content: bytearray):
    partial = PartialDisk.open(folder, spec_of(len(content)))
    send_changes(partial, content)
    return partial.seal()


def test_a_base_holds_exactly_what_was_sent_and_its_digests_are_complete(tmp_path: Path) -> None:
    content = noise(1, SIZE)
    sealed = sealed_base(tmp_path, content)
    assert sealed.root == root_of(content)
    assert partials.content_of(sealed.partial_path) == content
    assert check_disk(sealed.partial_path).is_ok
    info = vhdx.read_info(sealed.partial_path)
    assert sealed.size == sealed.partial_path.stat().st_size
    assert (sealed.data_write_guid, info.log_is_dirty) == (info.data_write_guid, False)
    assert info.page83 == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    with DigestFile.open(sealed.digests_path) as digests:
        assert digests.is_complete
        assert digests.root == sealed.root


def test_a_child_carries_only_changes_and_digests_of_differing_pages(tmp_path: Path) -> None:
    content = noise(2, SIZE)
    base = sealed_base(tmp_path / "base", content)
    changed = bytearray(content)
    changed[5 * PIECE : 6 * PIECE] = b"x" * PIECE
    changed[PAGE : 2 * PAGE] = bytes(PAGE)
    changed[-512:] = b"y" * 512
    spec = spec_of(SIZE, point=LATER, parent=(base,))
    partial = PartialDisk.open(tmp_path / "child", spec)
    sent = send_changes(partial, changed)
    assert sent[0] == 5 * PIECE
    # A piece that is sent although it is equal changes nothing in the digests.
    send(partial, changed, 2 * PAGE, 2 * PAGE + PIECE)
    sealed = partial.seal()
    assert sealed.root == root_of(changed)
    assert partials.content_of(sealed.partial_path, base.partial_path) == changed
    assert check_disk(sealed.partial_path, parents=[base.partial_path]).is_ok
    with DigestFile.open(sealed.digests_path) as digests:
        assert not digests.is_complete
        assert digests.page_numbers.tolist() == [0, 1, 2]
        assert (digests.leaves(1) == digesting.ZERO_LEAF).all()
    with DigestChain([sealed.digests_path, base.digests_path]) as chain:
        assert chain.root(SIZE) == sealed.root


def test_a_child_that_received_nothing_has_its_parents_root(tmp_path: Path) -> None:
    base = sealed_base(tmp_path / "base", noise(3, SIZE))
    partial = PartialDisk.open(tmp_path / "child", spec_of(SIZE, point=LATER, parent=(base,)))
    sealed = partial.seal()
    assert sealed.root == base.root
    with DigestFile.open(sealed.digests_path) as digests:
        assert len(digests.page_numbers) == 0


def test_the_baseline_is_the_parent_under_what_is_acknowledged(tmp_path: Path) -> None:
    content = noise(4, SIZE)
    base = sealed_base(tmp_path / "base", content)
    partial = PartialDisk.open(tmp_path / "child", spec_of(SIZE, point=LATER, parent=(base,)))
    before = partial.baseline.leaves(0)
    assert np.array_equal(before, partials.source_leaves(content)[:4096])
    content[:PIECE] = b"z" * PIECE
    send(partial, content, 0, PIECE)
    assert np.array_equal(partial.baseline.leaves(0), before)  # not acknowledged yet
    partial.receive(rows((PAGE, PAGE, KIND_ZERO)), np.empty(0, np.uint64), b"")
    assert partial.group_commit() == PIECE + PAGE
    content[PAGE : 2 * PAGE] = bytes(PAGE)
    assert np.array_equal(partial.baseline.leaves(0), partials.source_leaves(content)[:4096])
    numbers, nodes = partial.baseline.index()
    assert numbers.tolist() == [0, 2]
    assert len(nodes) == 2
    assert partial.baseline.root(SIZE) == partial.root() == root_of(content)
    assert partial.touched_pages().tolist() == [0, 1]
    partial.close()


def test_batches_that_cannot_be_are_refused(tmp_path: Path) -> None:
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    leaf = np.zeros(1, dtype=np.uint64)
    for table, leaves, payload in (
        (rows((0, PIECE, KIND_DATA)), leaf, bytes(PIECE - 1)),
        (rows((0, PIECE, KIND_DATA)), leaf[:0], bytes(PIECE)),
        (rows((0, PIECE, KIND_ZERO)), leaf[:0], bytes(PIECE)),
        (rows((SIZE, PIECE, KIND_DATA)), leaf, bytes(PIECE)),
        (rows((512, PIECE, KIND_DATA)), leaf, bytes(PIECE)),
    ):
        with pytest.raises(ProtocolError):
            partial.receive(table, leaves, payload)
    assert partial.group_commit() == 0
    partial.receive(rows(), leaf[:0], b"")
    assert partial.group_commit() == 0
    partial.discard()
    assert list(tmp_path.iterdir()) == []


def test_buffers_may_be_reused_after_receive(tmp_path: Path) -> None:
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    payload = bytearray(b"a" * PIECE)
    leaves = digesting.leaves(payload).copy()
    table = rows((0, PIECE, KIND_DATA))
    partial.receive(table, leaves, memoryview(payload))
    payload[:] = bytes(PIECE)
    leaves[0] = 0
    table[0, 0] = PAGE
    partial.group_commit()
    assert partial.read_back() == []
    assert partial.baseline.leaves(0)[0] == digesting.leaves(b"a" * PIECE)[0]
    partial.close()


class HeldClock(Clock):
    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


def test_a_commit_is_due_after_five_seconds_or_256_mib(tmp_path: Path) -> None:
    clock = HeldClock()
    partial = PartialDisk.open(tmp_path, spec_of(1 << 30), clock=clock)
    clock.seconds += 60
    assert not partial.should_commit()  # nothing is waiting
    clock.seconds -= 60
    partial.receive(rows((0, PIECE, KIND_DATA)), digesting.leaves(b"q" * PIECE), b"q" * PIECE)
    assert not partial.should_commit()
    clock.seconds += 5
    assert partial.should_commit()
    partial.group_commit()
    assert not partial.should_commit()
    partial.receive(rows((PAGE, 256 * MiB, KIND_ZERO)), np.empty(0, np.uint64), b"")
    assert partial.should_commit()
    partial.close()


# --- resuming ----------------------------------------------------------------------------------


def abandoned(partial: PartialDisk) -> None:
    """Leave the files as a killed process does: nothing flushed, nothing closed clean."""
    disk: VhdxDisk | None = partial.disk
    while disk is not None:
        if disk._lock is not None:
            disk._lock.release()
        disk._image.file.close()
        below = disk.parent
        disk = below if isinstance(below, VhdxDisk) else None
    partial.baseline.close()
    partial.log.close()


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


def fields_of(spec: object) -> dict:
    return {name: getattr(spec, name) for name in type(spec).__slots__}


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


# --- older generations -------------------------------------------------------------------------


def interrupted(folder: Path, content: bytearray, stop: int) -> PartialDisk:
    """A writer of generation 1 that is stopped, not dead: its files stay open."""
    partial = PartialDisk.open(folder, spec_of(len(content)))
    send_changes(partial, content, stop=stop)
    partial.mark(stop)
    partial.group_commit()
    return partial


def test_an_older_generation_is_copied_not_continued(tmp_path: Path) -> None:
    content = noise(16, SIZE)
    old = interrupted(tmp_path, content, PAGE + MiB)
    before = old.path.read_bytes()
    reports: list[tuple[int, int]] = []
    new = PartialDisk.open(
        tmp_path,
        spec_of(SIZE, point=LATER, generation=2),
        progress=lambda done, total: reports.append((done, total)),
    )
    assert (new.point_id, new.log.header.generation) == (POINT, 2)
    assert new.resume_mark == PAGE + MiB
    assert send_changes(new, content, stop=PAGE + MiB) == []
    assert not old.path.exists()
    assert old.disk.file.read(0, len(before)) == before  # nothing was written to it
    send_changes(new, content)
    assert partials.content_of(new.seal().partial_path) == content
    abandoned(old)


def test_pieces_of_an_older_generation_that_do_not_match_are_dropped(tmp_path: Path) -> None:
    content = noise(17, SIZE, 1.0)
    old = interrupted(tmp_path, content, 2 * PAGE)
    old.disk.write(PAGE + 5 * PIECE, b"!" * (2 * PIECE))  # it went on after its last commit
    old.disk.flush()
    new = PartialDisk.open(tmp_path, spec_of(SIZE, generation=2))
    assert new.resume_mark == PAGE + 5 * PIECE
    assert send_changes(new, content, stop=2 * PAGE) == [PAGE + 5 * PIECE, PAGE + 6 * PIECE]
    send_changes(new, content)
    assert partials.content_of(new.seal().partial_path) == content
    abandoned(old)


def test_an_older_generation_whose_file_is_unreadable_is_only_dropped(tmp_path: Path) -> None:
    content = noise(18, SIZE)
    old = interrupted(tmp_path, content, PAGE)
    path = old.path
    abandoned(old)
    with File(path, writable=True) as file:
        file.write(bytes(1 * MiB), 0)
    new = PartialDisk.open(tmp_path, spec_of(SIZE, generation=2))
    assert new.resume_mark == 0 or send_changes(new, content, stop=new.resume_mark) == []
    send_changes(new, content)
    assert partials.content_of(new.seal().partial_path) == content


def test_a_copy_that_is_cut_off_goes_on_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.road.group_commits.COMMIT_BYTES", 4 * MiB)
    content = noise(19, SIZE, 0.9)
    old = interrupted(tmp_path, content, SIZE)
    abandoned(old)
    spec = spec_of(SIZE, generation=2)
    calls = 0
    plain = PartialDisk.receive

    def failing(self: PartialDisk, *arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt
        plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PartialDisk, "receive", failing)
        with pytest.raises(KeyboardInterrupt):
            PartialDisk.open(tmp_path, spec)
    assert old.path.exists()
    new = PartialDisk.open(tmp_path, spec)
    assert not old.path.exists()
    assert send_changes(new, content) == []
    assert partials.content_of(new.seal().partial_path) == content


def test_a_clone_is_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system clones, nothing in the clone is believed unread."""

    def plain_copy(source: Path, target: Path) -> bool:
        target.write_bytes(source.read_bytes())
        return True

    monkeypatch.setattr("standby.files.clone", plain_copy)
    content = noise(20, SIZE, 1.0)
    old = interrupted(tmp_path, content, 2 * PAGE)
    old.disk.write(7 * PIECE, b"?" * PIECE)
    old.disk.write(2 * PAGE + MiB, b"later" + bytes(PIECE - 5))
    old.disk.flush()
    new = PartialDisk.open(tmp_path, spec_of(SIZE, generation=2))
    assert new.log.open_ranges == []
    # The overwritten piece is as the log says again: copied from nowhere, so sent once more.
    assert 7 * PIECE in send_changes(new, content)
    assert partials.content_of(new.seal().partial_path) == content
    abandoned(old)


def test_a_newer_generation_fences(tmp_path: Path) -> None:
    PartialDisk.open(tmp_path, spec_of(SIZE, generation=3)).close()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Fenced):
        PartialDisk.open(tmp_path, spec_of(SIZE, generation=2))
    assert sorted(tmp_path.iterdir()) == before


# --- new chains --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE - PAGE - 512 * 3, SIZE, SIZE + PAGE])
def test_a_new_chain_starts_from_what_the_target_holds(tmp_path: Path, size: int) -> None:
    content = noise(21, SIZE)
    base = sealed_base(tmp_path / "old", content)
    changed = bytearray(content)
    changed[3 * PIECE : 4 * PIECE] = b"c" * PIECE
    child = PartialDisk.open(tmp_path / "old2", spec_of(SIZE, point=LATER, parent=(base,)))
    send_changes(child, changed)
    upper = child.seal()
    spec = spec_of(size, copy_from=(upper.partial_path, base.partial_path))
    partial = PartialDisk.open(tmp_path / "new", spec)
    expected = bytearray(size)
    expected[: min(size, SIZE)] = changed[: min(size, SIZE)]
    assert partial.root() == root_of(expected)
    assert partial.resume_mark == 0
    sealed = partial.seal()
    assert partials.content_of(sealed.partial_path) == expected


def test_a_raw_seed_is_a_start_too_and_the_copy_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.road.group_commits.COMMIT_BYTES", 2 * MiB)
    content = noise(22, SIZE, 0.9)
    seed = tmp_path / "seed.raw"
    seed.write_bytes(content)
    spec = spec_of(SIZE, copy_from=(seed,))
    commits = 0
    plain = PartialDisk.group_commit

    def dying(self: PartialDisk) -> int:
        nonlocal commits
        commits += 1
        if commits == 3:
            raise KeyboardInterrupt
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(PartialDisk, "group_commit", dying)
        with pytest.raises(KeyboardInterrupt):
            PartialDisk.open(tmp_path / "new", spec)
    partial = PartialDisk.open(tmp_path / "new", spec)
    assert send_changes(partial, content) == []
    assert partial.root() == root_of(content)
    # A second resume copies nothing again, even from another seed.
    partial.close()
    seed.write_bytes(bytes(SIZE))
    again = PartialDisk.open(tmp_path / "new", spec)
    assert again.root() == root_of(content)
    again.close()


# --- reading back ------------------------------------------------------------------------------


def damaged(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of a disk below everything that knows about it."""
    disk = open_disk(path)
    (place,) = [row[2] for row in disk.mapped(offset, offset + 512).tolist()]
    disk.close()
    with File(path, writable=True) as file:
        file.write(data, place)


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_read_back_finds_what_is_not_as_sent(tmp_path: Path, threads: int, device: bool) -> None:
    content = noise(23, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    send_changes(partial, content, stop=PAGE + MiB)
    partial.mark(PAGE + MiB)
    partial.group_commit()
    assert partial.read_back(threads, device) == []
    assert partial.read_back(threads, device) == []  # nothing new to read
    send_changes(partial, content, start=PAGE + MiB)
    partial.group_commit()
    damaged(partial.path, PAGE + 3 * MiB, b"bad" * 100)
    damaged(partial.path, SIZE - 512, b"bad")
    damaged(partial.path, 0, b"old extents are not read again")
    bad = partial.read_back(threads, device)
    last = (SIZE // PIECE) * PIECE
    assert bad == [(PAGE + 3 * MiB, PIECE), (last, SIZE - last)]
    for offset, length in bad:
        send(partial, content, offset, offset + length)
    partial.group_commit()
    assert partial.read_back(threads, device) == []
    partial.close()


def test_a_piece_read_back_wrong_is_known_to_a_resume(tmp_path: Path) -> None:
    content = noise(24, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    send_changes(partial, content)
    partial.mark(SIZE)
    partial.group_commit()
    damaged(partial.path, PAGE, b"flipped")
    assert partial.read_back() == [(PAGE, PIECE)]
    partial.group_commit()
    abandoned(partial)
    again = PartialDisk.open(tmp_path, spec_of(SIZE))
    assert again.resume_mark == PAGE
    assert send_changes(again, content) == [PAGE]
    assert partials.content_of(again.seal().partial_path) == content


def test_what_was_not_read_back_before_a_kill_is_read_back_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.road.group_commits.WINDOW", PAGE)
    content = noise(25, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    send_changes(partial, content, stop=MiB)
    partial.group_commit()
    assert partial.read_back() == []
    send_changes(partial, content, stop=PAGE)
    partial.group_commit()
    send_changes(partial, content)
    partial.mark(SIZE)
    partial.group_commit()  # the first page's range is closed now
    path = partial.path
    partial.close()
    damaged(path, 0, b"read back before")
    damaged(path, MiB, b"flipped while nobody looked")
    again = PartialDisk.open(tmp_path, spec_of(SIZE))
    assert again.resume_mark == SIZE
    assert again.read_back() == [(MiB, PIECE)]
    send(again, content, MiB, MiB + PIECE)
    again.group_commit()
    assert again.read_back() == []
    assert again.root() == root_of(content)
    again.close()


def test_writing_on_during_a_read_back_raises_no_false_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, newer = noise(26, SIZE, 1.0), noise(27, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    send_changes(partial, content)
    partial.group_commit()
    from standby.road import reading_back

    plain = reading_back.read_leaves
    steps = iter([0, 1, 2])

    def meanwhile(*arguments: object) -> int:
        step = next(steps, None)
        if step == 0:  # not logged while it is read
            send(partial, newer, 0, 2 * PIECE)
        elif step == 1:  # logged again while it is read
            send(partial, newer, PAGE, PAGE + PIECE)
            partial.group_commit()
        return plain(*arguments)

    monkeypatch.setattr(reading_back, "read_leaves", meanwhile)
    assert partial.read_back(threads=1) == []
    partial.group_commit()
    monkeypatch.undo()
    assert partial.read_back() == []
    expected = bytearray(content)
    expected[: 2 * PIECE] = newer[: 2 * PIECE]
    expected[PAGE : PAGE + PIECE] = newer[PAGE : PAGE + PIECE]
    assert partial.root() == root_of(expected)
    partial.close()


def test_zeros_are_proven_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 1 << 34
    partial = PartialDisk.open(tmp_path, spec_of(size))
    partial.receive(rows((0, size, KIND_ZERO)), np.empty(0, np.uint64), b"")
    partial.group_commit()
    read = []
    monkeypatch.setattr(VhdxDisk, "read_into", lambda *arguments: read.append(arguments))
    assert partial.read_back() == []
    assert read == []
    partial.close()


def test_a_sparse_disk_of_sixteen_tib_costs_what_it_holds(tmp_path: Path) -> None:
    size = 16 << 40
    partial = PartialDisk.open(tmp_path, spec_of(size))
    piece = b"s" * PIECE
    for offset in (0, 5 << 40, size - PIECE):
        partial.receive(rows((offset, PIECE, KIND_DATA)), digesting.leaves(piece), piece)
    partial.group_commit()
    assert partial.read_back() == []
    numbers, _ = partial.baseline.index()
    assert numbers.tolist() == [0, (5 << 40) // PAGE, size // PAGE - 1]
    sealed = partial.seal()
    assert sealed.partial_path.stat().st_blocks * 512 < 64 * MiB
    again = ExtentLog.open(partial.log.path, writable=False)
    assert again.path.stat().st_size < 64 << 10
    again.close()
