"""A repository on another machine, as the source proxy reads from it and stages into it.

One data connection per disk, to a mover that runs `serve_leaves` (`repository_verbs`): the stored
index and leaves are asked for as they are needed, new leaves go the other way in batches of 64
pages that nobody answers. What bounds them is the connection itself: a repository that is slower
than the scan takes nothing more until it has stored what it has.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from standby.digesting import LEAVES_PER_PAGE
from standby.errors import LinkError, ProtocolError, StandbyError, error_from_wire
from standby.repository import Mark
from standby.road.batches import LeafArray
from standby.road.scanning import PageIndex
from standby.wire.link import Link
from standby.wire.messages import (
    Failed,
    Finish,
    GetIndex,
    GetLeaves,
    Index,
    Leaves,
    Message,
    StageClear,
    Staged,
    StagedRoot,
    StageMark,
    StagePut,
    StageRoot,
    StageSync,
)

PAGES_MAX = 64
"""Pages in one message: 2 MiB of leaves."""


class RemoteRepository:
    """One disk's part of a repository, over a data link. Thread-safe: one question at a time."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        message, _ = self._received()
        if not isinstance(message, Staged):
            raise self._unexpected(message)
        self.mark = Mark(message.checkpoint_id, message.offset)
        self._pages: list[int] = []
        self._leaves: list[LeafArray] = []

    def leaves(self) -> RemoteLeaves:
        """The newest state, as a baseline."""
        return RemoteLeaves(self)

    def staging(self) -> RemoteStaging:
        """Where new leaves are put."""
        return RemoteStaging(self)

    def close(self) -> None:
        """Let the other end go, where it still listens."""
        try:
            with self._lock:
                self._link.send(Finish())
                self._link.receive()
        except LinkError:
            pass  # the task is over; what it staged was synced, or is not needed

    def ask(self, question: Message) -> tuple[Message, memoryview]:
        """Send what is collected, then `question`; its answer, whose payload the next one uses
        again."""
        self._flush()
        self._send(question)
        return self._received()

    def put(self, pages: Sequence[int], leaves: LeafArray) -> None:
        """Collect pages; whole batches are sent."""
        self._pages += [int(page) for page in pages]
        self._leaves.append(np.array(leaves, np.uint64))
        if len(self._pages) >= PAGES_MAX:
            self._flush()

    def say(self, statement: Message) -> None:
        """Send what is collected, then `statement`, which nobody answers."""
        self._flush()
        self._send(statement)

    def drop_collected(self) -> None:
        """Forget what was put and not sent."""
        self._pages, self._leaves = [], []

    def _flush(self) -> None:
        if not self._pages:
            return
        pages, leaves = self._pages, np.concatenate(self._leaves)
        self.drop_collected()
        for first in range(0, len(pages), PAGES_MAX):
            part = slice(first, first + PAGES_MAX)
            self._send(StagePut(pages[part]), np.ascontiguousarray(leaves[part]))

    def _send(self, message: Message, *payload: Any) -> None:
        try:
            self._link.send(message, *payload)
        except LinkError:
            self._raise_told()
            raise

    def _raise_told(self) -> None:
        """Raise what the other end said before it closed the connection, if it said anything."""
        try:
            while True:
                message, _ = self._link.receive()
                if isinstance(message, Failed):
                    raise error_from_wire(message.error)
        except LinkError:
            return

    def _received(self) -> tuple[Message, memoryview]:
        message, payload = self._link.receive()
        if isinstance(message, Failed):
            raise error_from_wire(message.error)
        return message, payload

    def _unexpected(self, message: Message) -> StandbyError:
        return ProtocolError(self._link.peer, f"unexpected {type(message).__name__}")

    # --- questions, under the lock -----------------------------------------------------------

    def index(self) -> PageIndex:
        """Page numbers and nodes of the newest state."""
        with self._lock:
            message, payload = self.ask(GetIndex())
            if not isinstance(message, Index) or len(payload) != message.count * 24:
                raise self._unexpected(message)
            data = bytes(payload)
        numbers = np.frombuffer(data, np.int64, message.count)
        nodes = np.frombuffer(data, np.uint8, message.count * 16, message.count * 8)
        return numbers, nodes.reshape(-1, 16)

    def read(self, pages: Sequence[int]) -> LeafArray:
        """(n, 4096) leaves of the newest state."""
        found = []
        for first in range(0, len(pages), PAGES_MAX):
            part = [int(page) for page in pages[first : first + PAGES_MAX]]
            with self._lock:
                message, payload = self.ask(GetLeaves(part))
                expected = len(part) * LEAVES_PER_PAGE * 8
                if not isinstance(message, Leaves) or len(payload) != expected:
                    raise self._unexpected(message)
                found.append(np.frombuffer(bytes(payload), np.uint64))
        if not found:
            return np.empty((0, LEAVES_PER_PAGE), np.uint64)
        return np.concatenate(found).reshape(-1, LEAVES_PER_PAGE)

    def stage(self, pages: Sequence[int], leaves: LeafArray) -> None:
        """See RemoteStaging.put."""
        with self._lock:
            self.put(pages, leaves)

    def clear(self) -> None:
        """See RemoteStaging.clear."""
        with self._lock:
            self.drop_collected()
            self.say(StageClear())
            self.mark = Mark("", 0)

    def set_mark(self, checkpoint_id: str, offset: int) -> None:
        """See RemoteStaging.set_mark."""
        with self._lock:
            self.say(StageMark(checkpoint_id, offset))
            self.mark = Mark(checkpoint_id, offset)

    def sync(self) -> None:
        """See RemoteStaging.sync."""
        with self._lock:
            message, _ = self.ask(StageSync())
            if not isinstance(message, Staged):
                raise self._unexpected(message)

    def root(self) -> bytes:
        """See RemoteStaging.root."""
        with self._lock:
            message, _ = self.ask(StageRoot())
            if not isinstance(message, StagedRoot):
                raise self._unexpected(message)
            return message.root


class RemoteLeaves:
    """The repository's newest state of one disk, as a baseline (`scanning.StoredLeaves`)."""

    def __init__(self, repository: RemoteRepository) -> None:
        self._repository = repository

    def index(self) -> PageIndex:
        """(page numbers, nodes) of the pages that are not zero."""
        return self._repository.index()

    def leaves(self, page_numbers: Sequence[int]) -> LeafArray:
        """(n, 4096) uint64 leaves of these pages."""
        return self._repository.read(page_numbers)


class RemoteStaging:
    """Where the new leaves of one disk are put: `repository.Staging` at a distance."""

    def __init__(self, repository: RemoteRepository) -> None:
        self._repository = repository

    @property
    def mark(self) -> Mark:
        """The last mark set, also by an earlier session that this one goes on from."""
        return self._repository.mark

    def clear(self) -> None:
        """Drop every page put so far, and the mark."""
        self._repository.clear()

    def put(self, page_numbers: Sequence[int], leaves: LeafArray) -> None:
        """Stage pages; they travel in batches, stored by `sync` at the latest."""
        self._repository.stage(page_numbers, leaves)

    def set_mark(self, checkpoint_id: str, offset: int) -> None:
        """Record that everything below `offset` was put; stored by the next `sync`."""
        self._repository.set_mark(checkpoint_id, offset)

    def sync(self) -> None:
        """Return when everything put and marked is stored."""
        self._repository.sync()

    def root(self) -> bytes:
        """The digest root (16 bytes) of the state that a commit would make."""
        return self._repository.root()
