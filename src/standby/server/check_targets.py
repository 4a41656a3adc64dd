"""What `standby check` asks of a job's target: of its folder on this machine, or of the target
proxy that a session would take. Nothing is made or changed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from standby.clock import SYSTEM_CLOCK
from standby.files import free_bytes, is_folder, is_there, listed
from standby.model.job import ReplicationJob
from standby.model.replica import ReplicaIdentity
from standby.ports import Host
from standby.road.naming import LOCK
from standby.road.points import TargetState
from standby.road.replica import ReplicaFolder
from standby.road.seed_check import missing_seed
from standby.road.seeding import found_replica, mapped_machine
from standby.road.surveying import ReplicaStatus, seen_state
from standby.server.config import Config
from standby.server.config_check import is_allowed, unwritable
from standby.server.crew import replica_name
from standby.server.remote_host import RemoteHost
from standby.server.replicas import Replicas


class Target(Protocol):
    """The target of a job. `path` is a replica's folder as the target calls it."""

    def find(self, identity: ReplicaIdentity, wanted: str) -> tuple[str, bool]:
        """The folder of that replica, or where it would be made, and whether it is there."""

    def state(self, path: str) -> TargetState:
        """What is held of the replica, which is there."""

    def write_problem(self, path: str = "") -> str:
        """Why the replica's folder ('': the target's own) cannot be written, '' where it can."""

    def missing_seed(self, path: str, seeds: Mapping[str, str]) -> str:
        """See `seed_check.missing_seed`."""

    def mapped_places(self, folder: str) -> list[str]:
        """Controller places of the VM in `folder` that a job maps to; raises why it cannot be."""

    def free_bytes(self, path: str) -> int:
        """Room for the replica."""

    def replicas(self) -> Sequence[ReplicaStatus]:
        """All replicas there that can be read."""

    def shown(self, path: str = "") -> str:
        """What people call the replica's folder, '' the target's own."""


class FolderTarget:
    """A target on this machine. What is wrong with the folder itself `config_check` finds."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, identity: ReplicaIdentity, wanted: str) -> tuple[str, bool]:
        """See Target."""
        found = found_replica(self._root, identity, wanted, SYSTEM_CLOCK)
        return str(found.path), found.exists

    def state(self, path: str) -> TargetState:
        """See Target."""
        return seen_state(ReplicaFolder(Path(path)))

    def write_problem(self, path: str = "") -> str:
        """See Target."""
        folder = Path(path) if path else self._root
        while not is_there(folder) and folder != folder.parent:
            folder = folder.parent
        if not is_folder(folder):
            return ""
        if not is_allowed(folder, os.W_OK | os.X_OK):
            return unwritable(folder)[0]
        # What somebody else made there, as root may have done once, stops a session as well.
        for inner in listed(folder) if str(folder) == path else ():
            if inner.name == LOCK:
                is_open = is_allowed(inner)
            else:  # one that cannot be read is told by who reads it
                is_seen = is_folder(inner) and is_allowed(inner, os.R_OK | os.X_OK)
                is_open = not is_seen or is_allowed(inner, os.W_OK)
            if not is_open:
                return f"holds {inner}, which {unwritable(inner)[0]}"
        return ""

    def missing_seed(self, path: str, seeds: Mapping[str, str]) -> str:
        """See Target."""
        return missing_seed(ReplicaFolder(Path(path)), seeds)

    def mapped_places(self, folder: str) -> list[str]:
        """See Target."""
        return [disk.place for disk in mapped_machine(self._root, folder).disks]

    def free_bytes(self, path: str) -> int:
        """See Target."""
        folder = Path(path)
        while not is_there(folder) and folder != folder.parent:
            folder = folder.parent
        return free_bytes(folder)

    def replicas(self) -> Sequence[ReplicaStatus]:
        """See Target."""
        return Replicas.of_folder(self._root).all() if is_folder(self._root) else []

    def shown(self, path: str = "") -> str:
        """See Target."""
        return path or str(self._root)


class MoverTarget:
    """A target at a mover; one that is away raises MoverDied or LinkError. `folder` is the host's
    as its machine has it."""

    def __init__(self, host: RemoteHost, folder: Path) -> None:
        self._host = host
        self._folder = folder

    def find(self, identity: ReplicaIdentity, wanted: str) -> tuple[str, bool]:
        """See Target."""
        found = self._host.ask(
            "find_replica",
            root=self._host.root(),
            identity=msgspec.to_builtins(identity),
            wanted=wanted,
        )
        return found["path"], found["exists"]

    def state(self, path: str) -> TargetState:
        """See Target."""
        return msgspec.convert(self._host.ask("inspect_replica", path=path), TargetState)

    def write_problem(self, path: str = "") -> str:
        """See Target."""
        told = self._host.ask("probe_place", path=path or self._host.root(), writes=True)
        return str(told["problem"])

    def missing_seed(self, path: str, seeds: Mapping[str, str]) -> str:
        """See Target."""
        return str(self._host.ask("missing_seed", path=path, seeds=dict(seeds)))

    def mapped_places(self, folder: str) -> list[str]:
        """See Target."""
        found: Any = self._host.ask("mapped_disks", root=self._host.root(), folder=folder)
        return list(found)

    def free_bytes(self, path: str) -> int:
        """See Target."""
        return int(self._host.ask("free_bytes", path=path))

    def replicas(self) -> Sequence[ReplicaStatus]:
        """See Target."""
        told = self._host.ask("replica_list", root=self._host.root())
        return msgspec.convert(told["replicas"], list[ReplicaStatus])

    def shown(self, path: str = "") -> str:
        """See Target."""
        below = f"{replica_name(path)} in " if path else ""
        return f"{below}{self._folder} on the machine of mover {self._host.mover}"


def target_of(config: Config, job: ReplicationJob, host: Host) -> Target:
    """The job's target, which is that host. NoProxy where no target proxy is there for it."""
    path = config.hosts[job.target].path
    if isinstance(host, RemoteHost):
        return MoverTarget(host.at_target(job), path)
    return FolderTarget(path)


def write_hint(target: Target, problem: str, path: str = "") -> str:
    """What to do about a `write_problem`."""
    if "read-only" in problem.lower():
        return "mount its file system writable, or replicate to another one"
    return f"give this user write access to {target.shown(path)} and all that it holds"
