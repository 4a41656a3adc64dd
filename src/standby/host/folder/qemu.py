"""Running a folder host's VM with QEMU: disk server, command line, start and stop.

QEMU opens no disk file itself: it talks NBD to our disk server over a Unix socket, because its own
VHDX driver refuses differencing disks. A VM stands still (`werror=stop`) while the disk
server is away for longer than the reconnect delay, and goes on when it is back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from standby import files
from standby.clock import Clock
from standby.errors import HostError, StandbyError
from standby.host.folder import inventory, power, processes
from standby.host.folder.power import PowerRecord
from standby.host.folder.qmp import QmpClient
from standby.host.folder.vm_toml import MachineFile, split_place
from standby.model.machine import Machine, NetworkAdapter

BINARY = "qemu-system-x86_64"
SERIAL_LOG = "serial.log"
SERVER_LOG = "disk-server.log"
_RECONNECT_S = 60
"""QEMU tries again after 1, 2, 4, 8 and then every 16 seconds (block/nbd.c); requests wait so
long before the VM is stopped."""
_START_TIMEOUT_S = 60.0
_FIRMWARE_FOLDERS = ("/usr/share/OVMF", "/usr/share/edk2/ovmf", "/usr/share/edk2/x64")
_FIRMWARE = (
    ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("OVMF_CODE.4m.fd", "OVMF_VARS.4m.fd"),
    ("OVMF_CODE.fd", "OVMF_VARS.fd"),
)
_LAUNCHER = """\
import os, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
null = os.open(os.devnull, os.O_RDONLY)
os.setsid()
pid = os.fork()
if pid:
    print(pid, flush=True)
    os._exit(0)
for source, target in ((null, 0), (log, 1), (log, 2)):
    os.dup2(source, target)
os.execv(sys.argv[2], sys.argv[2:])
"""


def qemu_binary(host: str) -> str:
    """Path of qemu-system-x86_64; HostError naming the package where it is missing. Elsewhere than
    on Linux nothing tells a VM's processes from others of the same number, so none is started."""
    if not sys.platform.startswith("linux"):
        raise HostError(host, "VMs are started with QEMU on Linux only")
    found = shutil.which(BINARY)
    if found is None:
        raise HostError(
            host,
            f"{BINARY} is not installed, so VMs cannot be started here",
            "Install the package qemu-system-x86 (Debian, Ubuntu) or qemu-kvm (Fedora, RHEL)",
        )
    return found


# --- disk server -----------------------------------------------------------------------------


def start_disk_server(
    folder: Path, machine: Machine, record: PowerRecord, host: str, clock: Clock
) -> PowerRecord:
    """A disk server for the VM's disks at `record.disk_socket`, detached from this process.

    One that listens there already is kept when it is the recorded one, else ended first.
    """
    socket_path = record.disk_socket
    listener = power.listener_pid(socket_path)
    if listener:
        start = processes.started(listener)
        if (listener, start) == (record.serve_pid, record.serve_started):
            return record
        processes.end(listener, start, clock, grace_s=30)
    Path(socket_path).unlink(missing_ok=True)
    exports = [
        f"{_export(number)}={inventory.plain_path(folder, disk.file)}"
        for number, disk in enumerate(machine.disks)
    ]
    command = [sys.executable, "-m", "standby.host.folder.disk_server", "--socket", socket_path]
    command += ["--kept", kept_prefix(record), "--folder", str(folder)]
    log = folder / SERVER_LOG
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    launched = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCHER, str(log), *command, *exports],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=_START_TIMEOUT_S,
    )
    if launched.returncode:
        raise HostError(host, f"the disk server of VM {machine.name}: {launched.stderr[-500:]}")
    server = int(launched.stdout)
    start = processes.started(server)
    deadline = clock.monotonic() + _START_TIMEOUT_S
    while power.listener_pid(socket_path) != server:
        if not processes.is_alive(server, start) or clock.monotonic() > deadline:
            processes.end(server, start, clock, grace_s=10)
            raise HostError(
                host,
                f"the disk server of VM {machine.name} did not come up: {_tail(log) or 'no words'}",
                f"See {log}",
            )
        clock.sleep(0.02)
    return replace(record, serve_pid=server, serve_started=start)


def kept_prefix(record: PowerRecord) -> str:
    """Start of the paths where the disk server keeps writes that are not flushed yet."""
    return f"{record.disk_socket}.kept"


def forget_sockets(record: PowerRecord) -> None:
    """Remove what a VM that is off left in the runtime folder: sockets, kept writes."""
    for name in (record.qmp_socket, record.disk_socket, record.pid_file):
        if name:
            path = Path(name)
            for leftover in path.parent.glob(f"{path.name}*"):
                leftover.unlink(missing_ok=True)


