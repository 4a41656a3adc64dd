"""Large files removed: the name at once, the space soon."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from standby import files
from standby.errors import DiskIO
from standby.files import giving_back
from standby.units import MiB


def test_the_name_goes_at_once_and_room_is_told_when_the_space_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(8 * MiB))
    may_close = threading.Event()
    closed: list[int] = []

    def close(fd: int) -> None:
        assert may_close.wait(60)
        closed.append(fd)
        real(fd)

    real = os.close
    monkeypatch.setattr(giving_back, "_close", close)
    files.remove_large(path)
    assert not path.exists()
    assert not closed
    if sys.platform != "win32":
        told: list[int] = []
        asking = threading.Thread(target=lambda: told.append(files.free_bytes(tmp_path)))
        asking.start()
        asking.join(0.05)
        assert not told  # it would not count what is on its way
        may_close.set()
        asking.join(60)
        assert told
        assert len(closed) == 1


def test_a_file_that_is_not_there_and_a_link(tmp_path: Path) -> None:
    files.remove_large(tmp_path / "missing")
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "link").symlink_to("file")
    files.remove_large(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_what_cannot_be_removed_is_an_error_and_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0
    with pytest.raises(DiskIO):
        files.remove_large(tmp_path / "folder")
    giving_back.wait_for_space()
    if sys.platform == "linux":
        assert len(list(Path("/proc/self/fd").iterdir())) == before
