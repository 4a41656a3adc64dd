"""Partial disks begun with what older files hold: a fenced writer's, an older chain, a seed."""

from __future__ import annotations

from pathlib import Path

import pytest

import partials
from partials import (
    LATER,
    POINT,
    SIZE,
    abandoned,
    noise,
    root_of,
    sealed_base,
    send_changes,
    spec_of,
)
from standby.digesting import PAGE, PIECE
from standby.errors import Fenced
from standby.files import File
from standby.road.partial import PartialDisk
from standby.units import MiB

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
