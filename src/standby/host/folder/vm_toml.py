"""vm.toml: how a folder host's VM is written down, read strictly and rendered.

    id = "5f0c…"                 # 1 to 64 of A-Z a-z 0-9 . _ -
    name = "web01"
    generation = 2               # 1: BIOS, 2: UEFI
    memory = "1 GiB"             # or bytes
    processors = 1
    nvram = "nvram.fd"           # optional: UEFI variables

    [[disks]]
    place = "scsi:0:0"           # or "ide:0:0": controller kind, controller, unit
    file = "disks/disk0.vhdx"    # inside the VM's folder, forward slashes
    id = "…"                     # optional: the host's own identity of the disk

    [[adapters]]
    name = "lan"
    network = ""                 # "": not connected, "user", or a bridge of the host
    mac = "525400000001"
    vlan = 0

    [boot]                       # optional: start this kernel instead of the disk's loader
    kernel = "boot/vmlinuz"
    initrd = "boot/initrd"
    append = "console=ttyS0"

Unknown keys are refused; so is a path that could lead out of the VM's folder (RULES 20).
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from standby.errors import ConfigurationError
from standby.model.machine import Machine, MachineDisk, NetworkAdapter
from standby.strict_toml import Table
from standby.units import GiB, MiB, TiB

FILE_NAME = "vm.toml"
SIZE_MAX = 1 * MiB
"""A longer vm.toml is refused unread; a VM with 256 disks needs some 30 KiB."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""No longer than the state database keeps them."""
_PLACE = re.compile(r"(scsi|ide):(0|[1-9][0-9]?):(0|[1-9][0-9]{0,2})")
_MAC = re.compile(r"[0-9a-f]{12}")
_UNITS_MAX = {"scsi": (4, 256), "ide": (3, 2)}
"""Controllers and units on each: virtio-scsi counts 256 targets, the six AHCI ports are three
pairs. (Hyper-V has 4 x 64 and 2 x 2.)"""


@dataclass(frozen=True, slots=True)
class Boot:
    """Direct kernel boot: files relative to the VM's folder, '' kernel means boot from disk."""

    kernel: str = ""
    initrd: str = ""
    append: str = ""


@dataclass(frozen=True, slots=True)
class MachineFile:
    """A vm.toml as read. The machine's disks have no sizes yet: those are in the disk files."""

    machine: Machine
    boot: Boot = Boot()


def split_place(place: str) -> tuple[str, int, int] | None:
    """('scsi', 0, 1) for 'scsi:0:1'; None where it is not a place a VM can have."""
    if not _PLACE.fullmatch(place):
        return None
    kind, controller, unit = place.split(":")
    controllers, units = _UNITS_MAX[kind]
    if int(controller) >= controllers or int(unit) >= units:
        return None
    return kind, int(controller), int(unit)


def path_problem(text: str) -> str:
    """Why `text` is not a plain path inside a folder, '' when it is one."""
    if not text:
        return "is empty"
    if "\\" in text or ":" in text:
        return f"{text!r} has a backslash or colon; write forward slashes and no drive"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        return f"{text!r} has a control character"
    if text.startswith("/"):
        return f"{text!r} is absolute; it must stay inside the VM's folder"
    for component in text.split("/"):
        if component in ("", ".", ".."):
            return f"{text!r} has the component {component!r}; it must stay inside the VM's folder"
        if component != component.rstrip(". "):
            return f"{text!r} has a component that ends in a dot or space"
    return ""


def parse(text: str, where: str, folder: str) -> MachineFile:
    """The VM that `text` describes; `where` names the file in errors, `folder` is the VM's folder
    relative to the host's. Raises ConfigurationError naming the file, table and key."""
    try:
        top = Table(where, "", tomllib.loads(text))
    except tomllib.TOMLDecodeError as exc:
        raise ConfigurationError(where, f"is not TOML: {exc}") from exc
    name = top.text("name")
    problem = name_problem(name)
    if problem:
        raise top.error("name", problem)
    machine = Machine(
        id=_identity(top),
        name=name,
        folder=folder,
        generation=top.integer("generation", 2, minimum=1, maximum=2),
        memory_bytes=_memory(top),
        processors=top.integer("processors", 1, minimum=1, maximum=1024),
        disks=_disks(top),
        adapters=_adapters(top),
        nvram=_path(top, "nvram", ""),
    )
    boot = _boot(top)
    top.done()
    return MachineFile(machine, boot)


def is_identity(text: str) -> bool:
    """Whether `text` can be the id of a VM or a disk."""
    return _ID.fullmatch(text) is not None


def _identity(table: Table, default: str | None = None) -> str:
    text = table.text("id", default)
    if text != default and not is_identity(text):
        raise table.error("id", f"is {text!r}", "use 1 to 64 of A-Z a-z 0-9 . _ -")
    return text


def _memory(top: Table) -> int:
    size = top.size("memory", GiB, minimum=16 * MiB)
    if size > 64 * TiB:
        raise top.error("memory", f"{size} bytes are too many", "at most 64 TiB")
    return size


