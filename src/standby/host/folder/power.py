"""power.json: which processes run a VM, so that any process of any server can tell and stop them.

A VM runs as two processes: the disk server (disk_server.py, because QEMU cannot open
differencing VHDX files) and QEMU. Both outlive whoever started them.
"""

from __future__ import annotations

import os
import platform
import socket
import stat
import struct
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from standby import files
from standby.errors import HostError
from standby.host.folder import processes

RECORD_FILE = "power.json"
_SOCKET_PATH_MAX = 107
"""sockaddr_un holds 108 bytes with the final NUL (unix(7))."""


@dataclass(frozen=True, slots=True)
class PowerRecord:
    """Pids are 0 and sockets '' where there is none. `node` is the machine that ran them."""

    format: int = 1
    node: str = ""
    qemu_pid: int = 0
    qemu_started: str = ""
    serve_pid: int = 0
    serve_started: str = ""
    qmp_socket: str = ""
    disk_socket: str = ""
    pid_file: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether another machine (on the same storage) wrote this and did not clear it."""
        return bool(self.node) and self.node != platform.node() and bool(self.qemu_started)

    @property
    def qemu_is_alive(self) -> bool:
        return processes.is_alive(self.qemu_pid, self.qemu_started)

    @property
    def server_is_alive(self) -> bool:
        return processes.is_alive(self.serve_pid, self.serve_started)


def read_record(folder: Path, host: str) -> PowerRecord:
    """The record of the VM in `folder`, an empty one when it was never started.

    What was started but whose starter died before it could write that down is found all the same:
    QEMU by its pid file, the disk server at its socket.
    """
    path = folder / RECORD_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return PowerRecord()
    except OSError as exc:
        raise HostError(host, f"{path} cannot be read: {exc.strerror}") from exc
    try:
        record = msgspec.json.decode(data, type=PowerRecord)
    except msgspec.MsgspecError as exc:
        raise HostError(
            host,
            f"{path} is damaged: {exc}",
            "See by hand whether a QEMU process runs this VM, then remove the file",
        ) from exc
    if record.is_elsewhere:
        return record
    if not record.qemu_pid and record.pid_file and (found := _pid_in(Path(record.pid_file))):
        record = replace(record, qemu_pid=found, qemu_started=processes.started(found))
    if not record.serve_pid and record.disk_socket and (found := listener_pid(record.disk_socket)):
        record = replace(record, serve_pid=found, serve_started=processes.started(found))
    return record


def _pid_in(path: Path) -> int:
    """The live process that QEMU's pid file names, if its command line names the file too."""
    try:
        pid = int(path.read_text(encoding="ascii").strip() or 0)
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return 0
    return pid if os.fsencode(path) in command else 0


def write_record(folder: Path, record: PowerRecord) -> None:
    """Replace power.json durably."""
    files.write_durably(folder / RECORD_FILE, msgspec.json.encode(record) + b"\n")


def runtime_folder(host: str) -> Path:
    """The folder for sockets: private to this user, with a path short enough for them.

    $XDG_RUNTIME_DIR/standby, else <temporary folder>/standby-<user id>. One that belongs to
    another user, is a link, or is open to others is refused: whoever can put a socket there
    could pose as a disk.
    """
    if sys.platform == "win32":
        own, is_private = Path(tempfile.gettempdir()), False
    else:
        base = os.environ.get("XDG_RUNTIME_DIR", "")
        own = Path(base) / "standby"
        if not base or not os.path.isdir(base) or _is_too_long(own):  # noqa: PTH112 (raises nothing)
            own = Path(tempfile.gettempdir()) / f"standby-{os.getuid()}"
        try:
            own.mkdir(mode=0o700, exist_ok=True)
            status = own.lstat()
        except OSError as exc:
            raise HostError(host, f"runtime folder {own} cannot be made: {exc.strerror}") from exc
        is_private = (
            stat.S_ISDIR(status.st_mode)
            and status.st_uid == os.getuid()
            and not stat.S_IMODE(status.st_mode) & 0o077
        )
    if not is_private:
        raise HostError(
            host,
            f"runtime folder {own} is not a folder of this user alone",
            "Remove it, or set XDG_RUNTIME_DIR to a private folder",
        )
    if _is_too_long(own):
        raise HostError(
            host,
            f"runtime folder {own} has too long a path for sockets",
            "Set XDG_RUNTIME_DIR or TMPDIR to a shorter one",
        )
    return own


def _is_too_long(folder: Path) -> bool:
    return len(os.fsencode(folder)) > _SOCKET_PATH_MAX - 40


def listener_pid(path: str) -> int:
    """The process that listens at the Unix socket `path`, 0 when nobody does."""
    if sys.platform != "linux":
        return 0
    else:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(5)
            try:
                probe.connect(path)
                found = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            except OSError:
                return 0
        return int(struct.unpack("iII", found)[0])
