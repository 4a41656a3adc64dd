"""Checkpoints, recovery snapshots and reference points: what making and releasing them does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hyperv.world.errors import SHARING_VIOLATION, WorkFailed, text_of
from hyperv.world.machines import (
    RECOVERY,
    RUNNING,
    USER,
    Checkpoint,
    Drive,
    Machine,
    ReferencePoint,
    new_id,
)

if TYPE_CHECKING:
    from hyperv.world.world import World

APPLICATION, CRASH = 1, 2
FAILED, NOT_SUPPORTED, IN_USE, INVALID_STATE, NOT_FOUND = 32768, 32770, 32774, 32775, 32779
RCT_VERSION = (6, 2)


def make_checkpoint(
    world: World,
    machine: Machine,
    name: str,
    kind: str,
    consistency: int,
    *,
    ignores_others: bool = True,
    backup_type: int = 0,
) -> Checkpoint:
    """Freeze the disks of a VM: each gets a child that the VM writes to from now on.  WorkFailed
    where the VM, its guest or one of its disks does not take part."""
    if kind == RECOVERY and _number(machine.version) < RCT_VERSION:
        raise WorkFailed(NOT_SUPPORTED, f"'{machine.name}' has configuration {machine.version}.")
    faults = machine.faults
    is_refused = machine.state != RUNNING and not faults.vss_works_when_off
    if consistency == APPLICATION and (faults.vss_fails or is_refused):
        raise WorkFailed(
            FAILED,
            f"'{machine.name}' could not initiate a checkpoint operation: "
            "the VSS writers of the guest failed. (0x80042306)",
        )
    taken, left_out = [], []
    for drive in machine.drives:
        if drive.kind == "dvd":
            continue
        is_refused = drive.place in faults.not_snapshottable or not _can_be_frozen(world, drive)
        if drive.place in faults.silently_left_out or (is_refused and ignores_others):
            left_out.append(drive.place)
        elif is_refused:
            raise WorkFailed(FAILED, f"The disk at {drive.place} cannot be part of a checkpoint.")
        else:
            taken.append(drive)
    checkpoint = Checkpoint(
        name=name,
        kind=kind,
        created=world.clock.now(),
        consistency=consistency,
        vm=machine,
        left_out=left_out,
        backup_type=backup_type,
        parent=_newest_of_user(machine),
    )
    for drive in taken:
        _freeze(world, machine, checkpoint, drive)
    machine.checkpoints.append(checkpoint)
    world.reopen(machine)
    return checkpoint


def _can_be_frozen(world: World, drive: Drive) -> bool:
    is_file = drive.kind == "disk" and drive.path is not None
    return is_file and not drive.is_shared and drive.path not in world.storage.oddities


def _freeze(world: World, machine: Machine, checkpoint: Checkpoint, drive: Drive) -> None:
    frozen = drive.path
    assert frozen is not None
    base = world.storage.chain(frozen)[-1]
    child = frozen.with_name(f"{base.stem}_{new_id()}.avhdx")
    world.storage.make_child(machine.host, frozen, child)
    checkpoint.disks[drive.place] = frozen
    checkpoint.drives[drive.place] = replace(drive)
    checkpoint.marks[drive.place] = len(drive.tracker.log)
    if checkpoint.kind == RECOVERY:
        for suffix in (".rct", ".mrt"):
            map_file = base.with_name(base.name + suffix)
            if not map_file.exists() and not drive.tracker.marks:
                map_file.write_bytes(bytes(4096))
        checkpoint.tracking[drive.place] = drive.tracker.mark()
    drive.path = child


def _newest_of_user(machine: Machine) -> Checkpoint | None:
    users = [c for c in machine.checkpoints if c.kind == USER]
    return users[-1] if users else None


def destroy(world: World, checkpoint: Checkpoint) -> None:
    """Give a checkpoint up; what it froze is merged in a while, if nothing else keeps it."""
    _check_use(world, checkpoint)
    for place, identifier in checkpoint.tracking.items():
        checkpoint.vm.drive(place).tracker.forget(identifier)
    _release(world, checkpoint)


def convert(world: World, checkpoint: Checkpoint) -> ReferencePoint:
    """Give a recovery snapshot up and keep what tracking needs of it.  The order of the disks is
    not the one of their places."""
    _check_use(world, checkpoint)
    machine = checkpoint.vm
    disks = [
        (f"Microsoft:{machine.id}\\{machine.drive(place).element_id()}\\L", identifier)
        for place, identifier in sorted(checkpoint.tracking.items(), reverse=True)
    ]
    point = ReferencePoint(machine, disks, checkpoint.consistency, world.clock.now())
    machine.points.append(point)
    _release(world, checkpoint)
    return point


def destroy_point(point: ReferencePoint) -> None:
    """Give a reference point up: its ids say nothing any more."""
    point.vm.points.remove(point)
    for _, identifier in point.disks:
        for drive in point.vm.disks():
            drive.tracker.forget(identifier)


def _check_use(world: World, checkpoint: Checkpoint) -> None:
    """A release whose merge would meet a reader that forbids it may fail as a whole."""
    if not checkpoint.vm.faults.conflict_fails_job:
        return
    for path in checkpoint.disks.values():
        for handle in world.storage.handles:
            is_vm = handle.owner.startswith("vm:")
            if handle.path == path and not is_vm and "write" not in handle.shares:
                raise WorkFailed(FAILED, f"'{path.name}': {text_of(SHARING_VIOLATION)}")


def _release(world: World, checkpoint: Checkpoint) -> None:
    machine = checkpoint.vm
    machine.checkpoints.remove(checkpoint)
    for other in machine.checkpoints:
        if other.parent is checkpoint:
            other.parent = checkpoint.parent
    if machine.last_applied is checkpoint:
        machine.last_applied = None
    for path in checkpoint.disks.values():
        if not world.is_kept(path):
            world.merge_later(machine, path)


def apply(world: World, checkpoint: Checkpoint) -> None:
    """Go back to a checkpoint: what was written since is gone, and tracking does not know."""
    machine = checkpoint.vm
    world.storage.close_all(machine.owner)
    for place, frozen in checkpoint.disks.items():
        drive = machine.drive(place)
        old = drive.path
        base = world.storage.chain(frozen)[-1]
        child = frozen.with_name(f"{base.stem}_{new_id()}.avhdx")
        world.storage.make_child(machine.host, frozen, child)
        drive.path = child
        if old is not None and old in world.storage.parents and not world.is_kept(old):
            del world.storage.parents[old]
            old.unlink()
    machine.last_applied = checkpoint
    world.reopen(machine)


class NoChanges(Exception):
    """Tracking cannot answer; `code` is what the method returns."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


