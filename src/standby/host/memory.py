"""A host in memory: VMs, disks, checkpoints and a change tracker that can be made to fail.

It stands in for a hypervisor with a tracker (Hyper-V's RCT): checkpoints of running VMs are
possible, releasing one gives a tracker id per disk, and the tracker answers what changed between
an id and a checkpoint. Faults are asked for per disk: an unsure tracker names larger ranges, a
forgotten id or a lost tracker names none and says why.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import DiskRange, MachineRunning, SourceChanged, UnknownName
from standby.model.extent import Extent, Kind, coalesced
from standby.model.machine import Checkpoint, CheckpointDisk, Machine, MachineDisk, PowerState
from standby.ports import Buffer
from standby.units import GiB, KiB, MiB

_PAGE = 64 * KiB
_ZEROS = bytes(_PAGE)
_UNSURE = 1 * MiB
"""How far an unsure tracker widens each range, to the next border on both sides."""


class TrackerFault(enum.Enum):
    """How a disk's tracker misbehaves from now on."""

    UNSURE = "unsure"
    WRONG_BASE = "wrong base"
    LOST = "lost"


class MemoryDisk:
    """A disk as pages of bytes; a page is replaced, never changed, so a frozen copy costs one
    pointer per page. Pages never written are holes."""

    def __init__(
        self,
        name: str,
        virtual_size: int,
        pages: dict[int, bytes] | None = None,
        *,
        writable: bool = True,
        logical_sector_size: int = 512,
        physical_sector_size: int = 4096,
    ) -> None:
        self.path = Path(name)
        self.virtual_size = virtual_size
        self.logical_sector_size = logical_sector_size
        self.physical_sector_size = physical_sector_size
        self.writable = writable
        self.writes: list[Extent] = []
        self._pages: dict[int, bytes] = {} if pages is None else pages

    def _check(self, offset: int, length: int) -> None:
        sector = self.logical_sector_size
        if offset < 0 or length < 0 or offset + length > self.virtual_size:
            raise DiskRange(str(self.path), offset, length, self.virtual_size)
        if offset % sector or length % sector:
            raise DiskRange(str(self.path), offset, length, self.virtual_size)

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """DATA for pages that were written, HOLE for others; zeroed pages are holes again."""
        stop = self.virtual_size if stop is None else stop
        self._check(start, stop - start)
        return coalesced(self._ranges(start, stop))

    def _ranges(self, start: int, stop: int) -> Iterator[Extent]:
        position = start
        for number in sorted(self._pages):
            first, last = max(start, number * _PAGE), min(stop, (number + 1) * _PAGE)
            if first >= last:
                continue
            yield Extent(position, first - position, Kind.HOLE)
            yield Extent(first, last - first, Kind.DATA)
            position = last
        yield Extent(position, stop - position, Kind.HOLE)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with the content from `offset`."""
        view = memoryview(buffer).cast("B")
        self._check(offset, len(view))
        for number, first, last in _parts(offset, offset + len(view)):
            page = self._pages.get(number, _ZEROS)
            at = number * _PAGE
            view[first - offset : last - offset] = page[first - at : last - at]

    def write(self, offset: int, data: Buffer) -> None:
        """Store `data`, and note it for the tracker."""
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        if not self.writable:
            raise DiskRange(str(self.path), offset, len(view), 0)
        for number, first, last in _parts(offset, offset + len(view)):
            page = bytearray(self._pages.get(number, _ZEROS))
            at = number * _PAGE
            page[first - at : last - at] = view[first - offset : last - offset]
            self._pages[number] = bytes(page)
        self.writes.append(Extent(offset, len(view)))

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros; whole pages become holes."""
        for number, first, last in _parts(offset, offset + length):
            self.write(first, bytes(last - first))
            if last - first == _PAGE:
                del self._pages[number]

    def flush(self) -> None:
        """Nothing is more stable than memory here."""

    def close(self) -> None:
        """The content stays: the host owns it."""

    def frozen(self) -> MemoryDisk:
        """A read-only copy of this state."""
        return MemoryDisk(
            str(self.path),
            self.virtual_size,
            dict(self._pages),
            writable=False,
            logical_sector_size=self.logical_sector_size,
            physical_sector_size=self.physical_sector_size,
        )


