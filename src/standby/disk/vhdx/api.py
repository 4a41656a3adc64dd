"""The doors of the package."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from standby import clock
from standby.disk.vhdx.creating import ItemContent, make_file, relative_path
from standby.disk.vhdx.disk import VhdxDisk
from standby.disk.vhdx.geometry import Geometry, default_block_size
from standby.disk.vhdx.housekeeping import locator_values
from standby.disk.vhdx.info import VhdxInfo, info_of
from standby.disk.vhdx.metadata import IS_VIRTUAL_DISK, is_known
from standby.disk.vhdx.opening import Image, lock_file, open_locked
from standby.disk.vhdx.structures import guid
from standby.disk.vhdx.writer import Writer
from standby.errors import ParentRefused
from standby.files import BlockFile
from standby.ports import VirtualDisk


def create(
    path: Path | BlockFile,
    virtual_size: int,
    *,
    block_size: int | None = None,
    logical_sector_size: int = 512,
    physical_sector_size: int = 4096,
    fixed: bool = False,
    page83: str | None = None,
    sparse: bool = True,
) -> VhdxDisk:
    """A new disk of zeros, open for writing; an existing file is refused (DiskIO).

    `sparse=False` (Hyper-V, SMB: RULES 13) writes zeros where a hole would do and never punches.
    `page83` is a random identity unless given.
    """
    geometry = Geometry(
        virtual_size=virtual_size,
        block_size=default_block_size(virtual_size) if block_size is None else block_size,
        logical_sector_size=logical_sector_size,
        has_parent=False,
    )
    image = make_file(
        path,
        geometry,
        physical_sector_size=physical_sector_size,
        page83=guid(page83) if page83 else clock.new_uuid().bytes_le,
        fixed=fixed,
        sparse=sparse,
        locator=None,
    )
    return _new_disk(path, image, None, sparse)


def create_child(
    path: Path | BlockFile,
    parent: Path,
    *,
    block_size: int | None = None,
    virtual_size: int | None = None,
    parent_path_on_host: str | None = None,
    sparse: bool = True,
    page83: str | None = None,
    parents: Sequence[Path] | None = None,
    folders: Sequence[Path] = (),
) -> VhdxDisk:
    """A new differencing disk over `parent`, open for writing, the chain below it read-only.

    Size, sector sizes, page-83 identity and other items of the virtual disk come from the parent
    unless given. `parent_path_on_host` becomes absolute_win32_path of the locator; without it only
    the relative path is stored. `parents` and `folders` say how the parent's own parents are found
    (see `open_chain`). The parent is locked against writers meanwhile: DiskBusy if one has it.
    """
    from standby.disk.chain import open_chain

    where = path if isinstance(path, Path) else path.path
    with contextlib.ExitStack() as undo:
        lock = lock_file(parent, is_required=False)
        if lock is not None:
            undo.callback(lock.release)
        below = open_chain(parent, parents=parents, folders=folders)
        with contextlib.ExitStack() as undo_open:
            undo_open.callback(below.close)
            info = below.info
            size = info.virtual_size if virtual_size is None else virtual_size
            geometry = Geometry(
                virtual_size=size,
                block_size=default_block_size(size) if block_size is None else block_size,
                logical_sector_size=info.logical_sector_size,
                has_parent=True,
            )
            image = make_file(
                path,
                geometry,
                physical_sector_size=info.physical_sector_size,
                page83=guid(page83 or info.page83),
                fixed=False,
                sparse=sparse,
                locator=locator_values(
                    info.data_write_guid, relative_path(where, parent), parent_path_on_host
                ),
                more_items=_inherited(below.image),
            )
            disk = _new_disk(path, image, below, sparse)
            undo_open.pop_all()
            return disk


def _inherited(parent: Image) -> tuple[ItemContent, ...]:
    """Items of the virtual disk that we do not know: a child has them too (2.6.1.2)."""
    metadata, view = parent.metadata, parent.view
    return tuple(
        (item.kind, view.read(metadata.region.offset + item.offset, item.length), item.flags)
        for item in metadata.items
        if item.flags & IS_VIRTUAL_DISK and not is_known(item)
    )


def _new_disk(
    path: Path | BlockFile, image: Image, parent: VhdxDisk | None, sparse: bool
) -> VhdxDisk:
    lock = lock_file(path, is_required=True) if isinstance(path, Path) else None
    writer = Writer(
        image.layer, image.headers, keep_data_write_guid=False, sparse=sparse, is_new=True
    )
    return VhdxDisk(image, parent=parent, owns_parent=True, writer=writer, lock=lock)


def open_vhdx(
    path: Path | BlockFile,
    *,
    writable: bool = False,
    parent: VirtualDisk | None = None,
    keep_data_write_guid: bool = False,
    sparse: bool = True,
) -> VhdxDisk:
    """One file, over `parent` if it is a differencing disk (which stays the caller's to close).

    Without `parent` a differencing disk opens too, for `layer_extents`, `mapped`, `forget`, its
    locator; reading what the parent holds is then refused (ParentRefused). A given VhdxDisk must be
    the parent that the file was made over. Read-only, a dirty log is laid over in memory; writable,
    it is replayed. `keep_data_write_guid`: writes do not change the content's identity, because
    the caller knows that the content stays the same (merge, repair).
    """
    image, lock = open_locked(path, writable=writable)
    try:
        if isinstance(parent, VhdxDisk):
            from standby.disk.chain import check_parent

            check_parent(image.file.path, image, parent.path, parent.image)
        elif parent is not None and not image.metadata.has_parent:
            raise ParentRefused(
                str(image.file.path), str(parent.path), "given, but the disk has no parent"
            )
        writer = None
        if writable:
            writer = Writer(
                image.layer,
                image.headers,
                keep_data_write_guid=keep_data_write_guid,
                sparse=sparse,
                is_new=False,
            )
        return VhdxDisk(image, parent=parent, writer=writer, lock=lock)
    except BaseException:
        if lock is not None:
            lock.release()
        image.file.close()
        raise


def read_info(path: Path) -> VhdxInfo:
    """What the file says about itself: headers and metadata, through the log; nothing else is read
    and nothing is changed."""
    image, _ = open_locked(path, writable=False, is_shallow=True)
    try:
        return info_of(
            image.headers,
            image.metadata,
            image.layer.geometry,
            image.creator,
            is_dirty=image.is_dirty,
        )
    finally:
        image.file.close()
