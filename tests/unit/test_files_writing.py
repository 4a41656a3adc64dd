"""Writing through `File`: whole whatever the size, in calls that are not too large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from standby.files import WRITE_SIZE, File, positioned


@pytest.mark.parametrize("size", [0, 1, WRITE_SIZE, WRITE_SIZE + 1, 5 * WRITE_SIZE - 3])
def test_a_large_write_is_whole_in_calls_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    data = np.random.default_rng(size).bytes(size)
    calls: list[tuple[int, int]] = []
    plain = positioned._pwrite

    def short(fd: int, view: memoryview, offset: int) -> int:
        """Like the system's: now and then less is written than was asked for."""
        calls.append((offset, len(view)))
        taken = max(1, len(view) - 7) if len(calls) == 2 else len(view)
        return plain(fd, view[:taken], offset)

    monkeypatch.setattr(positioned, "_pwrite", short)
    with File(tmp_path / "file", create=True) as file:
        file.write(data, 3)
        assert not size or file.size == 3 + size
        file.sync()
    assert (tmp_path / "file").read_bytes()[3:] == data
    assert all(length <= WRITE_SIZE for _, length in calls)
    assert len(calls) <= -(-size // WRITE_SIZE) + 1