def _parts(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    while start < stop:
        number = start // _PAGE
        last = min(stop, (number + 1) * _PAGE)
        yield number, start, last
        start = last


@dataclass(frozen=True, slots=True)
class TrackedRanges:
    """The tracker's answer, as `ports.TrackedChanges` wants it."""

    ranges: Sequence[Extent] | None
    reason: str = ""


@dataclass(slots=True)
class _Held:
    """A checkpoint's frozen disks and how many writes each had seen, by place."""

    checkpoint: Checkpoint
    disks: dict[str, MemoryDisk]
    positions: dict[str, int]
    is_orphan: bool = False
    tracker_ids: dict[str, str] | None = None


@dataclass(slots=True)
class _Machine:
    machine: Machine
    disks: dict[str, MemoryDisk]
    state: PowerState = PowerState.OFF
    trackers: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: dict[str, TrackerFault] = field(default_factory=dict)


class MemoryHost:
    """A host whose VMs exist only here; implements `ports.Host`.

    `checkpoints_running`: whether a running VM can be checkpointed (crash-consistent); where not,
    MachineRunning. `has_tracker`: whether disks have a change tracker. One thread at a time.
    """

    def __init__(
        self,
        name: str = "memory",
        *,
        clock: Clock = SYSTEM_CLOCK,
        checkpoints_running: bool = True,
        has_tracker: bool = True,
    ) -> None:
        self.name = name
        self._clock = clock
        self._checkpoints_running = checkpoints_running
        self._has_tracker = has_tracker
        self._machines: dict[str, _Machine] = {}
        self._held: dict[tuple[str, str], _Held] = {}
        self._serial = 0

    # --- building and disturbing ---

    def add_machine(
        self, name: str, disks: dict[str, int] | None = None, *, identity: str = ""
    ) -> Machine:
        """A new VM, off; `disks` maps places to sizes (default: 1 GiB at scsi:0:0)."""
        sizes = {"scsi:0:0": GiB} if disks is None else disks
        identity = identity or f"memory-{name}"
        made = {place: MemoryDisk(f"{name}/{place}", size) for place, size in sizes.items()}
        machine = Machine(
            id=identity,
            name=name,
            folder=name,
            disks=tuple(
                MachineDisk(place, f"{number}.disk", f"{identity}-{number}", virtual_size=size)
                for number, (place, size) in enumerate(sizes.items())
            ),
        )
        self._machines[identity] = _Machine(machine, made)
        return machine

    def disk(self, machine: Machine, place: str) -> MemoryDisk:
        """The live disk, to write to as the guest would."""
        return self._find(machine.id).disks[place]

    def set_power(self, machine: Machine, state: PowerState) -> None:
        """Say whether the VM runs."""
        self._find(machine.id).state = state

    def set_fault(self, machine: Machine, place: str, fault: TrackerFault | None) -> None:
        """Make the disk's tracker misbehave, or behave again. LOST is for good: the ids are gone
        and those of later checkpoints count again."""
        found = self._find(machine.id)
        found.faults.pop(place, None)
        if fault is TrackerFault.LOST:
            found.trackers.pop(place, None)
        elif fault is not None:
            found.faults[place] = fault

    def disturb(self, checkpoint: Checkpoint) -> None:
        """Make `confirm_checkpoint` find that the source changed."""
        self._held.pop(_key(checkpoint), None)

    def crash(self) -> None:
        """Let the process that took the checkpoints die: what it held are leftovers now."""
        for held in self._held.values():
            held.is_orphan = held.tracker_ids is None

    def _find(self, identity: str) -> _Machine:
        try:
            return self._machines[identity]
        except KeyError:
            raise UnknownName("VM", identity, tuple(self._machines)) from None

    # --- ports.Host ---

    def machines(self) -> list[Machine]:
        """All VMs, in order of name."""
        return sorted((m.machine for m in self._machines.values()), key=lambda m: m.name)

    def power_state(self, machine: Machine) -> PowerState:
        """As `set_power` left it, OFF at first."""
        return self._find(machine.id).state

    def take_checkpoint(self, machine: Machine, intent_id: str) -> Checkpoint:
        """Frozen copies of the disks, equal ids for equal content."""
        found = self._find(machine.id)
        if found.state is not PowerState.OFF and not self._checkpoints_running:
            raise MachineRunning(self.name, machine.name, found.state.value)
        self._serial += 1
        disks = tuple(
            CheckpointDisk(
                place=place,
                files=(f"{machine.name}/{intent_id}/{place}",),
                identity=f"{disk.path}@{len(disk.writes)}",
                virtual_size=disk.virtual_size,
                logical_sector_size=disk.logical_sector_size,
                physical_sector_size=disk.physical_sector_size,
            )
            for place, disk in found.disks.items()
        )
        state = repr((machine.id, [(disk.place, disk.identity) for disk in disks]))
        checkpoint = Checkpoint(
            id=hashlib.sha256(state.encode()).hexdigest()[:32],
            machine_id=machine.id,
            kind="memory",
            taken_at=f"{self._clock.now().isoformat(timespec='microseconds')}#{self._serial}",
            consistency="offline" if found.state is PowerState.OFF else "crash",
            disks=disks,
        )
        self._held[_key(checkpoint)] = _Held(
            checkpoint,
            {place: disk.frozen() for place, disk in found.disks.items()},
            {place: len(disk.writes) for place, disk in found.disks.items()},
        )
        return checkpoint

    def open_checkpoint(self, checkpoint: Checkpoint, place: str) -> MemoryDisk:
        """The disk at `place` as the checkpoint fixed it, read-only."""
        held = self._held.get(_key(checkpoint))
        if held is None or place not in held.disks:
            raise UnknownName("checkpoint disk", f"{checkpoint.id} {place}")
        return held.disks[place]

    def open_file(self, file: str) -> MemoryDisk:
        """The disk under a checkpoint by the name that the checkpoint gave it (`files`)."""
        for held in self._held.values():
            for disk in held.checkpoint.disks:
                if file in disk.files and disk.place in held.disks:
                    return held.disks[disk.place]
        raise UnknownName("checkpoint disk", file)

    def confirm_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Frozen copies do not change; one that was released or disturbed is SourceChanged."""
        held = self._held.get(_key(checkpoint))
        if held is None or held.tracker_ids is not None:
            machine = self._find(checkpoint.machine_id).machine
            raise SourceChanged(machine.name, machine.folder, "the checkpoint is gone")

    def release_checkpoint(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Give the copies up; the tracker ids of their state, the same when asked again."""
        held = self._held.get(_key(checkpoint))
        if held is None:
            return {}
        if held.tracker_ids is None:
            held.tracker_ids = self._tracker_ids(held) if self._has_tracker else {}
            held.disks.clear()
        return dict(held.tracker_ids)

    def _tracker_ids(self, held: _Held) -> dict[str, str]:
        found = self._find(held.checkpoint.machine_id)
        ids = {}
        for place, position in held.positions.items():
            self._serial += 1
            ids[place] = f"{found.machine.id}:{place}:{self._serial}"
            found.trackers.setdefault(place, {})[ids[place]] = position
        return ids

    def release_leftovers(self) -> list[str]:
        """Release what `crash` orphaned; names of the VMs."""
        orphans = [held for held in self._held.values() if held.is_orphan]
        for held in orphans:
            held.is_orphan = False
            held.tracker_ids = {}
            held.disks.clear()
        return [self._find(held.checkpoint.machine_id).machine.name for held in orphans]

    def state_files(self, machine: Machine) -> dict[str, str]:
        """A VM in memory has no firmware state."""
        return {}

    def changes_since(
        self, machine: Machine, place: str, tracker_id: str, checkpoint: Checkpoint
    ) -> TrackedRanges:
        """What was written between the state of `tracker_id` and the checkpoint."""
        found = self._find(machine.id)
        if not self._has_tracker:
            return TrackedRanges(None, f"host {self.name} has no change tracker")
        if found.faults.get(place) is TrackerFault.WRONG_BASE:
            return TrackedRanges(None, f"the tracker counts from another id than {tracker_id}")
        start = found.trackers.get(place, {}).get(tracker_id)
        if start is None:
            return TrackedRanges(None, f"the tracker does not know the id {tracker_id}")
        held = self._held.get(_key(checkpoint))
        if held is None:
            return TrackedRanges(None, "the checkpoint is gone")
        disk = found.disks[place]
        ranges = disk.writes[start : held.positions[place]]
        if found.faults.get(place) is TrackerFault.UNSURE:
            ranges = [_widened(extent, disk.virtual_size) for extent in ranges]
        return TrackedRanges(_united(ranges))

    def forget_tracker(self, machine: Machine, tracker_ids: Sequence[str]) -> None:
        """Drop the ids; unknown ones are no matter."""
        for known in self._find(machine.id).trackers.values():
            for tracker_id in tracker_ids:
                known.pop(tracker_id, None)


def _key(checkpoint: Checkpoint) -> tuple[str, str]:
    return checkpoint.machine_id, checkpoint.taken_at


def _widened(extent: Extent, size: int) -> Extent:
    first = extent.offset // _UNSURE * _UNSURE
    last = min(size, -(-extent.stop // _UNSURE) * _UNSURE)
    return Extent(first, last - first)


def _united(extents: Sequence[Extent]) -> list[Extent]:
    """The same bytes as ranges in order, without overlap."""
    united: list[Extent] = []
    for extent in sorted(extents, key=lambda item: item.offset):
        if extent.length == 0:
            continue
        if united and extent.offset <= united[-1].stop:
            stop = max(united[-1].stop, extent.stop)
            united[-1] = replace(united[-1], length=stop - united[-1].offset)
        else:
            united.append(extent)
    return united
