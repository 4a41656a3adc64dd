"""Who does the work of one VM's session: its movers, and how each of them knows the places.

The driver speaks to a `Crew` and never asks where anything runs. `LocalCrew` is a pair of child
movers on this machine; `service_crew` has the one of movers on other machines.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from standby.clock import new_token
from standby.errors import MoverLeft, NoProxy, RepositoryError, StandbyError
from standby.files import is_there, rename_durably
from standby.host.folder import create_replica_machine, update_replica_machine
from standby.model.machine import CheckpointDisk, Machine
from standby.repository import DiskState, Repository, StagedDisk
from standby.road.replica import ReplicaFolder
from standby.road.replica_machines import ReplicaMachines
from standby.server.context import TaskSlots
from standby.server.hanging import TaskWatch
from standby.server.movers import MoverPair
from standby.server.service_mover import Reconnect

if TYPE_CHECKING:
    from standby.server.wan_link import WanLink


SourceFiles = Mapping[str, Any]
"""A disk for the verbs of a source mover: {"root", "files"} (road.source_host.SourceDisk)."""


class Handle(Protocol):
    """One mover, as its callers see it."""

    @property
    def name(self) -> str: ...
    @property
    def is_connected(self) -> bool: ...
    def start(self, verb: str, /, **arguments: Any) -> Future[Any]: ...
    def start_now(self, verb: str, /, **arguments: Any) -> Future[Any] | None: ...
    def call(self, verb: str, /, **arguments: Any) -> Any: ...


class RepositoryView(Protocol):
    """What a session asks of the repository, wherever it lies."""

    def states(self, replica: str) -> dict[str, DiskState]: ...
    def points(self, replica: str) -> list[str]: ...
    def staged(self, replica: str) -> list[StagedDisk]: ...
    def commit(self, replica: str, point_id: str, disks: Mapping[str, bytes]) -> None: ...
    def discard(self, replica: str, disk: str | None = None) -> None: ...
    def drop_points(self, replica: str, keep: Collection[str]) -> None: ...
    def forget(self, replica: str) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class DiskTask:
    """A disk that is to be sent, as far as choosing who does it goes. `files` are its own in the
    source host's folder, the disk first; `avoid` are proxies that failed at it; `may_use_wan`: over
    the job's WAN accelerators, where it has some."""

    task: str
    machine: str
    place: str
    disk_id: str
    files: Sequence[str]
    replica: str
    generation: int = 0
    size_bytes: int = 0
    avoid: frozenset[str] = frozenset()
    may_use_wan: bool = False


def expected_disk(
    seen: SourceFiles | None, machine: str, disk: CheckpointDisk
) -> dict[str, Any] | None:
    """The disk in its host's words, where a map of paths led to its files as they are `seen`."""
    if seen is None or seen["root"] or not disk.page83:
        return None
    return {
        "machine": machine,
        "place": disk.place,
        "disk_id": disk.page83,
        "virtual_size": disk.virtual_size,
    }


@dataclass(frozen=True, slots=True)
class DiskLink:
    """The two ends of one disk task. `disk` is what the verbs of `source` take for the disk (None
    of a task that runs already) and `repository` the repository as it knows it; `at_source` and
    `at_target` are the ends' connection specs (road.connections). `proxy` names who sends, '' on
    one machine. Where the repository lies with another mover, `keeper` is that one, and `at_keeper`
    its end of a connection from `source`. `wan` are the WAN accelerators between the ends;
    `left_wan` why there are none although the task might use them.
    """

    source: Handle
    disk: SourceFiles | None
    repository: Any
    at_source: Any
    at_target: Any
    proxy: str = ""
    keeper: Handle | None = None
    at_keeper: Any = None
    kept_at: str = ""
    wan: WanLink | None = None
    left_wan: str = ""

    def compression(self, wanted: str) -> str:
        """What the job's `compression` means here: between processes of one machine 'auto' is
        none; WAN accelerators have to see the content and pack it themselves."""
        if self.wan is not None:
            return "none"
        return "none" if wanted == "auto" and not self.proxy else wanted

    def expected(self, machine: str, disk: CheckpointDisk) -> dict[str, Any] | None:
        """The disk in its host's words, where a map of paths led to its files."""
        return expected_disk(self.disk, machine, disk)

    def serve_leaves(self, send: Mapping[str, Any], *, stages: bool = True) -> None:
        """Have the repository's mover answer the source of the task that `send`, the arguments of
        its `send_disk` or `scan_disk`, describes. What fails there, the source tells."""
        if self.keeper is None:
            return
        names = ("task", "replica", "disk_id", "session", "point_id", "virtual_size")
        self.keeper.start(
            "serve_leaves",
            connection=self.at_keeper,
            repository=self.kept_at,
            builds_on_repository=send["builds_on_repository"],
            stages=stages,
            **{name: send[name] for name in names},
        )

    def end_leaves(self, task: str) -> None:
        """The source failed: the repository's mover need not wait for it."""
        if self.keeper is not None and self.keeper.is_connected:
            with contextlib.suppress(StandbyError):
                self.keeper.start("cancel", task=task)


