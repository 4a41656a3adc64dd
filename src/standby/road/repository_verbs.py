"""The repository's station: the verbs of a mover beside whose disks a repository lies.

The backup server asks for states and points and commits them over the control connection; the
leaves themselves go over data connections of the tasks (`serve_leaves`, `remote_repository`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from standby import files
from standby.clock import new_token
from standby.digesting import LEAVES_PER_PAGE
from standby.errors import (
    LinkError,
    ProtocolError,
    RepositoryError,
    StandbyError,
    error_to_wire,
)
from standby.repository import Repository, Staging
from standby.road.batches import LeafArray
from standby.road.connections import TO_REPOSITORY, Connections, Errand, Spec
from standby.road.places import LOCAL_PLACES, Places
from standby.road.verbs import called
from standby.wire.link import Link
from standby.wire.messages import (
    Failed,
    Finish,
    Finished,
    GetIndex,
    GetLeaves,
    Index,
    Leaves,
    StageClear,
    Staged,
    StagedRoot,
    StageMark,
    StagePut,
    StageRoot,
    StageSync,
)

PAGES_MAX = 64
INDEX_PAGES_MAX = 1 << 18
"""Pages whose nodes one reply carries: 6 MiB."""
DATABASE_FILES = ("repository.sqlite", "repository.sqlite-wal", "repository.sqlite-shm")


def opened_repository(path: Path, *, create: bool = True) -> Repository:
    """The repository in `path`; PathRefused where a mover may not open it: SQLite opens its files
    itself, so they are looked at before."""
    for name in DATABASE_FILES:
        files.check_confined(path / name)
    return Repository(path, create=create)


def healed(path: Path, key: str, problem: str) -> str:
    """Make a damaged repository usable again: forget what it has of the replica, or, where not even
    that works, move it away. What was done, for people; the next comparison is with the target's
    own digests. Raises RepositoryError where it is no damage (another program's database)."""
    if "damaged" not in problem:
        raise RepositoryError(str(path), problem)
    try:
        with opened_repository(path) as repository:
            repository.forget(key)
            return "what it had of this replica was dropped"
    except RepositoryError as exc:
        if "damaged" not in exc.problem:
            raise
        aside = path.with_name(f"{path.name}.damaged-{new_token(4)}")
        files.rename_durably(path, aside)
        return f"it was moved to {aside}"


class RepositoryLeaves:
    """The repository's newest state of one disk, as a baseline (`scanning.StoredLeaves`)."""

    def __init__(self, repository: Repository, replica: str, disk_id: str) -> None:
        self._repository = repository
        self._key = (replica, disk_id)
        self._lock = threading.Lock()

    def index(self) -> Any:
        """(page numbers, nodes) of the pages that are not zero."""
        with self._lock:
            return self._repository.index(*self._key)

    def leaves(self, page_numbers: Sequence[int]) -> LeafArray:
        """(n, 4096) uint64 leaves of these pages."""
        with self._lock:
            return self._repository.leaves(*self._key, page_numbers)


class RepositoryVerbs:
    """Verbs of a repository mover. Every verb names the repository's folder (`repository`) and,
    where it is about one, the replica by its whole identity as text."""

    def __init__(self, connections: Connections, *, places: Places = LOCAL_PLACES) -> None:
        self._connections = connections
        self._places = places
        self._verbs: dict[str, Callable[..., Any]] = {
            "repository_states": self.states,
            "repository_points": lambda repository, replica: self._with(
                repository, lambda it: it.points(replica)
            ),
            "repository_replicas": lambda repository: self._with(
                repository, lambda it: it.replicas()
            ),
            "repository_staged": lambda repository, replica: self._with(
                repository, lambda it: msgspec.to_builtins(it.staged(replica))
            ),
            "repository_discard": lambda repository, replica, disk=None: self._with(
                repository, lambda it: it.discard(replica, disk)
            ),
            "repository_commit": self.commit,
            "repository_drop_points": lambda repository, replica, keep: self._with(
                repository, lambda it: it.drop_points(replica, set(keep))
            ),
            "repository_forget": lambda repository, replica: self._with(
                repository, lambda it: it.forget(replica)
            ),
            "repository_verify": lambda repository, task="": self._with(
                repository, lambda it: it.verify()
            ),
            "repository_index": self.index,
            "repository_leaves": self.leaves,
            "repository_heal": lambda repository, replica, problem: healed(
                self._places.path(repository), replica, problem
            ),
            "serve_leaves": self.serve_leaves,
        }

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Run `verb`; NotImplemented for one of another role."""
        return called(self._verbs, verb, arguments)

    def close(self) -> None:
        """Nothing outlives a call."""

    def _with(
        self, repository: str, work: Callable[[Repository], Any], *, create: bool = False
    ) -> Any:
        with opened_repository(self._places.path(repository), create=create) as opened:
            return work(opened)

    # --- states ------------------------------------------------------------------------------

    def states(self, repository: str, replica: str, create: bool = False) -> dict[str, Any]:
        """{disk: {"point_id", "root" (hex), "virtual_size", "sequence"}}. `create` makes a
        repository that is not there; without it that is a RepositoryError."""
        found = self._with(repository, lambda it: it.states(replica), create=create)
        return {
            disk: {
                "point_id": state.point_id,
                "root": state.root.hex(),
                "virtual_size": state.virtual_size,
                "sequence": state.sequence,
            }
            for disk, state in found.items()
        }

    def commit(self, repository: str, replica: str, point_id: str, disks: dict[str, str]) -> None:
        """`disks` maps a disk to the hex of its root."""
        try:
            roots = {disk: bytes.fromhex(root) for disk, root in disks.items()}
        except ValueError as exc:
            raise ProtocolError("backup server", f"repository_commit: a root: {exc}") from exc
        self._with(repository, lambda it: it.commit(replica, point_id, roots))

    def index(
        self,
        repository: str,
        replica: str,
        disk: str,
        point_id: str | None = None,
        first: int = 0,
    ) -> dict[str, Any]:
        """{"count": pages in all, "numbers": int64 bytes, "nodes": 16 bytes each} from the page at
        place `first` on, at most 262,144 of them."""
        numbers, nodes = self._with(repository, lambda it: it.index(replica, disk, point_id))
        part = slice(first, first + INDEX_PAGES_MAX)
        return {
            "count": len(numbers),
            "numbers": np.ascontiguousarray(numbers[part], np.int64).tobytes(),
            "nodes": np.ascontiguousarray(nodes[part]).tobytes(),
        }

    def leaves(
        self,
        repository: str,
        replica: str,
        disk: str,
        pages: list[int],
        point_id: str | None = None,
    ) -> bytes:
        """4096 uint64 for each of `pages`, at most 64."""
        if len(pages) > PAGES_MAX:
            raise ProtocolError("backup server", f"leaves of {len(pages)} pages asked for")
        found = self._with(repository, lambda it: it.leaves(replica, disk, pages, point_id))
        return bytes(np.ascontiguousarray(found, np.uint64).tobytes())

    # --- data --------------------------------------------------------------------------------

    def serve_leaves(
        self,
        task: str,
        connection: Spec,
        repository: str,
        replica: str,
        disk_id: str,
        session: str,
        point_id: str,
        virtual_size: int,
        builds_on_repository: bool,
        stages: bool = True,
    ) -> dict[str, Any]:
        """Answer for one disk over a data connection until the source has finished: its newest
        state to compare with, and (`stages`) a staging for its next one."""
        errand = Errand(task, TO_REPOSITORY, disk_id, replica)
        with self._connections.take(connection, errand) as taken:
            try:
                with opened_repository(self._places.path(repository), create=stages) as opened:
                    stored = RepositoryLeaves(opened, replica, disk_id)
                    staging = None
                    if stages:
                        opened.relax()
                        staging = opened.stage(
                            replica, disk_id, session, point_id, virtual_size, builds_on_repository
                        )
                    return {"pages": _served(taken.link, stored, staging)}
            except BaseException as exc:
                if not isinstance(exc, LinkError) or isinstance(exc, ProtocolError):
                    with contextlib.suppress(StandbyError):
                        taken.link.send(Failed(0, error_to_wire(exc, "repository")))
                raise


def _served(link: Link, stored: RepositoryLeaves, staging: Staging | None) -> int:
    """Serve until `Finish`; how many pages were staged. The source may be gone without it: what
    was staged is there for the next session, or replaced by it."""
    mark = staging.mark if staging is not None else None
    link.send(Staged(mark.checkpoint_id if mark else "", mark.offset if mark else 0))
    count = 0
    while True:
        message, payload = link.receive()
        if isinstance(message, Finish):
            link.send(Finished(count, 0))
            return count
        if isinstance(message, GetIndex):
            numbers, nodes = stored.index()
            link.send(
                Index(len(numbers)),
                np.ascontiguousarray(numbers, np.int64),
                np.ascontiguousarray(nodes),
            )
        elif isinstance(message, GetLeaves) and 0 < len(message.pages) <= PAGES_MAX:
            link.send(
                Leaves(len(message.pages)), np.ascontiguousarray(stored.leaves(message.pages))
            )
        elif staging is None:
            raise ProtocolError(
                link.peer, f"unexpected {type(message).__name__}: nothing is staged"
            )
        elif isinstance(message, StagePut):
            if (
                not 0 < len(message.pages) <= PAGES_MAX
                or len(payload) != len(message.pages) * LEAVES_PER_PAGE * 8
            ):
                raise ProtocolError(link.peer, "staged leaves of a wrong length")
            leaves = np.frombuffer(payload, np.uint64).reshape(-1, LEAVES_PER_PAGE)
            try:
                staging.put(message.pages, leaves)
            except ValueError as exc:
                raise ProtocolError(link.peer, f"staged leaves: {exc}") from exc
            count += len(message.pages)
        elif isinstance(message, StageMark):
            staging.set_mark(message.checkpoint_id, message.offset)
        elif isinstance(message, StageSync):
            staging.sync()
            link.send(Staged(staging.mark.checkpoint_id, staging.mark.offset))
        elif isinstance(message, StageRoot):
            link.send(StagedRoot(staging.root()))
        elif isinstance(message, StageClear):
            staging.clear()
        else:
            raise ProtocolError(link.peer, f"unexpected {type(message).__name__}")
