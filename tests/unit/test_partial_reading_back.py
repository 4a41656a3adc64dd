"""Partial disks read back: what is proven, found wrong and known to a resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import partials
from partials import (
    SIZE,
    abandoned,
    noise,
    root_of,
    rows,
    send,
    send_changes,
    spec_of,
)
from standby import digesting
from standby.digesting import PAGE, PIECE
from standby.disk import open_disk
from standby.disk.vhdx import VhdxDisk
from standby.files import File
from standby.road.extent_log import KIND_DATA, KIND_ZERO, ExtentLog
from standby.road.partial import PartialDisk
from standby.units import MiB


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
