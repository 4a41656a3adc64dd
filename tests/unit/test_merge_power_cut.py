"""A merge cut off by a power failure: what was not synced is lost in part, and torn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merge_pairs import small_pair
from standby.disk import open_disk, vhdx
from standby.disk.merge import merge_payload, pass_identity_on
from standby.testing.disks import content
from standby.units import MiB

_PAGE = 4096


class PowerFile:
    """A BlockFile in memory that knows what a power cut would take."""

    def __init__(self, path: Path, before: Callable[[], None]) -> None:
        self.path = path
        self.writable = True
        self._before = before
        self._current = bytearray(path.read_bytes())
        self._stable = bytes(self._current)
        self._pending: list[tuple[str, int, bytes]] = []

    @property
    def size(self) -> int:
        return len(self._current)

    def read_into(self, buffer: Any, offset: int) -> None:
        view = memoryview(buffer).cast("B")
        assert offset + len(view) <= len(self._current)
        view[:] = self._current[offset : offset + len(view)]

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.read_into(data, offset)
        return bytes(data)

    def _change(self, name: str, offset: int, data: bytes) -> None:
        self._before()
        self._pending.append((name, offset, data))
        _apply(self._current, name, offset, data)

    def write(self, data: Any, offset: int) -> None:
        raw = bytes(memoryview(data).cast("B"))
        self._change("write", offset, raw)

    def resize(self, size: int) -> None:
        self._change("resize", size, b"")

    def punch(self, offset: int, length: int) -> bool:
        length = max(0, min(length, len(self._current) - offset))
        self._change("write", offset, bytes(length))
        return True

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        yield start, stop

    def sync(self) -> None:
        self._before()
        self._stable = bytes(self._current)
        self._pending.clear()

    def close(self) -> None:
        pass

    def crashed(self, rng: np.random.Generator) -> bytes:
        """What the file may hold after a power cut now: of each page written since the last sync
        the old or the new content."""
        left = bytearray(self._stable)
        for name, offset, data in self._pending:
            if name == "resize":
                if rng.random() < 0.5:
                    _apply(left, name, offset, data)
                continue
            for start in range(0, len(data), _PAGE):
                if rng.random() < 0.5:
                    _apply(left, name, offset + start, data[start : start + _PAGE])
        return bytes(left)


def _apply(content_: bytearray, name: str, offset: int, data: bytes) -> None:
    if name == "resize":
        if offset < len(content_):
            del content_[offset:]
        else:
            content_.extend(bytes(offset - len(content_)))
        return
    if offset + len(data) > len(content_):
        content_.extend(bytes(offset + len(data) - len(content_)))
    content_[offset : offset + len(data)] = data


def _read_all(path: Path) -> bytes:
    with contextlib.closing(open_disk(path)) as disk:
        return content(disk)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("slice_bytes", [None, MiB])
def test_after_a_power_cut_the_chain_reads_the_same(
    tmp_path: Path, seed: int, slice_bytes: int | None
) -> None:
    base_path, child_path = small_pair(tmp_path)
    expected = _read_all(child_path)
    after = tmp_path / "after"
    after.mkdir()
    rng = np.random.default_rng(seed)
    files: list[PowerFile] = []
    images = calls = 0

    def look() -> None:
        nonlocal images, calls
        calls += 1
        if len(files) < 2 or calls % 2 == seed % 2:
            return
        images += 1
        for file in files:
            (after / file.path.name).write_bytes(file.crashed(rng))
        assert _read_all(after / child_path.name) == expected, f"seed {seed}, call {calls}"

    files.append(PowerFile(base_path, look))
    files.append(PowerFile(child_path, look))
    with (
        vhdx.open_vhdx(files[0], writable=True, keep_data_write_guid=True) as base,
        vhdx.open_vhdx(files[1], writable=True, keep_data_write_guid=True) as child,
    ):
        merge_payload(child, base, slice_bytes=slice_bytes)
        pass_identity_on(child, base)
    look()
    assert images > 20
    (after / base_path.name).write_bytes(files[0].crashed(rng))
    assert _read_all(after / base_path.name) == expected
