"""The folder host: every VM is a folder with a vm.toml and disk files; QEMU runs them.

    <path>/<VM folder>/vm.toml                 who it is (vm_toml.py)
                      /*.vhdx …                its disks, where vm.toml says
                      /.standby.lock           locks between our own processes (locks.py)
                      /power.json              its processes, once it was started (power.py)
                      /serial.log disk-server.log nvram.fd       of the last start
                      /.standby-checkpoint-*   clones of a checkpoint (checkpoint.py)

A folder that holds a replica.json is a replica: it is listed and started like a VM, but only
where replicas are asked for, so that a wildcard never makes a replica of a replica.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from standby.clock import SYSTEM_CLOCK, Clock
from standby.disk import open_disk
from standby.errors import (
    ConfigurationError,
    DiskBusy,
    DiskError,
    DiskIO,
    MachineRunning,
    SourceChanged,
    UnknownName,
)
from standby.files import is_file, is_folder
from standby.host.folder import checkpoint as checkpoints
from standby.host.folder import inventory
from standby.host.folder.checkpoint import OWNER_FILE, Held
from standby.host.folder.making import (
    create_replica_machine,
    new_machine,
    update_replica_machine,
)
from standby.host.folder.running import OWN_FILES, Running
from standby.host.folder.vm_toml import Boot
from standby.model.extent import Extent
from standby.model.machine import Checkpoint, Inventory, Machine, PowerState

__all__ = [
    "OWNER_FILE",
    "OWN_FILES",
    "Boot",
    "FolderHost",
    "NoTracker",
    "create_replica_machine",
    "new_machine",
    "update_replica_machine",
]


STATE_FILE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class NoTracker:
    """The answer of a host that keeps no change tracker."""

    reason: str = "folder host keeps no change tracker for a VM that is off"
    ranges: Sequence[Extent] | None = None


class FolderHost:
    """The host whose VMs are the folders in `path`; implements `ports.Host`.

    `state_folder` holds what tells this installation's checkpoints from another's; None means
    that all hosts without one share theirs. `accelerator` is 'auto' (KVM where this user may,
    else TCG), 'kvm' or 'tcg'. Not thread-safe for one VM; different VMs may be used at once.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        state_folder: Path | None = None,
        clock: Clock = SYSTEM_CLOCK,
        *,
        accelerator: str = "auto",
    ) -> None:
        self.name = name
        self.path = path
        self._clock = clock
        self._state_folder = state_folder
        self._accelerator = accelerator
        self._held: dict[tuple[str, str, str], Held] = {}

    # --- what there is ---

    def machines(self, *, replicas: bool = False) -> list[Machine]:
        """All VMs, in order of name, with what their disk files say; replicas only if asked.

        Raises ConfigurationError where a vm.toml is wrong, or two VMs share an id or a name.
        """
        found = inventory.machine_files(self.path, self.name, replicas=replicas)
        return [inventory.described(self.path, item.machine) for item in found]

    def inventory(self) -> Inventory:
        """All VMs but replicas, and what is wrong with those that cannot be used: a vm.toml that
        is wrong, an id or a name that two of them share."""
        found, problems = inventory.survey(self.path, self.name)
        return Inventory(
            tuple(inventory.described(self.path, item.machine) for item in found),
            tuple(item.problem for item in problems),
        )

    def machine(self, name: str, *, replicas: bool = False) -> Machine:
        """The VM of that name or id; UnknownName when there is none, ConfigurationError when it
        cannot be used. Another VM that cannot be is no reason to refuse this one."""
        found, problems = inventory.survey(self.path, self.name, replicas=replicas)
        for item in found:
            if name in (item.machine.name, item.machine.id):
                return inventory.described(self.path, item.machine)
        for problem in problems:
            if name in (problem.name, problem.id, problem.folder):
                raise problem.error
        raise UnknownName("VM", name, tuple(item.machine.name for item in found))

    def disk_problems(self, machine: Machine) -> dict[str, str]:
        """By controller place, what is wrong with the files of the VM's disks: one that is
        missing, damaged or not a disk, a chain that is not whole. Contents are not read."""
        folder = inventory.plain_path(self.path, machine.folder)
        problems = {}
        for disk in machine.disks:
            try:
                paths = [layer.path for layer in inventory.disk_chain(folder, disk.file)]
                open_disk(paths[0], parents=paths[1:]).close()
            except DiskBusy:
                continue  # a VM that runs
            except (DiskError, ConfigurationError) as exc:
                problems[disk.place] = str(exc)
        return problems

    def machine_in(self, folder: str) -> Machine:
        """The VM in that folder below the host's, replica or not."""
        return inventory.described(self.path, inventory.machine_file(self.path, folder).machine)

    # --- power ---

    def _running(self, machine: Machine) -> Running:
        return Running(
            self.name, inventory.plain_path(self.path, machine.folder), machine, self._clock
        )

    def power_state(self, machine: Machine) -> PowerState:
        """Whether our QEMU, or another that has a disk open for writing, runs the VM."""
        return self._running(machine).power_state()

    def seen_power(self, machine: Machine) -> PowerState:
        """`power_state` for who only looks: nothing is changed, what a guest that shut itself down
        left is not ended."""
        return self._running(machine).seen()

    def reason_to_be_running(self, machine: Machine) -> tuple[str, bool]:
        """Why the VM is not off, '' when it is; and whether `stop` could end that."""
        running = self._running(machine)
        return running.reason_to_be_running(), running.is_ours_to_stop()

    def start(self, machine: Machine) -> None:
        """Start the VM, or what is missing of it: a dead disk server of a running QEMU is started
        again, a running VM left as it is.

        HostError when QEMU is not installed or refuses, a checkpoint reads the disks, or another
        process is at it.
        """
        item = inventory.machine_file(self.path, machine.folder)
        self._running(machine).start(item, self._accelerator)

    def stop(self, machine: Machine, *, force: bool = False, timeout_s: float = 60) -> None:
        """Shut the guest down, within `timeout_s` or HostError; with `force` end it then. The disk
        server ends clean. Stopping a VM that is off does nothing."""
        self._running(machine).stop(force=force, timeout_s=timeout_s)

    def disk_server(self, machine: Machine) -> tuple[int, str]:
        """(pid, start) of the VM's disk server, as replica.json records it; (0, '') if none."""
        return self._running(machine).disk_server()

    # --- checkpoints ---

    def take_checkpoint(self, machine: Machine, intent_id: str) -> Checkpoint:
        """Fix the disks of a VM that is off: reflink clones where the file system can, else
        identities and a lock (RULES 11).

        `intent_id` names the clone folder; a dead process's folder of that name is replaced.
        """
        machine = inventory.machine_file(self.path, machine.folder).machine
        state = self._running(machine)
        with state.locked():
            reason = state.reason_to_be_running()
            if reason:
                raise MachineRunning(self.name, machine.name, reason)
            taken, held = checkpoints.take(
                self.path,
                machine,
                intent_id,
                host=self.name,
                owner=checkpoints.owner_token(self._state_folder),
                taken_at=self._taken_at(machine),
            )
        self._held[_key(taken)] = held
        return taken

    def _taken_at(self, machine: Machine) -> str:
        """Now, later than every checkpoint of the VM that is held: it tells them apart."""
        now = self._clock.now()
        others = {time for vm, _, time in self._held if vm == machine.id}
        while (text := now.isoformat(timespec="microseconds")) in others:
            now += timedelta(microseconds=1)
        return text

    def confirm_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Raise SourceChanged, naming the file and what of it changed."""
        machine = self._machine_of(checkpoint)
        if checkpoint.kind != "clone":
            reason = self._running(machine).reason_to_be_running()
            if reason:
                raise SourceChanged(machine.name, machine.folder, reason)
        held = self._held.get(_key(checkpoint))
        checkpoints.confirm(self.path, machine, checkpoint, held)

    def _machine_of(self, checkpoint: Checkpoint) -> Machine:
        found, problems = inventory.survey(self.path, self.name, replicas=True)
        for item in found:
            if item.machine.id == checkpoint.machine_id:
                return item.machine
        for problem in problems:
            if problem.id == checkpoint.machine_id:
                raise SourceChanged(
                    problem.name, str(self.path / problem.folder), str(problem.error)
                )
        raise SourceChanged(checkpoint.machine_id, str(self.path), "the VM is gone from the host")

    def release_checkpoint(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Give the checkpoint up; there are no tracker ids here. Repeating it is harmless."""
        checkpoints.release(self.path, checkpoint, self._held.pop(_key(checkpoint), None))
        return {}

    def release_leftovers(self) -> list[str]:
        """Remove the clone folders of this installation, and of nobody, whose owners are dead."""
        owner = checkpoints.owner_token(self._state_folder)
        released = []
        for folder in self._machine_folders():
            for name in checkpoints.leftovers(folder, owner):
                if checkpoints.release_leftover(folder, name):
                    released.append(f"{folder.name}/{name}")
        return released

    def _machine_folders(self) -> list[Path]:
        try:
            entries = sorted(self.path.iterdir())
        except OSError as exc:
            raise inventory.unlisted(self.path, self.name, exc) from exc
        found = []
        for path in entries:
            with contextlib.suppress(DiskIO):  # what the system keeps from us cannot be tidied
                if is_folder(path) and not path.is_symlink():
                    found.append(path)
        return found

    # --- trackers ---

    def state_files(self, machine: Machine) -> dict[str, str]:
        """The UEFI variables (up to 1 MiB) as base64, by file name; empty where there are none."""
        if machine.generation == 1:
            return {}
        name = machine.nvram or "nvram.fd"
        folder = inventory.plain_path(self.path, machine.folder)
        path = inventory.plain_path(folder, name)
        if not is_file(path) or path.stat().st_size > STATE_FILE_MAX:
            return {}
        return {name: base64.b64encode(path.read_bytes()).decode()}

    def changes_since(
        self, machine: Machine, place: str, tracker_id: str, checkpoint: Checkpoint
    ) -> NoTracker:
        """None, with the reason: nothing tracks the writes to a VM that is off."""
        return NoTracker()

    def forget_tracker(self, machine: Machine, tracker_ids: Sequence[str]) -> None:
        """Nothing to forget."""


def _key(checkpoint: Checkpoint) -> tuple[str, str, str]:
    return checkpoint.machine_id, checkpoint.id, checkpoint.taken_at
