"""Recovery snapshots: making one for a VM, finding it again, giving it up.

    intent recorded ─▶ CreateSnapshot ─▶ job ─▶ the only snapshot that was not there before

A lost answer, an unfinished job and a killed server all end in the last step: the snapshot is found
by what the intent knew. One of several is nobody's to guess: none is touched.
"""

from __future__ import annotations

from dataclasses import dataclass

from standby.errors import (
    BackupInProgress,
    CheckpointFailed,
    HostCallFailed,
    HostDeadline,
    HostError,
    HostShellLost,
    MachineBusy,
    ScriptFailed,
)
from standby.host.hyperv.open_files import Closing
from standby.host.hyperv.records import Record
from standby.host.hyperv.rows import CREATE, DESTROY, Created, Resource, State
from standby.host.hyperv.states import (
    Watch,
    is_done,
    is_running,
    is_sharing_violation,
    operation,
    recovery_snapshots,
)

APPLICATION, CRASH = 1, 2
RETRY_PAUSES_S = (2.0, 5.0, 15.0, 60.0)
"""Between tries to give a snapshot up whose files someone still has open."""
SCRIPT_WAIT_S = 80
"""How long a script waits for each of its jobs, of which it may have gathering.AT_ONCE_MAX; the
rest is waited for by looking again."""


@dataclass(frozen=True, slots=True)
class Waits:
    """How long to wait: for the host's other operations with a VM, for a job of ours."""

    busy_s: float = 900
    job_s: float = 1800


@dataclass(frozen=True, slots=True)
class Wanted:
    """The snapshot of one VM. `known` are the InstanceIDs of recovery snapshots it already has;
    `volumes` where its files are (pacing); `is_second` that one was begun before for the same
    intent: what came meanwhile is ours."""

    machine_id: str
    machine: str
    level: int
    is_copy: bool
    known: tuple[str, ...]
    volumes: tuple[str, ...] = ()
    is_second: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """A recovery snapshot: its InstanceID, its media (`HostResource` is the frozen file), how the
    VM was before."""

    snapshot: str
    media: tuple[Resource, ...]
    enabled: tuple[int, ...]
    applied: tuple[str, ...]
    points: tuple[str, ...]
    is_copy: bool
    level: int


def removal_command(snapshot: str, machine_id: str) -> str:
    """What removes a recovery snapshot of a VM, for people."""
    guid = snapshot.partition(":")[2] or snapshot
    return (
        f"Get-VM -Id {machine_id} | Get-VMSnapshot -SnapshotType Recovery | "
        f"Where-Object {{ $_.Id -eq '{guid}' }} | Remove-VMSnapshot"
    )


def in_progress(host: str, machine: str, machine_id: str, found: list[str]) -> BackupInProgress:
    """The error about snapshots that are not ours."""
    remedy = "; ".join(removal_command(item, machine_id) for item in found)
    return BackupInProgress(host, machine, tuple(found), remedy)


