"""The interfaces between layers, each shaped by what its callers need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from standby.model.extent import Extent
from standby.model.machine import Checkpoint, Inventory, Machine, PowerState

Buffer = Any
"""Anything of contiguous bytes: bytes, bytearray, memoryview, a uint8 array."""

Progress = Callable[[int, int], None]
"""Called as progress(bytes done, bytes in all), at most some tens of times a second."""


class VirtualDisk(Protocol):
    """A disk as its guest sees it. Offsets and lengths are bytes, whole logical sectors.

    Reads from several threads at once are allowed; one writer.
    """

    @property
    def path(self) -> Path: ...
    @property
    def virtual_size(self) -> int: ...
    @property
    def logical_sector_size(self) -> int: ...
    @property
    def physical_sector_size(self) -> int: ...

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """What [start, stop) holds through all layers: in order, without gaps, coalesced."""

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with the content from `offset`; raises DiskRange past the end."""

    def close(self) -> None:
        """Flush if writable, close clean; a second call does nothing."""


class WritableDisk(VirtualDisk, Protocol):
    """A disk open for writing. What was written before `flush` returned survives a crash; what
    was not is, per sector, the old or the new value."""

    def write(self, offset: int, data: Buffer) -> None: ...
    def zero(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...


class TrackedChanges(Protocol):
    """What a host's change tracker answers."""

    @property
    def ranges(self) -> Sequence[Extent] | None:
        """May-have-changed ranges since the id asked about; None: the tracker cannot say."""

    @property
    def reason(self) -> str:
        """Why it cannot say, '' when it can."""


@runtime_checkable
class SampledChanges(Protocol):
    """What a host's change tracker answers where it is not believed blindly."""

    @property
    def samples(self) -> Sequence[Extent]:
        """Ranges that it calls unchanged, to be read all the same: a difference there means that it
        lies."""


class Host(Protocol):
    """A source or target host as the backup server drives it."""

    @property
    def name(self) -> str: ...

    def machines(self) -> list[Machine]:
        """All VMs, in order of name. May raise where one of them cannot be described."""

    def power_state(self, machine: Machine) -> PowerState: ...

    def take_checkpoint(self, machine: Machine, intent_id: str) -> Checkpoint:
        """Fix the disks' state. Raises MachineRunning where it cannot. Two checkpoints of an
        unchanged VM that is off have the same id."""

    def confirm_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Raise SourceChanged when what was read is not what the checkpoint fixed (RULES 11)."""

    def release_checkpoint(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Give the checkpoint up; the tracker id of its state per controller place ('' or missing:
        none). Repeating it is harmless."""

    def release_leftovers(self) -> list[str]:
        """Release what a dead process of this installation left; what was released, by name."""

    def state_files(self, machine: Machine) -> dict[str, str]:
        """Small files that belong to the VM's state (UEFI variables): name to base64."""

    def changes_since(
        self, machine: Machine, place: str, tracker_id: str, checkpoint: Checkpoint
    ) -> TrackedChanges: ...

    def forget_tracker(self, machine: Machine, tracker_ids: Sequence[str]) -> None: ...


@runtime_checkable
class IntentReleasing(Protocol):
    """A host that outlives the server whose checkpoints it holds."""

    def release_intent(self, intent_id: str) -> list[str]:
        """Release what was taken for that intent, if anything was: a server that died before it
        could record the checkpoint knows no more of it. What, by name."""


@runtime_checkable
class Clustered(Protocol):
    """A host of several machines, on one of which a VM is at a time."""

    def node_of(self, machine_id: str) -> str:
        """The node that the VM was last seen on, '' when on none."""


def node_of(host: Host, machine_id: str) -> str:
    """The node of a cluster that the VM was last seen on, '' where there is none."""
    return host.node_of(machine_id) if isinstance(host, Clustered) else ""


@runtime_checkable
class OpenFilesClosing(Protocol):
    """A host whose files movers may keep open when they are gone."""

    def may_be_open(self, checkpoint: Checkpoint) -> None:
        """Not every mover that read the checkpoint was heard of at its end: the release sees to it
        that they have its files open no more."""


class Grown(Protocol):
    """A file that a VM writes to while its checkpoint is open."""

    @property
    def machine_id(self) -> str: ...

    def limit(self, growth_max: int, min_free: int) -> str:
        """The limit that is reached, in words, '' while none is; 0 is no limit."""


@runtime_checkable
class Growing(Protocol):
    """A host on which open checkpoints take room."""

    def growth(self) -> Sequence[Grown]:
        """The files that VMs with an open checkpoint write to; one question for all of them."""


@runtime_checkable
class Inventoried(Protocol):
    """A host on which one VM that cannot be described hides no other."""

    def inventory(self) -> Inventory:
        """All VMs, and what is wrong with those that cannot be described."""


def inventory_of(host: Host) -> Inventory:
    """All VMs of the host; one that cannot be described hides no other where the host can help
    it."""
    if isinstance(host, Inventoried):
        return host.inventory()
    return Inventory(tuple(host.machines()))