def _export(number: int) -> str:
    return f"d{number}"


def _tail(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")[-500:].strip()
    except OSError:
        return ""


# --- QEMU ------------------------------------------------------------------------------------


def can_use_kvm() -> bool:
    """Whether this user may use KVM and the processor virtualises. /dev/kvm alone does not say: a
    software KVM (as in some cloud machines) offers it and then hangs every ordinary guest."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return "vmx" in words or "svm" in words


def command_line(
    binary: str, folder: Path, item: MachineFile, record: PowerRecord, accelerator: str
) -> list[str]:
    """The QEMU command for the VM; everything it names exists already."""
    machine = item.machine
    command = [
        *(binary, "-nodefaults", "-no-user-config", "-name", f"guest={_escaped(machine.name)}"),
        *("-machine", "q35" + _firmware_options(item)),
        *("-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"),
        *("-m", f"{-(-machine.memory_bytes // (1 << 20))}M", "-smp", str(machine.processors)),
        *("-rtc", "base=utc", "-display", "none", "-vga", "std"),
        *("-chardev", f"file,id=serial,path={_escaped(str(folder / SERIAL_LOG))}"),
        *("-serial", "chardev:serial"),
        *("-qmp", f"unix:{_escaped(record.qmp_socket)},server=on,wait=off"),
        *("-pidfile", record.pid_file, "-daemonize"),
    ]
    if re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", machine.id):
        command += ["-uuid", machine.id]
    command += _firmware_arguments(folder, item)
    if item.boot.kernel:
        command += ["-kernel", str(inventory.plain_path(folder, item.boot.kernel))]
        if item.boot.initrd:
            command += ["-initrd", str(inventory.plain_path(folder, item.boot.initrd))]
        if item.boot.append:
            command += ["-append", item.boot.append]
    command += _disk_arguments(machine, record)
    for number, adapter in enumerate(machine.adapters):
        command += _adapter_arguments(number, adapter)
    return command


def _escaped(text: str) -> str:
    return text.replace(",", ",,")


def _disk_arguments(machine: Machine, record: PowerRecord) -> list[str]:
    arguments = []
    controllers = set()
    for number, disk in enumerate(machine.disks):
        place = split_place(disk.place)
        assert place is not None, disk.place  # vm_toml refused others
        kind, controller, unit = place
        node = {
            "driver": "nbd",
            "node-name": f"disk{number}",
            "server": {"type": "unix", "path": record.disk_socket},
            "export": _export(number),
            "reconnect-delay": _RECONNECT_S,
            "discard": "unmap",
        }
        device: dict[str, object] = {
            "drive": f"disk{number}",
            "id": f"device{number}",
            "rerror": "stop",
            "werror": "stop",
            "bootindex": number + 1,  # 0 is a kernel that is booted directly
            "serial": (disk.host_id or disk.place)[:36],
        }
        if kind == "scsi":
            if controller not in controllers:
                controllers.add(controller)
                arguments += ["-device", f"virtio-scsi-pci,id=scsi{controller}"]
            device |= {"driver": "scsi-hd", "bus": f"scsi{controller}.0", "scsi-id": unit}
        else:
            device |= {"driver": "ide-hd", "bus": f"ide.{controller * 2 + unit}"}
        arguments += ["-blockdev", json.dumps(node), "-device", json.dumps(device)]
    return arguments


def _adapter_arguments(number: int, adapter: NetworkAdapter) -> list[str]:
    """A network card: on user networking, on a bridge of this host, or not connected."""
    device: dict[str, object] = {"driver": "virtio-net-pci", "id": f"net{number}"}
    if adapter.mac:
        device["mac"] = ":".join(adapter.mac[n : n + 2] for n in range(0, 12, 2))
    arguments = []
    if adapter.network == "user":
        arguments += ["-netdev", f"user,id=netdev{number}"]
        device["netdev"] = f"netdev{number}"
    elif (
        re.fullmatch(r"[A-Za-z0-9._-]{1,15}", adapter.network)
        and (Path("/sys/class/net") / adapter.network / "bridge").is_dir()
    ):
        arguments += ["-netdev", f"bridge,id=netdev{number},br={adapter.network}"]
        device["netdev"] = f"netdev{number}"
    return [*arguments, "-device", json.dumps(device)]


def _needs_firmware(item: MachineFile) -> bool:
    return item.machine.generation == 2 and not item.boot.kernel


def _nvram(folder: Path, item: MachineFile) -> Path:
    return inventory.plain_path(folder, item.machine.nvram or "nvram.fd")


def _firmware_options(item: MachineFile) -> str:
    return ",pflash0=code,pflash1=variables" if _needs_firmware(item) else ""


def _firmware_arguments(folder: Path, item: MachineFile) -> list[str]:
    if not _needs_firmware(item):
        return []
    code = firmware()[0]
    arguments = []
    for node, path, read_only in (("code", code, True), ("variables", _nvram(folder, item), False)):
        file = {"driver": "file", "filename": str(path)}
        value = {"driver": "raw", "node-name": node, "read-only": read_only, "file": file}
        arguments += ["-blockdev", json.dumps(value)]
    return arguments


def firmware() -> tuple[Path, Path]:
    """UEFI firmware and its empty variables; FileNotFoundError where none is installed."""
    for place in _FIRMWARE_FOLDERS:
        for code, variables in _FIRMWARE:
            if (Path(place) / code).is_file() and (Path(place) / variables).is_file():
                return Path(place) / code, Path(place) / variables
    raise FileNotFoundError("UEFI firmware")


def prepare_firmware(folder: Path, item: MachineFile, host: str) -> None:
    """Make sure that a generation 2 VM that boots from disk has firmware and variables."""
    if not _needs_firmware(item):
        return
    try:
        _, variables = firmware()
    except FileNotFoundError as exc:
        raise HostError(
            host,
            f"VM {item.machine.name} is of generation 2 and no UEFI firmware is installed",
            "Install the package ovmf (Debian, Ubuntu) or edk2-ovmf (Fedora, RHEL)",
        ) from exc
    own = _nvram(folder, item)
    if not files.is_there(own):
        files.write_durably(own, variables.read_bytes())


def start_qemu(
    folder: Path, item: MachineFile, record: PowerRecord, host: str, accelerator: str
) -> PowerRecord:
    """QEMU for the VM, detached; returns when its devices are ready and the guest runs."""
    binary = qemu_binary(host)
    if accelerator == "auto":
        accelerator = "kvm" if can_use_kvm() else "tcg"
    prepare_firmware(folder, item, host)
    for name in (folder / SERIAL_LOG, Path(record.qmp_socket), Path(record.pid_file)):
        name.unlink(missing_ok=True)
    command = command_line(binary, folder, item, record, accelerator)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_START_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise HostError(host, f"VM {item.machine.name}: QEMU did not start: {exc}") from exc
    if done.returncode:
        raise HostError(
            host, f"VM {item.machine.name}: QEMU refused to start: {done.stderr.strip()[-1000:]}"
        )
    pid = int(Path(record.pid_file).read_text(encoding="ascii"))
    return replace(record, qemu_pid=pid, qemu_started=processes.started(pid))


def sockets(folder: Path, host: str) -> PowerRecord:
    """A record naming the sockets and pid file that the VM in `folder` has on this machine."""
    runtime = power.runtime_folder(host)
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return PowerRecord(
        qmp_socket=str(runtime / f"{key}.qmp"),
        disk_socket=str(runtime / f"{key}.nbd"),
        pid_file=str(runtime / f"{key}.pid"),
    )


def shut_down(
    record: PowerRecord, name: str, host: str, clock: Clock, *, force: bool, timeout_s: float
) -> None:
    """End QEMU: ask the guest, wait `timeout_s`; then, with `force`, quit. HostError without."""
    if not record.qemu_is_alive:
        return
    pid, start = record.qemu_pid, record.qemu_started
    if timeout_s > 0:
        _ask(record, host, "system_powerdown", clock)
        if processes.wait_for_end(pid, start, clock, timeout_s=timeout_s):
            return
    if not force:
        raise HostError(
            host,
            f"VM {name} did not shut down within {timeout_s:g} s",
            "Shut the guest down from inside, or end it with --force",
        )
    _ask(record, host, "quit", clock)
    if not processes.wait_for_end(pid, start, clock, timeout_s=30):
        processes.end(pid, start, clock, grace_s=10)


def resume(record: PowerRecord, host: str) -> None:
    """Let a VM that stopped on a disk error go on."""
    with QmpClient(record.qmp_socket, host) as qmp:
        if qmp.execute("query-status").get("status") == "io-error":
            qmp.execute("cont")


def _ask(record: PowerRecord, host: str, command: str, clock: Clock) -> None:
    """Ask QEMU for an end. One that is ending by itself closes its monitor before it is gone."""
    try:
        with QmpClient(record.qmp_socket, host) as qmp:
            qmp.execute(command)
    except StandbyError:
        pid, start = record.qemu_pid, record.qemu_started
        if command != "quit" and not processes.wait_for_end(pid, start, clock, timeout_s=5):
            raise