class Snapshots:
    """Makes and gives up recovery snapshots on one host."""

    def __init__(
        self, watch: Watch, waits: Waits | None = None, closing: Closing | None = None
    ) -> None:
        self._watch = watch
        self._closing = closing
        self._waits = waits or Waits()

    # --- making ------------------------------------------------------------------------------

    def make(self, wanted: Wanted) -> Made:
        """The VM's disks, frozen. Waits for what the host does with the VM. BackupInProgress when a
        snapshot came up that is not known, before anything was begun; CheckpointFailed when the
        host could not make one."""
        until = self._watch.clock.monotonic() + self._waits.job_s
        while True:
            try:
                created = self._create(wanted)
            except (HostDeadline, HostShellLost):
                return self._adopted(wanted, "", until)
            except ScriptFailed as exc:
                hint = "The host's event log Microsoft-Windows-Hyper-V-VMMS-Admin says more"
                raise CheckpointFailed(
                    self._watch.host, wanted.machine, f"{exc.problem} ({_code(exc)})", hint
                ) from exc
            if created.state == "changed":
                if self._settle(wanted):
                    return self._adopted(wanted, "", until)
                if self._watch.clock.monotonic() >= until:
                    doing = "it is at something that this standby has no name for"
                    raise MachineBusy(self._watch.host, wanted.machine, doing, self._waits.job_s)
                continue
            if created.state == "done" and len(created.snapshots) == 1:
                return Made(
                    created.snapshots[0],
                    tuple(created.disks),
                    tuple(created.before.enabled),
                    tuple(created.before.applied),
                    tuple(created.before.points),
                    created.is_copy,
                    wanted.level,
                )
            return self._adopted(wanted, created.job or "", until, created)

    def _create(self, wanted: Wanted) -> Created:
        request = {
            "machines": [
                {
                    "id": wanted.machine_id,
                    "known": list(wanted.known),
                    "level": wanted.level,
                    "copy": wanted.is_copy,
                    "wait_s": SCRIPT_WAIT_S,
                    "volumes": wanted.volumes,
                }
            ]
        }
        return self._watch.door.run(CREATE, request).value(wanted.machine_id)

    def _settle(self, wanted: Wanted) -> bool:
        """Until the VM can be frozen; whether it is, by what was begun before."""
        found = self._watch.idle(wanted.machine_id, wanted.machine, self._waits.busy_s)
        new = new_snapshots(found, wanted.known)
        if new and not (wanted.is_second and len(new) == 1):
            raise in_progress(self._watch.host, wanted.machine, wanted.machine_id, new)
        if not new:
            self._watch.clock.sleep(self._watch.poll_s)
        return bool(new)

    def _adopted(
        self, wanted: Wanted, job: str, until: float, created: Created | None = None
    ) -> Made:
        """The snapshot of a job that was not seen to its end."""
        while True:
            found = self._watch.existing(wanted.machine_id, wanted.machine, job)
            if not any(is_running(item) for item in found.job) and not operation(found):
                break
            if self._watch.clock.monotonic() >= until:
                doing = operation(found) or "making the recovery snapshot"
                raise MachineBusy(self._watch.host, wanted.machine, doing, self._waits.job_s)
            self._watch.clock.sleep(self._watch.poll_s)
        new = new_snapshots(found, wanted.known)
        if len(new) == 1:
            media = next(item.disks for item in found.settings if item.instance_id == new[0])
            before = created.before if created is not None else None
            return Made(
                new[0],
                tuple(media),
                tuple(before.enabled if before else found.enabled),
                tuple(before.applied if before else found.applied),
                tuple(before.points if before else (item.instance_id for item in found.points)),
                created is not None and created.is_copy,
                wanted.level,
            )
        if new:
            raise in_progress(self._watch.host, wanted.machine, wanted.machine_id, new)
        said = [
            f"job state {item.job_state}: {item.error_description or item.error_code}"
            for item in found.job
            if not is_done(item)
        ]
        raise CheckpointFailed(
            self._watch.host,
            wanted.machine,
            "the host's job left no snapshot" + (f" ({said[0]})" if said else ""),
            "The host's event log Microsoft-Windows-Hyper-V-VMMS-Admin says why",
        )

    # --- giving up ---------------------------------------------------------------------------

    def destroy(
        self, machine_id: str, machine: str, snapshot: str, record: Record | None = None
    ) -> bool:
        """Destroy that recovery snapshot and wait for its end; whether it was there. HostError
        where the id is that of something else; FilesHeldOpen (HostCallFailed without the `record`)
        where its files stay open."""
        until = self._watch.clock.monotonic() + self._waits.job_s
        pauses = list(RETRY_PAUSES_S)
        while True:
            try:
                request = {
                    "machines": [{"id": machine_id, "snapshot": snapshot, "wait_s": SCRIPT_WAIT_S}]
                }
                answer = self._watch.door.run(DESTROY, request).value(machine_id)
            except HostCallFailed as exc:
                if not is_sharing_violation(exc):
                    raise
                if not pauses:
                    if self._closing is None or record is None:
                        raise
                    raise self._closing.why_held(record) from exc
                if self._closing is not None and record is not None:
                    self._closing.after_violation(record, len(RETRY_PAUSES_S) - len(pauses))
                self._watch.clock.sleep(pauses.pop(0))
                continue
            if answer.state == "refused":
                raise HostError(
                    self._watch.host,
                    f"VM {machine}: {snapshot} is no recovery snapshot ({answer.type})",
                    "Nothing was touched; look at Get-VMSnapshot",
                )
            if answer.state == "unfinished":
                self._gone(machine_id, machine, snapshot, until)
            return answer.state != "gone"

    def _gone(self, machine_id: str, machine: str, snapshot: str, until: float) -> None:
        while True:
            found = self._watch.state(machine_id)
            if snapshot not in [item.instance_id for item in recovery_snapshots(found)]:
                return
            if self._watch.clock.monotonic() >= until:
                raise HostError(
                    self._watch.host,
                    f"VM {machine}: the snapshot {snapshot} is still there after "
                    f"{self._waits.job_s:g} s",
                    removal_command(snapshot, machine_id),
                )
            self._watch.clock.sleep(self._watch.poll_s)


def _code(error: ScriptFailed) -> str:
    if error.wmi_code:
        return f"WMI code {error.wmi_code}"
    return f"0x{error.hresult:08X}" if error.hresult else error.error_id


def new_snapshots(state: State, known: tuple[str, ...]) -> list[str]:
    """The recovery snapshots that are not among the known ones."""
    return [item.instance_id for item in recovery_snapshots(state) if item.instance_id not in known]