def replica_name(path: str) -> str:
    """The name of the replica whose folder is at `path`, as whatever mover calls that place."""
    return re.split(r"[/\\:]", path)[-1]


class Crew(Protocol):
    """The movers of one VM's session.

    `source` is one that reads the source's disks, `target` the replica's one writer; `target_root`
    is the target's folder as that one knows it.
    """

    @property
    def source(self) -> Handle: ...

    target: Handle
    target_root: str
    name: str
    target_proxy: str
    is_broken: bool
    reconnect: Reconnect
    left_out: dict[str, str]
    """What the VM's report is to say of its movers: of source proxies that were not there when a
    disk began, and of limits that are not ours. By what it is about."""
    can_retry: bool
    """Whether a broken link is worth another try within the session."""

    def ask_source(self, verb: str, disk: CheckpointDisk) -> Any:
        """The answer of one that sees the disk of these files, in the source host's folder."""

    def open_repository(self, create: bool = True) -> RepositoryView:
        """The repository; raises RepositoryError, also when it is not there and `create` is not
        set."""

    def heal_repository(self, key: str, error: RepositoryError) -> str:
        """Make a damaged repository usable again; what was done. Raises `error` when it cannot."""

    def disk_link(self, task: DiskTask) -> AbstractContextManager[DiskLink]:
        """Wait for everything the task needs and hold it until the block ends."""

    def joined_link(
        self, task: DiskTask, proxy: str, wan: str = ""
    ) -> AbstractContextManager[DiskLink]:
        """What `disk_link` gave for a task that runs already, sent by `proxy` over the WAN
        accelerators `wan` ('': directly)."""

    def watch(self, task: str, source: Handle, wan: WanLink | None = None) -> TaskWatch | None:
        """Looks whether an end of the task, which `source` sends over `wan`, hangs; None where
        nobody could stand in."""

    def hurry(self) -> float | None:
        """The point is committed, what is left can be made good later: from now on a mover that is
        away is waited for that many seconds only; None where none ever is."""

    host_root: str
    """The target's folder as its host sees it, '' where that is a folder host."""

    def check_replica_off(self, path: str) -> None:
        """Raise ReplicaStarted where the host of the replica at `path` says that its VM is not off,
        or has checkpoints; of a folder host the ready layers tell."""

    def keep_replica_machine(self, path: str, machine: Machine, ready: dict[str, str]) -> list[str]:
        """Make or update the replica VM of the replica at `path`, attached to its ready layers;
        what there is to say of it."""

    def end_left(self, crew: str) -> bool:
        """A dead session's crew of that name may have the replica open at a mover that does not
        know that it is dead: have it closed. Whether there is anybody to ask."""

    def cut(self) -> None:
        """End every call of this session, whatever hangs; the crew is not used again."""


