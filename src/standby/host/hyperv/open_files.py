"""Files of a checkpoint that movers still have open through the host's shares when it is released.

A mover that died or hangs keeps its open files at the SMB server until that gives its session up.
Hyper-V then cannot convert the snapshot (0x80070020), or cannot merge what the VM wrote meanwhile.

    mover not heard of at the end ─┐
    sharing violation, waited for ─┴▶ wait ─▶ close ours ─▶ look again, … ─▶ FilesHeldOpen

Closed is nothing but the file that each disk's merge goes into (a deeper one may be the parent of
other VMs' disks too), and only where a client has it open that is a proxy of this host. The SMB
server is the host itself, of a cluster each node; of files on a file server (UNC paths) nothing is
closed, the error has the command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from standby.errors import FilesHeldOpen, HostCallFailed
from standby.host.hyperv.files import folded
from standby.host.hyperv.records import Record
from standby.host.hyperv.states import Watch
from standby.host.hyperv.verbs import Verb

PAUSES_S = (2.0, 5.0, 15.0, 60.0)
"""Between looks whether files of movers that were not heard of are closed; before the second look
and each one behind it they are."""
CLOSE_AFTER = 2
"""Sharing violations that are waited for before anything is closed: a mover may just be ending."""

Clients = Callable[[], Sequence[str]]
"""The names and addresses that the host's proxies have as SMB clients."""


class OpenFile(msgspec.Struct, frozen=True):
    """A file that a client has open: its address or name, and who it signed in as."""

    client: str
    user: str = ""


class OpenFiles(msgspec.Struct, frozen=True):
    """Who had one file open when the script looked, before it closed any."""

    open: list[OpenFile]


CLOSE_FILES: Verb[OpenFiles] = Verb("close_files", OpenFiles, is_repeatable=True)


def merged_into(record: Record) -> list[str]:
    """The files that a release of the record's checkpoint merges into, one of each disk."""
    return [disk.chain[0] for disk in record.disks if disk.chain]


def closing_command(files: Sequence[str]) -> str:
    """What closes these files on an SMB server whoever has them open, for people. A file server
    has them in folders of its own, so there what their shares call them must do."""
    tests = []
    for path in files:
        if is_on_file_server(path):
            tail = path.split("\\", 4)[-1]
            tests.append(f"$_.ShareRelativePath -eq '{tail}'")
        else:
            tests.append(f"$_.Path -eq '{path}'")
    return f"Get-SmbOpenFile | Where-Object {{ {' -or '.join(tests)} }} | Close-SmbOpenFile -Force"


@dataclass(slots=True)
class Closing:
    """Looks who has files of a checkpoint open, and closes what this host's proxies have."""

    watch: Watch
    clients: Clients

    def held(self, record: Record, *, close: bool) -> dict[str, list[str]]:
        """{file: clients of ours that had it open}; with `close` they have it no more.
        HostCallFailed where the SMB server cannot be asked."""
        clients = sorted({item.lower() for item in self.clients()})
        found = self._asked(record, clients, close=close)
        ours = {
            path: [item.client for item in files if item.client.lower() in clients]
            for path, files in found.items()
        }
        return {path: who for path, who in ours.items() if who}

    def _asked(
        self, record: Record, clients: Sequence[str], *, close: bool
    ) -> dict[str, list[OpenFile]]:
        files: list[dict[str, Any]] = [
            {"id": folded(path), "path": path, "close": close, "clients": list(clients)}
            for path in merged_into(record)
            if not is_on_file_server(path)
        ]
        if not files:
            return {}
        answer = self.watch.door.run(CLOSE_FILES, {"files": files})
        found: dict[str, list[OpenFile]] = {}
        for step in answer.steps:
            if step.value is None:
                raise step.error or AssertionError(step.id)
            found.setdefault(step.id, []).extend(step.value.open)
        return found

    def settle(self, record: Record) -> None:
        """Until no proxy of this host has the files open any more, which is helped along;
        FilesHeldOpen where they stay open. Where the SMB server cannot be asked, the conversion
        itself must tell."""
        pauses = list(PAUSES_S)
        is_first = True
        while True:
            try:
                held = self.held(record, close=not is_first)
            except HostCallFailed:
                return
            if not held:
                return
            if not pauses:
                raise self.error(record, held)
            is_first = False
            self.watch.clock.sleep(pauses.pop(0))

    def after_violation(self, record: Record, count: int) -> None:
        """After `count` sharing violations before this one: close what our proxies have open. What
        fails is told when nothing helps (`why_held`)."""
        if count < CLOSE_AFTER:
            return
        try:
            self.held(record, close=True)
        except HostCallFailed:
            return

    def why_held(self, record: Record) -> FilesHeldOpen:
        """The files that stay open, and who has them, as far as the SMB server can be asked."""
        try:
            found = self._asked(record, [], close=False)
        except HostCallFailed as exc:
            return self.error(record, {}, f"the SMB server was not asked: {exc}")
        held = {path: [item.client for item in who] for path, who in found.items() if who}
        remote = [path for path in merged_into(record) if is_on_file_server(path)]
        if remote:
            return self.error(record, held, "a file server is not asked by standby")
        return self.error(record, held, "" if held else "no client has them open through SMB")

    def error(self, record: Record, held: dict[str, list[str]], note: str = "") -> FilesHeldOpen:
        """The error that names files and clients; without clients, all the files."""
        files = list(held) or merged_into(record)
        who = tuple(
            f"{path} by {', '.join(sorted(set(held[path])))}" if path in held else path
            for path in files
        )
        remote = {path.split("\\")[2] for path in files if is_on_file_server(path)}
        where = f"on {', '.join(sorted(remote))}" if remote else "on the host"
        return FilesHeldOpen(
            self.watch.host, record.machine, who, note, f"{where}: {closing_command(files)}"
        )


def is_on_file_server(path: str) -> bool:
    """Whether the host itself reaches the file through SMB."""
    return path.startswith("\\\\") and not path.startswith(("\\\\?\\", "\\\\.\\"))
