"""The VMs of a folder host: which folders there are, what they hold, which files a disk is of."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from standby.disk import RawDisk, detected_format, vhdx
from standby.errors import ConfigurationError, DiskError, DiskIO, HostError, ParentRefused
from standby.host.folder import vm_toml
from standby.host.folder.vm_toml import MachineFile
from standby.model.machine import Machine, MachineDisk, MachineProblem

REPLICA_RECORD = "replica.json"
SYSTEM_FOLDERS = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN"})
"""What lies at the top of a file system that is a host's folder, and only the system may read."""
_LAYERS_MAX = 512
"""A chain longer than this is a loop or a mistake; keeping 512 restore points is beyond any job."""


@dataclass(frozen=True, slots=True)
class DiskFile:
    """What one file of a disk's chain says of itself; the GUIDs are '' for a raw image."""

    path: Path
    virtual_size: int
    logical_sector_size: int
    physical_sector_size: int
    page83: str = ""
    file_write_guid: str = ""
    data_write_guid: str = ""
    has_parent: bool = False


def is_replica_folder(folder: Path) -> bool:
    """Whether `folder` holds a replica of ours (or anything that says so)."""
    return os.path.lexists(folder / REPLICA_RECORD)


def machine_files(root: Path, host: str, *, replicas: bool = False) -> list[MachineFile]:
    """Every VM under `root`, in order of name; replicas only where asked.

    Raises ConfigurationError for a vm.toml that is wrong, and when two VMs share an id or a name
    (ignoring case): which one a job means would be a guess; HostError where `root` cannot be
    listed.
    """
    found, problems = survey(root, host, replicas=replicas)
    if problems:
        raise problems[-1].error
    return found


@dataclass(frozen=True, slots=True)
class Unusable:
    """A VM's folder that cannot be used: what is wrong, and what its vm.toml says all the same."""

    folder: str
    error: ConfigurationError
    name: str = ""
    id: str = ""

    @property
    def problem(self) -> MachineProblem:
        """The same as a value of the model."""
        return MachineProblem(self.folder, str(self.error), self.name, self.id)


def survey(
    root: Path, host: str, *, replicas: bool = False
) -> tuple[list[MachineFile], list[Unusable]]:
    """Every VM under `root` that can be used, in order of name, and the others, in order of
    folder: one that cannot be read, a vm.toml that is wrong, and all VMs that share an id or a
    name. Raises HostError only where the folder itself cannot be listed."""
    found = []
    problems = []
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as exc:
        raise unlisted(root, host, exc) from exc
    for name in names:
        folder = root / name
        if name.startswith("."):
            continue
        try:
            (folder / vm_toml.FILE_NAME).lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:  # it may well be a VM's, and is no sign that the VM is gone
            if name not in SYSTEM_FOLDERS:
                error = ConfigurationError(str(folder), f"cannot be read: {exc.strerror}")
                problems.append(Unusable(name, error))
            continue
        if not replicas and is_replica_folder(folder):
            continue
        try:
            found.append(machine_file(root, name))
        except ConfigurationError as exc:
            problems.append(Unusable(name, exc, *_said_by(folder / vm_toml.FILE_NAME)))
    duplicates = _duplicates(root, found)
    problems += duplicates
    shared = {item.folder for item in duplicates}
    usable = [item for item in found if item.machine.folder not in shared]
    usable.sort(key=lambda item: (item.machine.name.lower(), item.machine.name))
    return usable, sorted(problems, key=lambda item: item.folder)


def unlisted(root: Path, host: str, exc: OSError) -> HostError:
    """What is raised where the host's folder cannot be listed."""
    hint = "Is it mounted, is its path right, and may this user read it?"
    return HostError(host, f"{root} cannot be listed: {exc.strerror}", hint)


def machine_file(root: Path, folder: str) -> MachineFile:
    """The VM in `<root>/<folder>`; a folder that is a link is refused."""
    path = plain_path(root, folder)
    return vm_toml.load(path / vm_toml.FILE_NAME, folder)


_SAID = re.compile(r"""^(id|name)\s*=\s*["']([^"'\\]*)["']""", re.MULTILINE)


def _said_by(path: Path) -> tuple[str, str]:
    """The name and id in a vm.toml that is refused, '' where they cannot be made out."""
    try:
        if path.is_symlink() or not path.is_file():
            return "", ""
        with path.open("rb") as file:
            text = file.read(vm_toml.SIZE_MAX).decode("utf-8", "replace")
    except OSError:
        return "", ""
    # The tables below have names and ids of their own; what stands above them is the VM's.
    said = dict(_SAID.findall(text.partition("\n[")[0]))
    name, identity = said.get("name", ""), said.get("id", "")
    return (
        "" if vm_toml.name_problem(name) else name,
        identity if vm_toml.is_identity(identity) else "",
    )