class LocalCrew:
    """Both movers are children of this process."""

    can_retry = False
    reconnect = Reconnect()
    name = ""
    target_proxy = ""

    def __init__(
        self,
        pair: MoverPair,
        source_root: Path,
        target_root: Path,
        repository: Path,
        slots: TaskSlots | None = None,
        seen: Callable[[Sequence[str]], SourceFiles | None] = lambda disk: None,
        machine: str = "",
        host_root: str = "",
        machines: ReplicaMachines | None = None,
    ) -> None:
        """`seen` says where a disk of these files is that is not below `source_root`; it may raise
        NoProxy. `machines` are the VMs of a target that is no folder host, and sees its folder as
        `host_root`."""
        self.host_root = host_root
        self._machines = machines
        self._pair = pair
        self._seen = seen
        self._machine = machine
        self.left_out: dict[str, str] = {}
        self._repository = repository
        self._slots = slots
        self.source: Handle = pair.source
        self.target: Handle = pair.target
        self._source_root = str(source_root)
        self.target_root = str(target_root)

    @property
    def is_broken(self) -> bool:
        """Whether the pair met an error."""
        return self._pair.is_broken

    @is_broken.setter
    def is_broken(self, value: bool) -> None:
        self._pair.is_broken = value

    def open_repository(self, create: bool = True) -> RepositoryView:
        """See Crew."""
        return Repository(self._repository, create=create)

    def heal_repository(self, key: str, error: RepositoryError) -> str:
        """See Crew: forget what the repository has of the replica, or, where not even that works,
        move it away. The next comparison is with the target's own digests."""
        if "damaged" not in error.problem:  # another program's database
            raise error
        try:
            with Repository(self._repository) as repository:
                repository.forget(key)
                return "what it had of this replica was dropped"
        except RepositoryError as exc:
            if "damaged" not in exc.problem:
                raise
            path = self._repository
            aside = path.with_name(f"{path.name}.damaged-{new_token(4)}")
            rename_durably(path, aside)
            return f"it was moved to {aside}"

    def ask_source(self, verb: str, disk: CheckpointDisk) -> Any:
        """See Crew."""
        there = self._source_disk(disk.files)
        expected = expected_disk(there, self._machine, disk)
        return self.source.call(verb, disk=there, expected=expected)

    def _source_disk(self, disk: Sequence[str]) -> SourceFiles:
        try:
            seen = self._seen(disk)
        except NoProxy as exc:
            raise replace(exc, machine=self._machine) from None
        return seen or {"root": self._source_root, "files": list(disk)}

    @contextlib.contextmanager
    def disk_link(self, task: DiskTask) -> Iterator[DiskLink]:
        """See Crew; the ends are told the number of a connection they both hold."""
        with contextlib.ExitStack() as stack:
            if self._slots is not None:
                stack.enter_context(self._slots.taken())
            number = stack.enter_context(self._pair.connection())
            repository = str(self._repository)
            disk = self._source_disk(task.files)
            yield DiskLink(self.source, disk, repository, number, number)

    def joined_link(
        self, task: DiskTask, proxy: str, wan: str = ""
    ) -> AbstractContextManager[DiskLink]:
        """Child movers end with their server: nothing runs that could be joined."""
        raise MoverLeft(proxy, "it ended with its server")

    def watch(self, task: str, source: Handle, wan: WanLink | None = None) -> TaskWatch | None:
        """See Crew."""
        return None

    def hurry(self) -> float | None:
        """See Crew."""
        return None

    def check_replica_off(self, path: str) -> None:
        """See Crew."""
        if self._machines is None:
            return
        self._machines.check_untouched(ReplicaFolder(Path(path)))

    def keep_replica_machine(self, path: str, machine: Machine, ready: dict[str, str]) -> list[str]:
        """See Crew."""
        if not ready:
            return []
        folder = Path(path)
        if self._machines is not None:
            replica = ReplicaFolder(folder)
            newest = replica.newest()
            return [] if newest is None else self._machines.describe(replica, newest)
        if is_there(folder / "vm.toml"):
            update_replica_machine(folder, machine, ready)
        else:
            create_replica_machine(folder, machine, ready)
        return []

    def end_left(self, crew: str) -> bool:
        """See Crew: children end with their session."""
        return False

    def cut(self) -> None:
        """See Crew."""
        self._pair.cut()
