"""Starting, stopping and looking at one VM, between any number of our own processes.

Whoever starts, stops or tidies holds the VM's power lock meanwhile. Every step is recorded before
the next, and finding a step done already is success, so a kill anywhere is mended by the next
start or stop.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from standby.clock import Clock
from standby.errors import (
    ConfigurationError,
    DiskError,
    HostError,
    MachineRunning,
    StandbyError,
)
from standby.files import is_file
from standby.host.folder import inventory, locks, power, processes, qemu
from standby.host.folder.power import PowerRecord
from standby.host.folder.vm_toml import FILE_NAME, MachineFile
from standby.model.machine import Machine, PowerState

OWN_FILES = frozenset(
    {FILE_NAME, locks.LOCK_FILE, power.RECORD_FILE, qemu.SERIAL_LOG, qemu.SERVER_LOG, "nvram.fd"}
)
"""What the folder host itself puts into a VM's folder (a replica's too), beside disks."""

_LOCK_TIMEOUT_S = 30.0
_POLL_S = 0.05
_SERVER_GRACE_S = 60.0


class Running:
    """The processes of one VM, as seen from this process. Made anew for each question."""

    def __init__(self, host: str, folder: Path, machine: Machine, clock: Clock) -> None:
        self.host = host
        self.folder = folder
        self.machine = machine
        self.clock = clock

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the VM's power lock; HostError when another process keeps it."""
        lock = locks.power_lock(self.folder)
        deadline = self.clock.monotonic() + _LOCK_TIMEOUT_S
        while not lock.acquire():
            if self.clock.monotonic() >= deadline:
                raise HostError(
                    self.host,
                    f"VM {self.machine.name} is being started, stopped or checkpointed by "
                    f"another process for more than {_LOCK_TIMEOUT_S:g} s",
                )
            self.clock.sleep(_POLL_S)
        with lock:
            yield

    def record(self) -> PowerRecord:
        """What power.json says."""
        return power.read_record(self.folder, self.host)

    def disk_server(self) -> tuple[int, str]:
        """(pid, start) of the live disk server, (0, '') when there is none."""
        record = self.record()
        return (record.serve_pid, record.serve_started) if record.server_is_alive else (0, "")

    def power_state(self) -> PowerState:
        """RUNNING while QEMU lives or someone writes to a disk, UNKNOWN when another machine wrote
        down that it runs the VM.

        A disk server that outlived its QEMU (the guest shut itself down) is ended here.
        """
        return self._state(tidies=True)

    def seen(self) -> PowerState:
        """`power_state`, changing nothing: a disk server that outlived its QEMU is left as it is,
        and its VM counts as off."""
        return self._state(tidies=False)

    def _state(self, *, tidies: bool) -> PowerState:
        record = self.record()
        if record.is_elsewhere:
            return PowerState.UNKNOWN
        if record.qemu_is_alive:
            return PowerState.RUNNING
        if record.server_is_alive and not tidies:
            is_starting = locks.is_power_locked(self.folder)
            return PowerState.RUNNING if is_starting else PowerState.OFF
        if record.server_is_alive:
            lock = locks.power_lock(self.folder)
            if not lock.acquire():
                return PowerState.RUNNING  # someone starts or stops it right now
            with lock:
                self._tidy()
        return PowerState.RUNNING if self._writer() else PowerState.OFF

    def reason_to_be_running(self) -> str:
        """Why the VM counts as running, '' when it is off."""
        state = self.power_state()
        record = self.record()
        if state is PowerState.UNKNOWN:
            return f"power.json says that machine {record.node} runs it"
        if record.qemu_is_alive:
            return f"QEMU process {record.qemu_pid}"
        if record.server_is_alive:
            return f"disk server process {record.serve_pid}"
        return self._writer()

    def is_ours_to_stop(self) -> bool:
        """Whether `stop` can end what runs the VM: processes that this machine started for it."""
        record = self.record()
        return not record.is_elsewhere and (record.qemu_is_alive or record.server_is_alive)

    def _writer(self) -> str:
        """Who else has a disk's newest layer open for writing, '' when nobody."""
        for disk in self.machine.disks:
            try:
                path = inventory.plain_path(self.folder, disk.file)
                if is_file(path) and (words := locks.writer(path)):
                    return words
            except (ConfigurationError, DiskError):
                continue
        return ""

    def _tidy(self) -> None:
        """End the disk server of a VM that is off, and say so in power.json. Under the lock."""
        record = self.record()
        if record == PowerRecord() or record.qemu_is_alive or record.is_elsewhere:
            return
        if record.server_is_alive:
            processes.end(
                record.serve_pid, record.serve_started, self.clock, grace_s=_SERVER_GRACE_S
            )
        qemu.forget_sockets(record)
        power.write_record(self.folder, PowerRecord())

    def start(self, item: MachineFile, accelerator: str) -> None:
        """Bring the VM to run: see `FolderHost.start`."""
        qemu.qemu_binary(self.host)
        with self.locked():
            record = self.record()
            if record.is_elsewhere:
                raise MachineRunning(
                    self.host, item.machine.name, f"on machine {record.node}, says power.json"
                )
            if record.qemu_is_alive:
                self._serve_again(item, record)
                return
            self._tidy()
            self._refuse_when_read(item)
            record = replace(qemu.sockets(self.folder, self.host), node=platform.node())
            qemu.forget_sockets(record)
            power.write_record(self.folder, record)
            try:
                record = qemu.start_disk_server(
                    self.folder, item.machine, record, self.host, self.clock
                )
                power.write_record(self.folder, record)
                record = qemu.start_qemu(self.folder, item, record, self.host, accelerator)
                power.write_record(self.folder, record)
            except StandbyError:
                self._tidy()
                raise

    def _refuse_when_read(self, item: MachineFile) -> None:
        if locks.has_checkpoint(self.folder):
            raise HostError(
                self.host,
                f"VM {item.machine.name} cannot start: a session reads its disks under a "
                "checkpoint",
                "Wait for the session to end, or stop it",
            )
        words = self._writer()
        for disk in item.machine.disks:
            for layer in inventory.disk_chain(self.folder, disk.file):
                if locks.qemu_writer(layer.path):
                    words = locks.writer(layer.path)
        if words:
            raise MachineRunning(self.host, item.machine.name, words)

    def _serve_again(self, item: MachineFile, record: PowerRecord) -> None:
        if not record.server_is_alive:
            record = qemu.start_disk_server(
                self.folder, item.machine, record, self.host, self.clock
            )
        power.write_record(self.folder, record)  # also of a QEMU found by its pid file
        qemu.resume(record, self.host)

    def stop(self, *, force: bool, timeout_s: float) -> None:
        """Bring the VM to be off: see `FolderHost.stop`."""
        with self.locked():
            record = self.record()
            if record.is_elsewhere:
                raise HostError(
                    self.host,
                    f"VM {self.machine.name} runs on machine {record.node}, stop it there",
                )
            qemu.shut_down(
                record, self.machine.name, self.host, self.clock, force=force, timeout_s=timeout_s
            )
            self._tidy()
