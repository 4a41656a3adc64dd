"""A VHDX file, with its parents if it has some, as a disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from standby.disk.file_ranges import FileRanges
from standby.disk.raw import check_range
from standby.disk.vhdx import housekeeping, stack
from standby.disk.vhdx.info import VhdxInfo, info_of
from standby.disk.vhdx.layer import Layer
from standby.disk.vhdx.mapping import DATA, ZERO
from standby.disk.vhdx.opening import Image
from standby.disk.vhdx.structures import guid, guid_text
from standby.disk.vhdx.writer import Writer
from standby.errors import DiskIO, DiskUnsupported
from standby.files import BlockFile, ByteLock
from standby.model.extent import Extent
from standby.ports import Buffer, VirtualDisk


class VhdxDisk:
    """A WritableDisk over one VHDX file and the disk below it.

    Reads may come from several threads while one writes; what a write in progress covers reads as
    old or new per sector. Changes are safe from a crash once `flush` returned.
    """

    def __init__(
        self,
        image: Image,
        *,
        parent: VirtualDisk | None = None,
        owns_parent: bool = False,
        writer: Writer | None = None,
        lock: ByteLock | None = None,
    ) -> None:
        """Made by `open_vhdx`, `create` and `create_child`. With `owns_parent` the parent is
        closed with the disk."""
        self._image = image
        self._layer: Layer = image.layer
        self._parent = parent
        self._owns_parent = owns_parent
        self._writer = writer
        self._lock = lock
        self._closed = False
        layers: list[stack.AnyLayer] = [image.layer]
        if isinstance(parent, VhdxDisk):
            layers += parent.layers
        elif parent is not None:
            layers.append(stack.ForeignLayer(parent))
        elif image.metadata.has_parent:
            name = next((v for k, v in self.info.locator.items() if "path" in k), "?")
            layers.append(stack.Absent(str(self.path), name))
        self.layers: tuple[stack.AnyLayer, ...] = tuple(layers)
        """The stack of layers, this file's first."""

    # --- what it is ---

    @property
    def path(self) -> Path:
        """The file's path as it was opened."""
        return self._image.file.path

    @property
    def file(self) -> BlockFile:
        """The open file; a read-only one with a dirty log reads as after replay."""
        return self._image.view

    @property
    def info(self) -> VhdxInfo:
        """What the file says about itself now."""
        image = self._image
        is_dirty = image.is_dirty and self._writer is None
        return info_of(
            image.headers, image.metadata, self._layer.geometry, image.creator, is_dirty=is_dirty
        )

    @property
    def image(self) -> Image:
        """The parsed file, for the package's own use."""
        return self._image

    @property
    def parent(self) -> VirtualDisk | None:
        """The disk below, if it was given or found."""
        return self._parent

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._writer is not None

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk."""
        return self._layer.geometry.virtual_size

    @property
    def block_size(self) -> int:
        """Bytes of a block: the unit of space in the file."""
        return self._layer.geometry.block_size

    @property
    def logical_sector_size(self) -> int:
        """Unit of reads and writes."""
        return self._layer.geometry.logical_sector_size

    @property
    def physical_sector_size(self) -> int:
        """What the guest is told to align to."""
        return self._image.metadata.physical_sector_size

    @property
    def data_write_guid(self) -> str:
        """Identity of the content, as children record it."""
        return guid_text(self._image.headers.current.data_write_guid)

    # --- reading ---

    def _checked(self, start: int, stop: int | None) -> int:
        end = self.virtual_size if stop is None else stop
        check_range(self.path, start, end - start, self.virtual_size, self.logical_sector_size)
        return end

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """What [start, stop) holds through all layers. HOLE: no layer has anything there."""
        return stack.extents(self.layers, start, self._checked(start, stop))

    def layer_extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """What this file alone holds. HOLE: nothing, the parent is to be asked."""
        return stack.extents(self.layers[:1], start, self._checked(start, stop))

    def mapped(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
        """(m, 3) rows of (offset, length, file offset): the DATA that this file alone holds, in
        order, joined where it is contiguous in the file."""
        return self.held(start, stop)[0]

    def held(
        self, start: int = 0, stop: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What this file alone holds: its `mapped` DATA, and (n, 2) rows of (offset, length) of
        its ZERO ranges, in order."""
        end = self._checked(start, stop)
        rows = [np.empty((0, 3), dtype=np.int64)]
        zeros = [np.empty((0, 2), dtype=np.int64)]
        while start < end:
            runs = self._layer.map(start, end)
            lengths = runs.stops - runs.starts
            table = np.stack((runs.starts, lengths, runs.places), axis=1)
            rows.append(table[runs.kinds == DATA])
            zeros.append(table[runs.kinds == ZERO, :2])
            start = runs.stop
        return _contiguous(np.concatenate(rows)), np.concatenate(zeros)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer`, straight from the files into its memory."""
        view = memoryview(buffer).cast("B")
        self._checked(offset, offset + len(view))
        if len(view):
            stack.read_into(self.layers, offset, view)

    def file_ranges(self, start: int, stop: int) -> FileRanges | None:
        """Where the files of all layers store [start, stop); None when only `read_into` can read
        it. Memory: 32 bytes for each run, a sector at the least."""
        return stack.file_ranges(self.layers, start, self._checked(start, stop))

    # --- writing ---

    def _opened_writer(self) -> Writer:
        if self._writer is None:
            raise DiskUnsupported(str(self.path), "writing to a disk opened read-only")
        if self._closed:
            raise DiskIO(str(self.path), "write", 0, 0, "the disk is closed")
        return self._writer

    def write(self, offset: int, data: Buffer) -> None:
        """Write whole sectors. New blocks take space at the file's end; in a differencing disk
        sectors that are not written keep showing the parent."""
        writer = self._opened_writer()
        view = memoryview(data).cast("B")
        self._checked(offset, offset + len(view))
        writer.write(offset, view)

    def copy_runs(self, rows: npt.NDArray[np.int64], source: BlockFile) -> None:
        """Write what `source` has at `place` for each (offset, length, place) row, in order, for
        runs of one part of the disk; other changes wait meanwhile."""
        writer = self._opened_writer()
        if not len(rows):
            return
        ranges = rows[:, :2]
        wrong = (ranges.min(axis=1) < 0) | (ranges.sum(axis=1) > self.virtual_size)
        wrong |= (ranges % self.logical_sector_size).any(axis=1)
        for offset, length in ranges[wrong].tolist():
            self._checked(offset, offset + length)
        writer.copy_runs(rows, source)

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros. Whole blocks become ZERO (never "ask the parent") and give
        their space back, but for a fixed disk's; parts of present blocks are zeroed in place."""
        writer = self._opened_writer()
        self._checked(offset, offset + length)
        if length:
            writer.zero(offset, length)

    def forget(self, offset: int, length: int) -> None:
        """Drop what this layer of a differencing disk says about whole blocks: the parent shows
        again. A merge in slices gives space back this way, once the parent has the content."""
        writer = self._opened_writer()
        stop = self._checked(offset, offset + length)
        size = self.block_size
        is_whole = offset % size == 0 and (stop % size == 0 or stop == self.virtual_size)
        if not self._image.metadata.has_parent or not is_whole:
            raise DiskUnsupported(str(self.path), "forgetting anything but a child's whole blocks")
        if length:
            writer.forget(offset // size, -(-stop // size))

    def flush(self) -> None:
        """Return when all that was written survives a crash. Other threads may go on writing: the
        next flush makes that durable."""
        if self._writer is not None and not self._closed:
            self._writer.commit(beside=True)

    @contextlib.contextmanager
    def held_still(self) -> Iterator[None]:
        """Keep the file as it is: another open of it then sees no half of a change."""
        with self._writer.lock if self._writer is not None else contextlib.nullcontext():
            yield

    def take_back_unowned(self) -> None:
        """Cut off, or use again for new blocks, the space that no structure of the file owns: what
        a writer that was killed took and never committed. Before the first change; of a file
        with a region that we do not know nothing is touched."""
        self._opened_writer().take_back()

    def grow(self, new_size: int) -> None:
        """Make the disk larger; the new part reads as zeros, whatever the parent has there."""
        housekeeping.grow(self._opened_writer(), self._parent, new_size)

    def set_data_write_guid(self, guid_as_text: str) -> None:
        """Give the content a known identity; later writes of this session keep it."""
        self._opened_writer().set_data_write_guid(guid(guid_as_text))

    def set_parent_locator(
        self,
        parent_linkage: str,
        relative_path: str,
        absolute_path: str | None,
        parent_linkage2: str | None = None,
    ) -> None:
        """Name another parent, in one step that a crash does or does not show. The disk below
        stays the one that is open."""
        values = housekeeping.locator_values(
            parent_linkage, relative_path, absolute_path, parent_linkage2
        )
        housekeeping.set_locator(self._opened_writer(), values)

    def close(self) -> None:
        """Flush, leave an empty log, close; parents found by us too. A second call does nothing."""
        with contextlib.ExitStack() as closing:  # a failure leaves nothing open
            disk: VirtualDisk | None = self
            while isinstance(disk, VhdxDisk) and not disk._closed:
                closing.callback(disk._close_own)
                disk._closed = True
                disk = disk._parent if disk._owns_parent else None
            if disk is not None and not isinstance(disk, VhdxDisk):
                closing.callback(disk.close)

    def _close_own(self) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if self._lock is not None:
                self._lock.release()
            self._image.view.close()

    def __enter__(self) -> VhdxDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _contiguous(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(offset, length, file offset) rows, joined where one goes on in the next."""
    if len(rows) < 2:
        return rows
    ends = rows[:-1, 0] + rows[:-1, 1]
    file_ends = rows[:-1, 2] + rows[:-1, 1]
    begins = np.flatnonzero((ends != rows[1:, 0]) | (file_ends != rows[1:, 2])) + 1
    begins = np.concatenate((np.zeros(1, dtype=np.int64), begins))
    lengths = np.add.reduceat(rows[:, 1], begins)
    return np.stack((rows[begins, 0], lengths, rows[begins, 2]), axis=1)
