"""A virtual machine as a host describes it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath


class PowerState(enum.StrEnum):
    """What a host says of a VM."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class NetworkAdapter:
    """One virtual network card. `mac` is 12 lower-case hex digits, '' means assigned at start."""

    name: str
    network: str = ""
    mac: str = ""
    vlan: int = 0


@dataclass(frozen=True, slots=True)
class MachineDisk:
    """One disk of a VM.

    `host_id` is the host's own stable identity of the disk (folder host: what vm.toml says, else
    ''); `page83` the identity the guest sees (clones repeat it); `place` the controller place,
    for example 'scsi:0:1'; `file` the newest layer, relative to the machine's folder with forward
    slashes, or a whole path in Windows' words.
    """

    place: str
    file: str
    host_id: str = ""
    page83: str = ""
    virtual_size: int = 0
    logical_sector_size: int = 512

    @property
    def file_name(self) -> str:
        """The file's name without its folders."""
        windows = PureWindowsPath(self.file)
        return windows.name if windows.anchor[1:] else PurePosixPath(self.file).name


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM: identity, hardware, disks. `folder` is relative to the host's folder."""

    id: str
    name: str
    folder: str
    generation: int = 2
    memory_bytes: int = 1 << 30
    processors: int = 1
    disks: tuple[MachineDisk, ...] = ()
    adapters: tuple[NetworkAdapter, ...] = ()
    nvram: str = ""


@dataclass(frozen=True, slots=True)
class MachineProblem:
    """A VM that a host has and cannot describe. `folder` is relative to the host's folder, `name`
    and `id` are '' where they cannot be read; `problem` says what is wrong, for people."""

    folder: str
    problem: str
    name: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class InventoryWarning:
    """What is amiss with a host, or with one of its VMs (`name`), and hinders nothing."""

    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """All VMs of a host: those it can describe, in order of name, and the others."""

    machines: tuple[Machine, ...]
    problems: tuple[MachineProblem, ...] = ()
    warnings: tuple[InventoryWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A fixed state of a VM's disks on the source host.

    `id` is equal for two checkpoints only if every disk's content is provably the same (RULES 8).
    `disks` names what is to be read, per controller place: the files of the chain, newest first,
    relative to the host's folder. `kind` is 'clone' or 'identity' on a folder host.
    """

    id: str
    machine_id: str
    kind: str
    taken_at: str
    consistency: str
    disks: tuple[CheckpointDisk, ...] = ()
    warnings: tuple[str, ...] = ()
    """In what it is less than was asked for, as sentences."""


@dataclass(frozen=True, slots=True)
class CheckpointDisk:
    """One disk under a checkpoint. `identity` changes whenever a file of the chain does."""

    place: str
    files: tuple[str, ...]
    identity: str
    virtual_size: int
    logical_sector_size: int = 512
    physical_sector_size: int = 4096
    page83: str = ""
