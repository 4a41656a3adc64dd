"""A throw-away layer: writes go to a temporary sparse file, the disk below never changes."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from standby import clock
from standby.disk.raw import check_range
from standby.errors import DiskIO
from standby.files import File
from standby.model.extent import Extent, Kind, coalesced
from standby.ports import Buffer, VirtualDisk
from standby.units import KiB, MiB

PIECE = 4 * KiB
"""What is copied up at once: the block of the usual file systems, so that a hole of the temporary
file under a written piece means zeros and nothing has to be remembered for `zero`."""

_CHUNK_PIECES = 16384
_ZEROS = bytes(MiB)


class OverlayDisk:
    """`base` as a WritableDisk whose writes vanish at `close`.

    The temporary file lies in `folder`; on POSIX its name is removed at once, so that a killed
    process leaves nothing. Memory: one bit per 4 KiB, in chunks of 64 MiB of disk that exist once
    written to (32 MiB for a terabyte written everywhere). `base` is not closed with the overlay.
    Reads and writes may come from several threads; writes exclude each other.
    """

    def __init__(self, base: VirtualDisk, folder: Path) -> None:
        self.base = base
        self.path = base.path
        self.virtual_size = base.virtual_size
        self.logical_sector_size = base.logical_sector_size
        self.physical_sector_size = base.physical_sector_size
        self.writable = True
        self._chunks: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._temporary = folder / f".overlay-{clock.new_token(8)}.tmp"
        self._file = File(self._temporary, create=True)
        if sys.platform != "win32":
            self._temporary.unlink()
        # Whole pieces: the last one of the disk may be cut, in the file it is not.
        self._file.resize(-(-self.virtual_size // PIECE) * PIECE)

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """Written ranges as DATA, zeroed ones as ZERO, the rest as the base tells it."""
        stop = self.virtual_size if stop is None else stop
        check_range(self.path, start, stop - start, self.virtual_size, self.logical_sector_size)
        return coalesced(self._layers(start, stop))

    def _layers(self, start: int, stop: int) -> Iterator[Extent]:
        for first, last, is_ours in self._runs(start, stop):
            if not is_ours:
                yield from self.base.extents(first, last)
                continue
            position = first
            for data, end in self._file.data_ranges(first, last):
                if data > position:
                    yield Extent(position, data - position, Kind.ZERO)
                yield Extent(data, end - data, Kind.DATA)
                position = end
            if position < last:
                yield Extent(position, last - position, Kind.ZERO)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` from the newest layer that holds each piece."""
        view = memoryview(buffer).cast("B")
        stop = offset + len(view)
        check_range(self.path, offset, len(view), self.virtual_size, self.logical_sector_size)
        for first, last, is_ours in self._runs(offset, stop):
            part = view[first - offset : last - offset]
            if is_ours:
                self._file.read_into(part, first)
            else:
                self.base.read_into(first, part)

    def write(self, offset: int, data: Buffer) -> None:
        """Keep `data` in the temporary file; DiskFull when its file system has no room."""
        view = memoryview(data).cast("B")
        self._check_open(offset, len(view))
        if not len(view):
            return
        with self._lock:
            self._copy_up_edges(offset, offset + len(view))
            self._file.write(view, offset)
            self._mark(offset, offset + len(view))

    def zero(self, offset: int, length: int) -> None:
        """Let the range read as zeros; whole pieces take no space."""
        self._check_open(offset, length)
        if not length:
            return
        stop = offset + length
        # The file goes on to the end of its last piece; punch that far, so that a hole results.
        last = stop if stop < self.virtual_size else self._file.size
        with self._lock:
            self._copy_up_edges(offset, stop)
            if not self._file.punch(offset, last - offset):
                for position in range(offset, stop, len(_ZEROS)):
                    count = min(len(_ZEROS), stop - position)
                    self._file.write(memoryview(_ZEROS)[:count], position)
            self._mark(offset, stop)

    def flush(self) -> None:
        """Nothing: no write of a throw-away layer has to survive."""

    def close(self) -> None:
        """Forget everything written; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._file.close()
        self._chunks.clear()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _check_open(self, offset: int, length: int) -> None:
        if self._closed:
            raise DiskIO(str(self.path), "write", offset, length, "the overlay is closed")
        check_range(self.path, offset, length, self.virtual_size, self.logical_sector_size)

    def _copy_up_edges(self, start: int, stop: int) -> None:
        """Bring pieces that [start, stop) covers in part into the temporary file."""
        pieces = {start // PIECE} if start % PIECE else set()
        if stop % PIECE and stop < self.virtual_size:
            pieces.add(stop // PIECE)
        for piece in sorted(pieces):
            chunk = self._chunks.get(piece // _CHUNK_PIECES)
            bit = piece % _CHUNK_PIECES
            if chunk is not None and chunk[bit >> 3] >> (bit & 7) & 1:
                continue
            first = piece * PIECE
            held = bytearray(min(PIECE, self.virtual_size - first))
            self.base.read_into(first, held)
            self._file.write(held, first)

    def _mark(self, start: int, stop: int) -> None:
        first, last = start // PIECE, -(-stop // PIECE)
        for number in range(first // _CHUNK_PIECES, -(-last // _CHUNK_PIECES)):
            chunk = self._chunks.get(number)
            if chunk is None:
                chunk = np.zeros(_CHUNK_PIECES // 8, np.uint8)
            low = max(first - number * _CHUNK_PIECES, 0)
            high = min(last - number * _CHUNK_PIECES, _CHUNK_PIECES)
            bits = np.unpackbits(chunk, bitorder="little")
            bits[low:high] = 1
            # A new array: a reader in another thread keeps the one it has, whole.
            self._chunks[number] = np.packbits(bits, bitorder="little")

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """(first, last, in the temporary file) of [start, stop), in order, coalesced."""
        position = start
        while position < stop:
            number, piece = divmod(position // PIECE, _CHUNK_PIECES)
            border = min((number + 1) * _CHUNK_PIECES * PIECE, stop)
            chunk = self._chunks.get(number)
            if chunk is None:
                yield position, border, False
                position = border
                continue
            last = -(-border // PIECE) - number * _CHUNK_PIECES
            bits = np.unpackbits(chunk, count=last, bitorder="little")[piece:]
            turns = [*(np.flatnonzero(np.diff(bits)) + 1).tolist(), len(bits)]
            is_ours = bool(bits[0])
            for turn in turns:
                end = min((number * _CHUNK_PIECES + piece + turn) * PIECE, border)
                yield position, end, is_ours
                position = end
                is_ours = not is_ours
