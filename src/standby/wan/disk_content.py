"""Reading pieces where a disk file beside the cache holds them: a layer of a replica.

An entry counts while the file at that path is the one that was indexed: same data-write GUID. A
merge, a failover that writes, a deletion change that, and the entries go at the next read. In
between (a merge rewrites a base before it changes its GUID) the name tells: it is computed again
from what was read.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from standby.disk import vhdx
from standby.disk.vhdx import VhdxDisk
from standby.errors import DiskError
from standby.wan.segment_file import PIECE, DiskFile

OPEN_DISKS_MAX = 16
RUN_MAX = 512
"""Pieces that one read gets at most: 2 MiB."""


class DiskChanged(Exception):
    """The file is gone, or another one than was indexed."""


class _Opened:
    """An open disk file, alone: what its parents hold is refused."""

    def __init__(self, path: Path) -> None:
        self.status = identity(path)
        self.disk: VhdxDisk = vhdx.open_vhdx(path)
        self.guid = self.disk.data_write_guid
        self.users = 0
        self.is_dropped = False


def identity(path: Path) -> tuple[int, int, int, int]:
    """What changes whenever a file is written or exchanged; raises DiskChanged where it is gone."""
    try:
        status = path.stat()
    except OSError as exc:
        raise DiskChanged(exc.strerror) from exc
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class DiskReaders:
    """Disk files that entries point into, some of them open. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Opened] = OrderedDict()

    def read(
        self, file: DiskFile, places: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """The pieces of these numbers and which of them could be read. Raises DiskChanged when the
        file is not the one that was indexed."""
        data = np.zeros((len(places), PIECE), dtype=np.uint8)
        ok = np.zeros(len(places), dtype=np.bool_)
        with self._using(file) as disk:
            start = 0
            for stop in _run_ends(places):
                ok[start:stop] = _read_run(disk, int(places[start]), data[start:stop])
                start = stop
        return data, ok

    @contextlib.contextmanager
    def _using(self, file: DiskFile) -> Iterator[VhdxDisk]:
        with self._lock:
            opened = self._opened(file)
            opened.users += 1
        try:
            yield opened.disk
        finally:
            with self._lock:
                opened.users -= 1
                if opened.is_dropped and not opened.users:
                    opened.disk.close()

    def _opened(self, file: DiskFile) -> _Opened:
        path = Path(file.path)
        held = self._open.get(file.path)
        try:
            if held is not None and held.status != identity(path):
                self._close(file.path)
                held = None
            if held is None:
                held = _Opened(path)
                self._open[file.path] = held
        except DiskChanged:
            self._close(file.path)
            raise
        except DiskError as exc:
            raise DiskChanged(str(exc)) from exc
        self._open.move_to_end(file.path)
        while len(self._open) > OPEN_DISKS_MAX:
            self._close(next(iter(self._open)))
        if held.guid != file.data_write_guid or held.disk.virtual_size != file.virtual_size:
            raise DiskChanged(f"its data-write GUID is {held.guid}")
        return held

    def is_current(self, file: DiskFile) -> bool:
        """Whether the file is still the one that was indexed."""
        with self._lock:
            try:
                self._opened(file)
            except DiskChanged:
                return False
            return True

    def _close(self, path: str) -> None:
        held = self._open.pop(path, None)
        if held is not None:
            held.is_dropped = True
            if not held.users:
                held.disk.close()

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for path in list(self._open):
                self._close(path)


def _run_ends(places: npt.NDArray[np.int64]) -> list[int]:
    """Where runs of pieces that follow one another end, RUN_MAX at most."""
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    ends: list[int] = []
    start = 0
    for stop in [*breaks.tolist(), len(places)]:
        ends.extend(range(start + RUN_MAX, stop, RUN_MAX))
        if stop > start:
            ends.append(stop)
        start = stop
    return ends


def _read_run(disk: VhdxDisk, first: int, into: npt.NDArray[np.uint8]) -> bool:
    offset = first * PIECE
    length = min(into.nbytes, disk.virtual_size - offset)
    if offset < 0 or length <= 0 or into.nbytes - length >= PIECE:
        return False
    try:
        disk.read_into(offset, into.data.cast("B")[:length])
    except DiskError:
        into[:] = 0
        return False
    return True
