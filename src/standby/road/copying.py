"""Filling a new partial disk from what is at the target already: an older chain, a seed, or the
file of a fenced writer. Everything goes through `receive`, as if it came over the link, and is
read back; whatever is left out the source sends."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from standby import digesting
from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.disk import open_disk
from standby.errors import StandbyError
from standby.ports import Progress, VirtualDisk
from standby.road.extent_log import KIND_DATA, ExtentLog, Leaves, Rows
from standby.road.pages import (
    Mask,
    data_mask,
    open_layers,
    page_range,
    read_leaves,
    rows_from,
    zero_page,
)

if TYPE_CHECKING:
    from standby.road.partial import PartialDisk
    from standby.road.resuming import Candidate

COPY_OF_CHAIN = "chain"


def copy_local(
    partial: PartialDisk, folder: Path, found: Sequence[Candidate], progress: Progress | None
) -> None:
    """Do, or finish, the local copy that the log's header asks for."""
    log, size = partial.log, partial.spec.virtual_size
    if not log.header.copy_of or log.copied >= size:
        return
    if log.header.copy_of == COPY_OF_CHAIN:
        if partial.spec.copy_from:
            _copy_chain(partial, progress)
    else:
        for candidate in found:
            if f"{candidate.point_id}.{candidate.generation}" == log.header.copy_of:
                _copy_acknowledged(partial, folder, candidate, progress)
    partial.group_commit()
    log.append_copied(size)
    log.sync()


def _copy_chain(partial: PartialDisk, progress: Progress | None) -> None:
    """Fill a new base with an older chain's content, cut or extended with zeros (RULES 14)."""
    chain = partial.spec.copy_from
    size = partial.spec.virtual_size
    with contextlib.closing(open_disk(chain[0], parents=list(chain[1:]))) as source:
        limit = min(size, source.virtual_size)
        buffer = memoryview(bytearray(PAGE))
        for page_number in range(partial.log.copied // PAGE, -(-limit // PAGE)):
            start, stop = page_range(page_number, size)
            _copy_page(partial, source, start, min(stop, limit), stop, buffer)
            if partial.should_commit():
                _commit_copied(partial, stop)
                if progress is not None:
                    progress(stop, limit)


def _copy_page(
    partial: PartialDisk,
    source: VirtualDisk,
    start: int,
    limit: int,
    stop: int,
    buffer: memoryview,
) -> None:
    """Receive the stored, non-zero pieces of [start, limit) of the source as part of the new
    disk's page [start, stop). A piece that `limit` cuts is filled up with zeros."""
    mask = data_mask(source, start, limit)
    if not mask.any():
        return
    leaves = zero_page()
    whole = start + -(-(limit - start) // PIECE) * PIECE
    readable = min(whole, source.virtual_size)  # `limit` may cut a sector of the source
    read_leaves(source, start, readable, mask, leaves, buffer)
    last = (limit - start - 1) // PIECE
    if whole > limit and mask[last]:
        buffer[limit - start : whole - start] = bytes(whole - limit)
        digesting.leaves(buffer[last * PIECE : whole - start], leaves[last : last + 1])
    rows, row_leaves = rows_from(mask & (leaves != ZERO_LEAF), leaves, start, stop)
    if len(rows):
        partial.receive(rows, row_leaves, _payload(rows, start, buffer))


def _payload(rows: Rows, start: int, buffer: memoryview) -> bytes:
    """The bytes of the data rows, in order, out of a page's buffer."""
    return b"".join(
        buffer[offset - start : offset - start + length]
        for offset, length, kind in rows.tolist()
        if kind == KIND_DATA
    )


def _commit_copied(partial: PartialDisk, offset: int) -> None:
    """A group commit of copied data, proven while it is still in memory."""
    partial.group_commit()
    partial.read_back()
    partial.log.append_copied(offset)
    partial.log.sync()


def _copy_acknowledged(
    partial: PartialDisk, folder: Path, older: Candidate, progress: Progress | None
) -> None:
    """Take over what a fenced writer's log acknowledges, wherever its file really holds it.

    Its writer may be alive and write on: nothing is believed but leaves that match. What does not
    is left out, and the mark does not pass it.
    """
    with contextlib.ExitStack() as stack:
        log = ExtentLog.open(older.log_path(folder), writable=False)
        stack.callback(log.close)
        source: VirtualDisk | None = None
        with contextlib.suppress(StandbyError):
            path = older.disk_path(folder)
            source = open_layers((path, *partial.spec.parent_chain))
            stack.callback(source.close)
        pages = log.pages()
        buffer = memoryview(bytearray(PAGE))
        for place, page_number in enumerate(pages[pages * PAGE >= partial.log.copied].tolist()):
            if source is not None:
                _copy_matching(partial, log, source, page_number, buffer)
            if partial.should_commit():
                _commit_copied(partial, page_number * PAGE)
                if progress is not None:
                    progress(place + 1, len(pages))
        partial.group_commit()
        if log.checkpoint_id == partial.log.checkpoint_id and log.mark:
            partial.mark(min(log.mark, _first_difference(partial, log)))


def _copy_matching(
    partial: PartialDisk,
    log: ExtentLog,
    source: VirtualDisk,
    page_number: int,
    buffer: memoryview,
) -> None:
    start, stop = page_range(page_number, partial.spec.virtual_size)
    wanted, mask = _logged(log, page_number)
    missing = mask & (wanted != partial.baseline.leaves(page_number))
    if not missing.any():
        return
    actual = zero_page()
    try:
        stored = missing & (data_mask(source, start, stop) | (wanted != ZERO_LEAF))
        read_leaves(source, start, stop, stored, actual, buffer)
    except StandbyError:
        return  # its file is in the middle of a change, or damaged: the source sends this again
    rows, leaves = rows_from(missing & (actual == wanted), actual, start, stop)
    if len(rows):
        partial.receive(rows, leaves, _payload(rows, start, buffer))


def _logged(log: ExtentLog, page_number: int) -> tuple[Leaves, Mask]:
    leaves = zero_page()
    mask = np.zeros(LEAVES_PER_PAGE, dtype=np.bool_)
    log.overlay(page_number, leaves, mask=mask)
    return leaves, mask


def _first_difference(partial: PartialDisk, log: ExtentLog) -> int:
    """The lowest offset that `log` acknowledges and the baseline has otherwise."""
    for page_number in log.pages().tolist():
        wanted, mask = _logged(log, page_number)
        differs = np.flatnonzero(mask & (wanted != partial.baseline.leaves(page_number)))
        if len(differs):
            return int(page_number) * PAGE + int(differs[0]) * PIECE
    return partial.spec.virtual_size
