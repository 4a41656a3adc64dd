"""A Hyper-V host as the source of a job: `ports.Host` over the door.

    inventory ─▶ take_checkpoint ─▶ changes_since ─▶ (movers read) ─▶ confirm ─▶ release ─▶ forget
    2 scripts    1                  1, all disks                      0          1          1

How a session drives it, per VM:

1. `take_checkpoint(machine, intent)`: the intent is one that the server has recorded. What an
   earlier session of the VM left is given up first. BackupInProgress, MachineBusy and
   CheckpointFailed are tried again later.
2. `changes_since(…, tracker id of the newest point, checkpoint)` for each disk. Where it has
   ranges, the movers read these and `samples` as well, and compare the samples with the newest
   point's digests; `compared` takes what differs (an empty list too) and answers an alarm, or ''.
   After an alarm the disk goes a level down: a digest pass.
3. `confirm_checkpoint`, once all was read and verified and every mover has closed its files: from
   then on the release converts. Without it the release destroys the snapshot, and nothing counts
   from it.
4. `release_checkpoint`: the tracker ids for the restore point's record, one per disk, also where
   there is no tracking (then it says why). Commit the point after this.
5. `forget_tracker`, after the commit, with the tracker ids of the point before it: only now may
   their reference points go.

A server that starts calls `release_intent` for each intent it knows to be dead, then
`release_leftovers`. `growth` is asked every 5 minutes. Calls from many threads are joined to few
scripts (gathering.py): have one object per host, and call it from as many threads as there are VMs
at work.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import msgspec

from standby.clock import SYSTEM_CLOCK, Clock, new_token
from standby.errors import (
    BackupInProgress,
    CheckpointFailed,
    HostError,
    MachineBusy,
    SourceChanged,
)
from standby.host.hyperv import leftovers
from standby.host.hyperv.asking import Asking
from standby.host.hyperv.changes import Answers, TrackedRanges, ask_changes, believed
from standby.host.hyperv.files import folded
from standby.host.hyperv.frozen import KIND, checkpoint_of, frozen_disks, unknown_media
from standby.host.hyperv.gathering import Gathering
from standby.host.hyperv.inventory import (
    Excludes,
    HostInventory,
    excludes_nothing,
    read_inventory,
)
from standby.host.hyperv.leftovers import LeafGrowth, unmerged
from standby.host.hyperv.machines import RUNNING, HostDisk, HostMachine, power_of
from standby.host.hyperv.open_files import Clients, Closing
from standby.host.hyperv.pacing import volumes_of
from standby.host.hyperv.records import (
    CONVERTING,
    MADE,
    READ,
    RELEASED,
    Record,
    RecordedDisk,
    Records,
)
from standby.host.hyperv.reference_points import convert, destroy_points, trackers_of
from standby.host.hyperv.shape import to_state_file
from standby.host.hyperv.snapshots import (
    APPLICATION,
    CRASH,
    Made,
    Snapshots,
    Waits,
    Wanted,
    in_progress,
)
from standby.host.hyperv.states import Watch
from standby.host.hyperv.trust import (
    AUDIT_EVERY,
    DiskNow,
    TrackedDisk,
    distrust_before,
    parse_tracker,
    sample_alarm,
)
from standby.model.extent import Extent
from standby.model.machine import (
    Checkpoint,
    Inventory,
    InventoryWarning,
    Machine,
    PowerState,
)
from standby.ports import Clustered

POINTS_MAX = 4
"""Reference points of ours that a VM keeps: the newest of each of its jobs, and some whose session
ended before its commit."""


NO_COPY = (
    "the host makes no checkpoints of type copy (Server 2016): databases in the guest take this "
    "for a backup and cut their logs; where another product backs them up, write "
    '`checkpoints = { consistency = "crash" }`'
)


@dataclass(frozen=True, slots=True)
class SourceRules:
    """How checkpoints are made. `fall_back` takes a crash-consistent one where the guest cannot
    hold still; `is_copy` keeps the guest's logs whole where the host's class can."""

    is_application: bool = True
    fall_back: bool = True
    is_copy: bool = True
    audit_every: timedelta = AUDIT_EVERY
    waits: Waits = field(default_factory=Waits)


class HyperVSource:
    """A standalone Hyper-V host; implements `ports.Host`, `Inventoried` and `IntentReleasing`.

    Safe to use from several threads for different VMs. `folder` keeps the records of checkpoints
    (records.py); None only in tests.
    """

    def __init__(
        self,
        name: str,
        door: Asking,
        folder: Path | None = None,
        clock: Clock = SYSTEM_CLOCK,
        *,
        rules: SourceRules | None = None,
        excludes: Excludes = excludes_nothing,
        clients: Clients = tuple,
    ) -> None:
        """`clients` are the names and addresses that this host's proxies have as SMB clients."""
        self.name = name
        self.records = Records(name, folder)
        self._door = Gathering(door, name)
        self._clock = clock
        self._rules = rules or SourceRules()
        self._excludes = excludes
        self._watch = Watch(self._door, name, clock)
        self._closing = Closing(self._watch, clients)
        self._snapshots = Snapshots(self._watch, self._rules.waits, self._closing)
        self._seen: HostInventory | None = None
        self._answers = Answers()
        self._doubted: set[str] = set()
        self._lock = threading.Lock()

    def node_of(self, machine_id: str) -> str:
        """See ports.Clustered."""
        door = self._door.bare
        return door.node_of(machine_id) if isinstance(door, Clustered) else ""

    @property
    def door(self) -> Asking:
        """The host's door, for whoever else asks it; it joins calls."""
        return self._door

    def close(self) -> None:
        """Leave no shell on the host. It can be used again."""
        self._door.close()

    @property
    def bare_door(self) -> Asking:
        """The door behind it."""
        return self._door.bare

    # --- what there is -----------------------------------------------------------------------

    def look(self) -> HostInventory:
        """The host's inventory, read now."""
        found = read_inventory(self._door)
        with self._lock:
            self._seen = found
        return found

    def machines(self, *, replicas: bool = False) -> list[Machine]:
        """See ports.Host; a VM that cannot be described is left out."""
        return list(self.look().model(self._excludes, replicas=replicas).machines)

    def inventory(self) -> Inventory:
        """See ports.Inventoried. Its warnings name files that were not merged after a release."""
        seen = self.look()
        found = seen.model(self._excludes)
        alarms = [
            InventoryWarning(text, machine.name)
            for machine in seen.machines
            for text in unmerged(
                machine, seen.kept_files(machine), self.records.of_machine(machine.id)
            )
        ]
        return replace(found, warnings=(*found.warnings, *alarms))

    def power_state(self, machine: Machine) -> PowerState:
        """See ports.Host; one script, which says so where the VM is gone."""
        found = self._watch.state(machine.id)
        if not found.found:
            raise self._gone(machine.name)
        return power_of(found.enabled[0] if found.enabled else 0)

    def state_files(self, machine: Machine) -> dict[str, str]:
        """The VM's hardware as Hyper-V has it (`shape`)."""
        return to_state_file(self._found(machine).shape)

    def _found(self, machine: Machine, *, is_fresh: bool = False) -> HostMachine:
        seen = self._seen
        if seen is None or is_fresh:
            seen = self.look()
        found = seen.machine(machine.id)
        if found is None:
            raise self._gone(machine.name)
        return found

    def _gone(self, machine: str) -> HostError:
        return HostError(self.name, f"VM {machine} is not on the host any more")

    # --- checkpoints -------------------------------------------------------------------------

    def take_checkpoint(self, machine: Machine, intent_id: str) -> Checkpoint:
        """Make a recovery snapshot (RULES 10). BackupInProgress while somebody else's is there."""
        is_fresh = self._give_up_earlier(machine, intent_id)
        found = self._found(machine, is_fresh=is_fresh)
        return self._taken(found, intent_id)

    def _give_up_earlier(self, machine: Machine, intent_id: str) -> bool:
        """Release what sessions of this VM left that nobody is at any more; whether there was
        any."""
        left = [
            record
            for record in self.records.of_machine(machine.id)
            if record.phase != RELEASED
            and record.intent != intent_id
            and not self.records.is_at(record.intent)
            and self.records.take(record.intent)
        ]
        for record in left:
            try:
                leftovers.release(self._watch, self._snapshots, self.records, record)
            finally:
                self.records.let_go(record.intent)
        return bool(left)

    def _taken(self, found: HostMachine, intent_id: str) -> Checkpoint:
        if found.snapshots:
            # The inventory may be older than the other product's end.
            found = self._found(_named(found), is_fresh=True)
            ours = {record.snapshot for record in self.records.of_machine(found.id)}
            foreign = [item for item in found.snapshots if item not in ours]
            if foreign:
                raise in_progress(self.name, found.name, found.id, foreign)
            if found.snapshots:  # `_give_up_earlier` could not: another process is at it
                raise MachineBusy(self.name, found.name, "another session of standby", 0)
        record = Record(
            intent=intent_id,
            machine_id=found.id,
            machine=found.name,
            recorded_at=self._clock.now().isoformat(timespec="microseconds"),
            known=found.snapshots,
        )
        if not self.records.take(intent_id):
            raise HostError(self.name, f"another process is at the checkpoint {intent_id}")
        self.records.save(record)
        made, warnings = self._made(found, record)
        record = self.records.save(
            msgspec.structs.replace(
                record, phase=MADE, snapshot=made.snapshot, applied=made.applied, points=made.points
            )
        )
        frozen = self._frozen(found, record, made)
        record = self.records.save(
            msgspec.structs.replace(
                record,
                disks=tuple(
                    RecordedDisk(
                        disk.place,
                        disk.storage,
                        disk.file.disk_id,
                        disk.file.virtual_size,
                        tuple(folded(file.path) for file in disk.chain),
                    )
                    for disk in frozen
                ),
            )
        )
        return checkpoint_of(record, made, frozen, warnings)

    def _made(self, found: HostMachine, record: Record) -> tuple[Made, list[str]]:
        """The snapshot, and in what it is less than the rules ask for."""
        is_application = self._rules.is_application and found.enabled_state == RUNNING
        wanted = Wanted(
            found.id,
            found.name,
            APPLICATION if is_application else CRASH,
            self._rules.is_copy,
            record.known,
            tuple(sorted(volumes_of(disk.file.path for disk in found.disks))),
        )
        try:
            made = self._snapshots.make(wanted)
        except BackupInProgress:
            self.records.drop(record.intent)  # nothing of ours was begun: what is there is theirs
            raise
        except CheckpointFailed as exc:
            if not is_application or not self._rules.fall_back:
                raise
            made = self._snapshots.make(replace(wanted, level=CRASH, is_second=True))
            return made, [f"the checkpoint is crash-consistent only: {exc.problem}"]
        if is_application and self._rules.is_copy and not made.is_copy:
            return made, [NO_COPY]
        return made, []

    def _frozen(self, found: HostMachine, record: Record, made: Made) -> list[HostDisk]:
        """The VM's disks as the snapshot froze them; one that was left out gives it up."""
        if unknown_media(found, made.media):
            found = self._found(_named(found), is_fresh=True)  # a disk came since we looked
        try:
            return frozen_disks(self._door, self.name, found, made.media, self._excludes)
        except CheckpointFailed:
            self._give_up(record)
            raise

    def confirm_checkpoint(self, checkpoint: Checkpoint) -> None:
        """All was read: the release may convert. SourceChanged for a checkpoint that is not
        recorded."""
        record = self._record(checkpoint)
        if record is None:
            raise SourceChanged(checkpoint.machine_id, self.name, "the checkpoint is not recorded")
        if record.phase == MADE:
            self.records.save(msgspec.structs.replace(record, phase=READ))

    def _record(self, checkpoint: Checkpoint) -> Record | None:
        return self.records.of_snapshot(checkpoint.id)

    def may_be_open(self, checkpoint: Checkpoint) -> None:
        """See ports.OpenFilesClosing."""
        self._doubted.add(checkpoint.id)

    def release_checkpoint(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Convert what was confirmed, give up what was not. The same ids when asked again.
        FilesHeldOpen while files of the checkpoint stay open, and could not be closed."""
        self._answers.drop(checkpoint.id)
        record = self._record(checkpoint)
        if record is None:
            return {}
        if record.phase == RELEASED:
            return dict(record.trackers)
        if checkpoint.id in self._doubted:
            self._closing.settle(record)
            self._doubted.discard(checkpoint.id)
        if record.phase not in (READ, CONVERTING):
            self._give_up(record)
            return {}
        return self._converted(record)

    def _converted(self, record: Record) -> dict[str, str]:
        begun = record
        record = self.records.save(msgspec.structs.replace(record, phase=CONVERTING))
        outcome = convert(self._watch, begun, self._rules.waits, self._closing)
        if outcome.state == "gone":
            self.records.drop(record.intent)
            raise SourceChanged(
                record.machine, record.snapshot, "somebody removed the recovery snapshot meanwhile"
            )
        if outcome.state == "failed":
            self._snapshots.destroy(record.machine_id, record.machine, record.snapshot, record)
        trackers = trackers_of(record, outcome)
        point = outcome.point.instance_id if outcome.point else ""
        # One that is still being converted stays as it is: the next start finds what comes of it.
        phase = CONVERTING if outcome.state == "unfinished" else RELEASED
        self.records.save(
            msgspec.structs.replace(record, phase=phase, trackers=trackers, point=point)
        )
        self.records.let_go(record.intent)
        return trackers

    def _give_up(self, record: Record) -> None:
        if record.snapshot:
            self._snapshots.destroy(record.machine_id, record.machine, record.snapshot, record)
        self.records.drop(record.intent)

    def release_intent(self, intent_id: str) -> list[str]:
        """See ports.IntentReleasing."""
        record = next((item for item in self.records.all() if item.intent == intent_id), None)
        if record is None or record.phase == RELEASED:
            return []
        return leftovers.release(self._watch, self._snapshots, self.records, record)

    def growth(self) -> list[LeafGrowth]:
        """Every file that a VM with an open checkpoint of this host writes to, in one script for
        all of them; to be asked every 5 minutes. `LeafGrowth.limit` says which limit is reached;
        then the session ends "interrupted" and releases without confirming (RULES 10)."""
        open_ids = {it.machine_id for it in self.records.all() if it.phase in (MADE, READ)}
        return leftovers.growth(self._watch, sorted(open_ids))

    def release_leftovers(self) -> list[str]:
        """What a dead process of this installation left, and no server knows of."""
        return leftovers.release_all(self._watch, self._snapshots, self.records)

    # --- trackers ----------------------------------------------------------------------------

    def changes_since(
        self, machine: Machine, place: str, tracker_id: str, checkpoint: Checkpoint
    ) -> TrackedRanges:
        """See ports.Host; the first question about a checkpoint asks for all of its disks."""
        then = parse_tracker(tracker_id)
        record = self._record(checkpoint)
        disk = (
            next((item for item in record.disks if item.place == place), None) if record else None
        )
        if then is None or record is None or disk is None:
            return TrackedRanges(None, "the newest point's tracker id is none of this host")
        now = DiskNow(disk.disk_id, disk.size, disk.chain)
        reason = self.records.lies().get(disk.disk_id, "") or distrust_before(
            then, now, self._clock.now(), self._rules.audit_every
        )
        if reason:
            return TrackedRanges(None, reason)
        files = {item.place: item.files[0] for item in checkpoint.disks}
        answer = self._answers.of(
            checkpoint.id,
            then,
            lambda: ask_changes(self._door, machine.id, files, record.disks, then),
        )
        found = believed(then, answer, _chance)
        if found.ranges is not None:
            self._keep_audited(record.intent, then)
        return found

    def _keep_audited(self, intent: str, then: TrackedDisk) -> None:
        """The disk is not read whole this time: its last audit counts on."""
        record = next((item for item in self.records.all() if item.intent == intent), None)
        if record is not None:
            audited = {**record.audited, then.place: then.audited}
            self.records.save(msgspec.structs.replace(record, audited=audited))

    def compared(
        self, machine: Machine, place: str, checkpoint: Checkpoint, differing: Sequence[Extent]
    ) -> str:
        """After the `samples` of `changes_since` were read: those that differ from the newest
        point. Any at all: the disk's tracker is not used any more (until `trust_again`), this
        session must compare the disk whole, and the alarm is answered; else ''."""
        alarm = sample_alarm(machine.name, place, differing)
        record = self._record(checkpoint)
        disk = next((it for it in record.disks if it.place == place), None) if record else None
        if alarm and record is not None and disk is not None:
            why = f"its change tracking lied at {self._clock.now().isoformat(timespec='minutes')}"
            with self._lock:
                self.records.keep_lies({**self.records.lies(), disk.disk_id: why})
            # it is read whole now, whatever the tracker's answer was believed to be
            audited = {key: at for key, at in record.audited.items() if key != place}
            self.records.save(msgspec.structs.replace(record, audited=audited))
        return alarm

    def trust_again(self, machine: Machine) -> None:
        """Use the trackers of the VM's disks again."""
        ids = {disk.page83 for disk in machine.disks}
        with self._lock:
            lies = self.records.lies()
            self.records.keep_lies({key: why for key, why in lies.items() if key not in ids})

    def forget_tracker(self, machine: Machine, tracker_ids: Sequence[str]) -> None:
        """Destroy the reference points of these ids. Others stay, for they may be another job's
        newest; of those that no commit followed, only so many are kept."""
        parsed = [parse_tracker(item) for item in tracker_ids]
        points = {item.point for item in parsed if item is not None and item.point}
        done = [item for item in self.records.of_machine(machine.id) if item.phase == RELEASED]
        left = [item for item in done if item.point and item.point not in points]
        points |= {item.point for item in left[:-POINTS_MAX]}
        destroy_points(self._watch, machine.id, sorted(points))
        kept = {item.intent for item in left[-POINTS_MAX:]} | {item.intent for item in done[-1:]}
        for record in done:
            if record.intent not in kept:
                self.records.drop(record.intent)


def _chance(below: int) -> int:
    return int(new_token(16), 16) % below


def _named(found: HostMachine) -> Machine:
    return Machine(found.id, found.name, found.folder)


__all__ = ["KIND", "HyperVSource", "SourceRules"]
