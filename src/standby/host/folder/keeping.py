"""Acknowledged writes that outlive the process that acknowledged them.

A disk server that is killed loses what it holds in memory: the block table of a VHDX file changes
there until the next flush. A guest whose QEMU reconnects to the next server never learns of it:
it would read old data, and its next flush would be confirmed without the writes it asked for. So
everything written since the last flush is also kept in a file of this machine's page cache, and
the next server does it again. A power cut needs none of that: it takes the guest as well, and the
guest knows what it had not flushed.

The file, little-endian, from offset 0 on, records without gaps, empty after a flush:

    0   8  offset          8   8  length        16  4  kind: 1 data, 2 zeros
    20  4  magic "KEPT"    24  …  the data, of `length` bytes, for kind 1

The header is written after its data, and a killed process tears neither: where no magic is, the
records end. Nothing is ever synced.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from standby.errors import DiskError, DiskFull
from standby.files import File
from standby.model.extent import Extent
from standby.ports import Buffer, WritableDisk
from standby.units import MiB

_HEADER = struct.Struct("<QQII")
_MAGIC = int.from_bytes(b"KEPT", "little")
_DATA, _ZEROS = 1, 2
_KEPT_MAX = 32 * MiB
"""A flush comes by itself then. Guests flush every 5 s at the latest (ext4, NTFS alike), and a
flush of a VHDX file costs a few milliseconds, so a larger file would save little."""


class KeptDisk:
    """`disk`, whose writes since the last flush are kept in the file `path`.

    What the file holds already is written to the disk and flushed first: `path` must be gone
    when the guest is not the one that made those writes. Threads may read at once; one writes.
    """

    def __init__(self, disk: WritableDisk, path: Path) -> None:
        self.disk = disk
        self._lock = threading.Lock()
        self._file = File(path, writable=True) if path.exists() else File(path, create=True)
        self._used = 0
        self.repeated = 0
        """Writes that were done again."""
        try:
            self._repeat()
        except BaseException:
            self._file.close()
            raise

    def _repeat(self) -> None:
        for offset, length, data in self._records():
            if data is None:
                self.disk.zero(offset, length)
            else:
                self.disk.write(offset, data)
            self.repeated += 1
        self.flush()

    def _records(self) -> Iterator[tuple[int, int, bytes | None]]:
        place = 0
        while place + _HEADER.size <= self._file.size:
            header = self._file.read(place, _HEADER.size)
            offset, length, kind, magic = _HEADER.unpack(header)
            if magic != _MAGIC:
                return
            place += _HEADER.size
            if kind == _ZEROS:
                yield offset, length, None
            else:
                yield offset, length, self._file.read(place, length)
                place += length

    def _keep(self, kind: int, offset: int, length: int, data: Buffer | None) -> bool:
        """False where there is no room for it: then nothing is kept, and the disk is flushed."""
        size = _HEADER.size + (length if data is not None else 0)
        if self._used + size > _KEPT_MAX:
            self._flush()
        try:
            if data is not None:
                self._file.write(data, self._used + _HEADER.size)
            self._file.write(_HEADER.pack(offset, length, kind, _MAGIC), self._used)
        except DiskFull:
            self._flush()
            return False
        self._used += size
        return True

    # --- the disk ---

    @property
    def path(self) -> Path:
        """The disk's own."""
        return self.disk.path

    @property
    def virtual_size(self) -> int:
        """The disk's own."""
        return self.disk.virtual_size

    @property
    def logical_sector_size(self) -> int:
        """The disk's own."""
        return self.disk.logical_sector_size

    @property
    def physical_sector_size(self) -> int:
        """The disk's own."""
        return self.disk.physical_sector_size

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """The disk's own."""
        return self.disk.extents(start, stop)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` from the disk."""
        self.disk.read_into(offset, buffer)

    def write(self, offset: int, data: Buffer) -> None:
        """Write `data`; when this returns, killing the process does not undo it."""
        view = memoryview(data).cast("B")
        with self._lock:
            is_kept = self._keep(_DATA, offset, len(view), view)
            self.disk.write(offset, view)
            if not is_kept:
                self._flush()

    def zero(self, offset: int, length: int) -> None:
        """Make the range zeros; when this returns, killing the process does not undo it."""
        with self._lock:
            is_kept = self._keep(_ZEROS, offset, length, None)
            self.disk.zero(offset, length)
            if not is_kept:
                self._flush()

    def flush(self) -> None:
        """Make everything written stable, and forget what was kept of it."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        self.disk.flush()
        self._file.resize(0)
        self._used = 0

    def close(self) -> None:
        """Flush and remove the file; the disk stays open, it is the caller's. A second call does
        nothing."""
        if self._file.fd < 0:
            return
        try:
            self.flush()
        except DiskError:
            self._file.close()  # the file stays: the next server tries again
            raise
        self._file.close()
        self._file.path.unlink(missing_ok=True)
