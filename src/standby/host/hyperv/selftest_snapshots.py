"""The self-test's steps about recovery snapshots and change tracking, on a VM whose guest writes
known sectors: what is frozen, who may read it, what it becomes, what the tracker says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from standby.errors import CheckpointFailed
from standby.host.hyperv.files import folded
from standby.host.hyperv.machines import OFF, RUNNING
from standby.host.hyperv.reference_points import destroy_points
from standby.host.hyperv.selftest_boot import SECTOR, count_of, missing_copies
from standby.host.hyperv.selftest_rows import SHARE_FILES
from standby.host.hyperv.selftest_vm import PLACE, rested
from standby.host.hyperv.selftest_walk import BOOT_S, Walk
from standby.host.hyperv.snapshots import APPLICATION, CRASH, Snapshots, Wanted
from standby.host.hyperv.source import HyperVSource, SourceRules
from standby.host.hyperv.states import operation, recovery_snapshots
from standby.host.hyperv.trust import parse_tracker
from standby.model.extent import Extent
from standby.model.machine import Checkpoint, Machine
from standby.units import MiB

MERGE_S = 120.0
FREE = 60 * MiB
"""A place that no guest writes to."""
PIECE = 4096
PRODUCTION = 3
"""Shape.checkpoint_type."""


@dataclass(slots=True)
class _Pair:
    """Two snapshots of the VM, and what is done between them."""

    walk: Walk
    source: HyperVSource
    machine: Machine
    label: str
    between: Callable[[], None]
    hides: tuple[int, ...] = ()
    """Pieces that changed, and that the tracker need not know."""

    def run(self) -> list[Extent] | None:
        """Freeze, convert, do what is between, freeze, ask what changed, compare with the bytes;
        the ranges that the tracker told."""
        walk, source, machine = self.walk, self.source, self.machine
        first = source.take_checkpoint(machine, f"selftest-{walk.token}-{self.label}-1")
        then = _frozen(walk, first)
        source.confirm_checkpoint(first)
        trackers = source.release_checkpoint(first)
        tracked = parse_tracker(trackers.get(PLACE, ""))
        tracker = tracked.ids.get(PLACE, "") if tracked is not None else ""
        why = tracked.why if tracked is not None else "no tracker id of ours"
        came = "yes" if tracker else why or "no"
        walk.check("the snapshot became a reference point with an RCT id", "yes", came)
        if tracker:
            walk.tell("an RCT id", tracker)
        points = [item.instance_id for item in walk.watch.state(machine.id).points]
        walk.check("reference points of the VM", 1, len(points))
        _shrinks(walk, machine.id)
        self.between()
        second = source.take_checkpoint(machine, f"selftest-{walk.token}-{self.label}-2")
        now = _frozen(walk, second)
        ranges = None
        if tracker:
            answer = source.changes_since(machine, PLACE, trackers[PLACE], second)
            if self.hides:
                walk.tell("the tracker's answer is believed", answer.reason or "yes")
            else:
                walk.check("the tracker's answer is believed", "yes", answer.reason or "yes")
            if answer.ranges is not None:
                ranges = list(answer.ranges)
                _compared(walk, ranges, then, now, self.hides)
        source.confirm_checkpoint(second)
        later = source.release_checkpoint(second)
        source.forget_tracker(machine, [trackers[PLACE]] if PLACE in trackers else [])
        newest = parse_tracker(later.get(PLACE, ""))
        left = [item.instance_id for item in walk.watch.state(machine.id).points]
        walk.check(
            "reference points after the older one was given up",
            [newest.point] if newest is not None and newest.point else "one",
            left,
        )
        still = destroy_points(walk.watch, machine.id, left)
        walk.check("reference points that could not be destroyed", [], still)
        _shrinks(walk, machine.id)
        return ranges


def _source(walk: Walk) -> HyperVSource:
    rules = SourceRules(is_application=False)
    return HyperVSource(walk.host, walk.door, walk.records, walk.clock, rules=rules)


def _begun(walk: Walk) -> Machine:
    """The VM, running, its guest at work."""
    found = rested(walk)
    shape = msgspec.structs.replace(found.shape, checkpoint_type=PRODUCTION)
    walk.target.restore_automatic(found.id, shape)
    _started(walk, found.id)
    return Machine(found.id, found.name, found.folder)


def _started(walk: Walk, machine: str) -> None:
    walk.start(machine)
    walk.check("the VM runs (EnabledState)", RUNNING, walk.enabled_state(machine))
    if walk.disks is not None:
        walk.clock.sleep(BOOT_S)


def snapshot(walk: Walk) -> None:
    """Two recovery snapshots of a running VM, and what changed between them; of one that is off."""
    machine = _begun(walk)
    _Pair(walk, _source(walk), machine, "run", lambda: walk.clock.sleep(BOOT_S / 3)).run()
    walk.turn_off(machine.id)
    walk.check("the VM is off (EnabledState)", OFF, walk.enabled_state(machine.id))
    _off(walk, machine)


def tracking(walk: Walk) -> None:
    """Whether the tracker counts on when the VM is off in between; whether it sees what is written
    to the file of a VM that is off, which nothing published says."""
    machine = _begun(walk)

    def off_and_on() -> None:
        walk.turn_off(machine.id)
        _started(walk, machine.id)

    _Pair(walk, _source(walk), machine, "off", off_and_on).run()
    disks = walk.needed_disks("what the tracker says of writes while the VM was off")
    if disks is not None:
        data = walk.token.encode("ascii").ljust(SECTOR, b".")

        def written_while_off() -> None:
            walk.turn_off(machine.id)
            disks.write(walk.disk, {FREE: data})
            _started(walk, machine.id)

        pair = _Pair(walk, _source(walk), machine, "changed", written_while_off)
        pair.hides = (FREE,)
        ranges = pair.run()
        if ranges is not None:
            is_told = any(item.offset <= FREE < item.offset + item.length for item in ranges)
            walk.tell("the tracker sees what is written past Hyper-V while the VM is off", is_told)
    walk.turn_off(machine.id)


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _frozen(walk: Walk, checkpoint: Checkpoint) -> bytes | None:
    """What a checkpoint froze; None where no proxy sees it."""
    files = checkpoint.disks[0].files if checkpoint.disks else ()
    walk.check("the frozen file", walk.disk.lower(), (files[0] if files else "none").lower())
    if not files:
        return None
    request = {"files": [{"id": files[0], "path": files[0]}]}
    (step,) = walk.door.run(SHARE_FILES, request).steps
    came = "yes" if step.error is None else str(step.error)
    walk.check("the frozen file can be read while the VM runs", "yes", came)
    disks = walk.needed_disks("the frozen file's content")
    if disks is None:
        return None
    content = disks.content(files[0])
    walk.check("the guest has written", "yes", _yes(count_of(content)))
    walk.check("writes of the guest that the frozen file lacks", [], _lacking(content))
    return content


def _lacking(content: bytes) -> list[int]:
    """The last one may be under way."""
    return [count for count in missing_copies(content, 1) if count != count_of(content)]


def _compared(
    walk: Walk,
    ranges: list[Extent],
    then: bytes | None,
    now: bytes | None,
    hides: tuple[int, ...],
) -> None:
    told = sum(item.length for item in ranges)
    walk.tell("bytes that the tracker calls changed", told)
    edges = [edge for item in ranges for edge in (item.offset, item.length)]
    if edges:
        walk.tell("its ranges are multiples of", math.gcd(*edges))
    if then is None or now is None:
        return
    pieces = [
        at for at in range(0, len(now), PIECE) if now[at : at + PIECE] != then[at : at + PIECE]
    ]
    walk.check("the guest wrote between the two snapshots", "yes", _yes(pieces))
    known = [at for at in pieces if at not in hides]
    hidden = [at for at in known if not _is_told(ranges, then, now, at)]
    walk.check("changed pieces of 4 KiB that the tracker did not tell", [], hidden)
    walk.tell("bytes that changed in truth, in pieces of 4 KiB", len(pieces) * PIECE)


def _is_told(ranges: list[Extent], then: bytes, now: bytes, at: int) -> bool:
    """Whether every changed sector of the piece lies in a range."""
    changed = [
        place
        for place in range(at, at + PIECE, SECTOR)
        if now[place : place + SECTOR] != then[place : place + SECTOR]
    ]
    return all(
        any(item.offset <= place and place + SECTOR <= item.offset + item.length for item in ranges)
        for place in changed
    )


def _shrinks(walk: Walk, machine: str) -> None:
    """After a release the VM writes to the file it had before, in a while."""
    until = walk.clock.monotonic() + MERGE_S
    while True:
        files = [file.path for disk in walk.machine().disks for file in disk.chain]
        is_done = [folded(file) for file in files] == [folded(walk.disk)]
        if (is_done and not operation(walk.watch.state(machine))) or (
            walk.clock.monotonic() >= until
        ):
            break
        walk.clock.sleep(2)
    walk.check("files of the disk after the release", [walk.disk.lower()], _lower(files))


def _lower(files: list[str]) -> list[str]:
    return [file.lower() for file in files]


def _off(walk: Walk, machine: Machine) -> None:
    """Snapshots of a VM that is off; what it does with the level 1 nothing published says."""
    for level, what in ((CRASH, "crash-consistent"), (APPLICATION, "application-consistent")):
        text = f"a snapshot of a VM that is off, {what}"
        snapshots = Snapshots(walk.watch)
        try:
            made = snapshots.make(Wanted(machine.id, machine.name, level, False, ()))
        except CheckpointFailed as exc:
            if level == CRASH:
                walk.check(text, "made", exc.problem)
            else:
                walk.tell(text, exc.problem)
            continue
        walk.tell(text, "made")
        snapshots.destroy(machine.id, machine.name, made.snapshot)
        left = [item.instance_id for item in recovery_snapshots(walk.watch.state(machine.id))]
        walk.check("recovery snapshots after it was destroyed", [], left)
        _shrinks(walk, machine.id)


def growth(walk: Walk) -> None:
    """The file that a VM writes to while a checkpoint is open."""
    found = rested(walk)
    machine = Machine(found.id, found.name, found.folder)
    source = _source(walk)
    walk.start(found.id)
    checkpoint = source.take_checkpoint(machine, f"selftest-{walk.token}-growth")
    try:
        leaves = source.growth()
    finally:
        source.release_checkpoint(checkpoint)
    walk.check("files that the VM writes to", 1, len(leaves))
    for leaf in leaves:
        walk.check("it is another file than the frozen one", "yes", _yes(leaf.path != walk.disk))
        walk.check("its size is told", "yes", _yes(leaf.size > 0))
        walk.check("the room beside it is told", "yes", _yes(leaf.free > 0))
    _shrinks(walk, found.id)
    walk.turn_off(found.id)