def _duplicates(root: Path, found: list[MachineFile]) -> list[Unusable]:
    """Every VM that shares its id or name with another."""
    problems: dict[str, Unusable] = {}
    for key in ("name", "id"):
        sharing: dict[str, list[Machine]] = {}
        for item in found:
            sharing.setdefault(str(getattr(item.machine, key)).lower(), []).append(item.machine)
        for machines in sharing.values():
            for machine in machines if len(machines) > 1 else ():
                other = next(item for item in machines if item is not machine)
                error = ConfigurationError(
                    str(root / machine.folder / vm_toml.FILE_NAME),
                    f"{key} {getattr(machine, key)!r} is that of the VM in folder "
                    f"{other.folder!r} too",
                    "Give one of them another; a copied VM needs its own id and name",
                )
                problems[machine.folder] = Unusable(machine.folder, error, machine.name, machine.id)
    return list(problems.values())


def plain_path(folder: Path, relative: str) -> Path:
    """`<folder>/<relative>` if no component below `folder` is a symbolic link or leads out.

    Raises ConfigurationError otherwise. A missing last component is the caller's to find.
    """
    problem = vm_toml.path_problem(relative)
    if problem:
        raise ConfigurationError(str(folder), f"path {problem}")
    path = folder
    for component in relative.split("/"):
        path = path / component
        if _is_link(path):
            raise ConfigurationError(
                str(path), "is a link; a VM's folder and files must be the real ones"
            )
    return path


def _is_link(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    reparse = getattr(status, "st_file_attributes", 0) & 0x400  # junctions and the like
    return stat.S_ISLNK(status.st_mode) or bool(reparse)


def read_disk_file(path: Path) -> DiskFile:
    """What the file at `path` says of itself, parents unopened. A raw image is whole 512-byte
    sectors with no header; anything else raises DiskError."""
    if detected_format(path) == "vhdx":
        info = vhdx.read_info(path)
        return DiskFile(
            path,
            info.virtual_size,
            info.logical_sector_size,
            info.physical_sector_size,
            info.page83,
            info.file_write_guid,
            info.data_write_guid,
            info.has_parent,
        )
    with RawDisk(path) as raw:
        if raw.virtual_size == 0 or raw.virtual_size % 512:
            what = "not whole sectors" if raw.virtual_size else "empty"
            problem = f"{what}, so no raw disk image"
            raise DiskIO(str(path), "open", 0, raw.virtual_size, problem)
        return DiskFile(path, raw.virtual_size, raw.logical_sector_size, raw.physical_sector_size)


def disk_chain(folder: Path, file: str) -> list[DiskFile]:
    """All layers of the disk whose newest is `<folder>/<file>`, newest first.

    A parent is looked for only inside the VM's folder, by the locator's relative path; anything
    else raises ParentRefused.
    """
    path = plain_path(folder, file)
    chain = [read_disk_file(path)]
    while chain[-1].has_parent:
        parent = _parent_path(folder, chain[-1].path)
        if any(layer.path == parent for layer in chain) or len(chain) >= _LAYERS_MAX:
            raise ParentRefused(str(chain[-1].path), str(parent), "the chain is a loop or too long")
        chain.append(read_disk_file(parent))
    return chain


def _parent_path(folder: Path, child: Path) -> Path:
    locator = vhdx.read_info(child).locator
    relative = locator.get("relative_path", "").replace("\\", "/")
    if not relative:
        raise ParentRefused(str(child), "?", "the locator has no relative path")
    path = Path(os.path.normpath(child.parent / relative))
    try:
        inside = path.relative_to(folder)
        plain_path(folder, inside.as_posix())
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ParentRefused(str(child), str(path), "not a regular file")
    except (ValueError, ConfigurationError) as exc:
        raise ParentRefused(
            str(child), str(path), f"outside the VM's folder {folder}, or through a link"
        ) from exc
    except OSError as exc:
        raise ParentRefused(str(child), str(path), exc.strerror or str(exc)) from exc
    return path


def described(root: Path, machine: Machine) -> Machine:
    """`machine` with what its disk files say: virtual size, sector size, page-83 identity.

    A disk that cannot be read keeps size 0, so that the VM is still listed and can be asked
    about; taking a checkpoint of it names the fault.
    """
    folder = plain_path(root, machine.folder)
    return replace(machine, disks=tuple(_described(folder, disk) for disk in machine.disks))


def _described(folder: Path, disk: MachineDisk) -> MachineDisk:
    try:
        info = read_disk_file(plain_path(folder, disk.file))
    except (DiskError, ConfigurationError):
        return disk
    return replace(
        disk,
        virtual_size=info.virtual_size,
        logical_sector_size=info.logical_sector_size,
        page83=info.page83,
    )