def tracked(world: World, host: str, path: Path, since: str) -> tuple[Drive, int]:
    """Whose disk the file is, and up to where its tracker's log belongs to it."""
    if not path.is_file():
        raise NoChanges(NOT_FOUND)
    found = _frozen_by(world, path)
    if found is None:
        raise NoChanges(INVALID_STATE)
    machine, drive, until = found
    if machine.host != host:
        raise NoChanges(IN_USE)
    if until is None:
        if machine.runs:
            raise NoChanges(IN_USE)
        until = len(drive.tracker.log)
    base = world.storage.chain(path)[-1]
    maps = [base.with_name(base.name + suffix) for suffix in (".rct", ".mrt")]
    if not drive.tracker.knows(since) or not all(file.exists() for file in maps):
        raise NoChanges(FAILED)
    if drive.tracker.marks[since] > until:
        raise NoChanges(FAILED)
    return drive, until


def _frozen_by(world: World, path: Path) -> tuple[Machine, Drive, int | None] | None:
    for machine in world.machines.values():
        for checkpoint in reversed(machine.checkpoints):
            for place, frozen in checkpoint.disks.items():
                if frozen == path:
                    return machine, machine.drive(place), checkpoint.marks[place]
        for drive in machine.disks():
            if drive.path == path:
                return machine, drive, None
    return None


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