def _path(table: Table, key: str, default: str | None = None) -> str:
    text = table.text(key, default)
    if text != default:
        problem = path_problem(text)
        if problem:
            raise table.error(key, problem)
    return text


def name_problem(name: str) -> str:
    """Why `name` cannot be a VM's name, '' when it can."""
    if not name or len(name) > 100 or name != name.strip():
        return f"is {name!r}; use 1 to 100 characters, no space around"
    if not name.isprintable() or any(letter in name for letter in '/\\:*?"<>|'):
        return f'is {name!r}; it must be printable and without / \\ : * ? " < > |'
    return ""


def _disks(top: Table) -> tuple[MachineDisk, ...]:
    disks = []
    seen: dict[tuple[str, str], int] = {}
    for number, table in enumerate(top.tables("disks"), 1):
        place = table.text("place")
        if split_place(place) is None:
            raise table.error(
                "place",
                f"is {place!r}",
                "write scsi:CONTROLLER:UNIT (0-3, 0-255) or ide:CONTROLLER:UNIT (0-2, 0-1)",
            )
        disk = MachineDisk(place, _path(table, "file"), host_id=_identity(table, ""))
        table.done()
        values = (("place", place), ("file", disk.file.lower()), ("id", disk.host_id.lower()))
        for key, value in values:
            first = seen.setdefault((key, value), number)
            if value and first != number:
                raise table.error(key, f"{value!r} is that of [[disks]] {first} too")
        disks.append(disk)
    return tuple(disks)


def _adapters(top: Table) -> tuple[NetworkAdapter, ...]:
    adapters = []
    for table in top.tables("adapters"):
        mac = table.text("mac", "").replace(":", "").replace("-", "").lower()
        if mac and not _MAC.fullmatch(mac):
            raise table.error("mac", f"is {mac!r}", "write 12 hex digits")
        adapter = NetworkAdapter(
            name=table.text("name"),
            network=table.text("network", ""),
            mac=mac,
            vlan=table.integer("vlan", 0, maximum=4094),
        )
        table.done()
        adapters.append(adapter)
    return tuple(adapters)


def _boot(top: Table) -> Boot:
    if not top.has("boot"):
        return Boot()
    table = top.table("boot")
    boot = Boot(_path(table, "kernel"), _path(table, "initrd", ""), table.text("append", ""))
    table.done()
    return boot


def load(path: Path, folder: str) -> MachineFile:
    """The VM that the vm.toml at `path` describes."""
    try:
        path.lstat()
        if path.is_symlink() or not path.is_file():
            raise ConfigurationError(str(path), "is not a regular file")
        if path.stat().st_size > SIZE_MAX:
            raise ConfigurationError(str(path), f"is longer than {SIZE_MAX} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise ConfigurationError(str(path), "does not exist") from exc
    except OSError as exc:
        raise ConfigurationError(str(path), f"cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(str(path), "is not UTF-8 text") from exc
    return parse(text, str(path), folder)


def render(machine: Machine, boot: Boot | None = None) -> str:
    """The vm.toml text that `parse` reads back as `machine` (without sizes) and `boot`.

    Raises ConfigurationError for values that a vm.toml cannot hold: it is parsed before it is
    given out, so that no replica gets a description its host then refuses.
    """
    lines = [
        f"id = {_quoted(machine.id)}",
        f"name = {_quoted(machine.name)}",
        f"generation = {machine.generation}",
        f"memory = {_size(machine.memory_bytes)}",
        f"processors = {machine.processors}",
    ]
    if machine.nvram:
        lines.append(f"nvram = {_quoted(machine.nvram)}")
    for disk in machine.disks:
        lines += ["", "[[disks]]", f"place = {_quoted(disk.place)}", f"file = {_quoted(disk.file)}"]
        if disk.host_id:
            lines.append(f"id = {_quoted(disk.host_id)}")
    for adapter in machine.adapters:
        lines += ["", "[[adapters]]", f"name = {_quoted(adapter.name)}"]
        if adapter.network:
            lines.append(f"network = {_quoted(adapter.network)}")
        if adapter.mac:
            lines.append(f"mac = {_quoted(adapter.mac)}")
        if adapter.vlan:
            lines.append(f"vlan = {adapter.vlan}")
    if boot is not None and boot.kernel:
        lines += ["", "[boot]", f"kernel = {_quoted(boot.kernel)}"]
        if boot.initrd:
            lines.append(f"initrd = {_quoted(boot.initrd)}")
        if boot.append:
            lines.append(f"append = {_quoted(boot.append)}")
    text = "\n".join(lines) + "\n"
    parse(text, f"vm.toml of {machine.name}", machine.folder)
    return text


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _size(count: int) -> str:
    for unit, name in ((GiB, "GiB"), (MiB, "MiB")):
        if count % unit == 0:
            return f'"{count // unit} {name}"'
    return str(count)
