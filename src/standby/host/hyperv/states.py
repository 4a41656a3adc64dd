"""How one VM stands on its host, and waiting until it stands otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import CheckpointFailed, HostCallFailed, MachineBusy, ScriptFailed
from standby.host.hyperv.asking import Asking
from standby.host.hyperv.machines import RECOVERY
from standby.host.hyperv.rows import STATE, Job, State, StateSettings

BUSY = {
    32768: "creating a snapshot",
    32769: "applying a snapshot",
    32770: "deleting a snapshot",
    32771: "waiting to start",
    32772: "merging disks",
    32773: "exporting the VM",
    32774: "migrating the VM",
}
DONE_STATES = (7, 32768)
"""JobState: completed; completed with warnings."""
RUNNING_BELOW = 7
SHARING_VIOLATION = 0x80070020
POLL_S = 5.0


def operation(state: State) -> str:
    """What the host does with the VM, '' when nothing that a checkpoint must wait for."""
    return next((BUSY[code] for code in state.status if code in BUSY), "")


def recovery_snapshots(state: State) -> list[StateSettings]:
    """The VM's recovery snapshots, anybody's."""
    return [item for item in state.settings if item.virtual_system_type == RECOVERY]


def is_done(job: Job) -> bool:
    """Whether the job ended well."""
    return job.job_state in DONE_STATES


def is_running(job: Job) -> bool:
    """Whether the job has not ended."""
    return job.job_state < RUNNING_BELOW


def is_sharing_violation(error: HostCallFailed) -> bool:
    """Whether a file was held open by someone else."""
    return isinstance(error, ScriptFailed) and (
        error.hresult == SHARING_VIOLATION
        or "0x80070020" in error.problem.lower()
        or error.wmi_code == 32774
    )


@dataclass(slots=True)
class Watch:
    """Looks at VMs of a host again and again, each look one script."""

    door: Asking
    host: str
    clock: Clock = SYSTEM_CLOCK
    poll_s: float = POLL_S

    def state(self, identity: str, job: str = "") -> State:
        """How the VM stands now, and that job, where the host still knows it."""
        request = {"machines": [{"id": identity, "job": job}]}
        return self.door.run(STATE, request).value(identity)

    def existing(self, identity: str, machine: str, job: str = "") -> State:
        """`state`; CheckpointFailed when the host has no such VM any more."""
        found = self.state(identity, job)
        if not found.found:
            raise CheckpointFailed(
                self.host,
                machine,
                "the VM is not on this host any more",
                "It was removed, or moved to another node: the next attempt looks for it",
            )
        return found

    def idle(self, identity: str, machine: str, wait_s: float) -> State:
        """How the VM stands as soon as the host does nothing with it; MachineBusy after
        `wait_s`."""
        until = self.clock.monotonic() + wait_s
        while True:
            found = self.existing(identity, machine)
            doing = operation(found)
            if not doing:
                return found
            if self.clock.monotonic() >= until:
                raise MachineBusy(self.host, machine, doing, wait_s)
            self.clock.sleep(self.poll_s)
