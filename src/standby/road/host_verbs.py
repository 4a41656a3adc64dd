"""A folder host's station: the verbs that let the backup server drive the host from afar.

What `ports.Host` asks of a host, one verb each, with the host's folder (`root`) and the name that
messages call it by (`host`). Checkpoints live in this process: it holds their locks. When the
server stays away, what it left is given up with `close_where` (RULES 10).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import PathRefused, ReplicaMissing, StandbyError
from standby.files import is_there
from standby.host.folder import FolderHost, create_replica_machine, update_replica_machine
from standby.model.machine import Checkpoint, Machine
from standby.road import naming
from standby.road.owners import Owner, current_owner
from standby.road.places import LOCAL_PLACES, Places, plain_name
from standby.road.replica import ReplicaFolder
from standby.road.verbs import answered


@dataclass(slots=True)
class _Held:
    """A checkpoint that this process took."""

    host: FolderHost
    checkpoint: Checkpoint
    intent_id: str
    owner: Owner


class HostVerbs:
    """Verbs of a host mover."""

    def __init__(
        self,
        *,
        places: Places = LOCAL_PLACES,
        state_folder: Path | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`state_folder` tells this mover's clone folders from another's."""
        self._places = places
        self._state_folder = state_folder
        self._clock = clock
        self._hosts: dict[tuple[str, Path], FolderHost] = {}
        self._held: dict[tuple[str, str, str], _Held] = {}
        self._lock = threading.Lock()
        self._verbs: dict[str, Callable[..., Any]] = {
            "host_machines": lambda root, host, replicas=False: self._host(root, host).machines(
                replicas=replicas
            ),
            "host_inventory": lambda root, host: self._host(root, host).inventory(),
            "host_power_state": lambda root, host, machine: self._host(root, host).power_state(
                _machine(machine)
            ),
            "host_start": lambda root, host, machine: self._host(root, host).start(
                _machine(machine)
            ),
            "host_stop": self.stop,
            "host_take_checkpoint": self.take_checkpoint,
            "host_confirm_checkpoint": lambda root, host, checkpoint: self._host(
                root, host
            ).confirm_checkpoint(_checkpoint(checkpoint)),
            "host_release_checkpoint": self.release_checkpoint,
            "host_release_leftovers": lambda root, host: self._host(root, host).release_leftovers(),
            "host_release_intent": self.release_intent,
            "host_state_files": lambda root, host, machine: self._host(root, host).state_files(
                _machine(machine)
            ),
            "host_changes_since": self.changes_since,
            "host_forget_tracker": lambda root, host, machine, tracker_ids: self._host(
                root, host
            ).forget_tracker(_machine(machine), tracker_ids),
            "keep_replica_machine": self.keep_replica_machine,
        }

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Run `verb`; NotImplemented for one of another role."""
        return answered(self._verbs, verb, arguments)

    def close(self) -> None:
        """Give up every checkpoint that is held."""
        self.close_where(lambda owner, session: True)

    def close_where(self, is_meant: Callable[[Owner, str], bool]) -> list[str]:
        """Release the checkpoints for whose (owner, intent) that is true; which."""
        with self._lock:
            meant = [held for held in self._held.values() if is_meant(held.owner, held.intent_id)]
        released = []
        for held in meant:
            try:
                held.host.release_checkpoint(held.checkpoint)
            except StandbyError:
                continue  # tried again by the next look, by `host_release_leftovers`, by a server
            with self._lock:
                self._held.pop(_key(held.checkpoint), None)
            released.append(f"checkpoint {held.checkpoint.id} of VM {held.checkpoint.machine_id}")
        return released

    def _host(self, root: str, host: str) -> FolderHost:
        key = (host, self._places.path(root))
        with self._lock:
            if key not in self._hosts:
                self._hosts[key] = FolderHost(host, key[1], self._state_folder, self._clock)
            return self._hosts[key]

    # --- checkpoints -------------------------------------------------------------------------

    def take_checkpoint(
        self, root: str, host: str, machine: dict[str, Any], intent_id: str
    ) -> Checkpoint:
        """Fix the VM's disks."""
        found = self._host(root, host)
        taken = found.take_checkpoint(_machine(machine), intent_id)
        with self._lock:
            self._held[_key(taken)] = _Held(found, taken, intent_id, current_owner())
        return taken

    def release_checkpoint(
        self, root: str, host: str, checkpoint: dict[str, Any]
    ) -> dict[str, str]:
        """Give a checkpoint up; repeating it is harmless."""
        given = _checkpoint(checkpoint)
        trackers = self._host(root, host).release_checkpoint(given)
        with self._lock:
            self._held.pop(_key(given), None)
        return trackers

    def release_intent(self, root: str, host: str, intent_id: str) -> list[str]:
        """Give up what was taken for an intent whose server died before it heard of it."""
        found = self._host(root, host)
        with self._lock:
            meant = [
                held
                for held in self._held.values()
                if held.intent_id == intent_id and held.host is found
            ]
        for held in meant:
            self.release_checkpoint(root, host, msgspec.to_builtins(held.checkpoint))
        return [f"checkpoint {held.checkpoint.id[:12]}" for held in meant]

    def changes_since(
        self,
        root: str,
        host: str,
        machine: dict[str, Any],
        place: str,
        tracker_id: str,
        checkpoint: dict[str, Any],
    ) -> dict[str, Any]:
        """{"ranges": [(offset, length)] or None, "reason"}."""
        answer = self._host(root, host).changes_since(
            _machine(machine), place, tracker_id, _checkpoint(checkpoint)
        )
        ranges = answer.ranges
        return {
            "ranges": None
            if ranges is None
            else [(extent.offset, extent.length) for extent in ranges],
            "reason": answer.reason,
        }

    # --- power -------------------------------------------------------------------------------

    def stop(
        self,
        root: str,
        host: str,
        machine: dict[str, Any],
        force: bool = False,
        timeout_s: float = 60,
    ) -> None:
        """Shut the guest down, or with `force` end it when it does not."""
        self._host(root, host).stop(_machine(machine), force=force, timeout_s=timeout_s)

    # --- replicas ----------------------------------------------------------------------------

    def keep_replica_machine(
        self, path: str, machine: dict[str, Any], ready: dict[str, str]
    ) -> None:
        """Make or update the replica VM, attached to its ready layers."""
        keep_replica_machine(self._places.path(path), _machine(machine), ready)


def keep_replica_machine(folder: Path, machine: Machine, ready: Mapping[str, str]) -> None:
    """Make or update the VM of the replica in `folder`, attached to its ready layers ({place: file
    relative to the folder}); nothing without any. ReplicaMissing where there is no replica."""
    if not ready:
        return
    for file in ready.values():
        disk, _, name = file.partition("/")
        if name != naming.READY or plain_name(disk, "disk") != disk:
            raise PathRefused(file, f"is no {naming.READY}, and a replica VM has nothing else")
    if not ReplicaFolder(folder).exists():
        raise ReplicaMissing(folder.name, str(folder), "the replica is not there")
    if is_there(folder / "vm.toml"):
        update_replica_machine(folder, machine, ready)
    else:
        create_replica_machine(folder, machine, ready)


def _machine(data: dict[str, Any]) -> Machine:
    return msgspec.convert(data, Machine)


def _checkpoint(data: dict[str, Any]) -> Checkpoint:
    return msgspec.convert(data, Checkpoint)


def _key(checkpoint: Checkpoint) -> tuple[str, str, str]:
    return checkpoint.machine_id, checkpoint.id, checkpoint.taken_at
