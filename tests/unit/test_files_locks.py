"""Locks: what the system refuses is one of our errors, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from standby.errors import DiskIO
from standby.files import ByteLock, is_byte_locked


def test_a_lock_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskIO, match="open lock"):
        ByteLock(tmp_path / "no folder" / ".lock").acquire()


def test_looking_at_a_lock_neither_takes_nor_makes_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_byte_locked(path, 3)
    assert not path.exists()
    with ByteLock(path, 3):
        assert is_byte_locked(path, 3)
        assert not is_byte_locked(path, 4)
    assert not is_byte_locked(path, 3)
